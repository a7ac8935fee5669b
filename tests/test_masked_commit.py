"""COMMIT masking and the schedules equal the official code; what the modes promise."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from helpers import Golden
from magvid.masked import commit

MODES = {
    "None": commit.UNCONDITIONED,
    "cond->input": commit.COMMIT,
    "input->input": commit.FIXED_TARGET,
    "cond->cond": commit.FIXED_CONDITION,
}
SCHEDULES = {
    "cosine": commit.cosine,
    "uniform": commit.uniform,
    "pow2": partial(commit.power, exponent=2.0),
    "pow0.5": partial(commit.power, exponent=0.5),
    "pow2.5": partial(commit.power, exponent=2.5),
    "exp": commit.exponential,
    "log": commit.logarithmic,
    "poly:-1.0,0.0,1.0": commit.polynomial,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weighting", ["mask+refine", "mask+refine+recons"])
def test_golden_masking(mode, weighting):
    golden, conditioning = Golden("masking"), MODES[mode]
    region = golden["cond_mask"] if mode != "None" else np.zeros_like(golden["cond_mask"])
    cases = [
        k.removesuffix(":targets") for k in golden if k.startswith(mode + "|") and k.endswith(f"|{weighting}:targets")
    ]
    assert len(cases) == 5
    for case in cases:
        gamma = jnp.full(3, float(case.split("|")[1]), jnp.float32)
        ids, cond_ids, scores = golden["inputs"], golden["cond_inputs"], golden["mask_score"]
        ours = commit.mask_tokens(ids, cond_ids, region, gamma, scores, -1, conditioning)
        np.testing.assert_array_equal(ours.inputs, golden[case + ":masked_inputs"])
        np.testing.assert_array_equal(ours.uncond, golden[case + ":uncond_masked_inputs"])
        np.testing.assert_array_equal(ours.targets, golden[case + ":targets"])
        segments = ours.masked & region if conditioning.refine else np.zeros_like(region)
        np.testing.assert_array_equal(segments, golden[case + ":segment_ids"])
        kind = commit.LossWeights(recons=float(weighting.endswith("recons")))
        weights = commit.loss_weights(ours.masked, region, conditioning, kind)
        np.testing.assert_array_equal(weights, golden[case + ":weights"])


@pytest.mark.parametrize("name", SCHEDULES)
def test_golden_schedules(name):
    golden = Golden("masking")
    r = golden["sched_ratio"][-len(golden["sched|" + name]) :]  # the official log schedule leaves out r = 0
    np.testing.assert_allclose(commit.mask_ratio(SCHEDULES[name], r, 1024), golden["sched|" + name], atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"exp", "log"}))
def test_schedules_fall_from_one_to_zero(name):
    r = jnp.linspace(0, 1, 101)
    gamma = SCHEDULES[name](r, 1024)
    assert gamma[0] == 1 and abs(gamma[-1]) < 1e-6 and (jnp.diff(gamma) < 0).all()


def test_schedules_by_name():
    r = jnp.linspace(0.1, 0.9, 5)
    for name, schedule in commit.SCHEDULES.items():
        assert commit.find_schedule(name) is schedule
    for exponent in ("2", "0.5", "2.5"):
        np.testing.assert_array_equal(commit.find_schedule(f"power{exponent}")(r, 9), 1 - r ** float(exponent))
    for name in ("square", "power0", "power-1", ""):
        with pytest.raises(ValueError, match=f'no mask schedule "{name}"; choose of cosine, .* power<exponent>'):
            commit.find_schedule(name)


def random_case(seed=0):
    rng = np.random.default_rng(seed)
    ids, cond_ids = rng.integers(0, 50, (2, 2, 2, 4, 6), dtype=np.int32)
    return ids, cond_ids, rng.random((2, 2, 4, 6)) < 0.4, rng.random((2, 2, 4, 6), np.float32)


def test_commit_at_ratio_one_leaves_no_target_visible():
    ids, cond_ids, region, scores = random_case()
    ours = commit.mask_tokens(ids, cond_ids, region, jnp.ones(2), scores, 99)
    np.testing.assert_array_equal(ours.inputs, np.where(region, cond_ids, 99))
    assert (ours.uncond == 99).all() and ours.masked.all() and (ours.targets == ids).all()


def test_fixed_modes_keep_every_given_token():
    ids, cond_ids, region, scores = random_case()
    for mode, given in ((commit.FIXED_TARGET, ids), (commit.FIXED_CONDITION, cond_ids)):
        ours = commit.mask_tokens(ids, cond_ids, region, jnp.ones(2), scores, 99, mode)
        np.testing.assert_array_equal(ours.inputs, np.where(region, given, 99))
        assert not (ours.masked & region).any()


@pytest.mark.parametrize("gamma, expected", [(1e-6, 1), (0.25, 12), (0.5, 24), (0.999, 47), (1.0, 48)])
def test_number_of_masked_tokens_per_example(gamma, expected):
    ids, cond_ids, region, scores = random_case()
    ours = commit.mask_tokens(ids, cond_ids, region, jnp.asarray([gamma, 0.5]), scores, 99)
    assert ours.masked.sum(axis=(1, 2, 3)).tolist() == [expected, 24]
    assert scores[0][ours.masked[0]].max() < scores[0][~ours.masked[0]].min(initial=2.0)


def test_limit_caps_the_count_but_one_is_always_masked():
    ids, cond_ids, region, scores = random_case()
    ours = commit.mask_tokens(ids, cond_ids, region, jnp.ones(2), scores, 99, limit=jnp.asarray([5, 0]))
    assert ours.masked.sum(axis=(1, 2, 3)).tolist() == [5, 1]


def test_unknown_conditioning():
    with pytest.raises(ValueError, match="fixed='both' is none of"):
        commit.Conditioning(fixed="both")


def test_the_three_losses_have_weights_of_their_own():
    masked = np.array([True, True, False, False]).reshape(1, 1, 1, 4)
    region = np.array([True, False, True, False]).reshape(1, 1, 1, 4)
    kind = commit.LossWeights(mask=2.0, refine=3.0, recons=5.0)
    weights = lambda conditioning: np.ravel(commit.loss_weights(masked, region, conditioning, kind)).tolist()
    assert weights(commit.COMMIT) == [3, 2, 5, 5]
    assert weights(commit.UNCONDITIONED) == [2, 2, 5, 5]
    assert weights(commit.FIXED_CONDITION) == [0, 2, 0, 5]
    for bad in (dict(mask=-1.0), dict(mask=0.0, refine=0.0, recons=0.0)):
        with pytest.raises(ValueError, match="at least 0, and not 0 alone"):
            commit.LossWeights(**bad)


def test_the_lowest_scores_and_their_ties_are_hidden():
    scores = jnp.asarray([[3.0, 1.0, 2.0, 1.0, jnp.inf], [0.5, 0.5, 0.5, 9.0, -1.0]])
    expected = [[False, True, False, True, False], [True, True, True, False, True]]
    np.testing.assert_array_equal(commit.lowest(scores, jnp.asarray([1, 2])), expected)
    every = jnp.asarray([5, 5])
    assert commit.lowest(scores, every).all()
