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
