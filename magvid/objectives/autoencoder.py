"""Training of the autoencoder between pixels and latents (Kingma & Welling, 2014; Rombach et al., CVPR 2022)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from magvid.objectives.vqgan import cut, psnr, scale
from magvid.types import Groups


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """batch: {"video": uint8 (b t h w 3)}; group "vae".

    Mean squared error of the pixels in [0, 1], of a sample of the posterior in training and of its mean else, +
    `kl_weight` * the divergence of the posterior from the standard normal, mean over latents. Stable Diffusion's
    perceptual and adversarial losses are not here.

    The metric `latent_std` is the standard deviation of the latents times the module's `scaling`: a diffusion model wants
    it near 1.
    """

    vae: nn.Module
    kl_weight: float = 1e-4

    def init(self, key: Array, batch: dict) -> Groups:
        return {"vae": self.vae.init(key, scale(batch["video"]))["params"]}

    def loss(self, params: Groups, extra: dict, batch: dict, key: Array | None, step: Array | int, train: bool):
        video = scale(batch["video"])
        compute = jax.tree.leaves(params["vae"])[0].dtype  # bfloat16 where the training step casts the weights
        x = (2 * video - 1).astype(compute)
        reconstruction, posterior = self.vae.apply({"params": params["vae"]}, x, key if train else None)
        reconstruction = cut((reconstruction.astype(jnp.float32) + 1) / 2, video)
        mse, kl = jnp.mean(jnp.square(reconstruction - video)), jnp.mean(posterior.kl().astype(jnp.float32))
        std = jnp.std(posterior.mean.astype(jnp.float32)) * self.vae.scaling
        metrics = {"mse": mse, "psnr": psnr(reconstruction, video), "kl": kl, "latent_std": std}
        return {"vae": mse + self.kl_weight * kl}, (metrics, extra)

    def sample(self, params: Groups, batch: dict, key: Array | None) -> Float[Array, "b t h w 3"]:
        """The reconstruction of batch["video"], of the posterior's mean, clipped to [0, 1]."""
        video = scale(batch["video"])
        reconstruction, _ = self.vae.apply({"params": params["vae"]}, 2 * video - 1)
        return jnp.clip(cut((reconstruction + 1) / 2, video), 0.0, 1.0)
