"""The autoregressive baseline: its sequence, its loss, and samples that obey their condition."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import drawn
from magvid.masked.commit import COMMIT, PREFIX
from magvid.models.causal import CausalTransformer
from magvid.objectives.autoregressive import Autoregressive
from magvid.types import Vocab
from test_objectives_masked import batch_of, tiny


def causal(tasks=("CG",), more=0, **options) -> Autoregressive:
    masked = tiny(Vocab(7, 4, 1), ("CG",))
    transformer = CausalTransformer(masked.vocab.size, 49 + more, 16, 1, 2, 32, 0.1)
    return Autoregressive(
        tokenizer=masked.tokenizer, transformer=transformer, vocab=masked.vocab, tasks=tasks, **options
    )


def test_the_loss_is_that_of_the_sequence_token_by_token():
    objective, batch = causal(), batch_of(2, tasks=1)
    params = drawn(objective.init, jax.random.key(0), batch)
    losses, (metrics, _) = objective.loss(params, {}, batch, None, 0, False)
    ids = objective.tokens(params, batch)[0].reshape(2, -1)
    sequence = np.concatenate([7 + batch["label"][:, None], ids], axis=1)
    memory, total, right = objective.transformer.init_memory(2), 0.0, 0.0
    token = np.full((2, 1), objective.vocab.mask)
    for position in range(49):
        logits, memory = objective.transformer.apply(
            {"params": params["transformer"]}, jnp.asarray(token), start=position, memory=memory
        )
        log_p = jax.nn.log_softmax(logits[:, 0])
        total -= log_p[np.arange(2), sequence[:, position]].mean() / 49
        right += (np.argmax(logits[:, 0], -1) == sequence[:, position]).mean() / 48 if position else 0
        token = sequence[:, position, None]
    np.testing.assert_allclose(losses["transformer"], total, rtol=1e-4)
    np.testing.assert_allclose(metrics["accuracy"], right, rtol=1e-4)


def test_padded_examples_do_not_count_and_dropout_is_for_training():
    objective, batch = causal(), batch_of(3, tasks=1)
    params = drawn(objective.init, jax.random.key(0), batch)
    loss = jax.jit(partial(objective.loss, step=0, train=False), static_argnames="train")
    value = lambda b: loss(params, {}, b, jax.random.key(1))[0]["transformer"]
    masked = batch | {"valid": np.array([True, True, False])}
    other = masked | {"video": np.concatenate([batch["video"][:2], 255 - batch["video"][2:]])}
    assert value(masked) == value(other) != value(batch)
    train = lambda seed: objective.loss(params, {}, batch, jax.random.key(seed), 0, True)[0]["transformer"]
    assert train(1) != train(2)


def test_samples_read_the_class_alone_or_the_given_frame_alone():
    batch = batch_of(2, tasks=1)
    black = np.zeros_like(batch["video"])
    for objective in (causal(), causal(("FP",), 25, conditioning=PREFIX)):
        params = drawn(objective.init, jax.random.key(0), batch)
        params["transformer"] = jax.tree.map(lambda p: p * 3, params["transformer"])
        sample = jax.jit(objective.sample)
        video = sample(params, batch, jax.random.key(2))
        assert video.shape == (2, 4, 8, 12, 3)
        later = np.concatenate([batch["video"][:, :1], black[:, 1:]], axis=1)
        np.testing.assert_array_equal(video, sample(params, batch | {"video": later}, jax.random.key(2)))
        blank = sample(params, batch | {"video": black}, jax.random.key(2))
        relabelled = sample(params, batch | {"label": (batch["label"] + 1) % 4}, jax.random.key(2))
        assert (blank != video).any() == objective.conditioning.prefix
        assert (relabelled != video).any() != objective.conditioning.prefix


def test_what_cannot_be_is_named():
    with pytest.raises(ValueError, match="sees conditions before the grid"):
        causal(conditioning=COMMIT)
    with pytest.raises(ValueError, match="tasks FP give pixels: use Conditioning.prefix=True"):
        causal(("FP",))
    with pytest.raises(ValueError, match="has a sampler alone, got steps"):
        causal().with_decoding(steps=3)
    with pytest.raises(ValueError, match="vocab.codebook=9"):
        dataclasses.replace(causal(), vocab=Vocab(9, 4, 1))
