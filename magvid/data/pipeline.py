"""From a source to batches: transforms, and the iterators that stack and prefetch, on grain.

What stands at which place of the stream is decided in data/stream.py by (seed, position) alone; here it is dealt out to
processes, read ahead by threads or worker processes, and counted, so that the state is one number.
"""

import dataclasses
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from magvid import video
from magvid.data.masks import resized
from magvid.data.stream import Local, Record, Stream, Transform, choose_keys, import_grain
from magvid.types import UserError

THREADS = min(4, os.cpu_count() or 1)  # read at the same time where there are no worker processes
AHEAD = 4  # batches held ready, so that a training step does not wait for one slow video


# Transforms: (record, generator of this stream position) -> record --------------------------------------------------


def _alike(record: Record, change: Callable[[np.ndarray], np.ndarray]) -> Record:
    """The record with the same change of `video` (t h w 3) and, where it has them, of `masks` (t h w)."""
    return record | {key: change(record[key]) for key in ("video", "masks") if key in record}


@dataclasses.dataclass(frozen=True)
class Window:
    """`frames` frames of a longer clip, every `stride`-th, from a random moment (`random=False`: from the middle)."""

    frames: int
    stride: int = 1
    random: bool = True

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        starts = len(record["video"]) - (self.frames - 1) * self.stride
        if starts < 1:
            have = len(record["video"])
            raise ValueError(f"a window of {self.frames} frames, stride {self.stride}, does not fit a clip of {have}")
        first = int(rng.integers(starts)) if self.random else starts // 2
        return _alike(record, lambda x: x[first : first + self.frames * self.stride : self.stride])


@dataclasses.dataclass(frozen=True)
class Frames:
    """The frames of a clip with these numbers, e.g. the four of sixteen that MAGVIT trains its 2D-VQ on."""

    indices: tuple[int, ...]

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        if max(self.indices) >= len(record["video"]):
            raise ValueError(f"frames {tuple(self.indices)} of a clip of {len(record['video'])} were asked for")
        return _alike(record, lambda x: x[list(self.indices)])


@dataclasses.dataclass(frozen=True)
class Resize:
    """Resizes (anti-aliased) so that the frame covers height x width, and crops: anywhere (`random`) or the centre. Of `masks` that is
    left of which at least half is covered.
    """

    height: int
    width: int
    random: bool = False

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        y, x = rng.random(2) if self.random else (0.5, 0.5)
        resize = lambda images: video.resize_crop(images, self.height, self.width, y, x)
        return _alike(record, lambda x: resized(x, resize) if x.dtype == bool else resize(x))


@dataclasses.dataclass(frozen=True)
class Augment:
    """One view of a clip: its frames cropped alike to `crop` (height, width) and, `flip`, mirrored half of the time.

    Mirroring turns "left" into "right": leave it off where labels or captions tell them apart. Only `video` and `masks` are changed.
    """

    flip: bool = False
    crop: tuple[int, int] | None = None

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        if self.crop:
            size = record["video"].shape[1:3]
            spare = [have - want for have, want in zip(size, self.crop, strict=True)]
            if min(spare) < 0:
                raise ValueError(f"a crop of {self.crop} does not fit a video of {size}; add Resize first")
            top, left = (int(rng.integers(s + 1)) for s in spare)
            record = _alike(record, lambda x: x[:, top : top + self.crop[0], left : left + self.crop[1]])
        if self.flip and rng.random() < 0.5:
            record = _alike(record, lambda x: x[:, :, ::-1])
        return record


@dataclasses.dataclass(frozen=True)
class Gap:
    """Adds `known` bool (t,): False from frame `start` to before frame `end`, each drawn out of its range, both ends included.

    For evaluation on gaps of several lengths; in training the objective draws them (`diffusion.mavin.Consecutive`).
    """

    start: tuple[int, int]
    end: tuple[int, int]

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        t = len(record["video"] if "video" in record else record["latent_mean"])
        start, end = (int(rng.integers(low, high + 1)) for low, high in (self.start, self.end))
        if not 0 < start < end < t:
            raise ValueError(f"a gap from frame {start} to before frame {end} does not lie within a clip of {t}")
        frames = np.arange(t)
        return record | {"known": (frames < start) | (frames >= end)}


