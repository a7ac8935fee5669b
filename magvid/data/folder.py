"""A folder of video files as a source of clips: mp4, webm, mov, mkv, avi and gif, decoded with PyAV.

    folder/running/a.mp4 ...    one class per sub-folder, or
    folder/a.mp4 ...            one class, named like the folder
    folder/captions.jsonl       optional, with lines like {"file": "running/a.mp4", "caption": "a man runs"}
    masks/running/a/00012.png   optional, a folder of its own: where the subject is in frame 12 of running/a.mp4, whose first one is 0
    pictures/running/a.png      optional, a folder of its own: pictures of what is in running/a.mp4, this one or pictures/running/a/*.png; or webp

Which files are usable, and what is in them, is learnt once and kept in `index.json` (see data/video_index.py).
"""

import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from magvid import video
from magvid.data.entities import subject_of
from magvid.data.masks import decode_mask
from magvid.data.motion import Motion
from magvid.data.source import Cut, Source, class_name, file_names, report_bad, split_names, warn_once
from magvid.data.video_index import index_folder, timestamps
from magvid.types import UserError

# Of the index, of one file; with "part": (first, last + 1) of its frames, of a part of one; with "masks": (n 2), the frames that have
# a mask and the sizes of these files.
Entry = dict[str, Any]


TRANSPARENT = (".png", ".webp")  # formats of pictures that tell what is theirs


