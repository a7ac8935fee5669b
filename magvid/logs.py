"""What a run says: metrics.jsonl (always), TensorBoard (scalars, videos), one progress line. Only process 0 speaks."""

import io
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import UInt8


class Logger:
    """Writes under `workdir`. A resumed run gives `step`; what was said after it is removed: each step is said once."""

    def __init__(self, workdir: str | pathlib.Path, steps: int, step: int = 0, tensorboard: bool = True):
        self.workdir, self.steps = pathlib.Path(workdir), steps
        self._file = self._events = self._progress = None
        self._unwritten, self._full = b"", False  # lines that found no room; whether that was said
        self.last: dict[str, float] = {}  # the last line that was logged before, where the run goes on
        if jax.process_index():
            return
        path = self.workdir / "metrics.jsonl"
        self._tensorboard = tensorboard
        self.back(step)
        self.last = next((line for line in reversed(read(path)) if "perf/seconds" in line), {})
        self._progress = _Progress(steps, step)

    def back(self, step: int) -> None:
        """What was said after `step` is taken back: it will be said anew."""
        if jax.process_index():
            return
        self._close()
        path = self.workdir / "metrics.jsonl"
        self._unwritten = truncate(path, step, self._unwritten)
        self._file = path.open("ab", buffering=0)
        if self._tensorboard:
            self._events = _Events(self.workdir / "tb", step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line {"step", "time" (seconds since 1970), name: value} and one point per curve. What is not finite is
        written as null. Where the disk is full, that is said once, and the lines follow when there is room.
        """
        if self._file is None:
            return
        values = {k: float(v) for k, v in values.items()}
        line = {"step": step, "time": round(time.time(), 3)} | {
            k: v if math.isfinite(v) else None for k, v in values.items()
        }
        self._unwritten += json.dumps(line).encode() + b"\n"
        self._write()
        if self._events:
            self._curves(lambda: self._events.scalars(step, values))

    def videos(self, step: int, name: str, video: UInt8[np.ndarray, "b t h w 3"], fps: float = 8.0) -> None:
        """Clips side by side as one animated picture in TensorBoard."""
        if self._events:
            self._curves(lambda: self._events.video(step, name, video, fps))

    def progress(self, step: int, text: str) -> None:
        """Show step / steps, speed, time left and `text` (e.g. the loss)."""
        if self._progress:
            self._progress.show(step, text)

    def say(self, text: str) -> None:
        """One plain line that the progress bar does not overwrite."""
        if self._progress:
            self._progress.say(text)

    def close(self) -> None:
        self._close()
        if self._progress:
            self._progress.close()
        self._progress = None

    def _close(self) -> None:
        """The files."""
        if self._file:
            self._write()
            self._file.close()
        if self._events:
            self._curves(self._events.close)
        self._file = self._events = None

    def _write(self) -> None:
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as e:
            if not self._full:
                self.say(f"cannot write {self.workdir}/metrics.jsonl ({e.strerror}): is the disk full? Training goes on; the lines follow when there is room.")
            self._full = True

    def _curves(self, act: Callable[[], None]) -> None:
        """What follows half a record cannot be read: the curves end where the disk is full."""
        try:
            act()
        except OSError as e:
            self.say(f"cannot write TensorBoard's curves to {self.workdir}/tb ({e.strerror}): they end here, metrics.jsonl goes on.")
            self._events = None


class _Progress:
    """A rich bar on a terminal; elsewhere a plain line at most every 10 seconds."""

    def __init__(self, steps: int, step: int):
        from rich import progress

        self._steps, self._first, self._start, self._last = steps, None, 0.0, -math.inf
        self._bar = None
        if sys.stdout.isatty():
            columns = "[progress.description]{task.description}", "{task.completed}/{task.total}", "{task.fields[text]}"
            self._bar = progress.Progress(
                columns[0], progress.BarColumn(), *columns[1:], progress.TimeRemainingColumn()
            )
            self._task = self._bar.add_task("train", total=steps, completed=step, text="")
            self._bar.start()

    def show(self, step: int, text: str) -> None:
        now = time.monotonic()
        if self._first is None:  # the first step compiles: it says nothing about speed
            self._first, self._start = step, now
        speed = (step - self._first) / max(now - self._start, 1e-9)
        if self._bar:
            self._bar.update(self._task, completed=step, text=f"{speed:.2f} steps/s {text}")
        elif now - self._last >= 10 or step >= self._steps:
            self._last = now
            left = (self._steps - step) / speed if speed else 0
            rate = f"{speed:.2f} steps/s  {duration(left)} left  " if speed else ""
            print(f"step {step}/{self._steps}  {rate}{text}", flush=True)

    def say(self, text: str) -> None:
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()


def read(path: str | pathlib.Path) -> list[dict]:
    """The lines of a metrics.jsonl; what is none, such as a last line cut off by a kill, is left out."""
    lines = map(_line, pathlib.Path(path).read_bytes().splitlines())
    return [line for line in lines if line is not None]


def _line(text: bytes) -> dict | None:
    """None where it was cut off, or a disk that lost its power left something else in its place."""
    try:
        line = json.loads(text.decode())
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def truncate(path: pathlib.Path, step: int, unwritten: bytes = b"") -> bytes:
    """Remove the lines after `step`, and one that is damaged with all that follow it: a resumed run writes them anew. In place, which takes no room on a full disk. `unwritten` is what
    follows the file's content; returns what stays of it.
    """
    written = path.read_bytes() if path.exists() else b""
    content, kept = written + unwritten, 0
    for text in content.splitlines(True):
        line = _line(text)
        if line is None or line.get("step", 0) > step or not text.endswith(b"\n"):
            break
        kept += len(text)
    if kept < len(written):
        os.truncate(path, kept)
    return content[len(written) : kept]


def duration(seconds: float) -> str:
    """65 -> "1:05", 3665 -> "1:01:05"."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


class _Events:
    """TensorBoard's file. Written by who calls, and flushed every 10 seconds: a thread that writes, as tensorboardX's SummaryWriter has, ends for good
    on a full disk, and whoever gives it something then waits for ever.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        try:
            from tensorboardX import event_file_writer
            from tensorboardX.proto import event_pb2, summary_pb2
        except ImportError:
            raise ImportError("TensorBoard curves need tensorboardX: pip install tensorboardX, or set tensorboard=False") from None
        self._event, self._summary = event_pb2, summary_pb2
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = event_file_writer.EventsWriter(str(folder / "events"), f".{step}")
        self._flushed = -math.inf
        if step:  # hides the points of the abandoned future
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=step + 1, session_log=start))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._add(step, [self._summary.Summary.Value(tag=name, simple_value=value) for name, value in values.items()])

    def video(self, step: int, name: str, video: UInt8[np.ndarray, "b t h w 3"], fps: float) -> None:
        """As an animated GIF, which TensorBoard shows (tensorboardX's add_video needs moviepy, and is silent without)."""
        from PIL import Image

        strip = np.concatenate(list(video), axis=2)
        frames = [Image.fromarray(f) for f in strip]
        file = io.BytesIO()
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=1000 / fps, loop=0)
        height, width = strip.shape[1:3]
        image = self._summary.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.getvalue())
        self._add(step, [self._summary.Summary.Value(tag=name, image=image)])

    def close(self) -> None:
        self._writer.close()

    def _add(self, step: int, values: list) -> None:
        self._writer.write_event(self._event.Event(wall_time=time.time(), step=step, summary=self._summary.Summary(value=values)))
        if time.time() - self._flushed > 10:
            self._flushed = time.time()
            self._writer.flush()
