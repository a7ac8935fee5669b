"""The variational autoencoders between pixels and latents: Stable Diffusion's, and Stable Video Diffusion's with its
temporal decoder (Rombach et al., CVPR 2022; Blattmann et al., 2023; numbers as in diffusers' `AutoencoderKL` and
`AutoencoderKLTemporalDecoder`).

All layers take and return (b t h w c); a planar layer treats every frame by itself. Names of parameters follow the
published files. At the end two functions for memory: `in_chunks` of frames, `in_tiles` of pictures.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from magvid.models.attention import attention
from magvid.models.layers import Conv, Dense, Dtype, GroupNorm
from magvid.models.unet import ResBlock

FrameConv = partial(Conv, planar=True)  # 3x3 in every frame
FrameNorm = partial(GroupNorm, epsilon=1e-6, per_frame=True)
PIXEL = (1, 1, 1)


class Posterior(NamedTuple):
    """A Gaussian with a diagonal covariance over latents; not scaled (see `AutoencoderKL.scaling`)."""

    mean: Float[Array, "b t hh wh d"]
    logvar: Float[Array, "b t hh wh d"]  # in [-30, 20]

    def mode(self) -> Float[Array, "b t hh wh d"]:
        return self.mean

    def sample(self, key: Key[Array, ""]) -> Float[Array, "b t hh wh d"]:
        return self.mean + jnp.exp(0.5 * self.logvar) * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def kl(self) -> Float[Array, "b t hh wh d"]:
        """Divergence from the standard normal in nats, element by element."""
        return 0.5 * (jnp.square(self.mean) + jnp.exp(self.logvar) - 1 - self.logvar)


# Parts --------------------------------------------------------------------------------------------------------------


class FrameRes(ResBlock):
    """The U-Net's block in every frame, without a time embedding."""

    epsilon: float = 1e-6


class TimeRes(ResBlock):
    """The same along time, with the statistics of the whole clip."""

    clip_norm: bool = True
    temporal: bool = True


class BlendedResBlock(nn.Module):
    """A block in every frame, then one along time: (1 - a) spatial + a temporal, a = sigmoid(mix_factor).

    The U-Net of the same paper blends the other way round.
    """

    features: int
    groups: int = 32
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w o"]:
        parts = dict(groups=self.groups, dtype=self.dtype)
        x = FrameRes(self.features, **parts, name="spatial_res_block")(x)
        y = TimeRes(self.features, **parts, name="temporal_res_block")(x)
        mix = nn.sigmoid(self.param("mix_factor", nn.initializers.zeros, (1,)))
        return x + mix.astype(x.dtype) * (y - x)


class FrameAttention(nn.Module):
    """Every pixel of a frame reads all pixels of it, with one head; added to the input."""

    groups: int = 32
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        b, t, h, w, c = x.shape
        dense = partial(Dense, c, dtype=self.dtype)
        y = FrameNorm(self.groups, dtype=self.dtype, name="group_norm")(x).reshape(b * t, h * w, c)
        q, k, v = (dense(name=name)(y)[:, :, None] for name in ("to_q", "to_k", "to_v"))
        y = dense(name="to_out")(attention(q, k, v)[:, :, 0])
        return x + y.reshape(x.shape)


class MidBlock(nn.Module):
    """Block, attention, block at the lowest resolution."""

    res: Callable
    groups: int = 32
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        res = partial(self.res, x.shape[-1], groups=self.groups, dtype=self.dtype)
        x = res(name="resnets_0")(x)
        x = FrameAttention(self.groups, self.dtype, name="attentions_0")(x)
        return res(name="resnets_1")(x)


class Level(nn.Module):
    """The blocks of one resolution, then what leads to the next: `resample` is a constructor given (features, dtype,
    name), or None.
    """

    features: int
    layers: int
    res: Callable
    resample: Callable | None
    groups: int = 32
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 o"]:
        for i in range(self.layers):
            x = self.res(self.features, groups=self.groups, dtype=self.dtype, name=f"resnets_{i}")(x)
        return x if self.resample is None else self.resample(self.features, dtype=self.dtype, name="resample")(x)


# 3x3 with stride 2, padded on the right and at the bottom only; nearest neighbour, then 3x3.
halve = partial(FrameConv, strides=(1, 2, 2), padding=((0, 0), (0, 1), (0, 1)))
double = partial(FrameConv, upsample=(1, 2, 2))


