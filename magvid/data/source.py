"""What the sources of clips have in common: which cut of a file is shown, what takes the place of a file that cannot be
read, and how the files of a folder are listed and split.
"""

import functools
import hashlib
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from magvid import video
from magvid.data.masks import resized, same_shape
from magvid.data.motion import Motion
from magvid.types import UserError

TRIES = 100  # files in a row that may be unreadable before that is an error
log = logging.getLogger(__name__)


class Cut(NamedTuple):
    """Where a clip is cut out of a video, as shares in [0, 1); the default is the centre.

    when: of the possible first frames; y, x: of the room beside the crop; caption: of the captions. window: (k, n)
    takes the k-th of n moments evenly spread from the first to the last one instead of `when`.
    """

    when: float = 0.5
    y: float = 0.5
    x: float = 0.5
    caption: float = 0.0
    window: tuple[int, int] | None = None

    def first(self, starts: int) -> int:
        """The first frame, where `starts` >= 1 are possible."""
        if self.window:
            k, n = self.window
            return k * (starts - 1) // max(n - 1, 1)
        return min(int(self.when * starts), starts - 1)


class Source:
    """Random access to clips, one of each of `records` files or records (or `windows` of each).

    `source[i]` is the clip cut from the centre; with `windows` = n, clip i is window i // records of record
    i % records, so that the first `records` clips are the beginnings (the standard protocol of BAIR) and all are the
    "debiased" one. `read(i, rng)` cuts at random, or at the centre with `crop="centre"`. A record that cannot be read
    is replaced by the next one that can, with one warning. A subclass sets `records` and has `cut(i, cut) -> record`,
    which raises UserError or OSError for a record that cannot be read.
    """

    records: int

    def __init__(
        self,
        frames: int,
        height: int,
        width: int,
        stride: int = 1,
        crop: str = "random",
        windows: int = 0,
        *,
        keep_aspect: bool = True,
        motion: Motion | None = None,
        spread: bool = False,
    ):
        """frames, height, width: size of a clip, of every `stride`-th frame. keep_aspect: a picture is cropped to the shape
        of a clip; False squeezes all of it into height x width. motion: which windows of a file may be clips; None: all.
        spread: a clip's frames lie evenly from the first to the last one of the file, so that it shows all that happens;
        `stride` must then be 1, there are no several windows, and `crop` concerns space alone. ValueError for what cannot
        be meant.
        """
        if crop not in ("random", "centre"):
            raise ValueError(f'crop must be "random" or "centre", got {crop!r}')
        if min(frames, height, width, stride) < 1:
            raise ValueError(f"sizes must be positive, got {frames=} {height=} {width=} {stride=}")
        if windows < 0 or (windows and crop == "random"):
            raise ValueError(f'windows={windows} with crop="{crop}": a number of windows goes with crop="centre"')
        if spread and (stride != 1 or windows > 1):
            raise ValueError(f"spread: a clip is of the whole file, so stride must be 1 and windows at most 1, got {stride=} {windows=}")
        self.frames, self.height, self.width, self.stride = frames, height, width, stride
        self.crop, self.windows, self.keep_aspect, self.motion, self.spread = crop, windows, keep_aspect, motion, spread
        self._warned: set[int] = set()

    @property
    def span(self) -> int:
        """Frames of a video from the first to the last of a clip."""
        return (self.frames - 1) * self.stride + 1

    def __len__(self) -> int:
        return self.records * max(self.windows, 1)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self._readable(range(len(self))[i], Cut())

    def read(self, i: int, rng: np.random.Generator) -> dict[str, Any]:
        """A clip of record i whose moment, crop and caption are drawn from `rng`; `crop="centre"`: only the caption."""
        drawn = Cut(*rng.random(4).tolist())
        return self._readable(range(len(self))[i], drawn if self.crop == "random" else Cut(caption=drawn.caption))

    def cut(self, i: int, cut: Cut) -> dict[str, Any]:
        raise NotImplementedError

    def spread_out(self, order: Int[np.ndarray, "n"]) -> Int[np.ndarray, "m"]:
        """With `spread`, of these frames the ones that a clip shows; too few are left as they are, for `starts` to say so."""
        if not self.spread or len(order) < self.frames:
            return order
        return order[np.rint(np.linspace(0, len(order) - 1, self.frames)).astype(int)]

    def starts(
        self, name: str, digest: str, order: Int[np.ndarray, "n"], stride: int, fps: float | None = None
    ) -> Sequence[int] | str:
        """Where a clip may begin in the frames of a file that are shown, `order` (their numbers in the file), or why it may
        nowhere. digest: of the file's content. fps: the rate of these frames, where it is not the file's own.
        """
        span = (self.frames - 1) * stride + 1
        if len(order) < span:
            rate = f" at {fps:g} fps" if fps else ""
            return f"too short: {len(order)} frames{rate}, a clip needs {span}"
        if self.motion is None:
            return range(len(order) - span + 1)
        return self.motion.starts(name, digest, order, self.frames, stride)

    def fit(self, images: UInt8[np.ndarray, "t a b 3"], cut: Cut) -> UInt8[np.ndarray, "t h w 3"]:
        """Pictures at the size of a clip."""
        if self.keep_aspect:
            return video.resize_crop(images, self.height, self.width, cut.y, cut.x)
        return video.stretch(images, self.height, self.width)

    def fit_mask(self, mask: Bool[np.ndarray, "p q"], shape: tuple[int, int], cut: Cut, name: Any) -> Bool[np.ndarray, "h w"]:
        """The mask of a picture (a b 3), of which `shape` is a and b, at the size of a clip, cut as the picture is: what is at least half
        covered. UserError naming the mask where its shape is another one, by more than a pixel.
        """
        (a, b), (p, q) = shape, mask.shape
        if not same_shape(shape, mask.shape):
            raise UserError(f"{name} is {q}x{p} pixels and its picture {b}x{a}: a mask has the shape of its picture")
        return resized(mask[None], lambda grey: self.fit(grey if (p, q) == (a, b) else video.stretch(grey, a, b), cut))[0]

    def _readable(self, i: int, cut: Cut) -> dict[str, Any]:
        """Clip i, or that of the next record that can be read."""
        window, record = divmod(i, self.records)
        cut = cut._replace(window=(window, self.windows)) if self.windows else cut
        errors = []
        for j in ((record + k) % self.records for k in range(min(self.records, TRIES))):
            try:
                return self.cut(j, cut)
            except (UserError, OSError) as error:
                errors.append(error)
                if j not in self._warned:
                    self._warned.add(j)
                    log.warning("%s; the next usable one takes its place", error)
        raise UserError(f"{len(errors)} of {self.records} clips in a row cannot be read: {errors[0]}")


