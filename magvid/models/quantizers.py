"""Quantizers: latents (b t' h' w' d) -> discrete ids and codes. Each has `__call__`, `ids_to_codes` and `size`."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from magvid.models.layers import once_a_shape
from magvid.types import Quantized

codebook_init = once_a_shape(nn.initializers.variance_scaling(1.0, "fan_in", "uniform"))  # fan_in is k here: uniform in +-sqrt(3/k)


def squared_distances(x: Float[Array, "n d"], codes: Float[Array, "k d"]) -> Float[Array, "n k"]:
    """|x|^2 - 2 x.c + |c|^2 in float32 at highest precision, whatever the default: ids must not depend on it."""
    x, codes = x.astype(jnp.float32), codes.astype(jnp.float32)
    cross = jnp.matmul(x, codes.T, precision=lax.Precision.HIGHEST)
    return jnp.sum(x**2, -1, keepdims=True) - 2 * cross + jnp.sum(codes**2, -1)


def entropy_loss(affinity: Float[Array, "n k"], temperature: float = 0.01, hard: bool = False) -> Float[Array, ""]:
    """Mean entropy of each row's assignment minus the entropy of the mean assignment (MAGVIT official,
    `entropy_loss_type`).

    Small when every sample chooses one code with confidence and all codes are used alike. `hard` ("argmax") puts
    one-hot assignments forward and keeps the softmax's gradient.
    """
    affinity = affinity / temperature
    p = jax.nn.softmax(affinity, axis=-1)
    log_p = jax.nn.log_softmax(affinity + 1e-5, axis=-1)
    if hard:
        one_hot = jax.nn.one_hot(jnp.argmax(affinity, axis=-1), affinity.shape[-1], dtype=p.dtype)
        p = p - lax.stop_gradient(p - one_hot)
    mean_p = p.mean(axis=0)
    average_entropy = -jnp.sum(mean_p * jnp.log(mean_p + 1e-5))
    sample_entropy = -jnp.mean(jnp.sum(p * log_p, axis=-1))
    return sample_entropy - average_entropy


def l2_normalize(x: Array) -> Array:
    return x * lax.rsqrt(jnp.maximum(jnp.sum(x**2, -1, keepdims=True), 1e-12))


class VQ(nn.Module):
    """Vector quantization with a codebook learned by gradient (van den Oord et al., 2017) and MAGVIT's entropy loss.

    size: number of codes k; dim: d. Loss = commitment * |sg(q) - z|^2 + embedding_weight * |q - sg(z)|^2 +
    entropy_weight * entropy (means over all elements; MAGVIT: 0.25, 1, 0.1 at temperature 0.01). The entropy is over
    the batch that one call sees.
    `normalize` compares l2-normalised vectors, but returns un-normalised codes, as the official `latent_normalize`
    does.
    """

    size: int = 1024
    dim: int = 256
    commitment: float = 0.25
    embedding_weight: float = 1.0
    entropy_weight: float = 0.1
    temperature: float = 0.01
    hard_entropy: bool = False
    normalize: bool = False

    def __post_init__(self):
        if self.size < 2 or self.dim < 1:
            raise ValueError(f"size={self.size}, dim={self.dim}: a codebook needs 2 codes of 1 channel or more")
        super().__post_init__()

    def setup(self):
        self.codebook = self.param("codebook", codebook_init, (self.size, self.dim))

    def __call__(self, z: Float[Array, "b th hh wh d"], *, train: bool = False) -> Quantized:
        dtype, z = z.dtype, z.astype(jnp.float32)
        codebook = self.codebook
        if self.normalize:
            z, codebook = l2_normalize(z), l2_normalize(codebook)
        distances = squared_distances(z.reshape(-1, self.dim), codebook)
        ids = jnp.argmin(distances, axis=-1).reshape(z.shape[:-1]).astype(jnp.int32)
        codes = self.ids_to_codes(ids)
        if not train:
            return Quantized(ids, codes.astype(dtype), jnp.zeros(()), {})
        losses = {
            "commitment": self.commitment * jnp.mean((lax.stop_gradient(codes) - z) ** 2),
            "embedding": self.embedding_weight * jnp.mean((codes - lax.stop_gradient(z)) ** 2),
        }
        if self.entropy_weight:
            losses["entropy"] = self.entropy_weight * entropy_loss(-distances, self.temperature, self.hard_entropy)
        metrics = {**losses, **codebook_metrics(ids, self.size)}
        straight_through = z + lax.stop_gradient(codes - z)
        return Quantized(ids, straight_through.astype(dtype), sum(losses.values()), metrics)

    def ids_to_codes(self, ids: Int[Array, "b th hh wh"]) -> Float[Array, "b th hh wh d"]:
        return jnp.take(self.codebook, ids, axis=0)


class FSQ(nn.Module):
    """Finite scalar quantization (Mentzer et al., 2023, section 3): every channel is bounded and rounded to one of
    `levels[i]` values; a code is one cell of that grid. It has no parameters and no losses.

    The paper's levels: (8, 6, 5) for about 2^8 codes, (8, 5, 5, 5) for 2^10, (7, 5, 5, 5, 5) for 2^12. The encoder
    gives as many channels as there are levels. Codes lie in [-1, 1]; ids count the first channel fastest.
    """

    levels: Sequence[int] = (8, 5, 5, 5)

    def __post_init__(self):
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"levels={tuple(self.levels)}: give one number of at least 2 per channel")
        super().__post_init__()

    @property
    def size(self) -> int:
        return math.prod(self.levels)

    def __call__(self, z: Float[Array, "b th hh wh d"], *, train: bool = False) -> Quantized:
        if z.shape[-1] != len(self.levels):
            raise ValueError(
                f"{len(self.levels)} levels {tuple(self.levels)} quantize {len(self.levels)} channels, but the encoder "
                f"gives {z.shape[-1]}: set its dim to {len(self.levels)}"
            )
        dtype, z = z.dtype, z.astype(jnp.float32)
        levels = np.asarray(self.levels, np.float32)
        reach = (levels - 1) * 1.001 / 2  # a little more than half the grid: the outermost values can be reached
        offset = np.where(levels % 2, 0.0, 0.5).astype(np.float32)  # an even number of values has none in the middle
        bounded = jnp.tanh(z + np.arctanh(offset / reach)) * reach - offset
        cell = jnp.round(bounded)
        ids = jnp.sum((cell + self.half) * self.strides, axis=-1).astype(jnp.int32)
        if not train:
            return Quantized(ids, self.ids_to_codes(ids).astype(dtype), jnp.zeros(()), {})
        straight_through = (bounded + lax.stop_gradient(cell - bounded)) / self.half
        metrics = codebook_metrics(ids, self.size)
        return Quantized(ids, straight_through.astype(dtype), jnp.zeros(()), metrics)

    def ids_to_codes(self, ids: Int[Array, "b th hh wh"]) -> Float[Array, "b th hh wh d"]:
        cell = ids[..., None] // self.strides % np.asarray(self.levels) - self.half
        return cell.astype(jnp.float32) / self.half

    @property
    def half(self) -> np.ndarray:
        """What is added to a rounded channel to count its values from 0."""
        return np.asarray(self.levels) // 2

    @property
    def strides(self) -> np.ndarray:
        """How many ids one step along each channel is worth."""
        return np.cumprod((1, *self.levels[:-1]))


def codebook_metrics(ids: Int[Array, "..."], size: int) -> dict[str, Float[Array, ""]]:
    """Share of codes used by this batch, and perplexity = exp(entropy of the usage), between 1 and `size`."""
    share = jnp.zeros(size).at[ids.reshape(-1)].add(1.0) / ids.size
    entropy = -jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1.0)))
    return {"codebook_usage": jnp.mean(share > 0), "perplexity": jnp.exp(entropy)}
