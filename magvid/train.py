"""The one training loop: prepare, then step, log, save, evaluate. Models, data and objective come from the config."""

import contextlib
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from magvid import cost, logs, runs, sharding, state
from magvid.checkpoints import CheckpointError, Checkpoints
from magvid.guard import Guard
from magvid.job import Job, Prepared, check_config, differences
from magvid.logs import Logger
from magvid.meter import Meter
from magvid.runs import ClipFormat
from magvid.state import TrainState
from magvid.types import UserError
from magvid.watchdog import Peers, Watchdog

ALARM = 10  # readings in a row below an objective's limit

T = TypeVar("T")
Evaluate = Callable[[Any, Mapping[str, Any], int], Mapping[str, Any]]


class Diverged(UserError):
    """Something became NaN or infinite; the message says what, and which checkpoint is good."""


class _Astray(Exception):
    """`step` went wrong, as `why` says, with the batch before the position `data`."""

    def __init__(self, step: int, why: str, data: Mapping[str, Any]):
        self.step, self.why, self.data = step, why, data


class Interrupted(SystemExit):
    """The run was asked to stop and has saved itself; the exit code is 130 after Ctrl-C and 143 after SIGTERM."""


def train(
    config: Mapping[str, Any],
    workdir: str | os.PathLike,
    *,
    devices: Sequence[jax.Device] | None = None,
    evaluate: Evaluate | None = None,
    trust: bool = False,
    profile: tuple[int, int] | None = None,
) -> tuple[TrainState, dict[str, float]]:
    """Train what `config` describes in the run folder `workdir`, from its newest good checkpoint on, bit for bit.

    `evaluate(objective, {group: weights}, step)` -> {name: number, or uint8 video (b t h w 3)} is called every
    `eval_every` steps, after the loss on held-out data. `trust` lets the configs of referenced runs name code outside
    of magvid. `profile`: of the steps from the first to the second a trace is written to `workdir`/profile. Returns the state and the newest
    value of every metric; a cosine schedule without `total` is stretched when `steps` changes. Raises Interrupted after Ctrl-C (a second one stops at once) and SIGTERM, Diverged when
    something is not finite, UserError for a config that does not fit or differs from that of the folder.
    """
    workdir = pathlib.Path(workdir).expanduser().absolute()
    config = runs.anchored(check_config(config), os.getcwd())
    if config["compile_cache"]:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(config["compile_cache"]))
    if not config["optim"]:
        raise UserError("this config trains nothing (config.optim is empty): a public model is trained with tune=lora, for example")
    _check_workdir(config, workdir)
    with contextlib.ExitStack() as stack:
        job = Job.from_config(config, devices, trust)
        loader = job.loader()
        stack.callback(loader.close)
        first = next(loader)
        prepared = job.prepare(first)
        runs.make_folder(workdir / "checkpoints", "--workdir")  # only now: a config that does not fit leaves no folder behind
        if jax.process_index() == 0:
            stack.enter_context(runs.locked(workdir))
        checkpoints = Checkpoints(workdir / "checkpoints", config["keep"], write=True, keep_every=config["keep_every"])
        stack.push(_unless_interrupted(checkpoints.close))
        begun = bool(checkpoints.steps())
        _describe(workdir, config, ClipFormat.of(loader.source, job.clip_shape(first)), begun)
        if begun:
            train_state, data, step = checkpoints.restore(prepared.like)
            runs.check_hashes(checkpoints.meta(step)["frozen"], {g: s["hash"] for g, s in job.sources.items()}, workdir)
            loader.set_state(data["loader"])
            waiting = []
        else:
            train_state, data, step, waiting = prepared.init(), {}, 0, [first]
        if not begun and jax.process_index() == 0:
            _set_log_aside(workdir, config["save_every"])
        logger = Logger(workdir, config["steps"], step)
        stack.callback(logger.close)
        checkpoints.say = logger.say
        if begun and step < config["steps"]:
            logger.say(f"going on from step {step}")
        guard = Guard(config["rollbacks"], config["spike"])
        if "guard" in data:
            guard.set_state(data["guard"])
        with jax.set_mesh(job.mesh):
            profiler = stack.enter_context(contextlib.closing(_Profiler(workdir / "profile", profile, step, config["steps"], logger.say)))
            watchdog = stack.enter_context(Watchdog(workdir, logger.say, Peers.here()))
            loop = Loop(job, prepared, checkpoints, logger, evaluate, profiler, guard, watchdog, data.get("evaluated", step))
            return loop.run(train_state, step, loader, waiting)


