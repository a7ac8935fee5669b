"""Frame-by-frame fidelity: PSNR, SSIM and MS-SSIM, also of a gap's frames alone, and skill against a baseline.

PSNR = -10 log10(MSE) per frame, peak 1, then the mean over frames and clips. SSIM: Wang et al. 2004 on grey frames,
11-tap Gaussian window of sigma 1.5, 'valid' borders, K1 = 0.01, K2 = 0.03. Both as in the official MAGVIT evaluation;
SSIM also as skimage.metrics.structural_similarity(gaussian_weights=True, use_sample_covariance=False).
MS-SSIM: Wang et al. 2003, in colour, as pytorch_msssim.ms_ssim.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

GREY = (0.2125, 0.7154, 0.0721)  # luma weights of the official code and of skimage.color.rgb2gray
Arrays = Array | np.ndarray
TAPS, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # exponents of MS-SSIM, the finest scale first
SMALLEST = (TAPS - 1) * 2 ** (len(SCALES) - 1) + 1  # pixels that the window needs at the coarsest scale: 161
FLOOR = 1e-10  # of a frame's MSE: equal frames count 100 dB instead of making every mean infinite


@jax.jit
def psnr(a: Num[Arrays, "*b h w c"], b: Num[Arrays, "*b h w c"]) -> Float[Array, "*b"]:
    """Peak signal-to-noise ratio of each frame in dB; uint8, or float in [0, 1]. At most 100 dB."""
    error = jnp.square(unit_range(a) - unit_range(b)).mean(axis=(-3, -2, -1))
    return -10 * jnp.log10(jnp.maximum(error, FLOOR))


@jax.jit
def ssim(a: Num[Arrays, "*b h w 3"], b: Num[Arrays, "*b h w 3"]) -> Float[Array, "*b"]:
    """Structural similarity of each frame in [-1, 1]; uint8, or float in [0, 1]. ValueError below 11 x 11 pixels."""
    if min(a.shape[-3:-1]) < TAPS:
        raise ValueError(f"SSIM needs frames of at least {TAPS} x {TAPS} pixels, got {a.shape[-3]} x {a.shape[-2]}")
    a, b = (sum(weight * unit_range(x)[..., i] for i, weight in enumerate(GREY)) for x in (a, b))
    luminance, structure = _similarity(a, b)
    return (luminance * structure).mean(axis=(-2, -1))


@jax.jit
def ms_ssim(a: Num[Arrays, "*b h w c"], b: Num[Arrays, "*b h w c"]) -> Float[Array, "*b"]:
    """Multi-scale structural similarity of each frame in [0, 1], the mean over its channels; uint8, or float in [0, 1].

    ValueError below 161 x 161 pixels, where fewer scales would be another number of the same name.
    """
    if min(a.shape[-3:-1]) < SMALLEST:
        raise ValueError(
            f"the {len(SCALES)} scales of MS-SSIM need frames of at least {SMALLEST} x {SMALLEST} pixels, got "
            f"{a.shape[-3]} x {a.shape[-2]}: compare smaller ones by SSIM"
        )
    a, b = (jnp.moveaxis(unit_range(x), -1, -3) for x in (a, b))
    product = 1.0
    for exponent in SCALES[:-1]:
        product *= jnp.maximum(_similarity(a, b)[1].mean(axis=(-2, -1)), 0) ** exponent
        a, b = _halve(a), _halve(b)
    luminance, structure = _similarity(a, b)  # luminance counts at the coarsest scale only
    product *= jnp.maximum((luminance * structure).mean(axis=(-2, -1)), 0) ** SCALES[-1]
    return product.mean(axis=-1)


def _similarity(a: Float[Array, "*b h w"], b: Float[Array, "*b h w"]) -> tuple[Float[Array, "*b h2 w2"], ...]:
    """SSIM's two factors in every window: luminance; contrast and structure."""
    mean_a, mean_b, square_a, square_b, product = _blur(jnp.stack([a, b, a * a, b * b, a * b]))
    var_a, var_b, covariance = square_a - mean_a**2, square_b - mean_b**2, product - mean_a * mean_b
    c1, c2 = K1**2, K2**2
    return (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1), (2 * covariance + c2) / (var_a + var_b + c2)


