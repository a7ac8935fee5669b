"""TigDog's video shots of tigers, horses or dogs, with what the animal does in every frame (Del Pero et al., CVPR 2015, and
IJCV 2017, https://arxiv.org/abs/1511.09319).

    behaviorDiscovery2.0/                  of the download, http://calvin-vision.net/datasets/tigdog
        tiger/00000001.jpg ...             the frames of all shots, one shot after the other (tiger.tar.gz)
        ranges/tiger/ranges.mat            `ranges`: for each shot its id, first and last frame (included)
        behaviors/tiger/4.mat              `annotations` of shot 4: a cell for each of its frames with the ids of what the
                                           animal does, at the largest scale first; an empty one where nothing moves
        behaviors/tiger/behaviors.m        what the ids mean

This is what the data set's own README says ("Behavior discovery dataset 2.0": 523 shots of tigers out of nature documentaries,
102 of dogs and 99 of horses from YouTube). Paths and array of the ranges as also read by
github.com/JitengMu/Learning-from-Synthetic-Animals at 1ff5b52, pose/datasets/real_animal.py, and
github.com/emna1ghorbel/horse-pose-repro, data/preprocess.py (shape (99, 3), {frame:08d}.jpg).

The archive itself was not at hand. Of behaviors.m only the README is known, "1 = walking, 2 = turning_head, ...", not how
that is written down: a list of quoted names, or an id and a name on each line, is understood, and `behaviors` says it
otherwise. No public code that reads behaviors/*.mat was found. Landmarks and segmentations are not read.
"""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.io
from jaxtyping import Int, UInt8

from magvid.data.images import decode_image
from magvid.data.motion import Motion
from magvid.data.source import Cut, Source, no_folder, report_bad, split_names
from magvid.types import UserError

NOTHING = "nothing"  # class 0: of frames without a behaviour, and of shots that nobody has annotated


class Shot(NamedTuple):
    """One usable shot; `behaviors`: of each frame the id of the one at the largest scale, 0 for none."""

    name: str
    first: int
    behaviors: Int[np.ndarray, "n"]
    digest: str
    starts: Sequence[int]


class TigDog(Source):
    """Source of uint8 clips (frames height width 3) of the shots of `animal` below `path`, the folder behaviorDiscovery2.0.

    frames, height, width, stride, keep_aspect: as for `VideoFolder`; the frame rate of the shots is not known. animal: "tiger",
    "horse" or "dog". split: "train" or "validation" (a share `holdout` of the shots, chosen by a hash of their names), None
    for all. behaviors: the names of the ids 1, 2, ..., in place of those in behaviors.m. motion: see `data.motion`.

    A record is {"video": uint8 (t h w 3), "label": int32 in [0, len(classes)), "action": str, "text": str, "file": str,
    "digest": str}. action: what the animal does in most frames of the clip, "turning head"; where that is nothing, or not known,
    the label is 0 and the action "nothing". text: "tiger turning head"; without an action "tiger". file: such as "tiger/4", of
    shot 4. digest: of the names and sizes of the shot's frames. Attributes:
    `classes`, `files` (usable shots of this split), `bad` (name -> reason). A shot that cannot be read later is replaced by
    the next one that can. UserError where the archive is not there, is laid out otherwise, or has no usable shot.
    """

    fps = None  # the archive does not say

    def __init__(
        self,
        path: str | os.PathLike,
        frames: int,
        height: int,
        width: int,
        animal: str = "tiger",
        *,
        stride: int = 1,
        crop: str = "random",
        split: str | None = None,
        holdout: float = 0.1,
        windows: int = 0,
        keep_aspect: bool = True,
        motion: Motion | None = None,
        behaviors: Sequence[str] | None = None,
    ):
        super().__init__(frames, height, width, stride, crop, windows, keep_aspect=keep_aspect, motion=motion)
        self.path, self.animal = pathlib.Path(path).expanduser(), animal
        if not (self.path / animal).is_dir():
            raise UserError(no_folder(self.path / animal, f"TigDog's frames ({animal}.tar.gz)"))
        names = behaviors or _behaviors(self.path / "behaviors" / animal / "behaviors.m")
        self.classes = (NOTHING, *(name.replace("_", " ") for name in names))
        shots, self.bad = self._usable(read_ranges(self.path / "ranges" / animal / "ranges.mat"))
        self.files = split_names(sorted(shots), split, holdout)
        self.records, self._shots = len(self.files), [shots[name] for name in self.files]

    @property
    def fingerprint(self) -> str:
        """Changes with the names and sizes of the frames and the way clips are cut from them."""
        cut = [self.frames, self.height, self.width, self.stride, self.crop, self.windows, self.keep_aspect]
        content = [cut, self.motion and self.motion.fingerprint, [(shot.name, shot.digest) for shot in self._shots]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def whole(self, i: int) -> tuple[str, str, Iterator[UInt8[np.ndarray, "h w 3"]]]:
        """Name, digest of the content and all frames of shot i, as they are in the archive."""
        shot = self._shots[i]
        return shot.name, shot.digest, (decode_image(self._frame(shot.first + k)) for k in range(len(shot.behaviors)))

    def cut(self, i: int, cut: Cut) -> dict[str, Any]:
        shot = self._shots[i]
        first = shot.starts[cut.first(len(shot.starts))]
        shown = range(first, first + self.span, self.stride)
        size = (self.height, self.width)
        images = [self.fit(decode_image(self._frame(shot.first + k), size)[None], cut) for k in shown]
        label = int(np.bincount(shot.behaviors[shown]).argmax())
        action = self.classes[label]
        text = f"{self.animal} {action}" if label else self.animal
        told = {"action": action, "text": text, "file": shot.name, "digest": shot.digest}
        return {"video": np.concatenate(images), "label": np.int32(label), **told}

    def _frame(self, number: int) -> pathlib.Path:
        return self.path / self.animal / f"{number:08d}.jpg"

    def _usable(self, ranges: Int[np.ndarray, "n 3"]) -> tuple[dict[str, Shot], dict[str, str]]:
        """Divides the shots into usable ones and {name: reason}; reports the latter."""
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(self.path / self.animal)}
        found: dict[str, Shot | str] = {}
        for shot, first, last in ranges.tolist():
            name, frames = f"{self.animal}/{shot}", [f"{k:08d}.jpg" for k in range(first, last + 1)]
            if missing := [frame for frame in frames if not sizes.get(frame)]:
                found[name] = f"{len(missing)} of its frames are missing or empty, such as {missing[0]}"
                continue
            digest = hashlib.sha256(json.dumps([(frame, sizes[frame]) for frame in frames]).encode()).hexdigest()
            starts = self.starts(name, digest, np.arange(len(frames)), self.stride)
            behaviors = self._annotated(shot, len(frames))
            reason = next((x for x in (starts, behaviors) if isinstance(x, str)), None)
            found[name] = reason or Shot(name, first, behaviors, digest, starts)
        bad = {name: shot for name, shot in found.items() if isinstance(shot, str)}
        report_bad(self.path, bad, len(found), "shots", "Unpack the archive again, or lower frames or stride.")
        return {name: shot for name, shot in found.items() if name not in bad}, bad

    def _annotated(self, shot: int, frames: int) -> Int[np.ndarray, "n"] | str:
        """The behaviour at the largest scale in each frame, or what is wrong with the file; 0 where there is no file."""
        file = self.path / "behaviors" / self.animal / f"{shot}.mat"
        if not file.is_file():
            return np.zeros(frames, int)
        try:
            cells = np.ravel(_loadmat(file, "annotations"))
            ids = np.array([int(np.ravel(cell)[0]) if np.size(cell) else 0 for cell in cells], int)
        except (UserError, ValueError, TypeError) as error:
            return f"{file} is not understood: {error}"
        if len(ids) != frames:
            return f"{file} has {len(ids)} annotations for {frames} frames"
        if ids.min() < 0 or ids.max() >= len(self.classes):
            return f"{file} has behaviour {ids.max()}, of {len(self.classes) - 1} with a name: give all names as `behaviors`"
        return ids


