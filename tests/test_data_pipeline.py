"""magvid.data.pipeline: the order of the stream is a function of (seed, position) and of nothing else."""

import dataclasses
import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from magvid.data import pipeline
from magvid.data.pipeline import Augment, Frames, Gap, Loader, MaskedView, Resize, Window, epoch
from magvid.types import UserError


@dataclasses.dataclass
class Counting:
    """Record i: a video whose values are i, and entries of every kind."""

    records: int = 10
    frames: int = 3

    def __len__(self):
        return self.records

    def __getitem__(self, i):
        clip = np.full((self.frames, 4, 6, 3), i, np.uint8)
        return {"video": clip, "label": i % 3, "weight": 0.5, "caption": f"clip {i}", "ragged": np.zeros(i % 4)}


@dataclasses.dataclass
class Cropping(Counting):
    """Also draws something of its own."""

    def read(self, i, rng):
        return {**self[i], "draw": rng.random()}


@dataclasses.dataclass(frozen=True)
class Draw:
    def __call__(self, record, rng):
        return record | {"noise": rng.integers(1 << 30)}


def records_of(loader, batches):
    return [int(v[0, 0, 0, 0]) for _ in range(batches) for v in next(loader)["video"]]


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def assemble(loaders):
    """The global batch: the parts of all processes one after the other."""
    parts = [next(loader) for loader in loaders]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def make(count=1, source=None, **kwargs):
    settings = {"batch": 4, "seed": 3, "transforms": (Draw(),), **kwargs}
    return [Loader(source or Cropping(), process_index=p, process_count=count, **settings) for p in range(count)]


def test_every_epoch_is_another_permutation():
    order = records_of(Loader(Counting(10), batch=5, seed=1), 40)
    epochs = [tuple(order[k : k + 10]) for k in range(0, 200, 10)]
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert len(set(epochs)) == 20
    assert records_of(Loader(Counting(10), batch=5, seed=1), 40) == order
    assert records_of(Loader(Counting(10), batch=5, seed=2), 40) != order


def test_without_shuffling_the_order_is_that_of_the_source():
    assert records_of(Loader(Counting(3), batch=2, shuffle=False), 4) == [0, 1, 2, 0, 1, 2, 0, 1]


def test_a_single_record_repeats():
    assert records_of(Loader(Counting(1), batch=2), 2) == [0, 0, 0, 0]


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_one_global_batch(count):
    (alone,), many = make(), make(count)
    for _ in range(6):
        assert_equal(assemble(many), next(alone))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_resume_on_any_number_of_processes(count):
    (reference,) = make()
    expected = [next(reference) for _ in range(8)]
    first = make(2)
    for k in range(5):
        assert_equal(assemble(first), expected[k])
    states = [json.loads(json.dumps(loader.get_state())) for loader in first]
    assert states[0] == states[1] == {"global_next_index": 20, "records": 10, "seed": 3, "shuffle": True}
    second = make(count)
    for loader in second:
        loader.set_state(states[0])
    for k in range(5, 8):
        assert_equal(assemble(second), expected[k])


def test_resume_with_another_batch_size_continues_the_stream():
    (first,), (second,) = make(batch=4), make(batch=6)
    next(first)
    second.set_state(first.get_state())
    assert next(second)["index"].tolist() == list(range(4, 10))


def test_state_can_be_set_again_and_again():
    (loader,) = make()
    start, first = loader.get_state(), next(loader)
    for _ in range(3):
        next(loader)
        loader.set_state(start)
        assert_equal(next(loader), first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": Cropping(11)}, "number of records was 10, here it is 11"),
        ({"seed": 4}, "seed was 3, here it is 4"),
        ({"shuffle": False}, "shuffle was True, here it is False"),
    ],
)
def test_a_foreign_state_is_refused(change, message):
    (loader,), (other,) = make(), make(**change)
    with pytest.raises(UserError, match=message):
        other.set_state(loader.get_state())


