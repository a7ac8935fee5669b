"""LPIPS: how different two pictures look (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018, arXiv 1801.03924),
version 0.1: differences of a frozen network's features, each of length 1 at its place, weighed by how much people mind them.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from magvid.models.resnet import MEAN, STD, prepare
from magvid.models.vgg import VGG16

Maps = tuple[Float[Array, "n h2 w2 c"], ...]
FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))  # SqueezeNet 1.1: channels of `squeeze`, of each of `expand`
EPSILON = 1e-10  # of a feature's length


class AlexNet(nn.Module):
    """Video (b t h w 3) in [0, 1] -> the maps after each ReLU, frames in one batch (Krizhevsky, 2014, as torchvision has it)."""

    @nn.compact
    def __call__(self, video: Float[Array, "b t h w 3"]) -> Maps:
        x, maps = prepare(video, None, MEAN, STD), []
        for i, (features, kernel, stride, pad) in enumerate([(64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1)]):
            if i in (1, 2):
                x = nn.max_pool(x, (3, 3), (2, 2))
            x = nn.relu(nn.Conv(features, (kernel, kernel), stride, [(pad, pad)] * 2, name=f"conv{i + 1}")(x))
            maps.append(x)
        return tuple(maps)


class Fire(nn.Module):
    """A 1x1 convolution, then 1x1 and 3x3 convolutions side by side."""

    squeeze: int
    expand: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w o"]:
        conv = lambda features, kernel, name: nn.relu(nn.Conv(features, (kernel, kernel), name=name)(x))
        x = conv(self.squeeze, 1, "squeeze")
        return jnp.concatenate([conv(self.expand, 1, "expand1x1"), conv(self.expand, 3, "expand3x3")], axis=-1)


class SqueezeNet(nn.Module):
    """Video (b t h w 3) in [0, 1] -> seven maps, frames in one batch: SqueezeNet 1.1 (Iandola et al., 2016), after its first convolution, before its
    second and third pooling, and after each of the last four fire modules.
    """

    @nn.compact
    def __call__(self, video: Float[Array, "b t h w 3"]) -> Maps:
        x = nn.relu(nn.Conv(64, (3, 3), 2, "VALID", name="conv1")(prepare(video, None, MEAN, STD)))
        maps = [x]
        for number, sizes in enumerate(FIRES, 2):
            if number in (2, 4, 6):  # PyTorch's ceil_mode: the last window may reach beyond the border
                x = nn.max_pool(x, (3, 3), (2, 2), [(0, (n + 1) % 2) for n in x.shape[1:3]])
            x = Fire(*sizes, name=f"fire{number}")(x)
            if number not in (2, 4):
                maps.append(x)
        return tuple(maps)


BACKBONES: dict[str, type[nn.Module]] = {"alex": AlexNet, "squeeze": SqueezeNet, "vgg": VGG16}
SMALLEST = {"alex": 31, "squeeze": 17, "vgg": 16}  # pixels of a side, of which something is left after the last pooling


class LPIPS(nn.Module):
    """Two videos (b t h w 3) in [0, 1] -> a distance for each of their frames (b t), 0 for equal ones.

    backbone: alex (the reference implementation's default), squeeze (MAVIN's) or vgg (MAGVIT's); numbers of one do not compare with those of another.
    ValueError for frames that are too small for it.
    """

    backbone: str = "alex"

    @nn.compact
    def __call__(self, a: Float[Array, "b t h w 3"], b: Float[Array, "b t h w 3"]) -> Float[Array, "b t"]:
        if self.backbone not in BACKBONES:
            raise ValueError(f"backbone={self.backbone!r} is none of {', '.join(BACKBONES)}")
        net, least = BACKBONES[self.backbone], SMALLEST[self.backbone]
        if min(a.shape[2:4]) < least:
            raise ValueError(f"frames of {a.shape[2]}x{a.shape[3]} are too small for {net.__name__}, which reads at least {least}x{least} pixels: leave LPIPS out")
        total = jnp.zeros(a.shape[0] * a.shape[1])
        for i, x in enumerate(net(name="net")(jnp.concatenate([a, b]))):
            weights = self.param(f"lin{i}", nn.initializers.ones, (x.shape[-1],))
            x = x / (jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True)) + EPSILON)
            ours, theirs = jnp.split(x, 2)
            total += jnp.mean(jnp.square(ours - theirs) @ weights, axis=(1, 2))
        return total.reshape(a.shape[:2])
