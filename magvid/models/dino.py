"""DINO's vision transformer (Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021, arXiv 2104.14294), by which DreamBooth
(Ruiz et al., 2023, arXiv 2208.12242, section 4.2) and others measure whether a generated subject is the one that was told: it was not taught to overlook how subjects of one class differ.
"""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from magvid.models.clip import PatchEmbedding, SelfAttention
from magvid.models.layers import Dense, gelu, normal
from magvid.models.resize import covering
from magvid.models.resnet import MEAN, STD

SIZE = 224  # pixels of a side that it reads
COVERED = 256  # pixels of the shorter side, of which these are the middle
LayerNorm = partial(nn.LayerNorm, epsilon=1e-6)


def prepare(images: Float[Array, "b h w 3"]) -> Float[Array, "b 224 224 3"]:
    """Pixels in [0, 1] of any size as DINO was evaluated: the shorter side made 256, bicubic, the middle, normalised."""
    images = covering(images, (COVERED, COVERED), (SIZE, SIZE))
    return (images - jnp.asarray(MEAN, images.dtype)) / jnp.asarray(STD, images.dtype)


class Block(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)), which is four times as wide."""

    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        d = x.shape[-1]
        dense = lambda features, name: Dense(features, kernel_init=normal(0.02), name=name)
        x = x + SelfAttention(self.heads, 0.02, name="attn")(LayerNorm(name="norm1")(x), None)
        return x + dense(d, "fc2")(gelu(dense(4 * d, "fc1")(LayerNorm(name="norm2")(x))))


class DINO(nn.Module):
    """Prepared pictures (b 224 224 3) -> the class token after the last LayerNorm (b d). The defaults are ViT-S/16, 21,665,664 parameters."""

    width: int = 384
    depth: int = 12
    heads: int = 6
    patch: int = 16

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        if images.shape[1:] != (SIZE, SIZE, 3):
            raise ValueError(f"DINO reads pictures of {SIZE}x{SIZE} pixels in three colours, got {images.shape[1:]}: prepare them by magvid.models.dino.prepare")
        x = PatchEmbedding(self.width, self.patch, name="patch_embedding")(images)
        x = x.reshape(len(x), -1, self.width) + self.param("patch_bias", nn.initializers.zeros, (self.width,))
        first = self.param("class_embedding", normal(0.02), (self.width,))
        positions = self.param("position_embedding", normal(0.02), (1 + x.shape[1], self.width))
        x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, self.width)), x], axis=1) + positions
        for i in range(self.depth):
            x = Block(self.heads, name=f"blocks_{i}")(x)
        return LayerNorm(name="norm")(x[:, 0])