def test_the_fingerprint_of_a_source_belongs_to_the_state():
    source, changed = Cropping(), Cropping()
    source.fingerprint, changed.fingerprint = "aa", "bb"
    (loader,), (other,) = make(source=source), make(source=changed)
    with pytest.raises(UserError, match="content of the source was aa, here it is bb"):
        other.set_state(loader.get_state())


def test_draws_depend_on_seed_and_position_alone():
    (loader,) = make()
    batches = [next(loader) for _ in range(5)]
    drawn = np.concatenate([b["noise"] for b in batches])
    own = np.concatenate([b["draw"] for b in batches])
    assert len(set(drawn)) == len(set(own)) == 20  # two epochs: the same records, other draws
    rng = np.random.default_rng((3, 7))
    assert own[7] == np.float32(rng.random()) and drawn[7] == rng.integers(1 << 30)


def test_numeric_entries_of_one_shape_are_stacked():
    batch = next(Loader(Counting(), 4))
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "video": ((4, 3, 4, 6, 3), "uint8"),
        "label": ((4,), "int32"),
        "weight": ((4,), "float32"),
        "index": ((4,), "int64"),
    }
    assert all(type(value) is np.ndarray for value in batch.values())


def test_named_strings_and_ragged_arrays_come_as_lists():
    batch = next(Loader(Counting(), 4, shuffle=False, keys=("caption", "ragged")))
    assert batch["caption"] == ["clip 0", "clip 1", "clip 2", "clip 3"]
    assert [len(x) for x in batch["ragged"]] == [0, 1, 2, 3]
    assert set(batch) == {"caption", "ragged", "index"}
    with pytest.raises(ValueError, match="no 'colour'; they have video, label"):
        Loader(Counting(), 4, keys=("video", "colour"))


def test_a_late_misfit_is_explained():
    class Odd(Counting):
        def __getitem__(self, i):
            return {"video": np.zeros((2, 4, 5 if i == 7 else 4, 3), np.uint8)}

    with pytest.raises(UserError, match=r"cannot stack 'video': stream position 7 has uint8 \(2, 4, 5, 3\), others"):
        records_of(Loader(Odd(), 2, shuffle=False), 5)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="multiple of the 2 processes, got 3"):
        Loader(Counting(), 3, process_count=2)
    with pytest.raises(ValueError, match=r"process_index must lie in \[0, 2\), got 2"):
        Loader(Counting(), 2, process_index=2, process_count=2)
    with pytest.raises(ValueError, match="must not be negative"):
        Loader(Counting(), 2, seed=-1)
    with pytest.raises(UserError, match="Counting has no records"):
        Loader(Counting(0), 2)


def test_batches_are_read_ahead_but_not_without_bound():
    reads, lock = [], threading.Lock()

    class Watched(Counting):
        def __getitem__(self, i):
            with lock:
                reads.append(i)
            return super().__getitem__(i)

    loader = Loader(Watched(), 5)
    next(loader)
    deadline = time.monotonic() + 10
    while len(reads) < 4 + 15 and time.monotonic() < deadline:  # 4 to learn the keys; this batch and two more
        time.sleep(0.01)
    time.sleep(0.1)
    assert 4 + 15 <= len(reads) <= 4 + 5 * (2 + pipeline.AHEAD)
    assert loader.get_state()["global_next_index"] == 5
    loader.close()


def test_close_keeps_the_state():
    (loader,) = make()
    expected = [next(loader) for _ in range(3)][2]
    loader.set_state({**loader.get_state(), "global_next_index": 8})
    loader.close()
    loader.close()
    with pytest.raises(ValueError, match="closed"):
        next(loader)
    loader.set_state(loader.get_state())
    assert_equal(next(loader), expected)


