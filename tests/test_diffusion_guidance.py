"""Guidance: closed forms, one call for all branches, and frames that stay as they are given."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magvid.diffusion import guidance, predictions
from magvid.diffusion.guidance import chain, classifier_free, combine, known_parts, ramp
from magvid.diffusion.predictions import V, X0, Eps
from magvid.diffusion.samplers import DDIM, DDPM, DPMSolverPP2M, EulerEDM, begin, sample
from magvid.diffusion.schedules import EDM, Discrete, corrupt
from magvid.types import Condition

B, T = 2, 3


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X = normal(0, B, T, 4, 5, 2)
LEVEL = Discrete().level(jnp.asarray([300, 800]))


def network(x, time, condition):
    """Reads everything that it is told."""
    tokens = condition.tokens["text"].mean((2, 3))[..., None, None, None]
    y = jnp.tanh(x + condition.concat + tokens + condition.scalars["fps"][:, None, None, None, None])
    return y * jnp.cos(time / 100)[:, None, None, None, None]


denoise = jax.jit(predictions.denoiser(network, V()))


def condition_of(seed: int, text=1.0, image=1.0) -> Condition:
    """`text` = 0, `image` = 0: their nulls; the scalars are told always."""
    return Condition(
        tokens={"text": text * normal(seed, B, 1, 4, 3)},
        masks={"text": jnp.ones((B, 4), bool)},
        concat=image * normal(seed + 10, *X.shape),
        scalars={"fps": normal(seed + 20, B)},
    )


FULL, NULL = condition_of(1), condition_of(1, 0, 0)
IMAGE = condition_of(1, text=0)
alone = lambda condition, s=LEVEL: denoise(X, s, condition)


def test_classifier_free_guidance():
    guide = lambda w: classifier_free(denoise, FULL, [NULL], [w])(X, LEVEL)
    np.testing.assert_array_equal(guide(1.0), alone(FULL))
    np.testing.assert_array_equal(guide(0.0), alone(NULL))
    np.testing.assert_allclose(guide(7.5), alone(NULL) + 7.5 * (alone(FULL) - alone(NULL)), atol=1e-5)


def test_a_weight_per_frame():
    w = ramp(1, 3, T)
    assert w.tolist() == [1, 2, 3]
    found = classifier_free(denoise, FULL, [NULL], [w])(X, LEVEL)
    for t in range(T):
        expected = classifier_free(denoise, FULL, [NULL], [float(w[t])])(X, LEVEL)[:, t]
        np.testing.assert_allclose(found[:, t], expected, atol=1e-6)
    np.testing.assert_array_equal(found[:, 0], alone(FULL)[:, 0])


def test_several_nulls():
    """Away from two nulls at once; a null of weight 1 plays no part."""
    other = condition_of(2)
    found = classifier_free(denoise, FULL, [NULL, other], [3.0, 2.0])(X, LEVEL)
    expected = alone(FULL) + 2 * (alone(FULL) - alone(NULL)) + (alone(FULL) - alone(other))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    single = classifier_free(denoise, FULL, [NULL], [3.0])(X, LEVEL)
    np.testing.assert_allclose(classifier_free(denoise, FULL, [NULL, other], [3.0, 1.0])(X, LEVEL), single, atol=1e-6)


def test_dual_guidance():
    """eps(0, 0) + s_V (eps(V, 0) - eps(0, 0)) + s_T (eps(V, T) - eps(V, 0)), and what it reduces to."""
    dual = lambda image, text: chain(denoise, [NULL, IMAGE, FULL], [image, text])(X, LEVEL)
    none, image, full = alone(NULL), alone(IMAGE), alone(FULL)
    np.testing.assert_allclose(dual(1.5, 7.5), none + 1.5 * (image - none) + 7.5 * (full - image), atol=1e-5)
    np.testing.assert_array_equal(dual(1.0, 1.0), full)
    single = lambda condition, null, w: classifier_free(denoise, condition, [null], [w])(X, LEVEL)
    np.testing.assert_allclose(dual(3.0, 3.0), single(FULL, NULL, 3.0), atol=1e-6)
    np.testing.assert_allclose(dual(1.0, 4.0), single(FULL, IMAGE, 4.0), atol=1e-6)
    np.testing.assert_allclose(dual(4.0, 0.0), single(IMAGE, NULL, 4.0), atol=1e-6)
    per_frame = dual(ramp(1, 3, T), 7.5)
    np.testing.assert_allclose(per_frame[:, 0], dual(1.0, 7.5)[:, 0], atol=1e-6)
    np.testing.assert_allclose(per_frame[:, 2], dual(3.0, 7.5)[:, 2], atol=1e-6)


@pytest.mark.parametrize("prediction", [Eps(), V(), X0()], ids=str)
def test_guidance_of_x0_is_guidance_of_the_network(prediction):
    """What diffusers does to eps or v is done to x0 here."""
    of = predictions.denoiser
    found = classifier_free(of(network, prediction), FULL, [NULL], [7.5])(X, LEVEL)
    mixed = lambda x, t, c: network(x, t, NULL) + 7.5 * (network(x, t, FULL) - network(x, t, NULL))
    np.testing.assert_allclose(found, of(mixed, prediction)(X, LEVEL, None), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", [LEVEL, Discrete().level(jnp.asarray(500))], ids=["per_clip", "one"])
def test_all_branches_in_one_call(level):
    """... and each clip's branches beside each other, with the clip's own level."""
    calls = []

    def counted(x, s, condition):
        calls.append(x.shape)
        np.testing.assert_array_equal(x[::3], X)
        np.testing.assert_array_equal(condition.tokens["text"][1::3], IMAGE.tokens["text"])
        return denoise(x, s, condition)

    found = chain(counted, [NULL, IMAGE, FULL], [2.0, 5.0])(X, level)
    assert calls == [(3 * B, *X.shape[1:])]
    none, image, full = (alone(c, s=level) for c in (NULL, IMAGE, FULL))
    np.testing.assert_allclose(found, none + 2 * (image - none) + 5 * (full - image), atol=1e-5)


def test_a_batch_over_devices_stays_where_it_is():
    """Branches stand beside each other: no clip moves, whatever the number of devices."""
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("data",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    put = lambda tree: jax.device_put(tree, spread)
    guided = lambda x, *told: chain(denoise, told, [2.0, 5.0])(x, Discrete().level(jnp.asarray(500)))
    compiled = jax.jit(guided, out_shardings=spread).lower(put(X), *map(put, (NULL, IMAGE, FULL))).compile()
    assert not any(word in compiled.as_text() for word in ("all-gather", "all-to-all", "collective-permute", "all-reduce"))


def test_branches_that_differ_are_named():
    with pytest.raises(ValueError, match=r"text.*absent.*by its null"):
        combine(denoise, [FULL, FULL.replace(tokens={})], [1.0, 2.0])
    longer = FULL.replace(tokens={"text": jnp.zeros((B, 1, 5, 3))})
    with pytest.raises(ValueError, match=r"text.*\(2, 1, 4, 3\) and \(2, 1, 5, 3\)"):
        classifier_free(denoise, FULL, [longer], [2.0])
    with pytest.raises(ValueError, match="1 weights guide 2"):
        chain(denoise, [NULL, IMAGE, FULL], [2.0])


# Wrappers -----------------------------------------------------------------------------------------------------------

CLEAN = normal(8, *X.shape)
KNOWN = jnp.asarray([[True, False, True], [False, True, False]])
NOISE = normal(9, *X.shape)


@pytest.mark.parametrize("noise", [None, NOISE], ids=["clean", "noised"])
def test_what_a_network_sees_of_known_parts(noise):
    seen = []

    def look(x, s):
        seen.append(x)
        return jnp.zeros_like(x)

    found = known_parts(look, CLEAN, KNOWN, noise)(X, LEVEL)
    np.testing.assert_array_equal(found[KNOWN], CLEAN[KNOWN])
    np.testing.assert_array_equal(found[~KNOWN], 0)
    expected = CLEAN if noise is None else corrupt(CLEAN, noise, LEVEL)
    np.testing.assert_array_equal(seen[0][KNOWN], expected[KNOWN])
    np.testing.assert_array_equal(seen[0][~KNOWN], X[~KNOWN])


@pytest.mark.parametrize("noise", [None, NOISE], ids=["clean", "noised"])
@pytest.mark.parametrize("sampler", [DDIM(), DDPM(), DPMSolverPP2M(), EulerEDM()], ids=str)
def test_known_parts_stay_exactly(sampler, noise):
    """Composed with guidance; bit for bit, and the others are made."""
    guided = classifier_free(denoise, FULL, [NULL], [ramp(1, 3, T)])
    levels = (EDM() if isinstance(sampler, EulerEDM) else Discrete()).levels(3)

    @jax.jit
    def sampled(x, key):
        return sample(sampler, known_parts(guided, CLEAN, KNOWN, noise), begin(x, levels), levels, key)

    found = sampled(X, jax.random.key(0))
    np.testing.assert_array_equal(found[KNOWN], CLEAN[KNOWN])
    assert np.all(np.isfinite(found)) and not np.any(found[~KNOWN] == CLEAN[~KNOWN])


def test_clipping():
    wide = lambda x, s: 3 * x
    np.testing.assert_array_equal(guidance.clip(wide)(X, LEVEL), jnp.clip(3 * X, -1, 1))
    np.testing.assert_array_equal(guidance.clip(wide, 0, 2)(X, LEVEL), jnp.clip(3 * X, 0, 2))


def test_dynamic_threshold():
    """Small x0 stay, of large ones the given share is not clipped, clip by clip."""
    limit = partial(guidance.threshold, ratio=0.9, most=10.0)
    small = lambda x, s: x / 100
    np.testing.assert_allclose(limit(small)(X, LEVEL), X / 100, rtol=1e-6)
    scales = jnp.asarray([2.0, 50.0]).reshape(2, 1, 1, 1, 1)
    found = limit(lambda x, s: scales * x)(X, LEVEL)
    assert jnp.abs(found).max() <= 1
    assert jnp.mean(jnp.abs(found[0]) < 1) == pytest.approx(0.9, abs=0.01)
    np.testing.assert_allclose(found[1], jnp.clip(50 * X[1], -10, 10) / 10, atol=1e-6)  # its quantile lies above `most`


def test_what_counts_nothing_is_not_asked_for():
    asked = []

    def look(x, s, condition):
        asked.append(len(x))
        return denoise(x, s, condition)

    found = chain(look, [NULL, IMAGE, FULL], [1.0, 3.0])(X, LEVEL)
    np.testing.assert_allclose(found, alone(IMAGE) + 3 * (alone(FULL) - alone(IMAGE)), atol=1e-5)
    chain(look, [NULL, IMAGE, FULL], [ramp(1.0, 1.0, T), 3.0])(X, LEVEL)  # a weight per frame is not known to be 0
    assert asked == [2 * B, 3 * B]


def test_cells_of_frames_are_known_too():
    cells = jnp.arange(4)[:, None] < jnp.arange(5) * jnp.ones((B, T, 1, 1))
    clean = normal(7, *X.shape)
    y = known_parts(lambda x, s: 0 * x, clean, cells)(X, LEVEL)
    np.testing.assert_array_equal(y, jnp.where(cells[..., None], clean, 0))
