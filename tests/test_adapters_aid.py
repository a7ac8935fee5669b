"""AID's adapters against plain numpy, their sizes, and the network that begins as its base."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import aid, unets
from helpers import drawn, flatten, nest
from magvid.adapters.aid import Adapter, Decoupled, LongTemporalAdapter, ShortTemporalAdapter, SpatialAdapter
from magvid.build import build
from magvid.models.attention import Attention
from magvid.types import Condition

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
draw = lambda *shape: RNG.normal(size=shape).astype(np.float32)
B, T, H, W, C = 2, 5, 3, 4, 8
X, POSITION = draw(B, T, H, W, C), draw(T, C)
NOTHING = Condition(tokens={}, masks={}, concat=None, scalars={})


def filled(module, *inputs, **kwargs):
    """(its output with random parameters, these by name); at first it gives zeros."""
    shapes = jax.eval_shape(module.init, KEY, *inputs)["params"]
    params = {n: draw(*x.shape) / max(math.prod(x.shape[:-1]), 1) ** 0.5 for n, x in flatten(shapes).items()}
    return np.asarray(module.apply({"params": nest(params)}, *inputs)), params


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def heads_attend(q, k, v, heads):
    """(n d), (m d), (m d) -> (n d)."""
    out = []
    for a in range(heads):
        part = slice(a * q.shape[1] // heads, (a + 1) * q.shape[1] // heads)
        out.append(softmax(q[:, part] @ k[:, part].T / math.sqrt(q.shape[1] // heads)) @ v[:, part])
    return np.concatenate(out, axis=1)


def test_spatial():
    found, p = filled(SpatialAdapter(ratio=0.5), X, NOTHING)
    expected = gelu(X @ p["down/kernel"] + p["down/bias"]) @ p["up/kernel"] + p["up/bias"]
    assert p["down/kernel"].shape == (8, 4)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_short_temporal():
    """Each channel by itself, over time alone, with zeros beyond the clip."""
    found, p = filled(ShortTemporalAdapter(ratio=0.5), X, NOTHING)
    y = X @ p["down/kernel"] + p["down/bias"]
    z = np.zeros_like(y)
    for t in range(T):
        for tap, s in enumerate((t - 1, t, t + 1)):
            if 0 <= s < T:
                z[:, t] += p["conv_kernel"][tap] * y[:, s]
    np.testing.assert_allclose(found, (z + p["conv_bias"]) @ p["up/kernel"] + p["up/bias"], atol=1e-5)


def test_long_temporal():
    """Attention between the frames of each pixel, of what stands at its place in time."""
    found, p = filled(LongTemporalAdapter(ratio=0.5, head_dim=2), X, NOTHING, POSITION)
    y = (X + POSITION[:, None, None]) @ p["down/kernel"] + p["down/bias"]
    z = np.zeros_like(y)
    for b in range(B):
        for i in range(H):
            for j in range(W):
                q, k, v = (y[b, :, i, j] @ p[f"attn/to_{n}/kernel"] for n in "qkv")
                z[b, :, i, j] = heads_attend(q, k, v, 2) @ p["attn/to_out/kernel"] + p["attn/to_out/bias"]
    np.testing.assert_allclose(found, z @ p["up/kernel"] + p["up/bias"], atol=1e-5)
    unplaced, q = filled(LongTemporalAdapter(ratio=0.5, head_dim=2), X, NOTHING)
    turned = LongTemporalAdapter(ratio=0.5, head_dim=2).apply({"params": nest(q)}, X[:, ::-1], NOTHING)
    np.testing.assert_allclose(turned, unplaced[:, ::-1], atol=1e-5)  # without a position the order does not matter


@pytest.mark.parametrize("make", [SpatialAdapter, ShortTemporalAdapter, LongTemporalAdapter, Adapter])
def test_at_first_nothing_is_added(make):
    out, _ = make().init_with_output(KEY, X, NOTHING, POSITION)
    assert out.shape == X.shape and not np.any(out)
    with pytest.raises(ValueError, match="ratio=0.01 has no channels beside 8"):
        make(ratio=0.01).init(KEY, X, NOTHING, POSITION)


def test_decoupled_reads_both():
    """The image's token as before, and what is new with its own keys and values, other ones for every frame."""
    tokens = dict(image=draw(B, 1, 1, 6), mcondition=draw(B, T, 3, 6))
    condition = Condition(tokens=tokens, masks={}, concat=None, scalars={})
    module = Decoupled(heads=2, tokens=("image",), added=("mcondition",))
    found, p = filled(module, X, condition)
    for b in range(B):
        for t in range(T):
            x = X[b, t].reshape(-1, C)
            q, scale = x @ p["to_q/kernel"], p["added_scale"]
            read = lambda context, end: heads_attend(q, context @ p[f"to_k{end}/kernel"], context @ p[f"to_v{end}/kernel"], 2)
            y = read(tokens["image"][b, 0], "") + scale * read(tokens["mcondition"][b, t], "_added")
            np.testing.assert_allclose(found[b, t].reshape(-1, C), y @ p["to_out/kernel"] + p["to_out/bias"], atol=1e-5)
    base = Attention(heads=2, tokens=("image",))
    own = {n: x for n, x in p.items() if "added" not in n}
    at_first = module.apply({"params": nest(p | {"added_scale": np.zeros(1, np.float32)})}, X, condition)
    np.testing.assert_array_equal(at_first, base.apply({"params": nest(own)}, X, condition))