class Encoder(nn.Module):
    """Video (b t h w 3) -> (b t h' w' out), frame by frame; every level but the last halves h and w, rounding down."""

    channels: Sequence[int] = (128, 256, 512, 512)
    layers: int = 2
    out: int = 8
    groups: int = 32
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t hh wh out"]:
        parts = dict(groups=self.groups, dtype=self.dtype)
        x = FrameConv(self.channels[0], dtype=self.dtype, name="conv_in")(x)
        for i, features in enumerate(self.channels):
            resample = halve if i + 1 < len(self.channels) else None
            x = Level(features, self.layers, FrameRes, resample, **parts, name=f"down_blocks_{i}")(x)
        x = MidBlock(FrameRes, **parts, name="mid_block")(x)
        x = nn.silu(FrameNorm(**parts, name="conv_norm_out")(x))
        return FrameConv(self.out, dtype=self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """Latents (b t h' w' d) -> video (b t h w out); the mirror of `Encoder`, with one block more at every level."""

    channels: Sequence[int] = (128, 256, 512, 512)
    layers: int = 2
    out: int = 3
    groups: int = 32
    dtype: Dtype = None

    res = FrameRes

    @nn.compact
    def __call__(self, z: Float[Array, "b t hh wh d"]) -> Float[Array, "b t h w out"]:
        parts = dict(groups=self.groups, dtype=self.dtype)
        x = FrameConv(self.channels[-1], dtype=self.dtype, name="conv_in")(z)
        x = MidBlock(self.res, **parts, name="mid_block")(x)
        for i, features in enumerate(reversed(self.channels)):
            resample = double if i + 1 < len(self.channels) else None
            x = Level(features, self.layers + 1, self.res, resample, **parts, name=f"up_blocks_{i}")(x)
        x = nn.silu(FrameNorm(**parts, name="conv_norm_out")(x))
        return FrameConv(self.out, dtype=self.dtype, name="conv_out")(x)


class TemporalDecoder(Decoder):
    """With blended blocks, and at the end a convolution over three frames of the pixels."""

    res = BlendedResBlock

    @nn.compact
    def __call__(self, z: Float[Array, "b t hh wh d"]) -> Float[Array, "b t h w out"]:
        video = super().__call__(z)
        return Conv(self.out, (3, 1, 1), dtype=self.dtype, name="time_conv_out")(video)


# The whole ----------------------------------------------------------------------------------------------------------


class AutoencoderKL(nn.Module):
    """Video (b t h w 3) in [-1, 1] <-> latents (b t h/8 w/8 latent); defaults are Stable Diffusion's.

    `encode` and `decode` speak of latents as they are; a diffusion model works on them times `scaling`, which makes
    their variance about 1. h and w should be multiples of `factor`: the encoder rounds down. Use it as
    `vae.apply({"params": params}, video, method="encode")`. Without gradients bfloat16 (`dtype`) serves; in float16 the
    published weights overflow.
    """

    channels: Sequence[int] = (128, 256, 512, 512)
    layers: int = 2
    latent: int = 4
    groups: int = 32
    scaling: float = 0.18215
    dtype: Dtype = None

    vrange = (-1.0, 1.0)
    gaussian = Posterior  # (mean, logvar) -> what `encode` gives

    def setup(self):
        sizes = dict(channels=self.channels, layers=self.layers, groups=self.groups, dtype=self.dtype)
        self.encoder = Encoder(out=2 * self.latent, **sizes)
        self.quant_conv = FrameConv(2 * self.latent, PIXEL, dtype=self.dtype)
        self.setup_decoder(sizes)

    def setup_decoder(self, sizes: dict[str, Any]) -> None:
        self.post_quant_conv = FrameConv(self.latent, PIXEL, dtype=self.dtype)
        self.decoder = Decoder(**sizes)

    @property
    def factor(self) -> int:
        """Pixels per latent along h and w."""
        return 2 ** (len(self.channels) - 1)

    def __call__(
        self, video: Float[Array, "b t h w 3"], key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "b t h2 w2 3"], Posterior]:
        """(reconstruction, unclipped; posterior): of a sample with `key`, of the mode without."""
        posterior = self.encode(video)
        return self.decode(posterior.mode() if key is None else posterior.sample(key)), posterior

    def encode(self, video: Float[Array, "b t h w 3"]) -> Posterior:
        """Frame by frame. ValueError for frames smaller than one latent."""
        if min(video.shape[2:4]) < self.factor:
            raise ValueError(
                f"frames of {video.shape[2]}x{video.shape[3]} are smaller than one latent, which has "
                f"{self.factor}x{self.factor} pixels: give larger ones"
            )
        mean, logvar = jnp.split(self.quant_conv(self.encoder(video)), 2, axis=-1)
        return Posterior(mean, jnp.clip(logvar, -30, 20))

    def decode(self, z: Float[Array, "b t hh wh d"]) -> Float[Array, "b t h w 3"]:
        """Frame by frame; unclipped. ValueError where z has not `latent` channels."""
        self.check_latents(z)
        return self.decoder(self.post_quant_conv(z))

    def check_latents(self, z: Array) -> None:
        if z.shape[-1] != self.latent:
            raise ValueError(f"latents of {self.latent} channels are decoded here, got {z.shape[-1]} (channels are last)")


