"""Floating-point operations of traced programs against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magvid import cost, sharding

X, Y = jax.ShapeDtypeStruct((3, 5, 7), jnp.float32), jax.ShapeDtypeStruct((3, 7, 11), jnp.float32)
VIDEO, KERNEL = jax.ShapeDtypeStruct((2, 8, 12, 3), jnp.float32), jax.ShapeDtypeStruct((3, 5, 3, 4), jnp.float32)
PRODUCT = 2 * 3 * 5 * 7 * 11


def convolution(x, k, stride=1):
    return jax.lax.conv_general_dilated(x, k, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def of(f, *arguments):
    return cost.flops(jax.jit(f).trace(*arguments).jaxpr)


def gradient(f, *which):
    return jax.grad(lambda *x: f(*x).sum(), which)


def with_value(f):
    return jax.value_and_grad(lambda *x: jnp.square(f(*x)).sum(), (0, 1))


LOOP = lambda x, y: jax.lax.scan(lambda c, _: (c, x @ y), None, length=4)[1]


@pytest.mark.parametrize(
    "f, arguments, expected",
    [
        (jnp.matmul, (X, Y), PRODUCT),
        (lambda x, y: jnp.tanh(x + 1).sum() + y.sum(), (X, Y), 0),
        (jax.jit(jnp.matmul), (X, Y), PRODUCT),
        (LOOP, (X, Y), 4 * PRODUCT),
        (lambda x, y: jax.lax.cond(x.sum() > 0, lambda: x @ y, lambda: 2 * (x @ y) + x @ y), (X, Y), 2 * PRODUCT),
        (lambda x, y: jax.lax.platform_dependent(x, y, cpu=jnp.matmul, default=jnp.matmul), (X, Y), PRODUCT),
        (gradient(jnp.matmul, 0, 1), (X, Y), 2 * PRODUCT),  # of a sum: the product itself is not needed
        (with_value(jnp.matmul), (X, Y), 3 * PRODUCT),
        (jax.value_and_grad(jax.checkpoint(lambda x, y: jnp.square(x @ y).sum()), (0, 1)), (X, Y), 4 * PRODUCT),  # made twice
        (convolution, (VIDEO, KERNEL), 2 * (2 * 8 * 12 * 4) * (3 * 5 * 3)),
        (gradient(convolution, 0), (VIDEO, KERNEL), 2 * (2 * 8 * 12 * 3) * (3 * 5 * 4)),
        (gradient(convolution, 1), (VIDEO, KERNEL), 2 * (3 * 5 * 3 * 4) * (2 * 8 * 12)),
        (functools.partial(convolution, stride=2), (VIDEO, KERNEL), 2 * (2 * 4 * 6 * 4) * (3 * 5 * 3)),
        (gradient(functools.partial(convolution, stride=2), 0), (VIDEO, KERNEL), 2 * (2 * 8 * 12 * 3) * (3 * 5 * 4) / 4),
    ],
)
def test_products_and_convolutions(f, arguments, expected):
    assert of(f, *arguments) == expected


def test_of_forms_for_several_platforms_the_plain_one_counts():
    """A kernel that computes things twice does no more useful work."""
    twice = jax.checkpoint(lambda x, y: jnp.square(x @ y))
    forms = lambda x, y: jax.lax.platform_dependent(x, y, cpu=jax.grad(lambda x, y: twice(x, y).sum()), default=lambda x, y: (x @ y) @ y.swapaxes(1, 2))
    traced = jax.jit(forms).trace(X, Y).jaxpr
    assert cost.flops(traced) == 2 * PRODUCT and not cost.recomputes(traced)
    assert cost.recomputes(jax.jit(lambda x, y: jax.lax.map(lambda z: jax.grad(lambda z: twice(z, y).sum())(z), x[None])).trace(X, Y).jaxpr)
    assert not cost.recomputes(jax.jit(twice).trace(X, Y).jaxpr)


def test_what_devices_do_on_their_own_counts_on_each():
    mesh = sharding.make_mesh({"data": 8})
    share = jax.P(None, "data")
    f = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(share, jax.P()), out_specs=share)
    wide = jax.ShapeDtypeStruct((3, 40, 7), jnp.float32)
    assert of(f, wide, Y) == 8 * PRODUCT


def test_compilers_agree():
    """XLA's own count of the same, up to what is no product."""
    x, k = np.ones(VIDEO.shape, np.float32), np.ones(KERNEL.shape, np.float32)
    f = lambda x, k: jnp.square(convolution(x, k)).sum()
    lowered = jax.jit(f).lower(x, k)
    assert of(f, x, k) == pytest.approx(lowered.cost_analysis()["flops"], rel=0.35)  # which leaves out what lies on padding


