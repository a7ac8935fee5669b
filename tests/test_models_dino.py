"""magvid.models.dino: sizes, and what it reads. Equality with the transformers library's is in test_convert_features.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from magvid.models.dino import DINO, prepare
from magvid.models.resnet import MEAN, STD


def test_full_size():
    """ViT-S/16 of facebookresearch/dino without a head."""
    shapes = jax.eval_shape(DINO().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 21_665_664


@pytest.mark.parametrize("size", [(30, 47), (300, 270)])
def test_pictures_are_prepared_as_pillow_does(size):
    """Resize(256, bicubic), CenterCrop(224), normalised: one value in a thousand differs, by one level."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    h, w = size
    tall, wide = (256, 256 * w // h) if h < w else (256 * h // w, 256)
    resized = np.asarray(Image.fromarray(image).resize((wide, tall), Image.BICUBIC), np.float32)
    top, left = (tall - 224) // 2, (wide - 224) // 2
    expected = resized[top : top + 224, left : left + 224]
    found = np.asarray(prepare(jnp.asarray(image[None] / np.float32(255)))[0]) * np.float32(STD) + np.float32(MEAN)
    apart = np.abs(found * 255 - expected)
    assert apart.max() < 1.01 and (apart > 0.5).mean() < 2e-3


def test_it_tells_where_things_are_and_refuses_other_sizes():
    net = DINO(width=24, depth=2, heads=3, patch=56)
    images = np.random.default_rng(0).random((2, 224, 224, 3)).astype(np.float32)
    params = jax.jit(net.init)(jax.random.key(0), images)
    apply = jax.jit(net.apply)
    found = np.asarray(apply(params, images))
    assert found.shape == (2, 24) and np.abs(found - apply(params, images.swapaxes(1, 2))).max() > 1e-3
    with pytest.raises(ValueError, match=r"DINO reads pictures of 224x224 pixels in three colours, got \(256, 224, 3\)"):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 256, 224, 3)))
