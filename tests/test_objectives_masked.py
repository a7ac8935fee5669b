"""The masked objective: sequences, losses and training steps equal the official code; samples obey their conditions."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers import Golden, drawn, flatten, nest
from magvid import optim
from magvid.masked.commit import (
    COMMIT,
    FIXED_CONDITION,
    PREFIX,
    mask_tokens,
)
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
    params = drawn(objective.init, jax.random.key(0), batch)
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
    params = drawn(objective.init, jax.random.key(0), batch)
    loss = jax.jit(lambda b: objective.loss(params, {}, b, jax.random.key(1), 0, False)[0]["transformer"])
    masked = batch | {"valid": np.array([True, True, False])}
    other = masked | {"video": np.concatenate([batch["video"][:2], 255 - batch["video"][2:]])}
    assert loss(masked) == loss(other) != loss(batch)


def test_samples_are_videos_and_depend_on_the_condition_only_through_the_task():
    objective, batch = tiny(decoding=dict(steps=3)), batch_of(2)
    params = drawn(objective.init, jax.random.key(0), batch)
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
    params = drawn(objective.init, jax.random.key(0), batch)
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
    params = drawn(objective.init, jax.random.key(0), batch)
    params["transformer"] = jax.tree.map(lambda p: p * 8, params["transformer"])
    ids = lambda g: jax.jit(dataclasses.replace(objective, guidance=g).sample_ids)(params, batch, jax.random.key(2))[0]
    assert (ids(0.0) != ids(5.0)).any()


def test_the_unconditional_pass_is_that_of_training_whatever_tasks_are_chosen():
    """It has the token of full generation, also where that task is not asked for."""
    every, some = tiny(), tiny().with_tasks(["FI", "FP5"]).with_tasks(["FP5"])
    batch = batch_of(2, tasks=1)
    assert some.tasks == ("FP5",) and some.trained_tasks == ALL_TASKS
    ids = jnp.zeros((2, 2, 4, 6), jnp.int32)
    full = every.prefix(batch | {"task": np.full(2, ALL_TASKS.index("CG"))}, ids)[:, 0]
    np.testing.assert_array_equal(some.prefix(batch, ids, False)[:, 0], full)
    np.testing.assert_array_equal(every.prefix(batch, ids, False), some.prefix(batch, ids, False))
    assert (some.prefix(batch, ids) != some.prefix(batch, ids, False)).any()


def test_dropped_conditions_train_the_unconditional_pass(monkeypatch):
    """With every condition dropped, the loss is that of the tokens and the prefix that guidance subtracts; with some,
    it lies between where the drawn share puts it.
    """
    one = batch_of(1, tasks=1)
    batch = {k: np.repeat(v, 64, axis=0) for k, v in one.items()} | {"task": np.zeros(64, int)}
    plain = tiny(tasks=("CFP", "CG"))
    plain = dataclasses.replace(plain, transformer=plain.transformer.clone(dropout=0.0))
    params = drawn(plain.init, jax.random.key(0), batch)
    params["transformer"] = jax.tree.map(lambda p: p * 8, params["transformer"])
    # The same tokens are hidden in every row, so that rows differ by what is dropped alone.
    draw = jax.random.uniform
    alike = lambda key, shape: jnp.broadcast_to(draw(key, shape[1:]), shape)

    def loss(share, train=True):
        objective = dataclasses.replace(plain, condition_drop=share)
        return jax.jit(lambda b: objective.loss(params, {}, b, jax.random.key(1), 0, train)[0]["transformer"])

    @jax.jit
    def expected(b):
        ids, cond_ids, cond_mask = plain.tokens(params, b)
        scores = jax.random.uniform(jax.random.split(jax.random.key(1))[0], ids.shape)
        gamma = jnp.cos(jnp.pi / 2 * b["ratio"])
        hidden = mask_tokens(ids, cond_ids, cond_mask, gamma, scores, plain.vocab.mask, COMMIT)
        logits = plain.logits(params, plain.prefix(b, cond_ids, conditional=False), hidden.uncond)
        return token_cross_entropy(logits, hidden.targets, plain.smoothing).mean()

    monkeypatch.setattr(jax.random, "uniform", alike)
    some, everything, none = (loss(share) for share in (0.25, 1.0, 0.0))
    np.testing.assert_allclose(everything(batch), expected(batch), rtol=1e-5)
    assert everything(batch) == everything(batch | {"label": (batch["label"] + 1) % 4})
    assert abs(none(batch) - everything(batch)) > 1e-3
    np.testing.assert_allclose(loss(1.0, train=False)(batch), none(batch), rtol=1e-5)  # training only
    share = jax.random.bernoulli(jax.random.fold_in(jax.random.key(1), 2), 0.25, (64, 1)).mean()
    assert 0.1 < share < 0.4
    between = none(batch) + share * (everything(batch) - none(batch))
    np.testing.assert_allclose(some(batch), between, rtol=1e-4)


def test_decoding_steps_end_at_the_sample():
    objective, batch = tiny(tasks=("FP", "CG"), decoding=dict(steps=4)), batch_of(2, tasks=2)
    params = drawn(objective.init, jax.random.key(0), batch)
    params["transformer"] = jax.tree.map(lambda p: p * 8, params["transformer"])
    for conditioning in (COMMIT, FIXED_CONDITION):
        this = dataclasses.replace(objective, conditioning=conditioning)
        steps = jax.jit(this.decoding_steps)(params, batch, jax.random.key(2))
        if conditioning == COMMIT:
            video = jax.jit(this.sample)(params, batch, jax.random.key(2))
            np.testing.assert_allclose(steps.sampled[:, -1], video, atol=1e-5)
        assert steps.seen.shape == (2, 4, 4, 8, 12, 3) and steps.masked.shape == (2, 4, 2, 4, 6)
        np.testing.assert_array_equal(steps.unknown[:, 1:], steps.hidden[:, :-1])
        assert not steps.hidden[:, -1].any()
        region = np.zeros((2, 4, 2, 4, 6), bool)
        region[0, :, 0] = True  # FP gives the first latent frame, CG nothing
        shown = region & steps.unknown if conditioning == COMMIT else region
        np.testing.assert_array_equal(steps.condition, shown)
        fixed = bool(conditioning.fixed)
        np.testing.assert_array_equal(steps.unknown[:, 0], ~(region[:, 0] & fixed))
        np.testing.assert_array_equal(steps.masked, steps.unknown & ~steps.condition)


def test_continuation_is_frame_prediction_from_the_overlap():
    objective = tiny(tasks=("FP", "CFP", "OPC", "official:FP"))
    assert objective.predicts == (True, True, False, True)
    longer = objective.continuation(3)
    frames = [row.region((4, 8, 12)).any((1, 2)).sum() for row in longer.rows]
    assert frames == [3, 3, 4, 3]
    assert [row.token for row in longer.rows] == [row.token for row in objective.rows]
    assert longer.rows[1].class_cond and longer.rows[2] is objective.rows[2]
    prefixed = tiny(Vocab(7, 4, 1), ("FP",), more=25, conditioning=PREFIX)
    assert prefixed.continuation(1).rows == prefixed.rows
    with pytest.raises(ValueError, match="overlap=2: task FP of this model takes the tokens of 1 frames .* overlap=1"):
        prefixed.continuation(2)


def test_learned_positions_take_one_grid():
    objective = tiny()
    objective.check_size((4, 8, 12), (4, 8, 12))
    objective.check_size((3, 7, 11), (4, 8, 12))  # rounded up to the same cells
    with pytest.raises(ValueError, match="4x12x8 .* make 2x6x4 tokens, .* 2x4x6: it takes clips of 4x8x12 only"):
        objective.check_size((4, 12, 8), (4, 8, 12))  # as many tokens, at other places


def test_nonsense_is_refused():
    for options, message in {
        ("guidance", -1.0): "guidance=-1.0: give a weight of at least 0",
        ("guidance", float("nan")): "guidance=nan",
        ("condition_drop", 1.5): "condition_drop=1.5",
        ("smoothing", 1.0): "smoothing=1.0",
        ("overlap", 0): "overlap=0",
        ("decoding", (("stepz", 3),)): "decoding has no stepz: it takes steps, temperature, schedule",
    }.items():
        name, value = options
        with pytest.raises(ValueError, match=message):
            tiny(**{name: dict(value) if name == "decoding" else value})
    with pytest.raises(ValueError, match='no mask schedule "cosin"; choose of cosine'):
        tiny().with_decoding(schedule="cosin")
    changed = tiny().with_decoding(schedule="uniform", guidance=2.0, steps=3)
    assert changed.decoding == dict(schedule="uniform", steps=3) and changed.guidance == 2.0


def test_mismatches_are_named():
    with pytest.raises(ValueError, match="vocab.codebook=9, but the tokenizer has 7 codes"):
        dataclasses.replace(tiny(), vocab=Vocab(9, 4))
    with pytest.raises(ValueError, match=r"transformer.vocab=28, but Vocab\(codebook=7, classes=5"):
        dataclasses.replace(tiny(), vocab=Vocab(7, 5))
    with pytest.raises(ValueError, match="10 tasks need task tokens"):
        tiny(Vocab(7, 4, 1))
    with pytest.raises(ValueError, match=r"transformer.length=42, but clips of 4x8x12 \(t h w\) make 50 tokens .*length=50"):
        jax.eval_shape(tiny(grid=(2, 4, 5)).init, jax.random.key(0), batch_of())
    with pytest.raises(ValueError, match="special token number 3 is outside 1..1"):
        Vocab(7, 4, 1).special(3)
