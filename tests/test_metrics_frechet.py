"""magvid.metrics.frechet: the official numbers, closed forms, other formulas of the same distance, gaps, folds and kept features."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import Golden, relative_error
from helpers_diffusion import golden_input
from magvid import runs
from magvid.build import build
from magvid.evaluate import Scores, described, open_metrics
from magvid.metrics import frechet
from magvid.metrics.frechet import VideoDistance, frechet_distance, kernel_distance, short_side, stretched
from magvid.models.i3d import Features
from magvid.models.resize import resize_bilinear
from magvid.types import UserError
from tools import reference_stats

GOLDEN = Golden("metrics")
RNG = np.random.default_rng(0)


# Distances -----------------------------------------------------------------------------------------------------------


def test_the_official_distance_and_its_folds():
    assert abs(frechet_distance(GOLDEN["fd_a"], GOLDEN["fd_b"]) / GOLDEN["fd"] - 1) < 1e-6
    found = VideoDistance(folds=4).result({"fvd": GOLDEN["fd_a"], "fvd_target": GOLDEN["fd_c"]})
    np.testing.assert_allclose([found["fvd"], found["fvd_std"]], GOLDEN["fd_4fold_mean_std"], rtol=1e-5)


def test_videogpts_distances():
    """The numbers of golden/diffusion, recorded from float64 code of other formulas."""
    a, b = golden_input("fvd_a", (64, 16)), np.float32(1.3) * golden_input("fvd_b", (48, 16)) + np.float32(0.2)
    assert abs(frechet_distance(a, b) / 4.894511949582039 - 1) < 1e-6 and abs(kernel_distance(a, b) / 0.03829420024245467 - 1) < 1e-5


@pytest.mark.parametrize("n, m, d", [(50, 60, 12), (7, 60, 12), (60, 7, 12), (5, 4, 12)])
def test_the_distance_equals_that_by_roots_of_matrices(n, m, d):
    """With more rows than columns and fewer, where covariances have no inverse."""
    mix = RNG.normal(size=(d, d))
    a, b = RNG.normal(size=(n, d)) @ mix + 1, 2 * RNG.normal(size=(m, d))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    values, vectors = np.linalg.eigh(cov_a)  # scipy's sqrtm loses digits where a matrix has no inverse
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    values = np.linalg.eigvalsh(root @ cov_b @ root)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b) - 2 * np.sqrt(np.maximum(values, 0)).sum()
    assert abs(frechet_distance(a, b) / expected - 1) < 1e-6 and abs(frechet_distance(b, a) / expected - 1) < 1e-6


def test_known_distances():
    """The same clips: 0. Moved by s: s^2. Spread by f: (f - 1)^2 times the variance. Float32 features far from 0 lose nothing."""
    a = RNG.normal(size=(40, 5))
    assert abs(frechet_distance(a, a)) < 1e-9
    shift = np.array([3.0, 0, 0, 4, 0])
    np.testing.assert_allclose(frechet_distance(a, a[::-1] + shift), 25)
    np.testing.assert_allclose(frechet_distance(a, 3 * (a - a.mean(0)) + a.mean(0)), 4 * a.var(axis=0, ddof=1).sum())
    far = (a + 1000).astype(np.float32)
    np.testing.assert_allclose(frechet_distance(far, far.astype(np.float64) + shift), 25, rtol=1e-9)
    assert np.isnan(frechet_distance(a[:1], a)) and np.isnan(kernel_distance(a, a[:1]))


def test_the_kernels_distance_equals_that_by_pairs(monkeypatch):
    """The unbiased one: no clip is paired with itself. In parts as at once."""
    a, b = RNG.normal(size=(6, 3)), RNG.normal(size=(5, 3)) + 0.5
    k = lambda x, y: (x @ y / 3 + 1) ** 3
    mean = lambda xs, ys, same: np.mean([k(x, y) for i, x in enumerate(xs) for j, y in enumerate(ys) if not (same and i == j)])
    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    np.testing.assert_allclose(kernel_distance(a, b), expected, rtol=1e-9)
    monkeypatch.setattr(frechet, "ROWS", 2)
    np.testing.assert_allclose(kernel_distance(a, b), expected, rtol=1e-9)


# Preparation ---------------------------------------------------------------------------------------------------------


def test_resizing_as_recorded():
    for size in ((17, 20), (5, 7), (9, 13), (18, 26)):
        assert relative_error(resize_bilinear(GOLDEN["resize_in"], size, "first"), GOLDEN["resize_tf1_{}x{}".format(*size)]) < 1e-6
    assert relative_error(resize_bilinear(GOLDEN["resize_in"], (17, 20), "all"), GOLDEN["resize_aligned_2x17x20"]) < 1e-6
    expected = jax.image.resize(GOLDEN["resize_in"], (2, 17, 20, 3), "bilinear", antialias=False)
    assert relative_error(resize_bilinear(GOLDEN["resize_in"], (17, 20)), expected) < 1e-6


@pytest.mark.full
@pytest.mark.parametrize("h, w", [(48, 64), (80, 50), (33, 33), (300, 401)])
def test_the_shorter_side_as_videogpt_brings_it_to_224(h, w):
    import math

    import torch

    video = RNG.random((2, 3, h, w, 3), np.float32)
    scale = 224 / min(h, w)
    size = (224, math.ceil(w * scale)) if h < w else (math.ceil(h * scale), 224)
    frames = torch.from_numpy(video.reshape(-1, h, w, 3).transpose(0, 3, 1, 2).copy())
    frames = torch.nn.functional.interpolate(frames, size=size, mode="bilinear", align_corners=False).numpy().transpose(0, 2, 3, 1)
    top, left = (size[0] - 224) // 2, (size[1] - 224) // 2
    expected = frames[:, top : top + 224, left : left + 224].reshape(2, 3, 224, 224, 3)
    assert relative_error(short_side(video), expected) < 5e-5  # of noise, at places that PyTorch rounds


def test_the_middle_of_wide_and_tall_frames():
    """A ramp along the longer side: what is cut off is the same at both ends; stretched, nothing is."""
    ramp = np.broadcast_to(np.linspace(0, 1, 64, dtype=np.float32)[None, :, None], (1, 32, 64, 3))
    for video in (ramp, ramp.swapaxes(1, 2)):
        middle = np.asarray(short_side(video))
        assert middle.shape == (1, 224, 224, 3) and abs(middle.mean() - 0.5) < 1e-3 and 0.2 < middle.min() < 0.27 and 0.73 < middle.max() < 0.8
        whole = np.asarray(stretched(video))
        assert whole.shape == (1, 224, 224, 3) and whole.min() == 0 and whole.max() == 1


# The metric ----------------------------------------------------------------------------------------------------------


class Tiny(nn.Module):
    """In I3D's place: says how bright and how uneven each colour of a clip is, turned by a matrix."""

    @nn.compact
    def __call__(self, video) -> Features:
        assert video.shape[2:] == (224, 224, 3)
        seen = jnp.concatenate([video.mean(axis=(1, 2, 3)), video.std(axis=(1, 2, 3))], axis=-1)
        return Features(seen, nn.Dense(6, name="logits")(seen))


