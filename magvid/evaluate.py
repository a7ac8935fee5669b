"""Numbers about a trained run: held-out clips -> generated videos per task -> metrics -> json.

A metric has `features(batch) -> {name: array of clips}` and `result(features of all clips) -> {name: number}`. One with
a network has `with_weights({group: weights})`, and its spec refers to a run or a file as an objective does (`runs.py`):

metrics = [dict(target="magvid.metrics.clip:ClipSmoothness", vision=dict(run="weights/clip-l", part="clip.vision"))]
"""

import dataclasses
import functools
import math
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
    The numbers are {"run", "hash", "step", "weights", "world", "clips", "seed", "best_of", "settings",
    "reconstruction": {name: number}, "tasks": {task: {name: number}}, "seconds"}. The settings are those of the
    "metrics" (with the hashes of their "weights"), of the "clip", of "sampling" or "decoding", and the "gaps" (start,
    stop) that given frames leave in a task. UserError or ValueError for a run, task or data set that does not fit.
    """
    begin = time.monotonic()
    model = Generator.open(run, tasks, batch=batch, weights=weights, trust=trust)
    if not model.config["data"].get("eval"):
        raise UserError(f"the config of {run.path} has no data.eval: there are no held-out clips to evaluate on")
    data = Clips.of(model.config)
    metrics, used = open_metrics(model.config["metrics"], trust)
    told = run.trained_clip.classes if run.trained_clip and any(getattr(model.programs.objective, "labelled", ())) else ()
    if told and data.classes and data.classes != told:
        raise UserError(
            f"{run.path} is told classes such as {told[0]}, {len(told)} of them, and the held-out clips have {len(data.classes)}, such as {data.classes[0]}: "
            "its numbers would stand for others; name other clips, or --tasks without a class"
        )
    samples = {t: best_of if isinstance(best_of, int) else best_of.get(t, 1) for t in model.tasks}
    if clips < 1 or any(n < 1 for n in samples.values()):
        raise ValueError(f"clips and best_of must be at least 1, got {clips} and {best_of}")
    if clips > len(data.source):
        say(f"there are only {len(data.source)} held-out clips, {clips} were asked for")
        clips = len(data.source)
    scores = {name: Scores(metrics) for name in ("reconstruction", *model.tasks)}
    gaps: dict[str, set[tuple[int, int]]] = {}
    shown: dict[str, list[Example]] = {}
    done, total = 0, -(-clips // model.batch) * max(sum(samples.values()), 1)
    for rows in data.batches(0, clips, model.batch):
        for task, result in _videos(model, rows, samples, seed):
            scores[task].add(result)
            gaps.setdefault(task, set()).update(span for row in frames.gap_frames(result) for span in frames.spans(row))
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
        "settings": _settings(model, data, used, gaps),
        "reconstruction": found.pop("reconstruction"),
        "tasks": found,
        "seconds": round(time.monotonic() - begin, 1),
    }
    return Evaluation(numbers, shown)


def measured_on(run: runs.Run, config: Mapping[str, Any]) -> runs.Run:
    """The run, to be measured on the held-out clips, and by the metrics, of another config. UserError where that has no held-out clips."""
    if not config["data"].get("eval"):
        raise UserError("--data: that config has no data.eval, and so no held-out clips: name one that has")
    data = run.config["data"] | {"eval": config["data"]["eval"]}
    return dataclasses.replace(run, config=run.config | {"data": data, "metrics": config["metrics"]})


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


# Settings -----------------------------------------------------------------------------------------------------------


def open_metrics(specs: Sequence[Mapping[str, Any]], trust: bool = False) -> tuple[list[Any], list[dict[str, Any]]]:
    """(`METRICS` and those of the specs, with their weights; what each is)."""
    metrics, used = list(METRICS), [described(m) for m in METRICS]
    for i, spec in enumerate(specs):
        spec, groups, hashes = runs.resolve_spec(spec, f"metrics[{i}]", trust)
        metric = build(spec)
        if hasattr(metric, "with_weights"):
            metric = metric.with_weights(groups)
        if metric not in METRICS:
            metrics.append(metric)
            used.append(described(metric) | ({"weights": hashes} if hashes else {}))
    return metrics, used


def _settings(
    model: Generator, data: Clips, metrics: list[dict[str, Any]], gaps: Mapping[str, set[tuple[int, int]]]
) -> dict[str, Any]:
    clip = dataclasses.asdict(data.format)
    del clip["classes"]
    places = {task: [list(span) for span in sorted(spans)] for task, spans in gaps.items() if spans}
    objective = model.programs.objective
    how = {k: described(getattr(objective, k)) for k in ("sampling", "decoding") if hasattr(objective, k)}
    return {"metrics": metrics, "clip": clip, "gaps": places, **how}


def described(value: Any) -> Any:
    """As JSON, the reverse of `build` with every default: {"target" or "factory": path, fields}. What is None, and
    fields that are not shown, such as weights, are left out.
    """
    path = lambda thing: f"{thing.__module__}:{thing.__qualname__}"
    if isinstance(value, functools.partial):
        return {"factory": path(value.func)} | described(value.keywords)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.repr}
        return {"target": path(type(value))} | described(fields)
    if isinstance(value, Mapping):
        return {str(k): described(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [described(v) for v in value]
    if isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return path(value) if hasattr(value, "__qualname__") else str(value)


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
            if some := [f for f in found if f]:  # of other batches it may say nothing
                names = dict.fromkeys(k for f in some for k in f)  # of gaps a batch may say something and the next one nothing
                numbers |= metric.result({k: np.concatenate([f[k] for f in some if k in f]) for k in names})
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
    """UserError, before anything slow, where `out` cannot be written, or is named as something else than numbers."""
    if out.is_dir():
        raise UserError(f"--out={out} is a folder: name a file in it")
    if out.suffix != ".json":  # a video that is named here by mistake would be lost
        raise UserError(f"--out={out}: numbers are written, name it *.json")
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
