"""magvid.data.stream: permutations and draws."""

import sys

import numpy as np
import pytest

from magvid.data import stream
from magvid.types import UserError


class Numbers:
    """Record i is i."""

    def __init__(self, records):
        self.records = records

    def __len__(self):
        return self.records

    def __getitem__(self, i):
        return {"number": i}


def test_every_record_comes_at_every_place():
    numbered = stream.Stream(Numbers(5))
    order = np.reshape([numbered.record_index(g) for g in range(2000)], (400, 5))
    for place in range(5):
        counts = np.bincount(order[:, place], minlength=5)
        assert abs(counts - 80).max() < 40, counts  # 5 standard deviations


def test_large_sources_are_permuted_without_a_table():
    n = stream.TABLE + 1
    numbered = stream.Stream(Numbers(n), seed=5)
    first, second = ([numbered.record_index(g) for g in range(start, start + n)] for start in (0, n))
    assert sorted(first) == sorted(second) == list(range(n)) and first != second
    assert abs(np.corrcoef(first, range(n))[0, 1]) < 0.02 and abs(np.corrcoef(first, second)[0, 1]) < 0.02


@pytest.mark.parametrize("n", [1, 2, 3, 7, 100])
def test_every_epoch_holds_every_record_once(n):
    numbered = stream.Stream(Numbers(n), seed=1)
    for epoch in range(5):
        assert sorted(numbered[g]["number"] for g in range(epoch * n, (epoch + 1) * n)) == list(range(n))


def test_transforms_draw_one_after_the_other_from_the_position():
    def draw(name):
        return lambda record, rng: record | {name: rng.random()}

    record = stream.Stream(Numbers(4), seed=2, transforms=(draw("a"), draw("b")))[6]
    assert (record["a"], record["b"]) == tuple(np.random.default_rng((2, 6)).random(2))
    assert record["index"] == 6


def test_one_pass_repeats_its_last_record():
    records = [stream.Stream(Numbers(3), endless=False)[g] for g in range(5)]
    assert [(r["number"], int(r["index"]), bool(r["valid"])) for r in records] == [
        (0, 0, True),
        (1, 1, True),
        (2, 2, True),
        (2, 2, False),
        (2, 2, False),
    ]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(UserError, match="pip install grain"):
        stream.import_grain.__wrapped__()
