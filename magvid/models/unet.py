"""The denoising U-Net of latent diffusion, once for pictures and videos (Rombach et al., CVPR 2022; sizes and details
as in diffusers' `UNet2DConditionModel`).

The skeleton is `UNet`: its `res`, `attention` and `stem` make whole layers, Stable Diffusion's own here, those of the
video models in `temporal`. Names of parameters follow the published files: names of Stable Diffusion's layers are the
same in every family. All layers take and return (b t h w c).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from magvid.models.attention import Attention, FeedForward, read_scalars
from magvid.models.layers import MLP, Conv, Dense, Dtype, GroupNorm, lecun_normal, nearest_upsample, sinusoid
from magvid.sharding import edge, rematerialised
from magvid.types import Condition

LayerNorm = partial(nn.LayerNorm, epsilon=1e-5)
FrameConv = partial(Conv, planar=True)  # 3x3 in every frame
HALVE = dict(strides=(1, 2, 2), padding=((0, 0), (1, 1), (1, 1)))


# Adapters -----------------------------------------------------------------------------------------------------------

# {site: factory}. An adapter is a module (x (b t h w c), condition, position (t c) | None) -> what the site adds to the
# layer's output; `position` is the embedding of the frames where the layer has one. It ends in a projection that begins
# at zero, so that at first the network equals its base bit for bit.
Adapters = Mapping[str, Callable]


def adapted(adapters: Adapters, site: str, y: Array, x: Array, condition: Condition, position=None) -> Array:
    """y, and where the site has an adapter, what it gives for x added."""
    return y + adapters[site](name=site)(x, condition, position) if site in adapters else y


def check_sites(adapters: Adapters, sites: Sequence[str]) -> None:
    if unknown := set(adapters) - set(sites):
        raise ValueError(
            f"there is no site {', '.join(sorted(unknown))} for an adapter here; this layer has {', '.join(sites)}"
        )


# Stable Diffusion's layers ------------------------------------------------------------------------------------------


class ResBlock(nn.Module):
    """norm, SiLU, conv, + time embedding (where one is given), norm, SiLU, conv; beside it the input, through a 1x1
    convolution where the channels change. `temporal`: convolutions over three frames, not 3x3 pixels. `clip_norm`: norms with the statistics
    of the whole clip, not of each frame.
    """

    features: int
    epsilon: float = 1e-5
    clip_norm: bool = False
    temporal: bool = False
    groups: int = 32
    dtype: Dtype = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], embedding: Float[Array, "b d"] | None = None
    ) -> Float[Array, "b t h w o"]:
        window = dict(kernel=(3, 1, 1)) if self.temporal else dict(planar=True)
        conv = partial(Conv, self.features, dtype=self.dtype)
        norm = partial(GroupNorm, self.groups, self.epsilon, per_frame=not self.clip_norm, dtype=self.dtype)
        y = conv(**window, name="conv1")(nn.silu(norm(name="norm1")(x)))
        if embedding is not None:
            bias = Dense(self.features, dtype=self.dtype, name="time_emb_proj")(nn.silu(embedding))
            y = y + bias[:, None, None, None]
        y = conv(**window, name="conv2")(nn.silu(norm(name="norm2")(y)))
        if x.shape[-1] != self.features:
            x = conv(kernel=(1, 1, 1), planar=True, name="conv_shortcut")(x)
        return edge(x + y)


class Res(ResBlock):
    """A `res` layer: the block, then what a subclass does over time, then an adapter in series ("after_res")."""

    adapters: Adapters = dataclasses.field(default_factory=dict)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], embedding: Float[Array, "b d"], condition: Condition
    ) -> Float[Array, "b t h w o"]:
        check_sites(self.adapters, ("after_res",))
        x = self.over_time(super().__call__(x, embedding), embedding, condition)
        return adapted(self.adapters, "after_res", x, x, condition)

    def over_time(self, x: Array, embedding: Array, condition: Condition) -> Array:
        return x


class Block(nn.Module):
    """x + self-attention(LN x), + cross-attention(LN x), + feed-forward(LN x).

    `self_attention` and `cross_attention` make the two, (x, condition) -> what is added, from (heads, dtype, name); by default
    the latter is one softmax over all of `tokens` together. `site`: where an adapter is added to the self-attention.
    """

    heads: int
    tokens: Sequence[str] = ("text",)
    over: str = "space"
    self_attention: Callable | None = None
    cross_attention: Callable | None = None
    adapters: Adapters = dataclasses.field(default_factory=dict)
    dtype: Dtype = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], condition: Condition, position: Float[Array, "t c"] | None = None
    ) -> Float[Array, "b t h w c"]:
        own = self.self_attention or partial(Attention, over=self.over)
        cross = self.cross_attention or partial(Attention, tokens=self.tokens, over=self.over)
        norm = partial(LayerNorm, dtype=self.dtype)
        parts = dict(heads=self.heads, dtype=self.dtype)
        y = norm(name="norm1")(x)
        delta = own(**parts, name="attn1")(y, condition)
        x = x + adapted(self.adapters, f"beside_{self.site}", delta, y, condition, position)
        x = x + cross(**parts, name="attn2")(norm(name="norm2")(x), condition)
        x = self.before_feed_forward(x, condition, position)
        return x + FeedForward(self.dtype, name="ff")(norm(name="norm3")(x))

    @property
    def site(self) -> str:
        return {"space": "spatial", "time": "temporal"}[self.over]

    def before_feed_forward(self, x: Array, condition: Condition, position: Array | None) -> Array:
        return x


class Transformer(nn.Module):
    """An `attention` layer: norm, linear, `depth` blocks, linear, + input; with `over` "time" the same between frames,
    with the norm over the whole clip. The blocks are `head_dim` x heads wide, by default as wide as the input.
    """

    heads: int
    tokens: Sequence[str] = ("text",)
    over: str = "space"
    head_dim: int | None = None
    depth: int = 1
    self_attention: Callable | None = None
    cross_attention: Callable | None = None
    adapters: Adapters = dataclasses.field(default_factory=dict)
    groups: int = 32
    dtype: Dtype = None

    SITES = ("beside_spatial",)

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], condition: Condition) -> Float[Array, "b t h w c"]:
        check_sites(self.adapters, self.SITES)
        width = self.head_dim * self.heads if self.head_dim else x.shape[-1]
        norm = GroupNorm(self.groups, 1e-6, per_frame=self.over == "space", dtype=self.dtype, name="norm")
        y = Dense(width, dtype=self.dtype, name="proj_in")(norm(x))
        position = self.position(y)
        for i in range(self.depth):
            y = self.block(i, y, condition, position)
        return edge(x + Dense(x.shape[-1], dtype=self.dtype, name="proj_out")(y))

    def position(self, x: Array) -> Array | None:
        """Embedding of the frames (t c), where the family has one."""
        return None

    def block(self, i: int, x: Array, condition: Condition, position: Array | None, make: Callable = Block) -> Array:
        reads = dict(over=self.over, self_attention=self.self_attention, cross_attention=self.cross_attention)
        parts = dict(adapters=self.adapters, dtype=self.dtype)
        return make(self.heads, self.tokens, **reads, **parts, name=f"transformer_blocks_{i}")(x, condition, position)


class TimeEmbedding(MLP):
    """The noise level (b,) and the condition's scalars -> what the `res` layers are given.

    `before`: a scalar whose sinusoid [sin, cos] goes through a linear layer and is added before the MLP (MAVIN's
    length; with `before_zero` it begins at zero). `after`: scalars whose sinusoids of `after_width` go together through an
    MLP of their own, added last (SVD).
    """

    width: int = 320
    before: str | None = None
    before_zero: bool = False
    after: Sequence[str] = ()
    after_width: int = 256

    @nn.compact
    def __call__(self, time: Float[Array, "b"], condition: Condition) -> Float[Array, "b d"]:
        x = sinusoid(time, self.width)
        if self.before:
            kernel_init = nn.initializers.zeros if self.before_zero else lecun_normal
            linear = Dense(self.width, use_bias=False, dtype=self.dtype, kernel_init=kernel_init, name="cond_proj")
            x = x + linear(sinusoid(read_scalars(condition, [self.before])[:, 0], self.width, "sin cos"))
        x = super().__call__(x)
        if self.after:
            scalars = sinusoid(read_scalars(condition, self.after), self.after_width).reshape(len(time), -1)
            x = x + MLP(self.hidden, dtype=self.dtype, name="add_embedding")(scalars)
        return x


# The skeleton -------------------------------------------------------------------------------------------------------


class Level(nn.Module):
    """The layers of one resolution: `res` `layers` times, the first `attentions` of them with `attention` after it.

    On the way up each `res` is given one of `skips` beside its input, the last one first. Returns every layer's output.
    """

    layers: int
    attentions: int
    res: Callable
    attention: Callable
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], skips: list[Array], embedding: Float[Array, "b d"], condition: Condition
    ) -> list:
        run = lambda layer, *args: layer(*args)
        run = rematerialised(run) if self.remat else run
        outputs = []
        for i in range(self.layers):
            if skips:
                x = jnp.concatenate([x, skips[-1 - i]], axis=-1)
            x = run(self.res(name=f"resnets_{i}"), x, embedding, condition)
            if i < self.attentions:
                x = run(self.attention(name=f"attentions_{i}"), x, condition)
            outputs.append(x)
        return outputs


class UNet(nn.Module):
    """Noisy latents (b t h w c), their noise level (b,) and a condition -> the raw output (b t h w out): eps, v or F.

    `condition.concat` is joined to the latents' channels. Every level but the last halves h and w; odd sizes round up.
    A level has attention where `attention_levels` says so; the middle always has one. `heads` and `epsilon` (of the
    norms in `res`) are one number, or one per level (and for `epsilon`: of the way down, the middle, the way up).
    `res`, `attention` and `stem` (after the first convolution) are factories of whole layers, `time_embedding` of what
    embeds the noise level. `remat` recomputes each layer in the backward pass. Dropout, where a layer has any, acts
    when `apply` is given rngs={"dropout": key}. Defaults are Stable Diffusion 2.1's.
    """

    channels: Sequence[int] = (320, 640, 1280, 1280)
    layers: int = 2
    attention_levels: Sequence[bool] = (True, True, True, False)
    heads: int | Sequence[int] = (5, 10, 20, 20)
    out_channels: int = 4
    res: Callable = Res
    attention: Callable = Transformer
    stem: Callable | None = None
    time_embedding: Callable = TimeEmbedding
    epsilon: float | Sequence[float] = 1e-5
    clip_norm: bool = False
    groups: int = 32
    remat: bool = False
    dtype: Dtype = None

    @nn.compact
    def __call__(
        self, xt: Float[Array, "b t h w c"], time: Float[Array, "b"], condition: Condition
    ) -> Float[Array, "b t h w out"]:
        levels, last = range(len(self.channels)), len(self.channels) - 1
        heads = self._each(self.heads, "heads", len(self.channels))
        attends = self._each(self.attention_levels, "attention_levels", len(self.channels))
        epsilons = iter(self._each(self.epsilon, "epsilon", 2 * len(self.channels) + 1))
        parts = dict(groups=self.groups, dtype=self.dtype)

        def level(name: str, i: int, layers: int, attentions: int) -> Level:
            res = partial(self.res, self.channels[i], next(epsilons), self.clip_norm, **parts)
            attention = partial(self.attention, heads[i], **parts)
            return Level(layers, attentions, res, attention, self.remat, name=name)

        conv = partial(FrameConv, dtype=self.dtype)
        if condition.concat is not None:
            xt = jnp.concatenate([xt, condition.concat.astype(xt.dtype)], axis=-1)
        width = self.channels[0]
        embed = self.time_embedding(4 * width, width=width, dtype=self.dtype, name="time_embedding")
        embedding = embed(time, condition)
        x = conv(self.channels[0], name="conv_in")(xt)
        if self.stem is not None:
            x = self.stem(**parts, name="transformer_in")(x, condition)
        skips = [x]
        for i in levels:
            n = self.layers
            skips += level(f"down_blocks_{i}", i, n, n * attends[i])(x, [], embedding, condition)
            if i < last:
                skips.append(conv(self.channels[i], **HALVE, name=f"downsamplers_{i}")(skips[-1]))
            x = skips[-1]
        x = level("mid_block", last, 2, 1)(x, [], embedding, condition)[-1]
        for i in reversed(levels):
            n = self.layers + 1
            x = level(f"up_blocks_{last - i}", i, n, n * attends[i])(x, skips[-n:], embedding, condition)[-1]
            del skips[-n:]
            if i:
                h, w = skips[-1].shape[2:4]
                doubled = (h, w) == (2 * x.shape[2], 2 * x.shape[3])
                if not doubled:  # an odd size was rounded up on the way down
                    x = nearest_upsample(x, (1, 2, 2))[:, :, :h, :w]
                factors = (1, 2, 2) if doubled else (1, 1, 1)
                x = conv(self.channels[i], upsample=factors, name=f"upsamplers_{last - i}")(x)
        norm = GroupNorm(self.groups, 1e-5, per_frame=not self.clip_norm, dtype=self.dtype, name="conv_norm_out")
        return conv(self.out_channels, name="conv_out")(nn.silu(norm(x)))

    def _each(self, value, name: str, count: int) -> Sequence:
        values = (value,) * count if isinstance(value, (int, float)) else tuple(value)
        if len(values) != count:
            raise ValueError(f"{name}={values} needs {count} numbers for the {len(self.channels)} levels of channels")
        return values
