"""DQFormer against plain numpy; the conditioner and what it is told, or not."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_diffusion as tiny
from helpers import flatten, nest
from magvid.adapters.dqformer import DQFormer, MCondition
from test_adapters_aid import gelu, heads_attend
from test_models_conditioners import on_features

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
draw = lambda *shape: RNG.normal(size=shape).astype(np.float32)
B, N, S, M, T, Q, C = 2, 4, 3, 5, 3, 2, 8
TEXT, STATES, SEEN = draw(B, N, 6), draw(B, S, N, 6), draw(B, M, 7)
SIZES = dict(width=C, frames=T, queries=Q, heads=2, states=S)


def norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def reference(p, text, states, seen, branches=("upper", "lower"), depth=1):
    """(t q c) of one clip, by the formulas of the paper with pre-norm residual sub-layers."""
    linear = lambda x, name: x @ p[f"{name}/kernel"] + p[f"{name}/bias"]
    part = lambda name: {k.rpartition("/")[2]: v for k, v in p.items() if k.rpartition("/")[0] == name}

    def read(x, context, name, i):
        y = norm(x, part(f"{name}_{i}_norm"))
        context = y if context is None else norm(context, part(f"{name}_norm"))
        q, k, v = y @ p[f"{name}_{i}/to_q/kernel"], context @ p[f"{name}_{i}/to_k/kernel"], context @ p[f"{name}_{i}/to_v/kernel"]
        return x + linear(heads_attend(q, k, v, 2), f"{name}_{i}/to_out")

    def feed_forward(x, name):
        value, gate = np.split(linear(norm(x, part(f"{name}_norm")), f"{name}/proj"), 2, axis=-1)
        return x + linear(value * gelu(gate), f"{name}/out")

    text, told = linear(text, "text_in"), []
    if "upper" in branches:
        x = text
        for i in range(depth):
            x = feed_forward(read(read(x, None, "upper/own", i), seen, "upper/seen", i), f"upper/ff_{i}")
        told.append(np.stack([x] * T))
    if "lower" in branches:
        half = C // 2
        angles = np.arange(T)[:, None] * 10000.0 ** (-np.arange(half) / half)
        place = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        context = (linear(states, "state_in") + p["state_embedding"][: len(states)]).reshape(-1, C)
        x = p["query"] + place[:, None]
        for i in range(depth):  # frame by frame: a query reads nothing of the others
            x = np.stack(
                [feed_forward(read(read(f, text, "lower/instruction", i), context, "lower/states", i), f"lower/ff_{i}") for f in x]
            )
        told.append(x)
    return norm(np.concatenate(told, axis=1), part("norm"))


@pytest.mark.parametrize("branches", [("upper", "lower"), ("upper",), ("lower",)])
@pytest.mark.parametrize("depth", [1, 2])
def test_equals_the_formulas(branches, depth):
    module = DQFormer(**SIZES, branches=branches, depth=depth)
    shapes = jax.eval_shape(module.init, KEY, TEXT, STATES, SEEN)["params"]
    params = {n: draw(*x.shape) / max(math.prod(x.shape[:-1]), 1) ** 0.5 for n, x in flatten(shapes).items()}
    found = module.apply({"params": nest(params)}, TEXT, STATES, SEEN)
    assert found.shape == (B, T, N * ("upper" in branches) + Q * ("lower" in branches), C)
    for b in range(B):
        np.testing.assert_allclose(found[b], reference(params, TEXT[b], STATES[b], SEEN[b], branches, depth), atol=1e-4)


def test_frames_differ_in_the_lower_branch_alone():
    found, _ = DQFormer(**SIZES).init_with_output(KEY, TEXT, STATES, SEEN)
    assert np.ptp(found[:, :, :N], axis=1).max() == 0 and np.ptp(found[:, :, N:], axis=1).min() > 0
    swapped, _ = DQFormer(**SIZES).init_with_output(KEY, TEXT, STATES[:, ::-1], SEEN)
    assert np.abs(swapped - found).max() > 1e-5  # the order of states is told


def test_sizes_of_the_published_form():
    """Attention alone: 8.9 million above, 8.4 below and 1.26 of queries, for 16 frames."""
    module, said = DQFormer(), lambda *shape: np.zeros(shape, np.float32)
    shapes = flatten(jax.eval_shape(module.init, KEY, said(1, 77, 1024), said(1, 4, 77, 1024), said(1, 257, 1280))["params"])
    count = lambda *parts: sum(math.prod(x.shape) for n, x in shapes.items() if all(p in n for p in parts) and "norm" not in n)
    assert count("upper/", "/to_") == 8_914_944 and count("lower/", "/to_") == 8_390_656 and count("query") == 1_261_568


def test_what_cannot_be_meant():
    with pytest.raises(ValueError, match="branches=.*a DQFormer has upper and lower"):
        DQFormer(**SIZES, branches=("middle",)).init(KEY, TEXT, STATES, SEEN)
    for count in (2, 5):
        with pytest.raises(ValueError, match=f"{count} states are given, and this DQFormer is told 3"):
            DQFormer(**SIZES).init(KEY, TEXT, draw(B, count, N, 6), SEEN)


# The conditioner ------------------------------------------------------------------------------------------------------

BATCH = tiny.batch(frames=3) | {"null_ids": np.ones((2, 5), np.int32)}
BATCH["state_ids"] = np.random.default_rng(1).integers(1, 11, (2, 3, 5)).astype(np.int32)
FIRST = jnp.asarray([True, False])


def conditioner(**fields):
    return MCondition(tiny.Text(), tiny.Vision(), DQFormer(**SIZES), tiny.prepare, **fields)


def run(module, batch=BATCH, keep=None):
    return module.init_with_output({"params": KEY}, batch, keep or {})


def test_what_the_dqformer_is_given():
    said, variables = run(conditioner(given=2))
    params = variables["params"]
    assert sorted(params) == ["dqformer", "text", "vision"] and said.tokens["mcondition"].shape == (2, T, 5 + Q, C)
    text = lambda ids: tiny.Text().apply({"params": params["text"]}, ids).tokens
    see = lambda k: tiny.Vision().apply({"params": params["vision"]}, BATCH["video"][:, k] / np.float32(127.5) - 1).tokens
    states = np.stack([text(BATCH["state_ids"][:, i]) for i in range(3)], axis=1)
    expected = DQFormer(**SIZES).apply(
        {"params": params["dqformer"]}, text(BATCH["text_ids"]), states, np.concatenate([see(0), see(1)], axis=1)
    )
    np.testing.assert_allclose(said.tokens["mcondition"], expected, atol=1e-5)
    assert conditioner().reads == ("text", "image") and conditioner(given=2).reads == ("text", "image", "video")


def test_what_is_hidden():
    """Both texts are the empty one, and nothing is seen; each by itself."""
    whole, variables = run(conditioner())
    say = lambda batch, keep: conditioner().apply(variables, batch, keep).tokens["mcondition"]
    whole = whole.tokens["mcondition"]
    empty = dict(BATCH, text_ids=BATCH["null_ids"], state_ids=np.ones_like(BATCH["state_ids"]))
    some = say(BATCH, {"text": FIRST})
    np.testing.assert_allclose(some[0], whole[0], atol=1e-6)
    np.testing.assert_allclose(some[1], say(empty, {})[1], atol=1e-6)
    blind = say(BATCH, {"image": FIRST})
    np.testing.assert_allclose(blind[0], whole[0], atol=1e-6)
    other = dict(BATCH, video=BATCH["video"][::-1])
    np.testing.assert_allclose(blind[1], say(other, {"image": FIRST})[1], atol=1e-6)  # whatever is there to see
    assert np.abs(blind[1] - whole[1]).max() > 1e-4


def test_the_instruction_in_place_of_states():
    batch = {k: v for k, v in BATCH.items() if k != "state_ids"}
    said, variables = run(conditioner(repeat=3), batch)
    repeated = dict(BATCH, state_ids=np.repeat(BATCH["text_ids"][:, None], 3, axis=1))
    np.testing.assert_array_equal(said.tokens["mcondition"], conditioner().apply(variables, repeated, {}).tokens["mcondition"])


def test_what_is_missing_is_named():
    for name in ("text_ids", "state_ids", "null_ids"):
        batch = {k: v for k, v in BATCH.items() if k != name}
        with pytest.raises(ValueError, match=f"give {name} beside .*tools/predict_states.py"):
            run(conditioner(), batch, {"text": FIRST})
    with pytest.raises(ValueError, match="4 frames are given to this model.*got 3 frames"):
        run(conditioner(given=4))
    with pytest.raises(ValueError, match="2 frames are given to this model.*got .*image"):
        run(conditioner(given=2), {k: v for k, v in BATCH.items() if k != "video"} | {"image": BATCH["video"][:, 0]})


HIDDEN = [{}, {"text": FIRST}, {"image": FIRST}, {"text": FIRST, "image": ~FIRST}]


@pytest.mark.parametrize("keep", HIDDEN)
@pytest.mark.parametrize("fields", [{}, dict(given=2), dict(repeat=3)])
def test_a_condition_by_its_features(fields, keep):
    module = conditioner(**fields)
    said, whole = on_features(module, BATCH, keep)
    np.testing.assert_allclose(said.tokens["mcondition"], whole.tokens["mcondition"], atol=1e-5)
    kept = module.apply(run(module)[1], BATCH, method="features")
    assert kept["mcondition_text"].shape[1] == (2 if module.repeat else 5)  # the empty text, the instruction, three states
