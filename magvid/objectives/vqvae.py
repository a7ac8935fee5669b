"""Training of a video tokenizer: reconstruction and quantizer losses (MAGVIT, section 3.1, without the adversary)."""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from magvid.masked import tasks as task_table
from magvid.types import Groups

# CG's condition is a black clip, and CFP's is FP's.
PADDED_TASKS = tuple(task for task in task_table.TASKS if task not in ("CG", "CFP"))


def scale(video: UInt8[Array, "b t h w 3"]) -> Float[Array, "b t h w 3"]:
    """uint8 to float32 in [0, 1], the tokenizers' range; float video is passed through unchanged."""
    return video.astype(jnp.float32) / 255 if video.dtype == jnp.uint8 else video


@dataclasses.dataclass(frozen=True)
class VQVAE:
    """batch: {"video": uint8 (b t h w 3)}; group "tokenizer".

    `reconstruction` weighs the mean squared error against the quantizer's losses (MAGVIT: 1, with perceptual and
    adversarial losses beside). `padded` is the share of training clips that are replaced by their padded condition
    video for one of `padded_tasks`, drawn at random (MAGVIT: none): the transformer reads such videos as tokens, and a
    tokenizer that never saw their hard borders loses what they show next to them. It needs no change in stage 2.
    """

    tokenizer: nn.Module
    reconstruction: float = 1.0
    padded: float = 0.0
    padded_tasks: Sequence[str | task_table.Task] = PADDED_TASKS

    def __post_init__(self):
        if not 0 <= self.padded <= 1:
            raise ValueError(f"padded={self.padded} is a share of the clips: give a number in [0, 1]")

    def init(self, key: Array, batch: dict) -> Groups:
        return {"tokenizer": self.tokenizer.init(key, scale(batch["video"]), train=True)["params"]}

    def loss(self, params: Groups, extra: dict, batch: dict, key: Array | None, step: Array | int, train: bool):
        """Squared error of the unclipped reconstruction + the quantizer's losses; metrics add PSNR when clipped."""
        video = scale(batch["video"])
        if train and self.padded:
            video = self.pad_some(video, key)
        compute = jax.tree.leaves(params["tokenizer"])[0].dtype  # bfloat16 where the training step casts the weights
        reconstruction, quantized = self.tokenizer.apply(
            {"params": params["tokenizer"]}, video.astype(compute), train=train
        )
        mse = jnp.mean((reconstruction - video) ** 2)
        metrics = {"mse": mse, "psnr": psnr(reconstruction, video), **quantized.metrics}
        return {"tokenizer": self.reconstruction * mse + quantized.loss}, (metrics, extra)

    def pad_some(self, video: Float[Array, "b t h w 3"], key: Array) -> Float[Array, "b t h w 3"]:
        """The clips, a random share of `padded` of them as a random task's padded condition video."""
        rows = [task_table.find_task(task) for task in self.padded_tasks]
        which_key, task_key = jax.random.split(key)
        chosen = jax.random.bernoulli(which_key, self.padded, video.shape[:1])
        task = jax.random.randint(task_key, video.shape[:1], 0, len(rows))
        return jnp.where(chosen[:, None, None, None, None], task_table.condition_videos(rows, video, task), video)

    def sample(self, params: Groups, batch: dict, key: Array | None) -> Float[Array, "b t h w 3"]:
        """The reconstruction of batch["video"], clipped to [0, 1]."""
        reconstruction, _ = self.tokenizer.apply({"params": params["tokenizer"]}, scale(batch["video"]))
        return jnp.clip(reconstruction, 0.0, 1.0)


def psnr(video: Float[Array, "b t h w c"], target: Float[Array, "b t h w c"]) -> Float[Array, ""]:
    """Mean over frames of -10 log10(MSE), in dB, of the clipped video."""
    mse = jnp.mean((jnp.clip(video, 0.0, 1.0) - target) ** 2, axis=(2, 3, 4))
    return jnp.mean(-10 * jnp.log10(jnp.maximum(mse, 1e-10)))
