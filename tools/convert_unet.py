"""U-Nets of diffusers' layout (Stable Diffusion, ModelScope, Stable Video Diffusion), MAVIN's and MagDiff's <-> folders that
a config can name.

    python tools/convert_unet.py --preset=svd --weights=downloads/stable-video-diffusion-img2vid --out=weights/svd-unet
    python tools/convert_unet.py --preset=magdiff --weights=magdiff.ckpt --out=weights/magdiff-unet
    python tools/convert_unet.py --back --weights=weights/svd-unet --out=unet.safetensors
    python tools/convert_unet.py --back --preset=svd --weights=runs/svd-lora --out=unet.safetensors

`--weights` is a .safetensors, .bin or .ckpt file, an index of several, or a folder: the U-Net's, or that of a whole
pipeline. In a config: `objective.network = dict(run="weights/svd-unet", weights="params")`. Presets are those of
configs/unets.py; `convert` and `restore` do the same with arrays, also of a model of another size. Of a run that trained a LoRA,
`--back` writes the U-Net with the LoRA merged in.
"""

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from configs import unets
from magvid.build import build
from magvid.flags import guarded, leave
from magvid.models.unet import UNet
from magvid.types import Condition
from tools import rules as by_rules
from tools.convert import Place, Tool, main, same
from tools.rules import Rule

Shapes = dict[str, tuple[int, ...]]

# Parts: (suffix of the source, suffix of ours, operation), joined to the places where they occur ----------------------


def linear(source: str, target: str, bias: bool = True) -> list[Rule]:
    """A linear layer or a convolution."""
    rules = [(rf"{source}\.weight", f"{target}/kernel", "kernel")]
    return rules + [(rf"{source}\.bias", f"{target}/bias")] if bias else rules


def norm(source: str, target: str) -> list[Rule]:
    return [(rf"{source}\.weight", f"{target}/scale"), (rf"{source}\.bias", f"{target}/bias")]


def at(place: tuple[str, str], rules: Sequence[Rule]) -> list[Rule]:
    """Rules below a place (source regex, target with its groups): the groups of the rules are numbered on."""
    source, target = place
    groups = source.count("(")
    shift = lambda text: text if not groups else _renumber(text, groups)
    return [(rf"{source}\.{rule[0]}", f"{target}/{shift(rule[1])}", *rule[2:]) for rule in rules]


def _renumber(target: str, by: int) -> str:
    parts = target.split("\\")
    return parts[0] + "".join(f"\\{int(p[0]) + by}{p[1:]}" for p in parts[1:])


ATTENTION = [*linear(r"to_([qkv])", r"to_\1", bias=False), *linear(r"to_out\.0", "to_out")]
FEED_FORWARD = [*linear(r"net\.0\.proj", "proj"), *linear(r"net\.2", "out")]
BLOCK = [
    *norm(r"norm(\d|_in)", r"norm\1"),
    *at((r"attn(\d)", r"attn\1"), ATTENTION),
    *at((r"(ff|ff_in)", r"\1"), FEED_FORWARD),
]
TRANSFORMER = [
    *norm("norm", "norm"),
    *linear(r"proj_(in|out)", r"proj_\1"),
    *at((r"transformer_blocks\.(\d+)", r"transformer_blocks_\1"), BLOCK),
]
# Stable Diffusion 1.5's projections are 1x1 convolutions.
CONV_TRANSFORMER = [(rule[0], rule[1], "pointwise") if "proj_" in rule[0] and len(rule) > 2 else rule for rule in TRANSFORMER]
RES = [*norm(r"norm(\d)", r"norm\1"), *linear(r"(conv\d|conv_shortcut|time_emb_proj)", r"\1")]
MLP = linear(r"linear_(\d)", r"linear_\1")
MIXER = [(r"time_mixer\.mix_factor", "time_mixer/mix_factor")]

