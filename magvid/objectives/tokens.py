"""What all objectives on the tokens of a frozen tokenizer share: tasks, conditions, prefixes, reconstruction."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from magvid.masked import tasks as task_table
from magvid.masked.commit import Conditioning
from magvid.objectives.vqgan import cut, scale
from magvid.types import Groups, Params, Vocab

ALL_TASKS = tuple(task_table.TASKS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenObjective:
    """batch: {"video": uint8 (b t h w 3), "label": int (b,), "task": int (b,) index into `tasks`}.

    For the loss, "ids" and "cond_ids" (b t' h' w') may stand in place of "video": the tokens of a cache, of clips of the
    size `clip` (t h w); the tokenizer is not run then.

    Groups: "tokenizer" (frozen) and "transformer". `decoding` are arguments of the function that samples tokens;
    `overlap` is the number of frames at the end of a window that the next window of a long video is predicted from. A
    subclass has `loss` and `sample_ids`.
    """

    tokenizer: nn.Module
    transformer: nn.Module
    vocab: Vocab
    tasks: Sequence[str | task_table.Task] = ALL_TASKS
    conditioning: Conditioning
    decoding: Mapping = dataclasses.field(default_factory=dict)
    clip: tuple[int, int, int] | None = None
    overlap: int = 1
    trained_tasks: Sequence[str | task_table.Task] | None = None  # of `with_tasks`: those that it chose from

    keeps = "tokens"  # what `magvid encode` makes of clips; not a field

    def __post_init__(self):
        if self.overlap < 1:
            raise ValueError(f"overlap={self.overlap}: the windows of a long video share at least 1 frame")
        if self.tokenizer.quantizer.size != self.vocab.codebook:
            raise ValueError(
                f"vocab.codebook={self.vocab.codebook}, but the tokenizer has {self.tokenizer.quantizer.size} codes"
            )
        if self.transformer.vocab != self.vocab.size:
            raise ValueError(f"transformer.vocab={self.transformer.vocab}, but {self.vocab} has {self.vocab.size} rows")
        if len(self.rows) > 1 and self.vocab.specials == 1:
            raise ValueError(f"{len(self.rows)} tasks need task tokens: give the vocabulary 16 special slots")
        if not self.vocab.unconditional and not all(self.labelled):
            raise ValueError(f"tasks {', '.join(map(str, self.tasks))} need an UNCOND token, which {self.vocab} lacks")
        if len(self.rows) > 1 and self.conditioning.prefix:
            raise ValueError(f"a prefix of condition tokens has the length of one task's, got {len(self.rows)} tasks")

    @cached_property
    def rows(self) -> tuple[task_table.Task, ...]:
        return tuple(task_table.find_task(task) for task in self.tasks)

    def init(self, key: Array, batch: dict) -> Groups:
        keys = jax.random.split(key)
        shape = self.video_shape(batch)
        tokenizer = self.tokenizer.init(keys[0], jnp.zeros((1, *shape[1:])), train=True)["params"]
        n = int(np.prod(self.latent_shape(shape))) + self.prefix_length(shape)
        if n != self.transformer.length:
            raise ValueError(
                f"transformer.length={self.transformer.length}, but clips of {by(shape[1:4])} (t h w) make {n} tokens "
                f"with the prefix: its positions are learned, so set transformer.length={n} and train with that"
            )
        transformer = self.transformer.init(keys[1], jnp.zeros((1, n), jnp.int32))["params"]
        return {"tokenizer": tokenizer, "transformer": transformer}

    def sample(self, params: Groups, batch: dict, key: Array) -> Float[Array, "b t h w 3"]:
        """Generate from the condition of each example's task. batch["video"] is read where the task gives pixels."""
        return cut(self.decode(params, self.sample_ids(params, batch, key)[0]), batch["video"])

    def with_tasks(self, tasks: Sequence[str | task_table.Task]) -> "TokenObjective":
        """The same for these tasks; ValueError for one whose token was not trained ("FP5" has that of "FP")."""
        known = {row.token for row in self.rows}
        for task in tasks:
            if task_table.find_task(task).token not in known:
                raise ValueError(f"task {task} was not trained: this model has {', '.join(map(str, self.tasks))}")
        return dataclasses.replace(self, tasks=tuple(tasks), trained_tasks=self.trained_tasks or self.tasks)

    def with_clip(self, clip: Sequence[int]) -> "TokenObjective":
        """The same for batches of tokens of clips of this size (t h w)."""
        return dataclasses.replace(self, clip=tuple(clip))

    def kept(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """What `data.tokens.TokenRecord` says of clips such as `record`."""
        clip = record["video"].shape[:3]
        latent = self.latent_shape((1, *clip, 3))
        return dict(latent=latent, tasks=self._conditions(clip), codes=self.vocab.codebook, labelled="label" in record)

    def init_encoder(self, key: Array, clip: Sequence[int]) -> Params:
        """Parameters of what makes the tokens of clips (t h w)."""
        return self.init(key, {"video": jnp.zeros((1, *clip, 3), jnp.uint8)})["tokenizer"]

    def _conditions(self, clip: Sequence[int]) -> list[dict[str, str]]:
        """Per task {"name", "given", "pad"}: what decides the condition ids of clips (t h w)."""
        masks = task_table.pixel_masks(self.rows, tuple(clip))
        given = [hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()[:12] for mask in masks]
        pads = [f"{row.pad.__module__}:{getattr(row.pad, '__qualname__', row.pad)}" for row in self.rows]
        return [dict(name=str(t), given=g, pad=p) for t, g, p in zip(self.tasks, given, pads, strict=True)]

    @property
    def classes(self) -> int:
        return self.vocab.classes

    @property
    def labelled(self) -> tuple[bool, ...]:
        """Which of the tasks are given the class."""
        return tuple(row.class_cond and self.vocab.classes > 0 for row in self.rows)

    @property
    def blind(self) -> tuple[bool, ...]:
        """Which of the tasks are given no pixel."""
        return tuple(row.region is task_table.nothing for row in self.rows)

    @property
    def predicts(self) -> tuple[bool, ...]:
        """Which of the tasks are given the first frames, so that they can go on where a clip ends."""
        return tuple(isinstance(row.region, task_table.FirstFrames) for row in self.rows)

    def given_frames(self, frames: int) -> int:
        """How many of the first frames of a clip of so many the tasks are given together: all, unless they predict."""
        return max(row.region.frames if p else frames for row, p in zip(self.rows, self.predicts))

    def continuation(self, overlap: int) -> "TokenObjective":
        """The same, frame prediction being from `overlap` frames: what makes the next window of a long video.

        ValueError for a task whose condition has room for its own number of frames only.
        """
        rows = list(self.rows)
        for i in np.flatnonzero(self.predicts):
            frames = rows[i].region.frames
            if frames == overlap:
                continue
            if self.conditioning.prefix or rows[i].latent_mask:
                raise ValueError(
                    f"overlap={overlap}: task {self.tasks[i]} of this model takes the tokens of {frames} frames and no "
                    f"others as its condition: use overlap={frames}"
                )
            rows[i] = dataclasses.replace(rows[i], region=task_table.FirstFrames(overlap))
        return dataclasses.replace(self, tasks=tuple(rows))

    def check_size(self, shape: tuple[int, int, int], trained: tuple[int, int, int]) -> None:
        """ValueError where clips of `shape` (t h w) do not give the grid of tokens of the `trained` ones."""
        here, there = (self.latent_shape((1, *size, 3)) for size in (shape, trained))
        if here != there:
            raise ValueError(
                f"clips of {by(shape)} (t h w) make {by(here)} tokens, but this transformer has learned positions of "
                f"{by(there)}: it takes clips of {by(trained)} only; train one on clips of the other size"
            )

    def with_decoding(self, **options) -> "TokenObjective":
        """The same with other arguments of the function that samples tokens, e.g. steps."""
        return dataclasses.replace(self, decoding={**self.decoding, **options})

    def condition_video(self, batch: dict) -> tuple[Float[Array, "b t h w 3"], Bool[Array, "b t h w 1"]]:
        """The padded condition video of each example's task, and which of its pixels are given."""
        video = scale(batch["video"])
        given = jnp.asarray(task_table.pixel_masks(self.rows, video.shape[1:4]))[batch["task"]]
        return task_table.condition_videos(self.rows, video, batch["task"]), given[..., None]

    def reconstruct(self, params: Groups, batch: dict) -> Float[Array, "b t h w 3"]:
        """batch["video"] through the tokenizer and back: the best that tokens can express."""
        return cut(self.decode(params, self.encode(params, scale(batch["video"]))), batch["video"])

    def video_shape(self, batch: dict) -> tuple[int, ...]:
        """(b t h w 3) of the clips of a batch, also of one of their tokens."""
        if "video" in batch:
            return batch["video"].shape
        if self.clip is None:
            raise ValueError('a batch without "video" needs the size of its clips: `with_clip`')
        return (len(batch["task"]), *self.clip, 3)

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(t' h' w') of a video of `shape` (b t h w 3)."""
        module = self.tokenizer
        shapes = jax.eval_shape(
            lambda x: module.init_with_output(jax.random.key(0), x, method="encode")[0], jnp.zeros((1, *shape[1:]))
        )
        return shapes.shape[1:4]

    def prefix_length(self, shape: tuple[int, ...]) -> int:
        """Number of tokens before the grid of a video of `shape` (b t h w 3)."""
        conditions = len(self.prefix_positions(shape)) + 1 if self.conditioning.prefix else 0
        return (2 if self.vocab.specials > 1 else 1) + conditions

    def prefix_positions(self, shape: tuple[int, ...]) -> Int[np.ndarray, "n"]:
        """Where on the flat grid the tokens are that the one task of `Conditioning.prefix` is given."""
        return np.flatnonzero(task_table.latent_masks(self.rows, shape[1:4], self.latent_shape(shape))[0])

    def prefix(
        self, batch: dict, cond_ids: Int[Array, "b th hh wh"], conditional: bool = True
    ) -> Int[Array, "b prefix"]:
        """[task token if multi-task] [class token] [condition tokens, SEP with `Conditioning.prefix`].

        The class is UNCOND unless the task gives it; unconditionally, the condition tokens are [MASK].
        """
        start = self.prefix_start(batch, conditional)
        if not self.conditioning.prefix:
            return start
        given = cond_ids.reshape(len(cond_ids), -1)[:, self.prefix_positions(self.video_shape(batch))]
        given = given if conditional else jnp.full_like(given, self.vocab.mask)
        return jnp.concatenate([start, given, jnp.full_like(start[:, :1], self.vocab.sep)], axis=1)

    def prefix_start(self, batch: dict, conditional: bool) -> Int[Array, "b prefix"]:
        given = np.asarray(self.labelled) & conditional
        if given.all():
            label = self.vocab.class_id(batch["label"])
        else:
            label = jnp.full(batch["task"].shape, self.vocab.uncond)
            if given.any():
                label = jnp.where(jnp.asarray(given)[batch["task"]], self.vocab.class_id(batch["label"]), label)
        if self.vocab.specials == 1:
            return label[:, None]
        task = jnp.asarray([self.vocab.special(task.token) for task in self.rows])[batch["task"]]
        trained = map(task_table.find_task, self.trained_tasks or self.tasks)
        full = [self.vocab.special(row.token) for row in trained if row.region is task_table.nothing]
        if full and not conditional:
            task = jnp.full_like(task, full[0])
        return jnp.stack([task, label], axis=1)

    def mean(self, per_clip: Float[Array, "b"], batch: dict) -> Float[Array, ""]:
        """Over the examples of a batch that are `valid`."""
        valid = self.valid(batch)
        return jnp.sum(per_clip * valid) / jnp.maximum(jnp.sum(valid), 1)

    def valid(self, batch: dict) -> Float[Array, "b"]:
        """1, and 0 where batch["valid"] is False: a row that only fills the batch up."""
        return jnp.asarray(batch.get("valid", jnp.ones(len(batch["task"])))).astype(jnp.float32)

    def tokens(self, params: Groups, batch: dict):
        """Target ids, condition ids and the latent condition mask, all (b t' h' w')."""
        return self.ids(params, batch), *self.condition(params, batch)

    def ids(self, params: Groups, batch: dict) -> Int[Array, "b th hh wh"]:
        if "ids" in batch:
            return batch["ids"].astype(jnp.int32)
        return self.encode(params, scale(batch["video"]))

    def condition(self, params: Groups, batch: dict) -> tuple[Int[Array, "b th hh wh"], Bool[Array, "b th hh wh"]]:
        """Condition ids, and where they hold for the task of each example."""
        if "task" not in batch:
            raise ValueError(f"the batch has no task, but {', '.join(batch)}: add magvid.data.pipeline:MaskedView to the data's transforms")
        shape = self.video_shape(batch)
        masks = jnp.asarray(task_table.latent_masks(self.rows, shape[1:4], self.latent_shape(shape)))[batch["task"]]
        if "cond_ids" in batch:
            return batch["cond_ids"].astype(jnp.int32), masks
        videos = task_table.condition_videos(self.rows, scale(batch["video"]), batch["task"])
        return self.encode(params, videos), masks

    def encode(self, params: Groups, video: Float[Array, "b t h w 3"]) -> Int[Array, "b th hh wh"]:
        return lax.stop_gradient(self.tokenizer.apply({"params": params["tokenizer"]}, video, method="encode_ids"))

    def decode(self, params: Groups, ids: Int[Array, "b th hh wh"]) -> Float[Array, "b t h w 3"]:
        """In [0, 1]; of whole latent cells, so that its size may be above the clip's."""
        return self.tokenizer.apply({"params": params["tokenizer"]}, ids, method="ids_to_video")


def by(sizes: Sequence[int]) -> str:
    """(4, 8, 12) -> "4x8x12"."""
    return "x".join(map(str, sizes))
