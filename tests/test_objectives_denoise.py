"""The diffusion objective: its loss in closed form, what its network sees, who is hidden when, sampling, LoRA."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_diffusion as tiny
from helpers import flatten
from magvid import optim
from magvid.adapters.dqformer import DQFormer, MCondition
from magvid.adapters.magdiff import EntityLatents, EntityTokens, Pyramid, Resampler
from magvid.build import build
from magvid.data.pipeline import LearnAfter
from magvid.diffusion import guidance, predictions, schedules
from magvid.diffusion.guidance import chain, ramp
from magvid.diffusion.predictions import V, X0, Eps
from magvid.diffusion.samplers import DDIM, EulerEDM, begin
from magvid.diffusion.samplers import sample as run_sampler
from magvid.diffusion.schedules import EDM, Discrete
from magvid.grafts import Grafts
from magvid.lora import LoRA
from magvid.models.conditioners import GivenLatents, ImageLatent, ImageTokens, Scalars, TextTokens
from magvid.objectives.denoise import Denoise, Sampling, join
from magvid.state import init_state, make_step
from magvid.types import Condition

KEY = jax.random.key(0)
BATCH = tiny.batch()
NULL = (9, 0, 0, 0, 0)
Z = np.random.default_rng(5).normal(size=(2, 3, 2, 4, 2)).astype(np.float32)

SVD = dict(
    network=tiny.Network(),
    vae=tiny.VAE(),
    conditioners=(
        ImageTokens(tiny.Vision(), tiny.prepare),
        ImageLatent(tiny.VAE()),
        TextTokens(tiny.Text(), null=NULL),
        Scalars({"fps": 6.0, "motion": 127.0}),
    ),
    schedule=EDM(),
    prediction=V(),
    times=schedules.log_normal,
    drop=((("text",), 0.1), (("image",), 0.1), (("text", "image"), 0.2)),
    augmentation=(-3.0, 0.5),
    sampling=Sampling(EulerEDM(), 2, ((("text", "image"), (1.0, 3.0)), (("text",), 2.0))),
)


SEEN = []  # what `Seeing` was called with


class Seeing(nn.Module):
    """Says a constant, at first 0, of as many channels as the latents have."""

    @nn.compact
    def __call__(self, x, time, condition):
        SEEN.append((x, time, condition))
        return jnp.broadcast_to(self.param("constant", nn.initializers.zeros, ()), x.shape)


def fixed_levels(schedule, key, shape):
    return schedule.at(jnp.asarray([0.1, 0.7]))


def seeing(**changes) -> Denoise:
    """On latents, with a network that says 0, at two fixed levels."""
    SEEN.clear()
    return Denoise(**{**dict(network=Seeing(), prediction=X0(), times=fixed_levels), **changes})


def loss_of(objective, batch, params=None, key=KEY, train=True):
    params = {"network": {"constant": jnp.zeros(())}} if params is None else params
    losses, (metrics, extra) = objective.loss(params, {}, batch, key, 0, train)
    assert extra == {}
    return losses, metrics


# The loss -----------------------------------------------------------------------------------------------------------


class Dropping(nn.Module):
    """Says 1, or in training 0 or 2."""

    @nn.compact
    def __call__(self, x, time, condition):
        return nn.Dropout(0.5, deterministic=not self.has_rng("dropout"))(jnp.ones_like(x))


def test_dropout_acts_in_training_alone():
    objective = seeing(network=Dropping())
    loss = lambda key, train: float(loss_of(objective, {"latents": Z}, {"network": {}}, key, train)[0]["network"])
    assert loss(KEY, False) == pytest.approx(np.square(1 - Z).mean(), rel=1e-5)
    kept = loss(KEY, True)
    assert abs(kept - np.square(1 - Z).mean()) > 1e-3 and kept == loss(KEY, True) != loss(jax.random.key(1), True)
    seen = objective.raw({"network": {}}, KEY)(Z, None, None)
    assert set(np.unique(seen)) == {0.0, 2.0} and float(objective.raw({"network": {}})(Z, None, None).min()) == 1


def test_the_loss_is_the_error_of_the_output():
    """A network that says 0 has the mean square of its target, clip by clip, times the clip's weight."""
    per_clip = np.square(Z).mean((1, 2, 3, 4))
    assert loss_of(seeing(), {"latents": Z})[0]["network"] == pytest.approx(per_clip.mean(), rel=1e-5)
    losses, metrics = loss_of(seeing(weight=predictions.min_snr), {"latents": Z})
    weight = np.asarray(predictions.min_snr(fixed_levels(Discrete(), None, None), X0()))
    assert weight[0] == 5 and weight[1] < 1
    assert losses["network"] == pytest.approx((per_clip * weight).mean(), rel=1e-5)
    assert metrics["loss"] == losses["network"] and metrics["unweighted"] == pytest.approx(per_clip.mean(), rel=1e-5)


