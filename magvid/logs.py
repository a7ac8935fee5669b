"""What a run says: metrics.jsonl (always), TensorBoard (scalars, videos), one progress line. Only process 0 speaks."""

import io
import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import UInt8


class Logger:
    """Writes under `workdir`. A resumed run gives `step`; what was said after it is removed: each step is said once."""

    def __init__(self, workdir: str | pathlib.Path, steps: int, step: int = 0, tensorboard: bool = True):
        self.workdir, self.steps = pathlib.Path(workdir), steps
        self._file = self._events = self._progress = None
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
        for part in (self._events, self._file):
            if part is not None:
                part.close()
        path = self.workdir / "metrics.jsonl"
        truncate(path, step)
        self._file = path.open("a")
        if self._tensorboard:
            self._events = _event_writer(self.workdir / "tb", step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line {"step", "time" (seconds since 1970), name: value} and one point per curve. What is not finite is
        written as null.
        """
        if self._file is None:
            return
        values = {k: float(v) for k, v in values.items()}
        line = {"step": step, "time": round(time.time(), 3)} | {
            k: v if math.isfinite(v) else None for k, v in values.items()
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._events:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def videos(self, step: int, name: str, video: UInt8[np.ndarray, "b t h w 3"], fps: float = 8.0) -> None:
        """Clips side by side as one animated picture in TensorBoard."""
        if self._events:
            self._events.file_writer.add_summary(_gif_summary(name, video, fps), step)

    def progress(self, step: int, text: str) -> None:
        """Show step / steps, speed, time left and `text` (e.g. the loss)."""
        if self._progress:
            self._progress.show(step, text)

    def say(self, text: str) -> None:
        """One plain line that the progress bar does not overwrite."""
        if self._progress:
            self._progress.say(text)

    def close(self) -> None:
        for part in (self._progress, self._events, self._file):
            if part is not None:
                part.close()
        self._file = self._events = self._progress = None


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
    """The lines of a metrics.jsonl; a last line cut off by a kill is left out."""
    lines = []
    for text in pathlib.Path(path).read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def truncate(path: pathlib.Path, step: int) -> None:
    """Remove the lines after `step`: a resumed run writes them anew."""
    if not path.exists():
        return
    kept = [line for line in read(path) if line.get("step", 0) <= step]
    part = path.with_suffix(".tmp")
    part.write_text("".join(json.dumps(line) + "\n" for line in kept))
    part.replace(path)


def duration(seconds: float) -> str:
    """65 -> "1:05", 3665 -> "1:01:05"."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def _event_writer(folder: pathlib.Path, step: int):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ImportError(
            "TensorBoard curves need tensorboardX: pip install tensorboardX, or set tensorboard=False"
        ) from None
    # purge_step hides the points of the abandoned future
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _gif_summary(name: str, video: UInt8[np.ndarray, "b t h w 3"], fps: float):
    """An animated GIF as an image summary, which TensorBoard shows (add_video needs moviepy, and is silent without)."""
    from PIL import Image
    from tensorboardX.proto.summary_pb2 import Summary

    strip = np.concatenate(list(video), axis=2)
    frames = [Image.fromarray(f) for f in strip]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=1000 / fps, loop=0)
    image = Summary.Image(
        height=strip.shape[1], width=strip.shape[2], colorspace=3, encoded_image_string=file.getvalue()
    )
    return Summary(value=[Summary.Value(tag=name, image=image)])
