"""MAGVIT's bidirectional transformer: a post-LN BERT without segment embeddings (official `simplified_bert`)."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from magvid.models.attention import attention
from magvid.models.layers import Dense, check_sizes, once_a_shape
from magvid.sharding import edge, rematerialised


@once_a_shape
def weights_init(key, shape, dtype=jnp.float32) -> Array:
    """Normal truncated at +-2, then x 0.02, without correcting the variance (so std is about 0.0176), as in the
    official code.
    """
    return jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype) * 0.02


LayerNorm = partial(nn.LayerNorm, epsilon=1e-12)
gelu = partial(nn.gelu, approximate=True)


class SelfAttention(nn.Module):
    """Multi-head self-attention; one dropout mask of the probabilities is shared by the batch and the heads (Flax's
    default).
    """

    heads: int
    dropout: float = 0.1
    dtype: type | str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool) -> Float[Array, "b n d"]:
        width = x.shape[-1]
        split = partial(nn.DenseGeneral, (self.heads, width // self.heads), kernel_init=weights_init, dtype=self.dtype)
        q, k, v = split(name="query")(x), split(name="key")(x), split(name="value")(x)
        drop = nn.Dropout(self.dropout, broadcast_dims=(0, 1), deterministic=not train)
        y = attention(q, k, v, drop if train and self.dropout else None)
        return nn.DenseGeneral(width, axis=(-2, -1), kernel_init=weights_init, dtype=self.dtype, name="out")(y)


class Block(nn.Module):
    """x -> LN(x + dropout(attention)) -> LN(. + dropout(MLP))."""

    heads: int
    mlp: int
    dropout: float = 0.1
    dtype: type | str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], train: bool) -> Float[Array, "b n d"]:
        dense = partial(Dense, kernel_init=weights_init, dtype=self.dtype)
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        y = SelfAttention(self.heads, self.dropout, self.dtype, name="attention")(x, train=train)
        x = LayerNorm(dtype=self.dtype, name="attention_norm")(x + drop()(y))
        y = dense(x.shape[-1], name="mlp_out")(gelu(dense(self.mlp, name="mlp_in")(x)))
        return LayerNorm(dtype=self.dtype, name="mlp_norm")(x + drop()(y))


class Transformer(nn.Module):
    """Tokens (b n) -> logits (b n v) over the whole vocabulary; n <= length. Float32 logits.

    Sizes: B depth 12, width 768, mlp 3072, heads 12; L 24, 1024, 4096, 16; H 32, 1280, 5120, 16. `remat` recomputes
    each block in the backward pass.
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
    def __call__(self, ids: Int[Array, "b n"], *, train: bool = False) -> Float[Array, "b n v"]:
        n = ids.shape[1]
        check_sizes(n, self.length, self.width, self.heads, self.dropout)
        words = nn.Embed(self.vocab, self.width, embedding_init=weights_init, name="words")
        positions = self.param("positions", weights_init, (self.length, self.width))
        x = words(ids) + positions[:n]
        x = LayerNorm(dtype=self.dtype, name="embedding_norm")(x)
        x = edge(nn.Dropout(self.dropout, deterministic=not train)(x))
        block: Callable = rematerialised(Block, static_argnums=(2,)) if self.remat else Block
        for i in range(self.depth):
            x = edge(block(self.heads, self.mlp, self.dropout, self.dtype, name=f"block_{i}")(x, train))
        x = gelu(Dense(self.width, kernel_init=weights_init, dtype=self.dtype, name="head")(x))
        x = LayerNorm(dtype=self.dtype, name="head_norm")(x)
        bias = self.param("head_bias", nn.initializers.zeros, (self.vocab,))
        logits = jnp.matmul(x, words.embedding.T.astype(x.dtype), preferred_element_type=jnp.float32)
        return logits + bias