def test_the_noise_is_the_target_of_eps():
    """What the network saw gives the noise away, and with it the loss."""
    loss = loss_of(seeing(prediction=Eps()), {"latents": Z})[0]["network"]
    x, time, _ = SEEN[-1]
    np.testing.assert_array_equal(time, [100, 700])
    noise = predictions.noise_in(x, Z, fixed_levels(Discrete(), None, None))
    assert loss == pytest.approx(float(jnp.square(noise).mean()), rel=1e-4)
    assert noise.std() == pytest.approx(1, abs=0.15)
    first = SEEN[-1][0]
    loss_of(seeing(prediction=Eps()), {"latents": Z}, key=jax.random.key(1))
    assert not np.any(SEEN[-1][0] == first)


def test_edm_scales_the_input_and_tells_ln_sigma():
    loss_of(seeing(schedule=EDM(), prediction=V()), {"latents": Z})
    s = fixed_levels(EDM(), None, None)
    x, time, _ = SEEN[-1]
    np.testing.assert_allclose(time, np.log(s.sigma) / 4, rtol=1e-6)
    assert (x.reshape(2, -1).std(1) < 1.5).all() and s.sigma[1] > 50


def test_frames_and_clips_that_do_not_count():
    square = np.square(Z).mean((2, 3, 4))
    mask = np.asarray([[1, 0, 1], [0, 1, 0]], bool)
    by_mask = loss_of(seeing(), {"latents": Z, "loss_mask": mask})[0]["network"]
    assert by_mask == pytest.approx((square[0, [0, 2]].mean() + square[1, 1]) / 2, rel=1e-5)
    valid = loss_of(seeing(), {"latents": Z, "valid": np.asarray([False, True])})[0]["network"]
    assert valid == pytest.approx(square[1].mean(), rel=1e-5)
    known = loss_of(seeing(), {"latents": Z, "known": mask})[0]["network"]
    assert known == pytest.approx((square[0, 1] + square[1, [0, 2]].mean()) / 2, rel=1e-5)
    x = SEEN[-1][0]
    np.testing.assert_array_equal(x[mask], Z[mask])  # clean in place
    assert not np.any(x[~mask] == Z[~mask])


def test_latents_are_scaled_samples_of_the_posterior():
    objective = Denoise(network=tiny.Network(), vae=tiny.VAE())
    params = tiny.fill(objective, BATCH)
    assert objective.latent_shape(BATCH) == (2, 3, 2, 3, 2) and objective.video_shape({"latents": Z}) == (2, 3, 4, 8, 3)
    video = BATCH["video"] / np.float32(127.5) - 1
    mean, logvar = tiny.VAE().apply({"params": params["vae"]}, video, method="encode")
    np.testing.assert_allclose(objective.latents(params, BATCH, None), 0.5 * mean, atol=1e-6)
    draws = objective.latents(params, {"video": np.tile(BATCH["video"][:1], (2000, 1, 1, 1, 1))}, KEY)
    np.testing.assert_allclose(draws.std(0), 0.5 * np.exp(0.5 * logvar[0]), rtol=0.1)
    np.testing.assert_array_equal(objective.latents(params, {"latents": Z}, KEY), Z)
    found = objective.reconstruct(params, BATCH)
    assert found.shape == BATCH["video"].shape and found.min() >= 0 and found.max() <= 1


