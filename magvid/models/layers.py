"""Layers over video (b t h w c), channels last. Parameter names follow Flax: kernel, bias, scale.

Convolution has two forms with the same numbers: XLA's own (GPU, TPU), and a sum of 2-D convolutions, one per temporal
tap (CPU, where it is 1.7-5 times faster, forward and backward), whose kernels' gradients are matrix products.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from magvid.models.platform import per_platform

Dtype = Any
Pads = tuple[tuple[int, int], ...]

# Of input or output per 2-D convolution in the CPU form: more falls out of the cache, less only adds compilation.
CHUNK_BYTES = 2**22
# The gradient of a kernel is computed as products, up to so much input (more is copied out of the cache, tap by tap) and from
# so many channels (below, XLA's own is as fast or faster).
PRODUCT_BYTES, PRODUCT_CHANNELS = 5 * 2**20, 64


@jax.custom_vjp
def product(x: Float[Array, "*n c"], kernel: Float[Array, "c o"]) -> Float[Array, "*n o"]:
    """x @ kernel, whose gradient is fast on CPU as well: there XLA takes 3.5 times as long to sum over several axes as over one."""
    return x @ kernel


def _product_backward(arguments, g):
    x, kernel = arguments
    flat = lambda x, g: x.reshape(-1, x.shape[-1]).T @ g.reshape(-1, g.shape[-1])
    axes = tuple(range(x.ndim - 1))
    as_it_is = lambda x, g: lax.dot_general(x, g, ((axes, axes), ((), ())))
    return g @ kernel.T, per_platform(as_it_is, cpu=flat)(x, g)


product.defvjp(lambda x, kernel: (product(x, kernel), (x, kernel)), _product_backward)


def _dot_general(x: Array, kernel: Array, dimensions: Any, precision: None = None) -> Array:
    """As `nn.Dense` calls it: over the last axis of x and the first of the kernel, at the precision that JAX is told."""
    assert precision is None, "no layer here asks for one of its own"
    return product(x, kernel)


def once_a_shape(init: Callable) -> Callable:
    """An initialiser that is traced and compiled once for each shape: a large network has a thousand kernels, and few shapes of them. See `draw`."""
    return jax.jit(init, static_argnums=(1, 2))


@cache
def normal(std: float) -> Callable:
    return once_a_shape(nn.initializers.normal(std))


lecun_normal = once_a_shape(nn.initializers.lecun_normal())
# `nn.Dense` of any number of leading axes, whose gradient is that of `product`
Dense = partial(nn.Dense, dot_general=_dot_general, kernel_init=lecun_normal)


def _conv(x: Array, kernel: Array, strides: Sequence[int], pads: Pads) -> Array:
    """XLA's convolution, channels last, for any number of spatial axes."""
    space = "DHW"[-(x.ndim - 2) :]
    dims = (f"N{space}C", f"{space}IO", f"N{space}C")
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=dims)