class _Pending(NamedTuple):
    """A step that the device may still be computing."""

    step: int
    examples: int
    flops: float
    metrics: Mapping[str, jax.Array]
    finite: Mapping[str, jax.Array]
    position: Mapping[str, Any]  # of the data behind its batch


class Loop:
    """Step, log, save and evaluate. The device never waits for the host: metrics are read one step late."""

    def __init__(self, job: Job, prepared: Prepared, checkpoints: Checkpoints, logger: Logger, evaluate, profiler: "_Profiler", guard: Guard, watchdog: Watchdog, evaluated: int):
        self.job, self.prepared, self.evaluate, self.profiler = job, prepared, evaluate, profiler
        self.checkpoints, self.logger, self.guard, self.watchdog = checkpoints, logger, guard, watchdog
        self.config = job.config
        self.train_step = job.step(prepared)
        self.eval_step = job.eval_step()
        self.newest: dict[str, float] = {}
        self.pending: _Pending | None = None
        self.saved = 0  # the newest saved step
        self.evaluated = evaluated  # the newest step whose evaluation is done, or whose turn it was not
        self.low: dict[str, int] = {}  # readings in a row that a metric has been below its limit
        self.meter = Meter(job.mesh.devices.flatten().tolist(), self.config["dtype"], logger.last)
        self.programs: dict[tuple, tuple[jax.stages.Compiled, float]] = {}  # the step, and its FLOPs, by what its batch is like

    def run(self, train_state: TrainState, step: int, loader, waiting: list) -> tuple[TrainState, dict[str, float]]:
        """From `step` to the last; `waiting` holds batches that were read already."""
        self.saved = step
        if step >= (steps := self.config["steps"]):
            self.logger.say(f"this run is at step {step} already: give more than {step} steps to go on")
        with _stop_signals() as stop:
            try:
                while True:
                    try:
                        train_state, step = self._train(train_state, step, loader, waiting, stop)
                        break
                    except _Astray as error:
                        astray = error.with_traceback(None)  # which holds the state that went astray: with another beside it, a device may be full
                    with self.watchdog.paused():
                        train_state, step = self._go_back(astray, loader)
                    waiting = []
            except Exception as e:
                self.watchdog.explain(e)
                raise
        if stop.number:
            where = f"at step {step} of {steps} and saved; the same command goes on from there" if step else "before the first step; the same command begins again"
            self.logger.say(f"stopped {where}")
            raise Interrupted(128 + stop.number)
        return train_state, self.newest

    def _train(self, train_state: TrainState, step: int, loader, waiting: list, stop: "_Stop") -> tuple[TrainState, int]:
        """To the last step, or until it shall stop, and save."""
        steps, save_every, eval_every = (self.config[k] for k in ("steps", "save_every", "eval_every"))
        due = lambda step: bool(eval_every) and (step % eval_every == 0 or step == steps)
        if due(step) and self.evaluated < step:  # the run was stopped on the way
            self._evaluate(train_state, step, stop)
        while step < steps and not stop.wanted():
            before = loader.get_state()
            with self.meter.waiting("data"):
                batch = sharding.global_batch(waiting.pop() if waiting else next(loader), self.job.mesh)
            position = loader.get_state() if self.guard.most else {}
            if (found := self._program(train_state, batch, stop)) is None:
                loader.set_state(before)  # nothing was learnt from this batch
                break
            program, flops = found
            self.profiler.before(step + 1)
            with jax.transfer_guard("disallow"):
                train_state, metrics, finite = program(train_state, batch)
            self._settle()
            step += 1
            self.profiler.after(step, metrics)
            self.pending = _Pending(step, len(next(iter(batch.values()))), flops, metrics, finite, position)
            if due(step):
                self._settle()
                self._evaluate(train_state, step, stop)
            if save_every and step % save_every == 0 and step < steps:
                self._settle()
                with self.meter.waiting("save"), self.watchdog.paused():
                    self._save(train_state, step, loader)
        with self.watchdog.paused():
            self._save(train_state, step, loader, last=True)
        return train_state, step

    def _go_back(self, astray: _Astray, loader) -> tuple[TrainState, int]:
        """The state of the last save, or the first, and its step; data go on behind the batch with which the run went astray. So does a run
        that was killed before its next save: it goes astray again, at the same step.
        """
        self.pending = None
        with contextlib.suppress(CheckpointError):
            self.checkpoints.wait()
        if self.checkpoints.steps():
            train_state, data, step = self.checkpoints.restore(self.prepared.like)
        else:
            train_state, step, data = self.prepared.init(), 0, {"guard": {"losses": {}}}
        loader.set_state(astray.data)
        self.logger.back(step)
        self.saved, self.evaluated = step, min(self.evaluated, step)
        self.guard.back(data["guard"], astray.step - step)
        self.meter.back()
        times = f"{self.guard.now} of {self.guard.most} times until the next save"
        self.logger.say(f"step {astray.step}: {astray.why}: back to step {step}, and past {astray.step - step} batches ({times})")
        return train_state, step

    def _program(self, train_state: TrainState, batch: Mapping[str, jax.Array], stop: "_Stop") -> tuple[jax.stages.Compiled, float] | None:
        """The step for batches like this one, and its FLOPs on all devices together, without those that `remat` makes again. It is compiled for the first of
        them, however long that takes; None where the run shall stop meanwhile.
        """
        like = tuple((name, x.shape, x.dtype) for name, x in batch.items())
        if like not in self.programs:
            with self.watchdog.paused():
                traced = self.train_step.trace(train_state, batch)
                jaxpr, lowered = traced.jaxpr, traced.lower()
                if cost.recomputes(jaxpr):
                    jaxpr = jax.jit(self.job.pure_step(self.prepared, remat=False)).trace(train_state, batch).jaxpr
                if (compiled := stop.unless(lowered.compile, self.job.mesh)) is None:
                    return None
            self.programs[like] = compiled, cost.flops(jaxpr)
        return self.programs[like]

    def _settle(self) -> None:
        """Read the metrics of the pending step: stop if it diverged, log if it is time."""
        if self.pending is None:
            return
        (step, examples, flops, metrics, finite, position), self.pending = self.pending, None
        metrics, finite = jax.device_get((metrics, finite))
        if bad := state.culprits(metrics, finite, self.prepared.optimisers):
            why = f"not finite: {', '.join(bad)}"
        else:
            why = ", ".join(self.guard.spikes({k: float(v) for k, v in metrics.items() if k.startswith("loss/")}))
        if why:
            self._astray(step, why, position)
        self.meter.step(examples, flops)
        self.watchdog.beat(step)
        self.logger.progress(step, "  ".join(f"{k} {v:.4g}" for k, v in metrics.items() if k.startswith("loss/")))
        if step % self.config["log_every"] == 0 or step == self.config["steps"]:
            values = {k if k.startswith("opt/") else f"train/{k}": float(v) for k, v in metrics.items()}
            self._log(step, values | self.meter.read() | self.guard.report())
            self._alarm(step, values)

    def _astray(self, step: int, why: str, position: Mapping[str, Any]) -> None:
        """Raises: to go back, or where that is not wanted, or was done too often, to stop."""
        if self.guard.now < self.guard.most:
            raise _Astray(step, why, position)
        with contextlib.suppress(CheckpointError):
            self.checkpoints.wait()
        saved = self.checkpoints.steps()
        good = f"the last checkpoint is step {saved[-1]}" if saved else "there is no checkpoint yet"
        back = f", after going back {self.guard.now} times" if self.guard.now else ""
        remedy = "Try a lower learning rate or a clip" + ("." if self.guard.most else ", or --config.rollbacks=3 to go back and skip such batches.")
        raise Diverged(f"step {step}: {why}{back}; {good} in {self.checkpoints.folder}. {remedy}")

    def _alarm(self, step: int, values: Mapping[str, float]) -> None:
        """Say once that a metric has stayed below what the objective's `alarms` give as its least value."""
        for name, (least, remedy) in getattr(self.job.objective, "alarms", {}).items():
            value = values.get(f"train/{name}", least)
            self.low[name] = self.low.get(name, 0) + 1 if value < least else 0
            if self.low[name] == ALARM:
                self.logger.say(f"step {step}: {name} stays below {least:g}, at {value:.3g} now: {remedy}")

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        self.newest |= values
        self.logger.scalars(step, values)

    def _evaluate(self, train_state: TrainState, step: int, stop: "_Stop") -> None:
        """Losses and metrics on held-out data with averaged weights, then what the caller's `evaluate` gives. Where the run shall stop meanwhile, nothing: it is
        made up for when the run goes on.
        """
        with self.meter.stopped(), self.watchdog.paused():
            values = self._held_out(train_state, step, stop)
        if values is not None:
            self.evaluated = step
            if values:
                self._log(step, values)

    def _held_out(self, train_state: TrainState, step: int, stop: "_Stop") -> dict[str, float] | None:
        params = state.weights(train_state)
        found = []
        for i, batch in enumerate(self.job.held_out()):
            key = jax.random.fold_in(
                jax.random.key(self.config["seed"]), i
            )  # the same draws each time: comparable numbers
            batch = sharding.global_batch(batch, self.job.mesh)
            read = stop.unless(lambda batch=batch, key=key: jax.device_get(self.eval_step(params, train_state.extra, batch, key, train_state.step)), self.job.mesh)
            if stop.wanted() or read is None:
                return None
            found.append(read)
        values = {f"eval/{k}": float(np.mean([f[k] for f in found])) for k in (found[0] if found else ())}
        if self.evaluate:
            made = stop.unless(lambda: self.evaluate(self.job.objective, {**self.prepared.spared, **params}, step), self.job.mesh)
            if made is None:
                return None
            for name, value in made.items():
                if np.ndim(value):
                    self.logger.videos(step, f"eval/{name}", np.asarray(value))
                else:
                    values[f"eval/{name}"] = float(value)
        return values

    def _save(self, train_state: TrainState, step: int, loader, last: bool = False) -> None:
        """Save once the step is known to be finite. A failure is said, and the next save tried; the last must work."""
        self._settle()
        if last and step == self.saved and jax.process_count() == 1:  # several save together, and one may not know that another failed
            try:
                self.checkpoints.wait()
            except CheckpointError as e:
                self.logger.say(f"{e} It is tried once more.")
                self.saved = -1
        try:
            if step != self.saved:
                data = {"loader": loader.get_state(), "guard": self.guard.get_state(), "evaluated": self.evaluated}
                self.checkpoints.save(step, train_state, data, self.job.sources)
                self.saved = step
                self.guard.saved()
                self.meter.saved()
            if last:
                self.checkpoints.wait()
        except CheckpointError as e:
            if last:
                raise
            self.logger.say(f"{e} Training goes on and tries again in {self.config['save_every']} steps.")