# Conditions ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def svd():
    objective = Denoise(**SVD)
    return objective, tiny.fill(objective, BATCH)


def test_groups_are_the_parts(svd):
    objective, params = svd
    assert set(params) == {"network", "vae", "vision", "text"}
    assert set(params["vae"]) == {"enter", "exit"}  # whole, though a conditioner that shares it only encodes
    assert set(params["network"]) == {"enter", "time", "mix", "exit", "text", "image", "fps", "motion", "aug"}
    assert flatten(params)["network/enter/kernel"].shape == (4, 8)


def test_which_conditions_are_dropped():
    """Each row of `drop` at its rate, never two rows at once; only in training."""
    objective = Denoise(**SVD)
    keep = objective.keep(KEY, 100_000)
    text, image = keep["text"], keep["image"]
    assert np.mean(~text & image) == pytest.approx(0.1, abs=0.005)
    assert np.mean(text & ~image) == pytest.approx(0.1, abs=0.005)
    assert np.mean(~text & ~image) == pytest.approx(0.2, abs=0.005)
    assert Denoise(network=tiny.Network()).keep(KEY, 3) == {}


@pytest.mark.parametrize("train", [True, False])
def test_a_dropped_condition_is_its_null(svd, train):
    """The network is told the null of all that a row names, and everything else as it is."""
    always = dict(conditioners=SVD["conditioners"], drop=((("text", "image"), 1.0),), vae=tiny.VAE())
    _, params = svd
    told = seeing(**always)
    told.loss({**params, "network": {"constant": jnp.zeros(())}}, {}, BATCH, KEY, 0, train)
    condition = SEEN[-1][2]
    empty = tiny.Text().apply({"params": params["text"]}, jnp.asarray([NULL])).tokens
    is_empty = np.array_equal(condition.tokens["text"][:, 0], np.repeat(empty, 2, 0))
    assert (is_empty, not condition.concat.any(), not condition.tokens["image"].any()) == (train,) * 3
    assert condition.concat.shape == (2, 3, 2, 3, 2)
    np.testing.assert_array_equal(condition.scalars["fps"], [5, 6])


def test_noise_augmentation_is_told(svd):
    """ln of the strength ~ N(-3, 0.5^2) in training; the constant in sampling."""
    objective, params = svd
    many = tiny.batch(b=4000, frames=1, h=2, w=2)
    told = seeing(conditioners=(ImageLatent(tiny.VAE()),), vae=tiny.VAE(), augmentation=(-3.0, 0.5), times=schedules.uniform)
    told.loss({**params, "network": {"constant": jnp.zeros(())}}, {}, many, KEY, 0, True)
    aug = np.log(SEEN[-1][2].scalars["aug"])
    assert aug.mean() == pytest.approx(-3, abs=0.03) and aug.std() == pytest.approx(0.5, abs=0.03)
    condition = objective.condition(params, BATCH, {}, KEY, 3)
    np.testing.assert_allclose(condition.scalars["aug"], 0.02)


def test_joined_conditions():
    one = Condition(tokens={"a": jnp.zeros((2, 1, 4, 3))}, concat=jnp.ones((2, 1, 4, 5, 1)))
    two = Condition(scalars={"fps": jnp.zeros(2)}, concat=jnp.zeros((2, 3, 4, 5, 2)))
    both = join([one, two], 3)
    assert both.concat.shape == (2, 3, 4, 5, 3) and set(both.tokens) == {"a"} and set(both.scalars) == {"fps"}
    assert both.concat[0, 2, 0, 0].tolist() == [1, 0, 0]
    assert join([], 3) == Condition()
    with pytest.raises(ValueError, match=r"two conditioners give the tokens \['a'\]"):
        join([one, one], 3)
    with pytest.raises(ValueError, match="pictures of 3 frames are joined to a clip of 4: give one for each frame, or one for all"):
        join([one, two], 4)


