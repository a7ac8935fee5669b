"""magvid.metrics.dino: which pictures frames are compared with, and clips of which nothing is said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from magvid.evaluate import Scores, open_metrics
from magvid.metrics.dino import SubjectFidelity
from magvid.models.dino import DINO, prepare
from magvid.types import UserError

SIZES = dict(width=12, depth=1, heads=2, patch=112)
RNG = np.random.default_rng(0)
VIDEO = RNG.integers(0, 256, (3, 2, 10, 14, 3), dtype=np.uint8)
ENTITIES = RNG.integers(0, 256, (3, 4, 15, 21, 3), dtype=np.uint8)
VALID = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], bool)


@pytest.fixture(scope="module")
def metric(tmp_path_factory) -> SubjectFidelity:
    file, net = tmp_path_factory.mktemp("dino") / "dino.npz", DINO(**SIZES)
    params = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    np.savez(file, **{name: x + RNG.normal(0, 0.3, x.shape).astype(np.float32) for name, x in flatten_dict(params, sep="/").items()})
    spec = dict(target="magvid.metrics.dino:SubjectFidelity", net=dict(target="magvid.models.dino:DINO", weights_file=str(file), **SIZES), resamples=50)
    return open_metrics([spec])[0][-1]


def test_every_frame_is_compared_with_every_picture_that_was_told(metric):
    """The third clip was told none, and is left out; pictures where there are none count for nothing."""

    def embedded(images):
        with jax.default_matmul_precision("highest"):
            x = np.asarray(metric.net.apply({"params": metric.params}, prepare(jnp.asarray(images / np.float32(255)))), np.float64)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    batch = dict(video=VIDEO, entities=ENTITIES, entity_valid=VALID)
    found = metric.features(batch)["dino_subject"]
    expected = [(embedded(VIDEO[i]) @ embedded(ENTITIES[i, : i + 1]).T).mean() for i in range(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    other = np.where(VALID[..., None, None, None], ENTITIES, 255 - ENTITIES)
    np.testing.assert_allclose(metric.features(batch | dict(entities=other))["dino_subject"], found, rtol=1e-6)
    scores = Scores([metric])
    for part in (slice(0, 1), slice(1, 3)):
        scores.add({name: x[part] for name, x in (batch | dict(target=VIDEO)).items()})
    numbers = scores.result()
    np.testing.assert_allclose(numbers["dino_subject"], np.mean(expected), rtol=1e-4)
    assert numbers["dino_subject_low"] <= numbers["dino_subject"] <= numbers["dino_subject_high"]


def test_nothing_is_said_without_pictures_nor_of_edits(metric):
    stays = np.zeros((3, 2, 10, 14), bool)
    batch = dict(video=VIDEO, entities=ENTITIES, entity_valid=VALID, stays=stays)
    one = metric.features(batch)["dino_subject"]
    stays[0, 1, 3, 4] = True  # the first clip is an edit
    np.testing.assert_allclose(metric.features(batch)["dino_subject"], one[1:], rtol=1e-6)
    assert metric.features(dict(video=VIDEO)) == {}
    assert metric.features(batch | dict(entity_valid=np.zeros_like(VALID))) == {}
    assert metric.features(batch | dict(stays=np.ones_like(stays))) == {}


def test_a_frame_like_its_picture_is_as_near_as_can_be(metric):
    held = np.repeat(ENTITIES[:, :1], 3, axis=1)
    np.testing.assert_allclose(metric.features(dict(video=held, entities=ENTITIES, entity_valid=VALID & (np.arange(4) < 1)))["dino_subject"], 1, atol=1e-5)


def test_weights_of_another_network_are_named(metric):
    with pytest.raises(UserError, match="DINO needs weights"):
        SubjectFidelity().with_weights({})
    with pytest.raises(UserError, match="the weights given for DINO are not its own"):
        SubjectFidelity().with_weights({"net": metric.params})