def _check_workdir(config: dict, workdir: pathlib.Path) -> None:
    """UserError where the folder holds the checkpoints of another config. Writes nothing."""
    saved = workdir / "checkpoints"
    if not saved.is_dir() or not any(p.name.isdigit() for p in saved.iterdir()):
        return
    if not (workdir / runs.CONFIG).exists():
        raise UserError(f"{workdir} holds checkpoints but no {runs.CONFIG}: choose another --workdir")
    if changed := differences(runs.read_config(workdir), config):
        some = ", ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
        raise UserError(f"{workdir} was trained with another {some}: undo the change, or choose another --workdir")


def _set_log_aside(workdir: pathlib.Path, save_every: int) -> None:
    """A log that goes on behind the first save, where there is no checkpoint, is not overwritten: they are gone, or the run was killed within that save."""
    log = workdir / "metrics.jsonl"
    lines = logs.read(log) if log.is_file() else []
    if save_every and lines and (last := lines[-1].get("step", 0)) > save_every:
        aside = log.with_name(f"{log.stem}-until-{last}{log.suffix}")
        log.replace(aside)
        print(f"{log} goes to step {last}, but {workdir / 'checkpoints'} holds no checkpoint: beginning anew. That log is {aside.name} now")


def _describe(workdir: pathlib.Path, config: dict, clip: ClipFormat, begun: bool) -> None:
    """Write config.json, and data.json once: a run that goes on keeps the one it has."""
    if jax.process_index() == 0:
        runs.write_json(workdir / runs.CONFIG, runs.relative(config, workdir))
        if not begun or not (workdir / runs.DATA).exists():
            clip.write(workdir / runs.DATA)