class TemporalAutoencoderKL(AutoencoderKL):
    """Stable Video Diffusion's: the same encoder; the decoder sees the whole clip."""

    def setup_decoder(self, sizes: dict[str, Any]) -> None:
        self.decoder = TemporalDecoder(**sizes)

    def decode(self, z: Float[Array, "b t hh wh d"]) -> Float[Array, "b t h w 3"]:
        self.check_latents(z)
        return self.decoder(z)


# Memory -------------------------------------------------------------------------------------------------------------


def in_chunks(f: Callable, x: Float[Array, "b t h w c"], frames: int, overlap: int = 0) -> Any:
    """f(x), so many frames at a time: what f holds in between is bounded by `frames + 2 * overlap` frames.

    `f` maps videos to arrays, or trees of arrays such as `Posterior`, with the same number of frames: `encode` or
    `decode` of a module with its parameters. Also under `jax.jit` one chunk is made after the other. How exact:

    - What treats every frame by itself (both encoders, `AutoencoderKL.decode`): the same numbers, up to the rounding of
      convolutions of another batch size.
    - `TemporalAutoencoderKL.decode`: close, and nowhere exact, because its temporal norms take their statistics over the
      frames they see, and its convolutions reach 29 frames (at 2 layers and 4 levels). What is read of the neighbours,
      `overlap` frames on either side, lessens the jump between chunks. 0 is what diffusers' pipeline does
      (`decode_chunk_size`).
    - Any f that reaches r frames and takes no statistics over them: exact with overlap >= r.
    """
    if frames < 1 or overlap < 0:
        raise ValueError(f"frames={frames}, overlap={overlap}: give at least 1 frame and an overlap of 0 or more")
    total, parts = x.shape[1], []
    for start in range(0, total, frames):
        stop, low = min(start + frames, total), max(start - overlap, 0)
        part = x[:, low : min(stop + overlap, total)]
        if parts:  # a compiler would otherwise be free to hold the intermediates of all at once
            part, parts[-1] = jax.lax.optimization_barrier((part, parts[-1]))
        y = f(part)
        parts.append(jax.tree.map(lambda a: a[:, start - low : stop - low], y))
    return jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), *parts)


def in_tiles(f: Callable, x: Float[Array, "b t h w c"], tile: tuple[int, int], overlap: tuple[int, int]) -> Any:
    """f(x), one tile (h, w) at a time, blended linearly where two overlap, which they do by `overlap` (h, w) or more.

    `f` as in `in_chunks`; it may change h and w by a constant factor. `tile` and `overlap` are in cells of x: latents for
    `decode`, pixels for `encode`, where they and the size of x must be multiples of the factor. How exact:

    - What treats every cell by itself: exact up to rounding. A frame that one tile covers: exact.
    - The autoencoders: approximate, because their norms and their attention take in the whole frame. The more alike
      the tiles' statistics, the closer: on noise, tiles of a third of the frame that overlap by half differ by 5 %
      (root mean square, random weights). Compare with the whole on a frame that fits before you trust it.
    """
    for name, size, lap in zip("hw", tile, overlap):
        if not 0 <= lap < size:
            raise ValueError(f"along {name} the tile is {size} and the overlap {lap}: it must be smaller, and not negative")
    columns = partial(_in_tiles, f, axis=3, size=tile[1], overlap=overlap[1])
    return _in_tiles(columns, x, axis=2, size=tile[0], overlap=overlap[0])


def _in_tiles(f: Callable, x: Array, axis: int, size: int, overlap: int) -> Any:
    total = x.shape[axis]
    if size >= total:
        return f(x)
    starts = [*range(0, total - size, size - overlap), total - size]
    parts = [f(jax.lax.slice_in_dim(x, start, start + size, axis=axis)) for start in starts]

    def blend(*parts: Array) -> Array:
        n = parts[0].shape[axis]  # cells of a tile's result, where the tile has `size`
        if any(start * n % size for start in (*starts, total)):
            raise ValueError(
                f"tiles of {size} become {n}, which does not go into a size of {total} with an overlap of {overlap}: give "
                "multiples of the autoencoder's factor"
            )
        rise = np.arange(1, n + 1)
        window = np.minimum(np.minimum(rise, rise[::-1]), max(overlap * n // size, 1))
        wide = lambda v: np.expand_dims(v, [a for a in range(parts[0].ndim) if a != axis]).astype(np.float32)
        shape = [*parts[0].shape]
        shape[axis] = total * n // size
        result, weight = jnp.zeros(shape, jnp.float32), np.zeros(shape[axis])
        for start, part in zip(starts, parts):
            at = slice(start * n // size, start * n // size + n)
            result = result.at[(slice(None),) * axis + (at,)].add(part * wide(window))
            weight[at] += window
        return (result / wide(weight)).astype(parts[0].dtype)

    return jax.tree.map(blend, *parts)
