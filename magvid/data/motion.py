"""How much moves in the videos of a folder, as tools/measure_motion.py has measured it: which windows of a video have no
scene cut in them, and enough motion to learn from.

The released code of MAVIN (github.com/18445864529/MAVIN at 3a48e9d, mavin/data/dataset.py, class ConnectionDataset) drops a
window in which the SSIM of any two adjacent frames is below 0.1, and keeps, where `motion_selection` is set, only windows
with more optical flow than that. It computes the flow from the frame before the gap to the one after it; here it is the mean
over the steps between these two, so that one measurement serves every gap, stride and frame rate.

The file is json: the settings of the measurement, and for each video its content's digest and one number for each pair of
adjacent frames of the file (pair k is frames k and k + 1), at the file's own frame rate. A window is judged by all pairs
between its first and its last frame, those that a stride or another frame rate skips included.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from magvid.types import UserError

FORMAT = "magvid.motion/1"
TOOL = "tools/measure_motion.py"


class Measured(NamedTuple):
    """One video. ssim: in [-1, 1]; flow: mean length of the flow in pixels of the measured size, where it was asked for."""

    digest: str
    ssim: Float[np.ndarray, "pairs"]
    flow: Float[np.ndarray, "pairs"] | None


@dataclasses.dataclass(frozen=True)
class Motion:
    """Which windows of a video may be clips: those without a scene cut, and with `least_flow` those with enough motion.

    file: what tools/measure_motion.py has written. least_ssim: of any two adjacent frames of the video from the first to the
    last of a clip. least_flow: of the mean flow from a frame of the clip to the next one, in pixels of the measured size;
    the flow of the frames that a stride skips is added up. gap: (first, last + 1) of the frames that are to be filled in,
    over which that mean is taken, from the frame before the gap to the one after it; None: over the whole clip.

    A video that the file does not have, or has of another content, has no such window. UserError where the file is not
    there, is another one, or has no flow though it is needed.
    """

    file: str | os.PathLike
    least_ssim: float = 0.1
    least_flow: float | None = None
    gap: tuple[int, int] | None = None

    def __post_init__(self):
        if not -1 <= self.least_ssim <= 1 or (self.least_flow is not None and not self.least_flow >= 0):
            raise ValueError(
                f"least_ssim lies in [-1, 1] and least_flow is not negative, got {self.least_ssim=} {self.least_flow=}"
            )
        if self.gap is not None:
            if self.least_flow is None:
                raise ValueError(f"gap={tuple(self.gap)} is where the flow is averaged: give least_flow, or no gap")
            object.__setattr__(self, "gap", tuple(self.gap))  # a config has it as a list

    def starts(self, name: str, digest: str, order: Int[np.ndarray, "n"], frames: int, stride: int) -> Sequence[int] | str:
        """The places in `order`, the frames of the video that are shown, where a clip of every `stride`-th of them may begin;
        or why there is none.
        """
        first, stop = self.gap or (1, frames - 1)
        if self.gap and not 1 <= first < stop < frames:
            raise ValueError(f"gap={self.gap} must leave a frame before and after it in a clip of {frames} frames")
        entry = self.measured.get(name)
        if entry is None:
            return f"is not in {self.file}: run {TOOL} again"
        if entry.digest != digest or order[-1] > len(entry.ssim):
            return f"has changed since {self.file} was made: run {TOOL} again"
        begin = np.arange(len(order) - (frames - 1) * stride)
        between = lambda pairs, a, b: _sums(pairs)[order[begin + b * stride]] - _sums(pairs)[order[begin + a * stride]]
        allowed = between(entry.ssim < self.least_ssim, 0, frames - 1) == 0
        if not allowed.any():
            return f"every window has a scene cut (an SSIM below {self.least_ssim:g})"
        if self.least_flow is not None:
            steps = stop - first + 1
            allowed &= between(entry.flow, first - 1, first - 1 + steps) >= self.least_flow * steps
            if not allowed.any():
                return f"no window without a scene cut has a mean flow of {self.least_flow:g} pixels"
        return np.flatnonzero(allowed)

    @functools.cached_property
    def measured(self) -> dict[str, Measured]:
        found = load(self.file)[1]
        if self.least_flow is not None and any(entry.flow is None for entry in found.values()):
            raise UserError(f"{self.file} has no optical flow: measure it with {TOOL} --flow, or leave out least_flow")
        return found

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes with the settings and the content of the file."""
        settings = json.dumps([self.least_ssim, self.least_flow, self.gap]).encode()
        return hashlib.sha256(settings + pathlib.Path(self.file).expanduser().read_bytes()).hexdigest()[:16]

    def __reduce__(self):
        return Motion, (self.file, self.least_ssim, self.least_flow, self.gap)  # worker processes need no measurements


def _sums(pairs: np.ndarray) -> np.ndarray:
    """Of the first 0, 1, 2, ... pairs: what happens between frames a and b is sums[b] - sums[a]."""
    return np.concatenate([[0], np.cumsum(pairs, dtype=np.float64)])


# The file -----------------------------------------------------------------------------------------------------------


def load(file: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Measured]]:
    """The settings of the measurement, {"size": [height, width], "flow": how, or None}, and {name: a video}."""
    path = pathlib.Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"there is no file {path}: {TOOL} writes it, once for a folder of videos")
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, not {FORMAT}")
        return content["settings"], {name: _measured(*row) for name, row in content["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not what {TOOL} writes, or damaged ({error!r}): make it again") from error


def _measured(digest: str, ssim: list[float], flow: list[float] | None) -> Measured:
    pairs = [None if numbers is None else np.asarray(numbers, np.float32) for numbers in (ssim, flow)]
    if not isinstance(digest, str) or any(p is not None and p.shape != (len(ssim),) for p in pairs):
        raise ValueError("a row is not a digest and the numbers of all pairs")
    return Measured(digest, *pairs)


def save(file: str | os.PathLike, settings: Mapping[str, Any], files: Mapping[str, Measured]) -> None:
    """Replaces the file at once. Numbers are rounded to four decimals."""
    path = pathlib.Path(file).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = lambda pairs: None if pairs is None else [round(float(x), 4) for x in pairs]
    row = lambda entry: json.dumps([entry.digest, numbers(entry.ssim), numbers(entry.flow)])
    rows = ",\n".join(f"{json.dumps(name)}: {row(files[name])}" for name in sorted(files))
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(f'{{"format": "{FORMAT}", "settings": {json.dumps(settings)}, "files": {{\n{rows}\n}}}}\n', "utf-8")
    os.replace(partial, path)
