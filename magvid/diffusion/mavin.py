"""Transition infilling (MAVIN; Zhang et al., 2024, arXiv 2405.18003): which frames of a clip are noised, and the noise that
sampling begins with.

The frames of a *gap* are noised and learned, all others stay clean in place. Frame `start` is the first of the gap, frame
`end` the first one after it, so that the boundary frames are start - 1 and end, and the gap has end - start frames.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from magvid.diffusion.schedules import Level, corrupt

# Noising: which frames stay clean -------------------------------------------------------------------------------------


@runtime_checkable
class Noising(Protocol):
    """`draw`: for training, clip by clip. `usual`: to sample, where nothing else is said. `starts`: where a gap of this length may
    begin, as in training; ValueError where none may. `predicts`: whether what is given are the first frames alone. `clean`: whether the
    model sees them clean, as it was trained to, or noised to the level of all others.
    """

    predicts: ClassVar[bool]
    clean: bool

    def draw(self, key: Key[Array, ""], b: int, t: int) -> Bool[Array, "b t"]: ...

    def usual(self, t: int) -> Bool[np.ndarray, "t"]: ...

    def starts(self, length: int, t: int) -> range: ...


@dataclasses.dataclass(frozen=True)
class Consecutive:
    """MAVIN's consecutive noising with variable-length sampling: one gap, `start` and `end` uniform in these ranges, both
    ends of a range included, independent of each other. Ranges of one number give gaps of one length (the ablation).

    The defaults are the released ones, for 32 frames: gaps of l = 2 ... 22 frames with P(l) = (11 - |l - 12|) / 121.
    `sample`: start and end of the usual gap. `per_batch`: one draw for the whole batch, as released.
    """

    start: Sequence[int] = (5, 15)
    end: Sequence[int] = (17, 27)
    sample: Sequence[int] = (10, 22)
    per_batch: bool = False
    predicts: ClassVar[bool] = False
    clean: ClassVar[bool] = True

    def __post_init__(self):
        ordered = 1 <= self.start[0] <= self.start[1] < self.end[0] <= self.end[1]
        if not ordered or not 1 <= self.sample[0] < self.sample[1]:
            given = ", ".join(f"{k}={list(getattr(self, k))}" for k in ("start", "end", "sample"))
            raise ValueError(
                f"{given}: a gap starts after the first frame and before it ends: start and end are ranges [low, high] with 1 <= start < end, and "
                "sample is [start, end]"
            )

    def draw(self, key, b, t):
        self._fits(t)
        n = 1 if self.per_batch else b
        bounds = [jax.random.randint(k, (n,), r[0], r[1] + 1) for k, r in zip(jax.random.split(key), (self.start, self.end))]
        return jnp.broadcast_to(between(*bounds, t), (b, t))

    def usual(self, t):
        self._fits(t, self.sample[1])
        return between(*self.sample, t)

    @property
    def lengths(self) -> tuple[int, int]:
        """The shortest and the longest gap."""
        return self.end[0] - self.start[1], self.end[1] - self.start[0]

    def starts(self, length, t):
        self._fits(t, 1)
        low, high = max(self.start[0], self.end[0] - length), min(self.start[1], self.end[1] - length, t - 1 - length)
        if low > high:
            last = min(self.end[1], t - 1)
            least, most = max(self.end[0] - self.start[1], 1), last - self.start[0]
            raise ValueError(f"a gap of {length} frames is out of range: this model fills gaps of {least} to {most} of {t} frames")
        return range(low, high + 1)

    def _fits(self, t: int, end: int | None = None) -> None:
        if (last := end or self.end[1]) >= t:
            raise ValueError(f"a gap that ends before frame {last} has no frame behind it in a clip of {t}: set start and end")


@dataclasses.dataclass(frozen=True)
class Scattered:
    """BERT-style masking, the paper's ablation: frames to predict and frames given alternate at random.

    Each frame but the first and the last is noised with probability `share`, and one where that draws none; its default noises as many
    of 32 as `Consecutive` does on the average. The paper does not say how it draws them. `sample`: start and end of the usual gap.
    """

    share: float = 0.4
    sample: Sequence[int] = (10, 22)
    predicts: ClassVar[bool] = False
    clean: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share}: a share of the frames is noised, above 0 and at most 1")

    def draw(self, key, b, t):
        edge = (jnp.arange(t) == 0) | (jnp.arange(t) == t - 1)
        known = (jax.random.uniform(key, (b, t)) >= self.share) | edge
        one = jax.random.randint(jax.random.fold_in(key, 1), (b, 1), 1, t - 1) != jnp.arange(t)  # of a clip without any
        return jnp.where(known.all(axis=1, keepdims=True), one, known)

    def usual(self, t):
        return Consecutive(sample=self.sample).usual(t)

    def starts(self, length, t):
        if not 0 < length < t - 1:
            raise ValueError(f"a gap of {length} frames is out of range: this model fills gaps of 1 to {t - 2} of {t} frames")
        return range(1, t - length)


@dataclasses.dataclass(frozen=True)
class First:
    """The first `frames` are given: the action model of MAVIN, which begins with a picture."""

    frames: int = 1
    clean: bool = True
    predicts: ClassVar[bool] = True

    def draw(self, key, b, t):
        return jnp.broadcast_to(jnp.asarray(self.usual(t)), (b, t))

    def usual(self, t):
        if not 0 < self.frames < t:
            raise ValueError(f"{self.frames} frames are given of a clip of {t}: give at least one, and leave one")
        return np.arange(t) < self.frames

    def starts(self, length, t):
        raise ValueError(f"a gap of {length} frames: this model is given the first {self.frames} frames and fills no gaps")


def between(start: Int[Array, "*b"] | int, end: Int[Array, "*b"] | int, t: int) -> Bool[Array, "*b t"]:
    """Which of t frames lie outside of the gap; a numpy array where start and end are numbers."""
    start, end = (x[..., None] if np.ndim(x) else x for x in (start, end))
    return (np.arange(t) < start) | (np.arange(t) >= end)


def gap_of(known: Bool[np.ndarray, "t"]) -> tuple[int, int]:
    """start and end of the one gap; ValueError where there is none, or several."""
    edges = np.flatnonzero(np.diff(known.astype(np.int8)))
    if len(edges) != 2 or not known[0]:
        raise ValueError(f"frames given: {''.join('.x'[int(k)] for k in known)}; there must be one gap, between given frames")
    return int(edges[0]) + 1, int(edges[1]) + 1


def describe(known: Bool[Array, "b t"]) -> dict[str, Int[Array, "b"]]:
    """What the network is told of the gap: "start" and "end" of the noised frames from the first to the last, "length": how
    many there are. Where no given frame follows, "end" is t.
    """
    t, noised = known.shape[1], ~known
    start, end = jnp.argmax(noised, axis=1), t - jnp.argmax(noised[:, ::-1], axis=1)
    return dict(start=start, end=end, length=jnp.sum(noised, axis=1))


def nearest_known(known: Bool[Array, "b t"]) -> tuple[Int[Array, "b t"], Int[Array, "b t"]]:
    """The nearest given frame of each frame, of two the earlier one, and how far away it is."""
    frames = jnp.arange(known.shape[1])
    distance = jnp.abs(frames[:, None] - frames)  # (t t)
    distance = jnp.where(known[:, None], distance, known.shape[1])
    return jnp.argmin(distance, axis=-1), jnp.min(distance, axis=-1)


def hold(clean: Float[Array, "b t h w c"], known: Bool[Array, "b t"]) -> Float[Array, "b t h w c"]:
    """Each frame as its nearest given one, of two the earlier."""
    return jnp.take_along_axis(clean, nearest_known(known)[0][..., None, None, None], axis=1)


def interpolate(clean: Float[Array, "b t h w c"], known: Bool[Array, "b t"]) -> Float[Array, "b t h w c"]:
    """Each frame linear between the given ones before and after it; beyond the last one, that one."""
    t = known.shape[1]
    frames = jnp.arange(t)
    before = jax.lax.cummax(jnp.where(known, frames, -1), axis=1)
    after = jax.lax.cummin(jnp.where(known, frames, t), axis=1, reverse=True)
    before, after = jnp.where(before < 0, after, before), jnp.where(after == t, before, after)
    weight = jnp.where(after > before, (frames - before) / jnp.maximum(after - before, 1), 0)[..., None, None, None]
    pick = lambda index: jnp.take_along_axis(clean, index[..., None, None, None], axis=1)
    return pick(before) + weight * (pick(after) - pick(before))


# Gaussian filter mixer: what sampling begins with -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Mixer(abc.ABC):
    """x = low pass(alpha b + sigma noise) + high pass(noise) in the gap, where b is the nearest boundary frame's latent and
    both have the same noise; outside of it the clean latents.

    `level`: of the noise on b, a timestep (or sigma); None: where sampling begins.
    """

    level: float | None = 999

    def __call__(
        self, clean: Float[Array, "b t h w c"], known: Bool[Array, "b t"], noise: Float[Array, "b t h w c"], s: Level
    ) -> Float[Array, "b t h w c"]:
        boundary = hold(clean, known)
        spread = jnp.sqrt(jnp.square(s.alpha) + jnp.square(s.sigma))  # of noise that sampling begins with; 1 for timesteps
        x = noise * spread + self.low_pass(corrupt(boundary, noise, s) - noise * spread, known)
        return jnp.where(known[..., None, None, None], clean, x)

    @abc.abstractmethod
    def low_pass(self, x: Float[Array, "b t h w c"], known: Bool[Array, "b t"]) -> Float[Array, "b t h w c"]:
        """What is kept of x; of the gap alone it matters."""

    def check(self, known: Bool[np.ndarray, "t"]) -> None:
        """ValueError for a gap that this form cannot do."""


@dataclasses.dataclass(frozen=True)
class FrameMixer(Mixer):
    """As the paper describes it ("frame2d"): each frame is filtered over its own height and width. Beside the boundary the
    cut-off is `cutoff`, and `decay` less for every frame further away; at 0 the frame begins as noise alone.
    """

    cutoff: float = 0.6
    decay: float = 0.1

    def __post_init__(self):
        _not_negative(self, "cutoff", "decay")

    def low_pass(self, x, known):
        _, distance = nearest_known(known)
        cutoffs = jnp.maximum(self.cutoff - self.decay * (distance - 1), 0)
        gain = gaussian(radius(*x.shape[2:4]), cutoffs[..., None, None])
        return _filtered(x, gain[..., None], axes=(2, 3))


@dataclasses.dataclass(frozen=True)
class ReleasedMixer(Mixer):
    """As the released code has it ("official3d"): one filter over time, height and width, whose falling cut-offs stand at
    the temporal *frequencies* number start ... end - 1, while all others are blocked. So it keeps much the same of every frame.

    Cut-offs below 0 act as their absolute value; where one is 0, the released code divides by it, and `check` refuses.
    """

    cutoff: float = 0.6
    decay: float = 0.1

    def __post_init__(self):
        _not_negative(self, "cutoff", "decay")

    def low_pass(self, x, known):
        t, h, w = x.shape[1:4]
        gap = describe(known)
        place, length = jnp.arange(t) - gap["start"][:, None], gap["length"][:, None]
        table = jnp.asarray(np.float32(self.cutoffs(2 * t)[:t]))  # falling; float64 until here, as released
        back = 2 * (length // 2) - 1 - place
        steps = jnp.where(place < length // 2, place, jnp.maximum(back, 0))  # an odd gap's last one is the first again
        gain = gaussian(radius(t, h, w), table[jnp.clip(steps, 0, t - 1)][..., None, None])
        return _filtered(x, jnp.where(known[..., None, None], 0, gain)[..., None], axes=(1, 2, 3))

    def cutoffs(self, length: int) -> list[float]:
        """Of a gap, as the released code computes them."""
        half = [self.cutoff - i * self.decay for i in range(length // 2)]
        return half + half[::-1] + [self.cutoff] * (length % 2)

    def check(self, known):
        start, end = gap_of(known)
        if 0 in self.cutoffs(end - start):
            most = next((n for n in range(end - start, 0, -1) if 0 not in self.cutoffs(n)), 0)
            raise ValueError(
                f"with cutoff={self.cutoff:g} and decay={self.decay:g} the released filter divides by zero in a gap of {end - start} "
                f"frames: it can do up to {most}; use FrameMixer, or another cutoff"
            )


@dataclasses.dataclass(frozen=True)
class FreeInit(Mixer):
    """FreeInit's constant filter ("freeinit3d"; Wu et al., 2023) over time, height and width: `space` and `time` are its
    cut-offs. MAVIN's action model begins so with 0.25 and level 850.
    """

    space: float = 0.25
    time: float = 0.25

    def __post_init__(self):
        if not (self.space > 0 and self.time > 0):
            raise ValueError(f"space={self.space} and time={self.time} are cut-offs above 0; without a filter set no mixer")

    def low_pass(self, x, known):
        gain = gaussian(radius(*x.shape[1:4], stretch=self.space / self.time), jnp.asarray(self.space))
        return _filtered(x, gain[..., None], axes=(1, 2, 3))


def _not_negative(mixer: Mixer, *names: str) -> None:
    for name in names:
        if not getattr(mixer, name) >= 0:
            raise ValueError(f"{name}={getattr(mixer, name)}: give a number of at least 0")


def radius(*sizes: int, stretch: float = 1.0) -> Float[np.ndarray, "..."]:
    """Squared distance from frequency 0 in units of half the sampling rate, u = 2k/n - 1 along each axis of n shifted
    frequencies, as FreeInit writes them (an odd n is off by 1/n). The first of three axes counts `stretch` times as far.
    """
    axes = [2 * np.arange(n) / n - 1 for n in sizes]
    if len(sizes) == 3:
        axes[0] = stretch * axes[0]
    return np.float32(sum(np.square(u) for u in np.meshgrid(*axes, indexing="ij")))


def gaussian(distance: Float[np.ndarray, "..."], cutoff: Float[Array, "..."]) -> Float[Array, "..."]:
    """exp(-distance / (2 cutoff^2)), 0 where the cut-off is 0."""
    safe = jnp.where(cutoff == 0, 1, cutoff)
    return jnp.where(cutoff == 0, 0, jnp.exp(-distance / (2 * jnp.square(safe))))


def _filtered(x: Float[Array, "b t h w c"], gain: Array, axes: tuple[int, ...]) -> Float[Array, "b t h w c"]:
    """Real part of x with its shifted frequencies along `axes` times `gain`."""
    shifted = jnp.fft.fftshift(jnp.fft.fftn(x, axes=axes), axes=axes) * gain
    return jnp.fft.ifftn(jnp.fft.ifftshift(shifted, axes=axes), axes=axes).real
