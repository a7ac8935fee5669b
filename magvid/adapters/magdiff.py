"""MagDiff's cross-attention (Zhao et al., ECCV 2024, section 3.3; numbers as in the released code)."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
from jaxtyping import Array, Float

from magvid.models.attention import Attention
from magvid.types import Condition


class EPAF(Attention):
    """Text and picture read by one query with keys and values of their own:
    a_t softmax(q k_t) v_t + a_i softmax(q k_i) v_i, with two learned numbers per layer. A `cross_attention` for
    `unet.Transformer`.

    `tokens` names the text and the picture, `scales` their first a. The released code reads both from one sequence and
    splits it after 77 tokens.
    """

    tokens: Sequence[str] = ("text", "image")
    scales: Sequence[float] = (1.0, 1.5)

    def mix(self, x: Float[Array, "b s n c"], condition: Condition | None) -> Float[Array, "b s n c"]:
        if len(self.tokens) != 2 or len(self.scales) != 2:
            raise ValueError(f"EPAF reads two kinds of tokens with a scale each, got {self.tokens} and {self.scales}")
        split = partial(self.split, width=x.shape[-1])
        q, y = split("to_q", x), 0.0
        for name, kind, suffix, first in zip(self.tokens, ("text", "image"), ("", "_ip"), self.scales):
            context, mask = self.context(condition, (name,))
            scale = self.param(f"{kind}_scale", nn.initializers.constant(first), (1,)).astype(q.dtype)
            y = y + scale * self.attend(q, split(f"to_k{suffix}", context), split(f"to_v{suffix}", context), mask)
        return y
