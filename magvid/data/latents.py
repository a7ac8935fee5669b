"""Latents in place of videos (see cache.py): the Gaussian that a frozen autoencoder makes of each view of a clip.

A row holds mean and log-variance ((t', h', w', c), float16, little-endian), as many of the first frames (h, w, 3), uint8, as the
model is shown, what frozen towers say of the clip (its features, float16) with a checksum of what each was made of, and then all else
that the record had, as JSON: captions, labels, names of files.
"""

import base64
import dataclasses
import json
import os
import types
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import Float, UInt8

from magvid.data.cache import Cache, CacheRecord, differ
from magvid.data.stream import Record
from magvid.types import UserError

DTYPE, CHECKSUM = np.dtype("<f2"), np.dtype("<u4")
LARGE = 1024  # bytes of an array from which on it is compressed
FEATURES = "_features"  # the entry of a record, until its texts are known


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentRecord(CacheRecord):
    """What the latents in a folder are; `latent` is (t', h', w', c)."""

    vae: dict  # {"run", "weights", "hash" of the weights, "spec"}
    frames: int  # how many of the first frames are there
    entries: Sequence[str]  # what else is there of a record
    features: dict = dataclasses.field(default_factory=dict)  # {name: {"shape", "inputs", "hash" of its towers' weights, "spec"}}

    what, version, encoder, parts = "latents", 2, "vae", "entries"

    def differences(self, other: Self) -> list[str]:
        found = super().differences(other)
        if other.frames > self.frames:
            found.append(f"this model is shown {other.frames} of a clip's frames, and {self.frames} are there")
        for name in self.features.keys() & other.features.keys():
            found += differ(self.features[name], other.features[name], f"{name}.")
        return found + [f"{name} is not there" for name in other.entries if name not in self.entries]

    @property
    def contents(self) -> str:
        some = {0: [], 1: ["first frames"], self.clip[0]: ["frames"]}.get(self.frames, [f"first {self.frames} frames"])
        return ", ".join(["latents", *some, *sorted(self.features), *self.entries])

    @property
    def row_bytes(self) -> int:
        return sum(self._sizes)

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """Bytes of mean and log-variance, of the frames, of the features and their checksums."""
        numbers = sum(int(np.prod(kept["shape"])) for kept in self.features.values())
        latents = 2 * int(np.prod(self.latent)) * DTYPE.itemsize
        return latents, 3 * self.frames * int(np.prod(self.clip[1:])), numbers * DTYPE.itemsize + len(self.features) * CHECKSUM.itemsize

    @property
    def inputs(self) -> list[str]:
        """What features are made of, beside the video."""
        return sorted({name for kept in self.features.values() for name in kept["inputs"]})

    @property
    def towers(self) -> set[str]:
        """Those that have made the features."""
        return {tower for kept in self.features.values() for tower in kept["hash"]}

    def shown(self, record: Record, told: Record) -> Record:
        """`told`: what the data's transforms make of the record."""
        return {"video": record["video"], "rest": pack_entries({k: v for k, v in record.items() if k != "video"}), **{k: told[k] for k in self.inputs}}

    def pack(
        self,
        mean: Float[np.ndarray, "t h w c"],
        logvar: Float[np.ndarray, "t h w c"],
        video: UInt8[np.ndarray, "tt hh ww 3"],
        rest: str,
        features: Mapping[str, np.ndarray] = types.MappingProxyType({}),
        told: Mapping[str, np.ndarray] = types.MappingProxyType({}),
    ) -> bytes:
        """Of `video` what is kept; `told` are the `inputs`. UserError where float16 cannot hold a number."""
        for what, numbers in {"a latent": mean, **features}.items():
            if not np.isfinite(numbers).all():
                without = "--features" if what in features else "a cache"
                raise UserError(f"{what} is too large for float16, or not a number: are the weights the right ones? Without {without} it is used as it is")
        arrays = [mean.astype(DTYPE), logvar.astype(DTYPE), video[: self.frames]]
        arrays += [features[name].astype(DTYPE) for name in self.features]
        arrays += [np.asarray([checksum(told, kept["inputs"]) for kept in self.features.values()], CHECKSUM)]
        return b"".join(a.tobytes() for a in arrays) + rest.encode()

    def unpack(self, row: bytes) -> Record:
        latents, pixels, kept = self._sizes
        if len(row) < self.row_bytes:
            raise ValueError(f"it has {len(row)} bytes and should have {self.row_bytes} or more")
        mean, logvar = np.frombuffer(row[:latents], DTYPE).reshape(2, *self.latent)
        found = {"latent_mean": mean, "latent_logvar": logvar}
        frames = np.frombuffer(row, np.uint8, pixels, latents).reshape(self.frames, *self.clip[1:], 3)
        if self.frames == 1:
            found["image"] = frames[0]
        elif self.frames:
            found["video" if self.frames == self.clip[0] else "frames"] = frames
        if self.features:
            found[FEATURES] = self._features(row[latents + pixels : self.row_bytes])
        return found | unpack_entries(row[self.row_bytes :].decode())

    def _features(self, part: bytes) -> dict[str, tuple[np.ndarray, int]]:
        """{name: (feature, checksum of what it was made of)}."""
        found, place = {}, 0
        for (name, kept), made_of in zip(self.features.items(), np.frombuffer(part, CHECKSUM, offset=len(part) - len(self.features) * CHECKSUM.itemsize), strict=True):
            count = int(np.prod(kept["shape"]))
            found[name] = np.frombuffer(part, DTYPE, count, place).reshape(kept["shape"]), int(made_of)
            place += count * DTYPE.itemsize
        return found


class LatentCache(Cache):
    """A source of latents: a record is what `source` gives, with "latent_mean" and "latent_logvar" in place of the "video"; where the
    model is shown its first frame, that is there as "image", several as "frames", and where it is shown all, the "video" stays. What
    frozen towers say of it is there under the names of the `features` that are kept and can be used.
    """

    def __init__(self, source: Any, folder: str | os.PathLike, wanted: LatentRecord):
        super().__init__(source, folder, wanted)
        self.features = {name: kept for name, kept in self.record.features.items() if name in wanted.features}

    def view(self, clip: int, view: int) -> Record:
        return self.row(clip, view)

    @property
    def last(self):
        return (self.told,) if self.record.features else ()

    def told(self, record: Record, rng: np.random.Generator) -> Record:
        """The transform that puts the features in their places; UserError where they were made of something else than this record."""
        found = {}
        for name, (feature, made_of) in record[FEATURES].items():
            if name not in self.features:
                continue
            inputs = self.features[name]["inputs"]
            if checksum(record, inputs) != made_of:
                raise UserError(
                    f"{name} in {self.folder} was made of other {' and '.join(inputs)} than those at position {record['index']} of the stream: were texts "
                    "or a tokenizer changed since, or are some drawn at random? Undo that, set data.<split>.features=False to do without, or write others "
                    "with this config and another --out"
                )
            found[name] = feature
        return {key: value for key, value in record.items() if key != FEATURES} | found


def checksum(record: Mapping[str, Any], inputs: Sequence[str]) -> int:
    """Of these entries; KeyError where one is not there."""
    found = 0
    for name in inputs:
        found = zlib.crc32(np.ascontiguousarray(record[name]).tobytes(), found)
    return found


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
