"""Samplers: their order against an exact answer, golden and live trajectories of diffusers, closed forms, one compile."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import GOLDEN, Golden, relative_error
from helpers_diffusion import golden_input
from magvid.diffusion import predictions, schedules
from magvid.diffusion.guidance import clip, threshold
from magvid.diffusion.predictions import V, X0, Eps
from magvid.diffusion.samplers import DDIM, DDPM, DPMSolverPP2M, EulerEDM, begin, sample, trajectory
from magvid.diffusion.schedules import EDM, Discrete, Level

SCHEDULERS = Golden("schedulers", GOLDEN.parent / "diffusion")
KEY = jax.random.key(0)
SAMPLERS = [DDIM(), DDIM(1.0), DDPM(), EulerEDM(), DPMSolverPP2M()]
SCHEDULES = {"ddpm": Discrete(), "zero_snr": Discrete(zero_snr=True, spacing=schedules.trailing), "edm": EDM()}
by_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)

# Compiled once for each (sampler, denoiser, number of steps), whatever the schedule.
path = jax.jit(trajectory, static_argnums=(0, 1))


def replay(outputs, levels: Level, prediction, pick=lambda outputs, i: outputs[i]):
    """A denoiser whose network says outputs[i] at the i-th level, whatever it sees."""
    times = jnp.asarray(levels.time[:-1])
    network = lambda x, time, condition: pick(jnp.asarray(outputs), jnp.argmin(jnp.abs(times - time[0])))
    return lambda x, s: predictions.denoiser(network, prediction)(x, s, None)


# Goldens: recorded network outputs, (b c t h w) or (b t c h w), which samplers do not mind ---------------------------


def test_golden_svd_euler():
    levels = EDM().levels(25)
    outputs = np.stack([golden_input(f"eu_v{i}", (1, 2, 4, 4, 4)) for i in range(25)])
    x = begin(golden_input("eu_x", (1, 2, 4, 4, 4)), levels)
    assert SCHEDULERS["svd_init_sigma"] == pytest.approx(math.hypot(levels.alpha[0], levels.sigma[0]))
    xs = trajectory(EulerEDM(), replay(outputs, levels, V()), x, levels, KEY)[np.asarray([0, 1, 12, 24])]
    for ours, theirs in zip(xs, SCHEDULERS["svd_euler_traj_0_1_12_24"], strict=True):
        assert relative_error(ours, theirs) < 1e-4


def test_golden_dpm_and_ddim():
    outputs = np.stack([golden_input(f"dp_e{i}", (1, 4, 2, 4, 4)) for i in range(50)])
    x = golden_input("dp_x", (1, 4, 2, 4, 4))
    levels = Discrete(spacing=partial(schedules.linspace, zero=False)).levels(50)
    xs = trajectory(DPMSolverPP2M(), replay(outputs, levels, Eps()), begin(x, levels), levels, KEY)
    for ours, theirs in zip(xs[np.asarray([0, 1, 2, 25, 49])], SCHEDULERS["dpm_traj_0_1_2_25_49"], strict=True):
        assert relative_error(ours, theirs) < 1e-4
    levels = Discrete(clean_end=False).levels(50)
    final = sample(DDIM(), replay(outputs, levels, Eps()), begin(x, levels), levels, KEY)
    assert relative_error(final, SCHEDULERS["ddim_final"]) < 1e-4


# Order: data N(m, d^2), whose denoiser is known --------------------------------------------------------------------

M, D = 0.7, 0.6


def gaussian(x, s: Level):
    s = s.like(x)
    return M + s.alpha * D**2 / (s.alpha**2 * D**2 + s.sigma**2) * (x - s.alpha * M)


def smooth_levels(name: str, n: int) -> Level:
    """n + 1 levels that get denser with n, of alpha^2 + sigma^2 = 1 or alpha = 1, ending above sigma 0."""
    if name == "ddpm":
        angle = np.linspace(1.5, 0.05, n + 1)
        return Level(angle, np.cos(angle), np.sin(angle))
    sigma = np.asarray(EDM(0.05, 20.0).levels(n + 1).sigma[:-1], np.float64)
    return Level(np.log(sigma) / 4, np.ones(n + 1), sigma)


def order_of(error) -> float:
    """The slope of log(error(n)) at n = 32 ... 256."""
    ns = [32, 64, 128, 256]
    return -np.polyfit(np.log(ns), np.log([error(n) for n in ns]), 1)[0]


@pytest.mark.parametrize(
    "sampler,levels", [(DDIM(), "ddpm"), (EulerEDM(), "edm"), (DPMSolverPP2M(), "ddpm"), (DPMSolverPP2M(), "edm")], ids=str
)
def test_declared_order_of_a_path(sampler, levels):
    """Against the exact probability flow: (x - alpha m) / std(x) stays."""

    def error(n):
        s = smooth_levels(levels, n)
        std = np.sqrt(s.alpha**2 * D**2 + s.sigma**2)
        x = np.asarray([[-1.0], [0.3], [2.0]]) * std[0]
        exact = s.alpha[-1] * M + (x - s.alpha[0] * M) * std[-1] / std[0]
        return np.abs(np.asarray(sample(sampler, gaussian, jnp.asarray(x), s, KEY)) - exact).max()

    with jax.enable_x64(True):
        assert order_of(error) == pytest.approx(sampler.order, abs=0.1)


@pytest.mark.parametrize("sampler", [DDPM(), DDIM(1.0), DDIM(0.5)], ids=str)
def test_declared_order_of_a_distribution(sampler):
    """With an exact denoiser a step is x -> a x + b + c z: mean and variance of the end are known without sampling."""

    def error(n):
        s = smooth_levels("ddpm", n)
        mean, variance = 0.0 + s.alpha[0] * M, s.alpha[0] ** 2 * D**2 + s.sigma[0] ** 2
        step = jax.jit(lambda x, s0, s1: sampler.step(gaussian, sampler.init(x), s0, s1, KEY)[0])
        z = jax.random.normal(KEY, (2, 1), jnp.float64)
        for i in range(n):
            s0, s1 = (Level(*(jnp.asarray(f[j]) for f in s)) for j in (i, i + 1))
            y = step(jnp.asarray([[0.0], [1.0]]), s0, s1)
            beta = s0.sigma**2 - (s0.alpha / s1.alpha * s1.sigma) ** 2  # of q(x at s0 | x at s1)
            c = getattr(sampler, "eta", 1.0) * jnp.sqrt(beta) * s1.sigma / s0.sigma
            b, ab = (y - c * z)[:, 0]
            mean, variance = (ab - b) * mean + b, (ab - b) ** 2 * variance + c**2
        exact = s.alpha[-1] * M, s.alpha[-1] ** 2 * D**2 + s.sigma[-1] ** 2
        return max(abs(mean - exact[0]), abs(variance - exact[1]))

    with jax.enable_x64(True):
        assert order_of(error) == pytest.approx(sampler.order, abs=0.1)


# Closed forms -------------------------------------------------------------------------------------------------------


def some_clips():
    return jnp.asarray(golden_input("clips", (2, 3, 4, 5, 2)))


def smooth_denoiser(x, s):
    """Neither linear nor exact."""
    s = s.like(x)
    return jnp.tanh(s.alpha * x + 0.1 * s.sigma)


@by_schedule
def test_ddim_with_eta_1_is_ddpm(schedule):
    """Same mean, same variance, same noise: step by step the same numbers."""
    levels = schedule.levels(4)
    x = begin(some_clips(), levels)
    ddim, ddpm = (path(s, smooth_denoiser, x, levels, KEY) for s in (DDIM(1.0), DDPM()))
    assert np.all(np.isfinite(ddpm))
    for ours, theirs in zip(ddim, ddpm, strict=True):
        assert relative_error(ours, theirs) < 1e-5


def test_the_moments_of_an_ancestral_step():
    """Many draws of one step have the mean and variance of q(x1 | x, x0), from the definition of the forward process."""
    s0, s1 = (Discrete().level(jnp.asarray(t)) for t in (700, 300))
    x, x0 = jnp.full((200_000, 1), 0.8), -0.4
    ratio = s0.alpha / s1.alpha
    beta = s0.sigma**2 - ratio**2 * s1.sigma**2
    precision = 1 / s1.sigma**2 + ratio**2 / beta  # prior N(alpha1 x0, sigma1^2) times likelihood of x
    mean = (s1.alpha * x0 / s1.sigma**2 + ratio * 0.8 / beta) / precision
    for sampler in (DDPM(), DDIM(1.0)):
        (x1,) = sampler.step(lambda x, s: jnp.full_like(x, x0), sampler.init(x), s0, s1, KEY)
        assert jnp.mean(x1) == pytest.approx(float(mean), abs=5e-3)
        assert jnp.var(x1) == pytest.approx(float(1 / precision), rel=0.02)


@pytest.mark.parametrize("schedule", [Discrete(), Discrete(clean_end=False), EDM()], ids=["ddpm", "not_clean", "edm"])
def test_ddim_is_the_euler_step_of_edm(schedule):
    levels = schedule.levels(4)
    x = begin(some_clips(), levels)
    for ours, theirs in zip(*(path(s, smooth_denoiser, x, levels, KEY) for s in (DDIM(), EulerEDM())), strict=True):
        assert relative_error(ours, theirs) < 1e-4


@pytest.mark.parametrize("schedule", [Discrete(), Discrete(clean_end=False), EDM()], ids=["ddpm", "not_clean", "edm"])
def test_dpm_solver_begins_as_ddim(schedule):
    levels = schedule.levels(1)
    x = begin(some_clips(), levels)
    ours, theirs = (path(s, smooth_denoiser, x, levels, KEY) for s in (DPMSolverPP2M(), DDIM()))
    assert relative_error(ours, theirs) < 1e-5


@by_schedule
@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_the_last_x0_is_the_answer(sampler, schedule):
    """At sigma 0 nothing of x is left; and from alpha 0 nothing breaks."""
    levels = schedule.levels(4)
    xs = path(sampler, smooth_denoiser, begin(some_clips(), levels), levels, KEY)
    assert np.all(np.isfinite(xs))
    np.testing.assert_allclose(xs[-1], smooth_denoiser(xs[-2], Level(*(a[-2] for a in levels))), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_one_trace_serves_all_steps_and_calls(sampler):
    traces = []

    def denoise(x, s):
        traces.append(s)
        return smooth_denoiser(x, s)

    @jax.jit
    def run(x, levels, key):
        return sample(sampler, denoise, begin(x, levels), levels, key)

    for key in (KEY, jax.random.key(1)):
        run.trace(some_clips(), EDM().levels(4), key)
        run.trace(some_clips(), Discrete().levels(4), key)
    assert len(traces) == 1
    run.trace(some_clips(), EDM().levels(40), KEY)
    assert len(traces) == 2


def test_what_a_sampler_cannot_take_is_named():
    for eta in (-0.1, 2.0):
        with pytest.raises(ValueError, match=f"eta={eta}: the share of new noise lies between 0"):
            DDIM(eta)
    with pytest.raises(ValueError, match="x is bfloat16: samplers compute in float32"):
        sample(DDIM(), smooth_denoiser, some_clips().astype(jnp.bfloat16), EDM().levels(2), KEY)
    with pytest.raises(ValueError, match="the 1000 timesteps from 1000 to 1 must fall and lie in 0..999: take fewer steps"):
        Discrete().levels(1000)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_who_draws_noise(sampler):
    levels = EDM().levels(4)
    first, other = (path(sampler, smooth_denoiser, begin(some_clips(), levels), levels, k) for k in (KEY, jax.random.key(1)))
    assert np.array_equal(first, other) == (sampler in (DDIM(), EulerEDM(), DPMSolverPP2M()))


def test_each_step_has_its_own_noise():
    """A denoiser that says 0 leaves sums of scaled noise: increments of different steps are independent."""
    levels = Discrete().levels(3)
    x = jnp.zeros((20_000, 1))
    first, second, _ = trajectory(DDPM(), lambda x, s: jnp.zeros_like(x), x, levels, KEY)[..., 0]
    s = [Level(*(a[i] for a in levels)) for i in range(4)]
    kept = s[1].alpha / s[2].alpha * (s[2].sigma / s[1].sigma) ** 2
    assert abs(np.corrcoef(first, second - kept * first)[0, 1]) < 0.03


# Live against diffusers: whole trajectories -------------------------------------------------------------------------

SCALED = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SD = dict(SCALED, steps_offset=1, timestep_spacing="leading", clip_sample=False)
BETAS = {
    "scaled": (SCALED, Discrete()),
    "linear": (dict(beta_schedule="linear"), Discrete(betas=schedules.linear)),
    "cosine": (dict(beta_schedule="squaredcos_cap_v2"), Discrete(betas=schedules.cosine)),
}


@pytest.fixture(scope="module")
def reference():
    import helpers_torch

    return helpers_torch


def follow(reference, scheduler, sampler, schedule, prediction, n, step_options=None, wrap=lambda d: d, tolerance=1e-4):
    """Step by step the same x as diffusers' `scheduler`, with a network that reads x and the time."""
    torch = reference.torch
    scheduler.set_timesteps(n)
    levels = schedule.levels(n)
    np.testing.assert_allclose(levels.time[:-1], scheduler.timesteps.numpy(), rtol=1e-5)
    noise = golden_input("follow", (2, 3, 4, 5, 2))
    x = torch.from_numpy(noise) * scheduler.init_noise_sigma
    theirs = []
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        said = torch.tanh(scaled + 0.01 * t) * 0.8 + 0.1 * scaled.flip(1)
        x = scheduler.step(said, t, x, **(step_options or {})).prev_sample
        theirs.append(x.numpy())

    def network(x, time, condition):
        return jnp.tanh(x + 0.01 * time[:, None, None, None, None]) * 0.8 + 0.1 * jnp.flip(x, 1)

    denoise = wrap(lambda x, s: predictions.denoiser(network, prediction)(x, s, None))
    ours = trajectory(sampler, denoise, begin(noise, levels), levels, KEY)
    assert len(ours) == len(theirs) == n
    assert max(relative_error(a, b) for a, b in zip(ours, theirs, strict=True)) < tolerance


