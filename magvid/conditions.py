"""What a model is shown: evaluation clips, a file, a class or a prompt, as rows of a batch."""

import dataclasses
import difflib
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from magvid.build import build
from magvid.data.images import decode_image
from magvid.generator import Clips
from magvid.runs import ClipFormat
from magvid.types import UserError
from magvid.video import fit, frame_rate, read_video

NUMBER = 4
FPS = 8.0  # of what is written, where nothing says otherwise
VIDEOS = (".mp4", ".webm", ".gif")  # that are written
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

Rows = Mapping[str, np.ndarray]


# Flags --------------------------------------------------------------------------------------------------------------


def check_ranges(options: Any, **ranges: tuple[float, float]) -> None:
    """ValueError for a field of `options` outside of its (least, most); None stands for the run's own."""
    for name, (low, high) in ranges.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= high:  # NaN fails as well
            raise ValueError(f"--{name} must lie between {low:g} and {high:g}, got {value:g}")


def check_out(out: str, *shown: str) -> None:
    """ValueError where `out` is named as no video, or is one of the files that are `shown`."""
    if pathlib.Path(out).suffix.lower() not in VIDEOS:
        raise ValueError(f"--out={out}: name it *{' or *'.join(VIDEOS)}")
    place = lambda file: pathlib.Path(file).expanduser().resolve()
    if same := next((file for file in shown if place(file) == place(out)), None):
        raise ValueError(f"--out={out} is {same}, which is shown: name another file")


def numbered(out: str, number: int) -> list[pathlib.Path]:
    """Files for so many videos: `out` itself for one."""
    path = pathlib.Path(out).expanduser()
    return [path] if number == 1 else [path.with_stem(f"{path.stem}_{i:02d}") for i in range(number)]


def check_size(size: str | None) -> None:
    """ValueError for what is no "HxW"."""
    if size is not None and not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", size):
        raise ValueError(f"--size={size}: give height and width in pixels, such as 64x96")


def decoding(options: Any) -> dict[str, Any]:
    """As `Generator.open` wants it: steps, and a weight of the text alone, or with that of what is shown."""
    guidance = options.guidance if options.image_guidance is None else (options.image_guidance, options.guidance)
    return dict(steps=options.steps, guidance=guidance)


def sized(clip: ClipFormat, size: str | None) -> ClipFormat:
    """The format at the wanted size, "HxW"; None: as it is."""
    height, width = map(int, size.split("x")) if size else (clip.height, clip.width)
    return dataclasses.replace(clip, height=height, width=width)


