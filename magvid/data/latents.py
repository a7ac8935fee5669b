"""Latents in place of videos (see cache.py): the Gaussian that a frozen autoencoder makes of each view of a clip.

A row holds mean and log-variance ((t', h', w', c), float16, little-endian), the first frame (h, w, 3), uint8, where the model is shown
it, or the whole video (t, h, w, 3) where it is shown any of its frames, and then all else that the record had, as JSON: captions,
labels, names of files.
"""

import base64
import dataclasses
import json
import zlib
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import Float, UInt8

from magvid.data.cache import Cache, CacheRecord
from magvid.data.stream import Record
from magvid.types import UserError

DTYPE = np.dtype("<f2")
LARGE = 1024  # bytes of an array from which on it is compressed


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentRecord(CacheRecord):
    """What the latents in a folder are; `latent` is (t', h', w', c)."""

    vae: dict  # {"run", "weights", "hash" of the weights, "spec"}
    image: bool  # whether the first frames are there
    entries: Sequence[str]  # what else is there of a record
    video: bool = False  # whether all frames are there

    what, version, encoder, parts = "latents", 1, "vae", "entries"

    def differences(self, other: Self) -> list[str]:
        found = super().differences(other)
        if other.image and not (self.image or self.video):
            found.append("the first frames, which this model is shown, are not there")
        if other.video and not self.video:
            found.append("the frames, which this model is shown, are not there")
        return found + [f"{name} is not there" for name in other.entries if name not in self.entries]

    @property
    def contents(self) -> str:
        frames = ["frames"] if self.video else ["first frames"] if self.image else []
        return ", ".join(["latents", *frames, *self.entries])

    @property
    def row_bytes(self) -> int:
        return self._sizes[0] + self._sizes[1]

    @property
    def _sizes(self) -> tuple[int, int]:
        """Bytes of mean and log-variance, and of the frames."""
        pixels = 3 * self._frames * int(np.prod(self.clip[1:]))
        return 2 * int(np.prod(self.latent)) * DTYPE.itemsize, pixels

    @property
    def _frames(self) -> int:
        return self.clip[0] if self.video else int(self.image)

    def shown(self, record: Record) -> Record:
        return {"video": record["video"], "rest": pack_entries({k: v for k, v in record.items() if k != "video"})}

    def pack(
        self,
        mean: Float[np.ndarray, "t h w c"],
        logvar: Float[np.ndarray, "t h w c"],
        video: UInt8[np.ndarray, "tt hh ww 3"],
        rest: str,
    ) -> bytes:
        """Of `video` what is kept. UserError where float16 cannot hold a latent."""
        if not np.isfinite(mean).all():
            raise UserError(
                "a latent is too large for float16, or not a number: is this autoencoder the right one? Without a cache it "
                "is used as it is"
            )
        arrays = [mean.astype(DTYPE), logvar.astype(DTYPE), video[: self._frames]]
        return b"".join(a.tobytes() for a in arrays) + rest.encode()

    def unpack(self, row: bytes) -> Record:
        size, pixels = self._sizes
        if len(row) < size + pixels:
            raise ValueError(f"it has {len(row)} bytes and should have {size + pixels} or more")
        mean, logvar = np.frombuffer(row[:size], DTYPE).reshape(2, *self.latent)
        found = {"latent_mean": mean, "latent_logvar": logvar}
        frames = np.frombuffer(row, np.uint8, pixels, size).reshape(self._frames, *self.clip[1:], 3)
        if self.video:
            found["video"] = frames
        elif self.image:
            found["image"] = frames[0]
        return found | unpack_entries(row[size + pixels :].decode())


class LatentCache(Cache):
    """A source of latents: a record is what `source` gives, with "latent_mean" and "latent_logvar" in place of the "video"; where the
    model is shown its first frame, that is there as "image", and where it is shown others, the "video" stays.
    """

    def view(self, clip: int, view: int) -> Record:
        return self.row(clip, view)


def pack_entries(entries: Record) -> str:
    """JSON of texts, lists of texts, numbers and arrays, which keep their type, large ones (pictures, masks) compressed; UserError for anything else."""

    def packed(name: str, value: Any) -> Any:
        if isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)):
            return value
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise UserError(
                f"{name} is a {type(value).__name__}, which cannot be kept beside latents: leave it out (the source's `keys`)"
            )
        if array.nbytes > LARGE:
            return {"dtype": array.dtype.str, "shape": array.shape, "zlib": base64.b64encode(zlib.compress(array.tobytes(), 1)).decode()}
        return {"dtype": array.dtype.str, "value": array.tolist()}

    return json.dumps({name: packed(name, value) for name, value in entries.items()})


def unpack_entries(text: str) -> Record:
    """ValueError where `text` is not what `pack_entries` makes."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("the entries are not an object")


    def unpacked(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "zlib" not in value:
            return np.asarray(value["value"], value["dtype"])[()]
        try:
            return np.frombuffer(zlib.decompress(base64.b64decode(value["zlib"])), value["dtype"]).reshape(value["shape"])
        except zlib.error as error:
            raise ValueError(f"an array cannot be decompressed ({error})") from None

    return {name: unpacked(value) for name, value in found.items()}
