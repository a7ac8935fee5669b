"""Tiny U-Nets of every family, the weights that the golden files were made with, and comparison with torch's modules."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from configs import unets
from helpers import flatten, nest, relative_error
from helpers_diffusion import golden_weight
from magvid.build import build
from magvid.models.unet import UNet
from magvid.types import Condition
from tools import convert_unet
from tools.rules import invert, rename, rename_shapes

SIZES = dict(channels=(32, 64), layers=1, attention_levels=(True, False), heads=(4, 8))
ONE_LEVEL = dict(channels=(32,), layers=1, attention_levels=(True,), heads=2)
# These networks compile for longer than they run.
FAST_COMPILE = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SVD_IDS = ("fps", "motion", "aug")


def tiny(preset: str, **options) -> UNet:
    """A preset with other fields; dicts of options are merged into the preset's."""
    spec = dict(unets.PRESETS[preset], **SIZES)
    if "epsilon" in spec:
        spec["epsilon"] = 1e-5
    if "stem" in spec:
        spec["stem"] = dict(spec["stem"], head_dim=8)
    for name, value in options.items():
        spec[name] = dict(spec[name], **value) if isinstance(value, dict) and name in spec else value
    return build(dict(target="magvid.models.unet:UNet", **spec))


def inputs(preset: str, width: int = 32, **options) -> dict:
    """The preset's entry of `unets.INPUTS` with tokens of another width."""
    entry = unets.INPUTS[preset]
    return dict(entry, tokens=dict.fromkeys(entry["tokens"], width)) | options


def source_shapes(preset: str, ours: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """{published name: shape} for our shapes."""
    return rename_shapes(ours, invert(convert_unet.rules(preset)))


def golden_params(preset: str, unet: UNet, *arguments) -> dict:
    """Our parameters with the golden weights, for a call of the U-Net with these arguments."""
    tree = jax.eval_shape(unet.init, jax.random.key(0), *arguments)["params"]
    ours = {name: x.shape for name, x in flatten_dict(tree, sep="/").items()}
    names = source_shapes(preset, ours)
    return nest(rename({n: golden_weight(n, shape) for n, shape in names.items()}, convert_unet.rules(preset)))


def random_params(unet: UNet, *arguments, seed: int = 0) -> dict:
    """Parameters of a call, none of them zero."""
    rng = np.random.default_rng(seed)
    tree = jax.eval_shape(unet.init, jax.random.key(0), *arguments)["params"]
    draw = lambda x: rng.standard_normal(x.shape).astype(np.float32)
    return jax.tree.map(lambda x: draw(x) / np.sqrt(np.prod(x.shape[:-1])) if x.ndim > 1 else 1 + 0.1 * draw(x), tree)


def last(x: np.ndarray) -> np.ndarray:
    """torch's (b c t h w) -> (b t h w c)."""
    return np.moveaxis(np.asarray(x), 1, -1)


def tokens(**arrays) -> dict:
    """Tokens (b n c), the same in every frame."""
    return {name: jnp.asarray(a)[:, None] for name, a in arrays.items()}


def arrays(seed: int, **shapes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def run(unet: UNet, params: dict, x, time, condition: Condition) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        return np.asarray(FAST_COMPILE(unet.apply)({"params": params}, x, jnp.asarray(time, jnp.float32), condition))


# torch --------------------------------------------------------------------------------------------------------------


def randomised(module, seed: int):
    """torch's module for evaluation, with weights that make every layer count: zero-initialised ones too."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            r = torch.randn(p.shape, generator=generator)
            one = 1.0 if name.endswith("weight") else 0.0
            p.copy_(r / p[0].numel() ** 0.5 if p.ndim > 1 else one + 0.1 * r)
    return module.eval()


def check_parity(preset: str, unet: UNet, given: Mapping, module, call: Callable, x, time, condition: Condition):
    """Output, and gradients with respect to every parameter and the input, of our U-Net and of torch's `module`; and
    the weights there and back.

    `given`: the U-Net's `inputs`. `call(x (b t h w c) torch tensor)` runs torch's and returns (b t h w c).
    """
    import torch

    state = {name: p.detach().numpy() for name, p in module.named_parameters()}
    shapes = convert_unet.shapes(preset, unet, given)
    ours = convert_unet.convert(preset, state, shapes)
    back = convert_unet.restore(preset, ours, shapes)
    assert back.keys() == state.keys() and all(np.array_equal(back[n], state[n]) for n in state)

    their_x = torch.from_numpy(x).requires_grad_()
    their_y = call(their_x)
    weight = np.random.default_rng(1).standard_normal(their_y.shape).astype(np.float32)
    (their_y * torch.from_numpy(weight)).sum().backward()

    def loss(params, x):
        y = unet.apply({"params": params}, x, jnp.asarray(time, jnp.float32), condition)
        return jnp.sum(y * weight), y

    with jax.default_matmul_precision("highest"):
        (_, y), (grads, grad_x) = FAST_COMPILE(jax.value_and_grad(loss, (0, 1), has_aux=True))(nest(ours), jnp.asarray(x))
    assert relative_error(y, their_y.detach().numpy()) < 1e-4
    assert relative_error(grad_x, their_x.grad.numpy()) < 1e-3
    grads = convert_unet.restore(preset, {n: np.asarray(g) for n, g in flatten(grads).items()}, shapes)
    zero = lambda p: np.zeros(p.shape, np.float32)  # a softmax over one token has no gradient
    theirs = {n: zero(p) if p.grad is None else p.grad.numpy() for n, p in module.named_parameters()}
    largest = max(np.abs(g).max() for g in theirs.values())
    errors = {n: np.abs(grads[n] - g).max() / max(np.abs(g).max(), 1e-3 * largest) for n, g in theirs.items()}
    worst = max(errors, key=errors.get)
    assert errors[worst] < 1e-3, (worst, errors[worst])