def _halve(x: Float[Array, "*b h w"]) -> Float[Array, "*b h2 w2"]:
    """Means of 2 x 2 pixels; a row or column of zeros comes before an odd number of them."""
    *b, h, w = x.shape
    x = jnp.pad(x, [(0, 0)] * len(b) + [(h % 2, 0), (w % 2, 0)])
    return x.reshape(*b, (h + 1) // 2, 2, (w + 1) // 2, 2).mean(axis=(-3, -1))


def unit_range(video: Num[Arrays, "..."]) -> Float[Array, "..."]:
    """uint8, or float in [0, 1], as float32 in [0, 1]."""
    video = jnp.asarray(video)
    return video / jnp.float32(255) if video.dtype == jnp.uint8 else video.astype(jnp.float32)


def _blur(x: Float[Array, "*b h w"]) -> Float[Array, "*b h2 w2"]:
    """Separable Gaussian, without padding; shifted sums, because a convolution may run in reduced precision."""
    taps = np.exp(-0.5 * ((np.arange(TAPS) - TAPS // 2) / SIGMA) ** 2)
    taps /= taps.sum()
    h, w = x.shape[-2] - TAPS + 1, x.shape[-1] - TAPS + 1
    x = sum(float(k) * x[..., i : i + h, :] for i, k in enumerate(taps))
    return sum(float(k) * x[..., :, i : i + w] for i, k in enumerate(taps))


@dataclasses.dataclass(frozen=True)
class Frames:
    """Metric of batch["video"] against batch["target"], both (b t h w 3), uint8 or float in [0, 1]."""

    def features(self, batch: Mapping[str, Num[Arrays, "b t h w 3"]]) -> dict[str, Float[Array, "b t"]]:
        """PSNR (dB) and SSIM of every frame, on the device."""
        video, target = batch["video"], batch["target"]
        return {"psnr": psnr(video, target), "ssim": ssim(video, target)}

    def result(self, features: Mapping[str, Float[Arrays, "n t"]]) -> dict[str, float]:
        """Means over the frames of all clips: {"psnr": dB, "ssim": in [-1, 1]}."""
        return {name: float(np.asarray(values).mean(dtype=np.float64)) for name, values in features.items()}


def gap_frames(batch: Mapping[str, Num[Arrays, "b ..."]]) -> Bool[np.ndarray, "b t"]:
    """The frames of batch["video"] of which nothing is given (batch["given"], bool (b t h w 1)), in clips of which
    something is. Without "given" there are none.
    """
    if "given" not in batch:
        return np.zeros(batch["video"].shape[:2], bool)
    unknown = ~np.asarray(batch["given"], bool).any(axis=(2, 3, 4))
    return unknown & ~unknown.all(axis=1, keepdims=True)


def spans(chosen: Bool[np.ndarray, "t"]) -> list[tuple[int, int]]:
    """(start, stop) of each run of chosen frames."""
    edges = np.flatnonzero(np.diff(np.pad(chosen, 1).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def clip_means(values: Float[Arrays, "b t"], chosen: Bool[np.ndarray, "b t"]) -> Float[np.ndarray, "n"]:
    """Mean of each clip's chosen values; clips without any are left out."""
    rows = zip(np.asarray(values, np.float64), chosen, strict=True)
    return np.array([row[some].mean() for row, some in rows if some.any()])


def with_intervals(clips: Mapping[str, Float[np.ndarray, "n"]], resamples: int, seed: int) -> dict[str, float]:
    """{NAME: mean over clips}, and its 95 % interval {NAME_low, NAME_high}: the percentile bootstrap over clips,
    deterministic in `seed`.
    """
    numbers = {}
    for name, values in clips.items():
        low, high = np.percentile(_resample(values, resamples, seed), [2.5, 97.5])
        numbers |= {name: float(values.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}
    return numbers


def _resample(clips: Float[np.ndarray, "n *k"], resamples: int, seed: int) -> Float[np.ndarray, "resamples *k"]:
    """Means over as many clips, drawn with replacement."""
    return clips[np.random.default_rng(seed).integers(len(clips), size=(resamples, len(clips)))].mean(axis=1)


@dataclasses.dataclass(frozen=True)
class GapFrames:
    """Metric of batch["video"] against batch["target"], both (b t h w 3), uint8 or float in [0, 1], on the frames of the
    gap alone (see `gap_frames`): what is copied says nothing of an infilling. Says nothing where there is no gap.
    """

    resamples: int = 2000
    seed: int = 0

    def features(self, batch: Mapping[str, Num[Arrays, "b ..."]]) -> dict[str, Float[np.ndarray, "n"]]:
        """Means over the gap's frames of every clip that has one; MS-SSIM where frames are large enough for it."""
        gap = gap_frames(batch)
        if not gap.any():
            return {}
        measures = {"gap_psnr": psnr, "gap_ssim": ssim}
        if min(batch["video"].shape[2:4]) >= SMALLEST:
            measures["gap_ms_ssim"] = ms_ssim
        return {name: clip_means(f(batch["video"], batch["target"]), gap) for name, f in measures.items()}

    def result(self, features: Mapping[str, Float[np.ndarray, "n"]]) -> dict[str, float]:
        """`gap_psnr` (dB), `gap_ssim`, `gap_ms_ssim`, each the mean over clips with its 95 % interval."""
        return with_intervals(features, self.resamples, self.seed)


class Skill(NamedTuple):
    """Skill with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def skill(
    baseline: Num[Arrays, "b t h w c"],
    generated: Num[Arrays, "b t h w c"],
    reconstruction: Num[Arrays, "b t h w c"],
    target: Num[Arrays, "b t h w c"],
    mask: Bool[Arrays, "b t h w 1"] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Skill:
    """(MSE_baseline - MSE_generated) / (MSE_baseline - MSE_reconstruction): 0 = baseline, 1 = the tokenizer's limit.

    A skill score (Murphy 1988) whose perfect forecast is the reconstruction, the best that tokens can express. Each MSE
    pools the squared errors of all clips (a mean of ratios would be ruled by easy clips), over the pixels where mask is
    True. The interval is the percentile bootstrap over clips, deterministic in `seed`. NaN where the baseline is not
    worse than the reconstruction, because there is nothing to gain. Videos are uint8, or float in [0, 1].
    """
    errors = np.stack([_squared_error(video, target, mask) for video in (baseline, generated, reconstruction)], axis=1)
    return _bootstrap(errors, resamples, seed)


def _bootstrap(errors: Float[np.ndarray, "b 3"], resamples: int, seed: int) -> Skill:
    with np.errstate(invalid="ignore"):
        low, high = np.percentile(_ratio(_resample(errors, resamples, seed)), [2.5, 97.5])
    return Skill(float(_ratio(errors.sum(axis=0))), float(low), float(high))


def _ratio(sums: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n"]:
    """Sums, or means over clips, stand for MSEs: all three run over the same pixels, whose number cancels."""
    room = sums[..., 0] - sums[..., 2]
    return np.where(room > 0, (sums[..., 0] - sums[..., 1]) / np.where(room > 0, room, 1), np.nan)


def _squared_error(video: np.ndarray, target: np.ndarray, mask: np.ndarray | None) -> Float[np.ndarray, "b"]:
    """Sum over a clip's (masked) pixels, clip by clip so that float64 copies stay small."""
    if video.shape != target.shape or (mask is not None and mask.shape != (*target.shape[:-1], 1)):
        shapes = [video.shape, target.shape] + ([] if mask is None else [mask.shape])
        raise ValueError(f"videos must have the target's shape and a mask (b t h w 1), got {shapes}")
    sums = []
    for i in range(len(target)):
        difference = _unit64(video[i]) - _unit64(target[i])
        sums.append(np.sum(difference**2, where=True if mask is None else np.asarray(mask[i], bool)))
    return np.asarray(sums)


def _unit64(video: Num[Arrays, "..."]) -> Float[np.ndarray, "..."]:
    video = np.asarray(video)
    return video / 255.0 if video.dtype == np.uint8 else video.astype(np.float64)


def best_of(generated: Num[Arrays, "b n t h w c"], target: Num[Arrays, "b t h w c"]) -> np.ndarray:
    """Of n samples per clip the one of least squared error -> (b t h w c), usual where the future is open."""
    errors = [_squared_error(generated[:, i], target, None) for i in range(generated.shape[1])]
    return np.asarray(generated)[np.arange(len(target)), np.argmin(errors, axis=0)]


@dataclasses.dataclass(frozen=True)
class SkillScore:
    """Metric `skill` of batch["video"] over the baseline batch["condition"], with batch["reconstruction"] as its limit,
    all (b t h w 3) and against batch["target"]. batch["samples"] (b n t h w 3) adds the best of n. Says nothing where
    there is no condition, or one that gives nothing (batch["given"] is False everywhere): any picture beats that."""

    resamples: int = 2000
    seed: int = 0

    def features(self, batch: Mapping[str, Num[Arrays, "b ..."]]) -> dict[str, Float[np.ndarray, "b"]]:
        """Sums of squared errors of every clip."""
        if "condition" not in batch or not np.any(batch.get("given", True)):
            return {}
        target = batch["target"]
        errors = {name: _squared_error(batch[name], target, None) for name in ("condition", "video", "reconstruction")}
        samples = batch.get("samples")
        if samples is not None and samples.shape[1] > 1:
            errors["best"] = np.min(
                [_squared_error(samples[:, i], target, None) for i in range(samples.shape[1])], axis=0
            )
        return errors

    def result(self, features: Mapping[str, Float[np.ndarray, "n"]]) -> dict[str, float]:
        """`skill` with its 95 % interval `skill_low`, `skill_high`; likewise `best_skill` where there are several
        samples.
        """
        numbers = {}
        for prefix, name in (("", "video"), ("best_", "best")):
            if name in features:
                errors = np.stack([features["condition"], features[name], features["reconstruction"]], axis=1)
                found = _bootstrap(errors, self.resamples, self.seed)
                numbers |= {
                    f"{prefix}skill": found.value,
                    f"{prefix}skill_low": found.low,
                    f"{prefix}skill_high": found.high,
                }
        return numbers


@dataclasses.dataclass(frozen=True)
class GivenRegion:
    """Metric: how well batch["video"] keeps what was given, where batch["given"] (b t h w 1) is True, against
    batch["target"].

    The limit is batch["reconstruction"], what the tokenizer itself makes of these pixels. Says nothing where nothing is
    given."""

    def features(self, batch: Mapping[str, Num[Arrays, "b ..."]]) -> dict[str, Float[np.ndarray, "b"]]:
        """Sums of squared errors over the given pixels of every clip, and the number of their values."""
        if "given" not in batch:
            return {}
        errors = {
            name: _squared_error(batch[name], batch["target"], batch["given"]) for name in ("video", "reconstruction")
        }
        values = np.asarray(batch["given"], bool).sum(axis=(1, 2, 3, 4)) * batch["target"].shape[-1]
        return errors | {"values": values.astype(np.float64)}

    def result(self, features: Mapping[str, Float[np.ndarray, "n"]]) -> dict[str, float]:
        """`given_psnr` and `given_reconstruction_psnr` in dB, of the MSE pooled over clips; `given_gap` is what the
        second has more.
        """
        total = float(np.sum(features.get("values", 0.0)))
        if not total:
            return {}
        video, limit = (
            float(-10 * np.log10(max(np.sum(features[n]) / total, FLOOR))) for n in ("video", "reconstruction")
        )
        return {"given_psnr": video, "given_reconstruction_psnr": limit, "given_gap": limit - video}
