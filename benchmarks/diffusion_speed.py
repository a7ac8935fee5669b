"""Seconds of the diffusion networks, forward and forward with backward, beside diffusers' and transformers' in the same run.

    pip install -e ".[parity]"
    python benchmarks/diffusion_speed.py --out=benchmarks/results/diffusion_speed_cpu.json [--only=svd_quarter] [--repeats=4]

The same sizes, random weights (time does not depend on them), float32, both on all cores; every figure is the best of 2 x `repeats`,
ours and theirs in turn, in two rounds, after compilation. Backward: gradients with respect to all parameters and the input.
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from helpers_torch import diffusers, torch, transformers

from benchmarks.magvit_speed import machine
from configs import clips, unets, vaes
from magvid.build import build
from magvid.flags import use_huge_pages
from magvid.types import Condition

class Ours(NamedTuple):
    """A module, its arguments for an input x, and what of its result counts."""

    module: nn.Module
    arguments: Callable = lambda x: (x,)
    found: Callable = lambda y: y

    def init(self, x):
        return self.module.init(jax.random.key(0), *self.arguments(x))

    def apply(self, params, x):
        return self.found(self.module.apply(params, *self.arguments(x)))


DRAW = np.random.default_rng(0)


def draw(*shape) -> np.ndarray:
    return DRAW.standard_normal(shape).astype(np.float32)


def unet(preset: str, channels, heads, layers: int, attends, t: int, h: int, w: int, width: int):
    """(ours (x) -> y with parameters, torch's module and call, x) of a U-Net of ModelScope or SVD."""
    spec = {**unets.PRESETS[preset], "channels": channels, "heads": heads, "layers": layers, "attention_levels": attends}
    if "epsilon" in spec:
        spec["epsilon"] = 1e-5
    if "stem" in spec:  # as wide as diffusers makes it of the size of a head
        spec["stem"] = {**spec["stem"], "head_dim": channels[0] // heads[0]}
    svd = preset == "svd"
    module = build(dict(target="magvid.models.unet:UNet", **spec))
    x, context = draw(1, t, h, w, 8 if svd else 4), draw(1, 1 if svd else 77, width)
    scalars = {n: jnp.ones(1) for n in unets.INPUTS[preset]["scalars"]}
    condition = Condition(tokens={"image" if svd else "text": jnp.asarray(context)[:, None]}, scalars=scalars)
    ours = Ours(module, lambda x: (x, jnp.ones(1), condition))
    sizes = dict(
        in_channels=x.shape[-1], out_channels=4, block_out_channels=channels, layers_per_block=layers, cross_attention_dim=width
    )
    if svd:
        names = {True: "CrossAttn{}BlockSpatioTemporal", False: "{}BlockSpatioTemporal"}
        theirs = diffusers.UNetSpatioTemporalConditionModel(
            **sizes, num_attention_heads=heads, addition_time_embed_dim=256, projection_class_embeddings_input_dim=768, num_frames=t,
            down_block_types=[names[a].format("Down") for a in attends],
            up_block_types=[names[a].format("Up") for a in reversed(attends)],
        )  # fmt: skip
        call = lambda x: theirs(x, torch.ones(1), torch.from_numpy(context), added_time_ids=torch.ones(1, 3)).sample
        order = (0, 1, 4, 2, 3)
    else:
        names = {True: "CrossAttn{}Block3D", False: "{}Block3D"}
        theirs = diffusers.UNet3DConditionModel(
            **sizes, attention_head_dim=channels[0] // heads[0],
            down_block_types=[names[a].format("Down") for a in attends],
            up_block_types=[names[a].format("Up") for a in reversed(attends)],
        )  # fmt: skip
        call = lambda x: theirs(x, torch.ones(1), torch.from_numpy(context)).sample
        order = (0, 4, 1, 2, 3)
    return ours, (theirs.eval(), call), x, order


def autoencoder(t: int, size: int):
    spec = {**vaes.VAES["sd"], "channels": (64, 128, 256, 256)}
    module = build(spec)
    x = draw(1, t, size, size, 3)
    theirs = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4,
        block_out_channels=(64, 128, 256, 256), layers_per_block=2, sample_size=size,
    ).eval()  # fmt: skip
    ours = Ours(module, found=lambda y: y[0])
    call = lambda x: theirs(x.flatten(0, 1)).sample
    return ours, (theirs, call), x, (0, 1, 4, 2, 3)


def vision(count: int):
    module = build(clips.TOWERS["clip_l_vision"] | dict(depth=6))
    x = draw(count, 224, 224, 3)
    theirs = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=6, num_attention_heads=16, image_size=224, patch_size=14
        )
    ).eval()
    ours = Ours(module, found=lambda y: y.tokens)
    return ours, (theirs, lambda x: theirs(x).last_hidden_state), x, (0, 3, 1, 2)