def test_epoch_is_one_ordered_pass():
    batches = list(epoch(Cropping(10), 4, transforms=(Draw(),)))
    assert [b["index"].tolist() for b in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
    assert [b["valid"].tolist() for b in batches] == [[True] * 4, [True] * 4, [True, True, False, False]]
    assert "draw" not in batches[0]  # reads source[i], not source.read
    assert_equal(batches[1], list(epoch(Cropping(10), 4, transforms=(Draw(),)))[1])


def test_epoch_with_a_limit_and_processes():
    alone = list(epoch(Counting(10), 4, limit=6, keys=("caption", "label")))
    assert [b["valid"].sum() for b in alone] == [4, 2] and alone[1]["caption"][:2] == ["clip 4", "clip 5"]
    parts = [list(epoch(Counting(10), 4, limit=6, process_index=p, process_count=2)) for p in range(2)]
    for k, whole in enumerate(alone):
        np.testing.assert_array_equal(np.concatenate([parts[p][k]["index"] for p in range(2)]), whole["index"])
    assert len(list(epoch(Counting(10), 4, limit=99))) == 3


def test_window():
    record = {"video": np.arange(10)[:, None, None, None]}
    starts = {int(Window(4, 2)(record, np.random.default_rng(s))["video"][0, 0, 0, 0]) for s in range(40)}
    assert starts == {0, 1, 2, 3}
    assert Window(4, 2, random=False)(record, None)["video"].ravel().tolist() == [2, 4, 6, 8]
    with pytest.raises(ValueError, match="window of 6 frames, stride 2, does not fit a clip of 10"):
        Window(6, 2)(record, None)


def test_resize():
    halves = np.zeros((1, 8, 16, 3), np.uint8)
    halves[:, :, 8:] = 255
    shapes = Resize(4, 4)({"video": halves, "label": 1}, None)
    assert shapes["video"].shape == (1, 4, 4, 3) and shapes["label"] == 1
    means = [Resize(4, 4, random=True)({"video": halves}, np.random.default_rng(s))["video"].mean() for s in range(20)]
    assert min(means) < 50 and max(means) > 205


def test_augment():
    clip = np.arange(2 * 3 * 5).reshape(2, 3, 5, 1)
    flipped = 0
    for seed in range(40):
        view = Augment(flip=True, crop=(2, 3))({"video": clip}, np.random.default_rng(seed))["video"]
        assert view.shape == (2, 2, 3, 1)
        assert (view[1] - view[0] == 15).all()  # all frames alike
        steps = set(np.diff(view[0, 0, :, 0]).tolist())
        assert steps in ({1}, {-1})
        flipped += steps == {-1}
    assert 8 <= flipped <= 32
    np.testing.assert_array_equal(Augment()({"video": clip}, np.random.default_rng(0))["video"], clip)
    with pytest.raises(ValueError, match=r"crop of \(4, 3\) does not fit a video of \(3, 5\)"):
        Augment(crop=(4, 3))({"video": clip}, None)


CHANGES = [Window(3, 2), Frames((4, 0, 1)), Resize(9, 7), Resize(9, 7, random=True), Resize(31, 40), Augment(flip=True, crop=(8, 15))]


@pytest.mark.parametrize("change", CHANGES)
def test_masks_change_as_the_video_does(change):
    """The subject is white on black, so that it can be told from the picture."""
    masks = np.zeros((6, 13, 21), bool)
    for k in range(6):
        masks[k, 1 + k : 6 + k, 2 * k : 2 * k + 9] = True
    clip = np.repeat(masks[..., None], 3, axis=-1).astype(np.uint8) * 255
    for seed in range(20):
        rng, alone = np.random.default_rng(seed), np.random.default_rng(seed)
        made = change({"video": clip, "masks": masks, "label": 1}, rng)
        assert set(made) == {"video", "masks", "label"} and made["masks"].dtype == bool and made["masks"].any()
        np.testing.assert_array_equal(made["masks"], made["video"][..., 0] >= 128)
        np.testing.assert_array_equal(made["video"], change({"video": clip}, alone)["video"])


def test_masks_are_stacked():
    batch = next(Loader([{"video": np.zeros((2, 4, 5, 3), np.uint8), "masks": np.ones((2, 4, 5), bool)}] * 3, 3, transforms=(Augment(crop=(2, 3)),)))
    assert batch["masks"].shape == (3, 2, 2, 3) and batch["masks"].dtype == bool and batch["masks"].all()


def test_masked_view_is_uniform():
    views = [MaskedView(tasks=4)({}, np.random.default_rng(k)) for k in range(2000)]
    batch = {key: np.stack([view[key] for view in views]) for key in ("task", "ratio")}
    assert batch["task"].dtype == np.int32 and batch["ratio"].dtype == np.float32
    assert abs(np.bincount(batch["task"], minlength=4) - 500).max() < 100
    assert abs(np.histogram(batch["ratio"], bins=4, range=(0, 1))[0] - 500).max() < 100
    assert abs(np.corrcoef(batch["task"], batch["ratio"])[0, 1]) < 0.1


def test_tasks_may_be_weighted():
    draws = [int(MaskedView(tasks=3, weights=(3, 0, 1))({}, np.random.default_rng(k))["task"]) for k in range(2000)]
    shares = np.bincount(draws, minlength=3) / 2000
    np.testing.assert_allclose(shares, [0.75, 0, 0.25], atol=0.03)
    with pytest.raises(ValueError, match=r"weights=\(1, 2\): give 3 numbers"):
        MaskedView(tasks=3, weights=(1, 2))


def test_masked_view_stays_below_one():
    class Largest:
        def random(self):
            return 1 - 2**-53

        def integers(self, n):
            return n - 1

    view = MaskedView(tasks=3)({}, Largest())
    assert view["ratio"] < 1 and view["task"] == 2


def test_masked_view_can_draw_once_per_batch():
    loader = Loader(Counting(), 4, transforms=(MaskedView(group=4, seed=1),))
    ratios = np.stack([next(loader)["ratio"] for _ in range(6)])
    assert (ratios == ratios[:, :1]).all() and len(set(ratios[:, 0])) == 6


@pytest.mark.full
def test_workers_give_the_same_batches():
    (alone,), (many,) = make(), make(workers=2)
    for _ in range(4):
        assert_equal(next(many), next(alone))
    many.set_state({**alone.get_state(), "global_next_index": 4})
    alone.set_state({**alone.get_state(), "global_next_index": 4})
    for _ in range(3):
        assert_equal(next(many), next(alone))
    many.close()


SCRIPT = """
import sys
sys.path[:0] = {path!r}
from test_data_pipeline import Counting, Loader, epoch
if __name__ == "__main__":
    loader = Loader(Counting(100), 4, workers={workers})
    batch = next(loader)
    passing = epoch(Counting(100), 4, workers={workers})
    other = next(passing)
    if {close}:
        loader.close()
"""


@pytest.mark.full
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("close", [True, False])
def test_a_script_ends_in_silence(tmp_path, workers, close):
    (tmp_path / "script.py").write_text(SCRIPT.format(path=sys.path, workers=workers, close=close))
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.full
def test_an_error_in_a_worker_keeps_its_kind():
    with pytest.raises(UserError, match="record 9 is bad"):
        records_of(Loader(Failing(), 2, shuffle=False, workers=1), 5)


class Failing(Counting):
    def __getitem__(self, i):
        if i == 8:
            raise UserError("record 9 is bad: mend it")
        return super().__getitem__(i)


def test_a_negative_number_of_workers_is_named():
    with pytest.raises(ValueError, match="workers=-1: give 0 .threads of this process. or more"):
        next(Loader([{"video": np.zeros((2, 4, 4, 3), np.uint8)}] * 4, 2, workers=-1))


def test_gaps_of_evaluation_clips():
    gap, record = Gap((3, 7), (9, 13)), {"video": np.zeros((16, 2, 2, 3), np.uint8)}
    known = np.stack([gap(record, np.random.default_rng(i))["known"] for i in range(500)])
    start, end = known.argmin(1), 16 - known[:, ::-1].argmin(1)
    assert set(start) == set(range(3, 8)) and set(end) == set(range(9, 14)) and known.dtype == bool
    assert all((~row[a:b]).all() and row[:a].all() and row[b:].all() for row, a, b in zip(known, start, end))
    with pytest.raises(ValueError, match="a gap from frame 3 to before frame 16 does not lie within a clip of 16"):
        Gap((3, 3), (16, 16))(record, np.random.default_rng(0))
