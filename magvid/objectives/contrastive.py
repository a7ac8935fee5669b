"""Contrastive training of CLIP's two towers on videos with captions (Radford et al., 2021; CLIP4Clip, Luo et al., 2021)."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from magvid.objectives.vqgan import scale
from magvid.types import Groups

MAX_SCALE = math.log(100)  # of the cosines' learned logarithmic scale, as in CLIP


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """batch: {"video": uint8 (b t h w 3), "text_ids": int (b n)}; groups "clip", and "temporal" where given.

    The loss is the symmetric InfoNCE of all clips of a batch with all its captions; a pair of equal captions is no
    negative. A clip is the mean of its frames' embeddings: what frames show. What only their order tells (where
    something moves to) `temporal` (b t p) -> (b p) adds; the towers stay towers of single frames, for conditions and
    scores. Each microbatch is a batch of its own.

    Metrics: `text_to_video` and `video_to_text` are the shares of captions and of clips whose best match in the batch has
    the right caption; `retrieval_at_1` is the mean of both.
    """

    clip: nn.Module
    temporal: nn.Module | None = None

    def init(self, key: Array, batch: dict) -> Groups:
        keys = jax.random.split(key)
        frames = scale(batch["video"])
        groups = {"clip": self.clip.init(keys[0], frames[:, 0], batch["text_ids"])["params"]}
        if self.temporal:
            embeddings = jnp.zeros((1, frames.shape[1], self.clip.vision.projection))
            groups["temporal"] = self.temporal.init(keys[1], embeddings)["params"]
        return groups

    def loss(self, params: Groups, extra: dict, batch: dict, key: Array | None, step: Array | int, train: bool):
        videos, texts = self.embed_videos(params, batch["video"]), self.embed_texts(params, batch["text_ids"])
        scores = self.clip.apply({"params": params["clip"]}, videos, texts, method="scores")
        equal = equal_rows(batch["text_ids"])
        loss = contrastive_loss(scores, equal)
        text_to_video, video_to_text = retrieval_at_1(scores.T, equal), retrieval_at_1(scores, equal)
        metrics = dict(
            loss=loss,
            retrieval_at_1=(text_to_video + video_to_text) / 2,
            text_to_video=text_to_video,
            video_to_text=video_to_text,
            scale=jnp.exp(params["clip"]["logit_scale"]),
        )
        return {group: loss for group in ("clip", "temporal") if group in params}, (metrics, extra)

    def embed_videos(
        self, params: Groups, video: UInt8[Array, "b t h w 3"] | Float[Array, "b t h w 3"]
    ) -> Float[Array, "b p"]:
        """Of length 1. Float video is in [0, 1]."""
        video = scale(video).astype(params["clip"]["vision"]["position_embedding"].dtype)
        frames = self.clip.apply({"params": params["clip"]}, video, method="embed_frames")
        if self.temporal:
            return self.temporal.apply({"params": params["temporal"]}, frames)
        mean = jnp.mean(frames, axis=1)
        return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)

    def embed_texts(self, params: Groups, ids: Int[Array, "b n"]) -> Float[Array, "b p"]:
        """Of length 1."""
        return self.clip.apply({"params": params["clip"]}, ids, method="embed_texts")

    def after_step(self, params: Groups, extra: dict, key: Array) -> tuple[Groups, dict]:
        """Keeps the scale below 100."""
        bounded = jnp.minimum(params["clip"]["logit_scale"], MAX_SCALE)
        return {**params, "clip": {**params["clip"], "logit_scale": bounded}}, extra


def equal_rows(ids: Int[Array, "b n"]) -> Bool[Array, "b b"]:
    """Which two texts are the same."""
    return jnp.all(ids[:, None] == ids[None], axis=-1)


def contrastive_loss(scores: Float[Array, "b b"], equal: Bool[Array, "b b"]) -> Float[Array, ""]:
    """Mean over both directions of -log softmax of the diagonal; `equal` pairs beside it are left out."""
    own = jnp.eye(len(scores), dtype=bool)
    scores = jnp.where(equal & ~own, -jnp.inf, scores.astype(jnp.float32))
    right = jnp.diagonal(scores)
    directions = [jnp.mean(jax.nn.logsumexp(scores, axis=axis) - right) for axis in (0, 1)]
    return sum(directions) / 2


def retrieval_at_1(scores: Float[Array, "b b"], equal: Bool[Array, "b b"]) -> Float[Array, ""]:
    """Share of the rows whose highest score stands at their own column or one that is `equal` to it."""
    best = jnp.argmax(scores, axis=1)
    return jnp.mean(jnp.take_along_axis(equal, best[:, None], axis=1))