# The network --------------------------------------------------------------------------------------------------------

TINY = dict(channels=(32, 64), layers=1, attention_levels=(True, False), heads=(2, 4), epsilon=1e-5)
SVD = unets.svd | TINY
FRAMES = 3
ARGS = dict(aid.ARMS, ratio=0.25, mask=False)


def condition(mask=None, extra=0):
    tokens = dict(image=draw(B, 1, 1, 16), mcondition=draw(B, FRAMES, 5, 16))
    masks = {} if mask is None else dict(mcondition=np.full((B, 5), mask))
    scalars = {name: np.arange(1.0, B + 1, dtype=np.float32) for name in ("fps", "motion", "aug")}
    return Condition(tokens=tokens, masks=masks, concat=draw(B, FRAMES, 8, 4, 4 + extra), scalars=scalars)


LATENTS, TIME = draw(B, FRAMES, 8, 4, 4), np.asarray([0.3, 1.2], np.float32)


@functools.cache
def base_params():
    net = build(dict(target="magvid.models.unet:UNet", **SVD))
    shapes = jax.eval_shape(net.init, KEY, LATENTS, TIME, condition())["params"]
    return nest({n: draw(*x.shape) / max(math.prod(x.shape[:-1]), 1) ** 0.5 for n, x in flatten(shapes).items()})


def network(changes, **fields):
    """(the network with adapters, what splits and merges its parameters)."""
    args = ARGS | changes
    return build(dict(target="magvid.models.unet:UNet", **(SVD | aid.layers(args, SVD) | fields))), build(aid.grafts(args))


SETS = {
    "spatial": dict(mcond="none", short=False, long=False),
    "short": dict(mcond="none", spatial=False, long=False),
    "long": dict(mcond="none", spatial=False, short=False),
    "all": dict(mcond="none"),
    "all, decoupled": dict(mcond="decoupled"),
    "all, replaced": dict(mcond="replace"),
    "replaced alone": dict(mcond="replace", spatial=False, short=False, long=False),
}


def begun(changed, grafts, told):
    """(shapes of the base, what is added to it as training begins). The base's own numbers, which would take long, are not drawn."""
    split = lambda key: grafts.split(changed.init(key, LATENTS, TIME, told)["params"], key)
    return jax.eval_shape(split, KEY)[0], drawn(lambda key: split(key)[1], KEY)


@pytest.mark.parametrize("name", SETS)
def test_at_first_the_network_is_its_base_bit_for_bit(name):
    """Where the multimodal condition takes the place of what is read, with its tokens masked."""
    told = condition(False if "replaced" in name else None)
    changed, grafts = network(SETS[name])
    base, added = begun(changed, grafts, told)
    assert {n: x.shape for n, x in flatten(base).items()} == {n: x.shape for n, x in flatten(base_params()).items()}
    merged = grafts.merge(base_params(), added)
    plain = build(dict(target="magvid.models.unet:UNet", **SVD))
    expected = plain.apply({"params": base_params()}, LATENTS, TIME, told)
    np.testing.assert_array_equal(changed.apply({"params": merged}, LATENTS, TIME, told), expected)
    trained = grafts.merge(base_params(), jax.tree.map(lambda x: x + 0.05, added))
    assert np.abs(changed.apply({"params": trained}, LATENTS, TIME, told) - expected).max() > 1e-3


