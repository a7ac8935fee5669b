"""magvid.models.lpips: the formula, sizes, and what each backbone reads. Equality with PyTorch's networks is in test_convert_features.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magvid.models.lpips import BACKBONES, LPIPS, SqueezeNet

VIDEOS = np.random.default_rng(0).random((2, 2, 3, 34, 45, 3)).astype(np.float32)


@pytest.fixture(scope="module", params=sorted(BACKBONES))
def net(request):
    """(LPIPS, its parameters, all weights of features different)."""
    net = LPIPS(request.param)
    params = jax.jit(net.init)(jax.random.key(0), *VIDEOS)["params"]
    rng = np.random.default_rng(1)
    return net, {name: rng.random(x.shape).astype(np.float32) if name.startswith("lin") else x for name, x in params.items()}


def test_the_distance_is_that_of_the_paper(net):
    """Equation 1: sum over maps of the mean over places of the weighed squares of differences of unit vectors; in float64."""
    net, params = net
    found = jax.jit(net.apply)({"params": params}, *VIDEOS)
    expected = 0
    with jax.default_matmul_precision("highest"):
        maps = [BACKBONES[net.backbone]().apply({"params": params["net"]}, x) for x in VIDEOS]
    for i, pair in enumerate(zip(*maps, strict=True)):
        a, b = (np.asarray(x, np.float64) / (np.linalg.norm(np.asarray(x, np.float64), axis=-1, keepdims=True) + 1e-10) for x in pair)
        expected += ((a - b) ** 2 * params[f"lin{i}"]).sum(-1).mean((1, 2))
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found.reshape(-1), expected, rtol=1e-4)
    assert len(set(np.round(expected, 6))) == 6  # every frame is compared with its own


def test_equal_videos_are_0_apart_and_it_is_as_far_there_as_back(net):
    net, params = net
    apply = jax.jit(net.apply)
    np.testing.assert_array_equal(apply({"params": params}, VIDEOS[0], VIDEOS[0]), 0)
    np.testing.assert_allclose(apply({"params": params}, *VIDEOS), apply({"params": params}, *VIDEOS[::-1]), rtol=1e-5)


@pytest.mark.parametrize("backbone, count", [("alex", 2_469_696 + 1_152), ("squeeze", 722_496 + 2_240), ("vgg", 14_714_688 + 1_472)])
def test_full_sizes(backbone, count):
    """torchvision's networks without their classifiers, and the reference implementation's weights of features."""
    pictures = jnp.zeros((1, 1, 64, 64, 3))
    shapes = jax.eval_shape(LPIPS(backbone).init, jax.random.key(0), pictures, pictures)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("backbone, least", [("alex", 31), ("squeeze", 17), ("vgg", 16)])
def test_the_smallest_frames(backbone, least):
    pictures = lambda side: (jnp.zeros((1, 1, side, 40, 3)),) * 2
    assert jax.eval_shape(LPIPS(backbone).init_with_output, jax.random.key(0), *pictures(least))[0].shape == (1, 1)
    with pytest.raises(ValueError, match=f"frames of {least - 1}x40 are too small"):
        jax.eval_shape(LPIPS(backbone).init, jax.random.key(0), *pictures(least - 1))


def test_pooling_reaches_beyond_the_border_as_pytorchs():
    """ceil_mode: 33 columns become 16, 8, 4, 2 and 38 become 18, 9, 4, 2; without it 16, 7, 3, 1 and 18, 8, 3, 1."""
    maps = jax.eval_shape(SqueezeNet().init_with_output, jax.random.key(0), jnp.zeros((1, 1, 33, 38, 3)))[0]
    assert [x.shape[1:3] for x in maps] == [(16, 18), (8, 9), (4, 4), (2, 2), (2, 2), (2, 2), (2, 2)]


def test_an_unknown_backbone_is_named():
    with pytest.raises(ValueError, match="backbone='resnet' is none of alex, squeeze, vgg"):
        jax.eval_shape(LPIPS("resnet").init, jax.random.key(0), *VIDEOS)
