"""magvid.metrics.inception_score: the official numbers, closed forms, and the metric."""

import flax.linen as nn
import numpy as np
import pytest

from helpers import Golden
from magvid.evaluate import Scores, open_metrics
from magvid.metrics.inception_score import InceptionScore, inception_score
from magvid.types import UserError

GOLDEN = Golden("metrics")
NET = dict(target="test_metrics_inception_score:Tiny")


class Tiny(nn.Module):
    """In C3D's place: by which colour is brightest."""

    @nn.compact
    def __call__(self, video):
        assert video.shape[1:] == (16, 112, 112, 3) and float(video.shape[0]) == 1
        return self.param("scale", nn.initializers.ones, ()) * video.mean(axis=(1, 2, 3))


def metric_of(tmp_path, scale=1.0, **fields) -> InceptionScore:
    np.savez(tmp_path / "net.npz", scale=np.float32(scale))
    spec = dict(target="magvid.metrics.inception_score:InceptionScore", net=NET | dict(weights_file=str(tmp_path / "net.npz")), **fields)
    return open_metrics([spec])[0][-1]


def test_the_official_score_and_its_folds():
    found = InceptionScore(folds=2).result({"inception_logits": GOLDEN["is_logits"]})
    np.testing.assert_allclose([found["inception_score"], found["inception_score_std"]], GOLDEN["is_2fold_mean_std"], rtol=1e-5)
    np.testing.assert_allclose(InceptionScore().result({"inception_logits": GOLDEN["is_logits"]})["inception_score"], GOLDEN["is_1fold"], rtol=1e-6)


def test_known_scores():
    """Unsure of every clip, or sure of one class: 1. Sure of k classes, as often each: k."""
    np.testing.assert_allclose([inception_score(np.zeros((8, 5))), inception_score(np.eye(5)[[2] * 7] * 1e4)], 1, rtol=1e-12)
    np.testing.assert_allclose(inception_score(np.eye(5)[[0, 1, 2] * 4] * 1e4), 3)


def test_the_metric_reads_what_was_made(tmp_path):
    """Of three colours, a third of the clips each, a net that is sure says 3; of any size, in batches; the targets do not matter."""
    video = np.zeros((9, 16, 12, 20, 3), np.uint8)
    for i in range(9):
        video[i, ..., i % 3] = 255
    scores = Scores([metric_of(tmp_path, scale=1e3)])
    for part in (slice(0, 4), slice(4, 9)):
        scores.add(dict(video=video[part], target=0 * video[part]))
    np.testing.assert_allclose(scores.result()["inception_score"], 3, rtol=1e-5)
    unsure = metric_of(tmp_path, scale=0.0)
    assert unsure.result(unsure.features(dict(video=video))) == {"inception_score": pytest.approx(1, rel=1e-6)}


def test_what_it_cannot_read_is_said(tmp_path):
    with pytest.raises(UserError, match="clips of 16 frames, and these have 12"):
        metric_of(tmp_path).features(dict(video=np.zeros((2, 12, 16, 16, 3), np.uint8)))
    assert np.isnan(InceptionScore(folds=3).result({"inception_logits": np.zeros((4, 5))})["inception_score"])
    with pytest.raises(UserError, match="needs the weights of C3D"):
        InceptionScore().with_weights({})
    with pytest.raises(UserError, match="folds=0"):
        InceptionScore(folds=0)
