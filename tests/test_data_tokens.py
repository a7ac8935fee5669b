"""magvid.data.tokens: what is written is read, and what is not as it should be is named before it is used."""

import dataclasses
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from test_data_pipeline import Counting, Cropping

from magvid.data.cache import Rows, Writer, is_complete
from magvid.data.pipeline import Loader, MaskedView, epoch
from magvid.data.tokens import TokenCache, TokenRecord
from magvid.data.views import Views
from magvid.types import UserError

FILE = "tokens.json"
SOURCE = Views(Cropping(5), 3)
TASKS = [dict(name=n, given=f"region of {n}", pad="edge") for n in ("FP", "OPC")]


def record(**changes) -> TokenRecord:
    """Five clips, three views, two tasks, 2x3x4 tokens; four shards of four rows, the last of three."""
    data = dict(source=dict(target="x:Y", a=dict(b=1)), fingerprint=None, first="00ff", clips=5, views=3)
    tokenizer = dict(run="runs/vq", weights="ema", hash="ab12", spec=dict(target="x:Z"))
    sizes = dict(clip=(4, 8, 6), latent=(2, 3, 4), codes=300, rows_per_shard=4)
    return TokenRecord(**(dict(tokenizer=tokenizer, data=data, tasks=TASKS, labelled=True) | sizes | changes))


def tokens_of(rows, made):
    """Row r holds the numbers from 100 r on, modulo the codes."""
    start = 100 * np.asarray(rows)[:, None, None, None, None]
    return ((start + np.arange(72).reshape(3, 2, 3, 4)) % made.codes).astype(made.dtype)


def write(folder, made=None, shards=None, batch=7):
    """All shards, in batches that do not divide them."""
    made = made or record()
    folder.mkdir(exist_ok=True)
    shards = list(range(made.shards)) if shards is None else shards
    rows = np.concatenate([made.shard_rows(s) for s in shards])
    writer = Writer(folder, made, shards)
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        writer.add([made.pack(*row) for row in zip(part % 7, tokens_of(part, made), strict=True)])
    writer.close()
    sizes = [(folder / made.shard_name(s)).stat().st_size for s in shards]
    made = dataclasses.replace(made, sizes=sizes)
    (folder / FILE).write_text(json.dumps(made.to_json()))
    return made


@pytest.fixture
def folder(tmp_path):
    write(tmp_path)
    return tmp_path


@pytest.mark.parametrize("codes, bits", [(2**16, 16), (2**16 + 1, 32)])
def test_every_row_is_read_as_it_was_written(tmp_path, codes, bits):
    made = write(tmp_path, record(codes=codes))
    assert made.dtype.itemsize * 8 == bits and made.shards == 4 and list(made.shard_rows(3)) == [12, 13, 14]
    assert made.shard_name(3) == "tokens-00003-of-00004.arrayrecord"
    cache = pickle.loads(pickle.dumps(TokenCache(SOURCE, tmp_path, made)))
    assert len(cache) == 5 and cache.records == 5  # what the source says
    for clip in range(5):
        for view in range(3):
            expected = tokens_of([clip * 3 + view], made)[0]
            for task in range(2):
                found = cache.lookup({"clip": clip, "view": view, "task": task, "ratio": 0.5}, None)
                np.testing.assert_array_equal(found["ids"], expected[0])
                np.testing.assert_array_equal(found["cond_ids"], expected[1 + task])
                assert found["label"] == (clip * 3 + view) % 7 and found["ratio"] == 0.5 and "clip" not in found


