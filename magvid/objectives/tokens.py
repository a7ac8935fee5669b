"""What all objectives on the tokens of a frozen tokenizer share: tasks, conditions, prefixes, reconstruction."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from magvid.masked import tasks as task_table
from magvid.masked.commit import Conditioning
from magvid.objectives.vqgan import scale
from magvid.types import Groups, Vocab

ALL_TASKS = tuple(task_table.TASKS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenObjective:
    """batch: {"video": uint8 (b t h w 3), "label": int (b,), "task": int (b,) index into `tasks`}.

    Groups: "tokenizer" (frozen) and "transformer". `decoding` are arguments of the function that samples tokens. A
    subclass has `loss` and `sample_ids`.
    """

    tokenizer: nn.Module
    transformer: nn.Module
    vocab: Vocab
    tasks: Sequence[str | task_table.Task] = ALL_TASKS
    conditioning: Conditioning
    decoding: Mapping = dataclasses.field(default_factory=dict)

    def __post_init__(self):
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
        clip = scale(batch["video"][:1])
        tokenizer = self.tokenizer.init(keys[0], clip, train=True)["params"]
        n = int(np.prod(self.latent_shape(clip.shape))) + self.prefix_length(clip.shape)
        if n != self.transformer.length:
            raise ValueError(
                f"transformer.length={self.transformer.length}, but clips of {clip.shape[1:4]} (t h w) make {n} tokens "
                "with the prefix"
            )
        transformer = self.transformer.init(keys[1], jnp.zeros((1, n), jnp.int32))["params"]
        return {"tokenizer": tokenizer, "transformer": transformer}

    def sample(self, params: Groups, batch: dict, key: Array) -> Float[Array, "b t h w 3"]:
        """Generate from the condition of each example's task. batch["video"] is read where the task gives pixels."""
        return self.tokenizer.apply(
            {"params": params["tokenizer"]}, self.sample_ids(params, batch, key)[0], method="ids_to_video"
        )

    def with_tasks(self, tasks: Sequence[str | task_table.Task]) -> "Masked":
        """The same for these tasks; ValueError for one whose token was not trained ("FP5" has that of "FP")."""
        known = {row.token for row in self.rows}
        for task in tasks:
            if task_table.find_task(task).token not in known:
                raise ValueError(f"task {task} was not trained: this model has {', '.join(map(str, self.tasks))}")
        return dataclasses.replace(self, tasks=tuple(tasks))

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

    def with_decoding(self, **options) -> "Masked":
        """The same with other arguments of `masked.decode.decode`, e.g. steps and temperature."""
        return dataclasses.replace(self, decoding={**self.decoding, **options})

    def condition_video(self, batch: dict) -> tuple[Float[Array, "b t h w 3"], Bool[Array, "b t h w 1"]]:
        """The padded condition video of each example's task, and which of its pixels are given."""
        video = scale(batch["video"])
        given = jnp.asarray(task_table.pixel_masks(self.rows, video.shape[1:4]))[batch["task"]]
        return task_table.condition_videos(self.rows, video, batch["task"]), given[..., None]

    def reconstruct(self, params: Groups, batch: dict) -> Float[Array, "b t h w 3"]:
        """batch["video"] through the tokenizer and back: the best that tokens can express."""
        ids = self.encode(params, scale(batch["video"]))
        return self.tokenizer.apply({"params": params["tokenizer"]}, ids, method="ids_to_video")

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
        given = cond_ids.reshape(len(cond_ids), -1)[:, self.prefix_positions(batch["video"].shape)]
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
        tokens = jnp.asarray([self.vocab.special(task.token) for task in self.rows])
        full = [i for i, task in enumerate(self.rows) if task.region is task_table.nothing]
        task = batch["task"] if conditional or not full else jnp.full_like(batch["task"], full[0])
        return jnp.stack([tokens[task], label], axis=1)

    def mean(self, per_clip: Float[Array, "b"], batch: dict) -> Float[Array, ""]:
        """Over the examples of a batch that are `valid`."""
        valid = self.valid(batch)
        return jnp.sum(per_clip * valid) / jnp.maximum(jnp.sum(valid), 1)

    def valid(self, batch: dict) -> Float[Array, "b"]:
        """1, and 0 where batch["valid"] is False: a row that only fills the batch up."""
        return jnp.asarray(batch.get("valid", jnp.ones(len(batch["task"])))).astype(jnp.float32)

    def tokens(self, params: Groups, batch: dict):
        """Target ids, condition ids and the latent condition mask, all (b t' h' w')."""
        ids = self.encode(params, scale(batch["video"]))
        return ids, *self.condition(params, batch)

    def condition(self, params: Groups, batch: dict):
        video = scale(batch["video"])
        masks = task_table.latent_masks(self.rows, video.shape[1:4], self.latent_shape(video.shape))
        cond_ids = self.encode(params, task_table.condition_videos(self.rows, video, batch["task"]))
        return cond_ids, jnp.asarray(masks)[batch["task"]]

    def encode(self, params: Groups, video: Float[Array, "b t h w 3"]) -> Int[Array, "b th hh wh"]:
        return lax.stop_gradient(self.tokenizer.apply({"params": params["tokenizer"]}, video, method="encode_ids"))
