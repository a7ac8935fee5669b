"""What the video models add to Stable Diffusion's U-Net: `res`, `attention` and `stem` layers for `unet.UNet`.

ModelScope (Wang et al., 2023): four convolutions over time after each block, a transformer over time after each
transformer over space, and one at the start. MAVIN (Zhang et al., 2024): the same, with other attention as options. SVD
(Blattmann et al., 2023): both blended with what they follow. MagDiff (Zhao et al., ECCV 2024): ModelScope's
convolutions, and attention over time inside the spatial block. Numbers as in diffusers' `UNet3DConditionModel` and
`UNetSpatioTemporalConditionModel`, and in MAVIN's and MagDiff's code.
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from magvid.models.attention import Attention, FeedForward, read_scalars
from magvid.models.layers import MLP, Conv, Dtype, GroupNorm, sinusoid
from magvid.models.unet import Block, LayerNorm, Res, ResBlock, Transformer, adapted
from magvid.types import Condition

# ModelScope ---------------------------------------------------------------------------------------------------------


class Stack(nn.Module):
    """x + four times (norm over the clip, SiLU, dropout, convolution over three frames); the last begins at zero."""

    dropout: Sequence[float] = (0.0, 0.1, 0.1, 0.1)
    groups: int = 32
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        y = x
        for i, rate in enumerate(self.dropout, 1):
            zeros = {"kernel_init": nn.initializers.zeros} if i == len(self.dropout) else {}
            y = nn.silu(GroupNorm(self.groups, 1e-5, dtype=self.dtype, name=f"norm{i}")(y))
            y = nn.Dropout(rate, deterministic=not self.has_rng("dropout"))(y)
            y = Conv(x.shape[-1], (3, 1, 1), dtype=self.dtype, name=f"conv{i}", **zeros)(y)
        return x + y


class StackRes(Res):
    """The block, then a `Stack`. A clip of one frame is left as it is where `single_frames` is False (MagDiff)."""

    dropout: Sequence[float] = (0.0, 0.1, 0.1, 0.1)
    single_frames: bool = True

    def over_time(self, x: Array, embedding: Array, condition: Condition) -> Array:
        y = Stack(self.dropout, self.groups, self.dtype, name="temp_convs")(x)
        return y if self.single_frames or x.shape[1] > 1 else x


class FrameTransformer(Transformer):
    """A transformer between the frames of each pixel: self-attention twice, the second made by `cross_attention`; no tokens,
    no positions.

    As a `stem`: dict(factory="magvid.models.temporal:FrameTransformer", heads=8, head_dim=64).
    """

    tokens: Sequence[str] = ()
    over: str = "time"

    SITES = ("beside_temporal",)


class PostTransformer(Transformer):
    """Over space, then, with projections of its own, over time; `frames` makes what does the latter."""

    frames: Callable = FrameTransformer

    SITES = ("beside_spatial", "beside_temporal")

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], condition: Condition) -> Float[Array, "b t h w c"]:
        x = super().__call__(x, condition)
        adapters = {site: make for site, make in self.adapters.items() if site == "beside_temporal"}
        parts = dict(adapters=adapters, groups=self.groups, dtype=self.dtype)
        return self.frames(self.heads, **parts, name="temp_attentions")(x, condition)


# MAVIN's options ----------------------------------------------------------------------------------------------------

# Attention for ModelScope's layers that knows the order of frames, or the gap that is filled: the condition's scalars "start",
# its first frame, and "end", the first one after it. Off in every released configuration of MAVIN; no parameters are added.


def interleaved_sinusoid(position: Float[Array, "*n"], width: int) -> Float[Array, "*n width"]:
    """sin and cos of position / 10000^(2i/width) in turn: channel 2i, 2i + 1."""
    waves = sinusoid(position, width, "sin cos").reshape(*position.shape, 2, -1)
    return waves.swapaxes(-1, -2).reshape(*position.shape, width)


def rotate(x: Float[Array, "*b n c"], frequencies: Float[np.ndarray, "half"]) -> Float[Array, "*b n c"]:
    """Channels 2i, 2i + 1 of token n turned by the angle n frequencies[i] (Su et al., 2021)."""
    angles = np.arange(x.shape[-2])[:, None] * frequencies
    cos, sin = np.float32(np.cos(angles)), np.float32(np.sin(angles))
    a, b = x[..., ::2], x[..., 1::2]
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape).astype(x.dtype)


class RotaryAttention(Attention):
    """Between frames; queries and keys are rotated over their whole width, before it is divided between the heads."""

    over: str = "time"

    def frequencies(self, width: int) -> Float[np.ndarray, "half"]:
        return 10000.0 ** (-np.arange(0, width, 2) / width)

    def split(self, name: str, x: Float[Array, "b s m d"], width: int) -> Float[Array, "b s m heads e"]:
        y = super().split(name, x, width)
        if name == "to_v":
            return y
        return rotate(y.reshape(*y.shape[:3], width), self.frequencies(width)).reshape(y.shape)


class CentredAttention(Attention):
    """Between frames, to which their embedded positions are added first; the gap starts at 0."""

    over: str = "time"

    def mix(self, x: Float[Array, "b s n c"], condition: Condition) -> Float[Array, "b s n c"]:
        position = jnp.arange(x.shape[2]) - read_scalars(condition, ["start"])
        embedded = interleaved_sinusoid(position, x.shape[-1])[:, None]
        return super().mix(x + embedded.astype(x.dtype), condition)


class SparseCausalAttention(Attention):
    """Over space; a frame reads itself and the two at the ends of the gap: the last one before it, the first one after.
    Where the clip has no such frame, its own first or last.
    """

    def mix(self, x: Float[Array, "b s n c"], condition: Condition) -> Float[Array, "b s n c"]:
        ends = (read_scalars(condition, ["start", "end"]) - jnp.array([1, 0])).astype(jnp.int32)
        q, k, v = (self.split(name, x, x.shape[-1]) for name in ("to_q", "to_k", "to_v"))

        def read(y: Float[Array, "b s n heads e"]) -> Float[Array, "b s m heads e"]:
            both = jax.vmap(partial(jnp.take, axis=0, mode="clip"))(y, ends)
            both = both.reshape(len(y), 1, -1, *y.shape[3:])
            return jnp.concatenate([y, jnp.broadcast_to(both, (*y.shape[:2], *both.shape[2:]))], axis=2)

        return self.attend(q, read(k), read(v))


# SVD ----------------------------------------------------------------------------------------------------------------


class Mixer(nn.Module):
    """a spatial + (1 - a) temporal, a = sigmoid(mix_factor), at first 0.62. Examples whose scalar "image_only" is not 0
    keep the spatial part: their frames are no video.
    """

    @nn.compact
    def __call__(
        self, spatial: Float[Array, "b t h w c"], temporal: Float[Array, "b t h w c"], condition: Condition
    ) -> Float[Array, "b t h w c"]:
        a = nn.sigmoid(self.param("mix_factor", nn.initializers.constant(0.5), (1,)))
        if "image_only" in condition.scalars:
            a = jnp.where(condition.scalars["image_only"] != 0, 1.0, a)[:, None, None, None, None]
        a = a.astype(spatial.dtype)
        return a * spatial + (1 - a) * temporal


class BlendRes(Res):
    """The block, then one over time with the clip's statistics and its own time projection, blended."""

    def over_time(self, x: Array, embedding: Array, condition: Condition) -> Array:
        parts = dict(clip_norm=True, temporal=True, groups=self.groups, dtype=self.dtype)
        y = ResBlock(self.features, self.epsilon, **parts, name="temporal_res_block")(x, embedding)
        return Mixer(name="time_mixer")(x, y, condition)


