"""magvid.metrics.frames: closed forms, scikit-image, and the official numbers."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from magvid.metrics.frames import (
    Frames,
    GapFrames,
    GivenRegion,
    Skill,
    SkillScore,
    best_of,
    gap_frames,
    ms_ssim,
    psnr,
    skill,
    ssim,
)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def test_psnr_of_a_known_error():
    a = np.full((2, 3, 4, 4, 3), 0.5, np.float32)
    np.testing.assert_allclose(psnr(a, a + 0.1), np.full((2, 3), 20.0), rtol=1e-5)
    np.testing.assert_allclose(psnr(a, a), np.full((2, 3), 100.0), rtol=1e-6)
    grey = np.full((1, 2, 2, 3), 100, np.uint8)
    np.testing.assert_allclose(psnr(grey, grey + 51), [-10 * np.log10(0.2**2)], rtol=1e-5)


@pytest.mark.parametrize("contrast", [1.0, 0.1, 0.0])
def test_ssim_equals_scikit_image(contrast):
    a = noise(3, 20, 31, 3) * contrast + 0.3 * (1 - contrast)
    b = np.clip(a + 0.2 * contrast * noise(3, 20, 31, 3, seed=1), 0, 1)
    grey = [x.astype(np.float64) @ np.array([0.2125, 0.7154, 0.0721]) for x in (a, b)]
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    expected = [structural_similarity(x, y, **options) for x, y in zip(*grey, strict=True)]
    np.testing.assert_allclose(ssim(a, b), expected, atol=2e-5)
    np.testing.assert_allclose(ssim(a, a), np.ones(3), atol=1e-5)


def test_ssim_needs_room_for_its_window():
    with pytest.raises(ValueError, match="at least 11 x 11 pixels, got 10 x 12"):
        ssim(noise(1, 10, 12, 3), noise(1, 10, 12, 3))


def numpy_ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Of one channel in [0, 255], float64, every window by itself; zeros before an odd side, as torch's avg_pool2d pads it."""
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window, result = np.outer(taps, taps) / taps.sum() ** 2, 1.0
    blur = lambda x: np.einsum("hwij,ij->hw", np.lib.stride_tricks.sliding_window_view(x, (11, 11)), window)
    for scale, exponent in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        u, v = blur(a), blur(b)
        factor = (2 * (blur(a * b) - u * v) + (0.03 * 255) ** 2) / (
            blur(a * a) - u**2 + blur(b * b) - v**2 + (0.03 * 255) ** 2
        )
        if scale == 4:
            factor = factor * (2 * u * v + (0.01 * 255) ** 2) / (u**2 + v**2 + (0.01 * 255) ** 2)
        result *= max(factor.mean(), 0) ** exponent
        a, b = (np.pad(x, [(n % 2, n % 2) for n in x.shape]) for x in (a, b))
        h, w = (n // 2 * 2 for n in a.shape)
        a, b = (sum(x[i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)) / 4 for x in (a, b))
    return result


def test_ms_ssim_equals_its_definition():
    """On sides that are odd at some scales; the last frame's negative structure counts 0."""
    coarse = np.random.default_rng(0).integers(0, 256, (2, 33, 36, 3))
    a = np.kron(coarse, np.ones((1, 5, 5, 1))).astype(np.uint8)[:, :161, :178]
    b = np.stack([np.clip(a[0] + 200 * (noise(161, 178, 3) - 0.5), 0, 255).astype(np.uint8), 255 - a[1]])
    expected = [np.mean([numpy_ms_ssim(x[..., i].astype(float), y[..., i].astype(float)) for i in range(3)]) for x, y in zip(a, b)]
    assert 0.5 < expected[0] < 0.99 and expected[1] == 0
    np.testing.assert_allclose(ms_ssim(a, b), expected, atol=1e-5)
    np.testing.assert_allclose(ms_ssim(a / np.float32(255), a), [1, 1], atol=1e-5)
    with pytest.raises(ValueError, match="5 scales of MS-SSIM need frames of at least 161 x 161 pixels, got 160 x 178"):
        ms_ssim(a[:, :160], b[:, :160])


@pytest.mark.full
def test_official_numbers(shared):
    golden = np.load(shared / "golden" / "magvit" / "metrics.npz")
    for name, function in (("psnr", psnr), ("ssim", ssim)):
        np.testing.assert_allclose(function(golden["iq_a"], golden["iq_b"]).mean(axis=1), golden[name], rtol=1e-4)


def test_the_metric_averages_frames():
    video, target = noise(2, 3, 12, 12, 3), noise(2, 3, 12, 12, 3, seed=1)
    metric = Frames()
    parts = [metric.features({"video": video[i : i + 1], "target": jnp.asarray(target[i : i + 1])}) for i in range(2)]
    features = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    assert features["psnr"].shape == (2, 3)
    result = metric.result(features)
    means = {"psnr": float(psnr(video, target).mean()), "ssim": float(ssim(video, target).mean())}
    assert result == pytest.approx(means, abs=1e-5)
    bytes_ = {"video": (video * 255).astype(np.uint8), "target": (target * 255).astype(np.uint8)}
    with warnings.catch_warnings():  # jax warns where it is asked for float64
        warnings.simplefilter("error")
        assert metric.result(metric.features(bytes_))["psnr"] == pytest.approx(result["psnr"], abs=0.1)


def gap(*words) -> np.ndarray:
    """"given" of clips of 12 x 12 pixels; a frame is known where its clip's word has a 1."""
    known = np.array([[frame == "1" for frame in word] for word in words])[..., None, None, None]
    return np.broadcast_to(known, (*known.shape[:2], 12, 12, 1))


def test_gap_frames_are_those_of_which_nothing_is_given():
    given = gap("11001", "01110", "11111", "00000").copy()
    given[0, 2, 0, 0] = True  # a corner of a frame
    expected = [[0, 0, 0, 1, 0], [1, 0, 0, 0, 1], [0] * 5, [0] * 5]
    np.testing.assert_array_equal(gap_frames({"video": given, "given": given}), np.array(expected, bool))
    assert gap_frames({"video": given}).shape == (4, 5) and not gap_frames({"video": given}).any()


def test_the_gap_alone_is_measured():
    """Each clip's mean over its gap, then the mean over clips, with an interval; by scikit-image's SSIM."""
    video, target = (np.random.default_rng(i).integers(0, 256, (3, 5, 12, 12, 3), dtype=np.uint8) for i in (0, 1))
    batch = dict(video=video, target=target, given=gap("10001", "11111", "11001"))
    features = GapFrames().features(batch)
    assert set(features) == {"gap_psnr", "gap_ssim"}  # too small for MS-SSIM
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255)
    grey = [x.astype(np.float64) @ np.array([0.2125, 0.7154, 0.0721]) for x in (video, target)]
    frames = [[(0, 1), (0, 2), (0, 3)], [(2, 2), (2, 3)]]
    expected = [np.mean([structural_similarity(grey[0][at], grey[1][at], **options) for at in clip]) for clip in frames]
    np.testing.assert_allclose(features["gap_ssim"], expected, atol=2e-5)
    errors = np.square(video / 255 - target / 255).mean(axis=(2, 3, 4))
    np.testing.assert_allclose(features["gap_psnr"], [np.mean([-10 * np.log10(errors[at]) for at in c]) for c in frames], rtol=1e-5)
    numbers = GapFrames().result(features)
    assert numbers["gap_ssim"] == pytest.approx(np.mean(expected), abs=2e-5)
    assert [numbers["gap_ssim_low"], numbers["gap_ssim_high"]] == pytest.approx(sorted(expected), abs=2e-5)
    assert GapFrames().features({k: batch[k] for k in ("video", "target")}) == {}


