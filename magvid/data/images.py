"""A folder of image files as a source of one-frame clips: png, jpg, webp, bmp and the first frame of gif, by Pillow.

    folder/cats/a.png ...    one class per sub-folder, or
    folder/a.png ...         one class, named like the folder

The files are listed but not opened at the start, so that ImageNet's 1.28 million take seconds.
"""

import hashlib
import io
import os
import pathlib
from typing import Any

import numpy as np
from jaxtyping import UInt8

from magvid import video
from magvid.data.source import Cut, Source, class_name, file_names, no_folder, report_bad, split_names
from magvid.types import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


class ImageFolder(Source):
    """Source of uint8 clips of one frame (1 height width 3) from the image files under `path`.

    height, width: the picture is resized (anti-aliased) so that it covers them, then cropped; crop: "random" or
    "centre", of the clips `read(i, rng)` gives. split: "train" or "validation" (a share `holdout` of the files, chosen
    by a hash of their relative names), None for all.

    A record is {"video": uint8 (1 h w 3), "label": int32 in [0, len(classes)), "file": str}. Attributes: `classes`,
    `files` (of this split), `bad` (name -> reason: files that are empty or cannot be opened). What else is wrong with a
    file shows when it is read: the next readable one takes its place, with one warning per file. Raises UserError where
    there is no folder, no image in it, or none that is usable.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        height: int,
        width: int,
        crop: str = "random",
        split: str | None = None,
        holdout: float = 0.1,
    ):
        super().__init__(1, height, width, crop=crop)
        self.path = pathlib.Path(path).expanduser()
        if not self.path.is_dir():
            raise UserError(no_folder(path, "images"))
        video.import_pillow()  # a missing package is no fault of the files
        names = sorted(file_names(self.path, SUFFIXES))
        if not names:
            raise UserError(f"{path} holds no images: expected files named *{', *'.join(SUFFIXES)}")
        sizes = {name: _size(f"{self.path}/{name}") for name in names}
        self.bad = {name: size for name, size in sizes.items() if isinstance(size, str)}
        report_bad(self.path, self.bad, len(names), "images", "Replace the files.")
        names = [name for name in names if name not in self.bad]
        self.classes = tuple(sorted({class_name(self.path, name) for name in names}))  # of both splits
        self.files = split_names(names, split, holdout)
        self._numbers = {name: i for i, name in enumerate(self.classes)}
        self._digest = hashlib.sha256(os.fsencode("\n".join(f"{n} {sizes[n]}" for n in self.files))).hexdigest()

    @property
    def records(self) -> int:
        return len(self.files)

    @property
    def fingerprint(self) -> str:
        """Changes with the names and sizes of the files and the way clips are cut from them."""
        return hashlib.sha256(f"{self.height} {self.width} {self.crop} {self._digest}".encode()).hexdigest()[:16]

    def cut(self, i: int, cut: Cut) -> dict[str, Any]:
        name = self.files[i]
        image = decode_image(self.path / name, (self.height, self.width))
        clip = video.resize_crop(image[None], self.height, self.width, cut.y, cut.x)
        return {"video": clip, "label": np.int32(self._numbers[class_name(self.path, name)]), "file": name}


def _size(file: str) -> int | str:
    """Bytes, or why the file is no good."""
    try:
        return os.stat(file).st_size or "empty file"
    except OSError as error:
        return f"cannot be opened: {error.strerror}"


def decode_image(
    file: pathlib.Path | bytes, cover: tuple[int, int] | None = None, name: str | None = None, blend: bool = True
) -> UInt8[np.ndarray, "h w 3"]:
    """A file (or its bytes) as it is meant to be seen: upright by its EXIF orientation, transparency over white (without `blend`:
    all as if it were opaque), grey repeated, 16 bits rounded down to 8.

    cover: height and width that are needed; a larger JPEG is decoded at a half, quarter or eighth of its size if that
    covers them either way round. Raises UserError naming the file (`name` for bytes) where it cannot be decoded.
    """
    Image = video.import_pillow()
    from PIL import ImageOps

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            if cover:
                image.draft(None, (max(cover), max(cover)))
            return _rgb(ImageOps.exif_transpose(image), Image, blend)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises whatever comes up in a damaged file: ten kinds of exceptions at least
        raise UserError(f"{name or file} cannot be read as an image: {video.reason(error)}") from error


def _rgb(image: Any, Image: Any, blend: bool) -> np.ndarray:
    if image.mode.startswith("I"):
        return np.repeat(video.from_16_bits(image)[..., None], 3, axis=-1)
    if blend and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))