PREDICTED = {"epsilon": Eps(), "v_prediction": V(), "sample": X0()}


@pytest.mark.full
@pytest.mark.parametrize("kind", PREDICTED)
@pytest.mark.parametrize("betas", BETAS)
def test_ddim_follows_diffusers(reference, betas, kind):
    options, schedule = BETAS[betas]
    for spacing, ours in (
        (dict(timestep_spacing="leading", steps_offset=1), dict(spacing=schedules.leading)),
        (dict(timestep_spacing="trailing"), dict(spacing=schedules.trailing)),
    ):
        for last in (True, False):
            scheduler = reference.diffusers.DDIMScheduler(
                **options, **spacing, clip_sample=False, set_alpha_to_one=last, prediction_type=kind
            )
            schedule = Discrete(betas=schedule.betas, clean_end=last, **ours)
            follow(reference, scheduler, DDIM(), schedule, PREDICTED[kind], 50)


@pytest.mark.full
def test_ddim_follows_diffusers_with_zero_terminal_snr(reference):
    scheduler = reference.diffusers.DDIMScheduler(
        **SCALED, rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False, prediction_type="v_prediction"
    )
    schedule = Discrete(zero_snr=True, spacing=schedules.trailing)
    follow(reference, scheduler, DDIM(), schedule, V(), 40)