# Folders of files ---------------------------------------------------------------------------------------------------


def file_names(path: pathlib.Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Relative names of the files below `path` that end so, through links (each folder once), without hidden ones."""
    seen = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else [f for f in folders if not f.startswith(".")]
        if real not in seen:
            within = pathlib.Path(folder).relative_to(path).as_posix()
            prefix = "" if within == "." else f"{within}/"
            yield from (prefix + f for f in files if not f.startswith(".") and f.lower().endswith(suffixes))
        seen.add(real)


def no_folder(path: str | os.PathLike, what: str) -> str:
    """The message where `path` is not a folder of `what`."""
    path = pathlib.Path(path).expanduser().absolute()
    is_file = ", it is a file" if path.exists() else ""
    return f"there is no folder {path}{is_file}: put {what} there, or say where they are (the source's `path` in the config)"


def class_name(path: pathlib.Path, name: str) -> str:
    """The class of a file: its first folder below `path`, or `path` itself."""
    return name.split("/")[0] if "/" in name else path.resolve().name


def instruction(text: str) -> str:
    """A text as it is told to a model: lower case, single blanks, no full stop at the end."""
    return " ".join(text.lower().split()).rstrip(". ")


def split_names(names: list[str], split: str | None, holdout: float) -> list[str]:
    """The files of a split ("train", "validation", None: all), chosen by a hash of their names: stable under additions,
    and neither side empty where there are two.
    """
    if split not in (None, "train", "validation"):
        raise ValueError(f'split must be "train", "validation" or None, got {split!r}')
    if split is None:
        return names
    if not 0 < holdout < 1:
        raise ValueError(f"holdout must lie between 0 and 1, got {holdout}")
    if len(names) == 1:
        warn_once(f"only one usable file ({names[0]}): it serves for training and for validation")
        return names
    draws = {n: int.from_bytes(hashlib.sha256(os.fsencode(n)).digest()[:8], "big") / 2**64 for n in names}
    ranked = sorted(names, key=draws.__getitem__)
    count = min(max(sum(draw < holdout for draw in draws.values()), 1), len(names) - 1)
    return sorted(ranked[:count] if split == "validation" else ranked[count:])


def report_bad(path: pathlib.Path, bad: dict[str, str], total: int, noun: str, remedy: str) -> None:
    """A warning that names the first of the files that are left out; UserError where that is all of them."""
    reasons = [f"{name} ({reason})" for name, reason in bad.items()]
    if len(bad) == total:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise UserError(f"none of the {total} {noun} in {path} is usable: {'; '.join(reasons[:5])}{more}. {remedy}")
    if bad:
        more = f" and {len(bad) - 20} more" if len(bad) > 20 else ""
        warn_once(f"{path}: {len(bad)} of {total} {noun} are left out: {'; '.join(reasons[:20])}{more}")


@functools.cache
def warn_once(message: str) -> None:
    """A job opens a folder several times: for training, validation, evaluation. Bytes of a file's name that are not text
    are escaped: a log may be kept where they cannot be written."""
    log.warning("%s", message.encode(errors="backslashreplace").decode())
