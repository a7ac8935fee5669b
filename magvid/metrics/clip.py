"""CLIP-RS and CLIP's similarity to the real frames, MAVIN's measures of a generated transition; and how well the frames of a video fit its text and each
other, as editing and text-to-video are measured.

CLIP-RS: how alike a frame and the next one are, c_i = cos(frame i, frame i + 1), should be what it is in the real clip: the
score is the mean of min(c, c_real) / max(c, c_real) over the gap's frames and the given ones beside it, 1 at best. Two
forms:

corrected   the frames' projected embeddings, as the paper describes it
released    the last hidden states, with cosines over the axis of the *tokens*, one for each of their dimensions: what
            the published code computes (cosine_similarity of (n, tokens, width) takes axis 1)
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from magvid.metrics.frames import Arrays, clip_means, gap_frames, unit_range, with_intervals
from magvid.models.clip import CLIP, shortest_side
from magvid.types import Groups, Params, UserError

EPSILON = 1e-8  # of a vector's length, as in torch's cosine_similarity


def cosine(a: Float[Array, "..."], b: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """Of the angle between vectors along `axis`; 0 where one of them is 0."""
    length = lambda x: jnp.maximum(jnp.linalg.norm(x, axis=axis), EPSILON)
    return jnp.sum(a * b, axis=axis) / (length(a) * length(b))


def likeness(frames: Float[Array, "*b t d"], pictures: Float[Array, "*b n d"], valid: Bool[Array, "*b n"]) -> Float[Array, "*b"]:
    """Mean of the cosines of every frame with every picture that there is, of their embeddings; 0 where there is none."""
    cosines = cosine(frames[..., :, None, :], pictures[..., None, :, :]).mean(axis=-2)
    return jnp.sum(cosines * valid, axis=-1) / jnp.maximum(jnp.sum(valid, axis=-1), 1)


class Subjects(NamedTuple):
    """Pictures of what is to be seen in each of b clips, and which of them there are."""

    pictures: Num[np.ndarray, "b n h w 3"]
    valid: Bool[np.ndarray, "b n"]

    @property
    def told(self) -> Bool[np.ndarray, "b"]:
        """Which clips have any."""
        return self.valid.any(axis=1)


def subjects_of(batch: Mapping[str, Num[Arrays, "b ..."]]) -> Subjects | None:
    """batch["entities"] where batch["entity_valid"], without the places that no clip fills; None without any. The pictures of an edit say what
    stays (batch["stays"]): none of them is of a subject.
    """
    if "entities" not in batch:
        return None
    valid = np.asarray(batch["entity_valid"], bool)
    if "stays" in batch:
        valid = valid & ~np.asarray(batch["stays"], bool).any(axis=(1, 2, 3))[:, None]
    if not (filled := valid.any(axis=0)).any():
        return None
    return Subjects(np.asarray(batch["entities"])[:, filled], valid[:, filled])


def relative_smoothness(pred: Float[Array, "*b t d"], real: Float[Array, "*b t d"]) -> Float[Array, "*b t-1"]:
    """min / max of the two clips' cosines between each frame's embedding and the next's; 0 where none is above 0."""
    p, r = (cosine(x[..., :-1, :], x[..., 1:, :]) for x in (pred, real))
    most = jnp.maximum(p, r)
    return jnp.where(most > 0, jnp.minimum(p, r) / jnp.where(most > 0, most, 1), 0)


def released_smoothness(pred: Float[Array, "*b t n d"], real: Float[Array, "*b t n d"]) -> Float[Array, "*b t-1"]:
    """The same of the frames' hidden states as the published code has it: cosines over the tokens, unguarded."""
    p, r = (cosine(x[..., :-1, :, :], x[..., 1:, :, :], axis=-2) for x in (pred, real))
    return (jnp.minimum(p, r) / jnp.maximum(p, r)).mean(axis=-1)


def released_similarity(pred: Float[Array, "*b t n d"], real: Float[Array, "*b t n d"]) -> Float[Array, "*b t"]:
    """Cosines between a frame's hidden states and the real one's over the tokens, the mean over their dimensions."""
    return cosine(pred, real, axis=-2).mean(axis=-1)


