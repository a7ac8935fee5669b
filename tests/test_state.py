"""The training step against gradients taken one by one, whole batches and closed forms."""

import dataclasses

import chex
import helpers_objective as helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magvid import optim, state

GROUPS = ("generator", "discriminator")


def make(
    objective=None, steps=10, seed=0, rules=(("exit/bias", None), (".*", dict(peak=1e-2, decay="constant"))), **kwargs
):
    """(state with `features` frozen, the jitted step, optimisers)"""
    objective = objective or helpers.ToyGan()
    params = objective.init(jax.random.key(seed), None)
    optimisers = {g: optim.make(dict(rules=list(rules)), params[g], steps, g) for g in GROUPS}
    trained = {g: params[g] for g in GROUPS}
    frozen = {"features": params["features"]}
    start = state.init_state(
        trained, frozen, objective.init_extra(), jax.random.key(seed + 1), optimisers, ("generator",)
    )
    return start, jax.jit(state.make_step(objective, optimisers, ema=0.9, **kwargs)), optimisers


def batch(size=8):
    return {"video": np.stack([helpers.Clips()[i]["video"] for i in range(size)])}


def test_one_vjp_equals_separate_gradients():
    objective, (start, _, optimisers) = helpers.ToyGan(noise=0.1), make()
    trained, fixed = state.split(start.params, optimisers)
    key = jax.random.key(3)
    together = jax.jit(
        lambda t: state.gradients(objective, t, fixed, start.frozen, start.extra, batch(), key, start.step)[0]
    )
    grads = together(trained)
    for g in GROUPS:

        def loss(tree, g=g):
            params = {**state.join(fixed, {**trained, g: tree}), **start.frozen}
            return objective.loss(params, start.extra, batch(), key, start.step, True)[0][g]

        chex.assert_trees_all_close(grads[g], jax.jit(jax.grad(loss))(trained[g]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("unroll", [True, False])
def test_accumulated_gradients_equal_the_whole_batch(unroll):
    start, whole, _ = make()
    _, parts, _ = make(microbatches=4, unroll=unroll)
    (a, metrics_a, _), (b, metrics_b, _) = whole(start, batch()), parts(start, batch())
    chex.assert_trees_all_close((a.params, a.ema), (b.params, b.ema), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(metrics_a, metrics_b, rtol=1e-5)


def test_microbatches_are_strided_and_extra_passes_through_them():
    class Mean:
        def loss(self, params, extra, batch, key, step, train):
            mean = batch["x"].mean()
            return {"a": mean * params["a"]["w"]}, (
                {"x": mean},
                {"first": jnp.where(extra["first"] < 0, mean, extra["first"])},
            )

    optimisers = {"a": optim.make(dict(rules=[(".*", dict(peak=1.0, decay="constant"))]), {"w": jnp.ones(())}, 1, "a")}
    start = state.init_state({"a": {"w": jnp.ones(())}}, {}, {"first": -jnp.ones(())}, jax.random.key(0), optimisers)
    new, metrics, _ = state.make_step(Mean(), optimisers, microbatches=2)(start, {"x": jnp.arange(4.0)})
    assert new.extra["first"] == 1.0  # rows 0 and 2
    assert metrics["x"] == 1.5 and metrics["opt/grad_norm/a"] == 1.5


def test_frozen_leaves_and_groups_stay_and_have_no_optimiser_state():
    start, step, _ = make()
    new, metrics, _ = step(start, batch())
    for g in GROUPS:
        chex.assert_trees_all_equal(new.params[g]["exit"]["bias"], start.params[g]["exit"]["bias"])
        assert np.abs(new.params[g]["enter"]["kernel"] - start.params[g]["enter"]["kernel"]).max() > 1e-3
    chex.assert_trees_all_equal(new.frozen, start.frozen)
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path((new.opt, new.ema))]
    assert any("kernel" in p for p in paths) and not any("bias" in p for p in paths)
    assert {"loss/generator", "loss/discriminator", "mse", "opt/lr/generator", "opt/param_norm/discriminator"} <= set(
        metrics
    )


def test_average_follows_real_updates():
    start, step, _ = make()
    with jax.disable_jit():  # one operation at a time, as below: a fused multiplication and addition rounds once
        new, *_ = step(start, batch())
    expected = jax.tree.map(
        lambda e, p: 0.9 * e + 0.1 * p, start.ema, {"generator": state.split(new.params, make()[2])[0]["generator"]}
    )
    chex.assert_trees_all_close(new.ema, expected, rtol=1e-6)
    averaged = state.weights(new)
    chex.assert_trees_all_equal(averaged["generator"]["enter"], new.ema["generator"]["enter"])
    chex.assert_trees_all_equal(averaged["generator"]["exit"]["bias"], new.params["generator"]["exit"]["bias"])
    chex.assert_trees_all_equal(state.weights(new, "params"), {**new.params, **new.frozen})


def test_same_seed_same_result_and_the_key_is_folded_by_step():
    (start, step, _), (other, _, _) = make(helpers.ToyGan(noise=0.5)), make(seed=1)
    chex.assert_trees_all_equal(step(start, batch())[0].params, step(start, batch())[0].params)
    losses = [
        float(step(s, batch())[1]["loss/generator"])
        for s in (start, start.replace(step=start.step + 1), start.replace(key=other.key))
    ]
    assert len(set(losses)) == 3


def test_nan_is_named_and_changes_nothing():
    start, step, optimisers = make(helpers.ToyGan(nan_at=1))
    good, metrics, finite = step(start, batch())
    assert state.culprits(*jax.device_get((metrics, finite)), optimisers) == []
    bad, metrics, finite = step(good, batch())
    names = state.culprits(*jax.device_get((metrics, finite)), optimisers)
    assert names[0] == 'loss "generator"' and 'gradient "generator/enter/kernel"' in names
    assert bad.step == 1
    chex.assert_trees_all_equal(dataclasses.replace(bad, key=None), dataclasses.replace(good, key=None))


def test_first_leaf_of_a_nan_gradient_and_extra_are_named():
    class Root:
        """sqrt(0) has a finite value and an infinite gradient, in the second leaf only."""

        def loss(self, params, extra, batch, key, step, train):
            p = params["a"]
            return {"a": p["x"]["w"] + jnp.sqrt(p["y"]["w"])}, (
                {"log": jnp.log(-p["x"]["w"])},
                {"count": jnp.inf * extra["count"]},
            )

    params = {"x": {"w": jnp.ones(())}, "y": {"w": jnp.zeros(())}}
    optimisers = {"a": optim.make(dict(rules=[(".*", dict(peak=1.0, decay="constant"))]), params, 1, "a")}
    start = state.init_state({"a": params}, {}, {"count": jnp.ones(())}, jax.random.key(0), optimisers)
    new, metrics, finite = state.make_step(Root(), optimisers)(start, {})
    names = state.culprits(*jax.device_get((metrics, finite)), optimisers)
    assert names == ['metric "log"', 'gradient "a/y/w"', 'extra "count"']
    chex.assert_trees_all_equal(new.params, start.params)


def test_bfloat16_computes_low_and_keeps_float32():
    seen = {}

    class Spy(helpers.ToyGan):
        def loss(self, params, *args, **kwargs):
            seen.update({g: params[g]["exit"]["kernel"].dtype for g in params})
            return super().loss(params, *args, **kwargs)

    start, step, _ = make(Spy(), dtype="bfloat16")
    new, metrics, _ = step(start, batch())
    assert seen == {"generator": jnp.bfloat16, "discriminator": jnp.bfloat16, "features": jnp.float32}
    assert {x.dtype for x in jax.tree.leaves((new.params, new.ema))} == {jnp.dtype("float32")}
    full = make()[1](start, batch())[1]
    assert 0 < abs(metrics["loss/generator"] - full["loss/generator"]) < 0.02


def test_a_trained_group_without_a_loss_is_an_error():
    class Silent(helpers.ToyGan):
        def loss(self, *args, **kwargs):
            losses, aux = super().loss(*args, **kwargs)
            return {"generator": losses["generator"]}, aux

    start, step, _ = make(Silent())
    with pytest.raises(ValueError, match=r"no loss for \['discriminator'\]"):
        step(start, batch())


def test_after_step_changes_parameters_and_extra_before_the_average():
    class Reset(helpers.ToyGan):
        def after_step(self, params, extra, key):
            zero = jax.tree.map(jnp.zeros_like, params["generator"])
            return {**params, "generator": zero}, {"real": jnp.float32(7)}

    start, step, _ = make(Reset())
    new, *_ = step(start, batch())
    assert new.extra["real"] == 7 and not np.any(new.params["generator"]["enter"]["kernel"])
    chex.assert_trees_all_close(new.ema, jax.tree.map(lambda e: 0.9 * e, start.ema))


def test_one_trace_serves_all_steps():
    chex.clear_trace_counter()
    start, _, optimisers = make()
    step = jax.jit(chex.assert_max_traces(state.make_step(helpers.ToyGan(), optimisers, ema=0.9), n=1))
    for _ in range(3):
        start, *_ = step(start, batch())
    assert start.step == 3
