"""Training of a video tokenizer: reconstruction and quantizer losses (MAGVIT, section 3.1, without the adversary)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from magvid.types import Groups


def scale(video: UInt8[Array, "b t h w 3"]) -> Float[Array, "b t h w 3"]:
    """uint8 to float32 in [0, 1], the tokenizers' range; float video is passed through unchanged."""
    return video.astype(jnp.float32) / 255 if video.dtype == jnp.uint8 else video


@dataclasses.dataclass(frozen=True)
class VQVAE:
    """batch: {"video": uint8 (b t h w 3)}; group "tokenizer".

    `reconstruction` weighs the mean squared error against the quantizer's losses (MAGVIT: 1, with perceptual and
    adversarial losses beside).
    """

    tokenizer: nn.Module
    reconstruction: float = 1.0

    def init(self, key: Array, batch: dict) -> Groups:
        return {"tokenizer": self.tokenizer.init(key, scale(batch["video"]), train=True)["params"]}

    def loss(self, params: Groups, extra: dict, batch: dict, key: Array, step: Array, train: bool):
        """Squared error of the unclipped reconstruction + the quantizer's losses; metrics add PSNR when clipped."""
        video = scale(batch["video"])
        compute = jax.tree.leaves(params["tokenizer"])[0].dtype  # bfloat16 where the training step casts the weights
        reconstruction, quantized = self.tokenizer.apply(
            {"params": params["tokenizer"]}, video.astype(compute), train=train
        )
        mse = jnp.mean((reconstruction - video) ** 2)
        metrics = {"mse": mse, "psnr": psnr(reconstruction, video), **quantized.metrics}
        return {"tokenizer": self.reconstruction * mse + quantized.loss}, (metrics, extra)

    def sample(self, params: Groups, batch: dict, key: Array) -> Float[Array, "b t h w 3"]:
        """The reconstruction of batch["video"], clipped to [0, 1]."""
        reconstruction, _ = self.tokenizer.apply({"params": params["tokenizer"]}, scale(batch["video"]))
        return jnp.clip(reconstruction, 0.0, 1.0)


def psnr(video: Float[Array, "b t h w c"], target: Float[Array, "b t h w c"]) -> Float[Array, ""]:
    """Mean over frames of -10 log10(MSE), in dB, of the clipped video."""
    mse = jnp.mean((jnp.clip(video, 0.0, 1.0) - target) ** 2, axis=(2, 3, 4))
    return jnp.mean(-10 * jnp.log10(jnp.maximum(mse, 1e-10)))
