"""magvid.data.records: any record of any part of a split, from both formats."""

import pickle
import resource

import pytest
from make_tfds import write_array_record, write_tfrecord
from tensorflow_datasets.core.utils.shard_utils import FileInstruction

from magvid.data import records
from magvid.types import UserError

CONTENT = [[b"a", b"", b"c" * 300], [b"d"], [], [b"e" * 70_000, b"f"]]


def shards(folder, file_format, parts):
    """Instructions for `parts` [(skip, take), ...] of files with CONTENT."""
    write = {"array_record": write_array_record, "tfrecord": write_tfrecord}[file_format]
    found = []
    for k, (content, (skip, take)) in enumerate(zip(CONTENT, parts, strict=True)):
        write(folder / f"x-{k}", content)
        if take:
            found.append(FileInstruction(str(folder / f"x-{k}"), skip, take, len(content)))
    return found


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_records_of_whole_and_partial_files(tmp_path, file_format):
    whole = records.open_records(shards(tmp_path, file_format, [(0, -1), (0, -1), (0, 0), (0, -1)]), file_format)
    part = records.open_records(shards(tmp_path, file_format, [(1, -1), (0, 1), (0, 0), (1, 1)]), file_format)
    for found, expected in ((whole, sum(CONTENT, [])), (part, [b"", b"c" * 300, b"d", b"f"])):
        assert len(found) == len(expected)
        assert [found[i] for i in reversed(range(len(found)))] == expected[::-1]
        copy = pickle.loads(pickle.dumps(found))
        assert [copy[i] for i in range(len(copy))] == expected


def test_a_tfrecord_is_walked_through_once_and_only_when_it_is_used(tmp_path, monkeypatch):
    walked, starts = [], records._record_starts
    monkeypatch.setattr(records, "_record_starts", lambda path: [walked.append(path[-1]), starts(path)][1])
    found = records.open_records(shards(tmp_path, "tfrecord", [(0, -1), (0, -1), (0, 0), (0, -1)]), "tfrecord")
    assert (found[1], found[2], found[4]) == (b"", b"c" * 300, b"e" * 70_000) and walked == ["0", "3"]


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_a_damaged_file_is_named(tmp_path, file_format):
    found = records.open_records(shards(tmp_path, file_format, [(0, -1), (0, -1), (0, 0), (0, -1)]), file_format)
    (tmp_path / "x-3").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="damaged"):
        found[5]
    assert found[3] == b"d"


def test_the_limit_of_open_files_is_raised_as_far_as_needed(monkeypatch):
    limits = [(64, 5000)]
    monkeypatch.setattr(resource, "getrlimit", lambda what: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda what, pair: limits.append(pair))
    records._allow_open_files(1024)
    assert limits[-1] == (1024 + records.SPARE, 5000)
    records._allow_open_files(1000)
    assert len(limits) == 2
    with pytest.raises(UserError, match=r"has 6000 files, but only 5000 may be open: raise the limit \(ulimit -n\)"):
        records._allow_open_files(6000)
