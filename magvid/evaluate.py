"""Numbers about a trained run: held-out clips -> generated videos per task -> metrics -> json.

And the compiled run, `Generator`, that `sample` uses too. It names no model, data set or objective: the run's config
does. An objective with tasks has `tasks`, `labelled`, `classes`, `with_tasks`, `with_decoding`, `condition_video` and
`reconstruct` (see objectives/masked.py); of one without them `sample` is taken for the reconstruction.
"""

import dataclasses
import functools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, UInt8

from magvid import runs, sharding
from magvid.build import build
from magvid.data import pipeline
from magvid.job import check_config
from magvid.metrics import frames
from magvid.state import Objective
from magvid.types import Groups, UserError
from magvid.video import to_uint8

Rows = Mapping[str, np.ndarray]  # a batch on the host
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
    clips = min(clips, len(data.source))
    scores = {name: Scores(metrics) for name in ("reconstruction", *model.tasks)}
    shown: dict[str, list[Example]] = {}
    done, total = 0, -(-clips // model.batch) * max(sum(samples.values()), 1)
    for rows in data.batches(0, clips, model.batch):
        for task, result in _videos(model, rows, samples, seed):
            scores[task].add(result)
            if model.tasks and task not in samples:
                continue  # the reconstruction of a run with tasks: a by-product
            some = shown.setdefault(task, [])
            some += data.examples(result, examples - len(some))
            done += samples.get(task, 1)
            if on_progress:
                on_progress(done, total, task)
    found = {name: s.result() for name, s in scores.items()}
    numbers = {
        "run": run.path.name,
        "hash": run.hash,
        "step": run.step,
        "weights": weights or "ema where there is one",
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
    model: "Generator", rows: Rows, samples: Mapping[str, int], seed: int
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


# A run that generates -----------------------------------------------------------------------------------------------


class Programs:
    """The compiled functions of an objective: (params, rows, ...) -> video.

    The task is an index per row, so one compile serves all."""

    def __init__(self, objective: Objective):
        self.objective = objective
        self.tasks = tuple(str(t) for t in getattr(objective, "tasks", ()))
        self.generate = jax.jit(self._generate)
        self.reconstruct = jax.jit(objective.reconstruct if self.tasks else self._only_sample)
        self.condition = jax.jit(lambda params, rows: objective.condition_video(rows))

    def _generate(self, params: Groups, rows, seed, draw):
        """Row by row with a key of its own, so that a clip's sample does not depend on its neighbours."""

        def one(row, index):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), index), draw)
            return self.objective.sample(params, jax.tree.map(lambda x: x[None], row), key)[0]

        return jax.vmap(one)(rows, rows["index"])

    def _only_sample(self, params: Groups, rows):
        return self.objective.sample(params, rows, jax.random.key(0))


