"""Training of a video tokenizer: reconstruction, quantizer, perceptual and adversarial losses (MAGVIT, section 3.1)."""

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from magvid import losses
from magvid.masked import tasks as task_table
from magvid.types import Groups

# CG's condition is a black clip, and CFP's is FP's.
PADDED_TASKS = tuple(task for task in task_table.TASKS if task not in ("CG", "CFP"))

USAGE_DECAY = 0.99  # of the running share of each code
DEAD = 0.01  # below this part of an even share a code is dead: unused for about 460 steps


def scale(video: UInt8[Array, "b t h w 3"] | Float[Array, "b t h w 3"]) -> Float[Array, "b t h w 3"]:
    """uint8 to float32 in [0, 1], the tokenizers' range; float video is passed through unchanged."""
    return video.astype(jnp.float32) / 255 if video.dtype == jnp.uint8 else video


def cut(video: Float[Array, "b t2 h2 w2 c"], like: Array) -> Float[Array, "b t h w c"]:
    """`video` at the size of `like` (b t h w c): without what rounding up to whole latent cells added at the end."""
    t, h, w = like.shape[1:4]
    return video[:, :t, :h, :w]


@dataclasses.dataclass(frozen=True)
class VQGAN:
    """batch: {"video": uint8 (b t h w 3)}; groups "tokenizer", "discriminator" and "perceptual" (frozen) where given.

    Generator: `reconstruction` * mean squared error + the quantizer's losses + `perceptual_weight` * mean squared
    difference of `perceptual` features of every frame + `adversarial_weight` * the generator's part of `adversarial`,
    from step `adversarial_start` on. Discriminator: its part + `gradient_penalty` * R1 on real clips + `lecam_weight` *
    LeCam, whose running means of the logits are in `extra` (decay `lecam_decay`). Both are trained from one forward
    pass. Weights are those of the official code; the weight of LeCam is not published (official release: 0).

    Without `discriminator` and `perceptual` this is a VQ-VAE. `padded` is the share of training clips that are replaced
    by their padded condition video for one of `padded_tasks`, drawn at random (MAGVIT: none): the transformer reads
    such videos as tokens, and a tokenizer that never saw their hard borders loses what they show next to them. It needs
    no change in stage 2.

    Metrics tell codebook usage and perplexity of the batch, and `codes_alive`, the share of codes in recent use.
    `restart` moves a dead code onto one that is in use, drawn by how much, with a little noise (MAGVIT: no).
    """

    tokenizer: nn.Module
    discriminator: nn.Module | None = None
    perceptual: nn.Module | None = None
    reconstruction: float = 1.0
    perceptual_weight: float = 0.1
    adversarial_weight: float = 0.1
    adversarial: Callable = losses.non_saturating
    adversarial_start: int = 0
    gradient_penalty: float = 10.0
    lecam_weight: float = 0.0
    lecam_decay: float = 0.999
    restart: bool = False
    padded: float = 0.0
    padded_tasks: Sequence[str | task_table.Task] = PADDED_TASKS

    alarms = {  # said where a metric stays below its least value; not a field
        "codes_alive": (0.2, "most codes are unused: raise the quantizer's entropy_weight, or set objective.restart")
    }

    def __post_init__(self):
        if not 0 <= self.padded <= 1:
            raise ValueError(f"padded={self.padded} is a share of the clips: give a number in [0, 1]")

    def init(self, key: Array, batch: dict) -> Groups:
        keys = jax.random.split(key, 3)
        video = scale(batch["video"])
        groups = {"tokenizer": self.tokenizer.init(key, video, train=True)["params"]}
        if self.restart and "codebook" not in groups["tokenizer"].get("quantizer", {}):
            name = type(self.tokenizer.quantizer).__name__
            raise ValueError(f"restart moves codes of a codebook, which {name} lacks: leave it out")
        if self.discriminator:
            groups["discriminator"] = self.discriminator.init(keys[1], video)["params"]
        if self.perceptual:
            groups["perceptual"] = self.perceptual.init(keys[2], video)["params"]
        return groups

    def init_extra(self) -> dict:
        size = self.tokenizer.quantizer.size
        extra = {"code_share": jnp.full(size, 1 / size)}
        if self.discriminator:
            extra["lecam"] = jnp.zeros(2)
        return extra

    def loss(self, params: Groups, extra: dict, batch: dict, key: Array | None, step: Array | int, train: bool):
        """Losses are of the unclipped reconstruction; the metric PSNR is of the clipped one."""
        video = scale(batch["video"])
        if train and self.padded:
            video = self.pad_some(video, key)
        compute = jax.tree.leaves(params["tokenizer"])[0].dtype  # bfloat16 where the training step casts the weights
        reconstruction, quantized = self.tokenizer.apply(
            {"params": params["tokenizer"]}, video.astype(compute), train=train
        )
        reconstruction = cut(reconstruction, video)
        mse = jnp.mean((reconstruction - video) ** 2)
        metrics = {"mse": mse, "psnr": psnr(reconstruction, video), **quantized.metrics}
        total = {"tokenizer": self.reconstruction * mse + quantized.loss}
        if train:
            now = share(quantized.ids, self.tokenizer.quantizer.size)
            extra = {**extra, "code_share": USAGE_DECAY * extra["code_share"] + (1 - USAGE_DECAY) * now}
            metrics["codes_alive"] = jnp.mean(~dead(extra["code_share"]))
        if self.perceptual:
            metrics["perceptual"] = self.perceptual_loss(params, reconstruction, video)
            total["tokenizer"] += self.perceptual_weight * metrics["perceptual"]
        if self.discriminator:
            generator, total["discriminator"], parts, averages = self.adversary(
                params["discriminator"], video, reconstruction, extra["lecam"]
            )
            metrics |= parts
            weight = self.adversarial_weight * (jnp.asarray(step) >= self.adversarial_start)
            total["tokenizer"] += weight * generator
            extra = {**extra, "lecam": averages} if train else extra
        return total, (metrics, extra)

    def adversary(self, params, video: Float[Array, "b t h w 3"], reconstruction, averages: Float[Array, "2"]):
        """(generator's loss, discriminator's loss, metrics, next running means of the real and the fake logits)."""
        apply = lambda p, v: self.discriminator.apply({"params": p}, v).astype(jnp.float32)
        real, fake = apply(params, video.astype(reconstruction.dtype)), apply(params, reconstruction)
        generator, discriminator = self.adversarial(real, fake)
        metrics = {"adversarial/generator": generator, "adversarial/discriminator": discriminator}
        if self.gradient_penalty:
            exact = jax.tree.map(lambda p: p.astype(jnp.float32), params)
            metrics["adversarial/r1"] = losses.gradient_penalty(lambda v: apply(exact, v), video)
            discriminator += self.gradient_penalty * metrics["adversarial/r1"]
        means = jnp.stack([real.mean(), fake.mean()])
        metrics |= {"adversarial/real": means[0], "adversarial/fake": means[1]}
        if self.lecam_weight:
            metrics["adversarial/lecam"] = losses.lecam(*means, *averages)
            discriminator += self.lecam_weight * metrics["adversarial/lecam"]
        averages = self.lecam_decay * averages + (1 - self.lecam_decay) * jax.lax.stop_gradient(means)
        return generator, discriminator, metrics, averages

    def perceptual_loss(self, params: Groups, reconstruction, video: Float[Array, "b t h w 3"]) -> Float[Array, ""]:
        """Mean squared difference of the features of all frames."""
        features = lambda v: self.perceptual.apply({"params": params["perceptual"]}, v.astype(jnp.float32))
        pairs = zip(jax.tree.leaves(features(reconstruction)), jax.tree.leaves(features(video)), strict=True)
        return sum(jnp.mean((a - b) ** 2) for a, b in pairs)

    def after_step(self, params: Groups, extra: dict, key: Array) -> tuple[Groups, dict]:
        """With `restart`, dead codes go on as neighbours of codes in use."""
        if not self.restart:
            return params, extra
        codebook, usage = params["tokenizer"]["quantizer"]["codebook"], extra["code_share"]
        choice_key, noise_key = jax.random.split(key)
        chosen = jax.random.choice(choice_key, len(usage), usage.shape, p=usage / usage.sum())
        noise = 0.01 * jnp.std(codebook) * jax.random.normal(noise_key, codebook.shape)
        revived = jnp.where(dead(usage)[:, None], codebook[chosen] + noise, codebook)
        tokenizer = {**params["tokenizer"], "quantizer": {"codebook": revived}}
        usage = jnp.where(dead(usage), 1 / len(usage), usage)
        return {**params, "tokenizer": tokenizer}, {**extra, "code_share": usage}

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
        return jnp.clip(cut(reconstruction, batch["video"]), 0.0, 1.0)

    def for_sampling(self) -> "VQGAN":
        """The same without the networks that only losses need: a discriminator's weights fit one size of clips, the
        tokenizer's fit any.
        """
        return dataclasses.replace(self, discriminator=None, perceptual=None)


def share(ids: Int[Array, "..."], size: int) -> Float[Array, "k"]:
    """How often each of `size` codes occurs among `ids`; sums to 1."""
    return jnp.zeros(size).at[ids.reshape(-1)].add(1 / ids.size)


def dead(code_share: Float[Array, "k"]) -> Bool[Array, "k"]:
    """Codes whose running share is next to nothing."""
    return code_share < DEAD / len(code_share)


def psnr(video: Float[Array, "b t h w c"], target: Float[Array, "b t h w c"]) -> Float[Array, ""]:
    """Mean over frames of -10 log10(MSE), in dB, of the clipped video."""
    mse = jnp.mean((jnp.clip(video, 0.0, 1.0) - target) ** 2, axis=(2, 3, 4))
    return jnp.mean(-10 * jnp.log10(jnp.maximum(mse, 1e-10)))
