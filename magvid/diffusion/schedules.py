"""How much noise there is: levels, the two schedules that give them, and the noise of training.

A noised clip is x = alpha x0 + sigma noise. Everything else in `diffusion` reads a `Level` and no schedule, so that one
sampler serves timesteps (DDPM: alpha^2 + sigma^2 = 1) and sigmas (EDM: alpha = 1) alike.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key


class Level(NamedTuple):
    """A noise level. All fields have one shape: () for the whole batch, (b,) per clip, (n,) the grid of a sampler."""

    time: Float[Array, "*n"]  # what the network is told
    alpha: Float[Array, "*n"]
    sigma: Float[Array, "*n"]

    @property
    def snr(self) -> Float[Array, "*n"]:
        return jnp.square(self.alpha / self.sigma)

    def like(self, x: Float[Array, "b ..."]) -> "Level":
        """Shaped so that it broadcasts against x (b ...)."""
        return Level(*(jnp.reshape(a, jnp.shape(a) + (1,) * (x.ndim - jnp.ndim(a))) for a in self))


def corrupt(x0: Float[Array, "b ..."], noise: Float[Array, "b ..."], s: Level) -> Float[Array, "b ..."]:
    """alpha x0 + sigma noise."""
    s = s.like(x0)
    return s.alpha * x0 + s.sigma * noise


@runtime_checkable
class Schedule(Protocol):
    """`level` speaks the schedule's own language, a timestep or a sigma; `at` takes the way from clean (0) to noise (1),
    `levels` the n + 1 levels between which a sampler makes n steps.
    """

    def level(self, t: Array) -> Level: ...

    def at(self, u: Float[Array, "*b"]) -> Level: ...

    def levels(self, n: int) -> Level: ...


# Timesteps ----------------------------------------------------------------------------------------------------------


def scaled_linear(steps: int, start: float = 0.00085, end: float = 0.012) -> Float[np.ndarray, "steps"]:
    """Betas of Stable Diffusion and ModelScope: linear in their square roots."""
    return np.linspace(start**0.5, end**0.5, steps) ** 2


def linear(steps: int, start: float = 1e-4, end: float = 0.02) -> Float[np.ndarray, "steps"]:
    """Betas of DDPM (Ho et al., 2020)."""
    return np.linspace(start, end, steps)


def cosine(steps: int, offset: float = 0.008, most: float = 0.999) -> Float[np.ndarray, "steps"]:
    """Betas of Nichol & Dhariwal (2021), at most `most`."""
    bar = np.cos((np.arange(steps + 1) / steps + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.minimum(1 - bar[1:] / bar[:-1], most)


def zero_terminal_snr(alphas_bar: Float[np.ndarray, "steps"]) -> Float[np.ndarray, "steps"]:
    """The roots, shifted and scaled so that the last is 0 and the first unchanged (Lin et al., 2024, algorithm 1)."""
    root = np.sqrt(alphas_bar)
    return np.square((root - root[-1]) * root[0] / (root[0] - root[-1]))


def leading(n: int, steps: int, offset: int = 1) -> Int[np.ndarray, "n"]:
    """Every (steps // n)-th timestep up from `offset`, descending (Stable Diffusion's pipelines)."""
    return np.arange(n)[::-1] * (steps // n) + offset


def linspace(n: int, steps: int, zero: bool = True) -> Int[np.ndarray, "n"]:
    """Evenly from the last timestep to 0; without `zero` 0 is left out (DPM-Solver++ in diffusers)."""
    return np.linspace(0, steps - 1, n if zero else n + 1).round().astype(int)[::-1][:n]


def trailing(n: int, steps: int) -> Int[np.ndarray, "n"]:
    """Evenly from the last timestep, which zero terminal SNR needs (Lin et al., 2024)."""
    return np.round(np.arange(n, 0, -1) * (steps / n)).astype(int) - 1


@dataclasses.dataclass(frozen=True)
class Discrete:
    """DDPM's timesteps 0 ... steps - 1: alpha = sqrt(prod(1 - beta)), sigma = sqrt(1 - alpha^2). The network is told the
    timestep.

    `betas`: steps -> betas. `spacing`: (n, steps) -> the timesteps of a sampler of n steps. The last step ends at clean
    latents, or with `clean_end` False at timestep 0 ("set_alpha_to_one": false). The default is Stable Diffusion's.
    """

    steps: int = 1000
    betas: Callable[[int], np.ndarray] = scaled_linear
    zero_snr: bool = False
    spacing: Callable[[int, int], np.ndarray] = leading
    clean_end: bool = True

    @cached_property
    def alphas_bar(self) -> Float[np.ndarray, "steps"]:
        bar = np.cumprod(1 - np.asarray(self.betas(self.steps), np.float64))
        return zero_terminal_snr(bar) if self.zero_snr else bar

    def level(self, t: Int[Array, "*b"]) -> Level:
        alpha, sigma = (jnp.asarray(np.sqrt(v), jnp.float32)[t] for v in (self.alphas_bar, 1 - self.alphas_bar))
        return Level(jnp.asarray(t, jnp.float32), alpha, sigma)

    def at(self, u: Float[Array, "*b"]) -> Level:
        return self.level(jnp.minimum(jnp.floor(u * self.steps).astype(jnp.int32), self.steps - 1))

    def levels(self, n: int) -> Level:
        if not 1 <= n <= self.steps:
            raise ValueError(f"a sampler makes 1 to {self.steps} steps with {self.steps} timesteps, got {n}")
        return self.grid(self.spacing(n, self.steps))

    def grid(self, timesteps: Int[np.ndarray, "n"]) -> Level:
        """n + 1 levels: those of `timesteps`, which descend, and the end."""
        t = np.asarray(timesteps)
        if t[0] >= self.steps or t[-1] < 0 or np.any(np.diff(t) >= 0):
            raise ValueError(
                f"the {len(t)} timesteps from {t[0]} to {t[-1]} must fall and lie in 0..{self.steps - 1}: take fewer steps, or "
                "another spacing or offset"
            )
        end = 1.0 if self.clean_end else self.alphas_bar[0]
        bar = np.append(self.alphas_bar[t], end)
        return _grid(np.append(t, 0), np.sqrt(bar), np.sqrt(1 - bar))


# Sigmas -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class EDM:
    """Sigmas of Karras et al. (2022): alpha = 1, and the network is told ln(sigma) / 4. The default is SVD's.

    `at(u)` and the levels of a sampler are even in sigma^(1 / rho) between `least` and `most`; the last level is 0.
    """

    least: float = 0.002
    most: float = 700.0
    rho: float = 7.0

    def __post_init__(self):
        if not 0 < self.least < self.most:
            raise ValueError(f"{self} needs 0 < least < most")

    def level(self, sigma: Float[Array, "*b"]) -> Level:
        return Level(jnp.log(sigma) / 4, jnp.ones_like(sigma), sigma)

    def at(self, u: Float[Array, "*b"]) -> Level:
        return self.level(self._sigma(u))

    def levels(self, n: int) -> Level:
        if n < 1:
            raise ValueError(f"a sampler makes at least 1 step, got {n}")
        sigma = self._sigma(np.linspace(1, 0, n))
        return _grid(np.append(np.log(sigma) / 4, 0), np.ones(n + 1), np.append(sigma, 0))

    def _sigma(self, u):
        low, high = self.least ** (1 / self.rho), self.most ** (1 / self.rho)
        return (low + u * (high - low)) ** self.rho


def _grid(*fields: np.ndarray) -> Level:
    """Computed in float64 and rounded once."""
    return Level(*(np.asarray(f, np.float32) for f in fields))


# Training: (schedule, key, shape) -> levels -------------------------------------------------------------------------


def uniform(schedule: Schedule, key: Key[Array, ""], shape: tuple[int, ...]) -> Level:
    """Each timestep alike; of EDM's sigmas those of its grid, "Karras"."""
    return schedule.at(jax.random.uniform(key, shape))


def logit_normal(
    schedule: Schedule, key: Key[Array, ""], shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0
) -> Level:
    """More of the middle: u = sigmoid(N(mean, std^2)) of the way to noise (Esser et al., 2024)."""
    return schedule.at(jax.nn.sigmoid(mean + std * jax.random.normal(key, shape)))


def log_normal(
    schedule: Schedule, key: Key[Array, ""], shape: tuple[int, ...], mean: float = 0.7, std: float = 1.6
) -> Level:
    """ln(sigma) ~ N(mean, std^2), unbounded, of `EDM`; the defaults are SVD's, Karras et al. have -1.2 and 1.2."""
    if not isinstance(schedule, EDM):
        name = type(schedule).__name__
        raise ValueError(f"log_normal draws sigmas, and {name} has timesteps: use uniform or logit_normal")
    return schedule.level(jnp.exp(mean + std * jax.random.normal(key, shape)))
