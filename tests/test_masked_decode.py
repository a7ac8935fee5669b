"""Parallel decoding equals the official code step by step; what it promises about given tokens."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import GOLDEN, Golden, nest
from magvid.masked import commit, decode
from magvid.models.transformer import Transformer
from test_masked_commit import SCHEDULES
from tools.official import TRANSFORMER
from tools.rules import rename


def recorded(golden: Golden, k: int = 0):
    """Token sampler and confidence noise that replay the recorded draws."""

    def sampler(logits, key, step):
        noise = jnp.asarray(golden["noise_sample_gumbel"])[step]
        values, ids = (
            jax.lax.top_k(logits, k) if k else (logits, jnp.broadcast_to(jnp.arange(logits.shape[-1]), logits.shape))
        )
        best = jnp.argmax(values + noise, axis=-1)[..., None]
        return jnp.take_along_axis(ids, best, axis=-1)[..., 0].astype(jnp.int32)

    return dict(sampler=sampler, noise=lambda key, step, shape: jnp.asarray(golden["noise_mask_gumbel"])[step])


@pytest.mark.parametrize("name", sorted(p.stem for p in GOLDEN.glob("decode_*.npz")))
def test_golden_every_step(name):
    golden, config = Golden(name), Golden(name).config
    vocab, words, positions = config["vocab"], golden["W_tok"], golden["W_pos"]

    def model(ids, uncond):
        e = jnp.asarray(words)[ids]
        return positions + e + 0.5 * jnp.roll(e, 1, 3) + 0.25 * jnp.roll(e, 1, 2) + 0.25 * jnp.roll(e, 1, 1)

    cond_ids = golden["cond_inputs"]
    conditional = config["task"] != "full_generation"
    region = np.broadcast_to(golden["cond_mask"], cond_ids.shape) if conditional else np.zeros(cond_ids.shape, bool)
    run = partial(
        decode.decode,
        model,
        mask_id=vocab - 1,
        steps=config["num_iter"],
        temperature=config["mask_temperature"],
        schedule=SCHEDULES[config["mask_scheduling_method"]],
        conditioning=commit.FIXED_CONDITION if config["task"] == "latent_frame_prediction" else commit.COMMIT,
        **recorded(golden, config["sampling_topk"]),
    )
    ids, steps = jax.jit(run)(cond_ids, region, jax.random.key(0))
    np.testing.assert_array_equal(steps.inputs, golden["step_input_tokens"] % vocab)
    np.testing.assert_array_equal(steps.sampled, golden["step_sampled_tokens"])
    np.testing.assert_array_equal(steps.masked, golden["step_masked_after"])
    np.testing.assert_array_equal(ids, golden["out_tokens"])


@pytest.mark.parametrize("name", ["e2e_full_generation", "e2e_frame_prediction", "e2e_frame_prediction_c"])
def test_golden_with_a_transformer_and_guidance(name, optimised):
    golden, shape, config = Golden(name), Golden("e2e_bert_params").config, Golden(name).config
    model = Transformer(
        shape["vocab"], shape["total_seq_length"], shape["hidden"], shape["layers"], shape["heads"], shape["mlp"]
    )
    params = nest(rename(Golden("e2e_bert_params").flat(), TRANSFORMER))
    latent, codebook, vocab = tuple(shape["latent"]), shape["codebook"], shape["vocab"]
    prefix, uncond_prefix = (golden[k] % vocab for k in ("prefix_tokens", "uncond_prefix_tokens"))

    def logits(prefix, ids):
        sequence = jnp.concatenate([prefix, ids.reshape(len(ids), -1)], axis=1)
        return model.apply({"params": params}, sequence)[:, 2:, :codebook].reshape(*ids.shape, codebook)

    def guided(ids, uncond):
        conditional = logits(prefix, ids)
        return conditional + config["guidance_scale"] * (conditional - logits(uncond_prefix, uncond))

    cond_ids = golden.get("cond_inputs", np.zeros((2, *latent), np.int32))
    region = np.broadcast_to(golden.get("cond_mask", np.zeros((2, 1, 1, 1), bool)), cond_ids.shape)
    run = partial(
        decode.decode,
        guided,
        mask_id=vocab - 1,
        steps=config["mask_bins"],
        temperature=config["choice_temperature"],
        schedule=SCHEDULES[config["mask_scheduling_method"]],
        **recorded(golden),
    )
    ids, _ = jax.jit(run)(cond_ids, region, jax.random.key(0))
    np.testing.assert_array_equal(ids, golden["out_tokens"])


@pytest.mark.parametrize(
    "schedule, counts",
    [
        (commit.cosine, [1015, 989, 946, 886, 812, 724, 623, 511, 391, 265, 133, 1]),
        (commit.exponential, [1022, 1020, 1018, 1013, 1006, 992, 966, 922, 842, 701, 449, 1]),
    ],
)
def test_numbers_of_masked_tokens_over_twelve_steps(schedule, counts):
    """Specification, section 10.1, for 4x16x16 tokens."""
    model = lambda ids, uncond: jax.random.normal(jax.random.key(3), (*ids.shape, 5))
    none = jnp.zeros((1, 4, 16, 16), jnp.int32)
    _, steps = jax.jit(partial(decode.decode, model, mask_id=9, schedule=schedule))(none, none > 0, jax.random.key(0))
    assert steps.masked.sum(axis=(1, 2, 3, 4)).tolist() == counts


def setup_case():
    rng = np.random.default_rng(0)
    cond_ids = rng.integers(0, 5, (2, 2, 3, 4), dtype=np.int32)
    region = rng.random((2, 2, 3, 4)) < 0.5
    model = lambda ids, uncond: jax.random.normal(jax.random.key(1), (*ids.shape, 5)) * 3
    return model, cond_ids, region


def test_fixed_condition_keeps_given_tokens_and_commit_need_not():
    model, cond_ids, region = setup_case()
    run = lambda mode: decode.decode(model, cond_ids, region, jax.random.key(0), mask_id=9, steps=4, conditioning=mode)[
        0
    ]
    np.testing.assert_array_equal(run(commit.FIXED_CONDITION)[region], cond_ids[region])
    assert (run(commit.COMMIT)[region] != cond_ids[region]).any()


def test_one_step_is_the_samplers_answer_and_no_mask_is_left():
    model, cond_ids, region = setup_case()
    ids, _ = decode.decode(model, cond_ids, region, jax.random.key(0), mask_id=9, steps=1, sampler=decode.greedy)
    np.testing.assert_array_equal(ids, jnp.argmax(model(cond_ids, None), -1))
    ids, _ = decode.decode(model, cond_ids, region, jax.random.key(0), mask_id=9, steps=5)
    assert ids.max() < 5


def test_same_key_same_ids():
    model, cond_ids, region = setup_case()
    run = lambda seed: decode.decode(model, cond_ids, region, jax.random.key(seed), mask_id=9, steps=3)[0]
    np.testing.assert_array_equal(run(0), run(0))
    assert (run(0) != run(1)).any()


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_golden_nucleus(p):
    golden = Golden("losses")
    kept = np.isfinite(decode.nucleus(golden["topp_in"], p))
    np.testing.assert_array_equal(kept, golden[f"topp|{p}"] > -1e6)


def test_samplers_stay_in_their_set():
    logits = jnp.log(jnp.tile(jnp.asarray([0.5, 0.3, 0.15, 0.05]), (2000, 1)))
    key = jax.random.key(0)
    assert set(np.unique(decode.top_k(logits, key, 0, k=2))) == {0, 1}
    assert set(np.unique(decode.top_p(logits, key, 0, p=0.7))) == {0, 1}
    shares = np.bincount(decode.categorical(logits, key, 0), minlength=4) / 2000
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.15, 0.05], atol=0.04)
    cold = np.bincount(decode.categorical(logits, key, 0, temperature=0.5), minlength=4) / 2000  # squares the odds
    np.testing.assert_allclose(cold, np.array([25, 9, 2.25, 0.25]) / 36.5, atol=0.04)
    with pytest.raises(ValueError, match="above 0, got 0"):
        decode.categorical(logits, key, 0, temperature=0)


def test_steps_are_positive_and_temperatures_not_negative():
    model, cond_ids, region = setup_case()
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        decode.decode(model, cond_ids, region, jax.random.key(0), mask_id=9, steps=0)
    for temperature in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature of decoding is at least 0"):
            decode.decode(model, cond_ids, region, jax.random.key(0), mask_id=9, temperature=temperature)
