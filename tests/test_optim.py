"""Schedules, rules and updates against what can be written by hand, and the official learning rates."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from magvid import optim

PARAMS = {
    "enter": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0)},
    "exit": {"kernel": jnp.full((2, 2), 2.0)},
}
ALWAYS = dict(peak=0.1, decay="constant")


def update(optimiser, grads, params=PARAMS):
    params = jax.tree.map(jnp.asarray, params)
    return optimiser.tx.update(grads, optimiser.tx.init(params), params)[0]


def test_cosine_with_warmup_in_closed_form():
    lr = optim.schedule(dict(peak=2.0, warmup=4, decay="cosine"), steps=12)
    assert [float(lr(s)) for s in (0, 1, 2, 4)] == [0.0, 0.5, 1.0, 2.0]
    np.testing.assert_allclose([lr(6), lr(8), lr(10)], [1 + 0.5**0.5, 1.0, 1 - 0.5**0.5], rtol=1e-6)
    assert lr(12) == 2.0  # the official schedule returns to its peak when it is over
    np.testing.assert_allclose(optim.schedule(dict(peak=2.0, total=8), steps=99)(4), 1.0, rtol=1e-6)


def test_constant_and_its_warmup():
    lr = optim.schedule(dict(peak=3.0, warmup=2, decay="constant"), steps=5)
    assert [float(lr(s)) for s in (0, 1, 2, 100)] == [0.0, 1.5, 3.0, 3.0]


@pytest.mark.parametrize(
    "spec, message",
    [
        (dict(peak=1, decay="linear"), "linear"),
        (dict(peak=1, warmup=5), "shorten warmup"),
        (dict(peak=1, warm=5), "warm"),
        (dict(), "peak"),
    ],
)
def test_wrong_schedules_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        optim.schedule(spec, steps=5)


@pytest.mark.full
def test_official_learning_rates(shared):
    golden = np.load(shared / "golden/magvit/lr.npz")
    names = {k.split(":")[0] for k in golden}
    assert len(names) >= 5
    for name in names:
        total, warmup = map(int, golden[f"{name}:total_warmup"])
        lr = optim.schedule(dict(peak=1e-4, warmup=warmup), total)
        np.testing.assert_allclose(
            [lr(int(s)) for s in golden[f"{name}:steps"]], golden[f"{name}:lr"], rtol=1e-4, atol=1e-10
        )


@pytest.mark.full
def test_official_adamw_update(shared):
    """Clipped gradients of the first step of the official transformer trainer give its parameters after that step."""
    steps = np.load(shared / "golden/magvit/bert_trainstep.npz")
    grads = np.load(shared / "golden/magvit/bert_trainstep_grads0.npz")
    pick = lambda file, at: {k.removeprefix(at): jnp.asarray(file[k], jnp.float32) for k in file if k.startswith(at)}
    before, after, grads = pick(steps, "params_before:"), pick(steps, "params_after0:"), pick(grads, "grads:")
    adamw = dict(name="adamw", b1=0.9, b2=0.96, weight_decay=0.045, decay_regex="kernel")
    optimiser = optim.make(dict(optimizer=adamw, rules=[(".*", dict(peak=1e-2))], clip=1.0), before, steps=10)
    found = optax.apply_updates(before, update(optimiser, grads, before))
    for name, value in after.items():
        # Adam's first update is lr * sign(g): compare where g is not lost in rounding
        sure = np.abs(grads[name]) > 1e-6
        np.testing.assert_allclose(np.where(sure, found[name], 0), np.where(sure, value, 0), atol=2e-6, err_msg=name)
    assert json.loads(str(steps["config_json"]))


def test_first_rule_decides_and_none_freezes():
    spec = dict(
        optimizer=dict(name="adam"), rules=[("bias", None), ("enter", ALWAYS), (".*", dict(peak=0.3, decay="constant"))]
    )
    optimiser = optim.make(spec, PARAMS, 10, "g")
    assert optimiser.trained == {"enter/kernel", "exit/kernel"}
    assert {k: float(v(0)) for k, v in optimiser.schedules.items()} == pytest.approx({"/enter": 0.1, "/.*": 0.3})
    trained = {"enter": {"kernel": PARAMS["enter"]["kernel"]}, "exit": PARAMS["exit"]}
    found = update(optimiser, jax.tree.map(jnp.ones_like, trained), trained)
    np.testing.assert_allclose(found["enter"]["kernel"], -0.1, rtol=1e-5)  # Adam's first update is -lr sign(g)
    np.testing.assert_allclose(found["exit"]["kernel"], -0.3, rtol=1e-5)


@pytest.mark.parametrize(
    "rules, message",
    [
        ([("enter", ALWAYS)], '"exit/kernel"'),
        ([(".*", ALWAYS), ("exit", ALWAYS)], r"\['exit'\] decide about no parameter of g"),
        ([(".*", None)], "every parameter has schedule None"),
    ],
)
def test_wrong_rules_are_named(rules, message):
    with pytest.raises(ValueError, match=message):
        optim.make(dict(rules=rules), PARAMS, 10, "g")


@pytest.mark.parametrize("spec, message", [(dict(name="sgd"), "sgd"), (dict(name="adam", weight_decay=0.1), "adamw")])
def test_wrong_optimizers_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        optim.make(dict(optimizer=spec, rules=[(".*", ALWAYS)]), PARAMS, 10)
    with pytest.raises(ValueError, match=r"\['clips'\]"):
        optim.make(dict(rules=[(".*", ALWAYS)], clips=1.0), PARAMS, 10)


def test_weight_decay_only_where_its_regex_is_found():
    spec = dict(optimizer=dict(name="adamw", weight_decay=0.5), rules=[(".*", ALWAYS)])
    found = update(optim.make(spec, PARAMS, 10), jax.tree.map(jnp.zeros_like, PARAMS))
    np.testing.assert_allclose(found["enter"]["kernel"], -0.1 * 0.5 * 2.0, rtol=1e-6)
    np.testing.assert_array_equal(found["enter"]["bias"], 0.0)


def test_clip_bounds_the_norm_of_the_whole_group():
    """With b1 = b2 = 0 and a large eps Adam is g / eps: the update shows the clipped gradient."""
    spec = dict(optimizer=dict(name="adam", b1=0.0, b2=0.0, eps=1e4), rules=[(".*", ALWAYS)], clip=1.0)
    grads = jax.tree.map(lambda x: jnp.full_like(x, 10.0), PARAMS)
    found = jax.tree.leaves(update(optim.make(spec, PARAMS, 10), grads))
    np.testing.assert_allclose(np.sqrt(sum(np.sum(np.square(x)) for x in found)), 0.1 / 1e4, rtol=1e-3)


MUON = dict(name="muon", matrices=[("kernel", -1)])


@pytest.mark.parametrize("inputs", [1, 2])
def test_muon_orthogonalises_the_matrix_of_input_and_output_axes(inputs):
    """All singular values of an update lie near one another (Jordan: 0.7 to 1.2) and its RMS is near 0.2 lr."""
    shape = (3, 4, 5)
    params = {"kernel": jnp.ones(shape), "bias": jnp.ones(5)}
    grads = {"kernel": jax.random.normal(jax.random.key(0), shape), "bias": jnp.arange(1.0, 6)}
    spec = dict(optimizer=dict(MUON, matrices=[("kernel", inputs)], iterations=8), rules=[(".*", ALWAYS)])
    found = update(optim.make(spec, params, 10), grads, params)
    matrix = np.asarray(found["kernel"]).reshape(int(np.prod(shape[:inputs])), -1)
    gradient = np.asarray(grads["kernel"]).reshape(matrix.shape)
    values = np.linalg.svd(matrix / (-0.1 * 0.2 * np.sqrt(max(matrix.shape))), compute_uv=False)
    assert values.min() > 0.6 and values.max() < 1.3
    # one and the same rotation of the gradient's singular vectors: u^T update v is diagonal
    u, _, vt = np.linalg.svd(gradient, full_matrices=False)
    turned = np.abs(u.T @ matrix @ vt.T)
    assert np.abs(turned - np.diag(np.diag(turned))).max() < 1e-3 * turned.max()
    np.testing.assert_allclose(found["bias"], -0.1, rtol=1e-4)  # Adam: lr sign(g)


def test_matrices_taken_together_are_those_of_optax_one_by_one(monkeypatch):
    """Directions and state after three steps, of matrices of equal and of different sizes, by other axes, one too large for company, and of what is none; and the
    state of the one goes on in the other.
    """
    monkeypatch.setattr(optim, "SMALL", 40)
    shapes = dict(a=(4, 6), b=(2, 2, 6), c=(4, 6), d=(6, 4), e=(4, 2, 3), large=(7, 6), alone=(3, 5))
    params = {"x": {n: {"kernel": jnp.ones(s)} for n, s in shapes.items()} | {"bias": jnp.ones(3)}}
    matrices, names = [("e/kernel", 1), ("kernel", -1)], flatten_dict(params, sep="/")
    tx = optim.make(dict(optimizer=dict(MUON, matrices=matrices), rules=[(".*", ALWAYS)]), params, 10).tx
    alone = lambda inputs, **options: optax.contrib.scale_by_muon(weight_dimension_numbers=lambda tree: one_by_one(tree, inputs), **options)
    monkeypatch.setattr(optim, "_together", alone)

    def one_by_one(tree, inputs):
        axes = lambda name, rank: optax.contrib.MuonDimensionNumbers(tuple(range(inputs[name])), tuple(range(inputs[name], rank)))
        of = {n: x if isinstance(x, optax.MaskedNode) else axes(n, x.ndim) for n, x in flatten_dict(tree, sep="/").items()}
        return unflatten_dict(of, sep="/")

    plain = optim.make(dict(optimizer=dict(MUON, matrices=matrices), rules=[(".*", ALWAYS)]), params, 10).tx
    state, other = tx.init(params), plain.init(params)
    for step in range(3):
        assert jax.tree.structure(state) == jax.tree.structure(other)
        keys = jax.random.split(jax.random.key(step), len(names))
        grads = unflatten_dict({n: jax.random.normal(k, x.shape) for k, (n, x) in zip(keys, names.items(), strict=True)}, sep="/")
        (found, state), (expected, other) = tx.update(grads, other if step == 2 else state, params), plain.update(grads, other, params)
        for ours, theirs in zip(jax.tree.leaves((found, state)), jax.tree.leaves((expected, other)), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_muon_decays_and_freezes_like_adamw():
    spec = dict(optimizer=dict(MUON, weight_decay=0.5), rules=[("enter/bias", None), (".*", ALWAYS)])
    optimiser = optim.make(spec, PARAMS, 10)
    trained = {"enter": {"kernel": PARAMS["enter"]["kernel"]}, "exit": PARAMS["exit"]}
    found = update(optimiser, jax.tree.map(jnp.zeros_like, trained), trained)
    np.testing.assert_allclose(found["enter"]["kernel"], -0.1 * 0.5 * 2.0, rtol=1e-6)


@pytest.mark.parametrize(
    "matrices, message",
    [
        ([], "needs matrices"),
        ([("weight", -1)], "found in no name of enter/bias"),
        ([("kernel", 2)], "give 1 to 1"),
        ([("bias", -1)], "at least two axes"),
    ],
)
def test_wrong_matrices_are_named(matrices, message):
    with pytest.raises(ValueError, match=message):
        optim.make(dict(optimizer=dict(MUON, matrices=matrices), rules=[(".*", ALWAYS)]), PARAMS, 10)
