"""AID's adapters (Xing et al., ICCV 2025, section 3.4): thin layers beside and after those of a frozen Stable Video Diffusion.

Each projects down to `ratio` of the channels, does one thing there, and projects up again; the last projection begins at zero. They
give what is added: the paper writes "X + ...", and where an adapter stands beside attention that X is the block's own residual,
which is there once. Sites: `beside_spatial` and `beside_temporal` (all transformers), `after_res` (all blocks).

    attention.adapters = {"beside_spatial": {"factory": "magvid.adapters.aid:SpatialAdapter"}, ...}
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from magvid.models.attention import Attention
from magvid.models.layers import Dense, gelu, once_a_shape
from magvid.types import Condition

taps_init = once_a_shape(nn.initializers.lecun_normal(in_axis=0, out_axis=1))


class Adapter(nn.Module):
    """Down, what a subclass does in between, up."""

    ratio: float = 0.25
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], condition: Condition, position: Float[Array, "t c"] | None = None
    ) -> Float[Array, "b t h w c"]:
        width = int(x.shape[-1] * self.ratio)
        if width < 1:
            raise ValueError(f"an adapter of ratio={self.ratio} has no channels beside {x.shape[-1]}: take a larger ratio")
        y = Dense(width, dtype=self.dtype, name="down")(self.placed(x, position))
        return Dense(x.shape[-1], kernel_init=nn.initializers.zeros, dtype=self.dtype, name="up")(self.inside(y))

    def placed(self, x: Array, position: Array | None) -> Array:
        """What is read of x."""
        return x

    def inside(self, y: Float[Array, "b t h w d"]) -> Float[Array, "b t h w d"]:
        return y


class SpatialAdapter(Adapter):
    """W_up gelu(W_down x), beside self-attention over space."""

    def inside(self, y):
        return gelu(y)


class ShortTemporalAdapter(Adapter):
    """W_up dwconv(W_down x), after the convolutions: a depth-wise convolution over three frames, zeros beyond the clip."""

    taps: int = 3

    def inside(self, y):
        t, channels, before = y.shape[1], y.shape[-1], (self.taps - 1) // 2
        kernel = self.param("conv_kernel", taps_init, (self.taps, channels))
        bias = self.param("conv_bias", nn.initializers.zeros, (channels,))
        padded = jnp.pad(y, [(0, 0), (before, self.taps - 1 - before), (0, 0), (0, 0), (0, 0)])
        return sum(padded[:, i : i + t] * kernel[i].astype(y.dtype) for i in range(self.taps)) + bias.astype(y.dtype)


class LongTemporalAdapter(Adapter):
    """W_up attention(W_down (x + position)), beside self-attention over time; `heads` divide the projected width."""

    head_dim: int = 16

    def placed(self, x, position):
        return x if position is None else x + position[:, None, None].astype(x.dtype)

    def inside(self, y):
        heads = max(y.shape[-1] // self.head_dim, 1)
        return Attention(heads, over="time", dtype=self.dtype, name="attn")(y)


class Decoupled(Attention):
    """A `cross_attention` that reads `tokens` as before and, with keys and values of their own, `added` ones, whose part is multiplied by a
    number that begins at zero; so a frozen model keeps what it reads.
    """

    added: Sequence[str] = ()

    def mix(self, x: Float[Array, "b s n c"], condition: Condition | None) -> Float[Array, "b s n c"]:
        split = partial(self.split, width=x.shape[-1])
        q = split("to_q", x)

        def read(names: Sequence[str], suffix: str) -> Float[Array, "b s n c"]:
            context, mask = self.context(condition, names)
            return self.attend(q, split(f"to_k{suffix}", context), split(f"to_v{suffix}", context), mask)

        y = read(self.tokens, "")
        return y + self.param("added_scale", nn.initializers.zeros, (1,)).astype(y.dtype) * read(self.added, "_added")
