"""A data set -> the tokens of its clips, once and for all: read, encoded and written at the same time.

Every process makes every n-th shard on its own devices, so that nothing waits for another process until the end. What
is complete is kept: the same command goes on after an interruption, and makes anew what is missing or damaged.

The tokens are those that training would compute, up to rounding: where a batch of another size, or another device, sums
in another order, the other one of two codes that are equally near may be chosen.
"""

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import magvid
from magvid import job, runs, sharding
from magvid.build import build
from magvid.checkpoints import merge
from magvid.data import pipeline
from magvid.data.tokens import FILE, Rows, TokenRecord, Writer, is_complete
from magvid.provenance import describe_tokens
from magvid.state import Objective
from magvid.types import Params, UserError

Progress = Callable[[int, int, str], None]  # (batches done, of how many, speed)
SPLITS = ("train", "eval")


def encode(
    config: Mapping[str, Any],
    out: str | os.PathLike,
    *,
    split: str = "train",
    rows: int | None = None,
    batch: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    trust: bool = False,
    on_progress: Progress | None = None,
) -> TokenRecord:
    """Writes the tokens of all clips, views and tasks of `config.data.<split>` to the folder `out` -> their record.

    rows: of a shard, default 4096. batch: clips that this process encodes at a time, default as in training. devices:
    default all of this process. UserError for a config that has no tokens to keep, a folder that holds others, and
    where something cannot be written.
    """
    if split not in SPLITS:
        raise UserError(f'--split="{split}" is unknown: use {" or ".join(SPLITS)}')
    out = pathlib.Path(out).expanduser().absolute()
    config = _without_caches(runs.anchored(job.check_config(config), os.getcwd()))
    if not config["data"].get(split):
        raise UserError(f"the config has no data.{split}: there is nothing to encode")
    resolved, frozen, sources = job.resolve(config, trust)
    objective, source = build(resolved["objective"]), build(config["data"][split]["source"])
    wanted = describe_tokens(resolved, objective, sources, split, source)
    tokenizer = _tokenizer(objective, frozen, wanted)
    made = dict(magvid=magvid.__version__, jax=jax.__version__, date=time.strftime("%Y-%m-%d"))
    made |= dict(device=jax.devices()[0].device_kind, config=config)
    wanted = dataclasses.replace(wanted, made=made, **({"rows_per_shard": rows} if rows else {}))
    runs.check_writable(out, "--out")
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(runs.locked(out, "written", "--out"))
            record = _begin(out, wanted, rows)
        _wait_for_all("begun")
        record = TokenRecord.read(out)
        program = Program(objective, tokenizer, record, devices, batch or _batch(config))
        mine = range(jax.process_index(), record.shards, jax.process_count())
        todo = [shard for shard in mine if not _is_made(out, record, shard)]
        if todo:
            workers = config["data"][split].get("workers", 0)
            _make(out, record, todo, source, program, workers, on_progress)
        _wait_for_all("encoded")
        return _finish(out, record)


