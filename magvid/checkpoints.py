"""Checkpoints on Orbax: asynchronous, atomic, checksummed, with fall-back; and the strict merge of weights.

A checkpoint holds the items `params`, `ema`, `train` (optimiser, extra, step, key), `data` (the iterator's state) and
`meta` (names, shapes, dtypes and checksums of all leaves; source and hash of frozen groups, which are not saved
themselves). Every item restores alone.
"""

import asyncio
import contextlib
import json
import logging
import pathlib
import re
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from magvid.sharding import checksums, path_name
from magvid.state import TrainState
from magvid.types import Params, UserError

T = TypeVar("T")


class _ToTheEnd:
    """Of a handler of arrays: where one cannot be read, waits for the others, whose reads would otherwise end in an event loop that is closed, each with
    a traceback.
    """

    async def deserialize(self, infos, args=None):
        others = asyncio.all_tasks()
        try:
            return await super().deserialize(infos, args)
        except Exception:
            await asyncio.gather(*(asyncio.all_tasks() - others), return_exceptions=True)
            raise


class _Arrays(_ToTheEnd, ocp.type_handlers.ArrayHandler):
    pass


class _NumpyArrays(_ToTheEnd, ocp.type_handlers.NumpyHandler):
    pass


# How arrays are written, by their types. Devices that hold the same array share the work of writing it where it is large
# only: the cut compiles a program for each shape.
ARRAYS = ocp.type_handlers.create_type_handler_registry(
    (jax.Array, _Arrays(min_slice_bytes_for_replica_parallel=2**20)),
    (np.ndarray, _NumpyArrays()),
    (np.number, ocp.type_handlers.ScalarHandler()),
)


TRIES = 100  # a tenth of a second apart, to remove what a save left that failed
ASIDE = "set-aside-"  # the beginning of a folder's name, see `save`


class CheckpointError(UserError):
    """A checkpoint cannot be written, read or used; the message names the folder and the remedy."""


class Corrupt(Exception):
    """A step whose files are damaged; restoring goes on with the step before it."""


@contextlib.contextmanager
def _quiet():
    """Within, nothing is printed of a save that fails, of which Orbax logs a traceback for each part, and TensorStore prints one for each array that is written
    to the end after the first error has closed its event loop: hundreds in all. `wait` raises that error.
    """

    def unraisable(found):
        if str(found.exc_value) != "Event loop is closed":
            before(found)

    wanted = lambda record: not (record.levelno == logging.ERROR and record.exc_info and "orbax" in record.pathname)
    before, sys.unraisablehook = sys.unraisablehook, unraisable
    logger = logging.getLogger("absl")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)
        sys.unraisablehook = before


