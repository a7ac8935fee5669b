"""Numbers about a trained run: held-out clips -> generated videos per task -> metrics -> json."""

import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from magvid import runs
from magvid.build import build
from magvid.generator import Clips, Generator, Rows
from magvid.metrics import frames
from magvid.types import UserError

Progress = Callable[[int, int, str], None]  # (done, total, what was done)

# Of every run; `config.metrics` adds to them. Each says nothing where the batch lacks what it needs.
METRICS = (frames.Frames(), frames.SkillScore(), frames.GivenRegion())


class Example(NamedTuple):
    """One clip of an evaluation; all videos uint8 (t h w 3), `condition` None without tasks."""

    index: int  # number of the evaluation clip
    label: int | str  # its class, by name where the source has names
    condition: UInt8[np.ndarray, "t h w 3"] | None
    generated: UInt8[np.ndarray, "t h w 3"]
    reconstruction: UInt8[np.ndarray, "t h w 3"]
    real: UInt8[np.ndarray, "t h w 3"]


class Evaluation(NamedTuple):
    """`numbers` is JSON-able; `examples` = {task: a few clips}, under "reconstruction" where there are no tasks."""

    numbers: dict[str, Any]
    examples: dict[str, list[Example]]


def evaluate_run(
    run: runs.Run,
    tasks: Sequence[str] | None = None,
    clips: int = 200,
    batch: int | None = None,
    best_of: int | Mapping[str, int] = 1,
    seed: int = 0,
    *,
    weights: str | None = None,
    examples: int = 4,
    trust: bool = False,
    on_progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Metrics of `run` on the first `clips` of its `data.eval`.

    tasks: names, default all of the run. best_of: samples per clip, one number or {task: number}; metrics see the first
    sample as "video" and all of them as "samples". A clip's samples depend on (seed, number of the clip, number of the
    sample) alone. metrics: those of this module and of `config.metrics`.
    The numbers are {"run", "hash", "step", "weights", "world", "clips", "seed", "best_of", "reconstruction": {name:
    number}, "tasks": {task: {name: number}}, "seconds"}. UserError or ValueError for a run, task or data set that does
    not fit.
    """
    begin = time.monotonic()
    model = Generator.open(run, tasks, batch=batch, weights=weights, trust=trust)
    if not model.config["data"].get("eval"):
        raise UserError(f"the config of {run.path} has no data.eval: there are no held-out clips to evaluate on")
    data = Clips.of(model.config)
    metrics = [*METRICS, *(m for m in build(tuple(model.config["metrics"])) if m not in METRICS)]
    samples = {t: best_of if isinstance(best_of, int) else best_of.get(t, 1) for t in model.tasks}
    if clips < 1 or any(n < 1 for n in samples.values()):
        raise ValueError(f"clips and best_of must be at least 1, got {clips} and {best_of}")
    if clips > len(data.source):
        say(f"there are only {len(data.source)} held-out clips, {clips} were asked for")
        clips = len(data.source)
    scores = {name: Scores(metrics) for name in ("reconstruction", *model.tasks)}
    shown: dict[str, list[Example]] = {}
    done, total = 0, -(-clips // model.batch) * max(sum(samples.values()), 1)
    for rows in data.batches(0, clips, model.batch):
        for task, result in _videos(model, rows, samples, seed):
            scores[task].add(result)
            if model.tasks and task not in samples:
                continue  # the reconstruction of a run with tasks: a by-product
            some = shown.setdefault(task, [])
            some += _examples(data, result, examples - len(some))
            done += samples.get(task, 1)
            if on_progress:
                on_progress(done, total, task)
    found = {name: s.result() for name, s in scores.items()}
    numbers = {
        "run": run.path.name,
        "hash": run.hash,
        "step": run.step,
        "weights": weights or ("ema" if run.averaged else "params"),
        "world": data.world,
        "clips": clips,
        "seed": seed,
        "best_of": samples,
        "reconstruction": found.pop("reconstruction"),
        "tasks": found,
        "seconds": round(time.monotonic() - begin, 1),
    }
    return Evaluation(numbers, shown)


def _videos(
    model: Generator, rows: Rows, samples: Mapping[str, int], seed: int
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """("reconstruction" or task, what metrics see) for one batch."""
    real, reconstruction = rows["video"], model.reconstruct(rows)
    yield "reconstruction", {**rows, "video": reconstruction, "target": real}
    for i, task in enumerate(model.tasks):
        rows = {**rows, "video": real, "task": np.full(len(real), i, np.int32)}
        condition, given = model.condition(rows)
        drawn = np.stack([model.generate(rows, seed, draw) for draw in range(samples[task])], axis=1)
        videos = {"video": drawn[:, 0], "samples": drawn, "target": real, "condition": condition}
        yield task, {**rows, **videos, "reconstruction": reconstruction, "given": given}


def _examples(clips: Clips, videos: Rows, count: int) -> list[Example]:
    """The first `count` rows of what metrics see."""
    name = lambda i: clips.classes[i] if i < len(clips.classes) else i
    condition = videos.get("condition")
    return [
        Example(
            int(videos["index"][i]),
            name(int(videos["label"][i])),
            None if condition is None else condition[i],
            videos["video"][i],
            videos.get("reconstruction", videos["video"])[i],
            videos["target"][i],
        )
        for i in range(min(max(count, 0), len(videos["video"])))
    ]


# Results ------------------------------------------------------------------------------------------------------------


class Scores:
    """Features of all batches, then the numbers of all metrics."""

    def __init__(self, metrics: Sequence[Any]):
        self.metrics, self.found = metrics, [[] for _ in metrics]

    def add(self, batch: Rows) -> None:
        for metric, found in zip(self.metrics, self.found, strict=True):
            found.append({k: np.asarray(v) for k, v in metric.features(batch).items()})

    def result(self) -> dict[str, float | None]:
        """What is not finite is None, as JSON has no NaN."""
        numbers = {}
        for metric, found in zip(self.metrics, self.found, strict=True):
            if found and found[0]:
                numbers |= metric.result({k: np.concatenate([f[k] for f in found]) for k in found[0]})
        return {k: float(v) if np.isfinite(v) else None for k, v in numbers.items()}


def table(numbers: Mapping[str, Any]) -> str:
    """The numbers of `evaluate_run` for people: a column per task; intervals stay in the json."""
    columns = {"reconstruction": numbers["reconstruction"], **numbers["tasks"]}
    names = dict.fromkeys(
        n for column in columns.values() for n in column if not n.endswith(("_low", "_high")) and n != "n"
    )
    cell = lambda v: "-" if v is None else f"{v:.2f}" if abs(v) >= 10 else f"{v:.3f}"
    lines = [["", *columns]] + [[name, *(cell(column.get(name)) for column in columns.values())] for name in names]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    return "\n".join(
        [f"{numbers['clips']} clips of {numbers['world']}, step {numbers['step']}, seed {numbers['seed']}", *rows]
    )


def check_file(out: pathlib.Path) -> None:
    """UserError, before anything slow, where `out` cannot be written."""
    if out.is_dir():
        raise UserError(f"--out={out} is a folder: name a file in it")
    runs.check_writable(out.parent, "--out")


class PrintProgress:
    """On stderr: one line that is overwritten on a terminal; elsewhere a line at most every 10 seconds."""

    def __init__(self):
        self.next = time.monotonic() + 10

    def __call__(self, done: int, total: int, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{done}/{total} {text:<16}", end="\n" if done >= total else "", file=sys.stderr, flush=True)
        elif time.monotonic() >= self.next:
            self.next = time.monotonic() + 10
            print(f"{done} of {total} batches" + (f" ({text})" if text else ""), file=sys.stderr, flush=True)
