"""The ten tasks: equal to the official conditions, and the paper's any-pool rule."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import Golden
from magvid.masked import tasks

OFFICIAL = {
    "frame_prediction": "FP",
    "frame_prediction_c": "CFP",
    "frame_prediction_5": "FP5",
    "frame_interpolation": "FI",
    "outpainting_h": "OPH",
    "outpainting_v": "OPV",
    "outpainting_c": "OPC",
    "outpainting_dv": "OPD",
    "outpainting_q": "OPQ",
    "inpainting_c": "IPC",
    "inpainting_dv": "IPD",
    "inpainting_q": "IPQ",
}


@pytest.mark.parametrize("official, ours", OFFICIAL.items())
def test_golden_masks_at_the_released_size(official, ours):
    golden, row = Golden("conds_128_masks"), [tasks.find_task(f"official:{ours}")]
    np.testing.assert_array_equal(tasks.pixel_masks(row, (16, 128, 128)), golden[f"{official}:video_mask"])
    np.testing.assert_array_equal(
        tasks.latent_masks(row, (16, 128, 128), (4, 16, 16)), golden[f"{official}:latent_mask"]
    )


@pytest.mark.full
@pytest.mark.parametrize("official, ours", OFFICIAL.items())
def test_golden_condition_videos(official, ours, shared):
    golden, row = Golden("conds_even", shared / "golden" / "magvit"), [tasks.find_task(f"official:{ours}")]
    video = golden["video"]
    shape = video.shape[1:4]
    ours = tasks.condition_videos(row, video, jnp.zeros(len(video), int))
    np.testing.assert_allclose(ours, golden[f"{official}:cond_video"], atol=1e-6)
    expected = np.broadcast_to(golden[f"{official}:video_mask"][:1, ..., 0], (1, *shape))
    np.testing.assert_array_equal(expected, tasks.pixel_masks(row, shape))


def test_given_shares_of_the_ten_tasks():
    """Specification, section 8: pixels and tokens given at 16x128x128 -> 4x16x16, in percent; dynamic tasks by the
    paper's any-pool.
    """
    share = dict(FP=(6.25, 25), FI=(12.5, 50), OPC=(25, 25), OPV=(50, 50), OPH=(50, 50), OPD=(50, 62.5), IPC=(75, 75))
    share |= dict(CG=(0, 0), CFP=(6.25, 25))
    for name, (pixels, tokens) in share.items():
        row = [tasks.TASKS[name]]
        assert 100 * tasks.pixel_masks(row, (16, 128, 128)).mean() == pixels, name
        assert 100 * tasks.latent_masks(row, (16, 128, 128), (4, 16, 16)).mean() == tokens, name


def test_the_two_rules_disagree_in_the_dynamic_tasks_only():
    shape, latent = (16, 128, 128), (4, 16, 16)
    for name in tasks.TASKS:
        paper, official = (tasks.latent_masks([tasks.find_task(p + name)], shape, latent) for p in ("", "official:"))
        assert np.sum(paper != official) == {"OPD": 128, "IPD": 64}.get(name, 0), name


def test_any_pool_by_hand():
    mask = np.zeros((5, 4, 6), bool)
    mask[4, 0, 5] = True  # the last cell of an odd axis is half empty
    pooled = tasks.any_pool(mask, (3, 2, 3))
    assert pooled.sum() == 1 and pooled[2, 0, 2]
    with pytest.raises(ValueError, match="no power of two shrinks 6 pixels to 5 latent cells along axis w"):
        tasks.any_pool(mask, (3, 2, 5))


def test_pads_on_non_square_clips():
    video = jnp.asarray(np.random.default_rng(0).random((2, 6, 8, 12, 3)), jnp.float32)
    names = list(tasks.TASKS)
    rows = [tasks.TASKS[n] for n in names]
    one = lambda name: tasks.condition_videos(rows, video, jnp.full(2, names.index(name)))
    np.testing.assert_array_equal(one("FP"), jnp.repeat(video[:, :1], 6, axis=1))
    np.testing.assert_allclose(one("FI")[:, 2], video[:, 0] * 0.6 + video[:, -1] * 0.4, atol=1e-6)
    np.testing.assert_array_equal(one("OPH")[:, :, 0], video[:, :, 2])
    np.testing.assert_array_equal(one("OPV")[:, :, :, -1], video[:, :, :, 8])
    np.testing.assert_array_equal(one("OPC")[:, :, 0, 0], video[:, :, 2, 3])
    assert (one("IPC")[:, :, 2:6, 3:9] == 0).all() and (one("CG") == 0).all()
    np.testing.assert_array_equal(one("OPD")[:, -1, :, 6:], video[:, -1, :, 6:])
    for name, task in tasks.TASKS.items():  # given pixels are kept by every pad
        given = task.region((6, 8, 12))
        np.testing.assert_array_equal(np.asarray(one(name))[:, given], np.asarray(video)[:, given])


def test_tasks_of_a_batch_are_independent_and_compile_once():
    rows = [tasks.TASKS[n] for n in tasks.TASKS]
    video = jnp.asarray(np.random.default_rng(0).random((3, 4, 8, 8, 3)), jnp.float32)
    run = jax.jit(chex.assert_max_traces(lambda v, i: tasks.condition_videos(rows, v, i), n=1))
    mixed = run(video, jnp.asarray([1, 4, 2]))
    for b, i in enumerate([1, 4, 2]):
        np.testing.assert_array_equal(mixed[b], run(video[b : b + 1].repeat(3, 0), jnp.asarray([i] * 3))[0])


def test_tokens_are_never_reused():
    tokens = [task.token for task in tasks.TASKS.values()]
    assert len(set(tokens)) == 10 == len(tasks.NAMES) and min(tokens) > 2 and max(tokens) < 15
    assert set(tasks.NAMES) == set(tasks.TASKS)


MINE = tasks.Task(5, tasks.centre, tasks.zeros)


def test_names_find_tasks():
    assert tasks.find_task("FP5").region == tasks.FirstFrames(5) and tasks.find_task("CFP3").class_cond
    assert tasks.find_task("official:IPC").token == 6
    assert tasks.find_task("test_masked_tasks:MINE").token == 5
    with pytest.raises(ValueError, match='"magvid.masked.tasks:TASKS" is a dict, not a'):
        tasks.find_task("magvid.masked.tasks:TASKS")
    with pytest.raises(ValueError, match='no task "FQ"; choose of CG, FP'):
        tasks.find_task("FQ")
    with pytest.raises(ValueError, match="from 16 frames needs a clip of more frames, got 16"):
        tasks.find_task("FP16").region((16, 8, 8))
