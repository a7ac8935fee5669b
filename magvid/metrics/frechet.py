"""FVD and KVD: how far the features of generated clips are from those of real ones, as distributions (Unterthiner et al., 2018, arXiv 1812.01717).

Numbers compare only where all of this is the same: frames of a clip and their rate, pixels, how these were brought to I3D's size (`prepare`), I3D's weights,
which real clips, and how many of both: with fewer than some thousand the distance of two halves of the same data is far from 0.
`magvid evaluate` writes them beside every number.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from magvid.metrics.frames import Arrays, gap_frames, spans, unit_range
from magvid.models.i3d import FEWEST, I3D, SIZE
from magvid.models.resize import resize_bilinear
from magvid.types import Groups, Params, UserError

ROWS = 1000  # of the kernel's matrix at a time


# Distances -----------------------------------------------------------------------------------------------------------


def frechet_distance(a: Float[Arrays, "n d"], b: Float[Arrays, "m d"]) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2) with unbiased covariances, float64; NaN of fewer than two rows.

    The last trace is the sum of the singular values of A B^T, where C = A^T A, and A is the triangle of the centred rows' QR decomposition:
    as exact with fewer rows than columns as with more, and no root of a matrix is taken.
    """
    if min(len(a), len(b)) < 2:
        return math.nan
    (mean_a, root_a), (mean_b, root_b) = _moments(a), _moments(b)
    apart = np.sum((mean_a - mean_b) ** 2)
    return float(apart + np.sum(root_a**2) + np.sum(root_b**2) - 2 * np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum())


def _moments(x: Float[Arrays, "n d"]) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "r d"]]:
    """(mean, a matrix A with A^T A the covariance)."""
    x = np.asarray(x, np.float64)
    mean = x.mean(axis=0)
    return mean, np.linalg.qr((x - mean) / math.sqrt(len(x) - 1), mode="r")


def kernel_distance(a: Float[Arrays, "n d"], b: Float[Arrays, "m d"]) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x y / d + 1)^3 (Binkowski et al., 2018), float64, which may be below 0; NaN
    of fewer than two rows.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if min(len(a), len(b)) < 2:
        return math.nan
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3
    total = lambda x, y: sum(kernel(x[i : i + ROWS], y).sum() for i in range(0, len(x), ROWS))
    within = lambda x: (total(x, x) - np.sum((np.sum(x * x, axis=1) / x.shape[1] + 1) ** 3)) / (len(x) * (len(x) - 1))
    return float(within(a) + within(b) - 2 * total(a, b) / (len(a) * len(b)))


# What I3D reads ------------------------------------------------------------------------------------------------------


def short_side(video: Float[Array, "*b h w 3"]) -> Float[Array, "*b 224 224 3"]:
    """The middle of frames whose shorter side is made 224, bilinear with half a pixel's corners: as VideoGPT's FVD, which MAVIN and AID report."""
    h, w = video.shape[-3:-1]
    scale = SIZE / min(h, w)
    tall, wide = (SIZE, math.ceil(w * scale)) if h < w else (math.ceil(h * scale), SIZE)
    top, left = (tall - SIZE) // 2, (wide - SIZE) // 2
    return resize_bilinear(video, (tall, wide))[..., top : top + SIZE, left : left + SIZE, :]


def stretched(video: Float[Array, "*b h w 3"]) -> Float[Array, "*b 224 224 3"]:
    """Whole frames, whatever their shape, by TensorFlow 1's bilinear: as MAGVIT's FVD, and that of the first authors."""
    return resize_bilinear(video, (SIZE, SIZE), "first")


# The metric ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Real:
    """Stands in a config for features of real clips that tools/reference_stats.py has kept, its `weights_file`."""


