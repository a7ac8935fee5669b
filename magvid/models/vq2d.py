"""MAGVIT's 2D-VQ: the tokenizer of 3D-VQ with kernels and statistics of single frames (official `2dcnn`).

It is trained on images or frames, reads videos frame by frame, and is what a 3D-VQ is inflated from. MaskGIT's
tokenizer is the same with `branch_shortcut`.
"""

from collections.abc import Callable, Sequence
from functools import partial

from jaxtyping import Array, Float

from magvid.models import vq3d
from magvid.models.layers import Conv, GroupNorm, depth_to_space

FrameNorm = partial(GroupNorm, per_frame=True)


def shuffle_up(features: int, strides: Sequence[int], **conv) -> Callable:
    """A convolution to four times the channels, which then become 2x2 pixels (official `depth_to_space`)."""
    return lambda x: depth_to_space(Conv(4 * features, **conv)(x), strides)


def branch_shortcut(x: Float[Array, "b t h w c"], y: Float[Array, "b t h w o"]) -> Float[Array, "b t h w o"]:
    """MaskGIT's released code and weights: where channels change the shortcut sees the convolutions' output, and the
    input is lost.
    """
    return y


class Encoder(vq3d.Encoder):
    """Video or images (b t h w 3) in [0, 1] -> latents (b t h' w' dim), each frame by itself. An image has t = 1.

    Defaults are MAGVIT-2D-B at 128x128. With LayerNorm or no norm, give that as `norm`.
    """

    temporal: Sequence[bool] = (False, False, False)
    norm: Callable = FrameNorm
    planar: bool = True


class Decoder(vq3d.Decoder):
    """Latents (b t h' w' dim) -> video (b t h w 3), the mirror of `Encoder`."""

    temporal: Sequence[bool] = (False, False, False)
    norm: Callable = FrameNorm
    planar: bool = True
