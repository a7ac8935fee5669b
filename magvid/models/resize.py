"""Resizing of images as PyTorch and TensorFlow do it, as one small matrix per axis: exact, differentiable, two products on any device.

`jax.image.resize` differs: its cubic has a = -0.5, and it knows no corners but half a pixel's.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

CUBIC = -0.75  # PyTorch's coefficient of the cubic kernel

# Where sample i of the result lies among the samples of the source: "half" (i + 1/2) * source / target - 1/2, PyTorch's default; "first" i * source / target,
# of TensorFlow 1, which moves the picture by up to half a pixel; "all" i * (source - 1) / (target - 1), PyTorch's align_corners=True
Corners = Literal["half", "first", "all"]


def bilinear_matrix(source: int, target: int, corners: Corners) -> Float[np.ndarray, "target source"]:
    """Linear interpolation of `source` samples at `target` places, without a blur; beyond the border the outermost sample repeats."""
    index = np.arange(target)
    place = {
        "half": (index.astype(np.float32) + np.float32(0.5)) * np.float32(source / target) - np.float32(0.5),  # rounded as PyTorch's
        "first": index * source / target,
        "all": index * (source - 1) / max(target - 1, 1),
    }[corners]
    place = np.clip(place.astype(np.float64), 0, source - 1)
    return np.maximum(1 - np.abs(place[:, None] - np.arange(source)), 0)


def resize_bilinear(images: Float[Array, "*b h w c"], size: tuple[int, int], corners: Corners = "half") -> Float[Array, "*b h2 w2 c"]:
    """`torch.nn.functional.interpolate(mode="bilinear")`, and what TensorFlow 1 has of it; see `Corners`. Float32."""
    flat = images.reshape(-1, *images.shape[-3:])
    resized = _apply(flat, *(bilinear_matrix(n, m, corners) for n, m in zip(flat.shape[1:3], size, strict=True)))
    return resized.reshape(*images.shape[:-3], *resized.shape[1:])


def cubic_matrix(source: int, target: int, align_corners: bool) -> Float[np.ndarray, "target source"]:
    """Cubic interpolation of `source` samples at `target` places; beyond the border the outermost sample repeats."""
    # PyTorch's places are rounded to float32, which moves those of a wide image by 1e-4 of a sample
    index = np.arange(target, dtype=np.float32)
    if align_corners:
        place = index * np.float32((source - 1) / max(target - 1, 1))
    else:
        place = (index + np.float32(0.5)) * np.float32(source / target) - np.float32(0.5)
    place = place.astype(np.float64)
    first = np.floor(place)
    matrix = np.zeros((target, source))
    for tap in range(-1, 3):
        column = np.clip(first + tap, 0, source - 1).astype(int)
        np.add.at(matrix, (np.arange(target), column), _cubic(np.abs(place - first - tap)))
    return matrix


def _cubic(x: np.ndarray) -> np.ndarray:
    near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    far = CUBIC * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def blur_matrix(size: int, factor: float) -> Float[np.ndarray, "size size"]:
    """The Gaussian that precedes shrinking by `factor`: sigma (factor - 1) / 2, at least 0.001, so that enlarging is not
    blurred; a window of 4 sigma, odd and at least 3; mirrored at the border, whose own sample is not repeated.
    """
    sigma = max((factor - 1) / 2, 0.001)
    window = int(max(4 * sigma, 3)) | 1
    offsets = np.arange(window) - window // 2
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    matrix = np.zeros((size, size))
    mirrored = np.pad(np.arange(size), window // 2, mode="reflect")
    for tap, weight in enumerate(weights / weights.sum()):
        np.add.at(matrix, (np.arange(size), mirrored[tap : tap + size]), weight)
    return matrix


def _apply(images: Float[Array, "b h w c"], rows: np.ndarray, columns: np.ndarray) -> Float[Array, "b h2 w2 c"]:
    rows, columns = (jnp.asarray(m, jnp.float32) for m in (rows, columns))
    images = images.astype(jnp.float32)
    return jnp.einsum("yh,bhwc,xw->byxc", rows, images, columns, precision=lax.Precision.HIGHEST)


def resize_bicubic(images: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """`torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`, which does not blur. Float32."""
    return _apply(images, *(cubic_matrix(n, m, False) for n, m in zip(images.shape[1:3], size, strict=True)))


def resize_antialiased(images: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """What Stable Video Diffusion does to the image that its CLIP tower reads: a Gaussian blur, then bicubic with aligned
    corners, per axis. Float32; any range of values, which overshoots by a few per cent at hard edges.
    """
    axes = zip(images.shape[1:3], size, strict=True)
    return _apply(images, *(cubic_matrix(n, m, True) @ blur_matrix(n, n / m) for n, m in axes))


def covering(images: Float[Array, "b h w c"], size: Sequence[int], cut: Sequence[int]) -> Float[Array, "b h2 w2 c"]:
    """Pixels in [0, 1] as Pillow resizes them, bicubic and anti-aliased, so that they just cover `size` (h, w); of that the middle, `cut` (h, w).

    Rounded to 8 bits after each axis, as by Pillow: one value in a thousand differs by one level from Pillow's own.
    """
    (h, w), (height, width) = images.shape[1:3], size
    tall, wide = (height, height * w // h) if height * w >= width * h else (width * h // w, width)
    whole = lambda x: jnp.clip(jnp.floor(x + 0.5), 0, 255)
    images = whole(255 * images)
    for shape in ((h, wide), (tall, wide)):
        images = whole(jax.image.resize(images, (len(images), *shape, images.shape[-1]), "cubic"))
    top, left = (tall - cut[0]) // 2, (wide - cut[1]) // 2
    return images[:, top : top + cut[0], left : left + cut[1]] / 255
