"""The numbered stream of records behind every loader.

Position g decides which record is read (the permutation of its epoch, from (seed, epoch)) and every random choice (a
generator from (seed, g)). Nothing depends on workers, processes or timing.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from magvid.types import UserError

Record = dict[str, Any]
Transform = Callable[[Record, np.random.Generator], Record]
# Up to here an epoch's permutation is a table; above, it is grain's cipher, which needs no memory, but for small
# sources walks through 2^16 places (0.1 to 20 ms per record).
TABLE = 2**16


@dataclasses.dataclass(frozen=True)
class Stream:
    """Random access to the records of a stream: `stream[g]`, a pure function of the fields and g.

    endless: epochs without end; otherwise one pass in order, whose positions past the end repeat the last record with
    `valid` False.
    """

    source: Any
    seed: int = 0
    shuffle: bool = True
    transforms: tuple[Transform, ...] = ()
    endless: bool = True

    def __getitem__(self, g: int) -> Record:
        rng = np.random.default_rng((self.seed, g))
        i = self.record_index(g)
        if self.endless and hasattr(self.source, "read"):
            record = self.source.read(i, rng)
        else:
            record = self.source[i]
        record = {**record, "index": np.int64(g)}
        for transform in self.transforms:
            record = transform(record, rng)
        return record if self.endless else {**record, "index": np.int64(i), "valid": np.bool_(g == i)}

    def record_index(self, g: int) -> int:
        """Which record of the source stands at position g."""
        n = len(self.source)
        if not self.endless:
            return min(g, n - 1)
        epoch, position = divmod(g, n)
        if not self.shuffle:
            return position
        if n <= TABLE:
            return int(_permutation(n, self.seed, epoch)[position])
        shuffle = import_grain().experimental.index_shuffle
        # grain 0.2 loses the last index where it is a power of 4: ask for one more place and walk past it.
        last = n if n - 1 == 1 << (n - 1).bit_length() - 1 else n - 1
        seed = _epoch_seed(self.seed, epoch)
        while (position := shuffle(position, max_index=last, seed=seed, rounds=4)) >= n:
            pass
        return position


def transformed(record: Record, transforms: Sequence[Transform], seed: int = 0) -> Record:
    """A record through transforms, outside of a stream."""
    record, rng = {**record, "index": np.int64(0)}, np.random.default_rng(seed)
    for transform in transforms:
        record = transform(record, rng)
    return record


def drawn(record: Record, transforms: Sequence[Transform], names: Sequence[str], draws: int = 4) -> tuple[Record, list[str]]:
    """(the record through transforms, which of these entries they draw anew each time, as far as some draws show)."""
    first, *others = (transformed(record, transforms, seed) for seed in range(draws))
    return first, [name for name in names if any(not np.array_equal(other[name], first[name]) for other in others)]


@functools.lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, n)).permutation(n)


@functools.lru_cache(maxsize=4)
def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


@dataclasses.dataclass(frozen=True)
class Local:
    """The stream from `base` on, in the order in which ElasticIterator asks for it, restricted to the stacked keys.

    Elastic deals positions out like cards: process p gets base + p, base + p + count, ... Here p is given the p-th
    block of each batch instead, so that the batch put together from all processes is the same for any number of them.
    """

    stream: Stream
    keys: Mapping[str, tuple | None]  # key -> (shape, dtype), or None: kept as a list
    batch: int
    count: int
    base: int = 0
    length: int = 2**62

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Record:
        step, card = divmod(position - self.base, self.batch)
        k, p = divmod(card, self.count)
        g = self.base + step * self.batch + p * (self.batch // self.count) + k
        record = self.stream[g]
        return {key: _element(key, record, spec, g) for key, spec in self.keys.items()}


def _element(key: str, record: Record, spec: tuple | None, g: int) -> np.ndarray:
    if key not in record:
        raise UserError(f"record {g} has no {key!r}, which others have; it has {', '.join(record)}")
    if spec is None:  # strings and ragged arrays: an array of objects stacks whatever its elements are
        box = np.empty((), object)
        box[()] = record[key]
        return box
    value = _array(record[key])
    if (value.shape, value.dtype) != spec:
        raise UserError(
            f"cannot stack {key!r}: stream position {g} has {value.dtype} {value.shape}, others {spec[1]} {spec[0]}. "
            f"Give all clips one size (Resize, Window), or name the keys to load without {key!r}."
        )
    return value


def _array(value: Any) -> np.ndarray:
    """Python numbers become 32-bit, which is what a model computes in."""
    if isinstance(value, (int, float)) and not isinstance(value, (bool, np.generic)):
        return np.asarray(value, np.int32 if isinstance(value, int) else np.float32)
    return np.asarray(value)


def choose_keys(stream: Stream, keys: Sequence[str] | None) -> dict[str, tuple | None]:
    """key -> (shape, dtype) of what can be stacked, by looking at a few records; None for what stays a list."""
    n = len(stream.source)
    records = [stream[g] for g in sorted({0, n // 3, n // 2, n - 1})]
    specs: dict[str, set] = collections.defaultdict(set)
    for record in records:
        for key, value in record.items():
            try:
                array = _array(value)
            except ValueError:  # a list of unequal lists
                array = np.asarray(None)
            specs[key].add((array.shape, array.dtype) if array.dtype.kind in "biuf" else None)
    complete = [key for key in specs if all(key in record for record in records)]
    stackable = {key: next(iter(specs[key])) if len(specs[key]) == 1 else None for key in complete}
    if keys is None:
        return {key: spec for key, spec in stackable.items() if spec is not None}
    missing = [key for key in keys if key not in stackable]
    if missing:
        raise ValueError(f"records have no {', '.join(map(repr, missing))}; they have {', '.join(stackable)}")
    always = [key for key in ("index", "valid") if key in stackable]
    return {key: stackable[key] for key in dict.fromkeys([*keys, *always])}


@functools.cache
def import_grain() -> Any:
    """grain, or a UserError that says how to install it."""
    try:
        import grain
    except ImportError as error:
        raise UserError("loading data needs grain, which is not installed: pip install grain") from error
    return grain