@dataclasses.dataclass(frozen=True)
class LearnAfter:
    """Adds `loss_mask` float32 (t,): the first `given` frames, which the model is shown, do not count in the loss."""

    given: int = 1

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        t = len(record["video"] if "video" in record else record["latent_mean"])
        if not 0 < self.given < t:
            raise ValueError(f"given={self.given} of {t} frames: leave at least one to learn")
        return record | {"loss_mask": (np.arange(t) >= self.given).astype(np.float32)}


@dataclasses.dataclass(frozen=True)
class MaskedView:
    """Draws what masked training asks of a clip: `task` int32 in [0, tasks), `ratio` float32 uniform in [0, 1).

    weights: how often each task is drawn, relative to the others; () draws all alike (as the official release does).
    group: neighbours in the stream that share one draw. 1 draws per clip; the global batch size draws once per step, as
    the official MAGVIT release does (`seed` then separates runs, because the clip's own generator cannot be used).
    """

    tasks: int = 10
    weights: tuple[float, ...] = ()
    group: int = 1
    seed: int = 0

    def __post_init__(self):
        weights = np.asarray(self.weights, float)
        if len(weights) and (len(weights) != self.tasks or weights.min() < 0 or not weights.sum()):
            raise ValueError(
                f"weights={tuple(self.weights)}: give {self.tasks} numbers >= 0, not all 0, one for each task"
            )

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        if self.group > 1:
            rng = np.random.default_rng((self.seed, int(record["index"]) // self.group))
        # float32 rounds the largest doubles below 1 up to 1.
        ratio = min(np.float32(rng.random()), np.nextafter(np.float32(1), np.float32(0)))
        share = np.cumsum(self.weights or np.ones(self.tasks))
        task = np.searchsorted(share, rng.random() * share[-1], side="right")
        return record | {"task": np.int32(task), "ratio": ratio}


# Batches ------------------------------------------------------------------------------------------------------------


class Loader:
    """Endless batches for training: `next(loader)` -> {key: array (batch // process_count, ...)}.

    source: `len(source)` records; `source.read(i, rng)` where it exists (random crops), else `source[i]`.
    batch: global batch size; a process gets the process_index-th block of batch // process_count consecutive rows.
    transforms: applied in order to each record. workers: reading processes (0: threads of this process; a script that
    uses more needs the `if __name__ == "__main__"` guard, because they are spawned). keys: entries to load; None takes
    all numeric ones of equal shape, and strings or ragged entries that are named come as lists. `index` (int64, the
    stream position) is always there. Raises UserError for an empty source and for records that do not stack.

    The state counts what was given out, not what was prefetched, and fits any number of workers and processes and any
    batch size.
    """

    def __init__(
        self,
        source: Any,
        batch: int,
        seed: int = 0,
        shuffle: bool = True,
        transforms: Sequence[Transform] = (),
        workers: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        keys: Sequence[str] | None = None,
    ):
        stream = Stream(source, seed, shuffle, tuple(transforms))
        self._local = _local(stream, batch, process_index, process_count, keys)
        self._process, self._workers = process_index, workers
        self._batches: _Batches | None = None
        self._start(0)

    @property
    def source(self) -> Any:
        return self._local.stream.source

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._batches is None:
            raise ValueError("this Loader is closed")
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        """JSON-able position of the next batch, with what it refers to; the same on every process."""
        return {"global_next_index": self._next_index(), **self._identity()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues at a saved position. UserError where the state belongs to another source, seed or order."""
        names = {"records": "number of records", "fingerprint": "content of the source"}
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise UserError(
                    f"the saved position belongs to another data stream: its {names.get(name, name)} was "
                    f"{state.get(name)}, here it is {value}. Restore that run's data and settings, or start a new run."
                )
        self._start(int(state["global_next_index"]))

    def close(self) -> None:
        """Stops threads and workers; the state can still be read."""
        if self._batches is not None:
            self._local = dataclasses.replace(self._local, base=self._next_index())
            self._batches.close()
            self._batches = None

    def _next_index(self) -> int:
        return self._local.base if self._batches is None else self._batches.next_index()

    def _identity(self) -> dict[str, Any]:
        stream = self._local.stream
        identity = {"records": len(stream.source), "seed": stream.seed, "shuffle": stream.shuffle}
        fingerprint = getattr(stream.source, "fingerprint", None)
        return identity if fingerprint is None else identity | {"fingerprint": fingerprint}

    def _start(self, index: int) -> None:
        self.close()
        self._local = dataclasses.replace(self._local, base=index)
        self._batches = _Batches(self._local, self._process, self._workers)


def epoch(
    source: Any,
    batch: int,
    transforms: Sequence[Transform] = (),
    seed: int = 0,
    limit: int | None = None,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    keys: Sequence[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """One pass over the first `limit` (default: all) records in order, for evaluation; arguments as for Loader.

    Reads `source[i]` (centre crops). All batches are full: the last one repeats the last record. `index` is the
    record's number, `valid` (bool) is False on repeated rows. Transforms draw from (seed, position).
    """
    if limit is not None and limit < len(source):
        source = _First(source, limit)
    stream = Stream(source, seed, False, tuple(transforms), endless=False)
    local = _local(stream, batch, process_index, process_count, keys)
    batches = _Batches(dataclasses.replace(local, length=-(-len(source) // batch) * batch), process_index, workers)
    try:
        yield from batches
    finally:
        batches.close()


@dataclasses.dataclass(frozen=True)
class _First:
    """The first `limit` records of a source."""

    source: Any
    limit: int

    def __len__(self) -> int:
        return self.limit

    def __getitem__(self, i: int) -> Record:
        return self.source[i]


def _local(stream: Stream, batch: int, process: int, count: int, keys: Sequence[str] | None) -> Local:
    if batch < 1 or batch % count:
        raise ValueError(f"the global batch must be a positive multiple of the {count} processes, got {batch}")
    if not 0 <= process < count:
        raise ValueError(f"process_index must lie in [0, {count}), got {process}")
    if not len(stream.source):
        raise UserError(f"the source {type(stream.source).__name__} has no records")
    if stream.seed < 0:
        raise ValueError(f"the seed of a data stream must not be negative, got {stream.seed}")
    return Local(stream, choose_keys(stream, keys), batch, count)


def _elastic(local: Local, process: int, workers: int) -> Any:
    """grain's iterator over this process's part of the stream from local.base on."""
    grain = import_grain()
    multiprocessing = None
    if workers:
        _mark_flags_parsed()
        ahead = max(1, -(-AHEAD // workers))
        multiprocessing = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead)
    iterator = iter(
        grain.experimental.ElasticIterator(
            grain.MapDataset.source(local),
            local.batch,
            grain.sharding.ShardOptions(process, local.count),
            read_options=grain.ReadOptions(num_threads=1 if workers else THREADS, prefetch_buffer_size=AHEAD),
            multiprocessing_options=multiprocessing,
        )
    )
    iterator.set_state({"global_next_index": local.base})
    return iterator


class _Batches:
    """grain's iterator over this process's part of the stream.

    It closes itself at interpreter exit as well, where grain's destructors would find their modules gone.
    """

    def __init__(self, local: Local, process: int, workers: int):
        if workers < 0:
            raise ValueError(f"data workers={workers}: give 0 (threads of this process) or more reading processes")
        self._running = [_elastic(local, process, workers)]
        weakref.finalize(self, _stop, self._running)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        return _plain(next(self._running[0]))

    def next_index(self) -> int:
        return self._running[0].get_state()["global_next_index"]

    def close(self) -> None:
        _stop(self._running)


def _stop(running: list) -> None:
    while running:
        running.pop().close()


def _plain(batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Object arrays as lists; arrays in a worker's shared memory copied out of it, so that it may end at any time."""
    lists = {key: value.tolist() for key, value in batch.items() if value.dtype == object}
    return {key: value if type(value) is np.ndarray else np.array(value) for key, value in batch.items()} | lists


def _mark_flags_parsed() -> None:
    """grain's workers read absl flags, which raises outside of an absl app (a notebook, a test)."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
