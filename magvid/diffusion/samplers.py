"""From noise to a clip: each sampler is a frozen dataclass with one step, and sampling is one `lax.scan` over the levels.

A sampler asks a denoiser (x, level) -> x0, which `guidance` makes of a network and its conditions. It reads levels only,
so that any sampler runs on any schedule and with any prediction.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from magvid.diffusion.predictions import noise_in
from magvid.diffusion.schedules import Level

Guided = Callable[[Array, Level], Array]  # a denoiser that knows its conditions: (x, level) -> x0


@runtime_checkable
class Sampler(Protocol):
    """`step` goes from level s0 to the lower s1 (fields ()), with one call of `denoise`. carry[0] is x at s0.

    `order`: the global error falls as steps^-order (of the distribution, where noise is added).
    """

    order: ClassVar[int]

    def init(self, x: Float[Array, "b ..."]) -> tuple: ...

    def step(self, denoise: Guided, carry: tuple, s0: Level, s1: Level, key: Key[Array, ""]) -> tuple: ...


class _Memoryless:
    """Carries x alone from step to step."""

    def init(self, x: Float[Array, "b ..."]) -> tuple:
        return (x,)


@dataclasses.dataclass(frozen=True)
class DDIM(_Memoryless):
    """Song et al. (2021), equation 12. eta = 0 draws nothing and solves the probability flow; eta = 1 is DDPM."""

    eta: float = 0.0
    order: ClassVar[int] = 1

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta}: the share of new noise lies between 0 (none) and 1 (DDPM)")

    def step(self, denoise, carry, s0, s1, key):
        (x,) = carry
        x0 = denoise(x, s0)
        fresh = self.eta**2 * (1 - jnp.square(decay(s0, s1)))  # share of new noise in the variance of x1
        noise = jnp.sqrt(1 - fresh) * noise_in(x, x0, s0)
        if self.eta:
            noise += jnp.sqrt(fresh) * jax.random.normal(key, x.shape, x.dtype)
        return (s1.alpha * x0 + s1.sigma * noise,)


@dataclasses.dataclass(frozen=True)
class DDPM(_Memoryless):
    """Ancestral sampling (Ho et al., 2020): x1 is drawn from q(x1 | x, x0), with the variance of that ("fixed small")."""

    order: ClassVar[int] = 1

    def step(self, denoise, carry, s0, s1, key):
        (x,) = carry
        d = decay(s0, s1)
        mean = s1.alpha * (1 - d * d) * denoise(x, s0) + d * s1.sigma / s0.sigma * x
        return (mean + s1.sigma * jnp.sqrt(1 - d * d) * jax.random.normal(key, x.shape, x.dtype),)


@dataclasses.dataclass(frozen=True)
class EulerEDM(_Memoryless):
    """Karras et al. (2022), algorithm 1 without churn: an Euler step of dx / dsigma = (x - x0) / sigma for x / alpha and
    sigma / alpha.

    It is the step of DDIM, written so that with alpha = 1 the last one, to sigma 0, gives x0 exactly.
    """

    order: ClassVar[int] = 1

    def step(self, denoise, carry, s0, s1, key):
        (x,) = carry
        x0 = denoise(x, s0)
        return (s1.alpha * x0 + s1.sigma / s0.sigma * (x - s0.alpha * x0),)


@dataclasses.dataclass(frozen=True)
class DPMSolverPP2M:
    """DPM-Solver++ 2M (Lu et al., 2022), midpoint form, which extrapolates x0 from this and the previous step.

    Steps of infinite length in lambda = ln(alpha / sigma) are of first order: to sigma 0 ("lower_order_final") and from
    alpha 0; so is the first step.
    """

    order: ClassVar[int] = 2

    def init(self, x):
        return x, jnp.zeros_like(x), jnp.asarray(jnp.inf, x.dtype)  # x, previous x0, previous step in lambda

    def step(self, denoise, carry, s0, s1, key):
        x, previous, h_previous = carry
        x0 = denoise(x, s0)
        d = decay(s0, s1)
        h = -jnp.log(d)
        ratio = jnp.where(jnp.isfinite(h), h / h_previous, 0.0)
        target = x0 + 0.5 * ratio * (x0 - previous)
        return s1.sigma / s0.sigma * x + s1.alpha * (1 - d) * target, x0, h


def decay(s0: Level, s1: Level) -> Array:
    """exp(-h) of the step h = ln(alpha1 / sigma1) - ln(alpha0 / sigma0); 0 from alpha 0 and to sigma 0.

    So x at s0 has alpha0 / alpha1 of x at s1 and fresh noise of variance sigma0^2 (1 - decay^2); and of the noise of x at
    s1, given x at s0 and x0, the share 1 - decay^2 of the variance is unknown.
    """
    return s0.alpha / s1.alpha * (s1.sigma / s0.sigma)


def begin(noise: Float[Array, "b ..."], levels: Level) -> Float[Array, "b ..."]:
    """What sampling begins with: noise N(0, 1) as wide as data of unit variance at the first level."""
    return noise * jnp.sqrt(jnp.square(levels.alpha[0]) + jnp.square(levels.sigma[0]))


def sample(
    sampler: Sampler, denoise: Guided, x: Float[Array, "b ..."], levels: Level, key: Key[Array, ""]
) -> Float[Array, "b ..."]:
    """x at the last of `levels` (n + 1,), from x at the first (`begin`): n steps, each with its own key."""
    return _scan(sampler, denoise, x, levels, key, lambda x: None)[0]


def trajectory(
    sampler: Sampler, denoise: Guided, x: Float[Array, "b ..."], levels: Level, key: Key[Array, ""]
) -> Float[Array, "n b ..."]:
    """x after each step of `sample`."""
    return _scan(sampler, denoise, x, levels, key, lambda x: x)[1]


def _scan(sampler: Sampler, denoise: Guided, x: Array, levels: Level, key: Array, record: Callable[[Array], Any]):
    if jnp.promote_types(x.dtype, jnp.float32) != x.dtype:
        raise ValueError(f"x is {x.dtype}: samplers compute in float32; what the network computes in is its own dtype")
    levels = Level(*map(jnp.asarray, levels))
    pairs = [Level(*(a[cut] for a in levels)) for cut in (slice(None, -1), slice(1, None))]

    def body(carry, step):
        carry = sampler.step(denoise, carry, *step)
        return carry, record(carry[0])

    keys = jax.random.split(key, len(pairs[0].time))
    carry, recorded = lax.scan(body, sampler.init(x), (*pairs, keys))
    return carry[0], recorded