def _conv_taps(x: Array, kernel: Array, strides: Sequence[int], pads: Pads) -> Array:
    """The same convolution as a sum over temporal taps of 2-D convolutions."""
    taps, stride = kernel.shape[0], strides[0]
    x = jnp.pad(x, ((0, 0), pads[0], (0, 0), (0, 0), (0, 0)))
    b, frames = x.shape[0], (x.shape[1] - taps) // stride + 1
    chunk = max(1, CHUNK_BYTES // (4 * b * x.shape[2] * x.shape[3] * max(kernel.shape[-2:])))
    chunks = []
    for start in range(0, frames, chunk):
        n = min(chunk, frames - start)
        y = 0.0
        for tap in range(taps):
            first = start * stride + tap
            part = x[:, first : first + (n - 1) * stride + 1 : stride].reshape((b * n,) + x.shape[2:])
            y = y + _conv_tap(part, kernel[tap], tuple(strides[1:]), tuple(pads[1:]))
        chunks.append(y.reshape((b, n) + y.shape[1:]))
    return chunks[0] if len(chunks) == 1 else jnp.concatenate(chunks, axis=1)


def _conv_frames(x: Array, kernel: Array, strides: tuple, pads: Pads) -> Array:
    """A 2-D convolution (n h w c); a product where the kernel is one pixel."""
    if kernel.shape[:2] == (1, 1) and strides == (1, 1) and not np.any(pads):
        return product(x, kernel[0, 0])
    return _conv(x, kernel, strides, pads)


def _tap_forward(x, kernel, strides, pads):
    return _conv_frames(x, kernel, strides, pads), (x, kernel)


def _tap_backward(strides, pads, residuals, g):
    x, kernel = residuals
    conv = partial(_conv_frames, strides=strides, pads=pads)
    dx = jax.vjp(lambda x: conv(x, kernel), x)[1](g)[0]
    if x.size * 4 > PRODUCT_BYTES or min(kernel.shape[2:]) < PRODUCT_CHANNELS:
        return dx, jax.vjp(lambda kernel: conv(x, kernel), kernel)[1](g)[0]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = (slice(0, (n - 1) * stride + 1, stride) for n, stride in zip(g.shape[1:3], strides))
    flat = g.reshape(-1, g.shape[-1])

    def product(i: int, j: int) -> Array:
        """Of what kernel[i, j] sees with g."""
        seen = x[:, i:, j:][:, rows, columns]
        return seen.reshape(-1, seen.shape[-1]).T @ flat

    dk = jnp.stack([product(i, j) for i in range(kernel.shape[0]) for j in range(kernel.shape[1])])
    return dx, dk.reshape(kernel.shape)


# The same with a fast gradient of the kernel: XLA's own takes up to 6 times as long on CPU.
_conv_tap = jax.custom_vjp(_conv_frames, nondiff_argnums=(2, 3))
_conv_tap.defvjp(_tap_forward, _tap_backward)


def conv3d(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "kt kh kw c o"], strides: Sequence[int], pads: Pads
) -> Array:
    """3-D cross-correlation with explicit zero padding, in the form that suits the platform it is lowered for."""
    return _conv3d(tuple(strides), pads)(x, kernel)


@cache
def _conv3d(strides: tuple[int, ...], pads: Pads) -> Callable:
    """Under `jit`, so that equal layers of a network, and every program with them, are traced once."""
    taps, default = (partial(form, strides=strides, pads=pads) for form in (_conv_taps, _conv))
    return jax.jit(per_platform(default, cpu=taps))


def pad_mode(x: Array, pads: Sequence[tuple[int, int]], mode: str) -> Array:
    """Pad the t h w axes by any mode of `jnp.pad`; "reflect_odd", "symmetric_even" name mode and reflect_type (MAGVIT
    official).
    """
    options = {}
    if mode.endswith(("_even", "_odd")):
        mode, options["reflect_type"] = mode.rsplit("_", 1)
    return jnp.pad(x, ((0, 0), *pads, (0, 0)), mode=mode, **options)