class Checkpoints:
    """The checkpoints of one run. For writing it creates `folder` and removes what an interrupted save left there. Of what it writes the newest `keep` stay, and for
    good those of steps that are multiples of `keep_every`.
    """

    def __init__(
        self, folder: str | pathlib.Path, keep: int = 3, write: bool = False, say: Callable[[str], None] | None = None, keep_every: int = 0
    ):
        self.folder, self.write = pathlib.Path(folder).absolute(), write
        self.say = say or speak
        self._damaged: dict[int, str] = {}  # {step: why}, as found so far
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep if write else None,
            keep_period=keep_every or None,
            create=write,
            # made in the background, a folder that cannot be made is only noticed after minutes
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        if not write and not self.folder.is_dir():
            raise CheckpointError(f"{self.folder} does not exist: give the folder of a run that has saved a checkpoint")
        try:
            if write:
                _remove_unfinished(self.folder)
            self._manager = self._open()
        except OSError as e:
            raise CheckpointError(
                f"cannot write checkpoints to {self.folder} ({e.strerror}): choose another --workdir"
            ) from e
        self._saving = contextlib.ExitStack()
        if write:
            self._saving.enter_context(_quiet())

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(self.folder, options=self._options, item_handlers=_handlers())

    def steps(self) -> list[int]:
        """All saved steps in ascending order, good or not; of several processes that train together, those that the first one sees: what a shared
        folder holds is not known everywhere at once. All processes ask.
        """
        found = sorted(self._manager.all_steps())
        return _of_first_process(found) if self.write else found

    def save(
        self, step: int, state: TrainState, data: Mapping[str, Any], frozen: Mapping[str, Any] | None = None
    ) -> None:
        """Write `state` as `step`, in the background; the arrays may be donated as soon as this returns.

        `data` is the iterator's state and `frozen` the source and hash of each frozen group, both JSON. Steps at or
        after this one are left from an abandoned future, as the run could not read them: each of them, and whatever else was found damaged, which
        would count as one of the last good ones, is kept as `set-aside-STEP`, until another takes that
        name, since what could not be read once need not be damaged. Raises
        CheckpointError when this save could not be written; that the one before it failed is said. Older checkpoints stay as they are.
        """
        try:
            self.wait()
        except CheckpointError as e:
            self.say(f"{e} Training goes on and tries again now.")
        arrays = {item: tree for item, tree in _items(state).items() if tree}
        sums = checksums(arrays)
        leaves = {
            f"{i}/{n}": [list(x.shape), x.dtype.name, sums[f"{i}/{n}"]]
            for i, tree in arrays.items()
            for n, x in tree.items()
        }
        meta = {"step": step, "leaves": leaves, "frozen": dict(frozen or {}), "data": _crc(data)}
        saves = {item: ocp.args.PyTreeSave(unflatten_dict(tree, sep="/")) for item, tree in arrays.items()}
        try:
            self._set_aside([s for s in self.steps() if s >= step or s in self._damaged])
            self._damaged = {}
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    **saves, data=ocp.args.JsonSave(dict(data)), meta=ocp.args.JsonSave(meta | {"crc": _crc(meta)})
                ),
            )
        except Exception as e:
            self._begin_again()
            raise self._not_written(step, e) from e
        if not saved:
            raise CheckpointError(f"step {step} was not saved in {self.folder}: it holds steps {self.steps()}")

    def wait(self) -> None:
        """Until the last save is complete; CheckpointError if it failed, and then nothing of it is left, which would keep a full disk full."""
        try:
            self._manager.wait_until_finished()
        except Exception as e:
            self._begin_again()
            raise self._not_written(None, e) from e

    def _begin_again(self) -> None:
        """After a save that failed: the manager that made it would raise the same at the next restore, and has lost count of what is on the disk."""
        with contextlib.suppress(Exception):
            self._manager.close()
        for _ in range(TRIES):  # its threads may still be writing what the one that failed will never complete
            with contextlib.suppress(OSError):
                _remove_unfinished(self.folder)
            time.sleep(0.1)
            if not _unfinished(self.folder):
                break
        with contextlib.suppress(Exception):  # where the folder is gone the next save says so
            self._manager = self._open()

    def _set_aside(self, steps: Sequence[int]) -> None:
        if not steps:
            return
        failed: OSError | None = None
        if jax.process_index() == 0:
            for step in steps:
                aside = self.folder / f"{ASIDE}{step}"
                shutil.rmtree(aside, ignore_errors=True)
                try:
                    (self.folder / str(step)).rename(aside)
                except FileNotFoundError:  # somebody moved it away before
                    pass
                except OSError as e:
                    failed = e
        if _any_process(failed is not None):  # all go on, or none, once it is done
            raise failed or OSError("the first process cannot put aside what is damaged")
        self._manager.reload()

    def close(self) -> None:
        """Let go of the folder once the save in progress is complete; a failure that `wait` has not raised is said."""
        with self._saving:
            try:
                self._manager.close()
            except Exception as e:
                self.say(str(self._not_written(None, e)))

    def restore(self, like: TrainState) -> tuple[TrainState, dict, int]:
        """(state, iterator state, step) of the newest good checkpoint.

        `like` has ShapeDtypeStructs with shardings in place of arrays, which may be those of another mesh than the
        saved one; its `frozen` (arrays) is taken over as it is. A damaged step is named and skipped; CheckpointError
        when none is good, or with the differences when the state's tree is another one.
        """
        wanted = {item: tree for item, tree in _items(like).items() if tree}

        def load(step):
            meta = _together(lambda: self.meta(step))
            _compare(
                {f"{i}/{n}": (x.shape, x.dtype.name) for i, t in wanted.items() for n, x in t.items()},
                meta,
                self.folder / str(step),
            )
            arrays = self._arrays(step, meta, wanted)
            return _state(arrays, like), _together(lambda: self._data(step, meta)), step

        return self.newest(load)

    def newest(self, load: Callable[[int], T], step: int | None = None) -> T:
        """load(step) of the newest step (or of `step` alone) for which it does not raise Corrupt. What is to be of one step is to be read in one call.

        Damaged steps are named, and left out from then on. CheckpointError when there is none.
        """
        steps, found = self.steps(), {}
        if step is not None and step not in steps:
            raise CheckpointError(f"{self.folder} has no step {step}; it has {steps}")
        for s in reversed(steps) if step is None else [step]:
            if s in self._damaged:
                continue
            try:
                result = load(s)
            except Corrupt as e:
                self._damaged[s] = found[s] = str(e)
                continue
            if found:
                self.say(f"damaged checkpoint in {self.folder}, {_listed(found)}: using step {s}")
            return result
        raise CheckpointError(
            f"no good checkpoint in {self.folder}: {_listed(self._damaged) or 'it is empty'}; restore the folder from a copy, or "
            "train anew in another --workdir"
        )

    def group(self, step: int, item: str, group: str) -> Params:
        """One group of the item "params" or "ema" alone as nested numpy arrays, verified; empty when there is no such
        group.

        Raises Corrupt when it is damaged.
        """
        names = [n.removeprefix(f"{item}/") for n in self.meta(step)["leaves"] if n.startswith(f"{item}/{group}/")]
        return unflatten_dict(self.some(step, item, names), sep="/")[group] if names else {}

    def some(self, step: int, item: str, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Arrays of the item "params" or "ema" by name, verified: for what is too large to hold together."""
        meta = self.meta(step)
        entries = {name: meta["leaves"][f"{item}/{name}"] for name in names}
        wanted = {n: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype)) for n, (shape, dtype, _) in entries.items()}
        return self._arrays(step, meta, {item: wanted})[item]

    def meta(self, step: int) -> dict:
        """{"step", "leaves": {"item/name": [shape, dtype, checksum]}, "frozen", "data"} of a step; Corrupt when it is
        damaged.
        """
        try:
            meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            crc = meta.pop("crc")
        except Exception as e:
            raise Corrupt(f"its description cannot be read ({_first_line(e)})") from e
        if crc != _crc(meta):
            raise Corrupt("the checksum of its description is wrong")
        if meta["step"] != step:
            raise Corrupt(f"it is that of step {meta['step']} under another number")
        return meta

    def _arrays(self, step: int, meta: Mapping[str, Any], wanted: Mapping[str, Mapping[str, Any]]) -> dict[str, dict]:
        """{item: {name: array}}, verified; each with the sharding of its ShapeDtypeStruct (numpy when it has none)."""

        def one(x):
            if getattr(x, "sharding", None) is None:
                return ocp.RestoreArgs(restore_type=np.ndarray)
            return ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape, dtype=x.dtype)

        restore = lambda flat: ocp.args.PyTreeRestore(
            unflatten_dict(dict(flat), sep="/"),
            restore_args=unflatten_dict({n: one(x) for n, x in flat.items()}, sep="/"),
            partial_restore=True,
        )

        def read():
            try:
                return self._manager.restore(step, args=ocp.args.Composite(**{i: restore(f) for i, f in wanted.items()}))
            except (jax.errors.JaxRuntimeError, MemoryError):
                raise  # of devices and memory, not of files
            except Exception as e:
                raise Corrupt(_unreadable(e)) from e

        found = _together(read) if self.write else read()
        arrays = {item: flatten_dict(found[item], sep="/") for item in wanted}
        for name, value in checksums(arrays).items():
            if value != meta["leaves"][name][2]:
                raise Corrupt(f"the checksum of {name} is wrong")
        return arrays

    def data(self, step: int) -> dict:
        """What `save` was given as `data`; Corrupt when it is damaged."""
        return self._data(step, self.meta(step))

    def _data(self, step: int, meta: Mapping[str, Any]) -> dict:
        try:
            data = self._manager.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore()))["data"]
        except Exception as e:
            raise Corrupt(f"the iterator's state cannot be read ({_first_line(e)})") from e
        if _crc(data) != meta["data"]:
            raise Corrupt("the checksum of the iterator's state is wrong")
        return data

    def _not_written(self, step: int | None, error: Exception) -> CheckpointError:
        what = "the last checkpoint" if step is None else f"step {step}"
        return CheckpointError(
            f"{what} could not be written to {self.folder} ({_first_line(error)}): is the disk full or read-only?"
        )


def speak(text: str) -> None:
    """Of several processes one prints."""
    if jax.process_index() == 0:
        print(text)


def merge(loaded: Params, init: Params, skip: Sequence[str] = (), say: Callable[[str], None] | None = None) -> Params:
    """`init` with every leaf replaced by that of `loaded`, which must have the same names and shapes.

    A name in which a regex of `skip` is found may differ: it keeps its value in `init`, or is left unused. The two-way
    difference is printed; UserError with it when something differs that `skip` does not name. Leaves may be arrays or
    ShapeDtypeStructs.
    """
    have, want = flatten_dict(dict(loaded), sep="/"), flatten_dict(dict(init), sep="/")
    missing = {n: f"missing: {n} {want[n].shape}" for n in want if n not in have}
    unused = {n: f"unused: {n} {have[n].shape}" for n in have if n not in want}
    shapes = {
        n: f"shape: {n} has {have[n].shape}, needs {want[n].shape}"
        for n in want
        if n in have and have[n].shape != want[n].shape
    }
    differs = missing | unused | shapes
    skipped = {n for n in differs if any(re.search(r, n) for r in skip)}
    if wrong := [differs[n] for n in sorted(differs) if n not in skipped]:
        raise UserError(f"the weights do not fit; name what may stay as initialised in `skip`: {_some(wrong)}")
    for name in sorted(skipped):
        (say or speak)(f"  skipped {differs[name]}")
    take = {n for n in want if n in have} - set(shapes)
    return unflatten_dict({n: have[n].astype(x.dtype) if n in take else x for n, x in want.items()}, sep="/")


def _together(read: Callable[[], T]) -> T:
    """What `read` gives; Corrupt on all processes, which all ask, where it is raised on one."""
    try:
        found, why = read(), ""
    except Corrupt as e:
        found, why = None, str(e)
    if _any_process(bool(why)):
        raise Corrupt(why or "another process cannot read its part")
    return found


def _of_first_process(steps: list[int]) -> list[int]:
    if jax.process_count() == 1:
        return steps
    from jax.experimental import multihost_utils

    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
    padded = np.array((steps + [0] * count)[:count], np.int32)
    return [int(step) for step in multihost_utils.broadcast_one_to_all(padded)] if count else []


def _any_process(here: bool) -> bool:
    """Whether it is so on any of the processes, which all ask: what one alone cannot read is left by all."""
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(here)).any())


def _handlers() -> dict[str, ocp.CheckpointHandler]:
    """{item: what writes it}."""
    trees = {item: ocp.PyTreeCheckpointHandler(type_handler_registry=ARRAYS) for item in ("params", "ema", "train")}
    return trees | {item: ocp.JsonCheckpointHandler() for item in ("data", "meta")}


def _remove_unfinished(folder: pathlib.Path) -> None:
    """What an interrupted save left; not in a thread as by Orbax's option, whose early end would print a traceback."""
    if jax.process_index() == 0:
        for path in _unfinished(folder):
            shutil.rmtree(path)


def _unfinished(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in folder.iterdir() if ocp.utils.is_tmp_checkpoint(path)] if folder.is_dir() else []


def _items(state: TrainState) -> dict[str, dict[str, Any]]:
    """{item: {name: array}}, the key as its uint32 data. Names alone, so that nothing depends on optax's classes."""
    train = {"opt": state.opt, "extra": state.extra, "step": state.step, "key": _key_data(state.key)}
    trees = {"params": state.params, "ema": state.ema, "train": train}
    return {
        item: {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)} for item, tree in trees.items()
    }


