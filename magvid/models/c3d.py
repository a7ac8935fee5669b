"""C3D, the network of the Inception Score of videos (Tran et al., 2015, fine-tuned on UCF-101; as TGANv2's evaluation has it).

Its clips are those that it was trained on: 16 frames of 112x112 pixels, blue for red, 0 to 255, less the mean clip.
79,011,685 numbers, the mean clip among them.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from magvid.models import layers

FRAMES, SIZE, CLASSES = 16, 112, 101
STAGES = ((64, 1), (128, 1), (256, 2), (512, 2), (512, 2))  # (features, convolutions), a pooling after each


class C3D(nn.Module):
    """Video (b 16 112 112 3) in [0, 1], RGB -> logits of UCF-101's classes. ValueError for other shapes."""

    @nn.compact
    def __call__(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b 101"]:
        if video.shape[1:] != (FRAMES, SIZE, SIZE, 3):
            raise ValueError(f"C3D reads {FRAMES} frames of {SIZE}x{SIZE} pixels, got (b t h w c) {video.shape}")
        mean = self.param("mean", nn.initializers.zeros, video.shape[1:])  # of the colours as they are read, 0 to 255
        x = 255 * video[..., ::-1] - mean
        for i, (features, convolutions) in enumerate(STAGES, 1):
            for letter in "ab"[:convolutions]:
                x = nn.relu(layers.Conv(features, name=f"conv{i}{letter}")(x))
            window = (1 if i == 1 else 2, 2, 2)
            # what is left at an edge counts as well, as in Caffe and Chainer: 7 cells become 4
            spare = [(0, -n % k) for n, k in zip(x.shape[1:4], window, strict=True)]
            x = nn.max_pool(x, window, window, spare)
        x = jnp.moveaxis(x, -1, 1).reshape(len(x), -1)  # the published weights count channels first
        for name in ("fc6", "fc7"):
            x = nn.relu(nn.Dense(4096, name=name)(x))
        return nn.Dense(CLASSES, name="fc8")(x)
