"""magvid.metrics.lpips: whole clips, gaps, batches, and weights of another network."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from magvid.evaluate import Scores, open_metrics
from magvid.metrics.lpips import PerceptualDistance
from magvid.models.lpips import LPIPS
from magvid.types import UserError

RNG = np.random.default_rng(0)
VIDEO, TARGET = RNG.integers(0, 256, (2, 3, 4, 34, 45, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """The metric as a config names it, and its parameters."""
    file = tmp_path_factory.mktemp("lpips") / "alex.npz"
    params = jax.jit(LPIPS("alex").init)(jax.random.key(0), *np.zeros((2, 1, 1, 32, 32, 3), np.float32))["params"]
    np.savez(file, **flatten_dict(params, sep="/"))
    spec = dict(target="magvid.metrics.lpips:PerceptualDistance", net=dict(target="magvid.models.lpips:LPIPS", backbone="alex", weights_file=str(file)), resamples=50)
    metrics, used = open_metrics([spec])
    return metrics[-1], used[-1], params


def test_means_over_clips_and_over_gaps(opened):
    metric, used, params = opened
    given = np.ones((3, 4, 1, 1, 1), bool)
    given[0, 1:3] = given[1, 3] = False  # a gap of two frames, one of one frame; the third clip has none
    scores = Scores([metric])
    for part in (slice(0, 2), slice(2, 3)):
        scores.add(dict(video=VIDEO[part], target=TARGET[part], given=given[part]))
    found = scores.result()
    distances = np.asarray(jax.jit(LPIPS("alex").apply)({"params": params}, VIDEO / np.float32(255), TARGET / np.float32(255)), np.float64)
    np.testing.assert_allclose(found["lpips"], distances.mean(), rtol=1e-4)
    np.testing.assert_allclose(found["gap_lpips"], np.mean([distances[0, 1:3].mean(), distances[1, 3]]), rtol=1e-4)
    assert found["lpips_low"] <= found["lpips"] <= found["lpips_high"]
    assert used["net"]["backbone"] == "alex" and used["weights"]  # evaluation.json says which


def test_without_gaps_there_is_one_number_and_floats_are_read_as_bytes_are(opened):
    found = opened[0].features(dict(video=VIDEO, target=TARGET))
    assert set(found) == {"lpips"} and len(found["lpips"]) == 3
    np.testing.assert_allclose(opened[0].features(dict(video=VIDEO / np.float32(255), target=TARGET))["lpips"], found["lpips"], rtol=1e-5)


def test_weights_of_another_network_are_named(opened):
    with pytest.raises(UserError, match="LPIPS needs weights"):
        PerceptualDistance().with_weights({})
    with pytest.raises(UserError, match="the weights given for LPIPS by squeeze are not its own: .*tools/convert_features.py"):
        PerceptualDistance(LPIPS("squeeze")).with_weights({"net": opened[2]})
    with pytest.raises(ValueError, match="frames of 16x45 are too small for AlexNet"):
        opened[0].features(dict(video=VIDEO[:, :, :16], target=TARGET[:, :, :16]))
