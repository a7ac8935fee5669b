import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from magvid.data.sprite_world import World
from magvid.data.sprites import Sprites
from magvid.metrics.sprites import SpriteJudge, read, wilson

FIELDS = ("video", "label", "shape", "colour", "texture")


def _batch(source, clips, start=0):
    records = [source[i] for i in range(start, start + clips)]
    return {key: np.stack([record[key] for record in records]) for key in FIELDS}


def _judge(source, clips, change=lambda video: video):
    judge, batch = SpriteJudge(world=source.world), _batch(source, clips)
    return judge.result(judge.features({**batch, "video": change(batch["video"])}))


@pytest.mark.parametrize("world, size, clips", [
    ("full", (16, 32, 32), 300), ("small", (16, 32, 32), 200), ("full", (16, 48, 64), 200),
    ("full", (12, 32, 40), 200), ("small-middle", (8, 32, 32), 200), ("full-middle", (8, 32, 32), 200),
    ("entities-unseen", (8, 32, 32), 200)])
def test_ground_truth_is_read_right(world, size, clips):
    result = _judge(Sprites("validation", *size, world=world, keys=FIELDS), clips)
    assert result["accuracy"] >= 0.99 and result["colour_accuracy"] >= 0.99 and result["identity_accuracy"] >= 0.99
    assert (result.get("texture_accuracy", 1) >= 0.97) and ("texture_accuracy" in result) != world.startswith("small")
    assert ("entity_accuracy" in result) == ("texture_accuracy" in result) and result.get("entity_accuracy", 1) >= 0.96
    assert result["n"] == clips and result["confidence"] > 0.9


@pytest.mark.full
@pytest.mark.parametrize("world", ["full", "small"])
def test_ground_truth_is_read_right_on_2000_clips(world):
    assert _judge(Sprites("test", world=world, keys=FIELDS), 2000)["accuracy"] >= 0.99


@pytest.mark.parametrize("world", ["full", "small"])
def test_soft_and_noisy_pictures_are_read_too(world):
    def spoil(video):
        soft = gaussian_filter(video / 255, (0, 0, 0.7, 0.7, 0))
        return np.clip(soft + np.random.default_rng(0).normal(0, 8 / 255, soft.shape), 0, 1).astype(np.float32)

    result = _judge(Sprites("validation", world=world, keys=FIELDS), 100, spoil)
    assert result["accuracy"] >= 0.97 and result["identity_accuracy"] >= 0.97


def test_noise_is_read_at_chance():
    rng = np.random.default_rng(0)
    result = _judge(Sprites(keys=FIELDS), 200, lambda video: rng.integers(0, 256, video.shape, np.uint8))
    assert result["accuracy_low"] <= result["chance"] == 1 / 66 and result["accuracy"] < 0.06
    assert result["confidence"] < 0.2


def test_permuted_labels_are_at_chance():
    judge, batch = SpriteJudge("small"), _batch(Sprites(world="small", keys=FIELDS), 400)
    labels = np.random.default_rng(0).permutation(batch["label"])
    result = judge.result(judge.features({"video": batch["video"], "label": labels}))
    assert result["accuracy_low"] <= result["chance"] <= result["accuracy_high"] and result["chance"] == 1 / 18
    assert "colour_accuracy" not in result


def test_the_track_is_read_to_a_fraction_of_a_pixel():
    source, errors = Sprites("test"), []
    for i in range(30):
        record = source[i]
        seen = read(record["video"])
        assert seen.track.shape == (16, 5) and (seen.track[:, 4] == 1).all()
        errors.append(np.abs(seen.track[:, :3] - record["track"][:, :3]).mean())
    assert np.mean(errors) < 0.12 and max(errors) < 0.4


def test_the_angle_of_a_spin_is_followed():
    source = Sprites(world=World(shapes=("triangle", "star"), actions=("spin",), textures=("plain",)))
    for i in range(20):
        record = source[i]
        seen = read(record["video"], source.world)
        np.testing.assert_allclose(np.ptp(seen.track[:, 3]), np.ptp(record["track"][:, 3]), atol=0.25)


def test_outcomes_are_the_worlds_and_floats_equal_bytes():
    world = World(shapes=("square", "star"), colours=("blue", "white"), textures=("plain",), actions=("spin", "up"),
                  max_distractors=0)
    video = Sprites()[0]["video"]
    seen, again = read(video, world), read(video / 255, world)
    assert seen.shape in world.shapes and seen.colour in world.colours and seen.action in world.actions
    assert (seen.shape, seen.colour, seen.action) == (again.shape, again.colour, again.action)
    np.testing.assert_allclose(seen.track, again.track, atol=1e-2)


def test_an_empty_clip_has_nothing_visible():
    seen = read(np.full((16, 32, 32, 3), 40, np.uint8))
    assert seen.confidence == 0 and not seen.track[:, 4].any()
    assert np.isfinite(seen.track).all() and seen.action == "stand"


def test_rows_that_are_not_valid_do_not_count():
    judge, batch = SpriteJudge(), _batch(Sprites(keys=FIELDS), 6)
    wrong = {**batch, "label": (batch["label"] + 11) % 66, "valid": np.array([True, False, False, True, False, False])}
    result = judge.result(judge.features(wrong))
    assert result["n"] == 2 and result["accuracy"] == 0
    assert result["action_accuracy"] == 1 and result["colour_accuracy"] == 1
    with pytest.raises(ValueError, match="no clip"):
        judge.result(judge.features({**batch, "valid": np.zeros(6, bool)}))


def test_features_of_batches_join():
    judge, batch = SpriteJudge("small"), _batch(Sprites(world="small", keys=FIELDS), 8)
    whole = judge.features(batch)
    parts = [judge.features({key: value[rows] for key, value in batch.items()}) for rows in (slice(0, 3), slice(3, 8))]
    for name, values in whole.items():
        np.testing.assert_array_equal(values, np.concatenate([part[name] for part in parts]))
    assert judge.world_name == "small" and all(isinstance(value, float) for value in judge.result(whole).values())


def test_wilson_is_the_textbook_interval():
    # the bounds p solve |share - p| = z sqrt(p (1 - p) / n)
    for right, n in ((3, 10), (170, 200), (1, 66)):
        for bound in wilson(right, n):
            np.testing.assert_allclose(abs(right / n - bound), 1.959964 * np.sqrt(bound * (1 - bound) / n), rtol=1e-6)
    np.testing.assert_allclose((wilson(0, 10)[0], wilson(10, 10)[1]), (0, 1), atol=1e-12)


def test_wrong_videos_are_named():
    with pytest.raises(ValueError, match=r"\(32, 32, 3\)"):
        read(np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="NaN"):
        read(np.full((16, 32, 32, 3), np.nan, np.float32))
