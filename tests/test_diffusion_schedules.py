"""Schedules and predictions: golden numbers, closed forms, and eps, v and x0 in each other's place."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import GOLDEN, Golden, relative_error
from magvid.diffusion import predictions, schedules
from magvid.diffusion.predictions import V, X0, Eps
from magvid.diffusion.schedules import EDM, Discrete, Level

SCHEDULERS = Golden("schedulers", GOLDEN.parent / "diffusion")
DISCRETE = [Discrete(), Discrete(betas=schedules.linear), Discrete(betas=schedules.cosine), Discrete(zero_snr=True)]
PREDICTIONS = [Eps(), V(), X0(), V(0.5)]


def test_golden_alphas_and_sigmas():
    assert relative_error(Discrete().alphas_bar, SCHEDULERS["abar_scaled_linear"]) < 1e-6
    zero = Discrete(zero_snr=True).alphas_bar
    np.testing.assert_allclose(zero, SCHEDULERS["zsnr_alphas_cumprod"], atol=2e-6)
    np.testing.assert_allclose(1 - zero[1:] / zero[:-1], SCHEDULERS["zsnr_betas"][1:], rtol=2e-4, atol=1e-6)
    levels = EDM().levels(25)
    np.testing.assert_allclose(levels.sigma, SCHEDULERS["svd_sigmas25"], rtol=1e-5)
    np.testing.assert_allclose(levels.time[:-1], SCHEDULERS["svd_timesteps25"], rtol=1e-5)
    np.testing.assert_allclose(levels.sigma[:3], [700, 545.729, 421.569], rtol=1e-5)
    assert levels.time[[0, -2]] == pytest.approx([1.6378, -1.5537], abs=1e-4)


@pytest.mark.parametrize("schedule", DISCRETE, ids=["scaled", "linear", "cosine", "zero_snr"])
def test_discrete(schedule):
    s = schedule.level(jnp.arange(1000))
    np.testing.assert_allclose(jnp.square(s.alpha) + jnp.square(s.sigma), 1, atol=1e-6)
    assert np.all(np.diff(schedule.alphas_bar) < 0)
    found = schedule.at(jnp.asarray([0.0, 0.5, 0.9999999, 1.0]))
    chex.assert_trees_all_equal(found, schedule.level(jnp.asarray([0, 500, 999, 999])))


def test_zero_terminal_snr():
    plain, zero = Discrete().alphas_bar, Discrete(zero_snr=True).alphas_bar
    assert zero[-1] == 0 and zero[0] == pytest.approx(plain[0], abs=1e-12)
    last = Discrete(zero_snr=True, spacing=schedules.trailing).levels(10)
    assert last.alpha[0] == 0 and last.sigma[0] == 1


def test_spacings():
    spaced = lambda f, n, **k: f(n, 1000, **k).tolist()
    assert spaced(schedules.leading, 50) == SCHEDULERS["ddim_timesteps50"].tolist()
    assert spaced(schedules.linspace, 50, zero=False) == SCHEDULERS["dpm_timesteps50"].tolist()
    assert spaced(schedules.leading, 4, offset=0) == [750, 500, 250, 0]
    assert spaced(schedules.linspace, 4) == [999, 666, 333, 0]
    assert spaced(schedules.trailing, 4) == [999, 749, 499, 249]
    assert spaced(schedules.trailing, 1000) == list(range(999, -1, -1))


def test_the_end_of_sampling():
    clean, first = Discrete().levels(7), Discrete(clean_end=False).levels(7)
    assert clean.alpha[-1] == 1 and clean.sigma[-1] == 0 and EDM().levels(7).sigma[-1] == 0
    assert first.alpha[-1] == pytest.approx(np.sqrt(1 - 0.00085), abs=1e-7)
    chex.assert_shape([*clean, *first, *EDM().levels(7)], (8,))


@pytest.mark.parametrize("n", [0, 1000, 1001])
def test_too_many_steps(n):
    with pytest.raises(ValueError, match="fewer steps|1 to 1000"):
        Discrete().levels(n)  # 1000 steps from offset 1 would begin at timestep 1000


def test_training_levels():
    key, n = jax.random.key(3), 100_000
    t = schedules.uniform(Discrete(), key, (n,)).time
    assert t.min() == 0 and t.max() == 999 and np.abs(np.histogram(t, 10, (0, 1000))[0] / n - 0.1).max() < 0.005
    middle = schedules.logit_normal(Discrete(), key, (n,)).time
    assert np.median(middle) == pytest.approx(500, abs=5) and np.quantile(middle, 0.8413) == pytest.approx(731, abs=6)
    log = jnp.log(schedules.log_normal(EDM(), key, (n,)).sigma)
    assert log.mean() == pytest.approx(0.7, abs=0.02) and log.std() == pytest.approx(1.6, abs=0.02)
    karras = schedules.uniform(EDM(), key, (n,)).sigma
    assert np.median(karras) == pytest.approx(float(EDM().at(jnp.asarray(0.5)).sigma), rel=0.05)
    assert 0.002 <= karras.min() and karras.max() <= 700.01
    with pytest.raises(ValueError, match="log_normal draws sigmas, and Discrete"):
        schedules.log_normal(Discrete(), key, (2,))


# Predictions --------------------------------------------------------------------------------------------------------


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def levels_of(schedule) -> Level:
    return schedule.at(jnp.asarray([0.02, 0.3, 0.8]))


@pytest.mark.parametrize("schedule", [Discrete(), EDM(most=30.0)], ids=["ddpm", "edm"])
@pytest.mark.parametrize("prediction", PREDICTIONS, ids=str)
def test_a_network_that_hits_its_target_gives_x0(schedule, prediction):
    x0, noise = normal(2, 3, 2, 5, 4, 1)
    s = levels_of(schedule)
    network = lambda x, time, condition: prediction.target(x0, noise, s)
    x = schedules.corrupt(x0, noise, s)
    found = predictions.denoiser(network, prediction)(x, s, None)
    np.testing.assert_allclose(found, x0, atol=2e-5)
    np.testing.assert_allclose(predictions.noise_in(x, x0, s), noise, atol=2e-3)  # x0 hides noise of 0.002


@pytest.mark.parametrize("schedule", [Discrete(), EDM()], ids=["ddpm", "edm"])
def test_predictions_are_interchangeable(schedule):
    """One denoiser, told as eps, v, x0: what each network would say, read by its own prediction."""
    x, s = normal(3, 2, 5, 4, 1), levels_of(schedule)
    truth = jnp.tanh(x)
    for prediction in PREDICTIONS:
        implied = prediction.target(truth, predictions.noise_in(x, truth, s), s)
        found = predictions.denoiser(lambda x, time, c: implied, prediction)(x, s, None)
        np.testing.assert_allclose(found, truth, rtol=1e-4, atol=1e-5)


def test_v_is_the_preconditioning_of_svd_and_of_karras():
    sigma = jnp.asarray([0.002, 0.7, 700.0])
    s = EDM().level(sigma)
    np.testing.assert_allclose(s.time, jnp.log(sigma) / 4)
    svd = (1 / (sigma**2 + 1), -sigma / jnp.sqrt(sigma**2 + 1), 1 / jnp.sqrt(sigma**2 + 1))
    chex.assert_trees_all_close(tuple(V().coefficients(s)), svd, rtol=1e-6)
    d = 0.5
    root = jnp.sqrt(sigma**2 + d**2)
    chex.assert_trees_all_close(tuple(V(d).coefficients(s)), (d**2 / root**2, -sigma * d / root, 1 / root), rtol=1e-6)
    s = Discrete().level(jnp.asarray([3, 400, 999]))
    chex.assert_trees_all_close(tuple(V().coefficients(s)), (s.alpha, -s.sigma, jnp.ones(3)), rtol=1e-6)


def test_the_scaled_input_has_unit_variance():
    for prediction, data in ((V(), 1.0), (Eps(0.5), 0.5)):
        s = levels_of(EDM())
        x0, noise = normal(2, 3, 20_000)
        x = schedules.corrupt(data * x0, noise, s)
        assert jnp.std(x * prediction.coefficients(s).scale[:, None], axis=1) == pytest.approx(np.ones(3), abs=0.02)


def test_loss_weights():
    s = Discrete().level(jnp.asarray([10, 300, 700, 990]))
    snr = s.alpha**2 / s.sigma**2
    np.testing.assert_allclose(s.snr, snr, rtol=1e-6)
    least = jnp.minimum(snr, 5)
    np.testing.assert_allclose(predictions.min_snr(s, Eps()), least / snr, rtol=1e-4)
    np.testing.assert_allclose(predictions.min_snr(s, V()), least / (snr + 1), rtol=1e-4)
    np.testing.assert_allclose(predictions.min_snr(s, X0()), least, rtol=1e-4)
    np.testing.assert_allclose(predictions.min_snr(s, X0(), gamma=1.0), jnp.minimum(snr, 1), rtol=1e-4)
    e = levels_of(EDM())
    np.testing.assert_allclose(predictions.edm(e, V()), 1, rtol=1e-5)
    np.testing.assert_allclose(predictions.edm(e, V(0.5)), 1, rtol=1e-5)
    np.testing.assert_allclose(predictions.edm(e, X0()), (1 + e.sigma**2) / e.sigma**2, rtol=1e-5)
    assert predictions.unit(e, Eps()).tolist() == [1, 1, 1]


@pytest.mark.parametrize("weight", [predictions.edm, predictions.min_snr])
@pytest.mark.parametrize("schedule", [Discrete(), EDM(most=30.0)], ids=["ddpm", "edm"])
def test_a_weighted_loss_does_not_depend_on_the_prediction(weight, schedule):
    """One wrong x0 costs the same, whatever the network predicts."""
    x0, noise, wrong = normal(3, 3, 2, 5, 4, 1)
    s = levels_of(schedule)
    x = schedules.corrupt(x0, noise, s)
    losses = []
    for prediction in (Eps(), V(), X0()):
        said = prediction.target(wrong, predictions.noise_in(x, wrong, s), s)
        error = jnp.mean(jnp.square(said - prediction.target(x0, noise, s)), axis=(1, 2, 3, 4))
        losses.append(weight(s, prediction) * error)
    chex.assert_trees_all_close(*losses, rtol=2e-2)  # eps and v of nearly clean x are differences of nearly equal numbers
