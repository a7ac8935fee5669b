"""The tokenizer's objective equals the official training step, learns, and its numbers mean what they say."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers import Golden, drawn, flatten, nest
from magvid import optim, state
from magvid.losses import gradient_penalty, hinge
from magvid.models.discriminator import Discriminator
from magvid.models.layers import GroupNorm, LayerNorm
from magvid.models.quantizers import FSQ, VQ
from magvid.models.tokenizer import Tokenizer
from magvid.models.vq3d import Decoder, Encoder
from magvid.objectives.vqgan import VQGAN, psnr


def tiny(**options) -> VQGAN:
    shared = dict(filters=4, multipliers=(1, 2), temporal=(True,), blocks=(0, 0, 1), norm=partial(GroupNorm, groups=2))
    return VQGAN(Tokenizer(Encoder(dim=5, **shared), VQ(7, 5), Decoder(**shared)), **options)


VIDEO = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 12, 3)).astype(np.uint8)


def test_it_fits_one_grey_batch():
    objective, batch = tiny(), {"video": np.full_like(VIDEO, 200)}
    params = drawn(objective.init, jax.random.key(0), batch)
    tx = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        def loss(params):
            losses, rest = objective.loss(params, objective.init_extra(), batch, jax.random.key(0), 0, True)
            return losses["tokenizer"], rest

        grads, (metrics, _) = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state, metrics

    state = tx.init(params)
    for _ in range(100):
        params, state, metrics = step(params, state)
    assert metrics["mse"] < 3e-3 and metrics["psnr"] > 25
    assert abs(np.asarray(objective.sample(params, batch, None)) - 200 / 255).mean() < 0.05


def test_the_loss_is_the_weighted_sum_of_its_parts():
    losses, parts = {}, {}
    for weight in (1.0, 10.0):
        objective = tiny(reconstruction=weight)
        params = drawn(objective.init, jax.random.key(0), {"video": VIDEO})
        loss = jax.jit(lambda p, o=objective: o.loss(p, o.init_extra(), {"video": VIDEO}, jax.random.key(0), 0, True))
        losses[weight], (parts, _) = loss(params)
    difference = losses[10.0]["tokenizer"] - losses[1.0]["tokenizer"]
    np.testing.assert_allclose(difference, 9 * parts["mse"], rtol=1e-4)
    own = parts["commitment"] + parts["embedding"] + parts["entropy"]
    np.testing.assert_allclose(losses[1.0]["tokenizer"], parts["mse"] + own, rtol=1e-4)


def test_padded_clips_are_conditions_of_the_named_tasks():
    """Every clip is either itself or the padded condition of one of the tasks; at about the given share."""
    objective = tiny(padded=0.25, padded_tasks=("FP", "IPC"))
    video = jnp.tile(jnp.asarray(VIDEO[:1], jnp.float32) / 255, (400, 1, 1, 1, 1))
    seen = np.asarray(jax.jit(objective.pad_some)(video, jax.random.key(1)))
    first = np.broadcast_to(video[0, :1], video.shape[1:])
    hole = np.array(video[0])
    hole[:, 2:6, 3:9] = 0
    counts = [sum(np.array_equal(clip, other) for clip in seen) for other in (np.asarray(video[0]), first, hole)]
    assert sum(counts) == 400 and 270 < counts[0] < 330 and min(counts[1:]) > 25


def test_padding_is_for_training_only():
    batch = {"video": VIDEO}
    plain, padded = tiny(), tiny(padded=1.0, padded_tasks=("IPC",))
    params = drawn(plain.init, jax.random.key(0), batch)
    mse = lambda o, train: o.loss(params, o.init_extra(), batch, jax.random.key(0), 0, train)[1][0]["mse"]
    assert mse(plain, False) == mse(padded, False) and mse(plain, True) != mse(padded, True)
    with pytest.raises(ValueError, match=r"padded=1.5"):
        tiny(padded=1.5)


def test_psnr_by_hand():
    target = jnp.zeros((1, 2, 4, 4, 3))
    video = target.at[:, 0].set(0.1).at[:, 1].set(-5.0)  # values below 0 are clipped: the second frame is perfect
    np.testing.assert_allclose(psnr(video, target), (20 + 100) / 2, rtol=1e-5)


def test_bfloat16_weights_compute_in_bfloat16():
    objective = tiny()
    params = drawn(objective.init, jax.random.key(0), {"video": VIDEO})
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    program = str(jax.make_jaxpr(lambda p: objective.loss(p, objective.init_extra(), {"video": VIDEO}, None, 0, True))(half))
    convolutions = [line for line in program.splitlines() if "conv_general_dilated[" in line]
    assert convolutions and all("bf16" in line for line in convolutions)
    run = lambda p: jax.jit(lambda p: objective.loss(p, objective.init_extra(), {"video": VIDEO}, None, 0, True)[1][0]["mse"])(p)
    np.testing.assert_allclose(run(half), run(params), rtol=0.05)


# --- the official training step: 3D discriminator, non-saturating loss, R1 of weight 10, LeCam of weight 0.1


def official(golden: Golden):
    """(objective, optimisers, state before step 0)."""
    config = golden.config["vqvae"]
    shared = dict(
        filters=config["filters"],
        multipliers=tuple(config["channel_multipliers"]),
        temporal=tuple(config["temporal_downsample"]),
        blocks=1,
        norm=LayerNorm,
    )
    dim = config["embedding_dim"]
    tokenizer = Tokenizer(Encoder(dim=dim, **shared), VQ(config["codebook_size"], dim), Decoder(**shared))
    judge = golden.config["discriminator"]
    objective = VQGAN(tokenizer, Discriminator(judge["filters"], tuple(judge["channel_multipliers"])), lecam_weight=0.1)
    params = {
        "tokenizer": nest(golden.flat("g_params_before:")),
        "discriminator": nest(golden.flat("d_params_before:")),
    }
    adam = dict(
        optimizer=dict(name="adamw", b1=0.0, b2=0.99, eps=1e-8, weight_decay=0.0, decay_regex="kernel"),
        rules=[[".*", dict(peak=1e-3, warmup=0, decay="cosine")]],
        clip=None,
    )
    shapes = jax.eval_shape(objective.init, jax.random.key(0), {"video": golden["step0:video"]})
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, params)
    optimisers = {g: optim.make(adam, shapes[g], 10, g) for g in params}
    extra = objective.init_extra() | {"lecam": jnp.asarray([0.3, -0.2])}
    start = state.init_state(params, {}, extra, jax.random.key(0), optimisers, ("tokenizer",))
    return objective, optimisers, start.replace(ema=jax.tree.map(lambda p: 1.01 * p, start.ema))


@pytest.mark.full
def test_official_training_steps(shared):
    folder = shared / "golden" / "magvit"
    golden, grads = Golden("vqgan_trainstep_r1", folder), Golden("vqgan_trainstep_r1_grads0", folder)
    objective, optimisers, current = official(golden)
    assert golden.config["lecam_weight"] == 0.1 and golden.config["vqgan"]["grad_penalty_cost"] == 10

    found = jax.jit(
        lambda s, b: state.gradients(objective, s.params, {}, {}, s.extra, b, s.key, s.step)[0]
    )(current, {"video": golden["step0:video"]})  # fmt: skip
    for group, prefix in (("tokenizer", "g_grads:"), ("discriminator", "d_grads:")):
        expected = grads.flat(prefix)
        largest = max(np.abs(g).max() for g in expected.values())
        assert set(expected) == set(flatten(found[group]))
        for name, grad in flatten(found[group]).items():
            np.testing.assert_allclose(grad, expected[name], rtol=1e-3, atol=1e-4 * largest, err_msg=name)

    step = jax.jit(state.make_step(objective, optimisers, ema=0.999))
    weighted = {"d_adversarial_loss": ("adversarial/discriminator", 1), "grad_penalty": ("adversarial/r1", 10),
                "lecam_loss": ("adversarial/lecam", 0.1), "g_adversarial_loss": ("adversarial/generator", 0.1),
                "reconstruction_loss": ("mse", 1), "d_loss": ("loss/discriminator", 1),
                "g_loss": ("loss/tokenizer", 1)}  # fmt: skip
    for i in range(2):
        current, metrics, finite = step(current, {"video": golden[f"step{i}:video"]})
        assert all(np.all(flag) for flag in finite.values())
        for theirs, (ours, weight) in weighted.items():
            expected = golden[f"step{i}:metric_{theirs}"]
            np.testing.assert_allclose(weight * metrics[ours], expected, rtol=2e-4, err_msg=f"{i} {theirs}")
        quantizer = sum(metrics[name] for name in ("commitment", "embedding", "entropy"))
        np.testing.assert_allclose(quantizer, golden[f"step{i}:metric_quantizer_loss"], rtol=2e-4)
        np.testing.assert_allclose(current.extra["lecam"], golden[f"step{i}:lecam_ema"], rtol=1e-5)
    # Adam with b1 = 0 moves by lr * sign(gradient) at first: a gradient next to 0 may fall on either side
    for ours, prefix in ((current.params["tokenizer"], "g_params_after1:"), (current.ema["tokenizer"], "ema_params_after1:"),
                         (current.params["discriminator"], "d_params_after1:")):  # fmt: skip
        for name, expected in golden.flat(prefix).items():
            difference = np.abs(flatten(ours)[name] - expected)
            assert difference.max() < 2.1e-3 and np.mean(difference > 1e-5) < 0.05, name


# --- what the options promise


def adversarial(**options) -> VQGAN:
    return tiny(discriminator=Discriminator(4, (1, 2)), **options)


def outcome(objective: VQGAN, step: int = 0, train: bool = True):
    """(losses, metrics, extra, {group: gradient of its own loss})."""
    params = drawn(objective.init, jax.random.key(0), {"video": VIDEO})
    args = {"video": VIDEO}, jax.random.key(0), jnp.asarray(step)
    grads, extra, totals, metrics = jax.jit(
        lambda p: state.gradients(objective, p, {}, {}, objective.init_extra(), *args)
    )(params)
    return totals, metrics, extra, grads


def test_the_adversary_starts_at_its_step():
    early, late = (outcome(adversarial(adversarial_start=5), step) for step in (4, 5))
    plain = outcome(tiny())
    np.testing.assert_allclose(early[0]["tokenizer"], plain[0]["tokenizer"], rtol=1e-6)
    difference = late[0]["tokenizer"] - early[0]["tokenizer"]
    np.testing.assert_allclose(difference, 0.1 * late[1]["adversarial/generator"], rtol=1e-3)
    assert early[0]["discriminator"] == late[0]["discriminator"]  # which learns all the time


def test_hinge_penalty_and_lecam_enter_the_discriminators_loss():
    totals, metrics, extra, _ = outcome(adversarial(adversarial=hinge, gradient_penalty=3.0, lecam_weight=2.0))
    real, fake = metrics["adversarial/real"], metrics["adversarial/fake"]
    lecam = max(real, 0) ** 2 + max(-fake, 0) ** 2  # the running means begin at 0
    np.testing.assert_allclose(metrics["adversarial/lecam"], lecam, rtol=1e-5)
    expected = metrics["adversarial/discriminator"] + 3 * metrics["adversarial/r1"] + 2 * lecam
    np.testing.assert_allclose(totals["discriminator"], expected, rtol=1e-5)
    np.testing.assert_allclose(extra["lecam"], [0.001 * real, 0.001 * fake], rtol=1e-4)
    np.testing.assert_allclose(metrics["adversarial/generator"], -fake, rtol=1e-5)


def test_r1_of_a_quadratic_by_hand():
    video = jnp.arange(24.0).reshape(2, 1, 2, 2, 3)
    value = gradient_penalty(lambda v: 0.5 * jnp.sum(v**2, axis=(1, 2, 3, 4)), video)
    np.testing.assert_allclose(value, np.mean(np.sum(np.arange(24.0).reshape(2, 12) ** 2, 1)))


def test_each_group_learns_from_its_own_loss_only():
    """The generator's gradient is that of its loss with the discriminator held fixed, and the other way round."""
    objective = adversarial()
    params = drawn(objective.init, jax.random.key(0), {"video": VIDEO})
    extra, key = objective.init_extra(), jax.random.key(0)
    together = outcome(objective)[3]

    def alone(group, mine):
        return objective.loss({**params, group: mine}, extra, {"video": VIDEO}, key, 0, True)[0][group]

    for group in ("tokenizer", "discriminator"):
        expected = jax.jit(jax.grad(partial(alone, group)))(params[group])
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), together[group], expected)


