"""MAGVIT's discriminator: a StyleGAN-like residual network with average pooling (official `StyleGANDiscriminator`;
without minibatch statistics or equalised learning rates). Parameter names are the official ones.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from magvid.models.layers import Conv, Identity, average_pool, once_a_shape, space_to_depth
from magvid.sharding import edge, rematerialised

xavier = once_a_shape(nn.initializers.xavier_uniform())
leaky_relu = partial(nn.leaky_relu, negative_slope=0.2)


def blur_pool(x: Float[Array, "b t h w c"], window: Sequence[int]) -> Float[Array, "b t h2 w2 c"]:
    """Every second pixel of the frames smoothed by [1 3 3 1]/8 along h and w, zeros outside (official `blur_resample`;
    2D only).
    """
    if tuple(window) != (1, 2, 2):
        raise ValueError(f"blur_pool halves h and w of single frames, got a window of {tuple(window)}: use planar=True")
    taps = np.float32([1, 3, 3, 1]) / 8
    kernel = np.broadcast_to(np.outer(taps, taps)[..., None, None], (4, 4, 1, x.shape[-1]))
    y = lax.conv_general_dilated(
        x.reshape(-1, *x.shape[2:]),
        jnp.asarray(kernel, x.dtype),
        (2, 2),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
        precision=lax.Precision.HIGHEST,
    )
    return y.reshape(*x.shape[:2], *y.shape[1:])


class ResBlock(nn.Module):
    """conv, pool, conv beside a pooled 1x1x1 convolution; the sum is divided by sqrt(2). Halves t, h and w."""

    features: int
    norm: Callable = Identity
    pool: Callable = average_pool
    planar: bool = False
    dtype: type | str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h2 w2 o"]:
        conv = partial(Conv, planar=self.planar, kernel_init=xavier, dtype=self.dtype)
        pool = partial(self.pool, window=(1 if self.planar else 2, 2, 2))
        y = leaky_relu(self.norm()(conv(x.shape[-1], name="Conv_0")(x)))
        skip = conv(self.features, kernel=(1, 1, 1), use_bias=False, name="Conv_1")(pool(x))
        y = leaky_relu(self.norm()(conv(self.features, name="Conv_2")(pool(y))))
        return edge((y + skip) / math.sqrt(2))


class Discriminator(nn.Module):
    """Video (b t h w 3) -> logits (b 1) that it is real; `planar`: of each frame, (b t 1).

    Defaults are MAGVIT-B at 128x128 (L: filters 128; at 64x64 multipliers (2, 4, 4, 4)). The size of the video is part
    of the weights. `remat` recomputes the first blocks in the backward pass. `patch` (t h w), not in the paper, folds
    pixels into channels before the first convolution, as `vq3d.Encoder`'s does.
    """

    filters: int = 64
    multipliers: Sequence[int] = (2, 4, 4, 4, 4)
    norm: Callable = Identity
    pool: Callable = average_pool
    planar: bool = False
    patch: Sequence[int] = (1, 1, 1)
    remat: int = 0
    dtype: type | str | None = None

    @nn.compact
    def __call__(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "*logits 1"]:
        conv = partial(Conv, planar=self.planar, kernel_init=xavier, dtype=self.dtype)
        dense = partial(nn.Dense, kernel_init=xavier, dtype=self.dtype)
        parts = dict(norm=self.norm, pool=self.pool, planar=self.planar, dtype=self.dtype)
        x = leaky_relu(conv(self.filters)(space_to_depth(video, self.patch)))
        for i, multiplier in enumerate(self.multipliers):
            block = rematerialised(ResBlock) if i < self.remat else ResBlock
            x = block(self.filters * multiplier, name=f"ResBlock_{i}", **parts)(x)
        x = leaky_relu(self.norm()(conv(x.shape[-1])(x)))
        last = x.shape[-1]
        x = x.reshape(*x.shape[: 2 if self.planar else 1], -1)
        x = leaky_relu(dense(last, name="Dense_0")(x))
        return dense(1, name="Dense_1")(x)