@dataclasses.dataclass(frozen=True)
class Generator:
    """A trained run on all devices.

    Its methods take any number of rows, which they pad to `batch`, and return uint8 videos (b t h w 3)."""

    config: dict  # references to other runs resolved
    params: Groups
    programs: Programs
    mesh: jax.sharding.Mesh
    batch: int

    @classmethod
    def open(
        cls,
        run: runs.Run,
        tasks: Sequence[str] | None = None,
        *,
        decoding: Mapping[str, Any] | None = None,
        batch: int | None = None,
        weights: str | None = None,
        trust: bool = False,
    ) -> "Generator":
        """tasks, decoding: in place of the run's. UserError where the weights are not those of the config's model."""
        try:
            check_config(run.config)
        except UserError as error:
            raise UserError(f"{run.path} does not hold a run of `magvid train`: {error}") from error
        config, params = runs.load(run, weights, trust)
        objective = build(config["objective"])
        options = {k: v for k, v in (decoding or {}).items() if v is not None}
        if (tasks is not None or options) and not hasattr(objective, "tasks"):
            raise UserError(
                f"{run.path} has no tasks and no decoding: it is a {type(objective).__name__}, which only reconstructs"
            )
        objective = objective if tasks is None else objective.with_tasks(tasks)
        objective = objective.with_decoding(**options) if options else objective
        mesh = sharding.make_mesh({"data": -1})
        params = _fit(run, params, objective, config)
        params = jax.device_put(params, sharding.shardings(params, config["sharding"], mesh))
        shards = sharding.data_shards(mesh)
        return cls(config, params, Programs(objective), mesh, -(-(batch or config["batch"]) // shards) * shards)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.programs.tasks

    def generate(self, rows: Rows, seed: int = 0, draw: int = 0) -> UInt8[np.ndarray, "b t h w 3"]:
        """Sample number `draw` of each row, a function of (seed, row's `index`, draw)."""
        return to_uint8(self._run(self.programs.generate, rows, np.uint32(seed), np.uint32(draw)))

    def reconstruct(self, rows: Rows) -> UInt8[np.ndarray, "b t h w 3"]:
        return to_uint8(self._run(self.programs.reconstruct, rows))

    def condition(self, rows: Rows) -> tuple[UInt8[np.ndarray, "b t h w 3"], Bool[np.ndarray, "b t h w 1"]]:
        """The padded condition video of each row's task, and which pixels are given."""
        video, given = self._run(self.programs.condition, rows)
        return to_uint8(video), given

    def _run(self, program: Callable, rows: Rows, *arguments):
        rows = sharding.numeric({k: rows[k] for k in _USED if k in rows})
        n, parts = len(rows["video"]), []
        for start in range(0, n, self.batch):
            part = {k: v[np.minimum(np.arange(start, start + self.batch), n - 1)] for k, v in rows.items()}
            with jax.set_mesh(self.mesh):
                parts.append(jax.device_get(program(self.params, sharding.global_batch(part, self.mesh), *arguments)))
        return jax.tree.map(lambda *x: np.concatenate(x)[:n], *parts)


_USED = (
    "video",
    "label",
    "task",
    "index",
    "text",
    "caption",
)  # what `sample` may read: other entries need not reach the device


def _fit(run: runs.Run, params: Groups, objective: Objective, config: Mapping[str, Any]) -> Groups:
    """The groups that the objective needs, checked against its shapes."""
    first = next(Clips.of(config).batches(0, 1, 1))
    first = sharding.numeric({**first, "task": np.zeros(1, np.int32), "ratio": np.zeros(1, np.float32)})
    shapes = jax.eval_shape(objective.init, jax.random.key(0), first)
    if missing := set(shapes) - set(params):
        raise UserError(
            f"{run.path} has no weights of {', '.join(sorted(missing))}: it has {', '.join(sorted(params))}"
        )
    leaves = lambda tree: {sharding.path_name(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(tree)}
    have, want = leaves({g: params[g] for g in shapes}), leaves(shapes)
    if wrong := sorted(n for n in {**have, **want} if have.get(n) != want.get(n)):
        first = f"{wrong[0]} is {have.get(wrong[0], 'missing')} and should be {want.get(wrong[0], 'missing')}"
        more = f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
        raise UserError(
            f"the weights in {run.path} are of another model than its config and --config.* describe: {first}{more}"
        )
    return {g: params[g] for g in shapes}


# Data ---------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Clips:
    """The evaluation clips of a config (its training clips where it has no others)."""

    source: Any
    transforms: tuple

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Clips":
        section = config["data"].get("eval") or config["data"]["train"]
        return cls(build(section["source"]), build(tuple(section.get("transforms", ()))))

    @property
    def world(self) -> str:
        """The name that stands beside every number from this source."""
        path = getattr(self.source, "path", None)
        return str(getattr(self.source, "world_name", None) or (path.name if path else type(self.source).__name__))

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        return tuple(getattr(self.source, "classes", ()))

    def batches(self, start: int, count: int, batch: int) -> Iterator[dict[str, np.ndarray]]:
        """Clips start .. start + count - 1 in order; the last batch may be smaller. ValueError beyond the end."""
        total = len(self.source)
        if start + count > total:
            raise ValueError(
                f"clips {start} to {start + count - 1} were asked for, but the evaluation data has {total} (from 0)"
            )
        for rows in pipeline.epoch(Part(self.source, start, count), min(batch, count), self.transforms):
            valid = rows.pop("valid")
            rows = {k: v[valid] for k, v in rows.items() if isinstance(v, np.ndarray)}
            yield {**rows, "index": rows["index"] + start}

    def examples(self, videos: Rows, count: int) -> list[Example]:
        """The first `count` rows of what metrics see."""
        name = lambda i: self.classes[i] if i < len(self.classes) else i
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


@dataclasses.dataclass(frozen=True)
class Part:
    """Records start .. start + count - 1 of a source."""

    source: Any
    start: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.source[self.start + i]


class Preview:
    """For `train(evaluate=...)`: clips as condition, generated and real, one above the other; one per task."""

    def __init__(self, config: Mapping[str, Any], clips: int = 4, seed: int = 0):
        self.config, self.clips, self.seed = config, clips, seed
        self._kept: tuple[Programs, Rows] | None = None  # of the first call: compiled once

    def __call__(self, objective: Objective, params: Groups, step: int) -> dict[str, UInt8[np.ndarray, "b t H w 3"]]:
        if not self.config["data"].get("eval") or jax.process_count() > 1:
            return {}
        if self._kept is None:
            self._kept = self._prepare(objective)
        programs, rows = self._kept
        shown = [rows["video"]]
        shown.insert(0, to_uint8(np.asarray(programs.generate(params, rows, np.uint32(self.seed), np.uint32(0)))))
        if programs.tasks:
            shown.insert(0, to_uint8(np.asarray(programs.condition(params, rows)[0])))
        return {"samples": np.concatenate(shown, axis=2)}

    def _prepare(self, objective: Objective) -> tuple[Programs, Rows]:
        programs = Programs(objective)
        count = len(programs.tasks) or self.clips
        rows = next(Clips.of(self.config).batches(0, count, count))
        rows = {k: rows[k] for k in _USED if k in rows} | {"task": np.arange(count, dtype=np.int32)}
        return programs, sharding.numeric(rows)


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


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Appears under its name only when it is complete."""
    path = pathlib.Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check_writable(folder: pathlib.Path) -> None:
    """Creates `folder`; UserError, before anything slow, where files cannot be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): choose another --out") from error


def print_progress(done: int, total: int, text: str) -> None:
    """One line that is overwritten on a terminal; elsewhere nothing."""
    if sys.stdout.isatty():
        print(f"\r{done}/{total} {text:<16}", end="\n" if done >= total else "", flush=True)
