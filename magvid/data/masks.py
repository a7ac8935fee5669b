"""Masks of a subject: out of files, where they are transparency or pictures of their own; and resized as pictures are."""

import pathlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, UInt8

from magvid import video
from magvid.types import UserError

VOID = 255  # of a palette: neither background nor object


def resized(masks: Bool[np.ndarray, "t a b"], resize: Callable[[UInt8[np.ndarray, "t a b"]], np.ndarray]) -> Bool[np.ndarray, "t h w"]:
    """What of masks is at least half covered after `resize`, of pictures (t a b) -> (t h w), in one channel, which Pillow resizes as it
    does three.
    """
    return resize(masks.astype(np.uint8) * 255) >= 128


def same_shape(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two pictures, each (h, w), have the same shape, by a pixel more or less."""
    return abs(a[0] * b[1] - a[1] * b[0]) <= max(*a, *b)


def decode_mask(file: pathlib.Path) -> Bool[np.ndarray, "h w"]:
    """Where the picture of a mask is not transparent, or, where nothing of it is transparent, lighter than half; of a picture of zeros and ones the
    ones; of a palette of colours, as DAVIS has it, all but number 0 and 255, which is neither background nor object. UserError where the file cannot be
    read, or where nothing is light enough though something is not black, as in a map of labels.
    """
    image = _opened(file)
    if (alpha := _alpha(image)) is not None:
        return alpha
    light = video.from_16_bits(image) if image.mode.startswith("I") else np.asarray(image.convert("L"))
    # an editor may save black and white as a palette, in either order
    if image.mode == "P" and not (_grey(image) and (light > 127).any()):
        return np.isin(np.asarray(image), (0, VOID), invert=True)
    if image.mode != "P" and (values := np.asarray(image)).max() == 1:
        return (values if values.ndim == 2 else values.max(axis=-1)) == 1
    if 0 < light.max() <= 127:
        raise UserError(f"{file}: nothing of the mask is lighter than half, the lightest is {light.max()} of 255; paint the subject white, or write 0 and 1")
    return light > 127


def decode_alpha(file: pathlib.Path) -> Bool[np.ndarray, "h w"] | None:
    """Where a picture is not transparent; None where nothing of it is."""
    return _alpha(_opened(file))


def _alpha(image) -> Bool[np.ndarray, "h w"] | None:
    alpha = np.asarray(image.convert("RGBA"))[..., 3] if image.has_transparency_data else None
    return None if alpha is None or (alpha == 255).all() else alpha > 127


def _grey(image) -> bool:
    colours = np.asarray(image.convert("RGB"))
    return bool((colours == colours[..., :1]).all())


def _opened(file: pathlib.Path):
    Image = video.import_pillow()
    from PIL import ImageOps

    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises whatever comes up in a damaged file
        raise UserError(f"{file} cannot be read as a mask: {video.reason(error)}") from error
