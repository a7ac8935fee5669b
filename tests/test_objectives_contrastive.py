"""The contrastive loss by hand, against an independent form, and a tiny model that learns what moves where."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import clip_sprites
from magvid.models.clip import CLIP, TemporalPool, TextTower, VisionTower
from magvid.objectives.contrastive import MAX_SCALE, Contrastive, contrastive_loss, equal_rows, retrieval_at_1
from magvid.train import train


def tiny(temporal=True, frames=3) -> Contrastive:
    sizes = dict(width=16, depth=1, heads=2, mlp=32, projection=8)
    clip = CLIP(TextTower(12, 5, **sizes), VisionTower(patch=4, image=(8, 12), **sizes))
    return Contrastive(clip, TemporalPool(frames, depth=1, heads=2, mlp=16) if temporal else None)


def random_params(objective: Contrastive, batch: dict, seed=0) -> dict:
    """In place of `init`, whose random numbers take longer to compile than all else here."""
    shapes, rng = jax.eval_shape(objective.init, jax.random.key(0), batch), np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("scale", "logit_scale", "bias"):
            return np.full(leaf.shape, {"scale": 1, "logit_scale": -math.log(0.07), "bias": 0}[name], np.float32)
        fan = math.prod(leaf.shape[:-1]) if name == "kernel" else 4
        return rng.standard_normal(leaf.shape).astype(np.float32) / math.sqrt(fan)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def batch_of(n=4, frames=3, seed=0) -> dict:
    rng = np.random.default_rng(seed)
    ids = np.stack([[1, 3 + i, 11, 0, 0] for i in range(n)]).astype(np.int32)
    return {"video": rng.integers(0, 256, (n, frames, 8, 12, 3)).astype(np.uint8), "text_ids": ids}


def logsumexp(x) -> float:
    return float(np.log(np.sum(np.exp(x))))


def test_the_loss_by_hand():
    loss = jax.jit(contrastive_loss)
    rows = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-2))]
    columns = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(-3))]
    scores = np.asarray([[2, 0], [1, 3]], np.float32)
    np.testing.assert_allclose(loss(scores, np.eye(2, dtype=bool)), (sum(rows) + sum(columns)) / 4, rtol=1e-6)
    np.testing.assert_allclose(loss(np.zeros((2, 2), np.float32), np.eye(2, dtype=bool)), math.log(2), rtol=1e-6)


def test_equal_captions_are_no_negatives_and_right_answers():
    equal = np.asarray(jax.jit(equal_rows)(np.asarray([[1, 4, 9], [1, 5, 9], [1, 4, 9]])))
    np.testing.assert_array_equal(equal, [[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    scores = np.asarray([[0, 1, 5], [2, 3, 0], [1, 4, 2]], np.float32)
    compared = [[0, 1], [0, 1, 2], [1, 2]]  # each with itself and with what differs
    rows = [logsumexp(scores[i, others]) - scores[i, i] for i, others in enumerate(compared)]
    columns = [logsumexp(scores[others, i]) - scores[i, i] for i, others in enumerate(compared)]
    loss, gradient = jax.jit(jax.value_and_grad(contrastive_loss))(scores, equal)
    np.testing.assert_allclose(loss, (sum(rows) + sum(columns)) / 6, rtol=1e-6)
    assert np.isfinite(gradient).all() and gradient[0, 2] == gradient[2, 0] == 0
    retrieval = jax.jit(retrieval_at_1)
    np.testing.assert_allclose(retrieval(scores, equal), 2 / 3)  # row 0 finds its equal, row 2 another text
    np.testing.assert_allclose(retrieval(scores.T.copy(), equal), 1 / 3)


def test_loss_and_metrics_are_those_of_the_embeddings():
    objective, batch = tiny(), batch_of()
    batch["text_ids"][3] = batch["text_ids"][0]
    params = random_params(objective, batch)
    losses, (metrics, extra) = jax.jit(lambda p: objective.loss(p, {}, batch, None, 0, False))(params)
    embed = lambda p: (objective.embed_videos(p, batch["video"]), objective.embed_texts(p, batch["text_ids"]))
    videos, texts = jax.jit(embed)(params)
    for embedding in (videos, texts):
        np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-5)
    scores = np.asarray(videos @ texts.T) / 0.07
    equal = np.asarray(jax.jit(equal_rows)(batch["text_ids"]))
    np.testing.assert_allclose(metrics["scale"], 1 / 0.07, rtol=1e-5)
    np.testing.assert_allclose(losses["clip"], jax.jit(contrastive_loss)(scores, equal), rtol=1e-4)
    assert losses["temporal"] == losses["clip"] == metrics["loss"] and extra == {}
    best = scores.argmax(1)
    np.testing.assert_allclose(metrics["video_to_text"], np.mean([equal[i, best[i]] for i in range(4)]))
    np.testing.assert_allclose(metrics["retrieval_at_1"], (metrics["video_to_text"] + metrics["text_to_video"]) / 2)


def test_only_the_temporal_part_knows_the_order_of_frames():
    batch = batch_of()
    backwards = batch["video"][:, ::-1].copy()
    for temporal in (False, True):
        objective = tiny(temporal)
        params = random_params(objective, batch)
        embed = jax.jit(objective.embed_videos)
        same = np.allclose(embed(params, batch["video"]), embed(params, backwards), atol=1e-5)
        assert same != temporal
    with pytest.raises(ValueError, match="clips of 2 frames, but the order of 3 is learned"):
        jax.eval_shape(objective.embed_videos, params, batch["video"][:, :2])


def test_the_scale_stays_below_100():
    objective = tiny(temporal=False)
    params = {"clip": {"logit_scale": jnp.asarray(7.0), "vision": 1}}
    params, extra = objective.after_step(params, {"a": 1}, jax.random.key(0))
    np.testing.assert_allclose(params["clip"]["logit_scale"], MAX_SCALE)
    assert params["clip"]["vision"] == 1 and extra == {"a": 1}


def test_it_learns_which_way_things_move():
    """Two texts, the same frames in two orders: chance is all that single frames allow."""
    frames = np.zeros((2, 3, 8, 12, 3), np.uint8)
    for i in range(3):
        frames[0, i, 2:6, 4 * i : 4 * i + 4] = frames[1, 2 - i, 2:6, 4 * i : 4 * i + 4] = 255
    batch = {"video": frames, "text_ids": np.asarray([[1, 4, 11, 0, 0], [1, 5, 11, 0, 0]], np.int32)}
    objective = tiny()
    params = random_params(objective, batch)
    tx = optax.adam(3e-3)

    @jax.jit
    def step(params, state):
        loss = lambda p: (lambda out: (out[0]["clip"], out[1][0]))(objective.loss(p, {}, batch, None, 0, True))
        gradients, metrics = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(gradients, state)
        return optax.apply_updates(params, updates), state, metrics

    state = tx.init(params)
    for _ in range(60):
        params, state, metrics = step(params, state)
    assert metrics["loss"] < 0.2 and metrics["retrieval_at_1"] == 1


def test_a_smoke_run_takes_two_steps_and_reports_retrieval(tmp_path):
    config = clip_sprites.get_config("smoke=1")
    config.eval_every = 2
    state, metrics = train(config, tmp_path / "clip", devices=jax.devices()[:1])
    assert int(state.step) == 2 and all(v == v for v in metrics.values())
    assert 0 <= metrics["eval/retrieval_at_1"] <= 1
