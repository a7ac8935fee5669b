"""A folder of video files as a source of clips: mp4, webm, mov, mkv, avi and gif, decoded with PyAV.

    folder/running/a.mp4 ...    one class per sub-folder, or
    folder/a.mp4 ...            one class, named like the folder
    folder/captions.jsonl       optional, with lines like {"file": "running/a.mp4", "caption": "a man runs"}

Which files are usable, and what is in them, is learnt once and kept in `index.json` (see data/video_index.py).
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from magvid import video
from magvid.data.motion import Motion
from magvid.data.source import Cut, Source, class_name, report_bad, split_names, warn_once
from magvid.data.video_index import index_folder, timestamps
from magvid.types import UserError


class Clip(NamedTuple):
    """One usable file: its name relative to the folder, class, captions, the frames it shows, and those at which a clip may
    begin.
    """

    name: str
    label: int
    action: str
    captions: tuple[str, ...]
    sha256: str
    timeline: dict
    starts: Sequence[int]


class VideoFolder(Source):
    """Source of uint8 clips (frames height width 3) from the video files under `path`.

    frames, height, width: size of a clip; the picture is resized (anti-aliased) so that it covers height x width, then
    cropped, or with keep_aspect=False squeezed into it. fps: resample to this rate by timestamps before taking every
    `stride`-th frame; None takes the file's own frames. most_stride: the frame rate of the released MAVIN: no frame is
    repeated or moved, but of a file's own frames every s-th one is taken, with s = round(mean frame rate of the file / fps),
    at least 1, at most most_stride and at most what leaves a short file enough frames for a clip; `stride` must be 1.
    crop: "random" or "centre", in space and time, of the clips `read(i, rng)` gives; `source[i]` is always the centre, or one
    of several `windows` (see `Source`). split: "train" or "validation" (a share `holdout` of the files, chosen by a hash of
    their relative names), None for all. index: file in which to keep the index; default `index.json` in the folder, or in
    the user's cache where the folder cannot be written. motion: only windows that it allows (see `data.motion`).

    A record is {"video": uint8 (t h w 3), "label": int32 in [0, len(classes)), "action": str (the name of the class),
    "caption": str, "file": str}. Attributes: `classes`, `files` (usable ones of this split), `bad` (name -> reason). A file
    that fails later, because it was deleted or damaged after indexing, is replaced by the next usable one, with one warning
    per file. Raises UserError where there is no folder, no video in it, or none that is usable.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        frames: int,
        height: int,
        width: int,
        *,
        fps: float | None = None,
        stride: int = 1,
        crop: str = "random",
        split: str | None = None,
        holdout: float = 0.1,
        windows: int = 0,
        index: str | os.PathLike | None = None,
        most_stride: int | None = None,
        keep_aspect: bool = True,
        motion: Motion | None = None,
    ):
        super().__init__(frames, height, width, stride, crop, windows, keep_aspect=keep_aspect, motion=motion)
        if fps is not None and fps <= 0:
            raise ValueError(f"fps must be positive, got {fps}")
        if most_stride is not None and (fps is None or stride != 1 or most_stride < 1):
            raise ValueError(f"{most_stride=}: at least 1, and together with fps and stride=1, got {fps=} {stride=}")
        self.path, self.fps, self.most_stride = pathlib.Path(path).expanduser(), fps, most_stride
        entries = index_folder(self.path, index, self._listed())
        # Of all files that can be decoded, so that labels depend neither on the split nor on the length of a clip.
        self.classes, told = self._labels([name for name, entry in entries.items() if "error" not in entry], set(entries))
        starts, self.bad = self._usable(entries)
        clip = lambda name: Clip(name, *told[name], entries[name]["sha256"], entries[name]["timeline"], starts[name])
        self.files = self._chosen(sorted(starts), split, holdout)
        self.records, self._clips = len(self.files), [clip(name) for name in self.files]

    # What other layouts of a folder have otherwise

    def _listed(self) -> Collection[str] | None:
        """The files that there should be, by their relative names; None: all that there are."""
        return None

    def _labels(
        self, names: Collection[str], present: Collection[str]
    ) -> tuple[tuple[str, ...], Mapping[str, tuple[int, str, tuple[str, ...]]]]:
        """The classes, and of each file that can be decoded its label, action and captions; `present`: all files."""
        captions = _captions(self.path)
        if strangers := sorted(set(captions) - set(present)):
            some = ", ".join(strangers[:5]) + (", ..." if len(strangers) > 5 else "")
            warn_once(f"{self.path / 'captions.jsonl'} names {len(strangers)} files that are not there: {some}")
        of = {name: class_name(self.path, name) for name in names}
        classes = tuple(sorted(set(of.values())))
        return classes, {name: (classes.index(of[name]), of[name], captions.get(name, ())) for name in names}

    def _chosen(self, names: list[str], split: str | None, holdout: float) -> list[str]:
        return split_names(names, split, holdout)

    @property
    def fingerprint(self) -> str:
        """Changes with the files and the way clips are cut from them."""
        cut = [self.frames, self.height, self.width, self.fps, self.stride, self.crop]
        cut += [self.windows] if self.windows else []  # as it was before there were windows, and before the rest
        more = dict(most_stride=self.most_stride, squeezed=not self.keep_aspect, motion=self.motion and self.motion.fingerprint)
        cut += [more] if any(more.values()) else []
        return hashlib.sha256(json.dumps([cut, [(c.name, c.sha256) for c in self._clips]]).encode()).hexdigest()[:16]

    def whole(self, i: int) -> tuple[str, str, Iterator[UInt8[np.ndarray, "h w 3"]]]:
        """Name, digest of the content and all frames of file i, as they are in the file."""
        clip = self._clips[i]
        return clip.name, clip.sha256, (frame.rgb() for frame in video.decode(self.path / clip.name))

    def _usable(self, entries: dict[str, dict]) -> tuple[dict[str, Sequence[int]], dict[str, str]]:
        """Divides the index into {usable file: where a clip may begin} and {name: reason}; reports the latter."""
        found, fps = {}, None if self.most_stride else self.fps
        for name, entry in sorted(entries.items()):
            found[name] = entry.get("error") or self.starts(name, entry["sha256"], *self._order(entry["timeline"]), fps)
        bad = {name: reason for name, reason in found.items() if isinstance(reason, str)}
        remedy = "Replace the files, or lower frames, stride or fps where they are too short."
        report_bad(self.path, bad, len(entries), "videos", remedy)
        return {name: starts for name, starts in found.items() if name not in bad}, bad

    def _order(self, timeline: dict) -> tuple[np.ndarray, int]:
        """Which of the file's frames there are, one after the other, at the wanted rate; and every how many-th is shown."""
        pts = timestamps(timeline)
        if self.most_stride is not None:
            fits = (len(pts) - 1) // max(self.frames - 1, 1)
            return np.arange(len(pts)), max(min(round(timeline["rate"] / self.fps), self.most_stride, fits), 1)
        if self.fps is None:
            return np.arange(len(pts)), self.stride
        tick = timeline["tick"][0] / timeline["tick"][1]
        times = (pts - pts[0]) * tick
        gap = times[-1] - times[-2] if len(times) > 1 else 1 / timeline["rate"]
        return video.resample(times, times[-1] + gap, self.fps, tick), self.stride

    def cut(self, i: int, cut: Cut) -> dict[str, Any]:
        clip = self._clips[i]
        order, stride = self._order(clip.timeline)
        first = clip.starts[cut.first(len(clip.starts))]
        shown = order[first : first + self.frames * stride : stride]
        seek = shown[0] > 0 and clip.timeline["seek"]
        images = _frames_at(self.path / clip.name, timestamps(clip.timeline)[shown], seek)
        text = clip.captions[int(cut.caption * len(clip.captions))] if clip.captions else ""
        told = {"label": np.int32(clip.label), "action": clip.action, "caption": text, "file": clip.name}
        return {"video": self.fit(images, cut), **told}


