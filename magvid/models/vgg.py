"""VGG-16's convolutions as a frozen feature net of the perceptual loss (Simonyan and Zisserman, 2015)."""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from magvid.models.resnet import MEAN, STD, Conv, prepare

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGG16(nn.Module):
    """Video (b t h w 3) in [0, 1] -> the maps after the last ReLU of each stage (relu1_2, 2_2, 3_3, 4_3, 5_3), frames
    in one batch. `size` None keeps the frames' own size, which must be 16 at least.
    """

    size: int | None = None
    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD

    @nn.compact
    def __call__(self, video: Float[Array, "b t h w 3"]) -> tuple[Float[Array, "n h2 w2 c"], ...]:
        if self.size is None and min(video.shape[2:4]) < 16:
            raise ValueError(f"frames of {video.shape[2]}x{video.shape[3]} are too small for VGG-16: give size=224")
        x = prepare(video, self.size, self.mean, self.std)
        maps = []
        for stage, (features, convolutions) in enumerate(STAGES):
            if stage:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for i in range(convolutions):
                x = nn.relu(Conv(features, use_bias=True, name=f"conv{stage + 1}_{i + 1}")(x))
            maps.append(x)
        return tuple(maps)