CASES = {
    "svd_tiny": lambda: unet("svd", (32, 64), (4, 8), 1, (True, False), 5, 8, 8, 32),
    "modelscope_tiny": lambda: unet("modelscope", (32, 64), (4, 8), 1, (True, False), 5, 8, 8, 32),
    "svd_quarter": lambda: unet("svd", (96, 160, 320, 320), (3, 5, 10, 10), 2, (True, True, True, False), 8, 24, 32, 1024),
    "modelscope_quarter": lambda: unet("modelscope", (96, 160, 320, 320), (3, 5, 10, 10), 2, (True, True, True, False), 8, 24, 32, 1024),
    "vae_half": lambda: autoencoder(2, 128),
    "clip_l_vision_6_layers": lambda: vision(4),
}


def best(functions: dict, repeats: int) -> dict[str, float]:
    """In two rounds. The repetitions of one function follow each other: the memory that another has left to the system
    costs the first of them seconds.
    """
    found = dict.fromkeys(functions, float("inf"))
    for _ in range(2):
        for name, f in functions.items():
            for _ in range(repeats):
                begin = time.perf_counter()
                f()
                found[name] = min(found[name], time.perf_counter() - begin)
    return found


def measure(name: str, repeats: int) -> dict:
    ours, (theirs, call), x, order = CASES[name]()
    scaled = lambda s: jnp.asarray(draw(*s.shape) / max(np.prod(s.shape[:-1]), 1) ** 0.5)
    params = jax.tree.map(scaled, jax.eval_shape(ours.init, x))
    x, tx = jnp.asarray(x), torch.from_numpy(np.ascontiguousarray(np.transpose(x, order)))
    count, same = sum(v.size for v in jax.tree.leaves(params)), sum(p.numel() for p in theirs.parameters())
    if count != same:
        raise ValueError(f"{name}: {count:,} parameters here and {same:,} there: these are not the same networks")
    forward = jax.jit(ours.apply)
    backward = jax.jit(jax.grad(lambda p, x: jnp.sum(jnp.square(ours.apply(p, x))), (0, 1)))

    def torch_forward():
        with torch.no_grad():
            call(tx)

    def torch_backward():
        theirs.zero_grad()
        z = tx.clone().requires_grad_()
        call(z).square().sum().backward()

    functions = {
        "forward": lambda: jax.block_until_ready(forward(params, x)),
        "forward_torch": torch_forward,
        "both": lambda: jax.block_until_ready(backward(params, x)),
        "both_torch": torch_backward,
    }
    seconds = best(functions, repeats)
    ratios = {f"{k}_ratio": seconds[k] / seconds[f"{k}_torch"] for k in ("forward", "both")}
    return {"parameters": count, **seconds, **ratios}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--repeats", type=int, default=4)
    options = parser.parse_args()
    found = {}
    for name in [options.only] if options.only else CASES:
        found[name] = measure(name, options.repeats)
        line = found[name]
        print(f"{name:24s} {line['parameters']:>12,} parameters  " + "  ".join(
            f"{k} {line[k]:.3f} s, torch {line[f'{k}_torch']:.3f}, ratio {line[f'{k}_ratio']:.2f}" for k in ("forward", "both")
        ), flush=True)  # fmt: skip
    versions = dict(torch=torch.__version__, diffusers=diffusers.__version__, transformers=transformers.__version__)
    result = dict(**machine(), **versions, threads=torch.get_num_threads(), networks=found)
    if options.out:
        pathlib.Path(options.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    use_huge_pages()  # for both
    main()
