"""The bidirectional transformer equals the official one and has its exact sizes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import GOLDEN, Golden, drawn, flatten, nest, relative_error
from magvid.losses import token_cross_entropy, weighted_mean
from magvid.models.transformer import Transformer
from tools.official import TRANSFORMER
from tools.rules import rename

SIZE = {
    "Ti": dict(depth=12, width=192, mlp=768, heads=3),
    "S": dict(depth=12, width=384, mlp=1536, heads=6),
    "B": dict(depth=12, width=768, mlp=3072, heads=12),
    "L": dict(depth=24, width=1024, mlp=4096, heads=16),
    "H": dict(depth=32, width=1280, mlp=5120, heads=16),
}
COUNTS = {
    k: v for k, v in json.loads((GOLDEN / "param_counts.json").read_text()).items() if k.startswith("transformer")
}


def test_golden_logits_loss_and_gradients():
    golden, config = Golden("bert_a"), Golden("bert_a").config
    model = Transformer(
        config["vocab_size"],
        config["max_position_embeddings"],
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["intermediate_size"],
    )
    params = nest(rename(golden.flat(), TRANSFORMER))
    ids = golden["input_ids"] % config["vocab_size"]  # the official special tokens are negative

    def loss(params):
        logits = model.apply({"params": params}, ids)
        codebook = logits[..., : config["vocab_size"] - 17]
        # the official BERT loss in this file: label smoothing 1e-4, weighted mean per example, mean over examples
        losses = token_cross_entropy(codebook, golden["targets"], 1e-4)
        return jnp.mean(weighted_mean(losses, golden["weights"])), logits

    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert relative_error(logits, golden["logits"]) < 1e-5
    np.testing.assert_allclose(value, golden["loss"], rtol=1e-5)
    expected = rename(golden.flat("grads:"), TRANSFORMER)
    assert set(expected) == set(flatten(grads))
    for name, grad in flatten(grads).items():
        np.testing.assert_allclose(
            grad, expected[name], rtol=1e-3, atol=1e-4 * np.abs(expected[name]).max() + 1e-8, err_msg=name
        )


@pytest.mark.parametrize("name", COUNTS)
def test_full_sizes_have_the_official_number_of_parameters(name):
    size = name.removesuffix("(174cls)").rsplit("_", 1)[1]
    model = Transformer(COUNTS[name]["vocab"], COUNTS[name]["seq_len"], **SIZE[size])
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == COUNTS[name]["params"]


def test_attention_is_bidirectional_and_positions_matter():
    model = Transformer(11, 6, 16, 2, 2, 32)
    params = drawn(model.init, jax.random.key(0), jnp.zeros((1, 6), jnp.int32))
    params = jax.tree.map(lambda p: p * 10, params)
    ids = jnp.asarray([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])
    logits = model.apply(params, ids)
    changed = model.apply(params, ids.at[:, -1].set(9))
    assert jnp.abs(logits - changed)[:, 0].min() > 0  # the last token reaches the first position
    assert not jnp.allclose(logits[0, ::-1], logits[1], atol=1e-3)


def test_dropout_needs_training_and_is_seeded():
    model = Transformer(11, 6, 16, 1, 2, 32, dropout=0.5)
    ids = jnp.zeros((2, 6), jnp.int32)
    params = drawn(model.init, jax.random.key(0), ids)
    run = lambda seed: model.apply(params, ids, train=True, rngs={"dropout": jax.random.key(seed)})
    np.testing.assert_array_equal(run(1), run(1))
    assert not jnp.allclose(run(1), run(2))


def test_remat_and_bfloat16():
    ids = jnp.asarray([[1, 2, 3, 4]])
    model = Transformer(11, 4, 16, 2, 2, 32)
    params = drawn(model.init, jax.random.key(0), ids)
    loss = lambda m: jax.jit(jax.grad(lambda p: jnp.sum(m.apply(p, ids) ** 2)))(params)
    again = Transformer(11, 4, 16, 2, 2, 32, remat=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), loss(model), loss(again))
    half = Transformer(11, 4, 16, 2, 2, 32, dtype="bfloat16").apply(params, ids)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, model.apply(params, ids), atol=0.05)


def test_errors_name_the_values():
    with pytest.raises(ValueError, match="7 tokens do not fit the transformer's 6"):
        jax.eval_shape(Transformer(11, 6, 16, 1, 2, 32).init, jax.random.key(0), jnp.zeros((1, 7), jnp.int32))
    with pytest.raises(ValueError, match="width 16 is not a multiple of heads 3"):
        jax.eval_shape(Transformer(11, 6, 16, 1, 3, 32).init, jax.random.key(0), jnp.zeros((1, 6), jnp.int32))
