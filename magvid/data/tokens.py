"""Tokens in place of videos: rows in ArrayRecord shards, the record of what they were made of, and a source that reads
them. `magvid encode` writes such a folder (encode.py), `config.data.<split>.cache` names one to read (job.py).

    tokens.json                             a `TokenRecord`
    tokens-00003-of-00016.arrayrecord       `rows_per_shard` rows, fewer in the last shard

Row clip * views + view holds all tasks: the label (int32), the ids, and the condition ids of each task, (1 + tasks, t',
h', w') of uint16, or of uint32 for a codebook that needs it, little-endian.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt

from magvid.data.stream import Record
from magvid.data.views import Views, count_views, take_view
from magvid.types import UserError

FORMAT = "magvid.tokens/1"
FILE = "tokens.json"
OPTIONS = "group_size:1,zstd:1"  # of the shards: a row is read alone
THREADS = 4  # shards that are written at the same time


@dataclasses.dataclass(frozen=True)
class TokenRecord:
    """What the tokens in a folder are, and what they were made of: plain JSON."""

    tokenizer: dict  # {"run", "weights", "hash" of the weights, "spec"}
    data: dict  # {"source": its spec, "fingerprint" (None where it has none), "first": hash of one view, "clips", "views"}
    tasks: Sequence[dict]  # {"name", "given", "pad"}: what each shows of a clip
    clip: Sequence[int]  # (t, h, w), pixels
    latent: Sequence[int]  # (t', h', w')
    codes: int  # ids lie in [0, codes)
    labelled: bool  # whether the clips have labels
    rows_per_shard: int = 4096
    sizes: Sequence[int] | None = None  # of the shards, bytes; None: they are being written
    made: dict = dataclasses.field(default_factory=dict)  # the whole config, versions: for people

    @classmethod
    def read(cls, folder: pathlib.Path) -> "TokenRecord":
        """UserError where `folder` holds none, or one that is not understood."""
        path = folder / FILE
        if not path.is_file():
            raise UserError(f"there are no tokens in {folder} (no {FILE}): write them by `magvid encode --out={folder}`")
        try:
            found = json.loads(path.read_text("utf-8"))
            form = found.pop("format")
            if form == FORMAT:
                return cls(**found)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} does not describe tokens ({error}): restore it, or {_again(folder)}") from None
        raise UserError(f'{path} is of the format "{form}", and this version reads "{FORMAT}": {_again(folder)}')

    def to_json(self) -> dict:
        return {"format": FORMAT, **dataclasses.asdict(self)}

    def differences(self, other: "TokenRecord") -> list[str]:
        """["data.views is 8 there, 4 here", ...]: why these tokens are not what `other` (here) needs."""
        found = []
        for name in ("clip", "latent", "codes", "labelled"):
            a, b = (_plain(getattr(r, name)) for r in (self, other))
            found += [f"{name} is {a} there, {b} here"] if a != b else []
        # A fingerprint speaks for the content, wherever it lies; without one the spec must be the same.
        same = self.data["fingerprint"] is not None and self.data["fingerprint"] == other.data["fingerprint"]
        content = () if same else ("source", "first")
        for name, keys in {"tokenizer": ("hash", "spec"), "data": ("fingerprint", "clips", "views", *content)}.items():
            a, b = (_flat({k: getattr(r, name)[k] for k in keys}, f"{name}.") for r in (self, other))
            found += [f"{k} is {a.get(k)} there, {b.get(k)} here" for k in {**a, **b} if a.get(k) != b.get(k)]
        there = {task["name"]: _plain(task) for task in self.tasks}
        for task in other.tasks:
            if task["name"] not in there:
                found.append(f"task {task['name']} is not there, which has {', '.join(there)}")
            elif there[task["name"]] != _plain(task):
                found.append(f"task {task['name']} shows something else of a clip there")
        return found

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
        return f"tokens-{shard:05d}-of-{self.shards:05d}.arrayrecord"

    @property
    def dtype(self) -> np.dtype:
        return np.dtype("<u2" if self.codes <= 2**16 else "<u4")

    def pack(self, label: int, tokens: UInt[np.ndarray, "n th hh wh"]) -> bytes:
        return np.asarray(label, "<i4").tobytes() + tokens.astype(self.dtype, copy=False).tobytes()

    def unpack(self, row: bytes) -> tuple[np.int32, UInt[np.ndarray, "n th hh wh"]]:
        """ValueError where `row` has another length."""
        tokens = np.frombuffer(row, self.dtype, offset=4).reshape(1 + len(self.tasks), *self.latent)
        return np.frombuffer(row, "<i4", 1)[0], tokens


class TokenCache:
    """A source of tokens in place of the videos of `source`.

    `wanted`: what this run needs, else UserError that names both and the remedy. Its `read` and the transform `lookup`,
    which comes after the task is drawn, draw as `source.read` does, so that the whole stream is the same with tokens as
    with videos. After `lookup` a record has "ids" and "cond_ids" (t' h' w') and "label", and no "video". What `source` says of
    its clips (`classes`, `fps`, ...) is said here as well.
    """

    def __init__(self, source: Any, folder: str | os.PathLike, wanted: TokenRecord):
        self.source, self.folder = source, pathlib.Path(folder).expanduser()
        self.record = TokenRecord.read(self.folder)
        if found := self.record.differences(wanted):
            some = "; ".join(found[:4]) + (f"; and {len(found) - 4} more" if len(found) > 4 else "")
            raise UserError(
                f"the tokens in {self.folder} are not those of this run: {some}. Undo the change, or write others: run "
                "`magvid encode` again with this config and another --out"
            )
        names = [task["name"] for task in self.record.tasks]
        self._columns = [1 + names.index(task["name"]) for task in wanted.tasks]
        self._rows = _open_shards(self.folder, self.record)

    def __len__(self) -> int:
        return self.record.data["clips"]

    def __getitem__(self, i: int) -> Record:
        return {"clip": range(len(self))[i], "view": 0}

    def read(self, i: int, rng: np.random.Generator) -> Record:
        return {"clip": i, "view": self.source.draw(rng) if isinstance(self.source, Views) else 0}

    def lookup(self, record: Record, rng: np.random.Generator) -> Record:
        """The transform that puts the tokens of a record's clip, view and task in place of the first two."""
        if "task" not in record:
            raise UserError("tokens are those of a task: add magvid.data.pipeline:MaskedView to the data's transforms")
        rest = {key: value for key, value in record.items() if key not in ("clip", "view")}
        label, tokens = self._row(record["clip"] * self.record.data["views"] + record["view"])
        found = {"ids": tokens[0], "cond_ids": tokens[self._columns[record["task"]]]}
        return rest | found | ({"label": label} if self.record.labelled else {})

    def _row(self, number: int) -> tuple[np.int32, np.ndarray]:
        try:
            return self.record.unpack(self._rows[number])
        except (RuntimeError, ValueError, OSError) as error:
            shard = self.folder / self.record.shard_name(number // self.record.rows_per_shard)
            raise UserError(f"{shard} is damaged at row {number} ({_line(error)}): {_again(self.folder)}") from error

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "source":  # a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.source, name)


@dataclasses.dataclass(frozen=True)
class Rows:
    """The videos of the rows with these numbers, as a source."""

    source: Any
    numbers: Int[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, k: int) -> Record:
        clip, view = divmod(int(self.numbers[k]), count_views(self.source))
        record = take_view(self.source, clip, view)
        return {key: record[key] for key in ("video", "label") if key in record}


class Writer:
    """Writes the rows of `shards`, which are given in their order, by threads; a shard appears under its name only when
    it is complete and has been read back.
    """

    def __init__(self, folder: pathlib.Path, record: TokenRecord, shards: Sequence[int]):
        import_array_record()
        self.folder, self.record = folder, record
        self._waiting, self._rows = collections.deque(shards), []
        self._pool = concurrent.futures.ThreadPoolExecutor(THREADS, "tokens")
        self._running: collections.deque = collections.deque()

    def add(self, labels: Int[np.ndarray, "b"], tokens: UInt[np.ndarray, "b n th hh wh"]) -> None:
        """UserError when a shard could not be written."""
        self._rows += [self.record.pack(label, row) for label, row in zip(labels, tokens, strict=True)]
        while self._waiting and len(self._rows) >= (size := len(self.record.shard_rows(self._waiting[0]))):
            path = self.folder / self.record.shard_name(self._waiting.popleft())
            self._running.append(self._pool.submit(_write_shard, path, self._rows[:size]))
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


def _write_shard(path: pathlib.Path, rows: Sequence[bytes]) -> None:
    part = path.with_name(f".{path.name}")
    try:
        writer = import_array_record().ArrayRecordWriter(str(part), OPTIONS)
        for row in rows:
            writer.write(row)
        writer.close()
        if not is_complete(part, len(rows), len(rows[0])):
            raise OSError("what was written cannot be read back")
        part.replace(path)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"cannot write {path} ({_line(error)}): is the disk full or read-only? Make room and give the same command "
            "again: it keeps the shards that are there"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def is_complete(path: pathlib.Path, rows: int, row_bytes: int) -> bool:
    """Whether a shard has so many rows of this length, all of them readable (its format has checksums)."""
    if not path.is_file():
        return False
    try:
        reader = import_array_record().ArrayRecordReader(str(path))
        complete = reader.num_records() == rows and all(len(row) == row_bytes for row in reader.read_all())
        reader.close()
        return complete
    except RuntimeError:
        return False


def _open_shards(folder: pathlib.Path, record: TokenRecord) -> Any:
    """Random access to the rows; UserError where a shard is missing, cut off or of another length."""
    if record.sizes is None:
        raise UserError(f"the tokens in {folder} are not complete: {_again(folder)}, which goes on where it was")
    paths = [folder / record.shard_name(k) for k in range(record.shards)]
    for path, size in zip(paths, record.sizes, strict=True):
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes and should have {size}"
            raise UserError(f"{path} {what}: {_again(folder)}, which makes what is missing")
    import_array_record()
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        rows = ArrayRecordDataSource([str(path) for path in paths])
    except RuntimeError as error:
        raise UserError(f"a shard in {folder} is damaged ({_line(error)}): {_again(folder)}") from error
    if len(rows) != record.rows:
        raise UserError(f"the shards in {folder} have {len(rows)} rows and should have {record.rows}: {_again(folder)}")
    return rows


@functools.cache
def import_array_record() -> Any:
    """array_record's module, or a UserError that says how to install it."""
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise UserError("tokens need array_record, which is not installed: pip install array_record") from error
    return array_record_module


def _again(folder: pathlib.Path) -> str:
    return f"run `magvid encode` again with --out={folder}"


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _flat(value: Any, name: str) -> dict[str, Any]:
    """{"a.b": leaf} of a nested dict, tuples as lists."""
    if not isinstance(value, dict):
        return {name.removesuffix("."): _plain(value)}
    return {k: v for key, child in value.items() for k, v in _flat(child, f"{name}{key}.").items()}
