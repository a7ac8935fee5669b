"""A trained run that generates, and the held-out clips that it is shown; `sample` and `evaluate` are made of it.

It names no model, data set or objective: the run's config does. An objective with tasks has `tasks`, `labelled`,
`blind`, `predicts`, `given_frames`, `classes`, `overlap`, `with_tasks`, `with_decoding`, `continuation`, `condition_video` and
`reconstruct` (see objectives/tokens.py); of one without them `sample` is taken for the reconstruction. It may have
`for_sampling` (the same without what only losses need), `check_size` (where the weights fit one size of clips) and
`decoding_steps`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, UInt8

from magvid import adapter_files, runs, sharding
from magvid.build import build
from magvid.data import pipeline
from magvid.job import check_config
from magvid.runs import ClipFormat
from magvid.state import Objective
from magvid.types import DecodingSteps, Groups, UserError
from magvid.video import crossfade, to_uint8, windows

Rows = Mapping[str, np.ndarray]  # a batch on the host


class Programs:
    """The compiled functions of an objective: (params, rows, ...) -> video.

    The task is an index per row, so one compile serves all."""

    def __init__(self, objective: Objective):
        self.objective = objective
        self.tasks = tuple(str(t) for t in getattr(objective, "tasks", ()))
        self.generate = jax.jit(self._generate)
        self.reconstruct = jax.jit(objective.reconstruct if self.tasks else self._only_sample)
        self.condition = jax.jit(lambda params, rows: objective.condition_video(rows))
        self._continuations: dict[int, Programs] = {}
        self.steps = jax.jit(lambda params, *rest: self._by_row(objective.decoding_steps, params, *rest))

    def continuation(self, overlap: int) -> "Programs":
        """Of the objective that goes on from the first `overlap` frames; made once, and not where it is the same one."""
        if overlap not in self._continuations:
            objective = self.objective.continuation(overlap)
            self._continuations[overlap] = self if objective is self.objective else Programs(objective)
        return self._continuations[overlap]

    def _generate(self, params: Groups, rows, seed, draw, window):
        return self._by_row(self.objective.sample, params, rows, seed, draw, window)

    @staticmethod
    def _by_row(sample: Callable, params: Groups, rows, seed, draw, window=0):
        """Each row with a key of its own, of (seed, its index, draw, and the window where it is not the first), so that a clip's sample does not
        depend on its neighbours."""

        def one(row, index):
            key = functools.reduce(jax.random.fold_in, (index, draw), jax.random.key(seed))
            key = jax.lax.cond(window > 0, jax.random.fold_in, lambda key, _: key, key, window)  # one program for all windows
            return jax.tree.map(lambda x: x[0], sample(params, jax.tree.map(lambda x: x[None], row), key))

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
    frames: int  # of a clip

    @classmethod
    def open(
        cls,
        run: runs.Run,
        tasks: Sequence[str] | None = None,
        *,
        decoding: Mapping[str, Any] | None = None,
        batch: int | None = None,
        weights: str | None = None,
        like: Rows | None = None,
        adapters: str | None = None,
        trust: bool = False,
    ) -> "Generator":
        """tasks, decoding: in place of the run's. like: one row such as those to come; None takes an evaluation clip. adapters: files of
        `magvid export` in place of what the run trained, see `adapter_files.combine`.

        UserError where the weights are not those of the config's model; ValueError where they do not fit the clips."""
        check(run)
        config, params = runs.load(run, weights, trust) if adapters is None else adapter_files.beside(run, adapters, trust)
        objective = build(config["objective"])
        if not hasattr(objective, "sample"):
            raise UserError(f"{run.path} makes no videos: it is a {type(objective).__name__}")
        objective = objective.for_sampling() if hasattr(objective, "for_sampling") else objective
        options = {k: v for k, v in (decoding or {}).items() if v is not None}
        if (tasks is not None or options) and not hasattr(objective, "tasks"):
            raise UserError(
                f"{run.path} has no tasks and no decoding: it is a {type(objective).__name__}, which only reconstructs"
            )
        objective = objective if tasks is None else objective.with_tasks(tasks)
        objective = objective.with_decoding(**options) if options else objective
        mesh = sharding.make_mesh({"data": -1})
        first = Clips.of(config).first() if like is None else like
        if run.trained_clip and hasattr(objective, "check_size"):
            objective.check_size(first["video"].shape[1:4], run.trained_clip.shape)
        params = _fit(run, params, objective, first, adapters)
        params = jax.device_put(params, sharding.shardings(params, config["sharding"], mesh))
        shards = sharding.data_shards(mesh)
        batch = -(-(batch or config["batch"]) // shards) * shards
        return cls(config, params, Programs(objective), mesh, batch, first["video"].shape[1])

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.programs.tasks

    def generate(self, rows: Rows, seed: int = 0, draw: int = 0) -> UInt8[np.ndarray, "b t h w 3"]:
        """Sample number `draw` of each row, a function of (seed, row's `index`, draw)."""
        return to_uint8(self._run(self.programs.generate, rows, np.uint32(seed), np.uint32(draw), np.uint32(0)))

    def extend(
        self,
        rows: Rows,
        frames: int,
        overlap: int | None = None,
        seed: int = 0,
        draw: int = 0,
        window: Callable[[int], Rows] | None = None,
    ) -> UInt8[np.ndarray, "b frames h w 3"]:
        """Videos of any number of frames by frame prediction, over and over.

        Each next window is predicted from the last `overlap` frames of the video so far (None: the objective's own), and
        fades in over them (see `video.crossfade`). The first window is that of `generate`; of the last one only what is
        needed is kept. window: what in place of `rows` is shown of the window that begins at this frame; its "video" is then what the
        last frames so far are put into. What is no longer than a clip is cut from that of `generate`. Beyond it UserError for a row whose task gives
        other pixels than first frames; ValueError for an overlap that the clips, or the model, cannot take.
        """
        objective = self.programs.objective
        if frames < 1:
            raise ValueError(f"a video of {frames} frames was asked for: give at least 1")
        if frames <= rows["video"].shape[1]:
            return self.generate(rows, seed, draw)[:, :frames]
        if others := sorted({self.tasks[i] for i in np.unique(rows["task"]) if not objective.predicts[i]}):
            raise UserError(f"task {', '.join(others)} cannot go on beyond a clip: only frame prediction (FP, CFP) can")
        overlap, clip = objective.overlap if overlap is None else overlap, rows["video"].shape[1]
        count = windows(frames, clip, overlap)
        following = self.programs.continuation(overlap)
        done, made = [], self._run(self.programs.generate, rows, np.uint32(seed), np.uint32(draw), np.uint32(0))
        for i in range(1, count):
            done.append(to_uint8(made[:, :-overlap]))
            tail, shown = made[:, -overlap:], {"video": np.zeros_like(rows["video"])}
            shown |= window(i * (clip - overlap)) if window else {}
            shared = shown["video"][:, :overlap]
            stays = shown["stays"][:, :overlap, ..., None] if "stays" in shown else False  # what is as it was is not encoded twice
            shared[:] = np.where(stays, shared, to_uint8(tail))
            place = np.uint32(seed), np.uint32(draw), np.uint32(i)
            made = crossfade(tail, self._run(following.generate, {**rows, **shown}, *place))
        return np.concatenate([*done, to_uint8(made)], axis=1)[:, :frames]

    def steps(self, rows: Rows, seed: int = 0, draw: int = 0) -> DecodingSteps:
        """How `generate` with the same arguments decodes, as numpy arrays. UserError where nothing is decoded in
        parallel.
        """
        if not hasattr(self.programs.objective, "decoding_steps"):
            name = type(self.programs.objective).__name__
            raise UserError(f"{name} has no steps of parallel decoding to show: only a masked transformer has")
        return self._run(self.programs.steps, rows, np.uint32(seed), np.uint32(draw))

    def reconstruct(self, rows: Rows) -> UInt8[np.ndarray, "b t h w 3"]:
        return to_uint8(self._run(self.programs.reconstruct, rows))

    def condition(self, rows: Rows) -> tuple[UInt8[np.ndarray, "b t h w 3"], Bool[np.ndarray, "b t h w 1"]]:
        """The padded condition video of each row's task, and which pixels are given."""
        video, given = self._run(self.programs.condition, rows)
        return to_uint8(video), given

    def _run(self, program: Callable, rows: Rows, *arguments):
        rows = sharding.numeric(rows)
        n, parts = len(rows["video"]), []
        for start in range(0, n, self.batch):
            part = {k: v[np.minimum(np.arange(start, start + self.batch), n - 1)] for k, v in rows.items()}
            with jax.set_mesh(self.mesh):
                parts.append(jax.device_get(program(self.params, sharding.global_batch(part, self.mesh), *arguments)))
        return jax.tree.map(lambda *x: np.concatenate(x)[:n], *parts)


def clip_format(run: runs.Run) -> ClipFormat:
    """Of the clips that a run is shown: as its folder says, or where that does not, as its evaluation clips are."""
    check(run)
    return run.clip or Clips.of(run.config).format


def check(run: runs.Run) -> None:
    """UserError where a folder holds something else than a run of `magvid train`."""
    try:
        check_config(run.config)
    except UserError as error:
        raise UserError(f"{run.path} does not hold a run of `magvid train`: {error}") from error


def _fit(run: runs.Run, params: Groups, objective: Objective, first: Rows, adapters: str | None = None) -> Groups:
    """The groups that the objective needs for a batch such as `first`, checked against its shapes. `adapters`: files that some come from."""
    where = str(run.path) if adapters is None else f"--adapters={adapters} and {run.path}"
    first = sharding.numeric({**first, "task": np.zeros(1, np.int32), "ratio": np.zeros(1, np.float32)})
    shapes = jax.eval_shape(objective.init, jax.random.key(0), first)
    if missing := set(shapes) - set(params):
        raise UserError(
            f"{where}: there are no weights of {', '.join(sorted(missing))}, only of {', '.join(sorted(params))}; give the --run that trained "
            "them, or a file of `magvid export` where the command takes --adapters"
        )
    leaves = lambda tree: {sharding.path_name(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(tree)}
    have, want = leaves({g: params[g] for g in shapes}), leaves(shapes)
    if wrong := sorted(n for n in {**have, **want} if have.get(n) != want.get(n)):
        first = f"{wrong[0]} is {have.get(wrong[0], 'missing')} and should be {want.get(wrong[0], 'missing')}"
        more = f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
        raise UserError(
            f"the weights in {where} are of another model than its config and --config.* describe: {first}{more}"
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

    @property
    def format(self) -> ClipFormat:
        return ClipFormat.of(self.source, self.first()["video"].shape[1:])

    def first(self) -> dict[str, np.ndarray]:
        """The first clip as a batch."""
        return next(self.batches(0, 1, 1))

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
    """For `train(evaluate=...)`: clips as condition, generated and real, one above the other; one per task, of one task
    (or none) `clips`.
    """

    def __init__(self, config: Mapping[str, Any], clips: int = 4, seed: int = 0):
        self.config, self.clips, self.seed = config, clips, seed
        self._kept: tuple[Programs, Rows] | None = None  # of the first call: compiled once

    def __call__(self, objective: Objective, params: Groups, step: int) -> dict[str, UInt8[np.ndarray, "b t H w 3"]]:
        if not self.config["data"].get("eval") or jax.process_count() > 1 or not hasattr(objective, "sample"):
            return {}
        if self._kept is None:
            self._kept = self._prepare(objective)
        programs, rows = self._kept
        shown = [rows["video"]]
        shown.insert(0, to_uint8(np.asarray(programs.generate(params, rows, np.uint32(self.seed), np.uint32(0), np.uint32(0)))))
        if programs.tasks:
            shown.insert(0, to_uint8(np.asarray(programs.condition(params, rows)[0])))
        return {"samples": np.concatenate(shown, axis=2)}

    def _prepare(self, objective: Objective) -> tuple[Programs, Rows]:
        programs = Programs(objective)
        tasks = len(programs.tasks)
        count = tasks if tasks > 1 else self.clips
        rows = next(Clips.of(self.config).batches(0, count, count))
        return programs, sharding.numeric(rows | {"task": np.arange(count, dtype=np.int32) % max(tasks, 1)})
