"""Videos as arrays and as files: value ranges, reading and writing (PyAV), resizing, grids.

A video is uint8 `(t h w 3)` in [0, 255] on disk and in the pipeline, float32 in [0, 1] inside models. PyAV and
Pillow are imported where they are used.
"""

import collections
import itertools
import os
import pathlib
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from magvid.types import UserError

EPSILON = 1e-6  # seconds, and frames: timestamps are rational, their arithmetic here is not
TOLERANCE = 1e-2  # how far outside [0, 1] a decoder's rounding may go before it is taken for a wrong range
SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif", ".m4v")  # what is read


def to_float(video: UInt8[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """uint8 in [0, 255] -> float32 in [0, 1]. ValueError for another dtype."""
    if video.dtype != np.uint8:
        raise ValueError(f"to_float takes uint8 video in [0, 255], got {video.dtype}; a float video needs no scaling")
    return video.astype(np.float32) / np.float32(255)


def to_uint8(video: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Float in [0, 1] -> uint8 in [0, 255], rounded; values up to 1e-2 outside are clipped.

    Raises ValueError naming the range for anything further out, for NaN and for integer arrays.
    """
    video = np.asarray(video)
    if video.dtype.kind in "iub":
        raise ValueError(f"to_uint8 takes float video in [0, 1], got {video.dtype}")
    video = video.astype(np.float32)  # also bfloat16, which numpy does not count among its floats
    low, high = (float(video.min()), float(video.max())) if video.size else (0.0, 0.0)
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # written so that NaN fails as well
        remedy = "divide 0-255 floats by 255" if low >= 0 and 2 < high <= 256 else "rescale it to [0, 1]"
        raise ValueError(f"float video must lie in [0, 1], got values from {low:g} to {high:g}: {remedy}")
    return np.rint(np.clip(video, 0, 1) * 255).astype(np.uint8)


# Reading ------------------------------------------------------------------------------------------------------------


class Frame(NamedTuple):
    """A decoded frame. `pts` counts `time_base` seconds; `rate` is the stream's nominal frames per second,
    `aspect` the width of a pixel over its height."""

    pts: int
    time_base: Fraction
    rate: Fraction
    aspect: Fraction
    raw: Any

    def rgb(self) -> UInt8[np.ndarray, "h w 3"]:
        """As a player shows it: square pixels, turned upright by the rotation metadata, transparency over white."""
        frame, size = self.raw, {}
        if self.aspect != 1:
            size = {"width": max(1, round(frame.width * self.aspect)), "height": frame.height}
        if any(c.is_alpha for c in frame.format.components):
            rgba = frame.to_ndarray(format="rgba", **size)
            alpha = rgba[..., 3:].astype(np.uint16)
            image = ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
        else:
            image = frame.to_ndarray(format="rgb24", **size)
        # The metadata gives the counter-clockwise turn in degrees, which is what rot90 makes.
        return np.ascontiguousarray(np.rot90(image, round(getattr(frame, "rotation", 0) / 90)))


def decode(path: str | os.PathLike, start: int | None = None) -> Iterator[Frame]:
    """The frames of the first video stream in display order, from the key frame at or before pts `start` on.

    Raises UserError naming the file where it cannot be opened, has no video stream, or breaks while being decoded.
    """
    av = import_av()
    try:
        with av.open(os.fspath(path)) as container:
            stream = _video_stream(container, path)
            rate = stream.average_rate or Fraction(25)
            step = max(1, round(1 / (rate * stream.time_base)))
            aspect = stream.sample_aspect_ratio or Fraction(1)
            frames, first = container.decode(stream), None
            if start is not None:
                container.seek(start, stream=stream)
                first = next(frames, None)
                if first is None or first.pts is None or first.pts > start:  # this file cannot be searched
                    yield from decode(path)
                    return
                yield Frame(first.pts, stream.time_base, rate, aspect, first)
            pts = None if first is None else first.pts
            for raw in frames:
                if raw.is_corrupt:
                    raise UserError(f"{path} is corrupt: a frame could not be decoded")
                # Raw streams carry no timestamps and some files repeat them; here time always goes on.
                after = 0 if pts is None else pts + (step if raw.pts is None else 1)
                pts = after if raw.pts is None or (pts is not None and raw.pts < after) else raw.pts
                yield Frame(pts, stream.time_base, rate, aspect, raw)
    except av.FFmpegError as error:
        raise UserError(f"{path} cannot be read as a video: {error.strerror or error}") from error


def frame_rate(path: str | os.PathLike) -> float:
    """Mean frames per second, as the file says. UserError where it cannot be read."""
    for frame in decode(path):
        return float(frame.rate)
    raise UserError(f"{path} holds no video frames")


def read_video(
    path: str | os.PathLike, fps: float | None = None, frames: int | None = None, start: float = 0.0
) -> tuple[UInt8[np.ndarray, "t h w 3"], float]:
    """Reads a video file -> (uint8 (t h w 3), frames per second).

    fps: None keeps the file's frames (and returns their mean rate); a number resamples by timestamps, each output
    frame being the one on screen at its time. frames: at most so many. start: seconds skipped at the beginning.
    Raises UserError where the file cannot be read or ends before `start`.
    """
    images, times, origin = [], [], None
    for frame in decode(path):
        origin = frame.pts if origin is None else origin
        time = float((frame.pts - origin) * frame.time_base) - start
        if time <= EPSILON:  # only the frame on screen at `start` is needed of those before it
            images.clear()
            times.clear()
        images.append(frame.rgb())
        times.append(time)
        # which frame is on screen at `start` is known by the one after it
        if frames is not None and ((len(images) >= frames and time > EPSILON) if fps is None else time > (frames - 1) / fps):
            break
    if origin is None:
        raise UserError(f"{path} holds no video frames")
    gap = times[-1] - times[-2] if len(times) > 1 else float(1 / frame.rate)
    if times[-1] + gap < EPSILON:
        raise UserError(f"{path} lasts {times[-1] + gap + start:.2f} s, which is before start={start:g} s")
    if fps is None:
        images, times = images[:frames], times[:frames]
        mean = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else float(frame.rate)
        return np.stack(images), round(mean, 6)
    order = resample(np.asarray(times), times[-1] + gap, fps, float(frame.time_base))[:frames]
    return np.stack([images[i] for i in order]), float(fps)


def frame_at(path: str | os.PathLike, start: float) -> int:
    """The number of the frame that is on screen at `start` seconds, the first that `read_video` gives."""
    number, origin = 0, None
    for k, frame in enumerate(decode(path)):
        origin = frame.pts if origin is None else origin
        if float((frame.pts - origin) * frame.time_base) - start > EPSILON:
            break
        number = k
    return number


def stream_video(path: str | os.PathLike, fps: float) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """The frames that `read_video(path, fps)` gives, one at a time: a long file takes no more memory than a short one."""
    origin, on_screen, step, time, count = None, None, 0.0, 0.0, 0
    ready: collections.deque = collections.deque()  # frames to come that the end of the file may still cut off
    for frame in decode(path):
        origin = frame.pts if origin is None else origin
        now = float((frame.pts - origin) * frame.time_base)
        slack = _slack(float(frame.time_base))
        while on_screen is not None and (count + len(ready)) / fps + slack < now:
            ready.append(on_screen)
        step, time, on_screen = now - time or 1 / float(frame.rate), now, frame
        while ready and (count + 1) / fps <= now + EPSILON:
            count += 1
            yield ready.popleft().rgb()
    if on_screen is None:
        raise UserError(f"{path} holds no video frames")
    for i in range(count, max(1, int(np.floor((time + step) * fps + EPSILON)))):
        yield (ready[i - count] if i - count < len(ready) else on_screen).rgb()


def resample(times: Float[np.ndarray, "n"], end: float, fps: float, tick: float) -> np.ndarray:
    """Index of the frame on screen at 0, 1/fps, 2/fps ... before `end`, for frames shown from `times` (seconds) on.

    tick: resolution of the timestamps. Fine ones (gif 10 ms, webm 1 ms) round a frame's time by up to half of it, which
    must not put the frame after the moment it belongs to; a coarse one (avi: one frame) counts frames and is exact.
    """
    wanted = np.arange(max(1, int(np.floor(end * fps + EPSILON)))) / fps
    return np.maximum(np.searchsorted(times, wanted + _slack(tick), side="right") - 1, 0)


def _slack(tick: float) -> float:
    return EPSILON + (tick / 2 if tick <= 0.01 else 0.0)


# Writing ------------------------------------------------------------------------------------------------------------


def write_video(
    path: str | os.PathLike, video: UInt8[np.ndarray, "t h w 3"] | Iterator[UInt8[np.ndarray, "h w 3"]], fps: float = 8.0
) -> None:
    """Writes .mp4 (H.264, plays in every browser), .webm (VP9), .gif (looping) or of one frame .png, chosen by the
    suffix of `path`.

    mp4 and webm store colour at half resolution, so an odd height or width grows by one repeated row or column; enlarge
    small clips with `upscale` first. A gif counts hundredths of a second: 24 frames per second become 25. Equal videos are equal
    files (of one version of FFmpeg). An iterator of frames is written as they come (a gif, whose colours are chosen from all, is
    collected first). The file appears under its name only when it is complete.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"cannot write {path.name!r}: name it *{' or *'.join(_FORMATS)}")
    if not isinstance(video, Iterator):
        _check(video)
        if path.suffix.lower() == ".png" and len(video) > 1:
            raise ValueError(f"{path.name} would hold one frame of {len(video)}: a png is of a video of one frame")
        video = iter(video)
    if not 0 < fps <= 1000:
        raise ValueError(f"fps must be positive and at most 1000, got {fps}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix.lower()}")
    try:
        _encode(partial, video, fps, path.suffix.lower())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_image(path: str | os.PathLike, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes .png; the file appears under its name only when it is complete."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.png")
    try:
        import_pillow().fromarray(image).save(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def encode_mp4(video: UInt8[np.ndarray, "t h w 3"], fps: float = 8.0) -> bytes:
    """The bytes of an H.264 mp4, for embedding in a page."""
    with tempfile.TemporaryDirectory() as folder:  # a file, because putting the index first needs a second pass
        path = pathlib.Path(folder, "video.mp4")
        write_video(path, video, fps)
        return path.read_bytes()


def _encode(path: pathlib.Path, video: Iterator[np.ndarray], fps: float, suffix: str) -> None:
    av = import_av()
    codec, pixels, codec_options, options = _FORMATS[suffix]
    first = np.asarray(next(video))
    _check(first[None])
    images = itertools.chain([first], (np.asarray(image) for image in video))
    odd = [(0, n % 2) for n in first.shape[:2]] + [(0, 0)]
    if pixels == "yuv420p":
        images = (np.pad(image, odd, mode="edge") for image in images)
        first = np.pad(first, odd, mode="edge")
    with av.open(os.fspath(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=codec_options)
        stream.height, stream.width, stream.pix_fmt = first.shape[0], first.shape[1], pixels
        if pixels == "pal8":
            indices, palette = _quantize(np.stack(list(images)))
            frames = (av.VideoFrame.from_ndarray((image, palette), format="pal8") for image in indices)
        else:
            frames = (av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24") for image in images)
        for frame in frames:
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _quantize(video: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(t h w 3) -> indices (t h w), palette (256, ARGB); one for all frames, so that still parts do not flicker."""
    Image = import_pillow()
    t, h, w, _ = video.shape
    image = Image.fromarray(np.ascontiguousarray(video).reshape(t * h, w, 3)).quantize(256, dither=Image.Dither.NONE)
    colours = np.reshape(image.getpalette(), (-1, 3))
    palette = np.full((256, 4), 255, np.uint8)
    palette[: len(colours), 1:] = colours
    return np.asarray(image).reshape(t, h, w), palette


X264 = "sync-lookahead=0:rc-lookahead=0:mbtree=0"
_FORMATS = {  # suffix -> codec, pixel format, the codec's options, the container's options
    # without looking ahead, which makes what small frames look like depend on when they come, and on the machine's load
    ".mp4": ("libx264", "yuv420p", {"crf": "17", "preset": "medium", "x264-params": X264}, {"movflags": "+faststart"}),
    # bitexact: without a random number in the header
    ".webm": ("libvpx-vp9", "yuv420p", {"crf": "22", "b": "0", "deadline": "good", "cpu-used": "4"}, {"fflags": "+bitexact"}),
    ".gif": ("gif", "pal8", {}, {"loop": "0"}),  # not by Pillow, which drops a frame that equals the one before
    ".png": ("png", "rgb24", {}, {"update": "1"}),  # one file, not a numbered sequence
}


# Arranging ----------------------------------------------------------------------------------------------------------


def upscale(video: UInt8[np.ndarray, "... h w 3"], scale: int) -> UInt8[np.ndarray, "... H W 3"]:
    """Every pixel becomes scale x scale pixels."""
    return np.repeat(np.repeat(np.asarray(video), scale, axis=-3), scale, axis=-2)


def grid(
    videos: UInt8[np.ndarray, "n t h w 3"], columns: int | None = None, gap: int = 2, scale: int = 1
) -> UInt8[np.ndarray, "t H W 3"]:
    """n videos, enlarged by `scale`, in rows of `columns` (default: nearly square), `gap` pixels apart on white."""
    videos = upscale(videos, scale)
    n, t, h, w, c = videos.shape
    columns = min(columns or int(np.ceil(np.sqrt(n))), n)
    rows = -(-n // columns)
    canvas = np.full((t, rows * (h + gap) - gap, columns * (w + gap) - gap, c), 255, np.uint8)
    for i, video in enumerate(videos):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        canvas[:, top : top + h, left : left + w] = video
    return canvas


def windows(frames: int, clip: int, overlap: int) -> int:
    """How many windows of `clip` frames, each of which repeats the last `overlap` frames before it, make a video of
    `frames` or more. ValueError for an overlap outside 1 .. clip - 1.
    """
    if not 0 < overlap < clip:
        raise ValueError(f"overlap={overlap}: windows of {clip} frames can overlap by 1 to {clip - 1}")
    return 1 + max(0, -(-(frames - clip) // (clip - overlap)))


def crossfade(
    tail: Float[np.ndarray, "*b o h w c"], window: Float[np.ndarray, "*b t h w c"]
) -> Float[np.ndarray, "*b t h w c"]:
    """`window`, whose first o frames fade in over the o frames of `tail`, which show the same moments: with weights 0,
    1/o, ..., (o - 1)/o (as the official MAGVIT joins windows). So a single frame stays as it is in `tail`.
    """
    o = tail.shape[-4]
    weight = (np.arange(o, dtype=np.float32) / o)[:, None, None, None]
    faded = tail + weight * (window[..., :o, :, :, :] - tail)
    return np.concatenate([faded, window[..., o:, :, :, :]], axis=-4)


def resize_crop(
    video: UInt8[np.ndarray, "t a b 3"], height: int, width: int, y: float = 0.5, x: float = 0.5
) -> UInt8[np.ndarray, "t height width 3"]:
    """The largest window of the wanted aspect ratio, resized with anti-aliasing (bicubic).

    y, x in [0, 1] place the window along the axis where there is room; 0.5 is the centre.
    """
    video = np.asarray(video)
    h, w = video.shape[1:3]
    if (h, w) == (height, width):
        return video
    Image = import_pillow()
    scale = min(h / height, w / width)
    top, left = y * (h - height * scale), x * (w - width * scale)
    box = (left, top, min(left + width * scale, w), min(top + height * scale, h))
    resized = [Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box) for image in video]
    return np.stack([np.asarray(image) for image in resized])


def stretch(images: UInt8[np.ndarray, "t a b 3"], height: int, width: int) -> UInt8[np.ndarray, "t height width 3"]:
    """Resized with anti-aliasing (bicubic), whatever the shape was."""
    Image = import_pillow()
    resized = [Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC) for image in images]
    return np.stack([np.asarray(image) for image in resized])


def fit(video: UInt8[np.ndarray, "t a b 3"], height: int, width: int, keep_aspect: bool = True) -> UInt8[np.ndarray, "t height width 3"]:
    """The middle of the pictures at another size and shape, or all of them, squeezed."""
    return resize_crop(video, height, width) if keep_aspect else stretch(video, height, width)


def contain(video: UInt8[np.ndarray, "t a b 3"], height: int, width: int) -> UInt8[np.ndarray, "t height width 3"]:
    """All of the pictures at another size, in the middle, with black beside them where their shape is another."""
    h, w = video.shape[1:3]
    scale = min(height / h, width / w)
    inside = stretch(video, max(round(h * scale), 1), max(round(w * scale), 1))
    top, left = (height - inside.shape[1]) // 2, (width - inside.shape[2]) // 2
    out = np.zeros((len(video), height, width, *video.shape[3:]), np.uint8)
    out[:, top : top + inside.shape[1], left : left + inside.shape[2]] = inside
    return out


def _check(video: np.ndarray) -> None:
    if getattr(video, "dtype", None) != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or not video.size:
        shape, dtype = getattr(video, "shape", None), getattr(video, "dtype", type(video).__name__)
        raise ValueError(f"expected a non-empty uint8 video (t h w 3), got {dtype} {shape}; see magvid.video.to_uint8")


def _video_stream(container: Any, path: str | os.PathLike) -> Any:
    from av.stream import Disposition

    # The cover picture of a sound file is a video stream of one frame to FFmpeg.
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise UserError(f"{path} has no video stream" + (", only sound" if container.streams.audio else ""))
    return streams[0]


def import_av() -> Any:
    """PyAV, or a UserError that says how to install it."""
    try:
        import av
    except ImportError as error:
        raise UserError("video files need PyAV, which is not installed: pip install av") from error
    av.logging.set_level(av.logging.PANIC)  # errors arrive as exceptions; FFmpeg's own messages name no file
    return av


def reason(error: Exception) -> str:
    """What Pillow says of a file that it cannot read, in one line."""
    kind, text = type(error).__name__, " ".join(str(error).split())
    if kind == "UnidentifiedImageError":
        return "it is none, whatever its name says"
    return f"{text}; make it smaller" if kind == "DecompressionBombError" else text or kind


def from_16_bits(image: Any) -> UInt8[np.ndarray, "h w"]:
    """A picture of Pillow's modes I and I;16, which its own conversion would clip at 255, rounded down to 8 bits."""
    return (np.clip(np.asarray(image), 0, 2**16 - 1) >> 8).astype(np.uint8)


def import_pillow() -> Any:
    """Pillow's `Image`, or a UserError that says how to install it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError("images, resizing and gif files need Pillow, which is not installed: pip install pillow") from error
    return Image
