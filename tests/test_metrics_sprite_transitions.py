"""The judge of transitions: a track that is where the sprite is, and that jumps where the sprite does."""

import numpy as np
import pytest

from magvid.data.sprite_world import COLOURS, SHAPES, paint
from magvid.data.sprites import Sprites
from magvid.metrics.sprite_transitions import SpriteTransition, fit_track

SOURCE = Sprites(split="test", frames=16, world="small", sequence=1.0)
GAPS = [(3, 13), (5, 11), (6, 8), (4, 12), (7, 9)]


def two_actions(count: int) -> list[dict]:
    records = (SOURCE[i] for i in range(100))
    return [r for r in records if len(set(r["actions"])) == 2][:count]


RECORDS = two_actions(5)


def batch(change=lambda video, gap: video) -> dict:
    rows = {k: np.stack([r[k] for r in RECORDS]) for k in ("shape", "colour", "actions", "track")}
    target = np.stack([r["video"] for r in RECORDS])
    frames = np.arange(16)
    known = np.stack([(frames < start) | (frames >= end) for start, end in GAPS])
    video = np.stack([change(v.copy(), np.flatnonzero(~k)) for v, k in zip(target, known)])
    given = np.broadcast_to(known[..., None, None, None], (*target.shape[:-1], 1))
    return rows | dict(video=video, target=target, given=given)


def scores(change=lambda video, gap: video) -> dict[str, float]:
    metric = SpriteTransition("small")
    return metric.result(metric.features(batch(change)))


def faded(video, gap):
    weight = (np.arange(1, len(gap) + 1) / (len(gap) + 1))[:, None, None, None]
    video[gap] = np.rint((1 - weight) * video[gap[0] - 1] + weight * video[gap[-1] + 1])
    return video


def held(video, gap):
    first, second = np.array_split(gap, 2)
    video[first], video[second] = video[gap[0] - 1], video[gap[-1] + 1]
    return video


@pytest.mark.parametrize("size", [32, 64])
def test_the_track_is_the_true_one(size):
    source = Sprites(split="test", frames=16, height=size, width=size + 16, world="small", sequence=1.0)
    for i in range(4):
        r = source[i]
        track, agrees = fit_track(r["video"], SHAPES[r["shape"]], tuple(COLOURS)[r["colour"]], r["track"][:, 3])
        np.testing.assert_allclose(track, r["track"][:, :3], atol=0.2 * size / 32)
        assert agrees.min() > 0.93  # the grid of sizes is half a pixel wide


def test_a_sprite_turned_and_at_the_border():
    """A cross at any angle, half a pixel from where it may be."""
    pose = np.array([[7.0, 7.3, 6.0, 0.2], [24.6, 25.1, 6.0, 0.2], [16.2, 9.9, 6.0, 0.7], [12.0, 20.0, 6.0, -0.4]])
    video = np.full((4, 32, 32, 3), 30, np.uint8)
    paint(video, "cross", "blue", "plain", pose)
    track, _ = fit_track(video, "cross", "blue", pose[:, 3])
    np.testing.assert_allclose(track, pose[:, :3], atol=0.2)


def test_the_real_clip_is_perfect():
    found = scores()
    assert found["position"] == found["velocity"] == found["track"] == 0
    assert found["identity"] == found["before"] == found["after"] == 1 and found["agrees"] > 0.97
    assert found["step"] < 3 and found["track_10"] == 0 and found["track_2_low"] == 0
    assert {n for n in found if n.startswith("track_") and n[6:].isdigit()} == {f"track_{n}" for n in (2, 6, 8, 10)}


def test_what_fades_or_stands_jumps():
    """The middle of the pixels would move evenly in a fade; the sprite itself is seen at one end or at the other."""
    real = scores()
    for change in (faded, held):
        found = scores(change)
        assert found["step"] > real["step"] + 2 and found["track"] > 1.5 and found["position"] > 0.7
    assert scores(faded)["agrees"] < real["agrees"] - 0.03


def test_another_colour_or_shape_is_seen():
    recoloured = lambda video, gap: np.where(np.isin(np.arange(16), gap)[:, None, None, None], video[..., [1, 2, 0]], video)
    assert scores(recoloured)["identity"] == 0

    def another(video, gap):
        video[gap] = 30
        paint(video[gap[0] : gap[-1] + 1], "square", "red", "plain", np.tile([16, 16, 6.5, 0.0], (len(gap), 1)))
        return video

    assert scores(another)["identity"] < 0.5


def test_a_constant_displacement_is_measured():
    """Two pixels to the right in the gap: two in place, none in speed inside of it."""
    found = scores(lambda video, gap: np.where(np.isin(np.arange(16), gap)[:, None, None, None], np.roll(video, 2, axis=2), video))
    assert found["position"] == pytest.approx(2, abs=0.15) and found["track"] == pytest.approx(2, abs=0.15)
    assert found["velocity"] < 0.2


def test_it_says_nothing_without_a_gap_between_given_frames():
    metric, rows = SpriteTransition("small"), batch()
    assert metric.features({k: v for k, v in rows.items() if k != "given"}) == {}
    assert metric.features({**rows, "given": np.ones_like(rows["given"])}) == {}
    first = np.zeros_like(rows["given"])
    first[:, 0] = True
    assert metric.features({**rows, "given": first}) == {}
    valid = metric.features({**rows, "valid": np.array([True, False, True, True, False])})
    assert len(valid["position"]) == 3