# What is shown ------------------------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """What the model is shown: rows with clips of its own size, their names, frames per second, and the real videos (n t
    h w 3), which may be longer; None where there is no more of them than what is shown.
    """

    rows: dict[str, np.ndarray]
    names: list[str]
    fps: float
    real: UInt8[np.ndarray, "n t h w 3"] | None

    def of(self, task: int) -> dict[str, np.ndarray]:
        return {**self.rows, "task": np.full(len(self.names), task, np.int32)}

    def told(self, rows: Rows) -> "Shown":
        """The same, each clip with what the one row of `rows` says."""
        return self._replace(rows={**self.rows, **{k: np.repeat(v, len(self.names), axis=0) for k, v in rows.items()}})


def blank(clip: ClipFormat, count: int = 1) -> dict[str, np.ndarray]:
    """Rows of the shape of the clips that show nothing."""
    video = np.zeros((count, clip.frames, clip.height, clip.width, 3), np.uint8)
    return {"video": video, "label": np.zeros(count, np.int32)}


def nothing(clip: ClipFormat, first: int, count: int | None, name: str = "", fps: float | None = None) -> Shown:
    """No picture: samples number `first` on, of a class or a prompt (`name`)."""
    index = np.arange(first, first + (count or NUMBER))
    names = [f"{name}_{i:02d}" if name else f"{i:05d}" for i in index]
    return Shown(blank(clip, len(index)) | {"index": index}, names, fps or clip.fps or FPS, None)


def evaluation_clips(clips: Clips, first: int, count: int | None) -> Shown:
    count = count or max(1, min(NUMBER, len(clips.source) - first))
    rows = next(clips.batches(first, count, count))
    return Shown(rows, [f"{i:05d}" for i in rows["index"]], FPS, rows["video"])


def of_picture(clip: ClipFormat, file: str, count: int | None, fps: float | None, least: int, remedy: str) -> Shown:
    """A picture as the first frame, cut to the size of the clips, `count` times. Says what was done to it. UserError with the remedy where
    the model needs more than that: `least` frames.
    """
    path = existing(file, "picture")
    if least > 1:
        raise UserError(f"{file} is one frame, this run needs {least}: {remedy}")
    return _cut(path, decode_image(path)[None], clip, clip.frames, count, fps or clip.fps or FPS)


def of_video(
    clip: ClipFormat, file: str, count: int | None, fps: float | None, start: float, least: int, frames: int
) -> Shown:
    """The beginning of a video from `start` (seconds) on, cut to the size of the clips, `count` times. Says what was done.

    The model is shown `clip.frames` frames, of which it needs `least`; of the real video `frames` are kept.
    """
    path = existing(file, "video")
    at, stride = (fps, clip.stride) if fps else clip.reading(frame_rate(path))
    needed, wanted = ((n - 1) * stride + 1 for n in (least, max(clip.frames, frames)))
    video, rate = read_video(path, at, wanted, start)
    if len(video) < needed:
        raise UserError(
            f"{file} is too short: {len(video)} frames from {start:g} s on, this run needs {needed}; "
            "take a longer one or another --fps"
        )
    return _cut(path, video[::stride], clip, clip.frames, count, rate / stride)


def existing(file: str, kind: str) -> pathlib.Path:
    """UserError where there is no such file."""
    if not file:
        raise UserError(f"the name of a {kind} is empty: give a file")
    path = pathlib.Path(file).expanduser()
    if path.is_dir():
        raise UserError(f"{file} is a folder: name a {kind} in it")
    if not path.is_file():
        raise UserError(f"there is no {kind} {file}")
    return path


def fitted(video: np.ndarray, clip: ClipFormat) -> str:
    """What `fit` makes of pictures (t h w 3), in words."""
    (h, w), how = video.shape[1:3], "centre-cropped and resized" if clip.keep_aspect else "squeezed"
    return f"{w}x{h} pixels {how} to {clip.width}x{clip.height}"


def _cut(path: pathlib.Path, video: np.ndarray, clip: ClipFormat, t: int, count: int | None, fps: float) -> Shown:
    resized = fit(video, clip.height, clip.width, clip.keep_aspect)
    what = f"{min(t, len(resized))} frames at {fps:g} per second, " if len(video) > 1 else ""
    print(f"{path.name}: {what}{fitted(video, clip)}")
    count = count or NUMBER
    real = np.stack([resized] * count)
    beyond = [(0, 0), (0, max(0, t - len(resized))), *[(0, 0)] * 3]
    rows = {"video": np.pad(real, beyond)[:, :t], "label": np.zeros(count, np.int32), "index": np.arange(count)}
    return Shown(rows, [f"{path.stem}_{i:02d}" for i in range(count)], fps, real if len(video) > 1 else None)


# Words --------------------------------------------------------------------------------------------------------------


def find_tokenizer(config: Mapping[str, Any]) -> Any | None:
    """What makes token ids of texts in the data of `config`: the transform that has `encode`; None where there is none."""
    return next((t for t in _transforms(config) if hasattr(t, "encode")), None)


def find_transform(config: Mapping[str, Any], kind: type) -> Any | None:
    """The first transform of this class in the data of `config`; None where there is none."""
    return next((t for t in _transforms(config) if isinstance(t, kind)), None)


def find_text(config: Mapping[str, Any]) -> str | None:
    """The text that the data of `config` say of every clip; None where each has its own."""
    return next((t.template for t in _transforms(config) if getattr(t, "template", None) and not t.names), None)


def _transforms(config: Mapping[str, Any]) -> Iterator[Any]:
    """All of the data of `config`: of what it is trained on first, of which those that belong to a clip's views are the source's."""
    for name, section in sorted(config["data"].items(), key=lambda item: item[0] != "train"):
        section = section or {}
        yield from map(build, (*section.get("source", {}).get("transforms", ()), *section.get("transforms", ())))


def words(tokenizer: Any, prompt: str, negative: str = "", prompt_flag: str = "--prompt") -> dict[str, np.ndarray]:
    """The row of a prompt, and of what guidance leads away from. Says what is too long for the model. ValueError for a text that a
    closed vocabulary cannot say, naming the flag.
    """
    row = {}
    for flag, key, text in ((prompt_flag, "text_ids", prompt), ("--negative", "null_ids", negative)):
        try:
            row[key] = tokenizer.encode(text)[None]
        except ValueError as error:
            raise ValueError(f"{flag}: {error}") from None
        if (count := tokenizer.count(text)) > tokenizer.length:
            print(f'"{text[:40]}...": the model reads {tokenizer.length} of its {count} tokens; the rest is left out')
    return row


def slug(text: str, most: int = 40) -> str:
    """A text as a part of a file's name; of a longer one the beginning, and a number that tells it from others."""
    whole = re.sub(r"\W+", "-", text.lower()).strip("-") or "empty"
    return whole if len(whole) <= most else f"{whole[:most].strip('-')}-{zlib.crc32(text.encode()):08x}"


def find_class(label: str, names: Sequence[str], count: int = 0) -> int:
    """The number of a class given by number or name; `count` says how many there are where there are no names.

    ValueError lists the nearest names, or the range."""
    count = len(names) or count
    if label.lstrip("-").isdigit():
        if not 0 <= int(label) < count:
            raise ValueError(
                f"class {label} is out of range: there are {count} classes, from 0"
                if count
                else f"class {label}: this run has no classes"
            )
        return int(label)
    if label in names:
        return list(names).index(label)
    near = difflib.get_close_matches(label, names, 3)
    some = near or list(names)[:5]
    hint = (
        f"did you mean {' or '.join(some)}?"
        if near
        else f"there are {', '.join(some)}{', ...' if len(names) > 5 else ''}"
        if some
        else "give its number"
    )
    raise ValueError(f'there is no class "{label}"; {hint}')
