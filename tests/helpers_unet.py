"""Tiny U-Nets of every family, the weights that the golden files were made with, and comparison with torch's modules."""

import zlib
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from configs import unets
from helpers import flatten, nest, relative_error
from magvid.build import build
from magvid.models.unet import UNet
from magvid.types import Condition
from tools import convert_unet


def tiny(preset: str, **options) -> UNet:
    """A preset with other sizes: fields of UNet; `stem` merges into the preset's."""
    spec = dict(unets.PRESETS[preset], **{"channels": (32, 64), "layers": 1, "attention_levels": (True, False)})
    if "stem" in options and options["stem"]:
        options["stem"] = dict(spec["stem"], **options["stem"])
    if "time_embedding" in options:
        options["time_embedding"] = dict(spec["time_embedding"], **options["time_embedding"])
    return build(dict(target="magvid.models.unet:UNet", **(spec | options)))


def golden_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The golden files' weights, from the published name (numpy's frozen stream)."""
    seed = zlib.crc32(name.encode()) & 0x7FFFFFFF
    r = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    if len(shape) <= 1:
        return (1 + 0.1 * r if name.endswith("weight") else 0.1 * r).astype(np.float32)
    return (r / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def golden_input(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.RandomState(zlib.crc32(f"input:{name}".encode()) & 0x7FFFFFFF).standard_normal(shape).astype(np.float32)


def golden_params(preset: str, unet: UNet, inputs: Mapping) -> dict:
    """Our parameters with the golden weights; `inputs` as in configs/unets.py."""
    model = dict(unet=unet, inputs=inputs)
    names = convert_unet.source_shapes(preset, convert_unet.shapes(preset, **model))
    state = {name: golden_weight(name, shape) for name, shape in names.items()}
    return nest(convert_unet.convert(preset, state, **model))


def last(x: np.ndarray) -> np.ndarray:
    """torch's (b c t h w) -> (b t h w c)."""
    return np.moveaxis(np.asarray(x), 1, -1)


def tokens(**arrays) -> dict:
    """Tokens (b n c), the same in every frame."""
    return {name: jnp.asarray(a)[:, None] for name, a in arrays.items()}


def run(unet: UNet, params: dict, x, time, condition: Condition) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(unet.apply)({"params": params}, x, jnp.asarray(time, jnp.float32), condition))


def randomise(module, seed: int = 0):
    """torch weights that make every layer count: zero-initialised ones too."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            r = torch.randn(p.shape, generator=generator)
            if p.ndim > 1:
                p.copy_(r / p[0].numel() ** 0.5)
            else:
                p.copy_(1 + 0.1 * r if name.endswith("weight") else 0.1 * r)
    return module.eval()


def check_parity(preset: str, unet: UNet, module, inputs: Mapping, x, time, condition: Condition, call: Callable):
    """Output, and gradients with respect to every parameter and the input, of our U-Net and of torch's `module`.

    `call(module, x (b t h w c) torch tensor)` runs torch's and returns (b t h w c).
    """
    import torch

    state = {name: p.detach().numpy() for name, p in module.named_parameters()}
    model = dict(unet=unet, inputs=inputs)
    arrays = convert_unet.convert(preset, state, **model)
    back = convert_unet.restore(preset, arrays, **model)
    assert back.keys() == state.keys() and all(np.array_equal(back[n], state[n]) for n in state)

    theirs_x = torch.from_numpy(np.asarray(x)).requires_grad_()
    theirs = call(module, theirs_x)
    weight = np.random.default_rng(1).standard_normal(theirs.shape).astype(np.float32)
    (theirs * torch.from_numpy(weight)).sum().backward()

    def loss(params, x):
        y = unet.apply({"params": params}, x, jnp.asarray(time, jnp.float32), condition)
        return jnp.sum(y * weight), y

    with jax.default_matmul_precision("highest"):
        (_, ours), (grads, grad_x) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(nest(arrays), jnp.asarray(x))
    assert relative_error(ours, theirs.detach().numpy()) < 1e-4
    assert relative_error(grad_x, theirs_x.grad.numpy()) < 1e-3
    grads = convert_unet.restore(preset, {n: np.asarray(g) for n, g in flatten(grads).items()}, **model)
    # Of one token the softmax is constant: its queries and keys have no gradient in either.
    theirs = {n: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy() for n, p in module.named_parameters()}
    largest = max(np.abs(g).max() for g in theirs.values())
    for name, g in theirs.items():
        error = np.abs(grads[name] - g).max()
        assert error < 1e-3 * max(np.abs(g).max(), 1e-3 * largest), (name, error, np.abs(g).max())


def arrays(seed: int, **shapes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
