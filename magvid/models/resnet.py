"""ResNet-50 as a frozen feature net of the perceptual loss (He et al., 2016; torchvision's v1.5, stride in the 3x3)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Of ImageNet's pixels in [0, 1]; torchvision's weights expect (x - MEAN) / STD.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def prepare(
    video: Float[Array, "b t h w 3"], size: int | None, mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "n h2 w2 3"]:
    """All frames in one batch, bilinear (half-pixel centres, no anti-aliasing) at size x size, normalised."""
    frames = video.reshape(-1, *video.shape[2:])
    if size and frames.shape[1:3] != (size, size):
        frames = jax.image.resize(frames, (len(frames), size, size, 3), "bilinear", antialias=False)
    return (frames - jnp.asarray(mean, frames.dtype)) / jnp.asarray(std, frames.dtype)


class Conv(nn.Module):
    """Convolution of (n h w c), padded as PyTorch does: (k - 1) / 2 on every side."""

    features: int
    kernel: int = 3
    stride: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 o"]:
        pad = (self.kernel - 1) // 2
        return nn.Conv(
            self.features, (self.kernel,) * 2, self.stride, [(pad, pad)] * 2, use_bias=self.use_bias, name="conv"
        )(x)


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with its statistics as parameters; eps 1e-5."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        one, zero, shape = nn.initializers.ones, nn.initializers.zeros, (x.shape[-1],)
        scale, bias = self.param("scale", one, shape), self.param("bias", zero, shape)
        mean, var = self.param("mean", zero, shape), self.param("var", one, shape)
        gain = scale * lax.rsqrt(var + 1e-5)
        return x * gain + (bias - mean * gain)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions beside the identity, or a 1x1 convolution where the shape changes."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 o"]:
        y = nn.relu(FrozenBatchNorm(name="bn1")(Conv(self.features, 1, name="conv1")(x)))
        y = nn.relu(FrozenBatchNorm(name="bn2")(Conv(self.features, 3, self.stride, name="conv2")(y)))
        y = FrozenBatchNorm(name="bn3")(Conv(4 * self.features, 1, name="conv3")(y))
        if x.shape != y.shape:
            x = FrozenBatchNorm(name="bn_skip")(Conv(4 * self.features, 1, self.stride, name="skip")(x))
        return nn.relu(x + y)


class ResNet50(nn.Module):
    """Video (b t h w 3) in [0, 1] -> logits (b*t 1000), or with `logits` False the last map (b*t 7 7 2048).

    MAGVIT's perceptual loss compares logits of frames resized to 224x224, without normalisation of the pixels
    (`mean=(0, 0, 0), std=(1, 1, 1)`); torchvision's weights were trained with MEAN and STD, the default here.
    """

    logits: bool = True
    size: int = 224
    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD

    @nn.compact
    def __call__(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "n ..."]:
        x = prepare(video, self.size, self.mean, self.std)
        x = nn.relu(FrozenBatchNorm(name="bn1")(Conv(64, 7, 2, name="conv1")(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for i in range(blocks):
                stride = 2 if stage and i == 0 else 1
                x = Bottleneck(64 * 2**stage, stride, name=f"stage{stage + 1}_{i}")(x)
        return nn.Dense(1000, name="head")(x.mean((1, 2))) if self.logits else x
