"""Autoencoders of diffusers, AutoencoderKL and AutoencoderKLTemporalDecoder <-> folders that a config can name.

    python tools/convert_vae.py --preset=sd --weights=downloads/stable-diffusion-2-1-base --out=weights/sd-vae
    python tools/convert_vae.py --preset=svd --weights=svd/vae/diffusion_pytorch_model.fp16.safetensors --out=weights/svd-vae
    python tools/convert_vae.py --back --weights=weights/sd-vae --out=vae.safetensors

`--weights` is a .safetensors, .bin or .ckpt file, an index of several, or a folder: the autoencoder's, or that of a whole
pipeline. In a config: `objective.vae = dict(run="weights/sd-vae", weights="params")`.
"""

import json
import math
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from configs.vaes import VAES
from magvid.flags import guarded, leave
from magvid.models.vae import AutoencoderKL
from tools.convert import Place, Tool, main, same
from tools.rules import Rule

T = TypeVar("T")

# Until 2023 diffusers called the layers of the middle attention so.
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _path(theirs: str, ours: str | None = None) -> tuple[str, str]:
    """(regex, replacement) of a module's path: # is a number, and where `ours` is not given, `a.#.b` is called a_#/b."""
    ours = ours or theirs.replace(".#", "_#").replace(".", "/")
    for i in range(theirs.count("#")):
        ours = ours.replace("#", rf"\{i + 1}", 1)
    return theirs.replace(".", r"\.").replace("#", r"(\d+)"), ours


def _layer(theirs: str, ours: str | None = None) -> list[Rule]:
    """Of a convolution or a linear layer."""
    source, target = _path(theirs, ours)
    return [(rf"{source}\.weight", f"{target}/kernel", "kernel"), (rf"{source}\.bias", f"{target}/bias")]


def _norm(theirs: str) -> list[Rule]:
    source, target = _path(theirs)
    return [(rf"{source}\.weight", f"{target}/scale"), (rf"{source}\.bias", f"{target}/bias")]


def _block(path: str) -> list[Rule]:
    return [*_norm(f"{path}.norm#"), *_layer(f"{path}.conv#"), *_layer(f"{path}.conv_shortcut")]


def _rules() -> list[Rule]:
    rules = [*_layer("quant_conv"), *_layer("post_quant_conv"), *_layer("decoder.time_conv_out")]
    for half, level, resample in (("encoder", "down_blocks", "downsamplers"), ("decoder", "up_blocks", "upsamplers")):
        rules += [*_layer(f"{half}.conv_in"), *_layer(f"{half}.conv_out"), *_norm(f"{half}.conv_norm_out")]
        attention = f"{half}.mid_block.attentions.#"
        rules += _norm(f"{attention}.group_norm")
        rules += [rule for name in ("to_q", "to_k", "to_v") for rule in _layer(f"{attention}.{name}")]
        rules += _layer(f"{attention}.to_out.0", f"{half}/mid_block/attentions_#/to_out")
        rules += _layer(f"{half}.{level}.#.{resample}.0.conv", f"{half}/{level}_#/resample")
        for block in (f"{half}.mid_block.resnets.#", f"{half}.{level}.#.resnets.#"):
            rules += [*_block(block), *_block(f"{block}.spatial_res_block"), *_block(f"{block}.temporal_res_block")]
            rules.append(_path(f"{block}.time_mixer.mix_factor", f"{block.replace('.#', '_#').replace('.', '/')}/mix_factor"))
    return rules


RULES = _rules()  # of every preset: those for layers that a model does not have take nothing


def shapes(module: AutoencoderKL) -> dict[str, tuple[int, ...]]:
    """{our name: shape}, without making them."""
    tree = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1, module.factor, module.factor, 3)))["params"]
    return {name: leaf.shape for name, leaf in flatten_dict(tree, sep="/").items()}


def published(preset: str, arrays: Mapping[str, T]) -> dict[str, T]:
    """`arrays` under the names of newer files."""
    old = re.compile(rf"(.*\.mid_block\.attentions\.0\.)({'|'.join(OLD)})(\..*)")
    return {old.sub(lambda m: m[1] + OLD[m[2]] + m[3], name): a for name, a in arrays.items()}


def configure(preset: str, spec: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Autoencoders of equal shapes differ in their scaling (SDXL's has 0.13025), which only config.json says. Latents are not
    shifted here.
    """
    same(preset, config, dict(shift_factor=0, latents_mean=None, latents_std=None, norm_num_groups=spec["groups"], act_fn="silu"))
    scaling = config.get("scaling_factor")
    if scaling is None:
        return dict(spec)
    if type(scaling) not in (int, float) or not 0 < scaling < math.inf:
        raise ValueError(f"scaling_factor is {json.dumps(scaling)}, not a number above 0: download it again")
    return {**spec, "scaling": float(scaling)}


TOOL = Tool(
    name="convert_vae",
    what="an autoencoder",
    presets=VAES,
    place=lambda preset: Place("vae", folders=("vae",), prefixes=("vae.",)),
    rules=lambda preset: RULES,
    shapes=lambda preset, module: shapes(module),
    published=published,
    configure=configure,
)

if __name__ == "__main__":
    leave(guarded(TOOL.name, sys.argv[1:], lambda argv: main(TOOL, argv)))
