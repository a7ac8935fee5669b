"""I3D, the network whose features FVD compares (Carreira and Zisserman, 2017: inception_i3d of Kinetics-400, RGB).

Padding is TensorFlow's SAME, batch normalisation has no gain and its statistics are parameters. 12,704,544 numbers.
"""

from typing import NamedTuple

import flax.linen as nn
from jax import lax
from jaxtyping import Array, Float

from magvid.models import layers

CLASSES = 400  # of Kinetics-400
FEWEST = 9  # frames: the last pooling sees two steps of time, each of eight frames
SIZE = 224  # pixels of a side
EPSILON = 1e-3  # of the batch normalisation


class Features(NamedTuple):
    """`logits` before the softmax, which FVD compares, and what they are made of; means over time."""

    pool: Float[Array, "b 1024"]
    logits: Float[Array, "b 400"]


class Unit(nn.Module):
    """Convolution, normalisation, ReLU."""

    features: int
    kernel: int = 1
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h2 w2 o"]:
        x = layers.Conv(self.features, (self.kernel,) * 3, (self.stride,) * 3, use_bias=False, name="conv")(x)
        zero, one = nn.initializers.zeros, nn.initializers.ones
        mean, var, bias = (self.param(name, init, (self.features,)) for name, init in (("mean", zero), ("var", one), ("bias", zero)))
        return nn.relu((x - mean) * lax.rsqrt(var + EPSILON) + bias)


class Mixed(nn.Module):
    """Four branches side by side: 1x1x1; 1x1x1 and 3x3x3, twice; pooling and 1x1x1. `features` in this order."""

    features: tuple[int, int, int, int, int, int]

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w o"]:
        f = self.features
        branches = [
            Unit(f[0], name="Branch_0_Conv3d_0a_1x1")(x),
            Unit(f[2], 3, name="Branch_1_Conv3d_0b_3x3")(Unit(f[1], name="Branch_1_Conv3d_0a_1x1")(x)),
            Unit(f[4], 3, name="Branch_2_Conv3d_0b_3x3")(Unit(f[3], name="Branch_2_Conv3d_0a_1x1")(x)),
            Unit(f[5], name="Branch_3_Conv3d_0b_1x1")(nn.max_pool(x, (3, 3, 3), padding="SAME")),
        ]
        return lax.concatenate(branches, 4)


# name: features of a Mixed; (window, stride) of the pooling before it
MIXED = {
    "Mixed_3b": ((64, 96, 128, 16, 32, 32), ((1, 3, 3), (1, 2, 2))),
    "Mixed_3c": ((128, 128, 192, 32, 96, 64), None),
    "Mixed_4b": ((192, 96, 208, 16, 48, 64), ((3, 3, 3), (2, 2, 2))),
    "Mixed_4c": ((160, 112, 224, 24, 64, 64), None),
    "Mixed_4d": ((128, 128, 256, 24, 64, 64), None),
    "Mixed_4e": ((112, 144, 288, 32, 64, 64), None),
    "Mixed_4f": ((256, 160, 320, 32, 128, 128), None),
    "Mixed_5b": ((256, 160, 320, 32, 128, 128), ((2, 2, 2), (2, 2, 2))),
    "Mixed_5c": ((384, 192, 384, 48, 128, 128), None),
}


class I3D(nn.Module):
    """Video (b t 224 224 3) in [-1, 1], at least 9 frames -> `Features`. ValueError for other sizes and shorter clips."""

    @nn.compact
    def __call__(self, video: Float[Array, "b t h w 3"]) -> Features:
        t, h, w = video.shape[1:4]
        if (h, w) != (SIZE, SIZE) or t < FEWEST:
            raise ValueError(f"I3D reads {SIZE}x{SIZE} pixels and at least {FEWEST} frames, got {t} frames of {h}x{w}")
        x = Unit(64, 7, 2, name="Conv3d_1a_7x7")(video)
        x = nn.max_pool(x, (1, 3, 3), (1, 2, 2), "SAME")
        x = Unit(64, name="Conv3d_2b_1x1")(x)
        x = Unit(192, 3, name="Conv3d_2c_3x3")(x)
        for name, (features, pooling) in MIXED.items():
            if pooling:
                x = nn.max_pool(x, *pooling, "SAME")
            x = Mixed(features, name=name)(x)
        pool = nn.avg_pool(x, (2, 7, 7)).mean(axis=(1, 2, 3))
        return Features(pool, nn.Dense(CLASSES, name="logits")(pool))
