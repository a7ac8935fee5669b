"""MAGVIT's 3D-VQ encoder and decoder (Yu et al., CVPR 2023, section 3.1; sizes and details from the official code).

Parameter names are the official ones (Conv_0, ResBlock_3/GroupNorm_1, ...): Flax numbers the layers in the order of
creation, so the order below is part of the checkpoint format. All layers take and return (b t h w c).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from magvid.models.layers import Conv, ConvTranspose, GroupNorm, average_pool, depth_to_space, space_to_depth
from magvid.sharding import edge, rematerialised
from magvid.types import Params


def input_shortcut(x: Float[Array, "b t h w c"], y: Float[Array, "b t h w o"]) -> Float[Array, "b t h w c"]:
    """What the shortcut's convolution sees where a block changes the channels: its raw input."""
    return x


class ResBlock(nn.Module):
    """norm, activation, conv, norm, activation, conv; beside it the input, or where channels change a 1x1x1 convolution
    of what `shortcut` (input, output of the convolutions) gives.
    """

    features: int
    norm: Callable = GroupNorm
    activation: Callable = nn.swish
    shortcut: Callable = input_shortcut
    padding: str = "zero"
    planar: bool = False
    dtype: type | str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w o"]:
        options = dict(padding=self.padding, planar=self.planar, dtype=self.dtype)
        conv = partial(Conv, self.features, use_bias=False, **options)
        y = conv()(self.activation(self.norm()(x)))
        y = conv()(self.activation(self.norm()(y)))
        if x.shape[-1] != self.features:
            x = conv(kernel=(1, 1, 1))(self.shortcut(x, y))
        return edge(x + y)


# A down- or upsampling layer is made by (features, strides, padding, planar, dtype) inside the parent, which numbers its
# parameters.


def pool_down(features: int, strides: Sequence[int], **conv) -> Callable:
    """Average pooling; the default."""
    return partial(average_pool, window=strides)


def conv_down(features: int, strides: Sequence[int], **conv) -> Callable:
    """4x4x4 convolution with strides (official `conv_downsample`)."""
    return Conv(features, (4, 4, 4), tuple(strides), **conv)


def nearest_conv_up(features: int, strides: Sequence[int], **conv) -> Callable:
    """Nearest neighbour, then a 3x3x3 convolution; the default."""
    return Conv(features, upsample=tuple(strides), **conv)


def deconv_up(features: int, strides: Sequence[int], padding: str = "zero", **conv) -> Callable:
    """4x4x4 transposed convolution (official `deconv`); zero padding only."""
    if padding != "zero":
        raise ValueError(
            f'a transposed convolution pads with zeros only, got padding="{padding}": use nearest_conv_up with it'
        )
    return ConvTranspose(features, strides=tuple(strides), **conv)


def level_strides(temporal: Sequence[bool], levels: int) -> list[tuple[int, int, int]]:
    """Strides (t h w) between consecutive levels: space always 2, time 2 where `temporal` says so."""
    if len(temporal) != levels - 1:
        raise ValueError(
            f"temporal={tuple(temporal)} needs one flag per change of level: {levels - 1} for {levels} multipliers"
        )
    return [(2 if flag else 1, 2, 2) for flag in temporal]


def level_blocks(blocks: int | Sequence[int], levels: int) -> Sequence[int]:
    """Number of ResBlocks at each level and, last, in the bottleneck; one number means the same everywhere (as
    published).
    """
    if isinstance(blocks, int):
        return (blocks,) * (levels + 1)
    if len(blocks) != levels + 1:
        raise ValueError(
            f"blocks={tuple(blocks)} needs {levels + 1} numbers: one for each of {levels} levels and one for the "
            "bottleneck"
        )
    return blocks