def test_codes_alive_counts_recent_use_and_restart_moves_dead_codes_onto_used_ones():
    objective = tiny(restart=True)
    params = drawn(objective.init, jax.random.key(0), {"video": VIDEO})
    shares = jnp.asarray([0.5, 0.3, 0.2, 0.0, 0.0, 1e-4, 2e-3])
    new, extra = objective.after_step(params, {"code_share": shares}, jax.random.key(3))
    before, after = (p["tokenizer"]["quantizer"]["codebook"] for p in (params, new))
    np.testing.assert_array_equal(after[jnp.asarray([0, 1, 2, 6])], before[jnp.asarray([0, 1, 2, 6])])
    for code in (3, 4, 5):  # 5 is used less than 1 / (100 * 7)
        distance = np.abs(np.asarray(after[code] - before[jnp.asarray([0, 1, 2, 6])])).max(1)
        assert 0 < distance.min() < 0.1 * np.std(before)
    np.testing.assert_allclose(extra["code_share"][3:6], 1 / 7)
    same = tiny().after_step(params, {"code_share": shares}, jax.random.key(3))
    assert same[0] is params
    with pytest.raises(ValueError, match="restart moves codes of a codebook, which FSQ lacks"):
        shape = dict(filters=4, multipliers=(1,), temporal=(), norm=LayerNorm)
        objective = VQGAN(Tokenizer(Encoder(dim=4, **shape), FSQ(), Decoder(**shape)), restart=True)
        jax.eval_shape(objective.init, jax.random.key(0), {"video": VIDEO})


