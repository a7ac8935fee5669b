"""A data set -> the tokens or latents of its clips, once and for all: read, encoded and written at the same time.

Every process makes every n-th shard on its own devices, so that nothing waits for another process until the end. What
is complete is kept: the same command goes on after an interruption, and makes anew what is missing or damaged.

They are those that training would compute, up to rounding: where a batch of another size, or another device, sums in another
order, the other one of two codes that are equally near may be chosen; latents are kept in float16.
"""

import contextlib
import dataclasses
import datetime
import functools
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
from magvid.data.cache import CacheRecord, Rows, Writer, is_complete
from magvid.data.latents import DTYPE, LatentRecord
from magvid.data.tokens import TokenRecord
from magvid.data.views import take_view
from magvid.provenance import describe, example, steady
from magvid.state import Objective
from magvid.types import Groups, UserError

Progress = Callable[[int, int, str], None]  # (batches done, of how many, speed)
SPLITS = ("train", "eval")


def encode(
    config: Mapping[str, Any],
    out: str | os.PathLike,
    *,
    split: str = "train",
    rows: int | None = None,
    batch: int | None = None,
    features: str | None = None,
    devices: Sequence[jax.Device] | None = None,
    trust: bool = False,
    on_progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> CacheRecord:
    """Writes what the objective keeps of all clips and views of `config.data.<split>` to the folder `out` -> its record.

    rows: of a shard, default 4096 or 256 MB. batch: clips that this process encodes at a time, default as in training. features: with
    latents, keep what these frozen towers say of texts and pictures too, "text,vision", or "all". devices: default all of this process. `say` is told how much
    it will be, and what is not kept. UserError for a config that has nothing to keep, a folder that holds something else, and where something cannot
    be written.
    """
    if split not in SPLITS:
        raise UserError(f'--split="{split}" is unknown: use {" or ".join(SPLITS)}')
    out = pathlib.Path(out).expanduser().absolute()
    config = _without_caches(runs.anchored(job.check_config(config), os.getcwd()))
    if not config["data"].get(split):
        raise UserError(f"the config has no data.{split}: there is nothing to encode")
    resolved, frozen, sources = job.resolve(config, trust)
    objective, source = build(resolved["objective"]), build(config["data"][split]["source"])
    wanted = describe(resolved, objective, sources, split, source, features is not None)
    transforms, told = build(tuple(resolved["data"][split].get("transforms", ()))), {}
    if features is not None:
        wanted = _chosen(wanted, features)
        wanted, random = steady(wanted, transforms, source)
        for name, entry in random.items() if jax.process_index() == 0 else ():
            say(f"{name} is not kept: data.{split}.transforms draw {entry} anew each time")
        if not wanted.features:
            raise UserError("no frozen towers tell this model what stays the same of a clip: leave out --features")
        told = example(take_view(source, 0, 0), transforms)
    weights = _weights(objective, frozen, wanted, told)
    made = dict(magvid=magvid.__version__, jax=jax.__version__, date=time.strftime("%Y-%m-%d"))
    made |= dict(device=jax.devices()[0].device_kind, config=config)
    wanted = dataclasses.replace(wanted, made=made, rows_per_shard=rows or wanted.default_rows)
    runs.make_folder(out, "--out")
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(runs.locked(out, "written", "--out"))
            record = _begin(out, wanted, rows)
        _wait_for_all("begun")
        record = wanted.read(out)
        program = PROGRAMS[type(record)](objective, weights, record, devices, batch or _batch(config))
        mine = range(jax.process_index(), record.shards, jax.process_count())
        todo = [shard for shard in mine if not _is_made(out, record, shard)]
        if todo:
            if jax.process_index() == 0:
                size = f"about {record.rows * record.row_bytes / 1e6:.1f} MB"
                say(f"{record.data['clips']} clips x {record.data['views']} views, {size} in {out}")
            workers = config["data"][split].get("workers", 0)
            made_of = Rows(source, record, np.concatenate([record.shard_rows(shard) for shard in todo]), transforms)
            _make(out, made_of, todo, program, workers, on_progress)
        _wait_for_all("encoded")
        return _finish(out, record)


class Program:
    """What makes the rows, on this process's devices: batches of clips -> rows."""

    keys: Sequence[str] | None = None  # the entries of a batch; None: all numeric ones

    def __init__(self, objective: Objective, weights: Groups, record: CacheRecord, devices, batch: int):
        self.objective, self.record = objective, record
        self.mesh = sharding.make_mesh({"data": -1}, devices or jax.local_devices())
        self.batch = -(-batch // self.mesh.size) * self.mesh.size
        self.params = jax.device_put(weights, sharding.replicated(self.mesh))

    def start(self, batch: Mapping[str, Any]) -> Any:
        """What is computed of `batch` clips, which the devices may still be computing."""
        place = sharding.batch_sharding(self.mesh)
        with jax.set_mesh(self.mesh):
            return self.compute({name: jax.device_put(batch[name], place) for name in ("video", *self.record.inputs)}, place)

    def compute(self, batch: Mapping[str, jax.Array], place: jax.sharding.Sharding) -> Any:
        raise NotImplementedError

    def rows(self, batch: Mapping[str, Any], computed: Any) -> list[bytes]:
        """Of the clips that are no repetitions."""
        raise NotImplementedError


class TokenProgram(Program):
    """Ids and condition ids."""

    @functools.cached_property
    def _programs(self) -> tuple[Callable, Callable]:
        """Two, one for all tasks: every clip is encoded 1 + tasks times, and in memory once."""
        objective, dtype = self.objective, self.record.dtype
        ids = jax.jit(lambda params, rows: objective.ids(params, rows).astype(dtype))
        return ids, jax.jit(lambda params, rows: objective.condition(params, rows)[0].astype(dtype))

    def compute(self, batch, place):
        ids, condition = self._programs
        task = lambda i: jax.device_put(np.full(self.batch, i, np.int32), place)
        conditions = [condition(self.params, {**batch, "task": task(i)}) for i in range(len(self.record.tasks))]
        return [ids(self.params, batch), *conditions]

    def rows(self, batch, computed):
        valid = batch["valid"]
        labels = batch["label"] if self.record.labelled else np.zeros(len(valid), np.int32)
        tokens = np.stack(computed, axis=1)
        return [self.record.pack(label, row) for label, row in zip(labels[valid], tokens[valid], strict=True)]


class LatentProgram(Program):
    """The posteriors of an autoencoder, and features of frozen towers."""

    @property
    def keys(self):
        return ("video", "rest", *self.record.inputs)

    @functools.cached_property
    def _program(self) -> Callable:
        def program(params, batch):
            found = self.objective.posterior(params, batch)
            features = self.objective.features(params, batch, self.record.features)
            features = {name: features[name] for name in self.record.features}
            return jax.tree.map(lambda x: x.astype(DTYPE), (found.mean, found.logvar, features))

        return jax.jit(program)

    def compute(self, batch, place):
        return self._program(self.params, batch)

    def rows(self, batch, computed):
        row = lambda tree, i: {name: x[i] for name, x in tree.items()}
        (means, logvars, features), inputs = computed, {name: batch[name] for name in self.record.inputs}
        pack = lambda i: self.record.pack(means[i], logvars[i], batch["video"][i], batch["rest"][i], row(features, i), row(inputs, i))
        return [pack(i) for i in np.flatnonzero(batch["valid"])]


PROGRAMS = {TokenRecord: TokenProgram, LatentRecord: LatentProgram}


def _make(out: pathlib.Path, rows: Rows, shards: Sequence[int], program: Program, workers: int, on_progress: Progress | None) -> None:
    """Writes `shards`. The devices are given a batch before the one before it is fetched, and wait for nobody."""
    batches = pipeline.epoch(rows, program.batch, workers=workers, keys=program.keys)
    total, begin = -(-len(rows) // program.batch), None
    with contextlib.closing(batches), contextlib.closing(Writer(out, rows.record, shards)) as writer:
        for done, (batch, computed) in enumerate(_one_ahead(batches, program), 1):
            writer.add(program.rows(batch, jax.device_get(computed)))
            begin = begin or time.monotonic()  # after the first batch, which was compiled
            if on_progress:
                seconds = (time.monotonic() - begin) / (done - 1) if done > 1 else None  # per batch
                left = "" if seconds is None else str(datetime.timedelta(seconds=round(seconds * (total - done))))
                on_progress(done, total, f"{program.batch / seconds:.3g} clips/s, {left} left" if seconds else "")


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


def _chosen(wanted: LatentRecord, towers: str) -> LatentRecord:
    """With the features alone that these towers make; UserError for one that makes none."""
    if towers == "all":
        return wanted
    chosen = {name.strip() for name in towers.split(",")}
    if unknown := sorted(chosen - wanted.towers):
        raise UserError(f"--features={towers}: {', '.join(unknown) or 'nothing'} is no tower that is frozen and tells this model something; these are: {', '.join(sorted(wanted.towers)) or 'none'}")
    features = {name: kept for name, kept in wanted.features.items() if set(kept["hash"]) <= chosen}
    if not features:
        needs = "; ".join(f"{name} is made by {' and '.join(sorted(kept['hash']))}" for name, kept in wanted.features.items())
        raise UserError(f"--features={towers} keeps nothing here: {needs}")
    return dataclasses.replace(wanted, features=features)


def _weights(objective: Objective, frozen: Groups, wanted: CacheRecord, told: Mapping[str, np.ndarray]) -> Groups:
    """Those that make the rows, which must be those of the config's modules; with an example of what they are `told`, those of features too."""
    key = jax.random.key(0)
    shapes = {wanted.encoder: jax.eval_shape(lambda key: objective.init_encoder(key, wanted.clip), key)}
    if told:
        towers = jax.eval_shape(lambda key, batch: objective.init_features(key, batch, frozen)[0], key, told)
        shapes = {group: tree for group, tree in towers.items() if group in wanted.towers} | shapes
    return {group: merge(frozen[group], tree) for group, tree in shapes.items()}


def _begin(out: pathlib.Path, wanted: CacheRecord, rows: int | None) -> CacheRecord:
    """The record that is in `out`, or else `wanted`, which is written there; UserError where `out` has other rows."""
    path = wanted.file(out)
    if not path.exists():
        if strangers := sorted(other.name for other in out.glob("*.arrayrecord")):
            raise UserError(f"{out} holds {strangers[0]} without {path.name}: choose another --out, or remove these files")
        runs.write_json(path, wanted.to_json())
    record = wanted.read(out)
    found = record.differences(wanted)
    if record.contents != wanted.contents:
        found.append(f"{record.parts} are {record.contents} there, {wanted.contents} here")
    if rows and record.rows_per_shard != rows:
        found.append(f"rows_per_shard is {record.rows_per_shard} there, {rows} here")
    if found:
        raise UserError(f"{out} holds other {wanted.what}: {'; '.join(found[:4])}. Choose another --out, or remove it")
    return record


def _is_made(out: pathlib.Path, record: CacheRecord, shard: int) -> bool:
    return is_complete(out / record.shard_name(shard), record, len(record.shard_rows(shard)))


def _finish(out: pathlib.Path, record: CacheRecord) -> CacheRecord:
    """The record with the sizes of the shards, which says that all are there."""
    paths = [out / record.shard_name(shard) for shard in range(record.shards)]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise UserError(f"{out} lacks {missing[0]}: is it a folder that all processes share?")
    record = dataclasses.replace(record, sizes=[path.stat().st_size for path in paths])
    if jax.process_index() == 0:
        runs.write_json(record.file(out), record.to_json())
    _wait_for_all("finished")
    return record


def _without_caches(config: dict) -> dict:
    without = lambda section: {k: v for k, v in (section or {}).items() if k not in ("cache", "features")}
    return {**config, "data": {split: without(section) for split, section in config["data"].items()}}


def _batch(config: Mapping[str, Any]) -> int:
    """Clips that training holds on this process's devices at a time."""
    batch, most = config["batch"] // jax.process_count(), config["microbatch"] * jax.local_device_count()
    return max(min(batch, most or batch), 1)


def _wait_for_all(where: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(where)
