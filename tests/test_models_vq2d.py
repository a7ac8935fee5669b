"""2D-VQ equals the official one frame by frame, and 3D-VQ is inflated from it as officially."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import Golden, drawn, flatten, nest
from magvid.checkpoints import merge
from magvid.models import vq2d, vq3d
from magvid.models.discriminator import Discriminator
from magvid.models.layers import LayerNorm
from magvid.models.quantizers import VQ
from magvid.models.tokenizer import Tokenizer
from magvid.types import UserError
from test_models_vq3d import check_counts, check_golden

def planar(dim=256, size=1024, temporal=(False, False, False), norm=vq2d.FrameNorm, **shared) -> Tokenizer:
    shared = dict(shared, temporal=temporal, norm=norm)
    return Tokenizer(vq2d.Encoder(dim=dim, **shared), VQ(size, dim), vq2d.Decoder(**shared))


@pytest.mark.full
def test_golden(shared):
    check_golden(Golden("vq2d_a", shared / "golden" / "magvit"))


SIZES = {
    "vq2d_ucf101_B": dict(filters=64),
    "vq2d_ucf101_L": dict(filters=128),
    "vq2d_64_B": dict(filters=64, multipliers=(1, 2, 4), temporal=(False, False)),
    "vq2d_64_L": dict(filters=128, multipliers=(1, 2, 4), temporal=(False, False)),
}


@pytest.mark.parametrize("name", SIZES)
def test_full_sizes_have_the_official_number_of_parameters(name):
    check_counts(planar(**SIZES[name]), name)


SMALL = dict(filters=4, multipliers=(1, 2), blocks=1, norm=LayerNorm)


@pytest.mark.parametrize("options", [
    dict(), dict(padding="reflect"), dict(norm=lambda **k: vq2d.FrameNorm(groups=2, **k)),
    dict(down=vq3d.conv_down), dict(up=vq3d.deconv_up), dict(up=vq2d.shuffle_up), dict(patch=(1, 2, 2)),
])  # fmt: skip
def test_frames_do_not_see_each_other(options):
    options = SMALL | options
    parts = {name: options.pop(name) for name in ("down", "up") if name in options}
    encoder = vq2d.Encoder(**options, temporal=(False,), dim=5, **{k: v for k, v in parts.items() if k == "down"})
    decoder = vq2d.Decoder(**options, temporal=(False,), **{k: v for k, v in parts.items() if k == "up"})
    video = jnp.asarray(np.random.default_rng(0).random((2, 3, 8, 12, 3)), jnp.float32)
    for model, x in ((encoder, video), (decoder, jnp.asarray(np.random.default_rng(1).random((2, 3, 4, 6, 5)), jnp.float32))):
        rng, shapes = np.random.default_rng(2), jax.eval_shape(model.init, jax.random.key(0), x)
        variables = jax.tree.map(lambda p: (rng.standard_normal(p.shape) / np.prod(p.shape[:-1]) ** 0.5).astype(np.float32), shapes)
        together = jax.jit(model.apply)(variables, x)
        alone = jax.jit(model.apply)(variables, x.reshape(6, 1, *x.shape[2:]))
        np.testing.assert_allclose(together.reshape(alone.shape), alone, rtol=1e-4, atol=1e-5)
        kernels = [v for k, v in flatten(variables["params"]).items() if k.endswith("kernel")]
        assert kernels and all(k.ndim == 4 for k in kernels)


# --- inflation


@pytest.mark.full
@pytest.mark.parametrize("mode", ["central", "average"])
@pytest.mark.parametrize("part", ["g", "d"])
def test_golden_inflation(mode, part, shared):
    golden = Golden("inflation", shared / "golden" / "magvit")
    inflate = {"central": vq3d.inflate_central, "average": vq3d.inflate_average}[mode]
    source, target = nest(golden.flat(f"{part}2d:")), nest(golden.flat(f"{part}3d_init:"))
    found, expected = flatten(inflate(source, target)), golden.flat(f"{part}_{mode}:")
    assert set(found) == set(expected)
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, err_msg=name)


def solid(temporal=(True,)) -> Tokenizer:
    shared = dict(SMALL, temporal=temporal)
    return Tokenizer(vq3d.Encoder(dim=5, **shared), VQ(7, 5), vq3d.Decoder(**shared))


def test_a_centrally_inflated_tokenizer_shows_a_still_video_as_the_2d_one_does():
    image = jnp.asarray(np.random.default_rng(0).random((2, 1, 8, 12, 3)), jnp.float32)
    still = jnp.tile(image, (1, 4, 1, 1, 1))
    flat = planar(5, 7, (False,), LayerNorm, filters=4, multipliers=(1, 2), blocks=1)
    params = drawn(flat.init, jax.random.key(0), image)["params"]
    shapes = jax.eval_shape(solid().init, jax.random.key(0), still)["params"]
    inflated = merge(vq3d.inflate_central(params, shapes), shapes)
    run = lambda model, p, x: jax.jit(model.apply)({"params": p}, x)
    frame, frame_codes = run(flat, params, image)
    video, video_codes = run(solid(), inflated, still)
    np.testing.assert_array_equal(video_codes.ids, np.tile(frame_codes.ids, (1, 2, 1, 1)))
    np.testing.assert_allclose(video, np.tile(frame, (1, 4, 1, 1, 1)), rtol=1e-4, atol=1e-5)
    # without halving time, any video is shown frame by frame as by the 2D model
    moving = jnp.asarray(np.random.default_rng(1).random((2, 4, 8, 12, 3)), jnp.float32)
    frames, codes = run(flat, params, moving)
    video, video_codes = run(solid((False,)), inflated, moving)
    np.testing.assert_array_equal(video_codes.ids, codes.ids)
    np.testing.assert_allclose(video, frames, rtol=1e-4, atol=1e-5)
    # averaging does not: zeros beyond the first and last frame
    average = merge(vq3d.inflate_average(params, shapes), shapes)
    assert np.abs(run(solid(), average, still)[0] - frame).max() > 1e-3


def test_what_does_not_fit_is_left_to_be_named():
    video = jnp.zeros((1, 4, 16, 16, 3))
    source = drawn(Discriminator(4, (1, 2), planar=True).init, jax.random.key(0), video)["params"]
    shapes = jax.eval_shape(Discriminator(4, (1, 2)).init, jax.random.key(0), jnp.zeros((1, 8, 16, 16, 3)))["params"]
    inflated = vq3d.inflate_central(source, shapes)
    assert "kernel" not in inflated["Dense_0"]  # it sees more frames now
    with pytest.raises(UserError, match="Dense_0/kernel"):
        merge(inflated, shapes)