def test_impossible_objectives_are_named():
    with pytest.raises(ValueError, match=r"clip=\(0, 16, 24\): a clip has at least one frame"):
        Denoise(network=tiny.Network(), clip=(0, 16, 24))
    with pytest.raises(ValueError, match="zero terminal SNR: predict v"):
        Denoise(network=tiny.Network(), schedule=Discrete(zero_snr=True))
    with pytest.raises(ValueError, match="sum to at most 1"):
        Denoise(**{**SVD, "drop": ((("text",), 0.7), (("image",), 0.5))})
    with pytest.raises(ValueError, match=r"drop hides \['txt'\], but the conditioners have \['image', 'text'\]"):
        Denoise(**{**SVD, "drop": ((("txt",), 0.7),)})
    with pytest.raises(ValueError, match="guidance hides .*'words'"):
        Denoise(**{**SVD, "sampling": Sampling(guidance=((("words",), 2.0),))})
    with pytest.raises(ValueError, match='"noise" beside .*text_ids'):
        Denoise(network=tiny.Network()).video_shape({"text_ids": BATCH["text_ids"]})


# Sampling -----------------------------------------------------------------------------------------------------------


def test_sampling_is_the_guided_sampler(svd):
    """The same as put together by hand: chain of three branches, a ramp for the image, two Euler steps, decoding."""
    objective, params = svd
    batch = {**BATCH, "noise": Z[..., :3, :]}
    del batch["video"]
    batch["image"] = BATCH["video"][:, 0]
    found = jax.jit(objective.sample, compiler_options=tiny.FAST)(params, batch, KEY)
    assert found.shape == (2, 3, 4, 6, 3) and found.min() >= 0 and found.max() <= 1
    _, condition_key, _ = jax.random.split(KEY, 3)
    hide = lambda *names: {n: jnp.zeros(2, bool) for n in names}
    told = [objective.condition(params, batch, k, condition_key, 3) for k in (hide("text", "image"), hide("text"), {})]
    network = lambda x, t, c: tiny.Network().apply({"params": params["network"]}, x, t, c)
    guided = chain(predictions.denoiser(network, V()), told, [ramp(1, 3, 3), 2.0])
    levels = EDM().levels(2)
    z = jax.jit(lambda x: run_sampler(EulerEDM(), guided, x, levels, KEY))(begin(batch["noise"], levels))
    np.testing.assert_allclose(found, objective.decode(params, z), atol=1e-4)


def test_known_parts_are_sampled_as_they_are():
    """Also where the schedule ends above sigma 0; in pixels, without an autoencoder, with clipped x0."""
    objective = Denoise(
        network=tiny.Network(out=3),
        schedule=Discrete(clean_end=False),
        sampling=Sampling(DDIM(), 3, wraps=(partial(guidance.clip, low=-0.5, high=0.5),)),
    )
    params = tiny.fill(objective, BATCH)
    known = np.asarray([[True, False, False], [True, False, True]])
    found = jax.jit(objective.sample, compiler_options=tiny.FAST)(params, {**BATCH, "known": known}, KEY)
    np.testing.assert_allclose(found[known], BATCH["video"][known] / np.float32(255), atol=1e-6)
    assert np.all(np.abs(found[~known] - 0.5) < 0.4)  # 0.25 and the noise that is left


def test_the_size_of_clips_from_noise_alone():
    objective = dataclasses.replace(Denoise(**SVD), clip=(3, 4, 6))
    assert objective.latent_shape({"text_ids": BATCH["text_ids"]}) == (2, 3, 2, 3, 2)


