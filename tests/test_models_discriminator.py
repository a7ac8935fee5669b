"""The discriminators equal the official ones and have their exact sizes."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import GOLDEN, Golden, drawn, flatten, nest, relative_error
from magvid.losses import gradient_penalty, non_saturating
from magvid.models.discriminator import Discriminator, blur_pool
from magvid.models.layers import LayerNorm

COUNTS = json.loads((GOLDEN / "param_counts.json").read_text())


def check_golden(golden: Golden, planar: bool):
    config = golden.config["discriminator"]
    model = Discriminator(config["filters"], tuple(config["channel_multipliers"]), planar=planar)
    params, real, fake = nest(golden.flat()), golden["x_real"], golden["x_fake"]
    names = flatten(jax.eval_shape(model.init, jax.random.key(0), real)["params"])
    assert {k: v.shape for k, v in names.items()} == {k: v.shape for k, v in golden.flat().items()}
    logits = lambda p, v: model.apply({"params": p}, v)

    def loss(p):
        r1 = 10 * gradient_penalty(partial(logits, p), real)
        return non_saturating(logits(p, real), logits(p, fake))[1] + r1, r1

    (value, r1), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert relative_error(jax.jit(logits)(params, real), golden["logit_real"]) < 1e-4
    assert relative_error(jax.jit(logits)(params, fake), golden["logit_fake"]) < 1e-4
    slope = jax.jit(jax.grad(lambda v: jnp.sum(logits(params, v))))(real)
    assert relative_error(slope, golden["grad_x_real"]) < 1e-4
    np.testing.assert_allclose(r1, golden["r1_penalty_cost10"], rtol=1e-4)
    np.testing.assert_allclose(value, golden["d_loss_ns_plus_r1"], rtol=1e-4)
    largest = max(golden.flat("gradnorm:").values())
    for name, grad in flatten(grads).items():
        np.testing.assert_allclose(np.linalg.norm(grad), golden["gradnorm:" + name], rtol=2e-4, err_msg=name)
        np.testing.assert_allclose(np.sum(grad), golden["gradsum:" + name], rtol=1e-3, atol=1e-4 * largest)


def test_golden_2d():
    check_golden(Golden("disc2d_a"), planar=True)


@pytest.mark.full
def test_golden_3d(shared):
    check_golden(Golden("disc3d_a", shared / "golden" / "magvit"), planar=False)


LEVELS = {"ucf101": (2, 4, 4, 4, 4), "bair": (2, 4, 4, 4)}


@pytest.mark.parametrize("planar", [True, False])
@pytest.mark.parametrize("size", ["B", "L"])
@pytest.mark.parametrize("data", LEVELS)
def test_full_sizes_have_the_official_number_of_parameters(data, size, planar):
    pixels = 128 if data == "ucf101" else 64
    model = Discriminator({"B": 64, "L": 128}[size], LEVELS[data], planar=planar)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, pixels, pixels, 3)))["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    data = "64" if planar and data == "bair" else data
    assert count == COUNTS[f"vq{2 if planar else 3}d_{data}_{size}"]["discriminator"]


def test_full_size_has_the_official_names_and_shapes():
    section = (GOLDEN / "param_trees.txt").read_text().split("## vq3d_ucf101_B/discriminator\n")[1].split("\n## ")[0]
    official = dict(line.split("\t") for line in section.strip().splitlines() if "\t" in line)
    params = jax.eval_shape(Discriminator().init, jax.random.key(0), jnp.zeros((1, 16, 128, 128, 3)))["params"]
    assert {k: str(v.shape) for k, v in flatten(params).items()} == official


def test_logits_per_clip_or_per_frame_with_norm_and_remat():
    video = jnp.asarray(np.random.default_rng(0).random((2, 4, 8, 12, 3)), jnp.float32)
    for planar, shape in ((True, (2, 4, 1)), (False, (2, 1))):
        model = Discriminator(4, (1, 2), norm=LayerNorm, planar=planar)
        variables = drawn(model.init, jax.random.key(0), video)
        assert {"LayerNorm_0", "LayerNorm_1"} < set(variables["params"]["ResBlock_1"])
        logits = jax.jit(model.apply)(variables, video)
        assert logits.shape == shape
        again = Discriminator(4, (1, 2), norm=LayerNorm, planar=planar, remat=2)
        np.testing.assert_allclose(jax.jit(again.apply)(variables, video), logits, rtol=1e-5)


def test_blur_pool_is_a_weighted_mean_of_each_frame():
    video = jnp.asarray(np.random.default_rng(0).random((2, 3, 6, 8, 5)), jnp.float32)
    pooled = blur_pool(video, (1, 2, 2))
    padded = np.pad(np.asarray(video), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    expected = np.einsum("btijc,ij->btc", padded[:, :, 2:6, 4:8], taps)  # the cell (1, 2)
    np.testing.assert_allclose(pooled[:, :, 1, 2], expected, rtol=1e-5)
    assert pooled.shape == (2, 3, 3, 4, 5)
    np.testing.assert_allclose(blur_pool(jnp.ones((1, 1, 6, 6, 1)), (1, 2, 2))[0, 0, 1, 1], 1)
    with pytest.raises(ValueError, match="single frames, got a window of .2, 2, 2.: use planar=True"):
        blur_pool(video, (2, 2, 2))
