"""The causal transformer and its decoding equal the official ones; the memory changes nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import Golden, drawn, nest, relative_error
from magvid.masked.autoregressive import generate
from magvid.models.causal import CausalTransformer
from tools.official import CAUSAL
from tools.rules import rename


def converted(golden: Golden) -> dict:
    return nest(rename(golden.flat(), CAUSAL))


def official_mask(ids):
    """Training there takes every id <= 0, codebook id 0 among them, for padding."""
    return (ids > 0)[:, :, None] & (ids > 0)[:, None, :]


def test_golden_logits():
    golden, c = Golden("lm_a"), Golden("lm_a").config
    model = CausalTransformer(c["vocab_size"], c["max_len"], c["emb_dim"], c["num_layers"], c["num_heads"], c["mlp_dim"])
    ids = golden["input_ids"]
    apply = jax.jit(lambda p: model.apply({"params": p}, ids % c["vocab_size"], mask=official_mask(ids)))
    assert relative_error(apply(converted(golden)), golden["logits"]) < 1e-5


def test_golden_decoding():
    golden, c = Golden("lm_decode"), Golden("lm_decode").config
    model = CausalTransformer(c["vocab"], c["max_len"], c["emb_dim"], c["layers"], c["heads"], c["mlp"])
    params, prefix = converted(golden), golden["lm_inputs"][:, : int(golden["cond_lengths"])] % c["vocab"]
    noise = jnp.asarray(golden["noise_gumbel"])[:, :, 0, : c["codebook"]]

    def recorded(logits, key, position):
        return jnp.argmax(logits / c["sampling_temperature"] + noise[position], axis=-1).astype(jnp.int32)

    step = lambda ids, start, memory: model.apply({"params": params}, ids, start=start, memory=memory)
    run = jax.jit(partial(generate, step, count=24, codebook=c["codebook"], sampler=recorded))
    ids = run(model.init_memory(2), prefix, key=jax.random.key(0))
    np.testing.assert_array_equal(ids, golden["out_tokens"])

    tokens = golden["lm_inputs"]
    logits = jax.jit(lambda p: model.apply({"params": p}, tokens % c["vocab"], mask=official_mask(tokens)))(params)
    assert relative_error(logits, golden["teacher_forced_logits"]) < 1e-5


def small(**options) -> CausalTransformer:
    return CausalTransformer(11, 7, 16, 2, 2, 32, **options)


IDS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 7)))


def test_memory_gives_the_logits_of_the_whole_sequence():
    model = small()
    variables = drawn(model.init, jax.random.key(0), IDS)
    whole = model.apply(variables, IDS)
    memory, found = model.init_memory(2), []
    for start, n in ((0, 3), (3, 1), (4, 2), (6, 1)):
        logits, memory = model.apply(variables, IDS[:, start : start + n], start=start, memory=memory)
        found.append(logits)
    np.testing.assert_allclose(jnp.concatenate(found, axis=1), whole, rtol=1e-4, atol=1e-5)


def test_no_token_sees_the_future_and_remat_changes_nothing():
    model = small()
    variables = drawn(model.init, jax.random.key(0), IDS)
    changed = model.apply(variables, IDS.at[:, 4].add(1) % 11)
    whole = model.apply(variables, IDS)
    np.testing.assert_allclose(changed[:, :4], whole[:, :4], rtol=1e-5, atol=1e-6)
    assert jnp.abs(changed - whole)[:, 4:].max(-1).min() > 1e-4
    gradient = lambda m: jax.jit(jax.grad(lambda v: jnp.sum(m.apply(v, IDS) ** 2)))(variables)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), gradient(model), gradient(small(remat=True)))


def test_generated_tokens_are_samples_of_the_models_conditionals():
    """Greedy generation is the fixed point: each token is the likeliest after all before it, among the codebook."""
    model = small()
    variables = jax.tree.map(lambda p: 3 * p, drawn(model.init, jax.random.key(0), IDS))
    step = lambda ids, start, memory: model.apply(variables, ids, start=start, memory=memory)
    greedy = lambda logits, key, position: jnp.argmax(logits, -1).astype(jnp.int32)
    ids = generate(step, model.init_memory(2), IDS[:, :2], 5, jax.random.key(0), codebook=8, sampler=greedy)
    sequence = jnp.concatenate([IDS[:, :2], ids], axis=1)
    logits = model.apply(variables, sequence[:, :-1])
    np.testing.assert_array_equal(ids, jnp.argmax(logits[:, 1:, :8], axis=-1))
    draw = lambda seed: generate(step, model.init_memory(2), IDS[:, :2], 5, jax.random.key(seed), codebook=8)
    assert (draw(1) == draw(1)).all() and (draw(1) != draw(2)).any()


def test_errors_name_the_values():
    with pytest.raises(ValueError, match="8 tokens do not fit the transformer's 7"):
        jax.eval_shape(small().init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    with pytest.raises(ValueError, match="at least 1, got 0 and 3"):
        generate(lambda *a: a, (), IDS[:, :0], 3, jax.random.key(0), codebook=8)