class Clip(NamedTuple):
    """One usable file, or a part of one: its name, the file relative to the folder, class, captions, a digest of the content,
    which frames there are (see `Entry`), and those at which a clip may begin.
    """

    name: str
    file: str
    label: int
    action: str
    captions: tuple[str, ...]
    sha256: str
    entry: Entry
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
    the user's cache where the folder cannot be written. motion: only windows that it allows (see `data.motion`). spread: a clip's
    frames lie evenly from the first to the last one of the file (at `fps`, where that is given): those with the numbers
    round(linspace(0, n - 1, frames)). `stride` must then be 1, there is no most_stride, and `crop` has no effect in time; a file
    with fewer frames than a clip is too short. masks: the folder of the masks of a subject, each named by the file and the number of the
    frame in it (see the module). They are read as `data.masks` says, and may be of another size than the frames, not of another shape. A
    frame without a mask has no subject, and so may all frames of a clip; a file none of whose frames has one is left out. captioned: so is a
    file without a caption. pictures: the folder of pictures of what is to be seen in a video, with transparency around it, png or webp; a video without any is
    left out, and where one cannot be read another clip takes its place, as for a mask.

    A record is {"video": uint8 (t h w 3), "label": int32 in [0, len(classes)), "action": str (the name of the class),
    "caption": str, "file": str, "digest": str (the SHA-256 of the file)}; with `masks` also "masks": bool (t h w), cut as the video
    is; with `pictures` "pictures": uint8 (n h w 4), all of that video's, each on black within the clip's
    size, the last channel 255 where it is not transparent. Attributes: `classes`, `files` (usable ones of this split), `bad` (name -> reason). A file that fails later, because it or a
    mask was deleted or damaged after indexing, is replaced by the next usable one, with one warning per file. Raises UserError where
    there is no folder, no video in it, or none that is usable.
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
        spread: bool = False,
        masks: str | os.PathLike | None = None,
        captioned: bool = False,
        pictures: str | os.PathLike | None = None,
    ):
        super().__init__(frames, height, width, stride, crop, windows, keep_aspect=keep_aspect, motion=motion, spread=spread)
        if fps is not None and fps <= 0:
            raise ValueError(f"fps must be positive, got {fps}")
        if most_stride is not None and (fps is None or stride != 1 or most_stride < 1):
            raise ValueError(f"{most_stride=}: at least 1, and together with fps and stride=1, got {fps=} {stride=}")
        if most_stride is not None and spread:
            raise ValueError(f"{most_stride=}: with spread the length of a file decides which frames are taken")
        self.path, self.fps, self.most_stride = pathlib.Path(path).expanduser(), fps, most_stride
        self.captioned = captioned
        self.masks = None if masks is None else pathlib.Path(masks).expanduser()
        if self.masks and not self.masks.is_dir():
            raise UserError(f"there is no folder {self.masks}: `masks` is where the mask of frame 12 of running/a.mp4 is running/a/00012.png")
        self.pictures = None if pictures is None else pathlib.Path(pictures).expanduser()
        if self.pictures and not self.pictures.is_dir():
            raise UserError(f"there is no folder {self.pictures}: `pictures` is where a picture of what is in running/a.mp4 is running/a.png, or several running/a/*.png")
        entries = self._parts(index_folder(self.path, index, self._listed()))
        # Of all files that can be decoded, so that labels depend neither on the split nor on the length of a clip.
        self.classes, told = self._labels([name for name, entry in entries.items() if "error" not in entry], set(entries))
        if self.masks:
            entries = {name: self._masked(name, entry) for name, entry in entries.items()}
        if self.pictures:
            found = _pictures(self.pictures)
            entries = {name: self._pictured(name, entry, found) for name, entry in entries.items()}
        starts, self.bad = self._usable(entries)
        clip = lambda name, entry: Clip(name, self._file(name), *told[name], entry["sha256"], entry, starts[name])
        self.files = self._chosen(sorted(starts), split, holdout)
        self.records, self._clips = len(self.files), [clip(name, entries[name]) for name in self.files]

    # What other layouts of a folder have otherwise

    noun = "videos"  # what the names in `files` and `bad` are of

    def _parts(self, entries: dict[str, Entry]) -> dict[str, Entry]:
        """Out of the entries of the files those of the clips, by their names; here these are the same. Those that cannot be used say why."""
        if not self.captioned:
            return entries
        texts = {name for name, captions in _captions(self.path).items() if any(text.strip() for text in captions)}
        lacks = {"error": f"has no caption in {self.path / 'captions.jsonl'}"}
        return {name: entry if name in texts or "error" in entry else {**entry, **lacks} for name, entry in entries.items()}

    def _file(self, name: str) -> str:
        """The file of the clip `name`."""
        return name

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
        cut += ["spread"] if self.spread else []
        masks = lambda clip: [hashlib.sha256(clip.entry["masks"].tobytes()).hexdigest()] if self.masks else []
        pictures = lambda clip: clip.entry["pictures"] if self.pictures else []
        return hashlib.sha256(json.dumps([cut, [(c.name, c.sha256, *masks(c), *pictures(c)) for c in self._clips]]).encode()).hexdigest()[:16]

    def whole(self, i: int) -> tuple[str, str, Iterator[UInt8[np.ndarray, "h w 3"]]]:
        """Name, digest of the content and all frames of clip i's file, or part of one, as they are in the file."""
        clip = self._clips[i]
        frames = itertools.islice(video.decode(self.path / clip.file), *clip.entry.get("part", (None,)))
        return clip.name, clip.sha256, (frame.rgb() for frame in frames)

    def _mask_folder(self, name: str) -> pathlib.Path:
        return self.masks / pathlib.PurePosixPath(self._file(name)).with_suffix("")

    def _masked(self, name: str, entry: Entry) -> Entry:
        """The entry with its masks, or with why there are none."""
        if "error" in entry:
            return entry
        folder, frames = self._mask_folder(name), 1 + sum(entry["timeline"]["runs"][1])
        files = [f for f in os.scandir(folder) if re.fullmatch(r"(\d{5}|[1-9]\d{5,})\.png", f.name)] if folder.is_dir() else []
        found = np.array(sorted((int(f.name[:-4]), f.stat().st_size) for f in files), np.int64).reshape(-1, 2)
        if len(found) and found[-1, 0] >= frames:
            return {**entry, "error": f"has {frames} frames, from 0 on, and {folder} has a mask of frame {found[-1, 0]}"}
        first, stop = entry.get("part") or (0, frames)
        found = found[(found[:, 0] >= first) & (found[:, 0] < stop)]
        if not len(found):
            return {**entry, "error": f"has no masks: those of frames {first} to {stop - 1} would be {folder}/{first:05d}.png and so on"}
        return {**entry, "masks": found}

    def _pictured(self, name: str, entry: Entry, found: Mapping[str, list[tuple[str, int]]]) -> Entry:
        """The entry with its pictures, [(file relative to their folder, its bytes)], or with why there are none."""
        stem = pathlib.PurePosixPath(self._file(name)).with_suffix("").as_posix()
        if "error" in entry or stem in found:
            return entry if "error" in entry else {**entry, "pictures": found[stem]}
        kinds = " or ".join(TRANSPARENT)
        return {**entry, "error": f"has no picture of what is in it: that would be {self.pictures / stem}{kinds}, or several in {self.pictures / stem}/"}

    def _usable(self, entries: dict[str, Entry]) -> tuple[dict[str, Sequence[int]], dict[str, str]]:
        """Divides the index into {usable file: where a clip may begin} and {name: reason}; reports the latter."""
        found, fps = {}, None if self.most_stride else self.fps
        for name, entry in sorted(entries.items()):
            found[name] = entry.get("error") or self.starts(name, entry["sha256"], *self._order(entry), fps)
        bad = {name: reason for name, reason in found.items() if isinstance(reason, str)}
        remedy = "Replace the files, or lower frames, stride or fps where they are too short."
        report_bad(self.path, bad, len(entries), self.noun, remedy)
        return {name: starts for name, starts in found.items() if name not in bad}, bad

    def _order(self, entry: Entry) -> tuple[np.ndarray, int]:
        """Which of the file's frames there are, one after the other, at the wanted rate; and every how many-th is shown."""
        timeline = entry["timeline"]
        first, stop = entry.get("part") or (0, 1 + sum(timeline["runs"][1]))
        if self.most_stride is not None:
            fits = (stop - first - 1) // max(self.frames - 1, 1)
            return np.arange(first, stop), max(min(round(timeline["rate"] / self.fps), self.most_stride, fits), 1)
        if self.fps is None:
            return self.spread_out(np.arange(first, stop)), self.stride
        tick = timeline["tick"][0] / timeline["tick"][1]
        pts = timestamps(timeline)[first:stop]
        times = (pts - pts[0]) * tick
        gap = times[-1] - times[-2] if len(times) > 1 else 1 / timeline["rate"]
        return self.spread_out(first + video.resample(times, times[-1] + gap, self.fps, tick)), self.stride

    def cut(self, i: int, cut: Cut) -> dict[str, Any]:
        clip = self._clips[i]
        order, stride = self._order(clip.entry)
        first = clip.starts[cut.first(len(clip.starts))]
        shown = order[first : first + self.frames * stride : stride]
        timeline = clip.entry["timeline"]
        images = _frames_at(self.path / clip.file, timestamps(timeline)[shown], shown[0] > 0 and timeline["seek"])
        text = clip.captions[int(cut.caption * len(clip.captions))] if clip.captions else ""
        told = {"label": np.int32(clip.label), "action": clip.action, "caption": text, "file": clip.name, "digest": clip.sha256}
        masks = {"masks": self._masks(clip, shown, images.shape[1:3], cut)} if self.masks else {}
        pictures = {"pictures": self._shown(clip)} if self.pictures else {}
        return {"video": self.fit(images, cut), **masks, **pictures, **told}

    def _masks(self, clip: Clip, shown: np.ndarray, shape: tuple[int, int], cut: Cut) -> Bool[np.ndarray, "t h w"]:
        """Of the frames with these numbers in the file, which have this shape."""
        out = np.zeros((len(shown), self.height, self.width), bool)
        for k in np.flatnonzero(np.isin(shown, clip.entry["masks"][:, 0])):
            file = self._mask_folder(clip.name) / f"{shown[k]:05d}.png"
            out[k] = self.fit_mask(decode_mask(file), shape, cut, file)
        return out


    def _shown(self, clip: Clip) -> UInt8[np.ndarray, "n h w 4"]:
        size = (self.height, self.width)
        found = [subject_of(self.pictures / file, None, size, warn_once) for file, _ in clip.entry["pictures"]]
        return np.concatenate([np.concatenate([shown, 255 * place[..., None].astype(np.uint8)], axis=-1) for shown, place in found])