def test_it_draws_as_the_source_does(folder):
    """Clip, view, task and ratio of a stream with tokens are those of the stream with videos."""
    cache, masked = TokenCache(SOURCE, folder, record()), MaskedView(2)
    plain, cached = Loader(SOURCE, 4, 1, transforms=(masked,)), Loader(cache, 4, 1, transforms=(masked, cache.lookup))
    numbers = {np.float32(SOURCE.view(i, v)["draw"]): 3 * i + v for i in range(5) for v in range(3)}
    for _ in range(6):
        a, b = next(plain), next(cached)
        rows = [numbers[d] for d in a["draw"]]
        both = np.stack([b["ids"], b["cond_ids"]], 1)
        expected = tokens_of(rows, record())
        np.testing.assert_array_equal(both, np.stack([expected[:, 0], expected[np.arange(4), 1 + a["task"]]], 1))
        for key in ("task", "ratio", "index"):
            np.testing.assert_array_equal(a[key], b[key])
        assert set(b) == {"ids", "cond_ids", "label", "task", "ratio", "index"}
    assert plain.get_state() == cached.get_state()


def test_evaluation_takes_view_0(folder):
    cache = TokenCache(SOURCE, folder, record())
    batch = next(epoch(cache, 5, (MaskedView(2), cache.lookup)))
    np.testing.assert_array_equal(batch["ids"], tokens_of([0, 3, 6, 9, 12], record())[:, 0])


def test_some_of_the_tasks_in_another_order(folder):
    cache = TokenCache(SOURCE, folder, record(tasks=TASKS[::-1]))
    found = cache.lookup({"clip": 1, "view": 2, "task": 0}, None)
    np.testing.assert_array_equal(found["cond_ids"], tokens_of([5], record())[0, 2])


def test_clips_without_labels(tmp_path):
    made = write(tmp_path, record(labelled=False))
    assert "label" not in TokenCache(SOURCE, tmp_path, made).lookup({"clip": 0, "view": 0, "task": 1}, None)


def test_the_rows_to_encode():
    rows = Rows(SOURCE, record(), np.array([14, 4]))
    assert len(rows) == 2 and set(rows[0]) == {"video", "label"} and (rows[0]["video"] == 4).all()
    assert (rows[1]["video"] == 1).all()
    assert (Rows(Counting(), record(), np.array([7]))[0]["video"] == 7).all()


OTHER = {
    "tokenizer.hash is ab12 there, cd34 here": dict(tokenizer=record().tokenizer | dict(hash="cd34")),
    "tokenizer.spec.target is x:Z there, x:A here": dict(tokenizer=record().tokenizer | dict(spec=dict(target="x:A"))),
    "data.source.a.b is 1 there, 2 here": dict(data=record().data | dict(source=dict(target="x:Y", a=dict(b=2)))),
    "data.fingerprint is None there, f00d here": dict(data=record().data | dict(fingerprint="f00d")),
    "data.first is 00ff there, 11ff here": dict(data=record().data | dict(first="11ff")),
    "data.views is 3 there, 2 here": dict(data=record().data | dict(views=2)),
    "data.clips is 5 there, 6 here": dict(data=record().data | dict(clips=6)),
    r"clip is \[4, 8, 6\] there, \[4, 8, 8\] here": dict(clip=(4, 8, 8)),
    r"latent is .* there, \[1, 3, 4\] here": dict(latent=(1, 3, 4)),
    "codes is 300 there, 256 here": dict(codes=256),
    "labelled is True there, False here": dict(labelled=False),
    "task FI is not there, which has FP, OPC": dict(tasks=[*TASKS, dict(name="FI", given="", pad="")]),
    "task OPC shows something else of a clip": dict(tasks=[TASKS[0], TASKS[1] | dict(pad="zeros")]),
}


@pytest.mark.parametrize("message", OTHER)
def test_tokens_of_something_else_are_refused(folder, message):
    with pytest.raises(UserError, match=f"{message}.*run `magvid encode` again"):
        TokenCache(SOURCE, folder, record(**OTHER[message]))