@dataclasses.dataclass(frozen=True)
class VideoDistance:
    """Metric of all batch["video"] against all batch["target"], both (b t h w 3), uint8 or float in [0, 1], of at least 9 frames.

    fvd, kvd            of whole clips, copied frames and all, as papers report them
    fvd_gap, kvd_gap    of the gaps that batch["given"] leaves (`frames.gap_frames`), each that has 9 frames or more is a clip: what is copied flatters

    net: I3D, and its weights: `weights_file`. prepare: pixels in [0, 1] -> those that the net reads. real: in place of the targets, `Real` with its
    `weights_file`; there are no gaps then. folds: clips are split in order into so many parts, targets likewise (of `real` each part is compared with
    all); `fvd` is the mean over parts, `fvd_std` their standard deviation (MAGVIT: 4).
    """

    net: nn.Module = I3D()
    prepare: Callable[[Array], Array] = short_side
    real: Real | None = None
    folds: int = 1
    params: Params | None = dataclasses.field(default=None, repr=False, compare=False)
    kept: Mapping[str, np.ndarray] | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self):
        if self.folds < 1:
            raise UserError(f"FVD with folds={self.folds}: give 1 or more")

    def with_weights(self, groups: Groups) -> "VideoDistance":
        """UserError where the net's are missing or another network's, or `real` is no file of features."""
        if "net" not in groups:
            raise UserError('FVD needs the weights of I3D: in the config, net=dict(target="magvid.models.i3d:I3D", weights_file="weights/i3d.npz")')
        check_weights(self.net, (jnp.zeros((1, FEWEST, SIZE, SIZE, 3)),), groups["net"], "I3D")
        return dataclasses.replace(self, params=jax.device_put(groups["net"]), kept=_checked(groups["real"]) if "real" in groups else None)

    def features(self, batch: Mapping[str, Num[Arrays, "b ..."]]) -> dict[str, Float[np.ndarray, "n 400"]]:
        """Logits of every clip, and of every gap that is long enough. UserError for too few frames, and where `real` was made otherwise than this metric makes them."""
        video, target = batch["video"], batch["target"]
        if self.kept is not None:
            self._check_kept(video.shape[1:4])
            return {"fvd": self.logits(video)}
        found = {"fvd": self.logits(video), "fvd_target": self.logits(target)}
        if gaps := [(i, *span) for i, row in enumerate(gap_frames(batch)) for span in spans(row) if span[1] - span[0] >= FEWEST]:
            for name, clips in (("fvd_gap", video), ("fvd_gap_target", target)):
                found[name] = np.concatenate([self.logits(np.asarray(clips[i])[None, start:stop]) for i, start, stop in gaps])
        return found

    def logits(self, video: Num[Arrays, "b t h w 3"]) -> Float[np.ndarray, "b 400"]:
        """uint8 or float in [0, 1] -> I3D's logits, which are the features. UserError for too few frames."""
        if video.shape[1] < FEWEST:
            raise UserError(f"FVD reads clips of at least {FEWEST} frames, and these have {video.shape[1]}: leave the metric out")
        return np.asarray(self._logits(self.params, jnp.asarray(video)))

    def result(self, features: Mapping[str, Float[np.ndarray, "n d"]]) -> dict[str, float]:
        """`fvd` and `kvd`, with `_gap` where there were gaps, with `_std` where there are folds; NaN where a part has fewer than two clips."""
        numbers = {}
        for end in ("", "_gap"):
            if f"fvd{end}" not in features:
                continue
            parts = np.array_split(features[f"fvd{end}"], self.folds)
            real = [self.kept["features"]] * self.folds if self.kept is not None else np.array_split(features[f"fvd{end}_target"], self.folds)
            for name, distance in (("fvd", frechet_distance), ("kvd", kernel_distance)):
                found = [distance(a, b) for a, b in zip(parts, real, strict=True)]
                numbers[f"{name}{end}"] = float(np.mean(found))
                if self.folds > 1:
                    numbers[f"{name}{end}_std"] = float(np.std(found))
        return numbers

    def label(self, clip: tuple[int, int, int]) -> dict[str, str]:
        """What features are made by: those of clips (t h w) of another label do not compare with them."""
        t, h, w = clip
        return dict(clip=f"{t}x{h}x{w}", prepare=_name(self.prepare), net=f"{type(self.net).__name__} {self._digest}")

    def _check_kept(self, clip: tuple[int, int, int]) -> None:
        for name, value in self.label(clip).items():
            if (other := str(self.kept[name])) != value:
                raise UserError(f"the kept features of real clips are of {name} {other}, and these of {name} {value}: make them anew with tools/reference_stats.py")

    @functools.cached_property
    def _digest(self) -> str:
        """12 hex digits of the net's numbers."""
        found = hashlib.sha256()
        for path, x in jax.tree_util.tree_leaves_with_path(self.params):
            found.update(jax.tree_util.keystr(path).encode() + np.asarray(x, np.float32).tobytes())
        return found.hexdigest()[:12]

    @functools.cached_property
    def _logits(self) -> Callable[[Params, Array], Array]:
        """Compiled once for each length and size; clip by clip, as a network of another's memory is beside it."""

        @jax.jit
        @jax.default_matmul_precision("highest")  # the same numbers on every device
        def logits(params, video):
            one = lambda clip: self.net.apply({"params": params}, 2 * self.prepare(unit_range(clip))[None] - 1).logits[0]
            return jax.lax.map(one, video)

        return logits


def check_weights(net: nn.Module, inputs: Sequence[Array], params: Params, name: str) -> None:
    """UserError where these are not the parameters of `net`, which reads arrays of the shapes of `inputs`."""
    wanted = jax.eval_shape(net.init, jax.random.key(0), *inputs).get("params", {})
    shapes = lambda tree: {jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}
    wanted, found = shapes(wanted), shapes(params)
    if wrong := [n for n in {**wanted, **found} if wanted.get(n) != found.get(n)]:
        raise UserError(
            f"the weights given for {name} are not its own: {wrong[0]} is {found.get(wrong[0], 'missing')} and should be {wanted.get(wrong[0], 'left out')}, "
            f"{len(wrong)} of {len(wanted)} differ; make the file with tools/convert_features.py"
        )


def _checked(kept: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """What tools/reference_stats.py wrote; UserError for anything else."""
    missing = {"clip", "prepare", "net", "features"} - set(kept)
    features = np.asarray(kept.get("features", 0))
    if missing or features.ndim != 2 or len(features) < 2 or not np.isfinite(features).all():
        why = f"has no {', '.join(sorted(missing))}" if missing else f"holds {features.shape} numbers, not all of them finite, or fewer than two clips"
        raise UserError(f"the file of features of real clips (`real`) {why}: make it with tools/reference_stats.py")
    return kept


def _name(prepare: Callable) -> str:
    """A function, as a config names it, and what it is given."""
    if isinstance(prepare, functools.partial):
        return " ".join([_name(prepare.func), *(f"{k}={v}" for k, v in prepare.keywords.items())])
    return getattr(prepare, "__name__", None) or repr(prepare)