class Told(NamedTuple):
    """What an archive says of a clip: its file, relative to the folder; its class; what is done in it, "" where nothing is said, or several
    such texts; and from when to when it lasts in the file, in seconds, None: all of it.
    """

    file: str
    label: int
    text: str | tuple[str, ...]
    part: tuple[float, float] | None = None


class InstructionFolder(VideoFolder):
    """What the archives of videos with instructions have in common: `told` says of each clip, by its name, what it is.

    Only their files are indexed. A clip without a text is left out, as one that cannot be read is.

    A record is {"video": uint8 (t h w 3), "label": int32 in [0, len(classes)), "text": str, "file": str, "digest": str}, and "masks" as
    `VideoFolder` has them. text: in lower case, without a full stop; of several one, drawn as captions are. file: the clip's name. digest:
    the SHA-256 of the file, or of that and of the part's bounds.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        frames: int,
        height: int,
        width: int,
        told: Mapping[str, Told],
        classes: Sequence[str],
        **options: Any,
    ):
        self._told, self._classes = told, tuple(classes)
        super().__init__(path, frames, height, width, **options)

    @property
    def fingerprint(self) -> str:
        """Changes with the texts and classes as well."""
        told = [(self._told[name].label, self._told[name].text) for name in self.files]
        return hashlib.sha256(json.dumps([super().fingerprint, told]).encode()).hexdigest()[:16]

    def _listed(self) -> Collection[str]:
        return {told.file for told in self._told.values()}

    def _file(self, name: str) -> str:
        return self._told[name].file

    def _labels(
        self, names: Collection[str], present: Collection[str]
    ) -> tuple[tuple[str, ...], Mapping[str, tuple[int, str, tuple[str, ...]]]]:
        of = {name: self._told[name] for name in names}
        texts = lambda told: (told.text,) if isinstance(told.text, str) else tuple(told.text)
        return self._classes, {name: (told.label, self._classes[told.label], texts(told)) for name, told in of.items()}

    def _parts(self, entries: dict[str, Entry]) -> dict[str, Entry]:
        times = functools.lru_cache(1)(lambda file: _seconds(entries[file]["timeline"]))  # of a file for all its parts
        found = {}
        for name, told in sorted(self._told.items(), key=lambda item: item[1].file):
            entry = entries[told.file]
            if not told.text:
                entry = {**entry, "error": "has no text"}
            elif told.part and "error" not in entry:
                entry = _part(entry, times(told.file), *told.part)
            found[name] = entry
        return found

    def cut(self, i: int, cut: Cut) -> dict[str, Any]:
        record = super().cut(i, cut)
        return {("text" if key == "caption" else key): value for key, value in record.items() if key != "action"}


def _seconds(timeline: dict) -> Float[np.ndarray, "n"]:
    """When each frame of a file is shown."""
    pts = timestamps(timeline)
    return (pts - pts[0]) * (timeline["tick"][0] / timeline["tick"][1])


def _part(entry: Entry, times: Float[np.ndarray, "n"], start: float, stop: float) -> Entry:
    """The frames from the one that is on screen at `start` (seconds) to the one at `stop`."""
    if not 0 <= start < stop:
        return {**entry, "error": f"lasts from {start:g} to {stop:g} s"}
    if start > times[-1]:
        return {**entry, "error": f"begins at {start:g} s, and {times[-1]:g} s is the last frame of its file"}
    until = lambda time: int(np.searchsorted(times, time + video.EPSILON, "right"))
    digest = hashlib.sha256(json.dumps([entry["sha256"], start, stop]).encode()).hexdigest()
    return {**entry, "sha256": digest, "part": (until(start) - 1, until(stop))}


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


def _pictures(folder: pathlib.Path) -> dict[str, list[tuple[str, int]]]:
    """{a/b: the files a/b.png and a/b/*.png, by name, with their bytes}, relative to the folder."""
    found: dict[str, list[tuple[str, int]]] = {}
    for name in sorted(file_names(folder, TRANSPARENT)):
        file = pathlib.PurePosixPath(name)
        for stem in (file.with_suffix(""), file.parent):
            found.setdefault(stem.as_posix(), []).append((name, (folder / name).stat().st_size))
    return found


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