def test_a_fingerprint_speaks_for_the_content_wherever_it_lies():
    a = record(data=record().data | dict(fingerprint="f00d"))
    moved = dataclasses.replace(a, data=a.data | dict(source=dict(target="x:Y", path="elsewhere"), first="ff"))
    assert a.differences(moved) == [] and record().differences(record(tokenizer=record().tokenizer | dict(run="b"))) == []


def damage(kind):
    def change(folder):
        path = folder / record().shard_name(1)
        content = bytearray(path.read_bytes())
        if kind == "missing":
            path.unlink()
        elif kind == "cut off":
            path.write_bytes(content[:-100])
        elif kind == "other shard":
            path.write_bytes((folder / record().shard_name(3)).read_bytes())
        elif kind == "unfinished":
            (folder / FILE).write_text(json.dumps(record().to_json()))
        elif kind == "format":
            (folder / FILE).write_text(json.dumps(record().to_json() | {"format": "magvid.tokens/9"}))
        elif kind == "json":
            (folder / FILE).write_text("{")
        elif kind == "fields":
            (folder / FILE).write_text('{"format": "magvid.tokens/1"}')
        elif kind == "no record":
            (folder / FILE).unlink()

    return change


DAMAGED = {
    "missing": "00001-of-00004.arrayrecord is missing: run `magvid encode` again with --out=",
    "cut off": "00001-of-00004.arrayrecord has 130972 bytes and should have 131072: run `magvid encode` again",
    "other shard": "have 14 rows and should have 15: run `magvid encode` again",
    "unfinished": "are not complete: run `magvid encode` again with .* goes on where it was",
    "format": 'is of the format "magvid.tokens/9", and this version reads "magvid.tokens/1": remove .* and run',
    "json": "tokens.json does not describe tokens",
    "fields": "tokens.json does not describe tokens .*tokenizer",
    "no record": "there are no tokens in .* write them by `magvid encode --out=",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_named_before_training(folder, kind):
    damage(kind)(folder)
    with pytest.raises(UserError, match=DAMAGED[kind]):
        TokenCache(SOURCE, folder, record())


@pytest.mark.parametrize("where", [slice(100, 600, 8), slice(65536, 66000, 8)])
def test_flipped_bits_are_found(folder, where):
    """In the rows: when they are read. In the end of the file: when it is opened."""
    path = folder / record().shard_name(1)
    content = np.fromfile(path, np.uint8)
    content[where] ^= 1
    content.tofile(path)
    assert not is_complete(path, record(), 4) and is_complete(folder / record().shard_name(0), record(), 4)
    with pytest.raises(UserError, match=r"is damaged (at row [4-7] )?\(.*: run `magvid encode` again"):
        cache = TokenCache(SOURCE, folder, record())
        for row in range(4, 8):
            cache.lookup({"clip": row // 3, "view": row % 3, "task": 0}, None)


def test_tokens_without_a_task_are_explained(folder):
    with pytest.raises(UserError, match="add magvid.data.pipeline:MaskedView"):
        TokenCache(SOURCE, folder, record()).lookup({"clip": 0, "view": 0}, None)


FULL = """
import resource, signal, pathlib, sys
sys.path[:0] = {path!r}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from test_data_tokens import record, write
made = record(rows_per_shard=2, latent=(2, 3, 4))
write(pathlib.Path({folder!r}), made, [0, 1])
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
write(pathlib.Path({folder!r}), made, [2, 3, 4])
"""


def test_a_full_disk_loses_nothing(tmp_path):
    """No file may grow beyond 30 kB, as on a full disk; shards that are there stay, and no part is left behind."""
    program = FULL.format(path=sys.path, folder=str(tmp_path / "tokens"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "UserError: cannot write" in done.stderr and "is the disk full or read-only? Make room" in done.stderr
    made = record(rows_per_shard=2)
    assert sorted(p.name for p in (tmp_path / "tokens").iterdir()) == [*map(made.shard_name, (0, 1)), FILE]
    assert is_complete(tmp_path / "tokens" / made.shard_name(1), made, 2)
