"""Conditioners: what they say, what they say instead, and what they want to be given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_diffusion as tiny
from helpers import flatten, nest
from magvid.models.clip import TextTower
from magvid.models.conditioners import BoundaryTokens, GivenLatents, ImageLatent, ImageTokens, Scalars, TextTokens

BATCH = tiny.batch()
KEY = jax.random.key(0)
FIRST = jnp.asarray([True, False])  # the first clip keeps its conditions


def run(module, batch=BATCH, keep=None, key=KEY):
    """(what the module says, its parameters)."""
    rngs = {"params": KEY, "condition": key}
    return module.init_with_output(rngs, batch, keep or {})


def test_text_tokens():
    module = TextTokens(tiny.Text(), null=(9, 0, 0, 0, 0))
    said, variables = run(module)
    assert module.names == ("text",) and list(variables["params"]) == ["text"]
    tower = lambda ids: tiny.Text().apply({"params": variables["params"]["text"]}, ids).tokens
    np.testing.assert_array_equal(said.tokens["text"], tower(BATCH["text_ids"])[:, None])
    some = run(module, keep={"text": FIRST, "image": ~FIRST})[0].tokens["text"]
    empty = tower(np.asarray([[9, 0, 0, 0, 0]]))
    np.testing.assert_array_equal(some[0], said.tokens["text"][0])
    np.testing.assert_array_equal(some[1], empty)
    negative = {**BATCH, "null_ids": np.full((2, 5), 7)}
    np.testing.assert_array_equal(run(module, negative, {"text": FIRST})[0].tokens["text"][1], tower(np.full((1, 5), 7)))


def test_text_that_is_missing_is_named():
    with pytest.raises(ValueError, match='"text_ids" beside .*video'):
        run(TextTokens(tiny.Text()), {"video": BATCH["video"]})
    with pytest.raises(ValueError, match="empty prompt has 0 ids and a prompt 5"):
        run(TextTokens(tiny.Text()), keep={"text": FIRST})


def test_two_texts_have_two_names():
    batch = {**BATCH, "state_ids": BATCH["text_ids"][::-1]}
    said, _ = run(TextTokens(tiny.Text(), token="state", key="state_ids"), batch)
    assert list(said.tokens) == ["state"]


@pytest.mark.parametrize("pooled,shape", [(True, (2, 1, 1, 3)), (False, (2, 1, 4, 4))])
def test_image_tokens(pooled, shape):
    module = ImageTokens(tiny.Vision(), tiny.prepare, pooled)
    said, variables = run(module)
    assert said.tokens["image"].shape == shape
    encoded = tiny.Vision().apply({"params": variables["params"]["vision"]}, BATCH["video"][:, 0] / 127.5 - 1)
    expected = encoded.embedding[:, None] if pooled else encoded.tokens
    np.testing.assert_allclose(said.tokens["image"][:, 0], expected, atol=1e-6)
    some = run(module, keep={"image": FIRST})[0].tokens["image"]
    np.testing.assert_array_equal(some[0], said.tokens["image"][0])
    assert not some[1].any() and said.tokens["image"][1].any()


def test_boundary_tokens():
    """Of the frames beside the gap, each through the tower by itself; of a gap at an end the frame that is there."""
    gap = dict(start=np.array([1, 2]), end=np.array([2, 3]))
    module = BoundaryTokens(tiny.Vision(), tiny.prepare)
    said, variables = run(module, {**BATCH, **gap}, {"image": FIRST})
    tower = lambda frames: tiny.Vision().apply({"params": variables["params"]["vision"]}, tiny.prepare(frames / 255)).tokens
    expected = np.concatenate([tower(BATCH["video"][:1, 0]), tower(BATCH["video"][:1, 2])], axis=1)
    np.testing.assert_allclose(said.tokens["image"][0], expected, atol=1e-6)
    np.testing.assert_array_equal(said.tokens["image"][1], 0)
    before = BoundaryTokens(tiny.Vision(), tiny.prepare, ends=("before",), token="first")
    one = before.apply(variables, {**BATCH, **gap}, {}).tokens["first"]
    assert before.names == ("first",) and one.shape == (2, 1, 4, 4)
    np.testing.assert_allclose(one[0], expected[:, :4], atol=1e-6)
    at_the_end = module.apply(variables, {**BATCH, "start": np.array([0, 1]), "end": np.array([3, 3])}, {}).tokens["image"]
    np.testing.assert_allclose(at_the_end[0, 0], np.concatenate([tower(BATCH["video"][:1, k]) for k in (0, 2)], axis=1)[0], atol=1e-6)
    with pytest.raises(ValueError, match="boundary frames are conditioned on: give start, end beside"):
        module.apply(variables, BATCH, {})


def test_image_latent():
    module = ImageLatent(tiny.VAE(), aug=0.0)
    said, variables = run(module)
    assert said.concat.shape == (2, 1, 2, 3, 2)
    frame = BATCH["video"][:, :1] / np.float32(127.5) - 1
    mean, _ = tiny.VAE().apply({"params": {**variables["params"]["vae"], "exit": {}}}, frame, method="encode")
    np.testing.assert_allclose(said.concat, mean, atol=1e-6)  # not times `scaling`
    some = run(module, keep={"image": FIRST})[0]
    np.testing.assert_array_equal(some.concat[0], said.concat[0])
    assert not some.concat[1].any()
    np.testing.assert_array_equal(some.scalars["aug"], [0, 0])
    assert not run(ImageLatent(tiny.VAE(), tell=False))[0].scalars


def test_noise_on_the_conditioning_image():
    """Of the strength that is told; an "image" of floats stands in for the first frame."""
    clear = run(ImageLatent(tiny.VAE(), aug=0.0))[0]
    batch = {"image": BATCH["video"][:, 0] / np.float32(255), "aug": np.asarray([0.0, 0.5], np.float32)}
    noisy = run(ImageLatent(tiny.VAE()), batch)[0]
    np.testing.assert_array_equal(noisy.scalars["aug"], batch["aug"])
    np.testing.assert_allclose(noisy.concat[0], clear.concat[0], atol=1e-6)
    assert np.abs(noisy.concat[1] - clear.concat[1]).max() > 0.05
    default = run(ImageLatent(tiny.VAE()))[0]
    np.testing.assert_allclose(default.scalars["aug"], [0.02, 0.02])
    other = run(ImageLatent(tiny.VAE()), key=jax.random.key(1))[0]
    assert not np.array_equal(default.concat, other.concat)
    with pytest.raises(ValueError, match='"image" or "video" beside .*fps'):
        run(ImageLatent(tiny.VAE()), {"fps": BATCH["fps"]})


def test_scalars():
    said, variables = run(Scalars({"fps": 6.0, "motion": 127.0}))
    assert not variables
    np.testing.assert_array_equal(said.scalars["fps"], [5, 6])
    np.testing.assert_array_equal(said.scalars["motion"], [127, 127])
    assert said.scalars["motion"].dtype == jnp.float32


# Given frames (AID) -------------------------------------------------------------------------------------------------


def given_latents(**fields):
    return GivenLatents(tiny.VAE(), 5, **(dict(aug=0.0) | fields))


@pytest.mark.parametrize("given", [1, 2])
def test_given_frames_then_grey(given):
    said, variables = run(given_latents(given=given))
    vae = tiny.VAE()
    encode = lambda video: vae.apply({"params": variables["params"]["vae"]}, video, method="encode").mode()
    shown = BATCH["video"][:, :given] / np.float32(127.5) - 1
    grey = np.zeros((2, 5 - given, 4, 6, 3), np.float32)
    np.testing.assert_allclose(said.concat, encode(np.concatenate([shown, grey], axis=1)), atol=1e-5)
    np.testing.assert_array_equal(said.scalars["aug"], [0, 0])
    some = run(given_latents(given=given), keep={"image": FIRST})[0].concat
    np.testing.assert_array_equal(some[0], said.concat[0])
    assert not some[1].any()


@pytest.mark.parametrize("given", [1, 2])
def test_the_last_given_frame_in_place_of_grey_ones(given):
    """Of one given frame what `ImageLatent` says: a frozen SVD then sees what it was trained on."""
    said, variables = run(given_latents(given=given, grey=False))
    shown = BATCH["video"][:, :given] / np.float32(127.5) - 1
    encoded = tiny.VAE().apply({"params": variables["params"]["vae"]}, shown, method="encode").mode()
    np.testing.assert_array_equal(said.concat[:, :given], encoded)  # of as many frames: a program of another size rounds otherwise
    np.testing.assert_array_equal(said.concat[:, given:], np.repeat(said.concat[:, given - 1 : given], 5 - given, axis=1))
    if given == 1:
        first = ImageLatent(tiny.VAE(), aug=0.0).apply(variables, BATCH, {}, rngs={"condition": KEY}).concat
        np.testing.assert_allclose(said.concat, np.broadcast_to(first, said.concat.shape), atol=1e-6)


def test_a_mask_says_which_frames_are_given():
    said, _ = run(given_latents(given=2, mask=True))
    assert said.concat.shape == (2, 5, 2, 3, 3)
    np.testing.assert_array_equal(said.concat[..., -1], np.broadcast_to((np.arange(5) < 2)[:, None, None], (2, 5, 2, 3)))


def test_the_noise_on_one_given_frame_is_that_of_the_image_latent():
    batch = {**BATCH, "aug": np.asarray([0.5, 2.0], np.float32)}
    one, variables = run(ImageLatent(tiny.VAE()), batch)
    rngs = {"condition": KEY}
    said = given_latents(aug=0.02).apply(variables, batch, {}, rngs=rngs)
    np.testing.assert_allclose(said.concat[:, 0], ImageLatent(tiny.VAE()).apply(variables, batch, {}, rngs=rngs).concat[:, 0], atol=1e-6)
    np.testing.assert_array_equal(said.scalars["aug"], batch["aug"])
    plain = given_latents().apply(variables, batch | {"aug": np.zeros(2, np.float32)}, {}, rngs=rngs)
    np.testing.assert_array_equal(plain.concat[:, 1:], said.concat[:, 1:])  # grey has none


def test_given_frames_that_cannot_be():
    for given in (0, 5):
        with pytest.raises(ValueError, match=f"given={given} of 5 frames"):
            run(given_latents(given=given))
    with pytest.raises(ValueError, match="4 frames are given to this model"):
        run(given_latents(given=4))


def on_features(module, batch, keep):
    """(what it says of the features of the batch, what it says of the batch), without what they were made of and without its towers. No
    parameter is zero, as some are at first. How features are rounded where they are kept is not in it (test_encode_latents.py).
    """
    rngs = {"condition": KEY}
    shapes = jax.eval_shape(lambda: module.init({"params": KEY, **rngs}, batch, keep))["params"]
    params = nest({name: tiny.drawn(name, x.shape) for name, x in flatten(shapes).items()})
    whole = module.apply({"params": params}, batch, keep, rngs=rngs)
    features = {name: np.asarray(x, np.float32) for name, x in module.apply({"params": params}, batch, method="features").items()}
    assert tuple(features) == tuple(module.entries)
    gone = {"video", "image", *module.inputs}
    rest = {name: x for name, x in batch.items() if name not in gone or name.startswith("entit")}
    without = {name: tree for name, tree in params.items() if name not in module.towers}
    return module.apply({"params": without}, rest | features, keep, rngs=rngs), whole


@pytest.mark.parametrize("keep", [{}, {"text": FIRST}, {"text": ~FIRST}])
def test_a_text_by_its_features(keep):
    said, whole = on_features(TextTokens(tiny.Text(), null=(9, 0, 0, 0, 0)), BATCH, keep)
    np.testing.assert_allclose(said.tokens["text"], whole.tokens["text"], atol=1e-6)


@pytest.mark.parametrize("keep", [{}, {"image": FIRST}])
@pytest.mark.parametrize("pooled", [True, False])
def test_a_picture_by_its_features(keep, pooled):
    said, whole = on_features(ImageTokens(tiny.Vision(), tiny.prepare, pooled), BATCH, keep)
    np.testing.assert_allclose(said.tokens["image"], whole.tokens["image"], atol=1e-6)


def test_features_have_the_type_in_which_the_tower_would_say_them():
    text = TextTower(vocab=11, length=5, width=4, depth=1, heads=1, mlp=4, dtype="bfloat16")
    module = TextTokens(text, null=(9, 0, 0, 0, 0))
    said, whole = on_features(module, BATCH, {"text": FIRST})
    assert said.tokens["text"].dtype == whole.tokens["text"].dtype == jnp.bfloat16