def test_the_gap_of_large_frames_has_ms_ssim():
    video = np.random.default_rng(0).integers(0, 256, (1, 3, 161, 161, 3), dtype=np.uint8)
    given = np.broadcast_to(np.array([True, False, True])[:, None, None, None], (1, 3, 161, 161, 1))
    numbers = GapFrames(resamples=5).result(GapFrames().features(dict(video=video, target=video, given=given)))
    assert numbers["gap_ms_ssim"] == pytest.approx(1) and numbers["gap_psnr"] == 100


def clips(*offsets, n=6):
    target = noise(n, 2, 4, 4, 3) * 0.5
    return target, [target + np.float32(offset) for offset in offsets]


def test_skill_of_known_errors():
    target, (baseline, generated, reconstruction) = clips(0.4, 0.2, 0.1)
    exact = (0.16 - 0.04) / (0.16 - 0.01)
    assert skill(baseline, generated, reconstruction, target) == pytest.approx((exact, exact, exact), rel=1e-5)
    assert skill(baseline, baseline, reconstruction, target).value == 0
    assert skill(baseline, reconstruction, reconstruction, target).value == 1
    worse = skill(generated, baseline, reconstruction, target).value
    assert worse == pytest.approx((0.04 - 0.16) / (0.04 - 0.01), rel=1e-5)