# Memory --------------------------------------------------------------------------------------------------------------

BIG = jax.ShapeDtypeStruct((256, 512), jnp.float32)
SQUARE = jax.ShapeDtypeStruct((512, 512), jnp.float32)
A = 4 * 256 * 512  # bytes of BIG


def held(f, *arguments, platform=""):
    return cost.peak(jax.jit(f).trace(*arguments).jaxpr, cost.plain, platform)


def layers(x, w, count):
    for _ in range(count):
        x = jnp.tanh(x @ w)
    return x.sum()


@pytest.mark.parametrize(
    "f, expected",
    [
        (lambda x, w: jnp.exp(x) + 1, 0),  # element by element: nothing is held
        (lambda x, w: layers(x, w, 1), A),
        (lambda x, w: layers(x, w, 5), 2 * A),  # a product and the one it is made of
        (lambda x, w: jax.grad(lambda x: layers(x, w, 5))(x), 6 * A),  # all five are read again, beside the gradient
        (lambda x, w: jax.lax.scan(lambda c, _: (jnp.tanh(c @ w) @ w, None), x, None, length=9)[0].sum(), 2 * A),
        (lambda x, w: jax.jit(lambda x: layers(x, w, 5))(x), 2 * A),  # a call is what it calls
    ],
)
def test_memory_of_closed_forms(f, expected):
    assert held(f, BIG, SQUARE) == pytest.approx(expected, abs=64)


def test_recomputing_holds_less():
    plain = lambda x, w: jax.grad(lambda x: layers(x, w, 8))(x)
    again = lambda x, w: jax.grad(lambda x: jax.checkpoint(lambda x: layers(x, w, 8), policy=jax.checkpoint_policies.nothing_saveable)(x))(x)
    halves = lambda x, w: jax.grad(lambda x: jax.checkpoint(lambda y: layers(y, w, 4))(jax.checkpoint(lambda x: half(x, w))(x)))(x)

    def half(x, w):
        for _ in range(4):
            x = jnp.tanh(x @ w)
        return x

    assert held(halves, BIG, SQUARE) < held(plain, BIG, SQUARE) <= held(again, BIG, SQUARE)


@pytest.mark.parametrize("platform, arrays", [("", 2), ("cuda", 2), ("tpu", 1), ("cpu", 6)])
def test_memory_is_that_of_the_form_of_a_platform(platform, arrays):
    """As above, of one product or five, or with the gradient."""
    plain, tpu = (lambda x, w, count=count: layers(x, w, count) for count in (5, 1))
    cpu = lambda x, w: jax.grad(lambda x: layers(x, w, 5))(x).sum()
    f = lambda x, w: jax.lax.platform_dependent(x, w, default=plain, tpu=tpu, cpu=cpu)
    assert held(f, BIG, SQUARE, platform=platform) == pytest.approx(arrays * A, abs=64)


@pytest.mark.parametrize(
    "shape, dtype, factor",
    [
        ((256, 512), "float32", 1),
        ((16, 12, 1025, 1025), "float32", 1.0),
        ((8, 16, 128, 128, 64), "float32", 2),  # 64 channels in 128 lanes
        ((128, 16, 128, 128, 64), "float32", 1),  # the batch in the lanes
        ((4, 4), "float32", 1),  # small
    ],
)
def test_tiles_of_a_tpu(shape, dtype, factor):
    value = jax.ShapeDtypeStruct(shape, dtype)
    assert cost.tiled(value) / cost.plain(value) == pytest.approx(factor, rel=0.14)
