"""Attention: the same numbers in every form, and the form of each platform."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from helpers import drawn
from magvid.models import attention as module
from magvid.models.attention import Attention, attention, read_tokens
from magvid.sharding import make_mesh
from magvid.types import Condition


def random(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def qkv(b, n, m, heads, e):
    return random(b, n, heads, e), random(b, m, heads, e, seed=1), random(b, m, heads, e, seed=2)


def with_gradients(f, *args):
    def everything(*a):
        y, pullback = jax.vjp(f, *a)
        return y, pullback(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    return jax.jit(everything)(*args)


def lowered(f, platform, *args) -> str:
    return jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text()


same = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5))


def test_the_gradient_is_that_of_the_form():
    """bfloat16 has a form for CUDA, so that the gradient is the one written out."""
    args = [x.astype(jnp.bfloat16) for x in qkv(2, 5, 7, 3, 8)]
    f32 = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float32), tree)
    ours, plain = f32(with_gradients(attention, *args)), f32(with_gradients(module._products, *args))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0.02, atol=0.02), ours, plain)


def test_one_token_is_simply_read():
    args = qkv(2, 5, 1, 3, 4)
    same(with_gradients(attention, *args), with_gradients(module._products, *args))
    assert "exponential" not in lowered(attention, "cpu", *args)


def test_one_head_after_the_other_equals_products():
    """Long sequences on CPU."""
    args = qkv(2, 130, 77 * 8, 3, 4)
    assert "while" in lowered(attention, "cpu", *args) and "while" not in lowered(attention, "cuda", *args)
    same(with_gradients(attention, *args), with_gradients(module._products, *args))


@pytest.mark.parametrize("size", [(128, 256), (130, 77)])
def test_splash_attention_equals_products(size):
    """The TPU's kernel, interpreted; the second sizes are padded."""
    args = qkv(2, *size, 2, 16)
    ours, plain = with_gradients(partial(module._splash, interpret=True), *args), with_gradients(module._products, *args)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), ours, plain)


def test_splash_attention_on_a_mesh():
    args = qkv(4, 128, 128, 2, 8)
    with jax.set_mesh(make_mesh({"data": 2, "model": 2, "other": 2})):
        y = jax.jit(partial(module._splash_on_mesh, interpret=True))(*args)
    np.testing.assert_allclose(y, module._products(*args), rtol=1e-4, atol=1e-4)


def gradient(q, k, v):
    return jax.grad(lambda *a: attention(*a).astype(jnp.float32).sum(), (0, 1, 2))(q, k, v)


@pytest.mark.parametrize("f, kernels", [(attention, 1), (gradient, 3)])
def test_a_tpu_program_lowered_here_has_the_splash_kernel(f, kernels):
    args = qkv(2, 1024, 1024, 2, 64)
    assert lowered(f, "tpu", *args).count("tpu_custom_call") >= kernels
    assert "custom_call" not in lowered(f, "cpu", *args)
    short = qkv(2, 16, 77, 2, 64)
    assert "custom_call" not in lowered(f, "tpu", *short)


@pytest.mark.parametrize("f", [attention, gradient])
def test_a_cuda_program_has_cudnns_kernel_where_cudnn_is_at_hand(f, monkeypatch):
    args = [x.astype(jnp.bfloat16) for x in qkv(2, 15, 77, 2, 64)]  # jax alone refuses odd lengths
    if fused_attention_stablehlo.cuda_versions is None:
        assert "cudnn" not in lowered(f, "cuda", *args)  # such a host cannot run CUDA: products
    versions = type("Versions", (), {"cudnn_get_version": staticmethod(lambda: 91100)})
    monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", versions)
    jax.clear_caches()
    text = lowered(f, "cuda", *args)
    assert "__cudnn$fmhaSoftmax" in text and ("Backward" in text) == (f is gradient)
    assert "cudnn" not in lowered(f, "cpu", *args)
    assert "cudnn" not in lowered(f, "cuda", *(x.astype(jnp.float32) for x in args))
    jax.clear_caches()


# The module ---------------------------------------------------------------------------------------------------------


def condition(frames: int) -> Condition:
    return Condition(tokens={"text": random(2, 1, 5, 6, seed=3), "image": random(2, frames, 2, 6, seed=4)})


def test_tokens_of_all_frames_equal_repeated_ones():
    x, layer = random(2, 3, 4, 5, 8), Attention(2, ("text", "image"))
    variables = drawn(layer.init, jax.random.key(0), x, condition(1))
    one = condition(1)
    every = Condition(tokens={n: jnp.repeat(a, 3, axis=1) for n, a in one.tokens.items()})
    np.testing.assert_allclose(layer.apply(variables, x, one), layer.apply(variables, x, every), rtol=1e-5, atol=1e-6)
    # over time the first frame's tokens are read
    time = Attention(2, ("image",), over="time")
    variables = drawn(time.init, jax.random.key(0), x, condition(3))
    first = Condition(tokens={"image": condition(3).tokens["image"][:, :1]})
    np.testing.assert_array_equal(time.apply(variables, x, condition(3)), time.apply(variables, x, first))


@pytest.mark.parametrize("frames", [1, 3])
def test_masked_tokens_count_as_absent(frames):
    x, layer, given = random(2, 3, 4, 5, 8), Attention(2, ("text", "image")), condition(frames)
    variables = drawn(layer.init, jax.random.key(0), x, given)
    masked = given.replace(masks={"text": jnp.arange(5)[None].repeat(2, 0) < 3})
    cut = given.replace(tokens=given.tokens | {"text": given.tokens["text"][:, :, :3]})
    np.testing.assert_allclose(layer.apply(variables, x, masked), layer.apply(variables, x, cut), rtol=1e-5, atol=1e-6)


def test_over_time_each_pixel_sees_its_own_frames():
    x, layer = random(2, 3, 4, 5, 8), Attention(2, over="time")
    variables = drawn(layer.init, jax.random.key(0), x)
    pixel = layer.apply(variables, x[:, :, 2:3, 4:5])
    np.testing.assert_allclose(layer.apply(variables, x)[:, :, 2:3, 4:5], pixel, rtol=1e-5, atol=1e-6)


def test_missing_tokens_are_named():
    with pytest.raises(ValueError, match="the condition has text, image: give action"):
        read_tokens(condition(1), ("text", "action"))
    narrow = condition(1).replace(tokens=condition(1).tokens | {"image": condition(1).tokens["image"][..., :-1]})
    with pytest.raises(ValueError, match=r"tokens of one width, and the condition's are text \d+, image \d+ wide"):
        read_tokens(narrow, ("text", "image"))
    with pytest.raises(ValueError, match="8 channels cannot be divided between 3 heads"):
        Attention(3).init(jax.random.key(0), random(1, 2, 3, 4, 8))
