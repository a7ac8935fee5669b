"""magvid.data.views: a view is a function of (seed, clip, view) alone."""

import dataclasses
import pickle

import numpy as np
import pytest
from test_data_pipeline import Counting, Cropping, Draw

from magvid.data.pipeline import Augment, Loader
from magvid.data.views import Views, check_views, count_views, take_view
from magvid.types import UserError


@dataclasses.dataclass
class Printed(Cropping):
    fingerprint: str = "abc"
    classes: tuple = ("cat",)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_a_view_is_a_function_of_seed_clip_and_number():
    views = Views(Cropping(), 3, transforms=(Draw(),), seed=5)
    rng = np.random.default_rng((5, 4, 2))
    expected = {"draw": rng.random(), "noise": rng.integers(1 << 30)}
    assert {k: views.view(4, 2)[k] for k in expected} == expected and views.view(4, 2)["label"] == 1
    assert same(views.view(4, 2), views.view(4, 2)) and same(views[4], views.view(4, 0))
    numbers = {Views(Cropping(), 3, seed=s).view(i, v)["draw"] for s in range(2) for i in range(10) for v in range(3)}
    assert len(numbers) == 60


def test_training_draws_every_view_alike():
    views = Views(Cropping(1), 4)
    numbers = {np.float32(views.view(0, v)["draw"]): v for v in range(4)}
    loader = Loader(views, 8)
    drawn = [numbers[d] for _ in range(50) for d in next(loader)["draw"]]
    assert np.abs(np.bincount(drawn, minlength=4) - 100).max() < 40


def test_the_first_clips_alone_and_what_the_source_says():
    views = Views(Printed(), clips=4)
    assert len(views) == 4 and views.classes == ("cat",) and pickle.loads(pickle.dumps(views)).classes == ("cat",)
    with pytest.raises(IndexError):
        views[4]
    with pytest.raises(ValueError, match="Views.clips=11, but the source has only 10 clips"):
        Views(Printed(), clips=11)
    with pytest.raises(ValueError, match="at least one view.*views=0"):
        Views(Printed(), 0)


def test_the_fingerprint_changes_with_content_and_views():
    changes = [{}, dict(views=2), dict(clips=3), dict(seed=1), dict(transforms=(Augment(flip=True),))]
    prints = {Views(Printed(), **c).fingerprint for c in changes} | {Views(Printed(fingerprint="x")).fingerprint}
    assert len(prints) == 6 and Views(Printed()).fingerprint in prints
    assert not hasattr(Views(Counting()), "fingerprint")


def test_views_are_counted_where_they_have_an_end():
    assert count_views(Counting()) == 1 and count_views(Views(Cropping(), 3)) == 3
    assert same(take_view(Counting(), 3, 0), Counting()[3])
    with pytest.raises(UserError, match="Cropping draws another view of a clip each time.*data.views:Views"):
        check_views(Cropping())