def test_the_share_of_codes_follows_their_use():
    objective = tiny()
    _, metrics, extra, _ = outcome(objective)
    assert metrics["codes_alive"] == 1  # all began at an even share
    np.testing.assert_allclose(extra["code_share"].sum(), 1, rtol=1e-5)
    params = drawn(objective.init, jax.random.key(0), {"video": VIDEO})
    ids = objective.tokenizer.apply({"params": params["tokenizer"]}, jnp.asarray(VIDEO, jnp.float32) / 255, method="encode_ids")
    expected = 0.99 / 7 + 0.01 * np.bincount(np.ravel(ids), minlength=7) / ids.size
    np.testing.assert_allclose(extra["code_share"], expected, rtol=1e-5)


def test_clips_of_any_size_are_reconstructed_and_trained_on():
    """Sizes that the latent grid does not divide come back as they were."""
    plain, objective = tiny(), tiny(discriminator=Discriminator(filters=4, multipliers=(1, 2)))
    params = drawn(plain.init, jax.random.key(0), {"video": VIDEO})
    batch = {"video": np.random.default_rng(1).integers(0, 256, (2, 3, 9, 5, 3)).astype(np.uint8)}
    sample = jax.jit(lambda p, b: plain.sample(p, b, None))(params, batch)
    assert sample.shape == batch["video"].shape and 0 <= sample.min() < sample.max() <= 1
    fresh = jax.eval_shape(objective.init, jax.random.key(0), batch)  # the discriminator's weights are of one size
    loss = lambda p, b: objective.loss(p, objective.init_extra(), b, jax.random.key(0), 0, True)[0]
    assert set(jax.eval_shape(loss, fresh, batch)) == {"tokenizer", "discriminator"}
    assert set(jax.eval_shape(objective.for_sampling().init, jax.random.key(0), batch)) == {"tokenizer"}
