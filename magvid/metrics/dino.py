"""How much the subject of generated frames is the one that was told, by DINO; by CLIP see `metrics.clip.ClipText`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from magvid.metrics.clip import Subjects, likeness, subjects_of
from magvid.metrics.frames import Arrays, unit_range, with_intervals
from magvid.metrics.frechet import check_weights
from magvid.models.dino import DINO, SIZE, prepare
from magvid.types import Groups, Params, UserError


@dataclasses.dataclass(frozen=True)
class SubjectFidelity:
    """Metric of batch["video"] (b t h w 3) against the pictures of its subject that were told, batch["entities"] (b n h w 3) where batch["entity_valid"] (b n) holds, all
    uint8 or float in [0, 1].

    dino_subject    mean of the cosines of every frame with every picture, DreamBooth's "DINO" (Ruiz et al., 2023, section 4.2)

    Says nothing of clips without pictures, nor of edits, whose pictures are what stays. Subjects are told on black, frames have grounds: the number to compare with is
    that of the autoencoder's copy of the real clips, under `reconstruction`, not 1. net: DINO, and its weights: `weights_file`.
    """

    net: nn.Module = DINO()
    resamples: int = 2000
    seed: int = 0
    params: Params | None = dataclasses.field(default=None, repr=False, compare=False)

    def with_weights(self, groups: Groups) -> "SubjectFidelity":
        """UserError where the net's are missing, or another network's."""
        if "net" not in groups:
            raise UserError('DINO needs weights: in the config, net=dict(target="magvid.models.dino:DINO", weights_file="weights/dino.npz")')
        check_weights(self.net, (jnp.zeros((1, SIZE, SIZE, 3)),), groups["net"], "DINO")
        return dataclasses.replace(self, params=jax.device_put(groups["net"]))

    def features(self, batch: Mapping[str, Num[Arrays, "b ..."]]) -> dict[str, Float[np.ndarray, "n"]]:
        """Of every clip that was told pictures of a subject, in [-1, 1]."""
        if (subjects := subjects_of(batch)) is None:
            return {}
        return {"dino_subject": np.asarray(self._compare(self.params, jnp.asarray(batch["video"]), subjects))[subjects.told]}

    def result(self, features: Mapping[str, Float[np.ndarray, "n"]]) -> dict[str, float]:
        """The mean over clips with its 95 % interval."""
        return with_intervals(features, self.resamples, self.seed)

    @functools.cached_property
    def _compare(self) -> Callable[[Params, Array, Subjects], Array]:
        """(weights, videos, pictures) -> of every clip (b,); one after the other, as a network of another's memory is beside it."""

        @jax.jit
        @jax.default_matmul_precision("highest")  # the same numbers on every device
        def compare(params, video, subjects):
            encode = lambda images: self.net.apply({"params": params}, prepare(unit_range(images)))
            one = lambda clip: likeness(encode(clip[0]), encode(clip[1]), clip[2])
            return jax.lax.map(one, (video, subjects.pictures, subjects.valid))

        return compare
