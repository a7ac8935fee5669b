"""CLIP's towers of transformers, CLIPTextModel, CLIPVisionModel (WithProjection) and CLIPModel <-> folders that a config can
name.

    python tools/convert_clip.py --preset=openclip_h_text --weights=downloads/stable-diffusion-2-1-base --out=weights/sd21-text
    python tools/convert_clip.py --preset=openclip_h_vision --weights=downloads/svd/image_encoder --out=weights/svd-vision
    python tools/convert_clip.py --back --weights=weights/sd21-text --out=text.safetensors

`--weights` is a .safetensors, .bin or .ckpt file, an index of several, or a folder: the tower's, or that of a whole
pipeline, whose tokenizer's files are copied beside. A config names a tower as `text` or `vision` of a conditioner:
`dict(run="weights/sd21-text", weights="params")`. `convert` and `restore` do the same with arrays.

A preset is a name of configs/clips.py. The published files name everything below `text_model.` or `vision_model.`; files
that newer versions of transformers write of a tower alone leave this out, and are read as well. From the file of a whole
CLIPModel a preset of one tower takes its own part.
"""

import json
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from configs import clips
from magvid.build import build
from magvid.flags import guarded, leave
from magvid.models.clip import CLIP, TextTower, VisionTower
from tools import rules as by_rules
from tools.convert import Place, Tool, main, same
from tools.rules import Rule

# Buffers that older files hold: the numbers 0, 1, 2, ...
IGNORED = r"(.*\.)?embeddings\.position_ids"
PROJECTION = dict(text=r"text_projection\.weight", vision=r"visual_projection\.weight")

PRESETS = clips.TOWERS


# transformers' names; and what it leaves out of the config.json of a whole CLIPModel: the defaults of a tower.
ACTIVATIONS = dict(gelu=clips.GELU, quick_gelu=clips.QUICK_GELU)
DEFAULTS = {kind: dict(hidden_act="quick_gelu", num_attention_heads=heads) for kind, heads in (("text", 8), ("vision", 12))}


def _layers(theirs: str, ours: str) -> list[Rule]:
    source, target = rf"{theirs}encoder\.layers\.(\d+)\.", rf"{ours}encoder/layers_\1/"
    return [
        (rf"{source}self_attn\.(q|k|v|out)_proj\.weight", rf"{target}self_attn/\2_proj/kernel", "kernel"),
        (rf"{source}self_attn\.(q|k|v|out)_proj\.bias", rf"{target}self_attn/\2_proj/bias"),
        (rf"{source}mlp\.fc(\d)\.weight", rf"{target}fc\2/kernel", "kernel"),
        (rf"{source}mlp\.fc(\d)\.bias", rf"{target}fc\2/bias"),
        (rf"{source}layer_norm(\d)\.weight", rf"{target}layer_norm\2/scale"),
        (rf"{source}layer_norm(\d)\.bias", rf"{target}layer_norm\2/bias"),
    ]


def text_rules(ours: str = "") -> list[Rule]:
    """The rules of the text tower, whose names with us begin with `ours`."""
    return [
        (r"text_model\.embeddings\.token_embedding\.weight", rf"{ours}token_embedding/embedding"),
        (r"text_model\.embeddings\.position_embedding\.weight", rf"{ours}position_embedding"),
        *_layers(r"text_model\.", ours),
        (r"text_model\.final_layer_norm\.weight", rf"{ours}final_layer_norm/scale"),
        (r"text_model\.final_layer_norm\.bias", rf"{ours}final_layer_norm/bias"),
        (r"text_projection\.weight", rf"{ours}projection/kernel", "kernel"),
    ]


def vision_rules(ours: str = "") -> list[Rule]:
    """Of the image tower. `pre_layrnorm` is how the original spells it."""
    return [
        (r"vision_model\.embeddings\.class_embedding", rf"{ours}class_embedding"),
        (r"vision_model\.embeddings\.patch_embedding\.weight", rf"{ours}patch_embedding/kernel", "kernel"),
        (r"vision_model\.embeddings\.position_embedding\.weight", rf"{ours}position_embedding"),
        (r"vision_model\.pre_layrnorm\.weight", rf"{ours}pre_layernorm/scale"),
        (r"vision_model\.pre_layrnorm\.bias", rf"{ours}pre_layernorm/bias"),
        *_layers(r"vision_model\.", ours),
        (r"vision_model\.post_layernorm\.weight", rf"{ours}post_layernorm/scale"),
        (r"vision_model\.post_layernorm\.bias", rf"{ours}post_layernorm/bias"),
        (r"visual_projection\.weight", rf"{ours}projection/kernel", "kernel"),
    ]


def module_of(preset) -> TextTower | VisionTower | CLIP:
    """The Flax module of a preset; a module is passed through."""
    if not isinstance(preset, str):
        return preset
    if preset not in PRESETS:
        raise ValueError(f'there is no CLIP preset "{preset}"; choose of {", ".join(PRESETS)}')
    return build(PRESETS[preset])


