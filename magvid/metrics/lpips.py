"""LPIPS of generated frames against the real ones; see `magvid.models.lpips`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from magvid.metrics.frames import Arrays, clip_means, gap_frames, unit_range, with_intervals
from magvid.metrics.frechet import check_weights
from magvid.models.lpips import LPIPS, SMALLEST
from magvid.types import Groups, Params, UserError


@dataclasses.dataclass(frozen=True)
class PerceptualDistance:
    """Metric of batch["video"] against batch["target"], both (b t h w 3), uint8 or float in [0, 1], at their own size.

    lpips       mean over all frames of a clip
    gap_lpips   over the frames of its gap (`frames.gap_frames`), in clips that have one: what MAVIN reports, by backbone="squeeze"

    net: LPIPS, and its weights: `weights_file`, of the same backbone.
    """

    net: LPIPS = LPIPS()
    resamples: int = 2000
    seed: int = 0
    params: Params | None = dataclasses.field(default=None, repr=False, compare=False)

    def with_weights(self, groups: Groups) -> "PerceptualDistance":
        """UserError where the net's are missing, or another network's."""
        if "net" not in groups:
            raise UserError('LPIPS needs weights: in the config, net=dict(target="magvid.models.lpips:LPIPS", backbone="alex", weights_file="weights/lpips.npz")')
        least = SMALLEST[self.net.backbone]
        pictures = jnp.zeros((1, 1, least, least, 3))
        check_weights(self.net, (pictures, pictures), groups["net"], f"LPIPS by {self.net.backbone}")
        return dataclasses.replace(self, params=jax.device_put(groups["net"]))

    def features(self, batch: Mapping[str, Num[Arrays, "b ..."]]) -> dict[str, Float[np.ndarray, "n"]]:
        """Of every clip, and of every clip that has a gap. ValueError for frames that are too small."""
        found = np.asarray(self._compare(self.params, jnp.asarray(batch["video"]), jnp.asarray(batch["target"])))
        gap = gap_frames(batch)
        return {"lpips": found.mean(axis=1, dtype=np.float64)} | ({"gap_lpips": clip_means(found, gap)} if gap.any() else {})

    def result(self, features: Mapping[str, Float[np.ndarray, "n"]]) -> dict[str, float]:
        """The mean of each over clips with its 95 % interval."""
        return with_intervals(features, self.resamples, self.seed)

    @functools.cached_property
    def _compare(self) -> Callable[[Params, Array, Array], Array]:
        """(weights, video, target) -> of every frame (b t); clip by clip, as a network of another's memory is beside it."""

        @jax.jit
        @jax.default_matmul_precision("highest")  # the same numbers on every device
        def compare(params, video, target):
            one = lambda clips: self.net.apply({"params": params}, *(unit_range(clip)[None] for clip in clips))[0]
            return jax.lax.map(one, (video, target))

        return compare
