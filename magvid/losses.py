"""Loss terms as plain functions on arrays."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_cross_entropy(
    logits: Float[Array, "*b k"], targets: Int[Array, "*b"], smoothing: float = 0.0
) -> Float[Array, "*b"]:
    """Cross-entropy per token; label smoothing gives the target 1 - s + s/k and every other token s/k."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    picked = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return -(1 - smoothing) * picked - smoothing * jnp.mean(log_p, axis=-1)


def weighted_mean(values: Float[Array, "b n"], weights: Float[Array, "b n"]) -> Float[Array, "b"]:
    """Mean over tokens with `weights`, per example; 0 where all weights are 0."""
    return jnp.sum(values * weights, axis=-1) / (jnp.sum(weights, axis=-1) + 1e-8)
