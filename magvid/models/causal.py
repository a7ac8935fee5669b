"""The causal transformer of the autoregressive baseline (MAGVIT, table 6): pre-LN, attention without biases (official
`TransformerLM`).
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from magvid.models.attention import attention
from magvid.models.layers import check_sizes, lecun_normal, normal
from magvid.sharding import edge, rematerialised

LayerNorm = partial(nn.LayerNorm, epsilon=1e-6)
gelu = partial(nn.gelu, approximate=True)


class SelfAttention(nn.Module):
    """Attention of every token to itself and those before it. With `memory`, the keys and values of earlier tokens are
    read from it, and those of `x`, which begin at position `start`, are written there.
    """

    heads: int
    dropout: float = 0.1
    dtype: type | str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], start, memory, mask, *, train: bool):
        width = x.shape[-1]
        split = partial(nn.DenseGeneral, (self.heads, width // self.heads), kernel_init=lecun_normal, use_bias=False, dtype=self.dtype)
        q, kv = split(name="query")(x), jnp.stack([split(name="key")(x), split(name="value")(x)])
        if memory is not None:
            kv = memory = lax.dynamic_update_slice_in_dim(memory, kv.astype(memory.dtype), start, axis=2)
        allowed = (jnp.arange(kv.shape[2]) <= start + jnp.arange(x.shape[1])[:, None])[None, None]
        allowed = allowed if mask is None else allowed & mask[:, None]
        drop = nn.Dropout(self.dropout, broadcast_dims=(0, 1), deterministic=not train)
        y = attention(q, *kv, drop if train and self.dropout else None, allowed)
        return nn.DenseGeneral(width, axis=(-2, -1), kernel_init=lecun_normal, use_bias=False, dtype=self.dtype, name="out")(y), memory


class Block(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)) with GELU."""

    heads: int
    mlp: int
    dropout: float = 0.1
    dtype: type | str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], start, memory, mask, train: bool):
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        norm = partial(LayerNorm, dtype=self.dtype)
        attend = SelfAttention(self.heads, self.dropout, self.dtype, name="attention")
        y, memory = attend(norm(name="attention_norm")(x), start, memory, mask, train=train)
        x = x + drop()(y)
        y = gelu(nn.Dense(self.mlp, kernel_init=lecun_normal, dtype=self.dtype, name="mlp_in")(norm(name="mlp_norm")(x)))
        return x + drop()(nn.Dense(x.shape[-1], kernel_init=lecun_normal, dtype=self.dtype, name="mlp_out")(drop()(y))), memory


class CausalTransformer(nn.Module):
    """Tokens (b n) -> logits (b n v) of each next token; n <= length. Float32 logits.

    Token by token: `memory = init_memory(b)`, then `logits, memory = model(ids, start=position, memory=memory)`, which
    sees the tokens before `start` through `memory` alone. `mask` (b n n) forbids further pairs, where False. Sizes as
    `Transformer`'s.
    """

    vocab: int
    length: int
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    dropout: float = 0.1
    remat: bool = False
    dtype: type | str | None = None

    @nn.compact
    def __call__(
        self,
        ids: Int[Array, "b n"],
        *,
        start: Int[Array, ""] | int = 0,
        memory: Float[Array, "depth 2 b length heads e"] | None = None,
        mask: Bool[Array, "b n n"] | None = None,
        train: bool = False,
    ):
        n = ids.shape[1]
        check_sizes(n, self.length, self.width, self.heads, self.dropout)
        x = nn.Embed(self.vocab, self.width, embedding_init=normal(1.0), name="words")(ids)
        positions = self.param("positions", normal(0.02), (self.length, self.width))
        x = x + lax.dynamic_slice_in_dim(positions, start, n)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        block: Callable = rematerialised(Block, static_argnums=(5,)) if self.remat else Block
        kept = []
        for i in range(self.depth):
            layer = block(self.heads, self.mlp, self.dropout, self.dtype, name=f"block_{i}")
            x, layer_memory = layer(edge(x), start, None if memory is None else memory[i], mask, train)
            kept.append(layer_memory)
        x = LayerNorm(dtype=self.dtype, name="norm")(x)
        logits = nn.Dense(self.vocab, kernel_init=lecun_normal, dtype=self.dtype, name="head")(x).astype(jnp.float32)
        return logits if memory is None else (logits, jnp.stack(kept))

    def init_memory(self, b: int) -> Float[Array, "depth 2 b length heads e"]:
        """Keys and values of no token yet."""
        return jnp.zeros((self.depth, 2, b, self.length, self.heads, self.width // self.heads), self.dtype or jnp.float32)