class Encoder(nn.Module):
    """Video (b t h w 3) in [0, 1] -> latents (b t' h' w' dim); every level halves h and w, and t where `temporal` is
    True.

    Defaults are MAGVIT-B at 128x128: 16x128x128 -> 4x16x16x256. Odd sizes round up. `remat` recomputes the first
    levels' activations in the backward pass (L: 1, H: 3). `patch` (t h w), not in the paper, folds pixels into channels
    before the first convolution: on a CPU, layers with a few channels at full resolution cost the most and learn the
    least. Sizes must be multiples of it. `planar` (see `vq2d`) convolves each frame by itself.
    """

    filters: int = 64
    multipliers: Sequence[int] = (1, 2, 2, 4)
    temporal: Sequence[bool] = (True, True, False)
    blocks: int | Sequence[int] = 2
    dim: int = 256
    norm: Callable = GroupNorm
    activation: Callable = nn.swish
    shortcut: Callable = input_shortcut
    padding: str = "zero"
    down: Callable = pool_down
    patch: Sequence[int] = (1, 1, 1)
    planar: bool = False
    remat: int = 0
    dtype: type | str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w 3"]) -> Float[Array, "b th hh wh dim"]:
        conv = dict(padding=self.padding, planar=self.planar, dtype=self.dtype)
        strides = level_strides(self.temporal, len(self.multipliers))
        blocks = level_blocks(self.blocks, len(self.multipliers))
        res = res_blocks(self)
        x = space_to_depth(x, self.patch)
        x = Conv(self.filters, use_bias=False, **conv)(x)
        for level, multiplier in enumerate(self.multipliers):
            for _ in range(blocks[level]):
                x = res(level)(self.filters * multiplier)(x)
            if level < len(strides):
                x = self.down(self.filters * multiplier, strides[level], **conv)(x)
        for _ in range(blocks[-1]):
            x = res(len(strides) + 1)(self.filters * self.multipliers[-1])(x)
        x = self.activation(self.norm()(x))
        return Conv(self.dim, (1, 1, 1), **conv)(x)


class Decoder(nn.Module):
    """Latents (b t' h' w' dim) -> video (b t h w 3), the mirror of `Encoder`. Linear output: clip to [0, 1] only for
    display.
    """

    filters: int = 64
    multipliers: Sequence[int] = (1, 2, 2, 4)
    temporal: Sequence[bool] = (True, True, False)
    blocks: int | Sequence[int] = 2
    channels: int = 3
    norm: Callable = GroupNorm
    activation: Callable = nn.swish
    shortcut: Callable = input_shortcut
    padding: str = "zero"
    up: Callable = nearest_conv_up
    patch: Sequence[int] = (1, 1, 1)
    planar: bool = False
    remat: int = 0
    dtype: type | str | None = None

    @nn.compact
    def __call__(self, z: Float[Array, "b th hh wh d"]) -> Float[Array, "b t h w c"]:
        conv = dict(padding=self.padding, planar=self.planar, dtype=self.dtype)
        strides = level_strides(self.temporal, len(self.multipliers))
        blocks = level_blocks(self.blocks, len(self.multipliers))
        res = res_blocks(self)
        x = Conv(self.filters * self.multipliers[-1], **conv)(z)
        for _ in range(blocks[-1]):
            x = res(len(strides) + 1)(self.filters * self.multipliers[-1])(x)
        for level in reversed(range(len(self.multipliers))):
            for _ in range(blocks[level]):
                x = res(level)(self.filters * self.multipliers[level])(x)
            if level:
                x = self.up(self.filters * self.multipliers[level], strides[level - 1], **conv)(x)
        x = self.activation(self.norm()(x))
        x = Conv(self.channels * math.prod(self.patch), **conv)(x)
        return depth_to_space(x, self.patch)


def res_blocks(model: Encoder | Decoder) -> Callable:
    """level -> a ResBlock constructor with the model's parts, rematerialised in the first `model.remat` levels; names
    stay ResBlock_i.
    """
    names = "norm", "activation", "shortcut", "padding", "planar", "dtype"
    parts = {name: getattr(model, name) for name in names}
    counter = iter(range(10_000))
    if model.filters < 1 or min(model.multipliers) < 1:
        raise ValueError(f"filters={model.filters}, multipliers={tuple(model.multipliers)}: both start at 1")

    def at(level: int):
        cls = rematerialised(ResBlock) if level < model.remat else ResBlock
        return lambda features: cls(features, name=f"ResBlock_{next(counter)}", **parts)

    return at


def inflate_central(planar: Params, shapes: Params) -> Params:
    """2D parameters as those of the 3D model of `shapes`: each kernel in the middle of its time axis, 0 beside it
    (MAGVIT, section 3.1). On a still video the 3D-VQ then gives the 2D-VQ's latents and reconstruction.

    All that has no time axis is copied. Names that do not fit are left out.
    """
    return _inflate(planar, shapes, lambda taps: np.eye(1, taps, taps // 2)[0])


def inflate_average(planar: Params, shapes: Params) -> Params:
    """The same with the kernel divided evenly over its time axis."""
    return _inflate(planar, shapes, lambda taps: np.full(taps, 1 / taps))


def _inflate(planar: Params, shapes: Params, weights: Callable[[int], np.ndarray]) -> Params:
    flat, targets = flatten_dict(planar), flatten_dict(shapes)
    inflated = {}
    for name, value in flat.items():
        target = targets[name].shape if name in targets else None
        if target == value.shape:
            inflated[name] = value
        elif target and target[1:] == value.shape:
            taps = weights(target[0]).astype(value.dtype)
            inflated[name] = taps.reshape(-1, *[1] * value.ndim) * np.asarray(value)
    return unflatten_dict(inflated)