NET = dict(target="test_metrics_frechet:Tiny")


@pytest.fixture
def weights(tmp_path) -> str:
    flat = {"logits/kernel": RNG.normal(size=(6, 6)).astype(np.float32), "logits/bias": np.ones(6, np.float32)}
    np.savez(tmp_path / "net.npz", **flat)
    return str(tmp_path / "net.npz")


def metric_of(weights, **fields):
    spec = dict(target="magvid.metrics.frechet:VideoDistance", net=NET | dict(weights_file=weights), **fields)
    return open_metrics([spec])[0][-1]


def clips(n, t=9, h=20, w=28, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 256, (n, t, h, w, 3)) * rng.uniform(0.2, 1, (n, 1, 1, 1, 3))).astype(np.uint8)


def test_numbers_of_all_clips_at_once(weights):
    """In batches as at once; uint8 as its floats; 0 for the clips themselves, the more the more they are changed."""
    metric, real = metric_of(weights), clips(10)
    scores = Scores([metric])
    for part in (slice(0, 4), slice(4, 10)):
        scores.add(dict(video=255 - real[part], target=real[part]))
    found = scores.result()
    assert set(found) == {"fvd", "kvd"} and found["fvd"] > 0.1
    once = metric.result(metric.features(dict(video=(255 - real) / np.float32(255), target=real)))
    np.testing.assert_allclose([found["fvd"], found["kvd"]], [once["fvd"], once["kvd"]], rtol=1e-4)
    assert abs(metric.result(metric.features(dict(video=real, target=real)))["fvd"]) < 1e-6
    assert Scores([metric]).result() == {} and described(metric)["prepare"] == "magvid.metrics.frechet:short_side"