class Program:
    """The tokenizer on this process's devices: batches of clips -> rows."""

    def __init__(self, objective: Objective, tokenizer: Params, record: TokenRecord, devices, batch: int):
        self.mesh = sharding.make_mesh({"data": -1}, devices or jax.local_devices())
        self.batch = -(-batch // self.mesh.size) * self.mesh.size
        self.tasks = len(record.tasks)
        self._params = jax.device_put({"tokenizer": tokenizer}, sharding.replicated(self.mesh))
        # Two programs, one for all tasks: every clip is encoded 1 + tasks times, and in memory once.
        self._ids = jax.jit(lambda params, rows: objective.ids(params, rows).astype(record.dtype))
        self._condition = jax.jit(lambda params, rows: objective.condition(params, rows)[0].astype(record.dtype))

    def start(self, rows: Mapping[str, np.ndarray]) -> list[jax.Array]:
        """Ids and condition ids of `batch` clips, (1 + tasks) x (b t' h' w'), which the devices may still be computing."""
        place = sharding.batch_sharding(self.mesh)
        video = jax.device_put(rows["video"], place)
        task = lambda i: jax.device_put(np.full(self.batch, i, np.int32), place)
        with jax.set_mesh(self.mesh):
            ids = self._ids(self._params, {"video": video})
            return [ids, *(self._condition(self._params, {"video": video, "task": task(i)}) for i in range(self.tasks))]


def _make(
    out: pathlib.Path,
    record: TokenRecord,
    shards: Sequence[int],
    source: Any,
    program: Program,
    workers: int,
    on_progress: Progress | None,
) -> None:
    """Writes `shards`. The devices are given a batch before the one before it is fetched, and wait for nobody."""
    rows = Rows(source, np.concatenate([record.shard_rows(shard) for shard in shards]))
    batches = pipeline.epoch(rows, program.batch, workers=workers)
    total, begin = -(-len(rows) // program.batch), None
    with contextlib.closing(batches), contextlib.closing(Writer(out, record, shards)) as writer:
        for done, (batch, computed) in enumerate(_one_ahead(batches, program), 1):
            valid = batch["valid"]
            labels = batch["label"] if record.labelled else np.zeros(len(valid), np.int32)
            tokens = np.stack(jax.device_get(computed), axis=1)
            writer.add(labels[valid], tokens[valid])
            begin = begin or time.monotonic()  # after the first batch, which was compiled
            if on_progress:
                clips, seconds = (done - 1) * program.batch, time.monotonic() - begin
                on_progress(done, total, f"{clips / seconds:.3g} clips/s" if clips else "")


def _one_ahead(batches: Iterator[Mapping[str, np.ndarray]], program: Program):
    """(batch, what is computed of it), each after the computation of the next has been started."""
    waiting = None
    for batch in batches:
        started = batch, program.start(batch)
        if waiting:
            yield waiting
        waiting = started
    if waiting:
        yield waiting


def _tokenizer(objective: Objective, frozen: Mapping[str, Params], wanted: TokenRecord) -> Params:
    """The weights, which must be those of the config's tokenizer."""
    example = {"video": np.zeros((1, *wanted.clip, 3), np.uint8)}
    shapes = jax.eval_shape(objective.init, jax.random.key(0), example)
    return merge(frozen["tokenizer"], shapes["tokenizer"])


def _begin(out: pathlib.Path, wanted: TokenRecord, rows: int | None) -> TokenRecord:
    """The record that is in `out`, or else `wanted`, which is written there; UserError where `out` has other tokens."""
    if not (out / FILE).exists():
        if strangers := sorted(path.name for path in out.glob("tokens-*")):
            raise UserError(f"{out} holds {strangers[0]} without {FILE}: choose another --out, or remove it")
        runs.write_json(out / FILE, wanted.to_json())
    record = TokenRecord.read(out)
    found = record.differences(wanted)
    there, here = (", ".join(task["name"] for task in r.tasks) for r in (record, wanted))
    if there != here:
        found.append(f"tasks are {there} there, {here} here")
    if rows and record.rows_per_shard != rows:
        found.append(f"rows_per_shard is {record.rows_per_shard} there, {rows} here")
    if found:
        raise UserError(f"{out} holds other tokens: {'; '.join(found[:4])}. Choose another --out, or remove it")
    return record


def _is_made(out: pathlib.Path, record: TokenRecord, shard: int) -> bool:
    row = 4 + (1 + len(record.tasks)) * int(np.prod(record.latent)) * record.dtype.itemsize
    return is_complete(out / record.shard_name(shard), len(record.shard_rows(shard)), row)


def _finish(out: pathlib.Path, record: TokenRecord) -> TokenRecord:
    """The record with the sizes of the shards, which says that all are there."""
    paths = [out / record.shard_name(shard) for shard in range(record.shards)]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise UserError(f"{out} lacks {missing[0]}: is it a folder that all processes share?")
    record = dataclasses.replace(record, sizes=[path.stat().st_size for path in paths])
    if jax.process_index() == 0:
        runs.write_json(out / FILE, record.to_json())
    _wait_for_all("finished")
    return record


def _without_caches(config: dict) -> dict:
    without = lambda section: {k: v for k, v in (section or {}).items() if k != "cache"}
    return {**config, "data": {split: without(section) for split, section in config["data"].items()}}


def _batch(config: Mapping[str, Any]) -> int:
    """Clips that training holds on this process's devices at a time."""
    batch, most = config["batch"] // jax.process_count(), config["microbatch"] * jax.local_device_count()
    return max(min(batch, most or batch), 1)


def _wait_for_all(where: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(where)