@pytest.mark.full
def test_clipping_and_thresholding_follow_diffusers(reference):
    clipped = reference.diffusers.DDIMScheduler(**{**SD, "clip_sample": True})
    step = dict(use_clipped_model_output=True)  # as here, the noise is that of the clipped x0
    follow(reference, clipped, DDIM(), Discrete(), Eps(), 20, step, wrap=clip)
    for most in (1.0, 1.5):
        scheduler = reference.diffusers.DDIMScheduler(
            **{**SD, "prediction_type": "v_prediction"},
            thresholding=True,
            sample_max_value=most,
            dynamic_thresholding_ratio=0.9,
        )
        follow(reference, scheduler, DDIM(), Discrete(), V(), 20, step, wrap=partial(threshold, ratio=0.9, most=most))


@pytest.mark.full
@pytest.mark.parametrize("kind", PREDICTED)
@pytest.mark.parametrize("betas", BETAS)
def test_dpm_solver_follows_diffusers(reference, betas, kind):
    options, schedule = BETAS[betas]
    for spacing, ours, n in (
        (dict(timestep_spacing="linspace"), partial(schedules.linspace, zero=False), 50),
        (dict(timestep_spacing="trailing"), schedules.trailing, 10),
    ):
        scheduler = reference.diffusers.DPMSolverMultistepScheduler(**options, **spacing, prediction_type=kind)
        schedule = Discrete(betas=schedule.betas, spacing=ours)
        follow(reference, scheduler, DPMSolverPP2M(), schedule, PREDICTED[kind], n)