# ModelScope's and MagDiff's four convolutions: Sequential layers of norm, SiLU, (dropout,) conv
STACK = [
    *norm(r"conv(\d)\.0", r"norm\1"),
    *linear(r"conv1\.2", "conv1"),
    *linear(r"conv([234])\.3", r"conv\1"),
]
FLAT_STACK = [
    rule
    for i in range(4)
    for rule in (*norm(rf"convs\.{4 * i}", f"norm{i + 1}"), *linear(rf"convs\.{4 * i + 3}", f"conv{i + 1}"))
]

# SVD's blocks between frames
FRAMES = [
    *at((r"temporal_transformer_blocks\.(\d+)", r"temporal_transformer_blocks_\1"), BLOCK),
    *at(("time_pos_embed", "time_pos_embed"), MLP),
]
# MagDiff's additions to a block
INLINE = at(
    (r"transformer_blocks\.(\d+)", r"transformer_blocks_\1"),
    [
        *norm("temp_norm", "temp_norm"),
        *at(("temp_attn", "temp_attn"), ATTENTION),
        *linear(r"attn2\.to_([kv])_ip", r"attn2/to_\1_ip", bias=False),
        (r"attn2\.(text|image)_cross_attention_scale", r"attn2/\1_scale"),
    ],
)


# Places -------------------------------------------------------------------------------------------------------------


def everywhere(source: str, target: str, rules: Sequence[Rule]) -> list[Rule]:
    """The rules below every `source`.i of the blocks on the way down, in the middle and up; ours is `target`, # for i."""
    levels = (rf"(down|up)_blocks\.(\d)\.{source}\.(\d)", r"\1_blocks_\2/" + target.replace("#", r"\3"))
    middle = (rf"mid_block\.{source}\.(\d)", "mid_block/" + target.replace("#", r"\1"))
    return at(levels, rules) + at(middle, rules)


SKELETON = [
    *linear(r"(conv_in|conv_out)", r"\1"),
    *norm("conv_norm_out", "conv_norm_out"),
    *at(("time_embedding", "time_embedding"), MLP),
    *linear(r"down_blocks\.(\d)\.downsamplers\.0\.conv", r"downsamplers_\1"),
    *linear(r"up_blocks\.(\d)\.upsamplers\.0\.conv", r"upsamplers_\1"),
]
RESNETS = everywhere("resnets", "resnets_#", RES)
ATTENTIONS = everywhere("attentions", "attentions_#", TRANSFORMER)

SD21 = [*SKELETON, *RESNETS, *ATTENTIONS]
SD15 = [*SKELETON, *RESNETS, *everywhere("attentions", "attentions_#", CONV_TRANSFORMER)]
MODELSCOPE = [
    *SD21,
    *everywhere("temp_convs", "resnets_#/temp_convs", STACK),
    *everywhere("temp_attentions", "attentions_#/temp_attentions", TRANSFORMER),
    *at(("transformer_in", "transformer_in"), TRANSFORMER),
]
MAVIN = [*MODELSCOPE, *linear(r"time_embedding\.cond_proj", "time_embedding/cond_proj", bias=False)]
SVD = [
    *SKELETON,
    *at(("add_embedding", "time_embedding/add_embedding"), MLP),
    *everywhere("resnets", "resnets_#", [(rf"spatial_res_block\.{rule[0]}", *rule[1:]) for rule in RES]),
    *everywhere("resnets", "resnets_#", [*at(("temporal_res_block", "temporal_res_block"), RES), *MIXER]),
    *everywhere("attentions", "attentions_#", [*TRANSFORMER, *FRAMES, *MIXER]),
]
MAGDIFF = [
    *SKELETON,
    *RESNETS,
    *everywhere("temp_convs", "resnets_#/temp_convs", FLAT_STACK),
    *everywhere("attentions", "attentions_#", [*TRANSFORMER, *INLINE]),
]

