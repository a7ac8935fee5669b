"""Inception Score of videos by C3D (Saito et al., TGAN, 2017): how sure a classifier is of each generated clip, and how many classes they have together.

It knows no real clips, and says something of UCF-101's classes alone, which C3D was fine-tuned on.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num
from scipy.special import log_softmax

from magvid.metrics.frechet import check_weights
from magvid.metrics.frames import Arrays, unit_range
from magvid.models.c3d import C3D, FRAMES, SIZE
from magvid.models.resize import resize_bilinear
from magvid.types import Groups, Params, UserError


def inception_score(logits: Float[Arrays, "n k"]) -> float:
    """exp of the mean of KL(p(y|x) || p(y)), float64; from 1, of one class or of unsure ones, to k."""
    log_p = log_softmax(np.asarray(logits, np.float64), axis=1)
    p = np.exp(log_p)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (log_p - np.log(p.mean(axis=0))), 0)
    return float(np.exp(terms.sum(axis=1).mean()))


@dataclasses.dataclass(frozen=True)
class InceptionScore:
    """Metric of batch["video"] (b 16 h w 3), uint8 or float in [0, 1], brought to 112x112 pixels (bilinear, aligned corners, as MAGVIT's).

    net: C3D, and its weights: `weights_file`. folds: clips are split in order into so many parts; the score is the mean over them.
    """

    net: nn.Module = C3D()
    folds: int = 1
    params: Params | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self):
        if self.folds < 1:
            raise UserError(f"the Inception Score with folds={self.folds}: give 1 or more")

    def with_weights(self, groups: Groups) -> "InceptionScore":
        """UserError where the net's are missing, or another network's."""
        if "net" not in groups:
            raise UserError('the Inception Score needs the weights of C3D: in the config, net=dict(target="magvid.models.c3d:C3D", weights_file="weights/c3d.npz")')
        check_weights(self.net, (jnp.zeros((1, FRAMES, SIZE, SIZE, 3)),), groups["net"], "C3D")
        return dataclasses.replace(self, params=jax.device_put(groups["net"]))

    def features(self, batch: Mapping[str, Num[Arrays, "b ..."]]) -> dict[str, Float[np.ndarray, "b 101"]]:
        """Logits of every clip. UserError for clips that have not 16 frames."""
        video = batch["video"]
        if video.shape[1] != FRAMES:
            raise UserError(f"the Inception Score reads clips of {FRAMES} frames, and these have {video.shape[1]}: leave the metric out")
        return {"inception_logits": np.asarray(self._logits(self.params, jnp.asarray(video)))}

    def result(self, features: Mapping[str, Float[np.ndarray, "n k"]]) -> dict[str, float]:
        """`inception_score`, and the standard deviation over folds where there are several, `inception_score_std`; NaN where a part has fewer than two clips."""
        parts = np.array_split(features["inception_logits"], self.folds)
        found = [inception_score(part) if len(part) > 1 else math.nan for part in parts]
        return {"inception_score": float(np.mean(found))} | ({"inception_score_std": float(np.std(found))} if self.folds > 1 else {})

    @functools.cached_property
    def _logits(self) -> Callable[[Params, Array], Array]:
        @jax.jit
        @jax.default_matmul_precision("highest")  # the same numbers on every device
        def logits(params, video):
            one = lambda clip: self.net.apply({"params": params}, resize_bilinear(unit_range(clip)[None], (SIZE, SIZE), "all"))[0]
            return jax.lax.map(one, video)

        return logits