def test_other_ways_of_decoding():
    one = dataclasses.replace(Denoise(**SVD), sampling=Sampling(guidance=((("text",), 7.5),)))
    assert one.with_decoding(steps=7, guidance=3).sampling == Sampling(steps=7, guidance=((("text",), 3.0),))
    several = Denoise(**SVD)
    rows = several.sampling.guidance
    assert several.with_decoding(guidance=3).sampling.guidance == (*rows[:-1], (rows[-1][0], 3.0))
    rising = dataclasses.replace(one, sampling=Sampling(guidance=((("text",), (1.0, 2.0)),)))
    assert rising.with_decoding(guidance=3).sampling.guidance == ((("text",), (1.0, 3.0)),)
    plain = dataclasses.replace(one, sampling=Sampling(), drop=((("text",), 0.2), (("text", "image"), 0.1), (("image",), 0.1)))
    assert plain.with_decoding(guidance=2).sampling.guidance == ((("text", "image"), 2.0),)
    with pytest.raises(ValueError, match="guidance=2: this model was trained without hiding its conditions"):
        dataclasses.replace(plain, drop=()).with_decoding(guidance=2)
    with pytest.raises(ValueError, match="temperature: of masked transformers"):
        one.with_decoding(temperature=1.0)


# Training -----------------------------------------------------------------------------------------------------------


def optimisers_of(params, groups):
    spec = dict(optimizer=dict(name="adam"), rules=[(".*", dict(peak=1e-2, decay="constant"))])
    return {g: optim.make(spec, params[g], 100, g) for g in groups}


def trained(objective, groups, batch, steps, dtype="float32"):
    """(losses, first parameters, last state) of training of `groups`, all others frozen."""
    params = tiny.fill(objective, batch)
    mine, frozen = ({g: t for g, t in params.items() if (g in groups) == own} for own in (True, False))
    optimisers = optimisers_of(params, groups)
    step = jax.jit(make_step(objective, optimisers, dtype=dtype), compiler_options=tiny.FAST)
    state, losses = init_state(mine, frozen, {}, KEY, optimisers), []
    for _ in range(steps):
        state, metrics, finite = step(state, batch)
        assert all(np.all(f) for f in finite.values())
        losses.append(float(metrics["loss"]))
    return losses, params, state


def test_two_groups_train_through_the_step_of_the_loop():
    """One loss for both; master weights stay float32; what is frozen stays."""
    objective = Denoise(**{**SVD, "trained": ("network", "text")})
    losses, before, state = trained(objective, ("network", "text"), BATCH, 2, "bfloat16")
    assert np.all(np.isfinite(losses))
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), {g: before[g] for g in state.params}, state.params)
    assert all(jax.tree.leaves(moved))
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


def test_lora_trains_beside_a_frozen_network():
    base = dict(network=tiny.Network(), schedule=Discrete(), times=fixed_levels)
    plain, with_lora = Denoise(**base), Denoise(**base, lora=LoRA("mix|enter|exit", rank=2))
    batch = {"latents": Z}
    params = tiny.fill(with_lora, batch)
    jax.tree.map(np.testing.assert_array_equal, params["network"], tiny.fill(plain, batch)["network"])
    np.testing.assert_array_equal(loss_of(with_lora, batch, params)[0]["lora"], loss_of(plain, batch, params)[0]["network"])
    losses, before, state = trained(with_lora, ("lora",), batch, 30)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    jax.tree.map(np.testing.assert_array_equal, state.frozen["network"], before["network"])
    merged = {"network": with_lora.lora.merge(before["network"], state.params["lora"])}
    after = {**state.params, **state.frozen}
    assert loss_of(plain, batch, merged)[0]["network"] == pytest.approx(float(loss_of(with_lora, batch, after)[0]["lora"]))


GROWN = Grafts(new="^mcondition/", changed="^(mix|exit)/kernel")


def instructed(**fields):
    """AID in its smallest form: frames and texts are told to a frozen network through layers of its own."""
    dqformer = DQFormer(width=4, frames=3, queries=2, heads=2, states=2)
    told = (
        GivenLatents(tiny.VAE(), 3, given=2, aug=0.0, tell=False),
        MCondition(tiny.Text(), tiny.Vision(), dqformer, tiny.prepare, given=2),
    )
    base = dict(network=tiny.Network(), vae=tiny.VAE(), conditioners=told, schedule=EDM(), prediction=V(), times=schedules.log_normal)
    return Denoise(**base, adapters=GROWN, trained=("adapters", "dqformer"), drop=((("text",), 0.1), (("text", "image"), 0.2)), **fields)


