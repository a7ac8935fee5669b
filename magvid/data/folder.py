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
from typing import Any, NamedTuple

import numpy as np

from magvid import video
from magvid.data.source import Cut, Source, class_name, report_bad, split_names, warn_once
from magvid.data.video_index import index_folder, timestamps
from magvid.types import UserError


class Clip(NamedTuple):
    """One usable file: its name relative to the folder, class, captions and the frames it shows."""

    name: str
    label: int
    captions: tuple[str, ...]
    sha256: str
    timeline: dict


class VideoFolder(Source):
    """Source of uint8 clips (frames height width 3) from the video files under `path`.

    frames, height, width: size of a clip; the picture is resized (anti-aliased) so that it covers height x width, then
    cropped. fps: resample to this rate by timestamps before taking every `stride`-th frame; None takes the file's own
    frames. crop: "random" or "centre", in space and time, of the clips `read(i, rng)` gives; `source[i]` is always the
    centre, or one of several `windows` (see `Source`). split: "train" or "validation" (a share `holdout` of the files,
    chosen by a hash of their relative names), None for all. index: file in which to keep the index; default
    `index.json` in the folder, or in the user's cache where the folder cannot be written.

    A record is {"video": uint8 (t h w 3), "label": int32 in [0, len(classes)), "caption": str, "file": str}.
    Attributes: `classes`, `files` (usable ones of this split), `bad` (name -> reason). A file that fails later, because
    it was deleted or damaged after indexing, is replaced by the next usable one, with one warning per file. Raises
    UserError where there is no folder, no video in it, or none that is usable.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        frames: int,
        height: int,
        width: int,
        fps: float | None = None,
        stride: int = 1,
        crop: str = "random",
        split: str | None = None,
        holdout: float = 0.1,
        windows: int = 0,
        index: str | os.PathLike | None = None,
    ):
        super().__init__(frames, height, width, stride, crop, windows)
        if fps is not None and fps <= 0:
            raise ValueError(f"fps must be positive, got {fps}")
        self.path, self.fps = pathlib.Path(path).expanduser(), fps
        entries = index_folder(self.path, index)
        # Of all files that can be decoded, so that labels depend neither on the split nor on the length of a clip.
        decoded = [name for name, entry in entries.items() if "error" not in entry]
        self.classes = tuple(sorted({class_name(self.path, name) for name in decoded}))
        usable, self.bad = self._usable(entries)
        chosen, captions = split_names(sorted(usable), split, holdout), _captions(self.path)
        if strangers := sorted(set(captions) - set(entries)):
            some = ", ".join(strangers[:5]) + (", ..." if len(strangers) > 5 else "")
            warn_once(f"{self.path / 'captions.jsonl'} names {len(strangers)} files that are not there: {some}")
        label = lambda name: self.classes.index(class_name(self.path, name))
        self._clips = [
            Clip(n, label(n), captions.get(n, ()), usable[n]["sha256"], usable[n]["timeline"]) for n in chosen
        ]

    @property
    def records(self) -> int:
        return len(self._clips)

    @property
    def files(self) -> list[str]:
        return [clip.name for clip in self._clips]

    @property
    def fingerprint(self) -> str:
        """Changes with the files and the way clips are cut from them."""
        cut = [self.frames, self.height, self.width, self.fps, self.stride, self.crop, self.windows]
        cut = cut if self.windows else cut[:-1]  # as it was before there were windows
        return hashlib.sha256(json.dumps([cut, [(c.name, c.sha256) for c in self._clips]]).encode()).hexdigest()[:16]

    def _usable(self, entries: dict[str, dict]) -> tuple[dict[str, dict], dict[str, str]]:
        """Divides the index into usable files and {name: reason}; reports the latter."""
        bad = {name: entry["error"] for name, entry in entries.items() if "error" in entry}
        for name in entries.keys() - bad.keys():
            have = len(self._order(entries[name]["timeline"]))
            if have < self.span:
                rate = f" at {self.fps:g} fps" if self.fps else ""
                bad[name] = f"too short: {have} frames{rate}, a clip needs {self.span}"
        bad = dict(sorted(bad.items()))
        remedy = "Replace the files, or lower frames, stride or fps where they are too short."
        report_bad(self.path, bad, len(entries), "videos", remedy)
        return {name: entry for name, entry in entries.items() if name not in bad}, bad

    def _order(self, timeline: dict) -> np.ndarray:
        """Which of the file's frames are shown one after the other, at the wanted rate."""
        pts = timestamps(timeline)
        if self.fps is None:
            return np.arange(len(pts))
        tick = timeline["tick"][0] / timeline["tick"][1]
        times = (pts - pts[0]) * tick
        gap = times[-1] - times[-2] if len(times) > 1 else 1 / timeline["rate"]
        return video.resample(times, times[-1] + gap, self.fps, tick)

    def cut(self, i: int, cut: Cut) -> dict[str, Any]:
        clip = self._clips[i]
        order = self._order(clip.timeline)
        first = cut.first(len(order) - self.span + 1)
        shown = order[first : first + self.frames * self.stride : self.stride]
        seek = shown[0] > 0 and clip.timeline["seek"]
        images = _frames_at(self.path / clip.name, timestamps(clip.timeline)[shown], seek)
        text = clip.captions[int(cut.caption * len(clip.captions))] if clip.captions else ""
        resized = video.resize_crop(images, self.height, self.width, cut.y, cut.x)
        return {"video": resized, "label": np.int32(clip.label), "caption": text, "file": clip.name}


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
