"""Loss terms against the official code's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import Golden
from magvid.losses import hinge, lecam, non_saturating, token_cross_entropy, weighted_mean
from magvid.models.quantizers import entropy_loss, squared_distances

GOLDEN = Golden("losses")


@pytest.mark.parametrize("smoothing", [0.0001, 0.1])
def test_smoothed_cross_entropy(smoothing):
    losses = token_cross_entropy(GOLDEN["ce_logits"], GOLDEN["ce_labels"], smoothing)
    np.testing.assert_allclose(losses, GOLDEN[f"scenic_ce|{smoothing:g}"], rtol=1e-5)
    per_clip = weighted_mean(losses, GOLDEN["ce_weights"])
    np.testing.assert_allclose(per_clip.mean(), GOLDEN[f"token_loss|{smoothing:g}"], rtol=1e-5)


def test_plain_cross_entropy():
    losses = token_cross_entropy(GOLDEN["ce_logits"], GOLDEN["ce_labels"])
    np.testing.assert_allclose(losses.mean(), GOLDEN["seq_ce"], rtol=1e-5)


@pytest.mark.parametrize("name, loss", [("hinge", hinge), ("non-saturating", non_saturating)])
def test_adversarial(name, loss):
    generator, discriminator = loss(GOLDEN["real_logit"], GOLDEN["fake_logit"])
    np.testing.assert_allclose(generator, GOLDEN[f"g_loss|{name}"], rtol=1e-5)
    np.testing.assert_allclose(discriminator, GOLDEN[f"d_loss|{name}"], rtol=1e-5)


@pytest.mark.parametrize("case", range(3))
def test_lecam(case):
    np.testing.assert_allclose(lecam(*jnp.asarray(GOLDEN[f"lecam{case}_in"])), GOLDEN[f"lecam{case}"], rtol=1e-5)


@pytest.mark.parametrize("temperature", ["1.0", "0.01"])
@pytest.mark.parametrize("kind", ["softmax", "argmax"])
def test_entropy(kind, temperature):
    affinity = GOLDEN["ent_aff"].reshape(-1, GOLDEN["ent_aff"].shape[-1])
    loss = lambda a: entropy_loss(a, float(temperature), hard=kind == "argmax")
    value, grad = jax.value_and_grad(loss)(affinity)
    np.testing.assert_allclose(value, GOLDEN[f"entropy|{kind}|{temperature}"], rtol=1e-5, atol=1e-6)
    expected = GOLDEN[f"entropy_grad|{kind}|{temperature}"].reshape(grad.shape)
    np.testing.assert_allclose(grad, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_squared_distances():
    np.testing.assert_allclose(squared_distances(GOLDEN["sq_a"], GOLDEN["sq_b"]), GOLDEN["sq_d"], rtol=1e-5, atol=1e-6)