TOLD = BATCH | {"state_ids": np.stack([BATCH["text_ids"]] * 2, axis=1), "null_ids": np.ones((2, 5), np.int32)}


def test_gradients_reach_only_what_is_trained():
    """Of AID the adapters and the DQFormer; the frozen groups stay bit for bit, and none of their gradients is computed."""
    objective = instructed()
    losses, before, state = trained(objective, ("adapters", "dqformer"), TOLD, 40)
    assert set(before) == {"network", "vae", "text", "vision", "adapters", "dqformer"} and set(state.params) == {"adapters", "dqformer"}
    assert np.mean(losses[-8:]) < np.mean(losses[:8])
    for group in ("network", "vae", "text", "vision"):
        jax.tree.map(np.testing.assert_array_equal, state.frozen[group], before[group])
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), {g: before[g] for g in state.params}, state.params)
    assert all(jax.tree.leaves(moved))
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    merged = GROWN.merge(before["network"], state.params["adapters"])
    whole = dataclasses.replace(objective, adapters=None, trained=("network",))
    params = {**state.frozen, **state.params, "network": merged}
    ours = loss_of(objective, TOLD, {**state.frozen, **state.params})[0]
    assert ours["adapters"] == ours["dqformer"] == pytest.approx(float(loss_of(whole, TOLD, params)[0]["network"]), rel=1e-5)


def test_adapters_and_a_lora_beside_one_network():
    objective = dataclasses.replace(instructed(), lora=LoRA("enter", rank=2), trained=())
    params = tiny.fill(objective, TOLD)
    assert set(params) == {"network", "vae", "text", "vision", "adapters", "dqformer", "lora"}
    losses, _ = loss_of(objective, TOLD, params)
    assert set(losses) == {"adapters", "lora"}
    np.testing.assert_array_equal(losses["lora"], loss_of(instructed(), TOLD, params)[0]["adapters"])  # b is zero


def test_windows_share_as_many_frames_as_are_given():
    objective = instructed(tasks=dict(TI2V=()))
    assert objective.overlap == objective.given_frames(3) == 2 and objective.predicts == (True,)
    video = jnp.arange(2 * 3 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 3, 4, 6, 3) / 500
    shown, given = objective.condition_video({"video": video, "task": np.zeros(2, np.int32)})
    np.testing.assert_allclose(shown, video[:, [0, 1, 1]], atol=1e-6)
    np.testing.assert_array_equal(given[0, :, 0, 0, 0], [True, True, False])
    assert objective.continuation(2) is objective
    with pytest.raises(ValueError, match="overlap=1: this model is told 2 frames"):
        objective.continuation(1)


def test_dual_guidance_is_the_papers_sum():
    """x0(nothing) + s_V (x0(image) - x0(nothing)) + s_T (x0(image, text) - x0(image))."""
    rows = ((("text", "image"), (1.0, 3.0)), (("text",), 7.5))
    objective = instructed(sampling=Sampling(EulerEDM(), 2, rows))
    params, level = tiny.fill(objective, TOLD), EDM().level(jnp.asarray(2.0))
    z = jnp.asarray(Z[:, :, :, :3])
    denoise = objective.guided(params, TOLD, KEY, 3)(z, level)
    x0 = objective.denoiser(params)
    say = lambda **keep: x0(z, level, objective.condition(params, TOLD, {k: jnp.full(2, v) for k, v in keep.items()}, KEY, 3))
    none, image, both = say(text=False, image=False), say(text=False, image=True), say(text=True, image=True)
    rising = np.linspace(1, 3, 3, dtype=np.float32)[:, None, None, None]
    np.testing.assert_allclose(denoise, none + rising * (image - none) + 7.5 * (both - image), atol=1e-4)
    weights = objective.with_decoding(guidance=(2.0, None)).sampling.guidance
    assert weights == ((("text", "image"), (1.0, 2.0)), (("text",), 7.5))
    with pytest.raises(ValueError, match="1 weights of guidance for 2 rows"):
        objective.with_decoding(guidance=(2.0,))


