"""Random access to the records of prepared TFDS splits, as bytes: array_record files by their own reader, tfrecord
files by the lengths that stand before their records.
"""

import bisect
import itertools
import os
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from magvid.types import UserError

HEADER, FOOTER = 12, 4  # bytes of a tfrecord around the data: length and its checksum, checksum of the data
SPARE = 256  # open files that a program needs beside the shards


def open_records(files: Sequence[Any], file_format: str) -> "ArrayRecords | TFRecords":
    """The records of TFDS's file instructions (`filename`, `skip`, `take` (-1: to the end), `examples_in_shard`).

    UserError for a format that cannot be read at random, and where files are missing.
    """
    readers = {"array_record": ArrayRecords, "tfrecord": TFRecords}
    if file_format not in readers:
        raise UserError(
            f"{files[0].filename} is in the format {file_format}, magvid reads {' and '.join(readers)}: prepare the "
            "data set again with file_format='array_record'"
        )
    missing = [file.filename for file in files if not os.path.exists(file.filename)]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(files)} files of a data set are missing, the first is {missing[0]}: copy them, or "
            "prepare the data set again"
        )
    return readers[file_format](files)


class ArrayRecords:
    """`array_record`'s own reader."""

    def __init__(self, files: Sequence[Any]):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        _allow_open_files(len(files))  # each shard stays open
        self._source = ArrayRecordDataSource(list(files))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> bytes:
        try:
            return self._source[i]
        except (RuntimeError, IndexError) as error:
            raise UserError(f"an array_record file is damaged: {error}") from error


class TFRecords:
    """Each shard is walked through once, when it is first used, to learn where its records begin."""

    def __init__(self, files: Sequence[Any]):
        self._files = [(file.filename, file.skip) for file in files]
        takes = [file.examples_in_shard - file.skip if file.take == -1 else file.take for file in files]
        self._ends = list(itertools.accumulate(takes))
        self._starts: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, i: int) -> bytes:
        shard = bisect.bisect_right(self._ends, i)
        path, skip = self._files[shard]
        k = skip + i - (self._ends[shard - 1] if shard else 0)
        if path not in self._starts:  # two threads may both walk through it, to the same end
            self._starts[path] = _record_starts(path)
        starts = self._starts[path]
        if k + 1 >= len(starts):
            raise UserError(f"{path} is damaged: it has {len(starts) - 1} whole records, {k + 1} were expected")
        with open(path, "rb") as file:  # not kept open: a data set may have more shards than a process may have files
            file.seek(starts[k] + HEADER)
            return file.read(starts[k + 1] - starts[k] - HEADER - FOOTER)


def _record_starts(path: str) -> np.ndarray:
    """Where each whole record begins, and where the last one ends."""
    starts, size = [0], os.path.getsize(path)
    with open(path, "rb") as file:
        while True:
            file.seek(starts[-1])
            header = file.read(8)
            end = starts[-1] + HEADER + struct.unpack("<Q", header)[0] + FOOTER if len(header) == 8 else size + 1
            if end > size:
                return np.asarray(starts, np.int64)
            starts.append(end)


def _allow_open_files(count: int) -> None:
    """Raises this process's (and its workers') limit of open files as far as it may, where `count` more need it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = count + SPARE
    if soft == resource.RLIM_INFINITY or soft >= need:
        return
    if hard != resource.RLIM_INFINITY and hard < need:
        raise UserError(f"the data set has {count} files, but only {hard} may be open: raise the limit (ulimit -n)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
