"""The autoencoder's loss by its parts, and a tiny one that learns a clip."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import tiny_diffusion as tiny
from helpers import drawn
from magvid.models.vae import AutoencoderKL
from magvid.objectives.autoencoder import Autoencoder

BATCH = {"video": tiny.batch(2, 3, 8, 12)["video"]}
VAE = AutoencoderKL(channels=(8, 16), layers=1, latent=3, groups=4, scaling=2.0)


def test_the_loss_is_error_plus_weighted_divergence():
    objective = Autoencoder(VAE, kl_weight=0.5)
    shapes = jax.eval_shape(objective.init, jax.random.key(0), BATCH)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32), shapes)
    loss = jax.jit(lambda p, key, train: objective.loss(p, {}, BATCH, key, 0, train), static_argnums=2)
    losses, (metrics, extra) = loss(params, jax.random.key(1), False)
    x = 2 * BATCH["video"].astype(np.float32) / 255 - 1
    y, posterior = jax.jit(lambda p: VAE.apply({"params": p["vae"]}, x))(params)
    mse = np.mean(((np.asarray(y) - x) / 2) ** 2)
    mean, logvar = (np.asarray(a, np.float64) for a in posterior)
    kl = np.mean(0.5 * (mean**2 + np.exp(logvar) - 1 - logvar))
    np.testing.assert_allclose(losses["vae"], mse + 0.5 * kl, rtol=1e-4)
    np.testing.assert_allclose(metrics["latent_std"], 2 * mean.std(), rtol=1e-4)
    assert extra == {} and set(losses) == set(params) == {"vae"}
    a, b, again = (loss(params, jax.random.key(k), True)[0]["vae"] for k in (1, 2, 1))
    assert a == again != b != losses["vae"]  # a sample in training, drawn by the key
    sample = jax.jit(lambda p: objective.sample(p, BATCH, None))(params)
    assert sample.shape == BATCH["video"].shape and 0 <= sample.min() and sample.max() <= 1


def test_it_learns_one_clip():
    objective = Autoencoder(VAE)
    params = drawn(objective.init, jax.random.key(0), BATCH)
    tx = optax.adam(1e-2)
    value = lambda p, key: objective.loss(p, {}, BATCH, key, 0, True)[0]["vae"]

    @jax.jit
    def step(params, opt, key):
        loss, grads = jax.value_and_grad(value)(params, key)
        updates, opt = tx.update(grads, opt)
        return optax.apply_updates(params, updates), opt, loss

    opt, losses = tx.init(params), []
    for i in range(60):
        params, opt, loss = step(params, opt, jax.random.key(i))
        losses.append(float(loss))
    assert losses[-1] < 0.6 * losses[0]