def read_ranges(file: pathlib.Path) -> Int[np.ndarray, "n 3"]:
    """ranges.mat -> shot id, first and last frame of each shot. UserError where it is not there or is something else."""
    if not file.is_file():
        raise UserError(f"there is no file {file}: `path` is the folder behaviorDiscovery2.0 of TigDog's download")
    ranges = np.asarray(_loadmat(file, "ranges"))
    if ranges.ndim != 2 or ranges.shape[1] != 3 or ranges.dtype.kind not in "iuf" or not len(ranges):
        raise UserError(f"`ranges` of {file} has shape {ranges.shape}, type {ranges.dtype}: expected numbers (shots, 3)")
    ranges = ranges.astype(np.int64)
    if (wrong := ranges[(ranges[:, 1] < 0) | (ranges[:, 2] < ranges[:, 1])]).size:
        raise UserError(f"{file}: shot {wrong[0, 0]} goes from frame {wrong[0, 1]} to {wrong[0, 2]}")
    return ranges


def _loadmat(file: pathlib.Path, name: str) -> Any:
    try:
        content = scipy.io.loadmat(file)
    except Exception as error:  # of damaged files scipy raises whatever comes up
        raise UserError(f"{file} cannot be read as a .mat file ({error!r}): unpack it again") from error
    if name not in content:
        there = ", ".join(key for key in content if not key.startswith("__"))
        raise UserError(f"{file} has no `{name}`; it has {there or 'nothing'}")
    return content[name]


def _behaviors(file: pathlib.Path) -> list[str]:
    """The names of the ids 1, 2, ... in behaviors.m; none where the archive has no behaviours."""
    if not file.parent.is_dir():
        return []
    if not file.is_file():
        raise UserError(f"there is no file {file}, which names the behaviours: give their names as `behaviors`")
    text = file.read_text("utf-8", "replace")
    numbered = re.findall(r"""^[^\w\n]*(?:[A-Za-z_]+[^\w\n]+)?(\d+)[^\w\n]+([A-Za-z][\w ]*)""", text, re.MULTILINE)
    names = {int(number): name.strip() for number, name in numbered}
    if not names:
        names = dict(enumerate(re.findall(r"""['"](\w[\w ]*)['"]""", text), 1))
    if not names or sorted(names) != list(range(1, len(names) + 1)):
        raise UserError(
            f"{file} is not understood: expected a name for each of the ids 1, 2, ..., got {text[:80]!r}; give the names as "
            "`behaviors`"
        )
    return [names[number] for number in sorted(names)]
