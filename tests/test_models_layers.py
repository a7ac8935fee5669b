"""Layers against XLA's plain operations, and the form of a convolution per platform."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax import lax

from magvid.models import layers
from magvid.models.attention import attention


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def assert_same_with_gradients(f, g, *args):
    """f and g agree, and so do their gradients in every argument."""

    def everything(h):
        return jax.jit(lambda *a: (h(*a), jax.grad(lambda *b: jnp.sum(jnp.sin(h(*b))), tuple(range(len(a))))(*a)))(
            *args
        )

    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), everything(f), everything(g))


@pytest.fixture
def constants(monkeypatch):
    """Changes constants of `layers`, which has convolutions that were traced with others."""

    def change(**values):
        for name, value in values.items():
            monkeypatch.setattr(layers, name, value)
        layers._conv3d.cache_clear()

    yield change
    layers._conv3d.cache_clear()


@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 2, 2), (1, 2, 2)])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (4, 4, 4), (1, 3, 3), (3, 1, 1)])
def test_temporal_taps_equal_the_direct_convolution(strides, kernel, constants):
    """With the kernel's gradient as products, which real sizes have from many channels on; two frames at a time."""
    constants(CHUNK_BYTES=2 * 4 * 2 * 6 * 10 * 5, PRODUCT_CHANNELS=1)
    x, w = random(2, 7, 6, 10, 3), random(*kernel, 3, 5, seed=1)
    pads = tuple(lax.padtype_to_pads(x.shape[1:4], kernel, strides, "SAME"))
    direct = partial(layers._conv, strides=strides, pads=pads)
    assert_same_with_gradients(lambda x, w: layers.conv3d(x, w, strides, pads), direct, x, w)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap", "symmetric", "linear_ramp"])
@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 2, 2), (2, 1, 2)])
def test_convolution_of_nearest_equals_upsampling_first(factors, mode):
    x, w = random(2, 3, 4, 5, 3), random(3, 3, 3, 3, 2, seed=1)
    plain = partial(layers._conv_nearest, factors=factors, mode=mode)
    assert_same_with_gradients(lambda x, w: layers.conv3d_of_nearest(x, w, factors, mode), plain, x, w)


@pytest.mark.parametrize("channels", [1, 64])
def test_second_derivative_of_convolution(channels, constants):
    """R1 penalties differentiate a gradient."""
    constants(PRODUCT_CHANNELS=channels)
    x, w, pads = random(1, 3, 4, 5, 2), random(3, 3, 3, 2, 2, seed=1), ((1, 1),) * 3

    def penalty(conv):
        return jax.grad(lambda w: jnp.sum(jax.grad(lambda x: jnp.sum(jnp.tanh(conv(x, w))))(x) ** 2))(w)

    ours, theirs = (penalty(lambda x, w: f(x, w, (1, 1, 1), pads)) for f in (layers.conv3d, layers._conv))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_equal_convolutions_are_traced_once(constants, monkeypatch):
    traced = []
    monkeypatch.setattr(layers, "_conv_taps", lambda x, kernel, strides, pads: traced.append(1) or layers._conv(x, kernel, strides, pads))
    constants()
    x, w, other = random(1, 3, 4, 6, 2), random(3, 3, 3, 2, 2), random(3, 3, 3, 2, 5)
    conv = lambda x, w: layers.conv3d(x, w, (1, 1, 1), ((1, 1),) * 3)
    jax.eval_shape(lambda x: conv(conv(x, w), w), x)
    jax.eval_shape(conv, x, w)
    assert len(traced) == 1
    jax.eval_shape(conv, x, other)
    assert len(traced) == 2


def test_gelu_is_exact():
    x = np.linspace(-8, 8, 1001, dtype=np.float32)
    exact = x * scipy.special.ndtr(x.astype(np.float64))
    np.testing.assert_allclose(layers.gelu(x), exact, atol=1e-6)
    half = jnp.asarray(x, jnp.bfloat16)
    assert layers.gelu(half).dtype == jnp.bfloat16
    rounded = jnp.asarray(np.asarray(half, np.float64) * scipy.special.ndtr(np.asarray(half, np.float64)), jnp.bfloat16)
    np.testing.assert_allclose(layers.gelu(half).astype(jnp.float32), rounded.astype(jnp.float32), rtol=2**-7, atol=1e-6)


