"""Masks of a subject: out of files, where they are transparency or pictures of their own; and resized as pictures are."""

import pathlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, UInt8

from magvid import video
from magvid.types import UserError


def resized(masks: Bool[np.ndarray, "t a b"], resize: Callable[[UInt8[np.ndarray, "t a b"]], np.ndarray]) -> Bool[np.ndarray, "t h w"]:
    """What of masks is at least half covered after `resize`, of pictures (t a b) -> (t h w), in one channel, which Pillow resizes as it
    does three.
    """
    return resize(masks.astype(np.uint8) * 255) >= 128


def decode_mask(file: pathlib.Path) -> Bool[np.ndarray, "h w"]:
    """Where the picture of a mask is not transparent, or, where nothing of it is transparent, lighter than half; of a palette of colours, as DAVIS has
    it, all but number 0. UserError where the file cannot be read.
    """
    image = _opened(file)
    if (alpha := _alpha(image)) is not None:
        return alpha
    light = np.asarray(image.convert("L")) > 127
    # an editor may save black and white as a palette, in either order
    return np.asarray(image) > 0 if image.mode == "P" and not (_grey(image) and light.any()) else light


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
        raise UserError(f"{file} cannot be read as a mask: {' '.join(str(error).split()) or type(error).__name__}") from error
