"""FSQ by its definition; VQ is compared with the official code in test_models_vq3d.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magvid.models.quantizers import FSQ


def apply(levels, z, **options):
    return FSQ(levels).apply({}, jnp.asarray(z, jnp.float32), **options)


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (3, 3), (2, 4, 7), (6,)])
def test_every_code_is_a_cell_of_the_grid_and_quantizes_to_itself(levels):
    fsq = FSQ(levels)
    ids = np.arange(fsq.size)
    digits = np.stack(np.unravel_index(ids, levels[::-1]), -1)[:, ::-1]  # the first channel counts fastest
    half = np.array(levels) // 2
    codes = fsq.apply({}, jnp.asarray(ids[None, :, None, None]), method="ids_to_codes")[0, :, 0, 0]
    np.testing.assert_array_equal(codes, ((digits - half) / half).astype(np.float32))
    # values whose bounded form is exactly the code, by the inverse of the paper's bound
    reach = (np.array(levels) - 1) * 1.001 / 2
    offset = np.where(np.array(levels) % 2, 0, 0.5)
    z = np.arctanh((digits - half + offset) / reach) - np.arctanh(offset / reach)
    quantized = apply(levels, z[None, :, None, None])
    np.testing.assert_array_equal(quantized.ids[0, :, 0, 0], ids)
    np.testing.assert_array_equal(quantized.codes[0, :, 0, 0], codes)


def test_the_middle_of_an_odd_channel_is_0_and_large_values_reach_the_ends():
    assert apply((5, 4), np.zeros((1, 1, 1, 1, 2))).codes.tolist() == [[[[[0.0, 0.0]]]]]
    ends = apply((5, 4), [[[[[-9.0, -9.0], [9.0, 9.0]]]]])
    assert ends.codes.tolist() == [[[[[-1.0, -1.0], [1.0, 0.5]]]]] and ends.ids.tolist() == [[[[0, 19]]]]


def test_the_gradient_is_that_of_the_bound():
    z = 1.5 * jax.random.normal(jax.random.key(0), (2, 1, 3, 2, 3))
    levels = np.array((8, 5, 5), np.float32)

    def bound(z):
        reach, offset = (levels - 1) * 1.001 / 2, np.where(levels % 2, 0, 0.5).astype(np.float32)
        return (jnp.tanh(z + np.arctanh(offset / reach)) * reach - offset) / (levels // 2)

    through = jax.grad(lambda z: jnp.sum(apply((8, 5, 5), z, train=True).codes ** 2 / 2))(z)
    cells = apply((8, 5, 5), z).codes
    expected = jax.vjp(bound, z)[1](cells)[0]
    np.testing.assert_allclose(through, expected, rtol=1e-5, atol=1e-6)


def test_training_reports_usage_and_no_loss():
    quantized = apply((3, 2), np.zeros((2, 1, 2, 2, 2)), train=True)
    assert quantized.loss == 0
    assert quantized.metrics["codebook_usage"] == pytest.approx(1 / 6) and quantized.metrics["perplexity"] == 1


@pytest.mark.parametrize(
    "levels, channels, message",
    [((), 0, "at least 2 per channel"), ((5, 1), 2, "at least 2 per channel"),
     ((5, 5), 3, "2 levels .5, 5. quantize 2 channels, but the encoder gives 3: set its dim to 2")],
)  # fmt: skip
def test_wrong_levels_are_named(levels, channels, message):
    with pytest.raises(ValueError, match=message):
        apply(levels, np.zeros((1, 1, 1, 1, channels)))