def test_frames_that_are_given_need_not_be_learned():
    objective = instructed()
    params = tiny.fill(objective, TOLD)
    mask = LearnAfter(2)({"video": TOLD["video"][0]}, np.random.default_rng(0))["loss_mask"]
    np.testing.assert_array_equal(mask, [0, 0, 1])
    some = loss_of(objective, TOLD | {"loss_mask": np.stack([mask] * 2)}, params)[0]["adapters"]
    assert some != loss_of(objective, TOLD, params)[0]["adapters"]
    with pytest.raises(ValueError, match="given=3 of 3 frames: leave at least one to learn"):
        LearnAfter(3)({"video": TOLD["video"][0]}, np.random.default_rng(0))


def test_built_from_a_config():
    target = lambda path, **fields: dict(target=f"magvid.{path}", **fields)
    objective = build(
        target(
            "objectives.denoise:Denoise",
            network=dict(target="tiny_diffusion:Network"),
            conditioners=[
                target("models.conditioners:TextTokens", text=dict(target="tiny_diffusion:Text"), null=list(NULL))
            ],
            schedule=target(
                "diffusion.schedules:Discrete", betas=dict(factory="magvid.diffusion.schedules:cosine"), zero_snr=True
            ),
            prediction=target("diffusion.predictions:V"),
            times=dict(factory="magvid.diffusion.schedules:logit_normal", std=0.5),
            weight=dict(factory="magvid.diffusion.predictions:min_snr", gamma=3.0),
            drop=[[["text"], 0.1]],
            lora=target("lora:LoRA", regex="mix", rank=2),
            sampling=target(
                "objectives.denoise:Sampling",
                sampler=target("diffusion.samplers:DPMSolverPP2M"),
                steps=2,
                guidance=[[["text"], [1.0, 2.0]]],
                wraps=[dict(factory="magvid.diffusion.guidance:clip", high=2.0)],
            ),
        )
    )
    batch = {"latents": Z, "text_ids": BATCH["text_ids"]}
    params = tiny.fill(objective, batch)
    assert np.isfinite(loss_of(objective, batch, params)[0]["lora"])
    assert jax.eval_shape(objective.sample_latents, params, batch, KEY).shape == Z.shape


# An entity (MagDiff) ------------------------------------------------------------------------------------------------

ENTITY = dict(
    network=tiny.Network(),
    vae=tiny.VAE(),
    conditioners=(
        TextTokens(tiny.Text(), null=NULL),
        EntityTokens(tiny.Vision(), Resampler(width=4, queries=2, depth=1, heads=1, head_dim=4, out=3), tiny.prepare),
        EntityLatents(tiny.VAE(), Pyramid(), (1.5, 1.0)),
    ),
    schedule=Discrete(zero_snr=True, spacing=schedules.trailing),
    prediction=V(),
    drop=((("text",), 0.1), (("image",), 0.1), (("text", "image"), 0.2)),
    trained=("network", "resampler", "pyramid"),
    sampling=Sampling(DDIM(), 3, ((("text", "image"), 1.5), (("text",), 2.0))),
    carried=2,
)
SHOWN = {
    **BATCH,
    "entities": np.random.default_rng(3).integers(0, 256, (2, 3, 6, 9, 3)).astype(np.uint8),
    "entity_valid": np.array([[True, True, False], [True, False, False]]),
    "noise": np.random.default_rng(4).normal(size=(2, 3, 2, 3, 2)).astype(np.float32),
}


