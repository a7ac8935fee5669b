"""What a network predicts: eps, v (EDM's preconditioning is one of these) or x0; its targets and loss weights.

A *network* is (x, time (b,), condition) -> raw output, a *denoiser* (x, level, condition) -> x0. With F the network,

    x0 = skip x + out F(scale x, time),      scale = 1 / sqrt(alpha^2 sigma_data^2 + sigma^2).

For DDPM's levels and `sigma_data` 1 the scale is 1. Since x0 is affine in F, guidance on x0 equals guidance on F.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from magvid.diffusion.schedules import Level

Denoiser = Callable[[Array, Level, Any], Array]


class Coefficients(NamedTuple):
    """x0 = skip x + out F(scale x); of the shape of the level's fields."""

    skip: Float[Array, "*n"]
    out: Float[Array, "*n"]
    scale: Float[Array, "*n"]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """`coefficients` of a level; `target`: what F should be for x = alpha x0 + sigma noise. `sigma_data` is the standard
    deviation of the clean data.
    """

    sigma_data: float = 1.0

    def spread(self, s: Level) -> Float[Array, "*n"]:
        """The standard deviation of x."""
        return jnp.sqrt(jnp.square(s.alpha * self.sigma_data) + jnp.square(s.sigma))

    def coefficients(self, s: Level) -> Coefficients:
        raise NotImplementedError

    def target(self, x0: Float[Array, "b ..."], noise: Float[Array, "b ..."], s: Level) -> Float[Array, "b ..."]:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Eps(Prediction):
    """F = noise. Undefined at alpha = 0, where the noise is all there is to see: zero terminal SNR needs `V`."""

    def coefficients(self, s: Level) -> Coefficients:
        return Coefficients(1 / s.alpha, -s.sigma / s.alpha, 1 / self.spread(s))

    def target(self, x0, noise, s):
        return noise


@dataclasses.dataclass(frozen=True)
class V(Prediction):
    """F = alpha noise - sigma x0 (Salimans & Ho, 2022) at DDPM's levels.

    In general F = (alpha sigma_data noise - sigma x0 / sigma_data) / spread. At EDM's levels these are the
    preconditioning of Karras et al. (2022), table 1, with the sign of F as SVD has it: skip = sigma_data^2 / (sigma^2 +
    sigma_data^2), out = -sigma sigma_data / sqrt(sigma^2 + sigma_data^2).
    """

    def coefficients(self, s: Level) -> Coefficients:
        r = self.spread(s)
        return Coefficients(s.alpha * jnp.square(self.sigma_data / r), -s.sigma * self.sigma_data / r, 1 / r)

    def target(self, x0, noise, s):
        s = s.like(x0)
        return (s.alpha * self.sigma_data * noise - s.sigma / self.sigma_data * x0) / self.spread(s)


@dataclasses.dataclass(frozen=True)
class X0(Prediction):
    """F = x0."""

    def coefficients(self, s: Level) -> Coefficients:
        return Coefficients(jnp.zeros_like(s.alpha), jnp.ones_like(s.alpha), 1 / self.spread(s))

    def target(self, x0, noise, s):
        return x0


def denoiser(network: Callable[[Array, Array, Any], Array], prediction: Prediction) -> Denoiser:
    """The denoiser (x, level, condition) -> x0 (float32) of a network; the level has fields () or (b,)."""

    def denoise(x: Float[Array, "b ..."], s: Level, condition: Any) -> Float[Array, "b ..."]:
        skip, out, scale = prediction.coefficients(s.like(x))
        raw = network(scale * x, jnp.broadcast_to(s.time, x.shape[:1]), condition)
        return skip * x + out * raw.astype(jnp.float32)

    return denoise


def noise_in(x: Float[Array, "b ..."], x0: Float[Array, "b ..."], s: Level) -> Float[Array, "b ..."]:
    """The noise that makes x of x0."""
    s = s.like(x)
    return (x - s.alpha * x0) / s.sigma


# Loss weights: (level (b,), prediction) -> factor (b,) of the squared error of F. A weight w of the squared error of x0 is
# w out^2 there; so each needs one formula for all predictions.


def unit(s: Level, prediction: Prediction) -> Float[Array, "b"]:
    """The plain error of F: DDPM's, and for `V` at EDM's levels that of EDM."""
    return jnp.ones_like(s.sigma)


def edm(s: Level, prediction: Prediction) -> Float[Array, "b"]:
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 on x0 (SVD: (1 + sigma^2) / sigma^2), with sigma / alpha as sigma.
    So the error of x0 weighs alike whatever the network predicts; for `V` it is that of `unit`.
    """
    weight = jnp.square(prediction.spread(s) / (s.sigma * prediction.sigma_data))
    return weight * jnp.square(prediction.coefficients(s).out)


def min_snr(s: Level, prediction: Prediction, gamma: float = 5.0) -> Float[Array, "b"]:
    """min(SNR, gamma) on x0 (Hang et al., 2023): min(SNR, gamma) / SNR for `Eps`, / (SNR + 1) for `V`, / 1 for `X0`."""
    return jnp.minimum(s.snr, gamma) * jnp.square(prediction.coefficients(s).out)
