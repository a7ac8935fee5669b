"""Resizing of images as PyTorch does it, as one small matrix per axis: exact, differentiable, two products on any device.

`jax.image.resize` differs: its cubic has a = -0.5, and it knows no aligned corners.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

CUBIC = -0.75  # PyTorch's coefficient of the cubic kernel


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
