"""Loss terms as plain functions on arrays."""

from collections.abc import Callable

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


# --- adversarial: (logits of real, logits of fake) -> (loss of the generator, loss of the discriminator)


def non_saturating(real: Float[Array, "..."], fake: Float[Array, "..."]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Goodfellow et al. (2014): mean softplus(-fake); mean softplus(-real) + mean softplus(fake)."""
    return jnp.mean(jax.nn.softplus(-fake)), jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake))


def hinge(real: Float[Array, "..."], fake: Float[Array, "..."]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """-mean fake; mean relu(1 - real) + mean relu(1 + fake)."""
    return -jnp.mean(fake), jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))


def gradient_penalty(discriminator: Callable, video: Float[Array, "b t h w c"]) -> Float[Array, ""]:
    """R1 (Mescheder et al., 2018) without its 1/2: mean over clips of |d discriminator(clip) / d clip|^2, float32."""
    slope = jax.grad(lambda v: jnp.sum(discriminator(v)))(video.astype(jnp.float32))
    return jnp.mean(jnp.sum(jnp.square(slope), axis=(1, 2, 3, 4)))


def lecam(
    real: Float[Array, ""], fake: Float[Array, ""], average_real: Float[Array, ""], average_fake: Float[Array, ""]
) -> Float[Array, ""]:
    """LeCam regularisation (Tseng et al., 2021) as MAGVIT's official code has it: `real` and `fake` are mean logits of
    the batch, the averages follow them slowly. Squared distances, where real lies above the average fake and so on.
    """
    return jax.nn.relu(real - average_fake) ** 2 + jax.nn.relu(average_real - fake) ** 2
