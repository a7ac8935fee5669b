"""U-Nets as data: what `magvid.models.unet:UNet` is built with for the weights that are published.

    config.model = dict(target="magvid.models.unet:UNet", **unets.svd)

`INPUTS` says of every preset how many channels its first convolution takes (latents and what is joined to them), how wide the
tokens of each name are, and which scalars it embeds: the names that a condition must have.
"""


def _transformer(name: str, **options) -> dict:
    return dict(factory=f"magvid.models.{name}", **options)


def _time(**options) -> dict:
    return dict(factory="magvid.models.unet:TimeEmbedding", **options)


def _between_frames(preset: dict, **options) -> dict:
    """The fields of ModelScope's layers, with options of all transformers between frames."""
    frames = _transformer("temporal:FrameTransformer", **options)
    return dict(attention=dict(preset["attention"], frames=frames), stem=dict(preset["stem"], **options))


# Stable Diffusion 2.1: 2.1-base predicts eps, the 768 model is the same network trained for v
sd21 = dict(
    heads=(5, 10, 20, 20),
    res=dict(factory="magvid.models.unet:Res"),
    attention=_transformer("unet:Transformer", tokens=("text",)),
    time_embedding=_time(),
)

# Stable Diffusion 1.5; its files have 1x1 convolutions where this has linear layers: the same numbers
sd15 = dict(sd21, heads=8)

# ModelScope text-to-video 1.7b
modelscope = dict(
    heads=(5, 10, 20, 20),
    res=dict(factory="magvid.models.temporal:StackRes"),
    attention=_transformer("temporal:PostTransformer", tokens=("text",)),
    stem=_transformer("temporal:FrameTransformer", heads=8, head_dim=64),
    time_embedding=_time(),
)

# MAVIN: ModelScope's, with the length of the gap, and after the text the tokens of the frames at its ends
mavin = dict(
    modelscope,
    attention=_transformer("temporal:PostTransformer", tokens=("text", "image")),
    time_embedding=_time(before="length"),
)

# Stable Video Diffusion: img2vid (14 frames) and xt (25) are the same network; epsilons of diffusers: down, middle, up
svd = dict(
    heads=(5, 10, 20, 20),
    res=dict(factory="magvid.models.temporal:BlendRes"),
    attention=_transformer("temporal:BlendTransformer", tokens=("image",)),
    time_embedding=_time(after=("fps", "motion", "aug")),
    epsilon=(1e-6, 1e-6, 1e-6, 1e-5, 1e-5, 1e-6, 1e-6, 1e-6, 1e-6),
)
svd_xt = dict(svd)

# MagDiff / VideoAssembler
magdiff = dict(
    heads=(5, 10, 20, 20),
    clip_norm=True,
    res=dict(factory="magvid.models.temporal:StackRes", dropout=(0.1, 0.1, 0.1, 0.1), single_frames=False),
    attention=_transformer("temporal:InlineTransformer", cross_attention=dict(factory="magvid.adapters.magdiff:EPAF")),
    time_embedding=_time(),
)

PRESETS = dict(sd15=sd15, sd21=sd21, modelscope=modelscope, mavin=mavin, svd=svd, svd_xt=svd_xt, magdiff=magdiff)

INPUTS = dict(
    sd15=dict(channels=4, tokens=dict(text=768), scalars=()),
    sd21=dict(channels=4, tokens=dict(text=1024), scalars=()),
    modelscope=dict(channels=4, tokens=dict(text=1024), scalars=()),
    mavin=dict(channels=4, tokens=dict(text=1024, image=1024), scalars=("length",)),
    svd=dict(channels=8, tokens=dict(image=1024), scalars=("fps", "motion", "aug")),
    svd_xt=dict(channels=8, tokens=dict(image=1024), scalars=("fps", "motion", "aug")),
    magdiff=dict(channels=8, tokens=dict(text=1024, image=1024), scalars=()),
)

# MAVIN's optional code paths, off in every released configuration of it: fields that take the place of `mavin`'s, with the same
# parameters. `centred` reads the scalar "start" of the gap, `sparse_causal` "start" and "end".
MAVIN_VARIANTS = dict(
    rope=_between_frames(mavin, cross_attention=dict(factory="magvid.models.temporal:RotaryAttention")),
    centred=_between_frames(mavin, self_attention=dict(factory="magvid.models.temporal:CentredAttention")),
    sparse_causal=dict(
        attention=dict(mavin["attention"], self_attention=dict(factory="magvid.models.temporal:SparseCausalAttention"))
    ),
)

# What MAVIN trains (regex over names of parameters): 496,042,176 of its 1,411,336,260
MAVIN_TRAINED = "temp_convs/|attn[12]/to_|time_emb_proj/|time_embedding/(linear_[12]|cond_proj)/"

# What MagDiff trains (590,871,392 of its 1,207,971,876), and what of it Stable Diffusion does not have
MAGDIFF_TRAINED = "temp_|transformer_blocks_|^conv_in/"
MAGDIFF_NEW = "temp_|_ip/|_scale$"