class FrameBlock(Block):
    """A block between frames that begins with a feed-forward; it reads the first frame's tokens."""

    over: str = "time"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], condition: Condition, position: Float[Array, "t c"] | None = None
    ) -> Float[Array, "b t h w c"]:
        x = x + FeedForward(self.dtype, name="ff_in")(LayerNorm(dtype=self.dtype, name="norm_in")(x))
        return super().__call__(x, condition, position)


class BlendTransformer(Transformer):
    """Each spatial block followed, inside of the same projections, by one between frames that sees the frame's
    position, blended. `frame_tokens`: what that one reads; default: `tokens`.
    """

    frame_tokens: Sequence[str] | None = None

    SITES = ("beside_spatial", "beside_temporal")

    def position(self, x: Float[Array, "b t h w c"]) -> Float[Array, "t c"]:
        if self.depth != 1:
            raise ValueError(f"depth={self.depth}: SVD's transformer has one spatial and one temporal block")
        c = x.shape[-1]
        return MLP(4 * c, c, self.dtype, name="time_pos_embed")(sinusoid(jnp.arange(x.shape[1], dtype=jnp.float32), c))

    def block(self, i: int, x: Array, condition: Condition, position: Array | None, make: Callable = Block) -> Array:
        x = super().block(i, x, condition, position, make)
        tokens = self.tokens if self.frame_tokens is None else self.frame_tokens
        parts = dict(adapters=self.adapters, dtype=self.dtype, name=f"temporal_transformer_blocks_{i}")
        y = FrameBlock(self.heads, tokens, **parts)(x + position[:, None, None], condition, position)
        return Mixer(name="time_mixer")(x, y, condition)


# MagDiff ------------------------------------------------------------------------------------------------------------


class InlineBlock(Block):
    """Attention between frames before the feed-forward. With `position_stays` the position is added to x itself, as in the released
    code, also where a single frame then needs no such attention; without, only to what that attention reads.
    """

    position_stays: bool = True

    def before_feed_forward(self, x: Array, condition: Condition, position: Array | None) -> Array:
        placed = x + position[:, None, None].astype(x.dtype)
        y = LayerNorm(dtype=self.dtype, name="temp_norm")(placed)
        delta = Attention(self.heads, over="time", zero=True, dtype=self.dtype, name="temp_attn")(y)
        y = adapted(self.adapters, "beside_temporal", delta, y, condition, position)
        x = placed if self.position_stays else x
        return x + y if x.shape[1] > 1 else x


class InlineTransformer(Transformer):
    """Over space with `InlineBlock`s."""

    position_stays: bool = True

    SITES = ("beside_spatial", "beside_temporal")

    def position(self, x: Float[Array, "b t h w c"]) -> Float[Array, "t c"]:
        return interleaved_sinusoid(jnp.arange(x.shape[1], dtype=jnp.float32), x.shape[-1])

    def block(
        self, i: int, x: Array, condition: Condition, position: Array | None, make: Callable = InlineBlock
    ) -> Array:
        return super().block(i, x, condition, position, partial(make, position_stays=self.position_stays))