SPECS = {name: dict(target="magvid.models.unet:UNet", **options) for name, options in unets.PRESETS.items()}
RULES = dict(sd15=SD15, sd21=SD21, modelscope=MODELSCOPE, mavin=MAVIN, svd=SVD, svd_xt=SVD, magdiff=MAGDIFF)


# Both ways ----------------------------------------------------------------------------------------------------------


def rules(preset: str) -> list[Rule]:
    """Published names -> ours, for `tools.rules`."""
    if preset not in RULES:
        raise ValueError(f'there is no U-Net preset "{preset}"; choose of {", ".join(RULES)}')
    return RULES[preset]


def example(channels: int, tokens: Mapping[str, int], scalars: Sequence[str] = (), size: int = 8) -> tuple:
    """Arguments (xt, time, condition) of zeros for a U-Net with the inputs that configs/unets.py names."""
    condition = Condition(
        tokens={name: jnp.zeros((1, 1, 1, width)) for name, width in tokens.items()},
        scalars={name: jnp.zeros(1) for name in scalars},
    )
    return jnp.zeros((1, 2, size, size, channels)), jnp.zeros(1), condition


def shapes(preset: str, unet: UNet | None = None, inputs: Mapping | None = None) -> Shapes:
    """{our name: shape} of a preset at its full size, or of another `unet` with its `inputs`; no array is allocated."""
    rules(preset)
    unet = unet or build(SPECS[preset])
    inputs = dict(inputs or unets.INPUTS[preset])
    tree = jax.eval_shape(lambda: unet.init(jax.random.key(0), *example(**inputs)))["params"]
    return {name: x.shape for name, x in flatten_dict(tree, sep="/").items()}


def convert(preset: str, state: Mapping[str, np.ndarray], ours: Shapes | None = None) -> dict[str, np.ndarray]:
    """Published names and arrays -> ours, as `tools.rules.convert`; `ours`: our shapes, default those of the full size."""
    return by_rules.convert(state, rules(preset), ours or shapes(preset))


def restore(preset: str, arrays: Mapping[str, np.ndarray], ours: Shapes | None = None) -> dict[str, np.ndarray]:
    """The reverse."""
    return by_rules.restore(arrays, rules(preset), ours or shapes(preset))


# What diffusers can be told of a U-Net, its arrays do not show, and ours has one way only.
FIXED = dict(
    act_fn="silu",
    norm_eps=1e-5,
    flip_sin_to_cos=True,
    freq_shift=0,
    time_embedding_type="positional",
    time_embedding_act_fn=None,
    timestep_post_act=None,
    class_embed_type=None,
    center_input_sample=False,
    downsample_padding=1,
    mid_block_scale_factor=1,
    resnet_out_scale_factor=1,
    resnet_skip_time_act=False,
    only_cross_attention=False,
)
HEAD_WIDTH = ("modelscope", "mavin")


def configure(preset: str, spec: Mapping[str, Any], config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The preset's own spec. diffusers' `attention_head_dim` is the width of a head in UNet3DConditionModel, and elsewhere, by
    an old mistake, the number of heads; `num_attention_heads` comes before it.
    """
    heads, channels = spec["heads"], spec.get("channels", UNet.channels)
    if preset in HEAD_WIDTH:
        widths = [c // h for c, h in zip(channels, heads, strict=True)]
        heads = widths[0] if len(set(widths)) == 1 else widths
    key = "attention_head_dim" if config.get("num_attention_heads") is None else "num_attention_heads"
    same(preset, config, {key: heads, "norm_num_groups": spec.get("groups", UNet.groups), **FIXED})
    return spec


# Command line -------------------------------------------------------------------------------------------------------

TOOL = Tool(
    name="convert_unet",
    what="a U-Net",
    presets=SPECS,
    place=lambda preset: Place("network", folders=("unet",), prefixes=("unet.",)),
    rules=rules,
    shapes=shapes,
    configure=configure,
)

if __name__ == "__main__":
    leave(guarded(TOOL.name, sys.argv[1:], lambda argv: main(TOOL, argv)))