@dataclasses.dataclass(frozen=True)
class ClipSmoothness:
    """Metric of batch["video"] against batch["target"], both (b t h w 3), uint8 or float in [0, 1], in the gap that
    batch["given"] leaves (see `frames.gap_frames`). A clip may have several gaps, and one at an end has one neighbour.
    Says nothing where there is no gap.

    vision: a tower of `models.clip` with a projection, and its weights: a reference to a run in the config. prepare:
    (images (b h w 3) in [0, 1], size) -> what the tower reads. MAVIN's numbers are those of CLIP ViT-L/14, prepared so.
    """

    vision: nn.Module
    prepare: Callable[[Array, tuple[int, int]], Array] = shortest_side
    resamples: int = 2000
    seed: int = 0
    params: Params | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self):
        if self.vision.projection is None:
            raise UserError(
                "CLIP-RS compares projected embeddings, and this tower has no projection: convert one that has, "
                'clip_l_vision_projected, or take part="clip.vision" of a run with both towers'
            )

    def with_weights(self, groups: Groups) -> "ClipSmoothness":
        if "vision" not in groups:
            raise UserError('CLIP-RS needs the weights of its tower: in the config, vision=dict(run=..., part="clip.vision")')
        return dataclasses.replace(self, params=jax.device_put(groups["vision"]))

    def features(self, batch: Mapping[str, Num[Arrays, "b ..."]]) -> dict[str, Float[np.ndarray, "n"]]:
        """Means over the gaps of every clip that has one."""
        gap = gap_frames(batch)
        if not gap.any():
            return {}
        found = self._compare(self.params, batch["video"], batch["target"])
        pairs = gap[:, :-1] | gap[:, 1:]
        both = np.pad(pairs, [(0, 0), (0, 1)]) | np.pad(pairs, [(0, 0), (1, 0)])  # the gap and its neighbours
        chosen = dict(clip_rs=pairs, clip_rs_released=pairs, clip_outer=gap, clip_outer_released=both)
        return {name: clip_means(found[name], frames) for name, frames in chosen.items()}

    def result(self, features: Mapping[str, Float[np.ndarray, "n"]]) -> dict[str, float]:
        """`clip_rs` and `clip_outer` (cosine with the real frame, mean over the gap), and `clip_rs_released` and
        `clip_outer_released` (also over the gap's neighbours), each the mean over clips with its 95 % interval.
        """
        return with_intervals(features, self.resamples, self.seed)

    @functools.cached_property
    def _compare(self) -> Callable[[Params, Array, Array], dict[str, Array]]:
        """(weights, video, target) -> {name: of every frame, or pair of neighbours, of every clip}; compiled once."""

        @jax.jit
        @jax.default_matmul_precision("highest")  # the same numbers on every device
        def compare(params, video, target):
            both = jnp.stack([unit_range(video), unit_range(target)])
            # one after the other: half the memory, and half as much to compile
            embeddings, tokens = jax.lax.map(lambda x: self._encode(params, x), both)
            return dict(
                clip_rs=relative_smoothness(*embeddings),
                clip_rs_released=released_smoothness(*tokens),
                clip_outer=cosine(*embeddings),
                clip_outer_released=released_similarity(*tokens),
            )

        return compare

    def _encode(
        self, params: Params, video: Float[Array, "b t h w 3"]
    ) -> tuple[Float[Array, "b t p"], Float[Array, "b t n d"]]:
        """The frames' embeddings and hidden states, float32."""
        images = self.prepare(video.reshape(-1, *video.shape[2:]), tuple(self.vision.image))
        found = self.vision.apply({"params": params}, images)
        by_frame = lambda x: x.astype(jnp.float32).reshape(*video.shape[:2], *x.shape[1:])
        return by_frame(found.embedding), by_frame(found.tokens)


@dataclasses.dataclass(frozen=True)
class ClipText:
    """Metric of batch["video"] (b t h w 3), uint8 or float in [0, 1], and its text, batch["text_ids"] (b n). Says nothing where there is no text.

    clip_text           cosine of a frame's embedding and the text's: "textual alignment" of edits, CLIPSIM (Wu et al., GODIVA, 2021, arXiv 2104.14806)
    clip_consistency    cosine of a frame's embedding and the next one's: "frame consistency" (Wu et al., Tune-A-Video, 2023, arXiv 2212.11565)

    clip_subject        cosines of every frame's embedding with those of the pictures of a subject that were told, batch["entities"] (b n h w 3) where batch["entity_valid"]
                        (b n) holds: "CLIP-I" (Ruiz et al., DreamBooth, 2023, arXiv 2208.12242); where there are such and it is no edit

    All are means over the frames of a clip; papers give the first two times 100. clip: both towers, and their weights: a reference to a run in the config. Its
    vocabulary is that of the ids: OpenCLIP's is CLIP's, and what fills them up behind the end of a text is not read. prepare: as in `ClipSmoothness`.
    """

    clip: CLIP
    prepare: Callable[[Array, tuple[int, int]], Array] = shortest_side
    resamples: int = 2000
    seed: int = 0
    params: Params | None = dataclasses.field(default=None, repr=False, compare=False)

    def with_weights(self, groups: Groups) -> "ClipText":
        """UserError where there are no weights of the group "clip"."""
        if "clip" not in groups:
            raise UserError("CLIP's scores need the weights of both towers: in the config, clip=dict(run=...)")
        return dataclasses.replace(self, params=jax.device_put(groups["clip"]))

    def features(self, batch: Mapping[str, Num[Arrays, "b ..."]]) -> dict[str, Float[np.ndarray, "n"]]:
        """Of every clip, and of every one that was told a subject, cosines in [-1, 1]."""
        if "text_ids" not in batch:
            return {}
        subjects = subjects_of(batch)
        found = {name: np.asarray(value) for name, value in self._compare(self.params, batch["video"], batch["text_ids"], subjects).items()}
        return found | ({"clip_subject": found["clip_subject"][subjects.told]} if subjects else {})

    def result(self, features: Mapping[str, Float[np.ndarray, "n"]]) -> dict[str, float]:
        """The mean of each over clips with its 95 % interval; no `clip_consistency` of single frames."""
        return with_intervals(features, self.resamples, self.seed)

    @functools.cached_property
    def _compare(self) -> Callable[[Params, Array, Array, Subjects | None], dict[str, Array]]:
        """(weights, video, ids, pictures) -> {name: of every clip}; compiled for each number of pictures."""

        @jax.jit
        @jax.default_matmul_precision("highest")  # the same numbers on every device
        def compare(params, video, ids, subjects):
            apply = functools.partial(self.clip.apply, {"params": params})
            read = lambda images: self.prepare(unit_range(images).reshape(-1, *images.shape[2:]), tuple(self.clip.vision.image))
            embed = lambda images: apply(read(images), method="embed_images").reshape(*images.shape[:2], -1)
            frames = embed(video)
            text = apply(ids, method="embed_texts")
            found = dict(clip_text=cosine(frames, text[:, None]).mean(axis=1))
            if video.shape[1] > 1:
                found["clip_consistency"] = cosine(frames[:, :-1], frames[:, 1:]).mean(axis=1)
            if subjects is not None:
                found["clip_subject"] = likeness(frames, embed(subjects.pictures), subjects.valid)
            return found

        return compare
