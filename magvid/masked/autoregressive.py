"""Token by token: the baseline that parallel decoding is compared with (MAGVIT, table 6)."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from magvid.masked.decode import categorical

Memory = TypeVar("Memory")


def generate(
    model: Callable[[Int[Array, "b n"], Int[Array, ""] | int, Memory], tuple[Float[Array, "b n v"], Memory]],
    memory: Memory,
    prefix: Int[Array, "b p"],
    count: int,
    key: Array,
    *,
    codebook: int,
    sampler: Callable = categorical,
) -> Int[Array, "b count"]:
    """`count` tokens after `prefix`, each sampled from the codebook given all before it.

    model(ids, start, memory) -> (logits over the vocabulary of the tokens that follow each of `ids`, memory), where
    `ids` stand at position `start` and on, and `memory` holds what came before. sampler(logits over the codebook, key,
    position of the input) -> ids. `count` calls of the model.
    """
    if count < 1 or not prefix.shape[1]:
        raise ValueError(f"generating needs a prefix and a count of at least 1, got {prefix.shape[1]} and {count}")
    first = prefix.shape[1] - 1

    def sample(logits, position):
        logits = logits[:, -1, :codebook]
        return sampler(logits, jax.random.fold_in(key, position), position)

    def step(carry, position):
        ids, memory = carry
        logits, memory = model(ids[:, None], position, memory)
        following = sample(logits, position)
        return (following, memory), following

    logits, memory = model(prefix, 0, memory)
    start = sample(logits, jnp.asarray(first))
    _, rest = lax.scan(step, (start, memory), first + 1 + jnp.arange(count - 1))
    return jnp.concatenate([start[:, None], rest.T], axis=1)
