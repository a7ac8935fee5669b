"""What was computed of the clips of a data set once, in place of their videos: rows in ArrayRecord shards, the record of what
they were made of, and the ground of the sources that read them (tokens.py, latents.py). `magvid encode` writes such a folder
(encode.py), `config.data.<split>.cache` names one to read (job.py).

    tokens.json                             a `CacheRecord`; or latents.json
    tokens-00003-of-00016.arrayrecord       `rows_per_shard` rows, fewer in the last shard

Row clip * views + view is that view of a clip.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from jaxtyping import Int

from magvid.data.stream import Record, Transform, drawn
from magvid.data.views import Views, count_views, take_view
from magvid.types import UserError

OPTIONS = "group_size:1,zstd:1"  # of the shards: a row is read alone
THREADS = 4  # shards that are written at the same time
ROWS, SHARD_BYTES = 4096, 2**28  # of a shard, whichever is less: so much is in memory until it is written


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheRecord:
    """What the rows in a folder are, and what they were made of: plain JSON."""

    data: dict  # {"source": its spec, "fingerprint" (None where it has none), "first": hash of one view, "clips", "views"}
    clip: Sequence[int]  # (t, h, w), pixels
    latent: Sequence[int]  # the shape of what is kept of a clip
    rows_per_shard: int = ROWS
    sizes: Sequence[int] | None = None  # of the shards, bytes; None: they are being written
    made: dict = dataclasses.field(default_factory=dict)  # the whole config, versions: for people

    what: ClassVar[str]  # in the names of files and in messages
    version: ClassVar[int]
    encoder: ClassVar[str]  # the group of weights that made the rows, and the field that says which they were
    parts: ClassVar[str]  # what of a row a run may need only some of; all rows of a folder have the same
    equal: ClassVar[Sequence[str]] = ("clip", "latent")  # fields that are compared as they are

    @classmethod
    def file(cls, folder: pathlib.Path) -> pathlib.Path:
        """Where the record is."""
        return folder / f"{cls.what}.json"

    @classmethod
    def read(cls, folder: pathlib.Path) -> Self:
        """UserError where `folder` holds none, or one that is not understood."""
        path, form = cls.file(folder), f"magvid.{cls.what}/{cls.version}"
        if not path.is_file():
            raise UserError(
                f"there are no {cls.what} in {folder} (no {path.name}): write them by `magvid encode --out={folder}` with this "
                "config, or leave out the cache and train on the videos"
            )
        try:
            value = json.loads(path.read_text("utf-8"))
            found = value.pop("format")
            if found == form:
                return cls(**value)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} does not describe {cls.what} ({error}): restore it, or remove {folder} and {again(folder)}") from None
        raise UserError(f'{path} is of the format "{found}", and this version reads "{form}": remove {folder} and {again(folder)}')

    def to_json(self) -> dict:
        return {"format": f"magvid.{self.what}/{self.version}", **dataclasses.asdict(self)}

    def differences(self, other: Self) -> list[str]:
        """["data.views is 8 there, 4 here", ...]: why these rows are not what `other` (here) needs."""
        found = []
        for name in self.equal:
            a, b = (plain(getattr(r, name)) for r in (self, other))
            found += [f"{name} is {a} there, {b} here"] if a != b else []
        # A fingerprint speaks for the content, wherever it lies; without one the spec must be the same.
        same = self.data["fingerprint"] is not None and self.data["fingerprint"] == other.data["fingerprint"]
        within = lambda name, keys: differ(*({k: getattr(r, name)[k] for k in keys} for r in (self, other)), f"{name}.")
        found += within(self.encoder, ("hash", "spec"))
        amount = within("data", ("fingerprint", "clips", "views"))  # says more than the specs, which then differ all over
        return found + (amount or ([] if same else within("data", ("source", "first"))))

    @property
    def row_bytes(self) -> int:
        """Of a row, all but what differs from row to row."""
        raise NotImplementedError

    @property
    def default_rows(self) -> int:
        """What suits as `rows_per_shard`."""
        return max(1, min(ROWS, SHARD_BYTES // self.row_bytes))

    @property
    def rows(self) -> int:
        return self.data["clips"] * self.data["views"]

    @property
    def shards(self) -> int:
        return -(-self.rows // self.rows_per_shard)

    def shard_rows(self, shard: int) -> range:
        """The numbers of the rows in a shard."""
        start = shard * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, self.rows))

    def shard_name(self, shard: int) -> str:
        return f"{self.what}-{shard:05d}-of-{self.shards:05d}.arrayrecord"

    @property
    def contents(self) -> str:
        """The names of its `parts`."""
        raise NotImplementedError

    inputs: ClassVar[Sequence[str]] = ()  # what a row is made of that the data's transforms make

    def shown(self, record: Record, told: Record) -> Record:
        """What a row is made of: the entries of a view that are put into batches, the video among them. `told`: the view after the
        data's transforms, where there are `inputs`.
        """
        raise NotImplementedError

    def unpack(self, row: bytes) -> Any:
        """ValueError where `row` is none."""
        raise NotImplementedError


class Cache:
    """A source of what is kept in `folder` in place of the videos of `source`.

    `wanted`: what this run needs, else UserError that names both and the remedy. `read` draws as `source.read` does, so that
    the whole stream is the same as with videos; `last` are transforms that come after those of the data. What `source` says
    of its clips (`classes`, `fps`, ...) is said here as well.
    """

    last: Sequence[Callable] = ()

    def __init__(self, source: Any, folder: str | os.PathLike, wanted: CacheRecord):
        self.source, self.folder = source, pathlib.Path(folder).expanduser()
        self.record = type(wanted).read(self.folder)
        if found := self.record.differences(wanted):
            some = "; ".join(found[:4]) + (f"; and {len(found) - 4} more" if len(found) > 4 else "")
            raise UserError(
                f"the {wanted.what} in {self.folder} are not those of this run: {some}. Undo the change, or write others: run "
                "`magvid encode` again with this config and another --out"
            )
        self._rows = _open_shards(self.folder, self.record)

    def __len__(self) -> int:
        return self.record.data["clips"]

    def __getitem__(self, i: int) -> Record:
        return self.view(range(len(self))[i], 0)

    def read(self, i: int, rng: np.random.Generator) -> Record:
        return self.view(i, self.source.draw(rng) if isinstance(self.source, Views) else 0)

    def view(self, clip: int, view: int) -> Record:
        raise NotImplementedError

    def row(self, clip: int, view: int) -> Any:
        """What the record unpacks; UserError where it is damaged."""
        number = clip * self.record.data["views"] + view
        try:
            return self.record.unpack(self._rows[number])
        except (RuntimeError, ValueError, OSError) as error:
            shard = self.folder / self.record.shard_name(number // self.record.rows_per_shard)
            raise UserError(f"{shard} is damaged at row {number} ({_line(error)}): {again(self.folder)}") from error

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "source":  # a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.source, name)


@dataclasses.dataclass(frozen=True)
class Rows:
    """What the rows with these numbers are made of, as a source."""

    source: Any
    record: CacheRecord
    numbers: Int[np.ndarray, "n"]
    transforms: Sequence[Transform] = ()

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, k: int) -> Record:
        clip, view = divmod(int(self.numbers[k]), count_views(self.source))
        record = take_view(self.source, clip, view)
        if not self.record.inputs:
            return self.record.shown(record, {})
        told, random = drawn(record, self.transforms, self.record.inputs)
        if random:
            raise UserError(
                f"the data's transforms draw {' and '.join(random)} of clip {clip} anew each time (has it several texts?), so that what is made of it "
                "cannot be kept: give one text, or encode to another --out without it"
            )
        return self.record.shown(record, told)


class Writer:
    """Writes the rows of `shards`, which are given in their order, by threads; a shard appears under its name only when
    it is complete and has been read back.
    """

    def __init__(self, folder: pathlib.Path, record: CacheRecord, shards: Sequence[int]):
        import_array_record()
        self.folder, self.record = folder, record
        self._waiting, self._rows = collections.deque(shards), []
        self._pool = concurrent.futures.ThreadPoolExecutor(THREADS, record.what)
        self._running: collections.deque = collections.deque()

    def add(self, rows: Sequence[bytes]) -> None:
        """UserError when a shard could not be written."""
        self._rows += rows
        while self._waiting and len(self._rows) >= (size := len(self.record.shard_rows(self._waiting[0]))):
            path = self.folder / self.record.shard_name(self._waiting.popleft())
            self._running.append(self._pool.submit(_write_shard, path, self.record, self._rows[:size]))
            del self._rows[:size]
        while self._running and (self._running[0].done() or len(self._running) > THREADS):
            self._running.popleft().result()

    def close(self) -> None:
        """Waits for the shards that are complete; UserError when one could not be written."""
        try:
            while self._running:
                self._running.popleft().result()
        finally:
            self._pool.shutdown()


def _write_shard(path: pathlib.Path, record: CacheRecord, rows: Sequence[bytes]) -> None:
    part = path.with_name(f".{path.name}")
    try:
        writer = import_array_record().ArrayRecordWriter(str(part), OPTIONS)
        for row in rows:
            writer.write(row)
        writer.close()
        if not is_complete(part, record, len(rows)):
            raise OSError("what was written cannot be read back")
        part.replace(path)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"cannot write {path} ({_line(error)}): is the disk full or read-only? Make room and give the same command "
            "again: it keeps the shards that are there"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def is_complete(path: pathlib.Path, record: CacheRecord, rows: int) -> bool:
    """Whether a shard has so many rows, all of them readable (its format has checksums) and rows of `record`."""
    if not path.is_file():
        return False
    try:
        reader = import_array_record().ArrayRecordReader(str(path))
        found = reader.read_all() if reader.num_records() == rows else []
        reader.close()
        for row in found:
            record.unpack(row)
        return len(found) == rows
    except (RuntimeError, ValueError):
        return False


def _open_shards(folder: pathlib.Path, record: CacheRecord) -> Any:
    """Random access to the rows; UserError where a shard is missing, cut off or of another length."""
    if record.sizes is None:
        raise UserError(f"the {record.what} in {folder} are not complete: {again(folder)}, which goes on where it was")
    paths = [folder / record.shard_name(k) for k in range(record.shards)]
    for path, size in zip(paths, record.sizes, strict=True):
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes and should have {size}"
            raise UserError(f"{path} {what}: {again(folder)}, which makes what is missing")
    import_array_record()
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        rows = ArrayRecordDataSource([str(path) for path in paths])
    except RuntimeError as error:
        raise UserError(f"a shard in {folder} is damaged ({_line(error)}): {again(folder)}") from error
    if len(rows) != record.rows:
        raise UserError(f"the shards in {folder} have {len(rows)} rows and should have {record.rows}: {again(folder)}")
    return rows


@functools.cache
def import_array_record() -> Any:
    """array_record's module, or a UserError that says how to install it."""
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise UserError("what `magvid encode` keeps needs array_record, which is not installed: pip install array_record") from error
    return array_record_module


def again(folder: pathlib.Path) -> str:
    return f"run `magvid encode` again with --out={folder}"


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def differ(a: Any, b: Any, name: str) -> list[str]:
    """["name.field is 1 there, 2 here", ...]"""
    a, b = _flat(a, name), _flat(b, name)
    return [f"{k} is {a.get(k)} there, {b.get(k)} here" for k in {**a, **b} if a.get(k) != b.get(k)]


def _flat(value: Any, name: str) -> dict[str, Any]:
    """{"a.b": leaf} of a nested dict, tuples as lists."""
    if not isinstance(value, dict):
        return {name.removesuffix("."): plain(value)}
    return {k: v for key, child in value.items() for k, v in _flat(child, f"{name}{key}.").items()}
