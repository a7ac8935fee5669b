"""The masked objective: sequences, losses and training steps equal the official code; samples obey their conditions."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers import Golden, flatten, nest
from magvid import optim
from magvid.masked.commit import COMMIT, PREFIX, mask_tokens
from magvid.models.layers import GroupNorm
from magvid.models.quantizers import VQ
from magvid.models.tokenizer import Tokenizer
from magvid.models.transformer import Transformer
from magvid.models.vq3d import Decoder, Encoder
from magvid.objectives.masked import Masked
from magvid.objectives.tokens import ALL_TASKS
from magvid.losses import token_cross_entropy, weighted_mean
from magvid.types import Vocab
from test_masked_tasks import OFFICIAL
from tools.official import TRANSFORMER
from tools.rules import rename


def tiny(vocab=Vocab(7, 4), tasks=ALL_TASKS, grid=(2, 4, 6), more=0, **options) -> Masked:
    """Clips of 4x8x12 pixels, 2x4x6 tokens, and `more` in the prefix."""
    shared = dict(filters=4, multipliers=(1, 2), temporal=(True,), blocks=(0, 0, 1), norm=partial(GroupNorm, groups=2))
    tokenizer = Tokenizer(Encoder(dim=5, **shared), VQ(vocab.codebook, 5), Decoder(**shared))
    n = int(np.prod(grid)) + (2 if vocab.specials > 1 else 1) + more
    transformer = Transformer(vocab.size, n, 16, 1, 2, 32, 0.1)
    return Masked(tokenizer=tokenizer, transformer=transformer, vocab=vocab, tasks=tasks, **options)


def batch_of(n=2, tasks=10, seed=0):
    rng = np.random.default_rng(seed)
    video = rng.integers(0, 256, (n, 4, 8, 12, 3)).astype(np.uint8)
    return dict(video=video, label=rng.integers(0, 4, n), task=np.arange(n) % tasks, ratio=rng.random(n, np.float32))


@pytest.mark.parametrize("multi", [True, False])
@pytest.mark.parametrize("official", ["full_generation", *sorted(set(OFFICIAL) - {"frame_prediction_5"})])
def test_golden_sequences(official, multi):
    golden, config = Golden("tokens"), Golden("tokens").config
    vocab = Vocab(config["vq_codebook_size"], config["num_classes"], 16 if multi else 1)
    assert vocab.size == config["vocab_multi" if multi else "vocab_single"]
    name = "official:" + OFFICIAL.get(official, "CG")
    objective = tiny(vocab, (name, "official:CG") if multi else (name,), grid=config["latent"])
    batch = dict(label=golden["label"][:, 0], task=jnp.zeros(2, int))
    key = f"multi{int(multi)}|{official}:"
    region = np.broadcast_to(golden.get(key + "cond_mask", np.zeros((2, 1, 1, 1), bool)), golden["inputs"].shape)
    gamma = jnp.full(2, config["mask_ratio"], jnp.float32)
    hidden = mask_tokens(
        golden["inputs"], golden["cond_inputs"], region, gamma, golden["mask_score"], vocab.mask, COMMIT
    )
    for ours, conditional, theirs in (
        (hidden.inputs, True, "masked_inputs"),
        (hidden.uncond, False, "uncond_masked_inputs"),
    ):
        prefix = objective.prefix(batch, golden["cond_inputs"], conditional)
        np.testing.assert_array_equal(
            jnp.concatenate([prefix, ours.reshape(2, -1)], 1), golden[key + theirs] % vocab.size
        )
    np.testing.assert_array_equal(hidden.targets.reshape(2, -1), golden[key + "targets"][:, prefix.shape[1] :])


def test_golden_training_steps():
    """Three official steps: loss, clipped gradient, AdamW with decay on kernels."""
    golden, config = Golden("bert_trainstep"), Golden("bert_trainstep").config
    model = Transformer(
        config["vocab"], 34, config["hidden"], config["layers"], config["heads"], config["mlp"], dropout=0.0
    )
    params = nest(rename(golden.flat("params_before:"), TRANSFORMER))
    adamw = dict(name="adamw", b1=0.9, b2=0.96, eps=1e-8, weight_decay=0.045, decay_regex="kernel")
    optimiser = optim.make(
        dict(optimizer=adamw, rules=[[".*", dict(peak=1e-2, warmup=0, decay="cosine")]], clip=1.0), params, 10
    )
    state = optimiser.tx.init(params)

    @jax.jit
    def step(params, state, ids, targets, weights, valid):
        def loss(params):
            logits = model.apply({"params": params}, ids)[..., : config["codebook"]]
            per_clip = weighted_mean(token_cross_entropy(logits, targets, config["label_smoothing"]), weights)
            return jnp.mean(per_clip * valid)  # the official mean counts padded examples

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimiser.tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    for i in range(3):
        part = lambda name: golden[f"step{i}:{name}"]
        ids, targets = part("masked_inputs") % config["vocab"], part("targets") % config["vocab"]
        valid = golden.get(f"step{i}:batch_batch_mask", np.ones(3))
        params, state, value = step(params, state, ids, targets * (part("weights") > 0), part("weights"), valid)
        np.testing.assert_allclose(value, part("metric_total_loss"), rtol=1e-5)
        expected = rename(golden.flat(f"params_after{i}:"), TRANSFORMER)
        for name, leaf in flatten(params).items():
            # Softmax does not see the key's bias: its gradient is rounding, which Adam makes as large as the learning
            # rate.
            atol = 2.1e-2 if name.endswith("key/bias") else 2e-4
            np.testing.assert_allclose(leaf, expected[name], atol=atol, err_msg=f"{name} after step {i}")


def test_loss_of_every_task_is_near_uniform_at_the_start_and_has_gradients():
    objective, batch = tiny(), batch_of(10)
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    assert set(params) == {"tokenizer", "transformer"}

    @jax.jit
    def run(transformer):
        losses, (metrics, extra) = objective.loss(
            {**params, "transformer": transformer}, {}, batch, jax.random.key(1), 0, True
        )
        return losses["transformer"], metrics

    (loss, metrics), grads = jax.value_and_grad(run, has_aux=True)(params["transformer"])
    assert abs(loss - np.log(7)) < 0.2 and metrics["loss"] == loss
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(grads["block_0"]["mlp_in"]))


def test_padded_examples_do_not_count():
    objective, batch = tiny(), batch_of(3)
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    loss = jax.jit(lambda b: objective.loss(params, {}, b, jax.random.key(1), 0, False)[0]["transformer"])
    masked = batch | {"valid": np.array([True, True, False])}
    other = masked | {"video": np.concatenate([batch["video"][:2], 255 - batch["video"][2:]])}
    assert loss(masked) == loss(other) != loss(batch)


def test_samples_are_videos_and_depend_on_the_condition_only_through_the_task():
    objective, batch = tiny(decoding=dict(steps=3)), batch_of(2)
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    params["transformer"] = jax.tree.map(lambda p: p * 8, params["transformer"])
    sample = jax.jit(objective.sample)
    at = lambda name, **changes: sample(
        params, batch | changes | {"task": np.full(2, ALL_TASKS.index(name))}, jax.random.key(2)
    )
    black = np.zeros_like(batch["video"])
    assert at("CG").shape == (2, 4, 8, 12, 3) and 0 <= at("CG").min() <= at("CG").max() <= 1
    np.testing.assert_array_equal(at("CG"), at("CG", video=black))  # no pixel is read
    assert (at("CG") != at("CG", label=(batch["label"] + 1) % 4)).any()
    np.testing.assert_array_equal(at("OPC"), at("OPC", label=(batch["label"] + 1) % 4))  # no class is read
    assert (at("OPC") != at("OPC", video=black)).any()
    later = np.concatenate([batch["video"][:, :1], black[:, 1:]], axis=1)
    np.testing.assert_array_equal(at("FP"), at("FP", video=later))  # only the first frame is read


def test_a_prefix_holds_the_condition_tokens():
    """[class] [24 tokens of the first latent frame] [SEP], and the grid begins as [MASK]: table 5's prefix condition."""
    vocab = Vocab(7, 4, 1)
    objective = tiny(vocab, ("FP",), more=25, conditioning=PREFIX, guidance=1.0, decoding=dict(steps=3))
    batch = batch_of(2, tasks=1)
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    params["transformer"] = jax.tree.map(lambda p: p * 8, params["transformer"])
    cond_ids, region = objective.condition(params, batch)
    assert region[:, 0].all() and not region[:, 1:].any()
    prefix, uncond = (objective.prefix(batch, cond_ids, conditional) for conditional in (True, False))
    assert prefix.shape == (2, 26) and (prefix[:, 0] == vocab.uncond).all() and (prefix[:, -1] == vocab.sep).all()
    np.testing.assert_array_equal(prefix[:, 1:-1], cond_ids[:, 0].reshape(2, 24))
    assert (uncond[:, 1:-1] == vocab.mask).all()
    ids, record = jax.jit(objective.sample_ids)(params, batch, jax.random.key(2))
    assert (record.inputs[0] == vocab.mask).all()
    other = batch | {"video": batch["video"].copy()}
    other["video"][:, 1:] = 0
    np.testing.assert_array_equal(jax.jit(objective.sample_ids)(params, other, jax.random.key(2))[0], ids)
    other["video"][:, 0] = 255 - other["video"][:, 0]
    assert (jax.jit(objective.sample_ids)(params, other, jax.random.key(2))[0] != ids).any()
    loss = jax.jit(lambda p: objective.loss(p, {}, batch, jax.random.key(1), 0, True)[0]["transformer"])(params)
    assert jnp.isfinite(loss)
    with pytest.raises(ValueError, match="the length of one task's, got 10 tasks"):
        tiny(conditioning=PREFIX)