class _Profiler:
    """Writes a trace of some steps to `folder`, which TensorBoard, XProf and Perfetto read."""

    def __init__(self, folder: pathlib.Path, steps: tuple[int, int] | None, done: int, total: int, say: Callable[[str], None]):
        if steps and not 0 < steps[0] <= steps[1] <= total:
            raise UserError(f"--profile={steps[0]}-{steps[1]}: this run makes the steps 1 to {total}")
        if steps and steps[0] <= done:  # no error: the command of a run that was interrupted is given again
            say(f"--profile={steps[0]}-{steps[1]}: this run is at step {done} already, and no trace is written")
            steps = None
        self.folder, self.steps, self.say, self.on = folder, steps or (0, 0), say, False

    def before(self, step: int) -> None:
        if step == self.steps[0] and not self.on:  # a run may go back behind it
            jax.profiler.start_trace(self.folder)
            self.on = True

    def after(self, step: int, result: Any) -> None:
        if step == self.steps[1]:
            jax.block_until_ready(result)
            self.close()
            self.say(f"wrote a trace of the steps {self.steps[0]} to {step} to {self.folder}")

    def close(self) -> None:
        if self.on:
            jax.profiler.stop_trace()
            self.on = False


class _Stop:
    number = 0  # of the signal that asked to stop
    noticed = False  # signals are noted here
    asked = 0  # times that all processes have asked whether to stop

    def unless(self, make: Callable[[], T], mesh: jax.sharding.Mesh) -> T | None:
        """`make()`, or None once the run shall stop, however long the other would take: it is left to a thread then, which ends with the process. Signals
        reach Python's main thread alone, and not while that waits for a device.
        """
        if not self.noticed:
            return make()
        done: list[tuple[T | None, BaseException | None]] = []

        def work():
            try:
                with jax.set_mesh(mesh):  # which belongs to a thread
                    done.append((make(), None))
            except BaseException as error:
                done.append((None, error))

        # `flags.leave` knows it by its name
        thread = threading.Thread(target=work, name="stoppable", daemon=True)
        thread.start()
        while not self.number and thread.is_alive():
            thread.join(0.1)
        if self.number or not done:
            return None
        ((made, error),) = done
        if error is not None:
            raise error
        return made

    def wanted(self) -> bool:
        """The same for all processes, which ask as often and at the same places."""
        if jax.process_count() == 1 or self.number:
            return bool(self.number)
        from jax.experimental import multihost_utils

        self.asked += 1
        if multihost_utils.reached_preemption_sync_point(self.asked):
            self.number = signal.SIGTERM
        return bool(self.number)


@contextlib.contextmanager
def _stop_signals():
    """Within, the first Ctrl-C or SIGTERM is noted; a second Ctrl-C raises KeyboardInterrupt as usual."""
    stop, old = _Stop(), {}

    def note(number, frame):
        stop.number = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        # with several processes SIGTERM belongs to jax's preemption service
        for number in (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else ():
            with contextlib.suppress(ValueError):  # not in the main thread: signals belong to the caller
                old[number] = signal.signal(number, note)
                stop.noticed = True
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _unless_interrupted(close: Callable[[], None]):
    """A second Ctrl-C does not wait for the checkpoint being written."""

    def leave(kind, error, trace):
        if kind is not KeyboardInterrupt:
            close()

    return leave
