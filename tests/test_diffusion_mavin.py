"""Transition infilling: gaps and their distribution, fillings in closed form, the Gaussian filter mixer against recorded numbers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import GOLDEN, Golden
from helpers_diffusion import golden_input as inp
from magvid.diffusion import mavin
from magvid.diffusion.mavin import Consecutive, First, FrameMixer, FreeInit, ReleasedMixer, Scattered, between
from magvid.diffusion.schedules import EDM, Discrete, Level

KEY = jax.random.key(3)
FIRST = Discrete().level(jnp.asarray(999))


def gaps(*spans: tuple[int, int], t: int = 32) -> np.ndarray:
    return np.stack([between(start, end, t) for start, end in spans])


# Which frames are noised ---------------------------------------------------------------------------------------------


def test_gaps_have_the_released_distribution():
    """P(l) = (11 - |l - 12|) / 121; the start says nothing about the end."""
    draws = np.asarray(Consecutive().draw(KEY, 121 * 400, 32))
    start, end = (np.asarray(mavin.describe(draws)[name]) for name in ("start", "end"))
    lengths = np.bincount(end - start, minlength=33)
    expected = np.array([max(11 - abs(n - 12), 0) * 400 for n in range(33)])
    assert (lengths[expected == 0] == 0).all() and ((~draws).sum(1) == end - start).all()
    seen = expected > 0
    assert (np.square(lengths[seen] - expected[seen]) / expected[seen]).sum() < 45  # chi squared, 20 degrees: 1 in 1000
    assert Consecutive().lengths == (2, 22) and set(start) == set(range(5, 16)) and set(end) == set(range(17, 28))
    pairs = np.histogram2d(start, end, bins=(11, 11))[0]
    assert (np.square(pairs - 400) / 400).sum() < 175  # 120 degrees
    assert (~draws).sum(1).mean() == pytest.approx(12, abs=0.1)


def test_a_draw_for_the_batch_is_one_draw():
    draws = np.asarray(Consecutive(per_batch=True).draw(KEY, 8, 32))
    assert draws.shape == (8, 32) and (draws == draws[0]).all()
    assert len({tuple(row) for row in np.asarray(Consecutive().draw(KEY, 8, 32))}) > 4


def test_gaps_of_one_length():
    draws = np.asarray(Consecutive(start=(10, 10), end=(22, 22)).draw(KEY, 5, 32))
    np.testing.assert_array_equal(draws, gaps(*[(10, 22)] * 5))
    np.testing.assert_array_equal(Consecutive().usual(32), gaps((10, 22))[0])


@pytest.mark.parametrize("fields", [dict(start=(0, 3)), dict(start=(9, 17)), dict(end=(16, 12)), dict(sample=(22, 10))])
def test_ranges_that_leave_no_gap(fields):
    with pytest.raises(ValueError, match="start < end"):
        Consecutive(**fields)


def test_where_a_gap_may_begin():
    """Where training puts gaps of this length, and nowhere else."""
    draws = np.asarray(Consecutive().draw(KEY, 20000, 32))
    told = {k: np.asarray(v) for k, v in mavin.describe(draws).items()}
    for length in range(2, 23):
        assert set(told["start"][told["length"] == length]) == set(Consecutive().starts(length, 32)), length
    for length in (0, 1, 23):
        with pytest.raises(ValueError, match=f"a gap of {length} frames is out of range: this model fills gaps of 2 to 22 of 32"):
            Consecutive().starts(length, 32)
    assert list(Consecutive().starts(18, 24)) == [5]
    with pytest.raises(ValueError, match="a gap of 20 frames is out of range: this model fills gaps of 2 to 18 of 24 frames"):
        Consecutive().starts(20, 24)
    assert list(Scattered().starts(3, 7)) == [1, 2, 3]
    with pytest.raises(ValueError, match="gaps of 1 to 5 of 7 frames"):
        Scattered().starts(6, 7)
    with pytest.raises(ValueError, match="fills no gaps"):
        First().starts(3, 7)
    with pytest.raises(ValueError, match="no frame behind it in a clip of 27"):
        Consecutive().draw(KEY, 2, 27)


def test_scattered_frames():
    draws = np.asarray(Scattered(share=0.4).draw(KEY, 4000, 9))
    assert draws[:, [0, -1]].all() and (~draws).any(1).all()
    noised = (~draws[:, 1:-1]).mean(0)
    np.testing.assert_allclose(noised, 0.4 + 0.6**7 / 7, atol=0.03)
    runs = np.abs(np.diff(draws.astype(int), axis=1)).sum(1)
    assert (runs > 2).mean() > 0.5  # given frames between noised ones
    assert (~np.asarray(Scattered(share=0.001).draw(KEY, 200, 5))).sum(1).max() <= 2
    with pytest.raises(ValueError, match="share=0"):
        Scattered(share=0)


def test_the_first_frames():
    np.testing.assert_array_equal(np.asarray(First(2).draw(KEY, 2, 5)), [[1, 1, 0, 0, 0]] * 2)
    told = mavin.describe(np.asarray(First().draw(KEY, 1, 16)))
    assert {k: int(v[0]) for k, v in told.items()} == dict(start=1, end=16, length=15)
    with pytest.raises(ValueError, match="5 frames are given of a clip of 5"):
        First(5).usual(5)


# Fillings ------------------------------------------------------------------------------------------------------------


def test_nearest_given_frames():
    """Of an odd gap the middle takes the earlier frame; several gaps; gaps at an end."""
    known = np.array([[1, 0, 0, 0, 1, 0, 1], [0, 0, 1, 1, 0, 0, 0]], bool)
    nearest, distance = mavin.nearest_known(known)
    np.testing.assert_array_equal(nearest, [[0, 0, 0, 4, 4, 4, 6], [2, 2, 2, 3, 3, 3, 3]])
    np.testing.assert_array_equal(distance, [[0, 1, 2, 1, 0, 1, 0], [2, 1, 0, 0, 1, 2, 3]])
    clean = np.arange(7.0)[None, :, None, None, None] * np.ones((2, 1, 1, 2, 1), np.float32)
    np.testing.assert_array_equal(mavin.hold(clean, known)[:, :, 0, 0, 0], nearest)
    between = np.asarray(mavin.interpolate(clean, known))[:, :, 0, 0, 0]
    np.testing.assert_allclose(between, [[0, 1, 2, 3, 4, 5, 6], [2, 2, 2, 3, 3, 3, 3]], atol=1e-6)


# The Gaussian filter mixer -------------------------------------------------------------------------------------------


def latents(name: str) -> np.ndarray:
    return np.moveaxis(inp(name, (1, 4, 32, 8, 8)), 1, -1)


def mix(mixer, clean=None, known=None, noise=None, s=FIRST):
    clean = latents("gfm_x0") if clean is None else clean
    noise = latents("gfm_noise") if noise is None else noise
    return np.asarray(mixer(clean, gaps((10, 22)) if known is None else known, noise, s))


@pytest.mark.parametrize(
    "mixer, name",
    [
        (FrameMixer(), "mixed_recommended_frame2d"),
        (ReleasedMixer(), "mixed_official_progressive"),
        (FreeInit(space=0.6, time=0.6), "mixed_freeinit_d0.6"),
    ],
    ids=["frame2d", "official3d", "freeinit3d"],
)
def test_mixers_give_the_recorded_latents(mixer, name):
    """The recorded ones of the whole clip mix the frames as they are: so the gap is not filled before."""
    golden = np.moveaxis(Golden("gfm", GOLDEN.parent / "diffusion")[name], 1, -1)
    clean, noise = latents("gfm_x0"), latents("gfm_noise")
    if isinstance(mixer, FrameMixer):
        found = mix(mixer)[:, 10:22]
    else:
        xt = FIRST.alpha * clean + FIRST.sigma * noise
        found = (noise + np.asarray(mixer.low_pass(xt - noise, gaps((10, 22)))))[:, 10:22]
    np.testing.assert_allclose(found, golden, atol=2e-6)


@pytest.mark.full
def test_masks_and_cutoffs_are_the_recorded_ones(shared):
    golden = Golden("mavin_gfm", shared / "golden" / "diffusion")
    for t, h, w, space, time in ((32, 8, 8, 0.25, 0.25), (32, 8, 8, 0.6, 0.6), (16, 6, 10, 0.4, 0.2), (7, 5, 5, 0.5, 0.5)):
        gain = mavin.gaussian(mavin.radius(t, h, w, stretch=space / time), jnp.asarray(space))
        np.testing.assert_allclose(gain, golden[f"lpf_T{t}_H{h}_W{w}_ds{space:g}_dt{time:g}"], atol=1e-6)
    table = json.loads((shared / "golden" / "diffusion" / "mavin_gfm_cutoff_table.json").read_text())
    for name, row in table.items():
        f0, decay, n = (float(part.split("=")[1]) for part in name.split(","))
        mixer, known = ReleasedMixer(cutoff=f0, decay=decay), gaps((5, 5 + int(n)))[0]
        np.testing.assert_allclose(mixer.cutoffs(int(n)), row["f"], atol=1e-12)
        if row["status"] == "ok":
            mixer.check(known)
        else:
            with pytest.raises(ValueError, match="divides by zero .* it can do up to 17"):
                mixer.check(known)


@pytest.mark.parametrize("make", [lambda: FrameMixer(cutoff=-1), lambda: ReleasedMixer(decay=-0.1), lambda: FreeInit(space=0), lambda: FreeInit(time=0)])
def test_filters_that_there_are_not(make):
    with pytest.raises(ValueError, match="of at least 0|cut-offs above 0"):
        make()
    with pytest.raises(ValueError, match="it can do up to 0; use FrameMixer"):
        ReleasedMixer(cutoff=0.0).check(gaps((10, 22))[0])


@pytest.mark.parametrize("mixer", [FrameMixer(), ReleasedMixer(), FreeInit()], ids=lambda m: type(m).__name__)
def test_given_frames_stay_and_gaps_of_a_batch_are_apart(mixer):
    """Odd and even gaps at different places; h, w, t differ."""
    rng = np.random.default_rng(0)
    clean, noise = rng.normal(size=(2, 3, 13, 6, 5, 2)).astype(np.float32)
    known = gaps((3, 8), (5, 11), (2, 4), t=13)
    both = mix(mixer, clean, known, noise)
    np.testing.assert_array_equal(both[known], clean[known])
    assert np.isfinite(both).all() and not np.allclose(both[~known], noise[~known], atol=1e-3)
    alone = [mix(mixer, clean[i : i + 1], known[i : i + 1], noise[i : i + 1]) for i in range(3)]
    np.testing.assert_allclose(both, np.concatenate(alone), atol=1e-5)


def test_each_frame_keeps_less_the_further_it_is():
    """White noise in every boundary: the share that stays falls from both ends; at cut-off 0 nothing does."""
    rng = np.random.default_rng(1)
    clean, noise = 40 * rng.normal(size=(1, 32, 16, 12, 3)).astype(np.float32), np.zeros((1, 32, 16, 12, 3), np.float32)
    kept = np.square(mix(FrameMixer(cutoff=0.5, decay=0.1), clean, gaps((10, 23)), noise)).mean((0, 2, 3, 4))[10:23]
    assert (np.diff(kept[:6]) < 0).all() and (np.diff(kept[7:]) > 0).all()
    np.testing.assert_array_equal(kept[5:8], 0)
    flat = np.square(mix(FreeInit(space=0.5, time=0.5), clean, gaps((10, 23)), noise)).mean((0, 2, 3, 4))[10:23]
    assert flat.min() > 0


def test_without_decay_and_cutoff_the_whole_boundary_stays():
    """A wide filter lets all through: the noised boundary frame; a filter of 0 nothing: the noise."""
    clean, noise, known = latents("gfm_x0"), latents("gfm_noise"), gaps((10, 22))
    wide = mix(FrameMixer(cutoff=1e4, decay=0.0))
    np.testing.assert_allclose(wide[:, 10:16], FIRST.alpha * clean[:, 9:10] + FIRST.sigma * noise[:, 10:16], atol=1e-4)
    np.testing.assert_allclose(wide[:, 16:22], FIRST.alpha * clean[:, 22:23] + FIRST.sigma * noise[:, 16:22], atol=1e-4)
    np.testing.assert_allclose(mix(FrameMixer(cutoff=0.0))[~known], noise[~known], atol=1e-6)


def test_sigmas_begin_as_wide_as_sampling_does():
    """EDM's x is sqrt(1 + sigma^2) wide; the filter changes what is low in it."""
    levels = EDM(least=0.01, most=50.0).levels(4)
    s = Level(*(a[0] for a in levels))
    x = mix(FrameMixer(cutoff=0.3, level=None), s=s)
    assert x[:, 10:22].std() == pytest.approx(50, rel=0.1)
