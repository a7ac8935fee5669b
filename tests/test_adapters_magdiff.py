"""MagDiff's own parts against plain numpy and the golden files; what is told of an entity, and what is not."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_diffusion as tiny
from helpers import Golden, drawn, flatten, nest, relative_error
from helpers_diffusion import golden_input, golden_weight
from magvid.adapters.magdiff import EPAF, EntityLatents, EntityTokens, Pyramid, Resampler, entities
from magvid.models.vae import Posterior
from magvid.types import Condition
from test_adapters_aid import gelu, heads_attend
from test_adapters_dqformer import norm
from test_models_conditioners import on_features
from tools import convert_resampler, rules

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
draw = lambda *shape: RNG.normal(size=shape).astype(np.float32)
B, T, H, W = 2, 3, 24, 36
PICTURES = RNG.integers(1, 256, (B, T, H, W, 3)).astype(np.uint8)
THERE = np.array([[True, True, False], [False, True, False]])
BATCH = {"entities": PICTURES, "entity_valid": THERE}
SMALL = dict(width=32, queries=16, depth=2, heads=4, head_dim=8, out=24)


# Resampler


def resampler(p, x, heads=4, depth=2):
    """(queries out) of the tokens of one picture."""
    part = lambda name: {"scale": p[f"{name}/scale"], "bias": p[f"{name}/bias"]}
    x, y = x @ p["proj_in/kernel"] + p["proj_in/bias"], p["latents"][0]
    for i in range(depth):
        name = f"layers_{i}"
        asks = norm(y, part(f"{name}_norm2"))
        k, v = np.split(np.concatenate([norm(x, part(f"{name}_norm1")), asks]) @ p[f"{name}_to_kv/kernel"], 2, axis=-1)
        y = y + heads_attend(asks @ p[f"{name}_to_q/kernel"], k, v, heads) @ p[f"{name}_to_out/kernel"]
        y = y + gelu(norm(y, part(f"{name}_ff_norm")) @ p[f"{name}_ff_in/kernel"]) @ p[f"{name}_ff_out/kernel"]
    return norm(y @ p["proj_out/kernel"] + p["proj_out/bias"], part("norm_out"))


def test_the_resampler_is_its_formula():
    module, x = Resampler(**SMALL), draw(3, 20, 40)
    params = flatten(drawn(module.init, KEY, x)["params"])
    params = {name: a + 0.1 * draw(*a.shape) for name, a in params.items()}
    y = module.apply({"params": nest(params)}, x)
    np.testing.assert_allclose(y, np.stack([resampler(params, one) for one in x]), atol=2e-5)


def test_the_resampler_has_as_many_parameters_as_the_released_one():
    shapes = jax.eval_shape(Resampler().init, KEY, jnp.zeros((1, 257, 1280)))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 48_541_696


# Adaptive prompts alignment


def test_a_picture_that_does_not_count_adds_nothing():
    x, context = draw(B, T, 2, 3, 8), dict(text=draw(B, 1, 4, 8), image=draw(B, 1, 6, 8))
    module = EPAF(2)
    told = lambda mask: Condition(tokens=context, masks={"image": mask})
    params = drawn(module.init, KEY, x, told(np.ones((B, 6), bool)))
    run = lambda mask, p=params: module.apply(p, x, told(mask))
    mute = jax.tree_util.tree_map_with_path(lambda path, a: a * 0 if "image_scale" in str(path) else a, params)
    none, some = np.zeros((B, 6), bool), np.arange(6) < np.array([[0], [4]])
    np.testing.assert_array_equal(run(none), run(none, mute))
    np.testing.assert_array_equal(run(some)[0], run(none)[0])
    assert np.abs(run(some)[1] - run(none)[1]).max() > 1e-2
    context["image"] = np.where(some[:, None, :, None], context["image"], 1e3)
    y = run(some)
    context["image"] = context["image"][:, :, :4]
    np.testing.assert_allclose(run(np.ones((B, 4), bool))[1], y[1], atol=1e-6)


# The entity's tokens


class Tower(nn.Module):
    """Four hidden states of each picture: means of its quarters from top to bottom."""

    @nn.compact
    def __call__(self, images):
        strips = jnp.stack([s.mean(axis=(1, 2)) for s in jnp.split(images, 4, axis=1)], axis=1)
        return tiny.Encoded(strips, strips[:, 0])


def tokens(module, batch=BATCH, keep={}):
    params = drawn(module.init, KEY, batch, keep)
    condition = module.apply(params, batch, keep)
    return params["params"], np.asarray(condition.tokens["image"]), condition.masks


def entity_tokens(**options):
    return EntityTokens(Tower(), Resampler(**SMALL | dict(queries=2)), prepare=lambda x: x, **options)


def test_tokens_of_all_pictures_one_after_the_other():
    params, told, masks = tokens(entity_tokens())
    assert told.shape == (B, 1, 2 * T, 24)
    np.testing.assert_array_equal(masks["image"], np.repeat(THERE, 2, axis=1))
    flat = flatten(params["resampler"])
    for b, t in ((0, 0), (0, 1), (1, 1)):
        strips = np.stack([s.mean((0, 1)) for s in np.split(PICTURES[b, t] / np.float32(255), 4)])
        np.testing.assert_allclose(told[b, 0, 2 * t : 2 * t + 2], resampler(flat, strips), atol=2e-5)
    np.testing.assert_array_equal(told[0, 0, 4:], told[1, 0, :2])  # black, whatever the batch holds there


def test_the_released_code_counts_black_pictures_and_swaps_red_and_blue():
    _, told, masks = tokens(entity_tokens(count_all=True, bgr=True))
    assert masks == {}
    np.testing.assert_array_equal(tokens(entity_tokens(), BATCH | {"entities": PICTURES[..., ::-1]})[1], told)


def test_hidden_pictures_are_none():
    keep = {"image": np.array([False, True])}
    _, told, masks = tokens(entity_tokens(), keep=keep)
    none = BATCH | {"entity_valid": THERE & keep["image"][:, None]}
    np.testing.assert_array_equal(told, tokens(entity_tokens(), none)[1])
    np.testing.assert_array_equal(masks["image"], np.repeat(none["entity_valid"], 2, axis=1))
    assert not masks["image"][0].any() and masks["image"][1].any()


@pytest.mark.parametrize(
    "batch, says",
    [
        ({"video": PICTURES}, "give entities, entity_valid beside"),
        (BATCH | {"entity_valid": THERE[:, :2]}, "one of the latter for each picture"),
        (BATCH | {"entities": np.zeros(PICTURES.shape, np.int32)}, "entities are int32: give uint8, 0 to 255, or float, 0 to 1"),
    ],
)
def test_what_is_missing_is_named(batch, says):
    with pytest.raises(ValueError, match=says):
        entities(batch, {}, "image")


# High-fidelity alignment


class Halves(nn.Module):
    """An autoencoder without parameters: means of 4x4 pixels, two channels."""

    factor = 4
    scaling = 0.5

    @nn.compact
    def __call__(self, x):
        return self.encode(x)

    def encode(self, x):
        b, t, h, w, _ = x.shape
        z = x.reshape(b, t, h // 4, 4, w // 4, 4, 3).mean((3, 5))[..., :2]
        return Posterior(z, jnp.zeros_like(z))


def latents(levels, batch=BATCH, keep={}, params=None, **options):
    module = EntityLatents(Halves(), Pyramid(), levels, **options)
    params = drawn(module.init, KEY, batch, keep) if params is None else params
    return params, module.apply(params, batch, keep).concat


def pooled(pictures, there=THERE):
    """Half of the means of 4x4 pixels of what is there in [-1, 1]."""
    shown = np.where(there[..., None, None, None], 2 * (pictures / np.float32(255)) - 1, -1)
    b, t, h, w, _ = shown.shape
    return 0.5 * shown.reshape(b, t, h // 4, 4, w // 4, 4, 3).mean((3, 5))[..., :2]


def test_the_released_form_has_one_size_and_no_parameters():
    params, z = latents((1.0,))
    assert not jax.tree.leaves(params)
    np.testing.assert_allclose(z, pooled(PICTURES), atol=1e-6)


def test_the_pyramid_begins_as_the_clips_own_size():
    params, z = latents((1.5, 1.0))
    small = jax.image.resize(jnp.where(THERE[..., None, None, None], PICTURES / np.float32(255), 0), (B, T, 16, 24, 3), "linear")
    np.testing.assert_allclose(z, pooled(np.asarray(small) * 255), atol=1e-5)
    kernel = draw(1, 3, 3, 2, 2)
    params = {"params": {"pyramid": {"align_0": {"kernel": kernel, "bias": draw(2)}}}}
    large = jax.image.resize(jnp.asarray(pooled(PICTURES)), (B, T, 4, 6, 2), "linear")
    padded = np.pad(large, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)])
    added = sum(padded[:, :, i : i + 4, j : j + 6] @ kernel[0, i, j] for i in range(3) for j in range(3))
    expected = pooled(np.asarray(small) * 255) + added + params["params"]["pyramid"]["align_0"]["bias"]
    np.testing.assert_allclose(latents((1.5, 1.0), params=params)[1], expected, atol=1e-4)


def test_hidden_pictures_have_the_latent_of_black():
    _, z = latents((1.0,), keep={"image": np.zeros(B, bool)})
    np.testing.assert_allclose(z, -0.5, atol=1e-6)


def test_frames_without_a_picture_are_told_the_last_one():
    """In the second example the first frame has none before it, and stays black; hidden pictures are not repeated."""
    own = pooled(PICTURES)
    _, z = latents((1.0,), repeat=True)
    np.testing.assert_allclose(z, np.stack([own[0, [0, 1, 1]], own[1, [0, 1, 1]]]), atol=1e-6)
    _, z = latents((1.0,), keep={"image": np.array([True, False])}, repeat=True)
    np.testing.assert_allclose(z[0], own[0, [0, 1, 1]], atol=1e-6)
    np.testing.assert_allclose(z[1], -0.5, atol=1e-6)


def test_levels_end_with_the_clips_own():
    for levels in ((1.5, 1.25), (1.0, 1.5), (1.25, 1.5, 1.0)):
        with pytest.raises(ValueError, match="the largest first, the last 1"):
            latents(levels)


# Golden files


@pytest.mark.full
def test_golden_resampler(shared):
    folder = shared / "golden" / "diffusion"
    lines = (folder / "magdiff_resampler_keys.txt").read_text().splitlines()
    names = {name: tuple(int(k) for k in re.findall(r"\d+", shape)) for name, shape in (line.split(" ", 1) for line in lines)}
    module, x = Resampler(**SMALL), golden_input("mg_rs", (3, 20, 40))
    arrays = {name: golden_weight(name, shape) for name, shape in names.items()}
    params = rules.convert(arrays, convert_resampler.RULES, convert_resampler.shapes(module, 40))
    y = module.apply({"params": nest(params)}, x)
    assert relative_error(y, Golden("magdiff", folder)["resampler_out"]) < 1e-5
    back = rules.restore(params, convert_resampler.RULES, convert_resampler.shapes(module, 40))
    assert set(back) == set(arrays)
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)


@pytest.mark.parametrize("keep", [{}, {"image": jnp.asarray([True, False])}])
def test_pictures_by_their_features(keep):
    """Of the tokens, those that count."""
    said, whole = on_features(entity_tokens(), BATCH, keep)
    np.testing.assert_array_equal(said.masks["image"], whole.masks["image"])
    counts = np.asarray(whole.masks["image"])[:, None, :, None]
    np.testing.assert_allclose(np.where(counts, said.tokens["image"], 0), np.where(counts, whole.tokens["image"], 0), atol=1e-5)
    for repeat in (False, True):
        said, whole = on_features(EntityLatents(tiny.VAE(), Pyramid(), (1.5, 1.0), repeat), BATCH, keep)
        np.testing.assert_allclose(said.concat, whole.concat, atol=1e-5)
    assert not entity_tokens(count_all=True).towers  # black pictures count, and which are black changes
