"""MagDiff's resampler of image tokens (IP-Adapter's Perceiver resampler) <-> a folder that a config can name.

    python tools/convert_resampler.py --preset=magdiff --weights=magdiff.ckpt --out=weights/magdiff/resampler
    python tools/convert_resampler.py --back --weights=weights/magdiff/resampler --out=resampler.safetensors

The released Lightning checkpoint has it under `enclip_projector.`. A config names it as `resampler` of a conditioner:
`dict(run="weights/magdiff/resampler", weights="params")`, or as what a trained one begins with (`config.init`).
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from magvid.adapters.magdiff import Resampler
from magvid.flags import guarded, leave
from tools.convert import Place, Tool, main
from tools.convert_unet import linear, norm
from tools.rules import Rule

READS = 1280  # the width of OpenCLIP ViT-H's hidden states
LAYER = [
    *norm(r"layers\.(\d+)\.0\.norm(\d)", r"layers_\1_norm\2"),
    *linear(r"layers\.(\d+)\.0\.to_(q|kv|out)", r"layers_\1_to_\2", bias=False),
    *norm(r"layers\.(\d+)\.1\.0", r"layers_\1_ff_norm"),
    *linear(r"layers\.(\d+)\.1\.1", r"layers_\1_ff_in", bias=False),
    *linear(r"layers\.(\d+)\.1\.3", r"layers_\1_ff_out", bias=False),
]
RULES: list[Rule] = [(r"latents", "latents"), *linear(r"proj_(in|out)", r"proj_\1"), *norm("norm_out", "norm_out"), *LAYER]


def shapes(module: Resampler, reads: int = READS) -> dict[str, tuple[int, ...]]:
    """{our name: shape}, without making them."""
    tree = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1, reads)))["params"]
    return {name: leaf.shape for name, leaf in flatten_dict(tree, sep="/").items()}


TOOL = Tool(
    name="convert_resampler",
    what="a resampler of image tokens",
    presets=dict(magdiff=dict(target="magvid.adapters.magdiff:Resampler")),
    place=lambda preset: Place("resampler", prefixes=("enclip_projector.",)),
    rules=lambda preset: RULES,
    shapes=lambda preset, module: shapes(module),
)

if __name__ == "__main__":
    leave(guarded(TOOL.name, sys.argv[1:], lambda argv: main(TOOL, argv)))
