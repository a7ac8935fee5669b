"""The diffusion objective where frames are given: what is noised and learned, what is told of the gap, where sampling begins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_diffusion as tiny
import tiny_pipeline
from test_objectives_denoise import SEEN, Seeing, loss_of

from magvid.diffusion import mavin
from magvid.diffusion.mavin import Consecutive, First, FrameMixer, ReleasedMixer, Scattered
from magvid.diffusion.predictions import X0
from magvid.diffusion.samplers import DPMSolverPP2M
from magvid.diffusion.schedules import Discrete, linspace
from magvid.models.conditioners import BoundaryTokens, Scalars, TextTokens
from magvid.objectives.denoise import Denoise, Sampling
from magvid.sample import Options, sample_run
from magvid.sharding import global_batch, make_mesh
from magvid.types import UserError
from magvid.video import read_video, write_video

KEY = jax.random.key(0)
GAPS = Consecutive(start=(2, 4), end=(5, 7), sample=(3, 6))
Z = np.random.default_rng(5).normal(size=(6, 9, 2, 4, 2)).astype(np.float32)
VIDEO = np.random.default_rng(6).integers(0, 256, (6, 9, 4, 6, 3)).astype(np.uint8)
TEXT = np.random.default_rng(7).integers(1, 9, (6, 5)).astype(np.int32)
TOLD = (TextTokens(tiny.Text(), null=(9, 0, 0, 0, 0)), BoundaryTokens(tiny.Vision(), tiny.prepare), Scalars({"length": 3.0}))


def seeing(**changes) -> Denoise:
    SEEN.clear()
    times = lambda schedule, key, shape: schedule.at(jnp.linspace(0.1, 0.9, 6))
    return Denoise(**{**dict(network=Seeing(), prediction=X0(), times=times, noising=GAPS), **changes})


@pytest.mark.parametrize("noising", [GAPS, Scattered(), First(2)], ids=lambda n: type(n).__name__)
def test_only_the_gap_is_noised_and_learned(noising):
    objective = seeing(noising=noising)
    loss = loss_of(objective, {"latents": Z})[0]["network"]
    known = np.asarray(noising.draw(jax.random.fold_in(KEY, 6), 6, 9))
    x = np.asarray(SEEN[-1][0])
    np.testing.assert_array_equal(x[known], Z[known])
    assert not np.any(x[~known] == Z[~known])
    per_frame = np.square(Z).mean((2, 3, 4))  # of a network that says 0
    expected = [per_frame[i][~known[i]].mean() for i in range(6)]
    assert loss == pytest.approx(np.mean(expected), rel=1e-5)


def test_gaps_of_the_batch_win():
    known = np.asarray(mavin.between(np.arange(2, 8), np.arange(3, 9), 9))
    loss_of(seeing(), {"latents": Z, "known": known})
    np.testing.assert_array_equal(np.asarray(SEEN[-1][0])[known], Z[known])


def test_the_network_is_told_of_the_gap():
    """Its length, and hidden states of the frames before and after it, of no others."""
    objective = seeing(conditioners=TOLD)
    params = tiny.fill(objective, {"video": VIDEO[..., :3], "text_ids": TEXT, "latents": Z})
    batch = {"latents": Z, "video": VIDEO, "text_ids": TEXT}

    def told(video):
        loss_of(objective, {**batch, "video": video}, params, train=False)
        return SEEN[-1][2]

    gap = mavin.describe(np.asarray(GAPS.draw(jax.random.fold_in(KEY, 6), 6, 9)))
    condition = told(VIDEO)
    np.testing.assert_array_equal(condition.scalars["length"], gap["length"])
    assert condition.tokens["image"].shape == (6, 1, 8, 4)  # the 4 rows of both frames
    others = VIDEO.copy()
    for i in range(6):
        others[i, [t for t in range(9) if t not in (gap["start"][i] - 1, gap["end"][i])]] = 0
    np.testing.assert_array_equal(told(others).tokens["image"], condition.tokens["image"])
    for place, rows in ((gap["start"] - 1, slice(0, 4)), (gap["end"], slice(4, 8))):
        changed = VIDEO.copy()
        changed[np.arange(6), np.asarray(place)] //= 2
        same = np.isclose(told(changed).tokens["image"], condition.tokens["image"]).all((1, 3))
        assert not same[:, rows].any() and same.sum() == 6 * 4


def test_text_and_boundary_frames_are_hidden_together():
    objective = seeing(conditioners=TOLD, drop=((("text", "image"), 0.5),))
    batch = {"latents": Z, "video": VIDEO, "text_ids": TEXT}
    params = tiny.fill(objective, batch)
    loss_of(objective, batch, params)
    image, text = (np.asarray(SEEN[-1][2].tokens[n]) for n in ("image", "text"))
    hidden = (image == 0).all((1, 2, 3))
    assert 0 < hidden.sum() < 6
    assert len(np.unique(text[hidden], axis=0)) == 1 and len(np.unique(text[~hidden], axis=0)) == (~hidden).sum()


@pytest.mark.parametrize(
    "mixer",
    [
        pytest.param(FrameMixer(), id="frame2d"),
        pytest.param(None, id="none", marks=pytest.mark.full),
        pytest.param(ReleasedMixer(level=None), id="official3d", marks=pytest.mark.full),
    ],
)
def test_sampling_begins_with_the_mixer_and_keeps_what_is_given(mixer):
    schedule = Discrete(spacing=lambda n, steps: linspace(n, steps, zero=False))
    objective = seeing(schedule=schedule, sampling=Sampling(DPMSolverPP2M(), 3, mixer=mixer))
    noise = np.random.default_rng(8).normal(size=Z.shape).astype(np.float32)
    params = {"network": {"constant": jnp.full((), 0.3)}}
    known = np.asarray(mavin.between(np.arange(2, 8), np.array([4, 4, 7, 8, 8, 8]), 9))
    with jax.disable_jit():
        found = np.asarray(objective.sample_latents(params, {"latents": Z, "known": known, "noise": noise}, KEY))
    first = np.asarray(SEEN[0][0])
    expected = noise if mixer is None else np.asarray(mixer(Z, known, noise, schedule.level(jnp.asarray(999))))
    np.testing.assert_allclose(first[~known], expected[~known], atol=1e-5)
    for x, _, _ in SEEN:  # clean at every step
        np.testing.assert_array_equal(np.asarray(x)[known], Z[known])
    np.testing.assert_array_equal(found[known], Z[known])
    np.testing.assert_allclose(found[~known], 0.3, atol=1e-5)  # what the network says of the gap
    assert len(SEEN) == 3


def test_what_a_person_gives_and_is_shown():
    infill, action = seeing(clip=(9, 4, 6)), seeing(noising=First(), clip=(9, 4, 6))
    assert infill.told("image") == action.told("image") == (True,) and not infill.blind[0]
    assert (infill.predicts, action.predicts) == ((False,), (True,))
    assert (infill.given_frames(9), action.given_frames(9)) == (9, 1)
    for objective, given in ((infill, [1, 1, 1, 0, 0, 0, 1, 1, 1]), (action, [1] + 8 * [0])):
        video, mask = objective.condition_video({"video": VIDEO, "task": np.zeros(6, np.int32)})
        assert mask.shape == (6, 9, 4, 6, 1)
        np.testing.assert_array_equal(mask[:, :, 0, 0, 0], [given] * 6)
        np.testing.assert_allclose(video, VIDEO / np.float32(255) * np.asarray(mask), atol=1e-6)


def test_what_is_given_is_what_windows_share():
    two = seeing(noising=First(2), clip=(9, 4, 6))
    assert (two.overlap, seeing().overlap, seeing(noising=None).overlap) == (2, 1, 1) and two.continuation(2) is two
    with pytest.raises(ValueError, match="overlap=1: this model is told 2 frames, so windows share 2"):
        two.continuation(1)


@pytest.mark.parametrize("level", [1000, -1, 850.5])
def test_a_level_that_is_no_timestep_is_named(level):
    with pytest.raises(ValueError, match=f"the mixer's level={level} is no timestep: give a whole number from 0 to 999"):
        seeing(sampling=Sampling(mixer=FrameMixer(level=level)))


def test_gaps_that_cannot_be_filled_are_told_the_range():
    assert list(seeing().gap_starts(3, 9)) == [2, 3, 4]
    with pytest.raises(ValueError, match="a gap of 6 frames is out of range: this model fills gaps of 1 to 5 of 9 frames"):
        seeing().gap_starts(6, 9)
    released = Sampling(mixer=ReleasedMixer(cutoff=0.1, decay=0.1))
    with pytest.raises(ValueError, match="divides by zero in a gap of 5 frames: it can do up to 3"):
        seeing(sampling=released).gap_starts(5, 9)
    with pytest.raises(ValueError, match="divides by zero in a gap of 3 frames"):
        seeing(sampling=Sampling(mixer=ReleasedMixer(cutoff=0.0))).with_known({"latents": Z})
    with pytest.raises(ValueError, match="is given no frames, and fills no gaps"):
        seeing(noising=None).gap_starts(3, 9)


def test_eight_devices_draw_as_one():
    """Loss and gradient, gaps and conditions drawn clip by clip."""
    objective = Denoise(
        network=tiny.Network(), conditioners=TOLD, noising=GAPS, drop=((("text", "image"), 0.3),), schedule=Discrete()
    )
    z, video, text = (np.concatenate([a, a[:2]]) for a in (Z, VIDEO, TEXT))
    batch = {"latents": z, "video": video, "text_ids": text}
    params = tiny.fill(objective, batch)
    grad = jax.jit(jax.grad(lambda p, b: objective.loss(p, {}, b, KEY, 0, True)[0]["network"]), compiler_options=tiny.FAST)
    one = grad(params, batch)
    mesh = make_mesh({"data": -1})
    with jax.set_mesh(mesh):
        eight = grad(params, global_batch(batch, mesh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, eight)
    assert any(np.any(x) for x in jax.tree.leaves(one))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    parts = tiny_pipeline.PARTS | dict(vision=dict(target="tiny_diffusion:Vision"))
    return tiny_pipeline.recipe(tmp_path_factory.mktemp("mavin"), parts, tiny_pipeline.infilling)


def test_a_video_is_shown_with_its_middle_hidden(recipe, tmp_path, capsys):
    clip = np.random.default_rng(1).integers(0, 256, (10, 16, 24, 3)).astype(np.uint8)
    write_video(tmp_path / "a.mp4", clip, 5)
    options = Options(video=str(tmp_path / "a.mp4"), number=2, out=str(tmp_path / "out"), format="gif", scale=1)
    *files, grid = sample_run(recipe, options, trust=True)  # without a text, as clips are joined
    untold = read_video(files[0])[0]
    of_all = dict(target="magvid.data.text:Template", template="red disc")
    recipe.config["data"]["train"]["transforms"].insert(0, of_all)
    *files, grid = sample_run(recipe, options, trust=True)
    recipe.config["data"]["train"]["transforms"].remove(of_all)
    assert np.any(read_video(files[0])[0] != untold)
    assert [p.name for p in files] == ["TVI_a_00_seed0.gif", "TVI_a_01_seed0.gif"] and grid.name == "grid_TVI_a_00_seed0.gif"
    assert read_video(files[0])[0].shape == (8, 16, 24, 3)
    with pytest.raises(UserError, match="is one frame, this run needs 8"):
        from PIL import Image

        Image.fromarray(clip[0]).save(tmp_path / "a.png")
        sample_run(recipe, Options(image=str(tmp_path / "a.png"), prompt="red", out=str(tmp_path)), trust=True)
    with pytest.raises(UserError, match="none of the tasks"):
        sample_run(recipe, Options(prompt="red", out=str(tmp_path)), trust=True)
    assert "TVI is left out: it needs a video (--video)" in capsys.readouterr().out