def test_a_tpu_program_lowered_here_has_the_three_dimensional_convolution():
    conv = layers.Conv(4)
    x = jnp.zeros((1, 4, 8, 8, 3))
    variables = conv.init(jax.random.key(0), x)
    text = {p: jax.jit(conv.apply).trace(variables, x).lower(lowering_platforms=(p,)).as_text() for p in ("tpu", "cpu")}
    assert "3, 3, 3, 3, 4" in text["tpu"] or "tensor<3x3x3x3x4xf32>" in text["tpu"]
    assert "[b, 0, 1, 2, f]" in text["tpu"] and "[b, 0, 1, 2, f]" not in text["cpu"] and "[b, 0, 1, f]" in text["cpu"]


@pytest.mark.parametrize("shape", [(2, 4, 6, 8, 3), (2, 5, 7, 9, 3)])
@pytest.mark.parametrize("window", [(2, 2, 2), (1, 2, 2)])
def test_average_pool_does_not_count_padding(shape, window):
    x = random(*shape)
    sums, ones = (
        lax.reduce_window(a, 0.0, lax.add, (1, *window, 1), (1, *window, 1), "SAME") for a in (x, jnp.ones_like(x))
    )
    np.testing.assert_allclose(layers.average_pool(x, window), sums / ones, rtol=1e-5, atol=1e-6)


def test_group_norm_equals_flax():
    x = random(2, 3, 4, 5, 12) * 3 + 2
    ours, theirs = layers.GroupNorm(groups=4), nn.GroupNorm(num_groups=4, epsilon=1e-6)
    variables = {"params": {"scale": random(12, seed=1), "bias": random(12, seed=2)}}
    np.testing.assert_allclose(ours.apply(variables, x), theirs.apply(variables, x), rtol=1e-4, atol=1e-5)


def test_space_to_depth_is_undone_and_keeps_patches_together():
    x = jnp.arange(2 * 4 * 6 * 4 * 3.0).reshape(2, 4, 6, 4, 3)
    y = layers.space_to_depth(x, (2, 3, 2))
    assert y.shape == (2, 2, 2, 2, 36)
    np.testing.assert_array_equal(y[1, 0, 1, 1].reshape(2, 3, 2, 3), x[1, :2, 3:, 2:])
    np.testing.assert_array_equal(layers.depth_to_space(y, (2, 3, 2)), x)


def test_attention_equals_jax():
    q, k, v = random(2, 5, 3, 4), random(2, 7, 3, 4, seed=1), random(2, 7, 3, 4, seed=2)
    np.testing.assert_allclose(attention(q, k, v), jax.nn.dot_product_attention(q, k, v), rtol=1e-5, atol=1e-6)


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    x = random(1, 4, 8, 8, 3)
    conv = layers.Conv(4, dtype=jnp.bfloat16)
    variables = conv.init(jax.random.key(0), x)
    assert variables["params"]["kernel"].dtype == jnp.float32 and conv.apply(variables, x).dtype == jnp.bfloat16
    np.testing.assert_allclose(conv.apply(variables, x), layers.Conv(4).apply(variables, x), rtol=0.05, atol=0.05)


@pytest.mark.full
def test_convolution_and_group_norm_equal_torch():
    import torch

    x, w, b = random(2, 5, 6, 8, 4), random(3, 3, 3, 4, 6, seed=1), random(6, seed=2)
    ours = layers.Conv(6).apply({"params": {"kernel": w, "bias": b}}, x)
    to_torch = lambda a, *order: torch.tensor(np.asarray(a)).permute(*order) if order else torch.tensor(np.asarray(a))
    theirs = torch.nn.functional.conv3d(to_torch(x, 0, 4, 1, 2, 3), to_torch(w, 4, 3, 0, 1, 2), to_torch(b), padding=1)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 4, 1).numpy(), rtol=1e-4, atol=1e-4)
    scale, bias = random(4, seed=3), random(4, seed=4)
    ours = layers.GroupNorm(groups=2).apply({"params": {"scale": scale, "bias": bias}}, x)
    theirs = torch.nn.functional.group_norm(to_torch(x, 0, 4, 1, 2, 3), 2, to_torch(scale), to_torch(bias), 1e-6)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 4, 1).numpy(), rtol=1e-4, atol=1e-4)