def test_a_mask_channel_begins_unread():
    changed, grafts = network(dict(mcond="none", mask=True))
    told = condition(extra=1)
    shapes = jax.eval_shape(changed.init, KEY, LATENTS, TIME, told)["params"]
    assert shapes["conv_in"]["kernel"].shape[-2] == 9
    merged = grafts.merge(base_params(), begun(changed, grafts, told)[1])
    plain = build(dict(target="magvid.models.unet:UNet", **SVD))
    expected = plain.apply({"params": base_params()}, LATENTS, TIME, Condition(told.tokens, told.masks, told.concat[..., :4], told.scalars))
    np.testing.assert_allclose(changed.apply({"params": merged}, LATENTS, TIME, told), expected, atol=1e-5)


def test_in_bfloat16_it_differs_by_no_more_than_the_base_itself():
    told = condition()
    plain = build(dict(target="magvid.models.unet:UNet", **SVD))
    half = build(dict(target="magvid.models.unet:UNet", **SVD, dtype="bfloat16"))
    changed, grafts = network(dict(mcond="decoupled"), dtype="bfloat16")
    exact = plain.apply({"params": base_params()}, LATENTS, TIME, told)
    error = np.abs(np.asarray(half.apply({"params": base_params()}, LATENTS, TIME, told), np.float32) - exact).max()
    merged = grafts.merge(base_params(), begun(changed, grafts, told)[1])
    found = np.asarray(changed.apply({"params": merged}, LATENTS, TIME, told), np.float32)
    assert 0 < error < 0.1 * np.abs(exact).max() and np.abs(found - exact).max() <= error


def test_every_frame_reads_its_own_condition():
    """What one frame is told changes the others only through attention and convolution over time."""
    changed, grafts = network(dict(mcond="replace", spatial=False, short=False, long=False))
    told = condition()
    params = drawn(changed.init, KEY, LATENTS, TIME, told)["params"]
    frozen_in_time = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.full_like(x, 50.0) if "mix_factor" in jax.tree_util.keystr(path) else x, params
    )  # spatial layers alone
    other = dict(told.tokens, mcondition=told.tokens["mcondition"].copy())
    other["mcondition"][:, 1] += 1
    out = [changed.apply({"params": frozen_in_time}, LATENTS, TIME, Condition(t, {}, told.concat, told.scalars)) for t in (told.tokens, other)]
    moved = np.abs(np.asarray(out[0]) - np.asarray(out[1])).max(axis=(0, 2, 3, 4))
    assert moved[1] > 1e-4 and moved[0] == moved[2] == 0


@pytest.mark.parametrize("mcond", ["replace", "decoupled"])
def test_sizes_beside_the_published_network(mcond):
    """6.21, 9.31 and 11.16 million at a ratio of 1/4; all of SVD stays in the base."""
    args = ARGS | dict(mcond=mcond)
    net = build(dict(target="magvid.models.unet:UNet", **(unets.svd | aid.layers(args, unets.svd))))
    tokens = dict(image=np.zeros((1, 1, 1, 1024), np.float32), mcondition=np.zeros((1, 2, 5, 1024), np.float32))
    told = Condition(tokens, {}, np.zeros((1, 2, 8, 16, 4), np.float32), {n: np.zeros(1, np.float32) for n in ("fps", "motion", "aug")})
    init = lambda: net.init(KEY, jnp.zeros((1, 2, 8, 16, 4)), jnp.zeros(1), told)["params"]
    base, added = jax.eval_shape(lambda: build(aid.grafts(args)).split(init(), KEY))
    count = lambda tree, regex="": sum(math.prod(x.shape) for n, x in flatten(tree).items() if re.search(regex, n))
    assert count(base) == 1_524_623_082
    assert count(added, "beside_spatial") == 6_210_800 and count(added, "beside_temporal") == 9_311_520
    assert count(added, "after_res") == 11_155_760
    # keys and values of the condition, and one number in each of 16 layers; or differences of all of the cross-attention
    assert count(added, "attn2") == (50_352_320 if mcond == "replace" else 25_559_056)
    assert len({n.partition("/after_res")[0] for n in flatten(added) if "after_res" in n}) == 22
    assert len({n.partition("/beside_spatial")[0] for n in flatten(added) if "beside_spatial" in n}) == 16
