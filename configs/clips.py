"""Sizes of the published CLIP towers: specs that a config takes over, e.g. `text=clips.TOWERS["openclip_h_text"]`.

    clip_l_text          Stable Diffusion 1.5's text tower                       123,060,480 parameters
    clip_l_vision        MAVIN's image tower (its tokens; no projection)         303,179,776
    clip_l_vision_projected      the same, for CLIP-RS as well                   303,966,208
    openclip_h_text      Stable Diffusion 2.1's and ModelScope's text tower      340,387,840
    openclip_h_vision    Stable Video Diffusion's image tower, projected         632,076,800
    clip_b32, clip_l     both towers, for scores                                 151,277,313   427,616,513

openclip_h_text has 23 of the model's 24 layers, as its published files: the penultimate layer, then the final LayerNorm.
"""

VOCABULARY, LENGTH = 49408, 77

GELU = dict(factory="magvid.models.layers:gelu")
QUICK_GELU = dict(factory="magvid.models.clip:quick_gelu")


def text_tower(width, depth, heads, activation, projection=None):
    sizes = dict(width=width, depth=depth, heads=heads, mlp=4 * width, activation=activation, projection=projection)
    return dict(target="magvid.models.clip:TextTower", vocab=VOCABULARY, length=LENGTH, **sizes)


def image_tower(width, depth, heads, patch, activation, projection=None):
    sizes = dict(width=width, depth=depth, heads=heads, mlp=4 * width, activation=activation, projection=projection)
    return dict(target="magvid.models.clip:VisionTower", patch=patch, image=(224, 224), **sizes)


def both(text, vision):
    return dict(target="magvid.models.clip:CLIP", text=text, vision=vision)


TOWERS = dict(
    clip_l_text=text_tower(768, 12, 12, QUICK_GELU),
    clip_l_vision=image_tower(1024, 24, 16, 14, QUICK_GELU),
    clip_l_vision_projected=image_tower(1024, 24, 16, 14, QUICK_GELU, 768),
    openclip_h_text=text_tower(1024, 23, 16, GELU),
    openclip_h_vision=image_tower(1280, 32, 16, 14, GELU, 1024),
    clip_b32=both(text_tower(512, 12, 8, QUICK_GELU, 512), image_tower(768, 12, 12, 32, QUICK_GELU, 512)),
    clip_l=both(text_tower(768, 12, 12, QUICK_GELU, 768), image_tower(1024, 24, 16, 14, QUICK_GELU, 768)),
)