def test_what_reads_an_entity_trains_beside_the_network():
    objective = Denoise(**ENTITY)
    assert objective.tasks == {"TR2V": ()} and objective.told("image") == (False,) and objective.told("entities") == (True,)
    losses, before, state = trained(objective, ENTITY["trained"], SHOWN, 25)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    jax.tree.map(np.testing.assert_array_equal, state.frozen, {g: before[g] for g in ("vae", "text", "vision")})
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), {g: before[g] for g in state.params}, state.params)
    assert all(jax.tree.leaves(moved))


def test_the_entity_and_the_text_have_weights_of_their_own():
    objective = Denoise(**ENTITY)
    params = tiny.fill(objective, SHOWN)
    sample = lambda batch, *weights: np.asarray(objective.with_decoding(guidance=weights).sample_latents(params, batch, KEY))
    none = {**SHOWN, "entity_valid": np.zeros((2, 3), bool)}
    assert np.array_equal(sample(none, 0.0, 0.0), sample(SHOWN, 0.0, 0.0))
    different = [np.abs(sample(none, *w) - sample(SHOWN, *w)).max() for w in ((1.0, 0.0), (3.0, 0.0))]
    assert 1e-3 < different[0] < different[1]
    other = {**SHOWN, "text_ids": SHOWN["text_ids"][::-1]}
    assert np.array_equal(sample(other, 1.0, 0.0), sample(SHOWN, 1.0, 0.0))
    different = [np.abs(sample(other, *w) - sample(SHOWN, *w)).max() for w in ((1.0, 1.0), (1.0, 3.0))]
    assert 1e-3 < different[0] < different[1]
    with pytest.raises(ValueError, match="3 weights of guidance for 2 rows"):
        objective.with_decoding(guidance=(1.0, 2.0, 3.0))


def test_cells_all_of_whose_pixels_stay_come_out_as_they_are():
    objective = Denoise(**ENTITY)
    params = tiny.fill(objective, SHOWN)
    stays = np.ones((2, 3, 4, 6), bool)
    stays[0, 1, 1, 2] = stays[1, :, 2:, 4:] = False  # one pixel; a corner of all frames
    found = np.asarray(objective.sample_latents(params, {**SHOWN, "stays": stays}, KEY))
    clean = np.asarray(objective.latents(params, SHOWN, None))
    edited = np.zeros((2, 3, 2, 3), bool)
    edited[0, 1, 0, 1] = edited[1, :, 1, 2] = True
    np.testing.assert_array_equal(found[~edited], clean[~edited])
    assert np.all(np.abs(found - clean)[edited] > 1e-6)
    video, copy, made = (np.asarray(x) for x in (objective.sample(params, {**SHOWN, "stays": stays}, KEY), objective.reconstruct(params, SHOWN), objective.decode(params, found)))
    np.testing.assert_array_equal(video[stays], copy[stays])  # of each pixel, also of those beside what is made anew
    np.testing.assert_array_equal(video[~stays], made[~stays])
    touched = np.zeros_like(stays)
    touched[0, 1, :2, 2:4] = True
    assert np.abs(made - copy)[touched & stays].max() > 1e-3
    shown, given = objective.condition_video({**SHOWN, "stays": stays})
    np.testing.assert_array_equal(given[..., 0], stays)
    assert shown.shape == (2, 3, 4, 6, 3) and not np.asarray(shown[1, 1:]).any()


def test_the_windows_of_a_long_video_share_frames_that_are_given_in_place():
    objective = Denoise(**ENTITY)
    assert objective.overlap == 2 and objective.predicts == (True,) and objective.given_frames(3) == 0
    params = tiny.fill(objective, SHOWN)
    found = objective.continuation(2).sample_latents(params, SHOWN, KEY)
    np.testing.assert_array_equal(found[:, :2], objective.latents(params, SHOWN, None)[:, :2])
    assert not np.allclose(found[:, 2], objective.sample_latents(params, SHOWN, KEY)[:, 2])
    with pytest.raises(ValueError, match="3 frames are given of a clip of 3"):
        objective.continuation(3).sample_latents(params, SHOWN, KEY)
    assert Denoise(**{**ENTITY, "carried": 0}).predicts == (False,)