def _conv_nearest(x: Array, kernel: Array, factors: Sequence[int], mode: str) -> Array:
    """Nearest-neighbour upsampling, then a 3x3x3 (or 1x3x3) convolution, as written."""
    x = pad_mode(nearest_upsample(x, factors), [(k // 2, k // 2) for k in kernel.shape[:3]], mode)
    return _conv(x, kernel, (1, 1, 1), ((0, 0),) * 3)


# A mode pads the upsampled video by one cell; where this equals padding the small video by one cell, its name there.
SMALL_PAD = {"constant": "constant", "edge": "edge", "reflect": "edge", "symmetric": "edge", "wrap": "wrap"}


def _conv_nearest_phases(x: Array, kernel: Array, factors: Sequence[int], mode: str) -> Array:
    """The same without the upsampled video: along a doubled axis the three taps meet two different cells only, k0 |
    k1+k2 at even and k0+k1 | k2 at odd positions, so each of the 8 phases is a 2x2x2 convolution of the small video (8
    instead of 27 products).
    """
    for axis, factor in enumerate(factors):  # reflect and symmetric differ from edge where nothing is doubled
        if kernel.shape[axis] == 1:
            continue
        pad = [(0, 0)] * 3
        pad[axis] = (1, 1)
        x = pad_mode(x, pad, SMALL_PAD[mode] if factor == 2 else mode)
    phases = [((0, 0, 0), kernel)]
    for axis, factor in enumerate(factors):
        if factor == 2:
            phases = [phase for offsets, k in phases for phase in _even_odd(offsets, k, axis)]
    size = [n - taps + 1 for n, taps in zip(x.shape[1:4], kernel.shape)]
    outputs = []
    for offsets, k in phases:
        t, h, w = (slice(o, o + n + taps - 1) for o, n, taps in zip(offsets, size, k.shape))
        outputs.append(_conv_taps(x[:, t, h, w], k, (1, 1, 1), ((0, 0),) * 3))
    y = jnp.stack(outputs).reshape(*factors, x.shape[0], *size, kernel.shape[-1])
    y = y.transpose(3, 4, 0, 5, 1, 6, 2, 7)
    return y.reshape(x.shape[0], *(n * f for n, f in zip(size, factors)), kernel.shape[-1])


def _even_odd(offsets: tuple[int, int, int], kernel: Array, axis: int) -> list[tuple]:
    k0, k1, k2 = jnp.split(kernel, 3, axis)
    odd = tuple(o + (a == axis) for a, o in enumerate(offsets))
    return [(offsets, jnp.concatenate([k0, k1 + k2], axis)), (odd, jnp.concatenate([k0 + k1, k2], axis))]


def conv3d_of_nearest(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "kt 3 3 c o"], factors: Sequence[int], mode: str
) -> Array:
    """3x3x3 convolution of the video upsampled by `factors` (1 or 2 each) and padded by one cell in `mode` of
    `jnp.pad`. A 1x3x3 kernel, whose temporal factor is 1, leaves the frames apart.
    """
    return _conv3d_of_nearest(tuple(factors), mode)(x, kernel)


@cache
def _conv3d_of_nearest(factors: tuple[int, ...], mode: str) -> Callable:
    plain = partial(_conv_nearest, factors=factors, mode=mode)
    phases = partial(_conv_nearest_phases, factors=factors, mode=mode) if mode in SMALL_PAD else plain
    return jax.jit(per_platform(plain, cpu=phases))


class Conv(nn.Module):
    """Convolution of (b t h w c) to `features` channels.

    `padding`: "zero" is TensorFlow's SAME; ((before, after), ...) of t, h, w pads by so many zeros (PyTorch's padding=1
    with a stride differs from SAME); any mode of `jnp.pad` ("reflect", "edge", "wrap", "reflect_odd", ...) pads every
    axis by ((k-1)//2, k//2) first, as the MAGVIT paper's reflect padding does. `upsample` repeats every cell
    (nearest neighbour) first. `planar` convolves each frame by itself: the parameter has no temporal axis (kh kw c o).
    """

    features: int
    kernel: tuple[int, int, int] = (3, 3, 3)
    strides: tuple[int, int, int] = (1, 1, 1)
    use_bias: bool = True
    padding: str | Pads = "zero"
    upsample: tuple[int, int, int] = (1, 1, 1)
    planar: bool = False
    dtype: Dtype = None
    kernel_init: Callable = lecun_normal

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h2 w2 o"]:
        window = self.kernel[1:] if self.planar else self.kernel
        kernel = self.param("kernel", self.kernel_init, (*window, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = self.convolve(x, kernel[None] if self.planar else kernel)
        return y if bias is None else y + bias

    def convolve(self, x: Float[Array, "b t h w c"], kernel: Array) -> Float[Array, "b t2 h2 w2 o"]:
        if self.upsample != (1, 1, 1):
            if not isinstance(self.padding, str):
                raise ValueError(f"padding={self.padding} with upsample={self.upsample}: name a mode of padding")
            return conv3d_of_nearest(x, kernel, self.upsample, "constant" if self.padding == "zero" else self.padding)
        window = kernel.shape[:3]
        if not isinstance(self.padding, str):
            pads = self.padding
        elif self.padding == "zero":
            pads = lax.padtype_to_pads(x.shape[1:4], window, self.strides, "SAME")
        else:
            x, pads = pad_mode(x, [((k - 1) // 2, k // 2) for k in window], self.padding), [(0, 0)] * 3
        if window == (1, 1, 1) and self.strides == (1, 1, 1) and not np.any(pads):
            return product(x, kernel[0, 0, 0])
        return conv3d(x, kernel, self.strides, tuple((int(lo), int(hi)) for lo, hi in pads))


class ConvTranspose(nn.Module):
    """Transposed convolution with bias, SAME: each axis grows by its stride (MAGVIT official `deconv`; slow on CPU).
    `planar` as in `Conv`.
    """

    features: int
    kernel: tuple[int, int, int] = (4, 4, 4)
    strides: tuple[int, int, int] = (2, 2, 2)
    planar: bool = False
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h2 w2 o"]:
        window = self.kernel[1:] if self.planar else self.kernel
        kernel = self.param("kernel", lecun_normal, (*window, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        kernel = kernel[None] if self.planar else kernel
        return lax.conv_transpose(x, kernel, self.strides, "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")) + bias


class GroupNorm(nn.Module):
    """Group normalisation with statistics over t, h, w (`per_frame`: h, w) and the channels of a group; eps 1e-6, var =
    E[x^2] - E[x]^2 (Flax's fast form).

    Sums run per channel first, then per group: on CPU up to twice as fast as reducing the grouped array.
    """

    groups: int = 32
    epsilon: float = 1e-6
    per_frame: bool = False
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        channels = x.shape[-1]
        if channels % self.groups:
            raise ValueError(
                f"GroupNorm with {self.groups} groups needs a multiple of {self.groups} channels, got {channels}"
            )
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x32 = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        axes = tuple(range(2 if self.per_frame else 1, x.ndim - 1))

        def per_group(v):  # (b c) or (b t c) channel means -> group means of that shape
            v = v.reshape(*v.shape[:-1], self.groups, -1).mean(-1)
            return jnp.repeat(v, channels // self.groups, axis=-1)

        mean = per_group(x32.mean(axes))
        var = jnp.maximum(per_group(jnp.square(x32).mean(axes)) - jnp.square(mean), 0)
        gain = scale * lax.rsqrt(var + self.epsilon)
        shift = bias - mean * gain
        gain, shift = (jnp.expand_dims(v, axes) for v in (gain, shift))
        return (x32 * gain + shift).astype(self.dtype or x.dtype)


LayerNorm = partial(nn.LayerNorm, epsilon=1e-6)  # over channels, the VQ models' option


class Identity(nn.Module):
    """No normalisation (`norm_type=None` of the official code)."""

    dtype: Dtype = None

    def __call__(self, x: Array) -> Array:
        return x


def average_pool(x: Float[Array, "b t h w c"], window: Sequence[int]) -> Float[Array, "b t2 h2 w2 c"]:
    """Average over windows with stride = window, SAME: sizes become ceil(n / window); padding is not counted.

    Sum of reshaped windows over a constant count: the official code's second reduce_window costs seconds of constant
    folding.
    """
    shape = x.shape[1:-1]
    short = [-n % k for n, k in zip(shape, window)]
    if any(short):
        x = jnp.pad(x, ((0, 0), *((s // 2, s - s // 2) for s in short), (0, 0)))
    counts = [np.full(-(-n // k), k, np.float32) for n, k in zip(shape, window)]
    for count, s in zip(counts, short):
        count[0] -= s // 2
        count[-1] -= s - s // 2
    split = [v for n, k in zip(x.shape[1:-1], window) for v in (n // k, k)]
    x = x.reshape(x.shape[0], *split, x.shape[-1]).sum(axis=tuple(range(2, 2 + 2 * len(window), 2)))
    total = np.prod(np.meshgrid(*counts, indexing="ij"), axis=0)[..., None]
    return x / jnp.asarray(total, x.dtype)


def nearest_upsample(x: Float[Array, "b t h w c"], factors: Sequence[int]) -> Float[Array, "b t2 h2 w2 c"]:
    """Repeat every cell `factors` times along t, h, w."""
    b, t, h, w, c = x.shape
    kt, kh, kw = factors
    x = jnp.broadcast_to(x[:, :, None, :, None, :, None], (b, t, kt, h, kh, w, kw, c))
    return x.reshape(b, t * kt, h * kh, w * kw, c)


def space_to_depth(x: Float[Array, "b t h w c"], patch: Sequence[int]) -> Float[Array, "b t2 h2 w2 c2"]:
    """Fold patches of (t h w) cells into channels, patch position first."""
    b, t, h, w, c = x.shape
    pt, ph, pw = patch
    if t % pt or h % ph or w % pw:
        raise ValueError(f"a video of {t}x{h}x{w} cannot be cut into patches of {pt}x{ph}x{pw}: give multiples")
    x = x.reshape(b, t // pt, pt, h // ph, ph, w // pw, pw, c).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(b, t // pt, h // ph, w // pw, pt * ph * pw * c)


def depth_to_space(x: Float[Array, "b t h w c"], patch: Sequence[int]) -> Float[Array, "b t2 h2 w2 c2"]:
    """The inverse of `space_to_depth`."""
    b, t, h, w, c = x.shape
    pt, ph, pw = patch
    x = x.reshape(b, t, h, w, pt, ph, pw, c // (pt * ph * pw)).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(b, t * pt, h * ph, w * pw, c // (pt * ph * pw))


def sinusoid(x: Float[Array, "*n"], width: int, order: str = "cos sin") -> Float[Array, "*n width"]:
    """Sines and cosines of x / 10000^(i / (width/2)), i = 0, 1, ..., in float32; the first half is of the first `order`
    names (diffusers' `Timesteps` with freq_shift 0; `flip_sin_to_cos` is "cos sin").
    """
    if width % 2:
        raise ValueError(f"a sinusoid of width {width}: give an even number")
    half = width // 2
    angles = x.astype(jnp.float32)[..., None] * np.exp(-np.log(10000) * np.arange(half) / half).astype(np.float32)
    waves = {"cos": jnp.cos, "sin": jnp.sin}
    return jnp.concatenate([waves[name](angles) for name in order.split()], axis=-1)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU, x (1 + erf(x / sqrt 2)) / 2 in float32, as torch computes it: on CPU half as long as with erfc
    (`jax.nn.gelu`).
    """
    x32 = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * x32 * (1 + lax.erf(x32 * np.float32(0.5**0.5)))).astype(x.dtype)


class MLP(nn.Module):
    """Linear to `hidden`, SiLU, linear to `features` (default: as `hidden`): what embeds a sinusoid."""

    hidden: int
    features: int | None = None
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n o"]:
        x = nn.silu(Dense(self.hidden, dtype=self.dtype, name="linear_1")(x))
        return Dense(self.features or self.hidden, dtype=self.dtype, name="linear_2")(x)


def check_sizes(n: int, length: int, width: int, heads: int, dropout: float) -> None:
    """ValueError where a transformer of `length` positions cannot take n tokens, `heads` do not divide its width, or
    `dropout` is no share."""
    if n > length:
        raise ValueError(f"{n} tokens do not fit the transformer's {length} learned positions")
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of heads {heads}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout} is the share of activations that are set to 0: give a number in [0, 1)")