def test_gaps_are_measured_apart(weights):
    """Frames that are given do not count; gaps that are too short for I3D are left out, of other lengths are measured together, in batches too."""
    metric, real = metric_of(weights), clips(6, t=14)
    made, given = real.copy(), np.ones((6, 14, 20, 28, 1), bool)
    for i, (start, stop) in enumerate([(2, 11), (4, 13), (1, 11), (3, 13), (5, 8), (2, 11)]):
        given[i, start:stop] = False
        made[i, start:stop] = 255 - made[i, start:stop]
    features = metric.features(dict(video=made, target=real, given=given))
    assert len(features["fvd_gap"]) == len(features["fvd_gap_target"]) == 5 and len(features["fvd"]) == 6
    alone = metric.logits(255 - real[:1, 2:11])
    np.testing.assert_allclose(features["fvd_gap"][0], alone[0], rtol=1e-4, atol=1e-4)
    found = metric.result(features)
    assert set(found) == {"fvd", "kvd", "fvd_gap", "kvd_gap"} and found["fvd_gap"] > found["fvd"]
    for order in ([4, 0, 1, 2, 3, 5], [0, 4, 1, 2, 3, 5]):  # a batch without a gap that is long enough, first or not
        scores = Scores([metric])
        for i in order:
            scores.add(dict(video=made[[i]], target=real[[i]], given=given[[i]]))
        np.testing.assert_allclose(scores.result()["fvd_gap"], found["fvd_gap"], rtol=1e-3)
    twice = np.ones((1, 14, 20, 28, 1), bool)
    twice[0, :5] = twice[0, 9:] = False
    assert "fvd_gap" not in metric.features(dict(video=made[:1], target=real[:1], given=twice))  # two gaps of five are none of ten


def test_too_few_frames_or_clips(weights):
    metric = metric_of(weights)
    with pytest.raises(UserError, match="at least 9 frames, and these have 8"):
        metric.features(dict(video=clips(2, t=8), target=clips(2, t=8)))
    scores = Scores([metric])
    scores.add(dict(video=clips(1), target=clips(1)))
    assert scores.result() == {"fvd": None, "kvd": None}
    with pytest.raises(UserError, match="folds=0"):
        VideoDistance(folds=0)
    with pytest.raises(UserError, match="needs the weights of I3D"):
        VideoDistance().with_weights({})


# what any config has beside its data and metrics
MINIMAL = dict(seed=0, steps=1, batch=1, objective=dict(target="a:B"), optim={})


def tool_config(weights, split="validation", **fields) -> dict:
    source = dict(target="magvid.data.sprites:Sprites", world="small", split=split, frames=9, height=20, width=28, keys=("video", "label"))
    spec = dict(target="magvid.metrics.frechet:VideoDistance", net=NET | dict(weights_file=weights), **fields)
    return dict(metrics=[spec], data=dict(train=dict(source=dict(source, split="train"), transforms=[]), eval=dict(source=source, transforms=[])))


def test_kept_features_stand_for_the_targets(weights, tmp_path):
    """Of so many clips drawn at random, as the metric itself makes them; their hash stands among the settings."""
    factory = dict(factory="magvid.metrics.frechet:short_side")  # as configs have it
    config = tool_config(weights, prepare=factory)
    config["data"]["train"]["transforms"] = [dict(target="magvid.data.pipeline:Augment", flip=True)]  # real clips are not mirrored
    arrays = reference_stats.kept(config, "train", 7, 3, 4, say=lambda text: None)
    source = build(tool_config(weights)["data"]["train"]["source"])
    chosen = np.sort(np.random.default_rng(3).permutation(len(source))[:7])
    expected = metric_of(weights).logits(np.stack([source[int(i)]["video"] for i in chosen]))
    np.testing.assert_allclose(arrays["features"], expected, rtol=1e-4, atol=1e-5)
    about = json.loads(str(arrays["about"]))
    assert about["split"] == "train" and about["clips"] == 7 and about["seed"] == 3 and about["source"]["world"] == "small"
    np.savez(tmp_path / "real.npz", **arrays)
    real = dict(target="magvid.metrics.frechet:Real", weights_file=str(tmp_path / "real.npz"))
    spec = dict(target="magvid.metrics.frechet:VideoDistance", net=NET | dict(weights_file=weights), real=real)
    metrics, used = open_metrics([spec])
    assert set(used[-1]["weights"]) == {"net", "real"}
    made = clips(5)
    found = metrics[-1].result(metrics[-1].features(dict(video=made, target=made)))
    np.testing.assert_allclose(found["fvd"], frechet_distance(metrics[-1].logits(made), arrays["features"]), rtol=1e-6)
    halves = dataclasses.replace(metrics[-1], folds=2)  # each part is compared with all that was kept
    parts = [frechet_distance(part, arrays["features"]) for part in np.array_split(metrics[-1].logits(made), 2)]
    np.testing.assert_allclose(halves.result(halves.features(dict(video=made, target=made)))["fvd"], np.mean(parts), rtol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(clip="16x20x28"), "of clip 16x20x28, and these of clip 9x20x28"),
        (dict(prepare="stretched"), "of prepare stretched, and these of prepare short_side"),
        (dict(net="Tiny 000000000000"), "of net Tiny 000000000000, and these of net Tiny [0-9a-f]{12}"),
    ],
)
def test_kept_features_of_another_kind_are_refused(weights, tmp_path, change, message):
    label = metric_of(weights).label((9, 20, 28))
    np.savez(tmp_path / "real.npz", features=np.zeros((4, 6), np.float32), **label | change)
    metric = metric_of(weights, real=dict(target="magvid.metrics.frechet:Real", weights_file=str(tmp_path / "real.npz")))
    with pytest.raises(UserError, match=message + ".*tools/reference_stats.py"):
        metric.features(dict(video=clips(2), target=clips(2)))
    other = dataclasses.replace(metric, prepare=functools.partial(short_side, size=3))
    assert other.label((9, 20, 28))["prepare"] == "short_side size=3"