def rules(preset) -> list[Rule]:
    """For a preset or a module."""
    module = module_of(preset)
    if isinstance(module, CLIP):
        return [*text_rules("text/"), *vision_rules("vision/"), (r"logit_scale", r"logit_scale")]
    return text_rules() if isinstance(module, TextTower) else vision_rules()


def shapes(preset) -> dict[str, tuple[int, ...]]:
    """{our name: shape} of a preset or a module, without making it."""
    module = module_of(preset)
    ids = jnp.zeros((1, 2), jnp.int32)
    images = lambda tower: jnp.zeros((1, *tower.image, 3))
    if isinstance(module, CLIP):
        inputs = images(module.vision), ids
    else:
        inputs = (ids if isinstance(module, TextTower) else images(module),)
    tree = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return {name: leaf.shape for name, leaf in flatten_dict(tree, sep="/").items()}


def convert(preset, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """transformers' names and arrays -> ours, for a preset or a module, as `tools.rules.convert`."""
    return by_rules.convert(published_names(preset, arrays), rules(preset), shapes(preset))


def restore(preset, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `convert`, with the names of the published files."""
    return by_rules.restore(arrays, rules(preset), shapes(preset))


def published_names(preset, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`arrays` under the names of the published files, without buffers, and without what of a whole CLIPModel belongs to
    the other tower.
    """
    arrays = {name: a for name, a in arrays.items() if not re.fullmatch(IGNORED, name)}
    target = module_of(preset)
    if isinstance(target, CLIP):
        return arrays
    own, other = ("text", "vision") if isinstance(target, TextTower) else ("vision", "text")
    if "logit_scale" in arrays:
        unused = [rf"{other}_model\..*", PROJECTION[other], "logit_scale", *([] if target.projection else [PROJECTION[own]])]
        return {name: a for name, a in arrays.items() if not any(re.fullmatch(u, name) for u in unused)}
    if not any(name.startswith(("text_model.", "vision_model.")) for name in arrays):
        alone = r"(embeddings|encoder|pre_layrnorm|post_layernorm|final_layer_norm)\..*"
        return {f"{own}_model.{name}" if re.fullmatch(alone, name) else name: a for name, a in arrays.items()}
    return arrays


def configure(preset: str, spec: Mapping[str, Any], config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Towers of equal shapes differ in their activation and in the token that they pool at, which are taken over, and in their
    heads and the epsilon of their norms, which must be the preset's.
    """
    if "text" in spec:
        return {**spec, **{kind: _tower(preset, kind, spec[kind], config) for kind in DEFAULTS}}
    return _tower(preset, "text" if "vocab" in spec else "vision", spec, config)


def _tower(preset: str, kind: str, spec: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A tower's settings are the whole config.json, or a part of a CLIPModel's, which older files have under two names."""
    nested = [config[key] for key in (f"{kind}_config_dict", f"{kind}_config") if config.get(key) is not None]
    own = nested[0] if nested else config
    if not isinstance(own, Mapping):
        raise ValueError(f"{kind}_config is {json.dumps(own)}, not an object {{...}}: download it again")
    settings = {**(DEFAULTS[kind] if str(config.get("model_type")).startswith("clip") else {}), **own}
    same(preset, settings, dict(num_attention_heads=spec["heads"], layer_norm_eps=1e-5))
    found, (name, eos) = dict(spec), (settings.get(key) for key in ("hidden_act", "eos_token_id"))
    if name is not None:
        if not isinstance(name, str) or name not in ACTIVATIONS:
            choices = " and ".join(ACTIVATIONS)
            raise ValueError(f"hidden_act is {json.dumps(name)}, and the towers here have {choices}: take a model with one of these")
        found["activation"] = ACTIVATIONS[name]
    if kind == "text" and type(eos) is int and eos not in (2, spec["vocab"] - 1):  # 2 stood in every older file, and is not read
        found["eos"] = eos
    return found


# Command line -------------------------------------------------------------------------------------------------------


def place(preset: str) -> Place:
    tower = module_of(preset)
    if isinstance(tower, CLIP):
        return Place("clip", beside=("tokenizer", "."))
    if isinstance(tower, TextTower):
        return Place("text", ("text_encoder",), ("text_encoder.",), beside=("tokenizer", "."))
    return Place("vision", ("image_encoder",), ("image_encoder.",), beside=("feature_extractor", "."))


TOOL = Tool(
    name="convert_clip",
    what="a CLIP tower",
    presets=PRESETS,
    place=place,
    rules=rules,
    shapes=lambda preset, module: shapes(module),
    published=published_names,
    configure=configure,
)

if __name__ == "__main__":
    leave(guarded(TOOL.name, sys.argv[1:], lambda argv: main(TOOL, argv)))