def _state(arrays: Mapping[str, Mapping[str, Array]], like: TrainState) -> TrainState:
    take = lambda item, tree, at: jax.tree_util.tree_map_with_path(
        lambda p, _: arrays[item][f"{at}{path_name(p)}"], tree
    )
    return TrainState(
        step=arrays["train"]["step"],
        params=take("params", like.params, ""),
        frozen=like.frozen,
        opt=take("train", like.opt, "opt/"),
        ema=take("ema", like.ema, ""),
        extra=take("train", like.extra, "extra/"),
        key=jax.random.wrap_key_data(arrays["train"]["key"]),
    )


def _key_data(key):
    if isinstance(key, jax.ShapeDtypeStruct):
        data = jax.eval_shape(jax.random.key_data, key)
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=key.sharding)
    return jax.random.key_data(key)


def _compare(wanted: Mapping[str, tuple], meta: Mapping[str, Any], folder: pathlib.Path) -> None:
    saved = {n: (tuple(s), d) for n, (s, d, _) in meta["leaves"].items()}
    lines = [f"only in the checkpoint: {n} {saved[n][0]}" for n in saved if n not in wanted]
    lines += [f"only in this run: {n} {wanted[n][0]}" for n in wanted if n not in saved]
    lines += [f"{n} is {saved[n]}, this run has {wanted[n]}" for n in saved if n in wanted and saved[n] != wanted[n]]
    optimiser = lambda names: any(n.startswith("train/opt/") for n in names)
    if optimiser(wanted) and not optimiser(saved):
        run = folder.parent.parent
        raise CheckpointError(
            f"{folder} is of another model or optimiser: it has weights alone, as `magvid import` makes it; begin another run with them, in another --workdir, by "
            f"""--config.init='[{{"run": "{run}"}}]'"""
        )
    if lines:
        raise CheckpointError(f"{folder} is of another model or optimiser: {_some(lines)}")


def _crc(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _first_line(error: BaseException, most: int = 200) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error) or type(error).__name__  # of a KeyError str() is in quotes
    text = text.strip().splitlines()[0]
    return text if len(text) <= most else text[:most] + "..."


def _unreadable(error: BaseException) -> str:
    """Which array cannot be read and why, of all that the storage library says, which may be in the error's cause."""
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause).partition(" [tensorstore_spec=")[0]
        if named := re.search(r'Error reading "([^"/]+)/', text):
            return f"{named[1]} cannot be read ({text.rpartition(': ')[2].partition(';')[0]})"
        cause = cause.__cause__
    return f"its arrays cannot be read ({_first_line(error)})"


def _listed(damaged: Mapping[int, str]) -> str:
    return "; ".join(f"step {step}: {why}" for step, why in damaged.items())


def _some(lines: Sequence[str], most: int = 8) -> str:
    return "; ".join(lines[:most]) + (f"; and {len(lines) - most} more" if len(lines) > most else "")