def _frames_at(path: pathlib.Path, pts: np.ndarray, seek: bool) -> np.ndarray:
    """The frames with these (ascending, maybe repeated) timestamps; `seek`: from the key frame before the first on."""
    wanted, found = set(pts.tolist()), {}
    for frame in video.decode(path, start=int(pts[0]) if seek else None):
        if frame.pts in wanted:
            found[frame.pts] = frame.rgb()
        if frame.pts >= pts[-1]:
            break
    if len(found) < len(wanted):
        lost = len(wanted) - len(found)
        raise UserError(f"{path} has changed since it was indexed: {lost} frames of a clip are missing")
    return np.stack([found[p] for p in pts.tolist()])


def _captions(path: pathlib.Path) -> dict[str, tuple[str, ...]]:
    """captions.jsonl -> {file: its captions}."""
    captions: dict[str, tuple[str, ...]] = {}
    file = path / "captions.jsonl"
    try:
        text = file.read_text("utf-8") if file.is_file() else ""
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, caption = pathlib.PurePosixPath(row["file"]).as_posix(), row["caption"]
            if not isinstance(caption, str):
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            expected = '{"file": ..., "caption": ...}'
            raise UserError(f"{file} line {number} should be {expected}, got {line[:80]!r}") from error
        captions[name] = (*captions.get(name, ()), caption)
    return captions