@pytest.mark.parametrize("change", [dict(features=None), dict(clip=None), dict(features=np.zeros((1, 6))), dict(features=np.full((4, 6), np.nan))])
def test_what_is_no_file_of_features_is_refused(weights, tmp_path, change):
    arrays = dict(features=np.zeros((4, 6), np.float32), clip="a", prepare="b", net="c") | change
    np.savez(tmp_path / "real.npz", **{name: x for name, x in arrays.items() if x is not None})
    with pytest.raises(UserError, match="the file of features of real clips .* make it with tools/reference_stats.py"):
        metric_of(weights, real=dict(target="magvid.metrics.frechet:Real", weights_file=str(tmp_path / "real.npz")))


def test_weights_of_another_network_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", **{"logits/kernel": np.zeros((5, 6), np.float32), "logits/bias": np.zeros(6, np.float32)})
    with pytest.raises(UserError, match=r"the weights given for I3D are not its own: logits/kernel is \(5, 6\) and should be \(6, 6\), 1 of 2 differ"):
        metric_of(str(tmp_path / "other.npz"))


def test_a_missing_file_of_weights_is_named(tmp_path):
    spec = dict(target="magvid.metrics.frechet:VideoDistance", net=NET | dict(weights_file=str(tmp_path / "i3d.npz")))
    with pytest.raises(UserError, match=r"metrics\[0\].net.weights_file: there is no file .*convert_features.py.* leave out i3d"):
        open_metrics([spec])
    real = dict(target="magvid.metrics.frechet:Real", weights_file=str(tmp_path / "real.npz"))
    with pytest.raises(UserError, match=r"metrics\[0\].real.weights_file: there is no file .*reference_stats.py"):
        open_metrics([dict(target="magvid.metrics.frechet:VideoDistance", real=real)])
    resolved, groups, _ = runs.resolve_spec(dict(target="a:B"), "metrics[0]")
    assert resolved == dict(target="a:B") and not groups


def test_the_tool_names_what_is_wrong(weights, tmp_path, capsys):
    with pytest.raises(UserError, match="measures no FVD: give it the argument i3d=FILE"):
        reference_stats.kept(tool_config(weights) | dict(metrics=[]), "train", 7, 0, 4)
    with pytest.raises(UserError, match="has no data.pictures: it has train, eval"):
        reference_stats.kept(tool_config(weights), "pictures", 7, 0, 4)
    for argv, message in (
        (["--config=configs/vq3d_ucf101.py", "--out=a.txt"], "should end in .npz"),
        (["--config=configs/vq3d_ucf101.py", "--out=a.npz", "--split=test"], "--split=test is none of train, eval"),
        (["--config=configs/vq3d_ucf101.py", f"--out={tmp_path}/a.npz"], "measures no FVD"),
    ):
        with pytest.raises(UserError, match=message):
            reference_stats.main(argv)
    assert not list(tmp_path.glob("a.npz"))


def test_the_tool_by_its_command(weights, tmp_path, capsys):
    """Fields of the config may be overridden, and the file says so."""
    (tmp_path / "real.py").write_text(f"from ml_collections import ConfigDict\n\n\ndef get_config(arg=None):\n    return ConfigDict({MINIMAL | tool_config(weights)!r})\n")
    argv = [f"--config={tmp_path}/real.py", "--clips=3", "--split=eval", f"--out={tmp_path}/new/a.npz", "--config.data.eval.source.height=24"]
    reference_stats.main(argv)
    assert "features of 3 clips of 9x24x28, Tiny" in capsys.readouterr().out
    with np.load(tmp_path / "new/a.npz") as file:
        assert file["features"].shape == (3, 6) and str(file["clip"]) == "9x24x28" and json.loads(str(file["about"]))["source"]["height"] == 24
