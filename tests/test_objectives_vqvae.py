"""The tokenizer's objective: it learns, its numbers mean what they say, and bfloat16 weights compute in bfloat16."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from magvid.models.layers import GroupNorm
from magvid.models.quantizers import VQ
from magvid.models.tokenizer import Tokenizer
from magvid.models.vq3d import Decoder, Encoder
from magvid.objectives.vqvae import VQVAE, psnr


def tiny(**options) -> VQVAE:
    shared = dict(filters=4, multipliers=(1, 2), temporal=(True,), blocks=(0, 0, 1), norm=partial(GroupNorm, groups=2))
    return VQVAE(Tokenizer(Encoder(dim=5, **shared), VQ(7, 5), Decoder(**shared)), **options)


VIDEO = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 12, 3)).astype(np.uint8)


def test_it_fits_one_grey_batch():
    objective, batch = tiny(), {"video": np.full_like(VIDEO, 200)}
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    tx = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        def loss(params):
            losses, rest = objective.loss(params, {}, batch, jax.random.key(0), 0, True)
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
        params = jax.jit(objective.init)(jax.random.key(0), {"video": VIDEO})
        loss = jax.jit(lambda p, o=objective: o.loss(p, {}, {"video": VIDEO}, jax.random.key(0), 0, True))
        losses[weight], (parts, extra) = loss(params)
        assert extra == {}
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
    params = jax.jit(plain.init)(jax.random.key(0), batch)
    mse = lambda o, train: o.loss(params, {}, batch, jax.random.key(0), 0, train)[1][0]["mse"]
    assert mse(plain, False) == mse(padded, False) and mse(plain, True) != mse(padded, True)
    with pytest.raises(ValueError, match=r"padded=1.5"):
        tiny(padded=1.5)


def test_psnr_by_hand():
    target = jnp.zeros((1, 2, 4, 4, 3))
    video = target.at[:, 0].set(0.1).at[:, 1].set(-5.0)  # values below 0 are clipped: the second frame is perfect
    np.testing.assert_allclose(psnr(video, target), (20 + 100) / 2, rtol=1e-5)


def test_bfloat16_weights_compute_in_bfloat16():
    objective = tiny()
    params = jax.jit(objective.init)(jax.random.key(0), {"video": VIDEO})
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    program = str(jax.make_jaxpr(lambda p: objective.loss(p, {}, {"video": VIDEO}, None, 0, True))(half))
    convolutions = [line for line in program.splitlines() if "conv_general_dilated[" in line]
    assert convolutions and all("bf16" in line for line in convolutions)
    run = lambda p: jax.jit(lambda p: objective.loss(p, {}, {"video": VIDEO}, None, 0, True)[1][0]["mse"])(p)
    np.testing.assert_allclose(run(half), run(params), rtol=0.05)