def test_guidance_of_zero_is_no_guidance():
    objective, batch = tiny(decoding=dict(steps=2)), batch_of(2)
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    params["transformer"] = jax.tree.map(lambda p: p * 8, params["transformer"])
    ids = lambda g: jax.jit(dataclasses.replace(objective, guidance=g).sample_ids)(params, batch, jax.random.key(2))[0]
    assert (ids(0.0) != ids(5.0)).any()


def test_mismatches_are_named():
    with pytest.raises(ValueError, match="vocab.codebook=9, but the tokenizer has 7 codes"):
        dataclasses.replace(tiny(), vocab=Vocab(9, 4))
    with pytest.raises(ValueError, match=r"transformer.vocab=28, but Vocab\(codebook=7, classes=5"):
        dataclasses.replace(tiny(), vocab=Vocab(7, 5))
    with pytest.raises(ValueError, match="10 tasks need task tokens"):
        tiny(Vocab(7, 4, 1))
    with pytest.raises(ValueError, match=r"transformer.length=42, but clips of \(4, 8, 12\) \(t h w\) make 50 tokens"):
        jax.eval_shape(tiny(grid=(2, 4, 5)).init, jax.random.key(0), batch_of())
    with pytest.raises(ValueError, match="special token number 3 is outside 1..1"):
        Vocab(7, 4, 1).special(3)
