"""Real video files for tests. A clip's frame number can be read back from its brightness."""

import pathlib
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np

STEP = 12  # grey levels between frames: more than any codec here loses


def numbered(frames: int, height: int = 24, width: int = 32) -> np.ndarray:
    """uint8 (t h w 3): frame k is plain grey of level 12 k (from 21 frames on the levels repeat)."""
    levels = (np.arange(frames) % 21 * STEP).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()


def numbers(video: np.ndarray) -> list[int]:
    """Inverse of `numbered`."""
    return np.rint(video.mean(axis=(1, 2, 3)) / STEP).astype(int).tolist()


def encode(
    path: pathlib.Path,
    video: np.ndarray,
    rate: int = 10,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rotation: int = 0,
    aspect: Fraction | None = None,
    times: Sequence[int] | None = None,
    gop: int | None = None,
) -> pathlib.Path:
    """Writes a file with PyAV; times: each frame's moment in hundredths of a second (variable frame rate)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = video.shape[1], video.shape[2], pixels
        if codec == "libx264":
            stream.options = {"crf": "5"}
        if gop:
            stream.gop_size = gop
        if rotation:
            stream.set_display_rotation(rotation)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 100)
        for k, image in enumerate(video):
            frame = av.VideoFrame.from_ndarray(image, format="rgba" if image.shape[-1] == 4 else "rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[k], Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def sound_only(path: pathlib.Path) -> pathlib.Path:
    """One second of silence."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def damaged(path: pathlib.Path, kind: str) -> pathlib.Path:
    """A file that is no good: "zero" (bytes), "text", "sound", "truncated" (its last third missing)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "sound":
        return sound_only(path)
    if kind == "truncated":
        noise = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
        encode(path, noise)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    else:
        path.write_bytes({"zero": b"", "text": b"not a video\n" * 50}[kind])
    return path