@pytest.mark.full
@pytest.mark.parametrize("n", [1, 2, 7, 25])
def test_svd_euler_follows_diffusers(reference, n):
    """The scheduler of stable-video-diffusion-img2vid, as its scheduler_config.json has it."""
    scheduler = reference.diffusers.EulerDiscreteScheduler(
        **SCALED,
        interpolation_type="linear",
        prediction_type="v_prediction",
        sigma_max=700.0,
        sigma_min=0.002,
        steps_offset=1,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    # diffusers steps by x + (x - x0) / sigma * (0 - sigma): from 700 that leaves 700 roundings beside an x0 of 1
    follow(reference, scheduler, EulerEDM(), EDM(), V(), n, tolerance=1e-4 if n > 2 else 5e-4)


@pytest.mark.full
@pytest.mark.parametrize("kind", PREDICTED)
def test_ddpm_follows_diffusers(reference, kind, monkeypatch):
    """Its noise is recorded and given to our steps; 50 steps, and all 1000."""
    torch = reference.torch
    for n in (50, 1000) if kind == "epsilon" else (50,):
        drawn = torch.randn(n, 2, 3, 4, 5, 2, generator=torch.Generator().manual_seed(n))
        scheduler = reference.diffusers.DDPMScheduler(**SCALED, clip_sample=False, prediction_type=kind)
        count = iter(drawn)
        module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
        monkeypatch.setattr(module, lambda shape, **_: next(count))
        noise = jnp.asarray(drawn.numpy())
        schedule = Discrete(spacing=partial(schedules.leading, offset=0))
        levels = schedule.levels(n)
        index = {float(t): i for i, t in enumerate(levels.time[:-1])}
        table = jnp.asarray([index.get(float(t), 0) for t in range(1000)])

        class Recorded(DDPM):
            """`DDPM` with the recorded noise in place of its own."""

            def step(self, denoise, carry, s0, s1, key):
                with monkeypatch.context() as patch:
                    here = noise[table[s0.time.astype(jnp.int32)]]
                    patch.setattr(jax.random, "normal", lambda key, shape, dtype: here)
                    return super().step(denoise, carry, s0, s1, key)

        follow(reference, scheduler, Recorded(), schedule, PREDICTED[kind], n)