def test_skill_pools_errors_over_clips():
    target = np.zeros((2, 1, 1, 1, 1))
    baseline = np.array([1.0, 3.0]).reshape(target.shape)
    generated = np.array([1.0, 1.0]).reshape(target.shape)
    assert skill(baseline, generated, target, target).value == pytest.approx((10 - 2) / 10)  # not the mean of 0 and 8/9


def test_skill_within_a_mask():
    target, (baseline, generated, reconstruction) = clips(0.4, 0.4, 0.1)
    generated[:, :, :2] = target[:, :, :2] + 0.2
    mask = np.zeros((6, 2, 4, 4, 1), bool)
    mask[:, :, :2] = True
    assert skill(baseline, generated, reconstruction, target, mask).value == pytest.approx(0.8, rel=1e-5)
    assert skill(baseline, generated, reconstruction, target, ~mask).value == pytest.approx(0, abs=1e-6)


def test_skill_of_bytes_equals_skill_of_floats():
    videos = [np.random.default_rng(k).integers(0, 256, (3, 2, 4, 4, 3), dtype=np.uint8) for k in range(4)]
    videos[2] = videos[3] // 2 + 60
    floats = [video / 255 for video in videos]
    assert skill(*videos) == pytest.approx(skill(*floats))


def test_the_interval_covers_and_repeats():
    rng = np.random.default_rng(0)
    covered = 0
    for k in range(60):
        target = np.zeros((40, 1, 1, 1, 1))
        generated = np.sqrt(rng.exponential(0.5, target.shape))  # expected squared error 0.5: true skill 0.5
        found = skill(np.ones_like(target), generated, target, target, resamples=400, seed=k)
        assert found.low < found.value < found.high
        covered += found.low <= 0.5 <= found.high
    assert 50 <= covered <= 60
    assert found == skill(np.ones_like(target), generated, target, target, resamples=400, seed=59)


def test_no_room_for_skill_is_nan():
    target, (baseline, generated) = clips(0.1, 0.2)
    assert all(np.isnan(skill(baseline, generated, generated, target)))
    assert isinstance(skill(baseline, generated, generated, target), Skill)


def test_shapes_are_checked():
    target, (other,) = clips(0.1)
    with pytest.raises(ValueError, match="must have the target's shape"):
        skill(other, other[:, :1], other, target)
    with pytest.raises(ValueError, match=r"a mask \(b t h w 1\)"):
        skill(other, other, other, target, np.ones(target.shape, bool))


def test_best_of_takes_the_nearest_sample():
    target, offsets = clips(0.3, 0.1, 0.2)
    offsets[2][0] = target[0]
    best = best_of(np.stack(offsets, axis=1), target)
    np.testing.assert_array_equal(best[0], target[0])
    np.testing.assert_array_equal(best[1:], offsets[1][1:])


def test_the_skill_metric_pools_batches_and_takes_the_best_sample():
    target, (baseline, generated, worse, reconstruction) = clips(0.4, 0.2, 0.3, 0.1)
    samples = np.stack([generated, worse], axis=1)
    batch = dict(video=worse, condition=baseline, reconstruction=reconstruction, target=target, samples=samples)
    halves = [{k: v[part] for k, v in batch.items()} for part in (slice(0, 2), slice(2, None))]
    features = [SkillScore().features(half) for half in halves]
    numbers = SkillScore().result({k: np.concatenate([f[k] for f in features]) for k in features[0]})
    first, best = skill(baseline, worse, reconstruction, target), skill(baseline, generated, reconstruction, target)
    assert [numbers[f"skill{end}"] for end in ("", "_low", "_high")] == pytest.approx(list(first))
    assert [numbers[f"best_skill{end}"] for end in ("", "_low", "_high")] == pytest.approx(list(best))
    assert "best" not in SkillScore().features({**batch, "samples": samples[:, :1]})
    assert SkillScore().features(dict(video=worse, target=target)) == {} and SkillScore().result({}) == {}
    nothing_given = np.zeros((*target.shape[:-1], 1), bool)
    assert SkillScore().features({**batch, "given": nothing_given}) == {}


def test_the_given_region_alone_is_compared():
    target, (generated, reconstruction) = clips(0.2, 0.1)
    given = np.zeros((*target.shape[:-1], 1), bool)
    given[:, :, :2] = True
    generated[:, :, 2:] = 0
    batch = dict(video=generated, reconstruction=reconstruction, target=target, given=given)
    numbers = GivenRegion().result(GivenRegion().features(batch))
    assert numbers["given_psnr"] == pytest.approx(-20 * np.log10(0.2), rel=1e-5)
    assert numbers["given_gap"] == pytest.approx(20 * np.log10(2), rel=1e-5)
    assert GivenRegion().result(GivenRegion().features({**batch, "given": ~given & given})) == {}
