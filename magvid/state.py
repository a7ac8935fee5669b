"""The state of a training run and the one pure step that changes it: all the mathematics of training is here."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Float, Int, Key

from magvid.optim import Optimiser
from magvid.types import Groups

Scalars = dict[str, Float[Array, ""]]


class Objective(Protocol):
    """What is being trained: pure methods. `params` = {group: tree} holds trained and frozen groups together.

    Optional: `sample`, which an objective that makes no videos lacks; `init_extra() -> extra`; `after_step(params, extra,
    key) -> params, extra`; `alarms`, {metric: (least value, what to do)}, said where the metric stays below.
    """

    def init(self, key: Key[Array, ""], batch: dict) -> Groups: ...

    def loss(
        self, params: Groups, extra: dict, batch: dict, key: Key[Array, ""], step: Int[Array, ""], train: bool
    ) -> tuple[Scalars, tuple[Scalars, dict]]:
        """One scalar per trained group, then (metrics, the next `extra`)."""

    def sample(self, params: Groups, batch: dict, key: Key[Array, ""]) -> Float[Array, "b t h w c"]: ...


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes.

    A leaf with schedule None stays in `params`, so that a group is always whole; `opt` and `ema` leave it out.
    """

    step: Int[Array, ""]  # real updates so far
    params: Groups  # trained groups, float32
    frozen: Groups  # groups from other runs, never changed
    opt: dict[str, Any]  # {group: optax state}
    ema: Groups  # {group: averaged trained leaves}, only the groups that are averaged
    extra: dict  # small arrays of the objective, e.g. LeCam's averages
    key: Key[Array, ""]  # constant; a step folds its number in


def split(groups: Groups, optimisers: Mapping[str, Optimiser]) -> tuple[Groups, Groups]:
    """Each group as (trained leaves, leaves that are frozen by a rule with schedule None)."""
    flat = {g: flatten_dict(groups[g], sep="/") for g in optimisers}
    pick = lambda on: {
        g: _nest({n: x for n, x in f.items() if (n in optimisers[g].trained) == on}) for g, f in flat.items()
    }
    return pick(True), pick(False)


def join(low: Groups, high: Groups) -> Groups:
    """Both trees as one; where both have a leaf, the one of `high` counts."""
    flat = lambda groups, g: flatten_dict(groups.get(g, {}), sep="/")
    return {g: _nest({**flat(low, g), **flat(high, g)}) for g in {**low, **high}}


def weights(state: TrainState, which: str = "ema") -> Groups:
    """All groups as `loss` and `sample` want them; "ema" takes averaged leaves where there are any, "params" none."""
    return {**(join(state.params, state.ema) if which == "ema" else state.params), **state.frozen}


def init_state(
    params: Groups, frozen: Groups, extra: dict, key: Key[Array, ""], optimisers, ema_groups=()
) -> TrainState:
    """A state at step 0. The average starts at the parameters, without debiasing, as MAGVIT's official code does."""
    trained, _ = split(params, optimisers)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen=frozen,
        opt={g: o.tx.init(trained[g]) for g, o in optimisers.items()},
        ema={g: jax.tree.map(jnp.copy, trained[g]) for g in ema_groups},
        extra=extra,
        key=key,
    )


def make_step(
    objective: Objective,
    optimisers: Mapping[str, Optimiser],
    *,
    microbatches: int = 1,
    unroll: bool = True,
    ema: float = 0.0,
    dtype: str = "float32",
    gather: Callable[[Groups], Groups] = lambda params: params,
    scatter: Callable[[Groups], Groups] = lambda grads: grads,
) -> Callable[[TrainState, dict], tuple[TrainState, Scalars, dict[str, Bool[Array, "..."]]]]:
    """The pure step (state, batch) -> (state, metrics, finite).

    Every group takes the gradient of its own loss, by one vjp over the trained leaves. The batch is cut into
    `microbatches` equal parts whose gradients are averaged: exact where the loss is a mean over examples; batch
    statistics (codebook entropy) are those of a microbatch, and `extra` passes from one to the next. `unroll` writes
    the microbatches out (XLA's CPU backend runs convolution gradients inside a loop 10-50 times slower). `dtype` =
    "bfloat16" casts the trained groups for the forward pass; master weights, gradients and optimiser stay float32. `gather` says where the
    weights lie that a loss reads, and `scatter` where the gradients do.
    `finite` has one flag per loss, per gradient leaf of a group and per entry of `extra`; unless all hold, the returned
    state is the given one, bit for bit.
    """
    # jnp.dtype: a misspelt dtype fails here, not inside the trace
    compute = jnp.dtype(dtype)

    def step(state: TrainState, batch: dict):
        trained, fixed = split(state.params, optimisers)
        key = jax.random.fold_in(state.key, state.step)

        def micro_gradients(extra, part, key):
            grads, *rest = gradients(objective, trained, fixed, state.frozen, extra, part, key, state.step, compute, gather)
            return scatter(grads), *rest

        grads, extra, losses, metrics = _accumulate(
            micro_gradients, trained, state.extra, batch, key, microbatches, unroll
        )
        finite, norms = _finite(losses, grads, extra)
        params, opt = {}, {}
        for g, optimiser in optimisers.items():
            updates, opt[g] = optimiser.tx.update(grads[g], state.opt[g], trained[g])
            params[g] = optax.apply_updates(trained[g], updates)
        params = join(fixed, params)
        if hasattr(objective, "after_step"):
            after_key = jax.random.fold_in(key, microbatches)
            after, extra = objective.after_step({**params, **state.frozen}, extra, after_key)
            params = {g: after[g] for g in params}
        averaged = split(params, {g: optimisers[g] for g in state.ema})[0]
        average = jax.tree.map(lambda e, p: ema * e + (1 - ema) * p, state.ema, averaged)
        new = dict(step=state.step + 1, params=params, opt=opt, ema=average, extra=extra)
        old = {name: getattr(state, name) for name in new}
        ok = jnp.all(jnp.stack([jnp.all(f) for f in finite.values()]))
        new = jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)
        return state.replace(**new), _report(state, losses, metrics, norms, optimisers), finite

    return step


def _report(state: TrainState, losses, metrics, norms, optimisers: Mapping[str, Optimiser]) -> Scalars:
    """Everything that is logged about a step from `state`."""
    report = {f"loss/{g}": v for g, v in losses.items()} | metrics | {f"opt/grad_norm/{g}": v for g, v in norms.items()}
    for g, optimiser in optimisers.items():
        squares = [jnp.sum(jnp.square(x)) for x in jax.tree.leaves(state.params[g])]
        report[f"opt/param_norm/{g}"] = jnp.sqrt(sum(squares))
        report |= {f"opt/lr/{g}{rule}": rate(state.step) for rule, rate in optimiser.schedules.items()}
    return report


def make_eval(objective: Objective) -> Callable[..., Scalars]:
    """The pure (params, extra, batch, key, step) -> losses and metrics, without dropout or update."""

    def evaluate(params: Groups, extra: dict, batch: dict, key, step) -> Scalars:
        losses, (metrics, _) = objective.loss(params, extra, batch, key, step, train=False)
        return {f"loss/{g}": v for g, v in losses.items()} | metrics

    return evaluate


def gradients(objective, trained: Groups, fixed: Groups, frozen: Groups, extra, batch, key, step, dtype=jnp.float32, gather=lambda params: params):
    """(gradients {group: tree}, extra, losses, metrics): each group's gradient of its own loss, from one forward pass.

    A one-hot cotangent selects the loss; what it computes for the other groups is dead code to XLA, so the cost equals
    that of separate gradients.
    """

    def loss_fn(trained):
        params = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, join(fixed, trained))
        losses, (metrics, new_extra) = objective.loss(gather({**params, **frozen}), extra, batch, key, step, train=True)
        as_float = lambda tree: jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), tree)
        return as_float(losses), (as_float(metrics), new_extra)

    losses, vjp, (metrics, extra) = jax.vjp(loss_fn, trained, has_aux=True)
    if missing := set(trained) - set(losses):
        raise ValueError(
            f"the config trains {sorted(trained)}, but the objective gives no loss for {sorted(missing)}; "
            f"it has {sorted(losses)}"
        )
    one_hot = lambda g: {k: jnp.asarray(k == g, v.dtype) for k, v in losses.items()}
    return {g: vjp(one_hot(g))[0][g] for g in trained}, extra, losses, metrics


def _accumulate(micro_gradients, trained, extra, batch, key, microbatches: int, unroll: bool):
    if microbatches == 1:
        return micro_gradients(extra, batch, key)
    # Part i takes rows i, i + m, i + 2m, ...: where the batch is spread over devices, each keeps a share of every part.
    parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(len(x) // microbatches, microbatches, *x.shape[1:]), 1, 0), batch)

    def body(carry, part):
        total, extra = carry
        i, part = part
        grads, extra, losses, metrics = micro_gradients(extra, part, jax.random.fold_in(key, i))
        return (jax.tree.map(jnp.add, total, grads), extra), (losses, metrics)

    start = jax.tree.map(jnp.zeros_like, trained), extra
    (total, extra), (losses, metrics) = jax.lax.scan(body, start, (jnp.arange(microbatches), parts), unroll=unroll)
    mean = lambda tree: jax.tree.map(lambda x: x.mean(0), tree)
    return jax.tree.map(lambda g: g / microbatches, total), extra, mean(losses), mean(metrics)


def _finite(losses, grads, extra):
    """Flags ("loss/g" and "extra/name": scalar; "gradient/g": one per leaf) and the gradient norm of each group."""
    squares = {g: jnp.stack([jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)]) for g, tree in grads.items()}
    flags = {f"loss/{g}": jnp.isfinite(v) for g, v in losses.items()}
    flags |= {f"gradient/{g}": jnp.isfinite(s) for g, s in squares.items()}
    flags |= {f"extra/{k}": jnp.all(jnp.isfinite(v)) for k, v in extra.items() if jnp.issubdtype(v.dtype, jnp.floating)}
    return flags, {g: jnp.sqrt(s.sum()) for g, s in squares.items()}


def culprits(
    metrics: Mapping[str, float], finite: Mapping[str, np.ndarray], optimisers: Mapping[str, Optimiser]
) -> list[str]:
    """Names of what is not finite after a step, on the host; empty when the step was applied.

    Metrics come first (they lie nearest to the cause), then losses, the first gradient leaf of each group, and `extra`.
    """
    if all(flags.all() for flags in finite.values()):
        return []
    bad = [f'metric "{n}"' for n, v in metrics.items() if v != v and not n.startswith(("loss/", "opt/"))]
    for kind in ("loss", "gradient", "extra"):
        for name, flags in finite.items():
            if name.startswith(f"{kind}/") and not flags.all():
                name = name.removeprefix(f"{kind}/")
                if kind == "gradient":
                    leaves = sorted(optimisers[name].trained, key=lambda n: n.split("/"))  # as jax.tree.leaves
                    name = f"{name}/{leaves[int(flags.argmin())]}"
                bad.append(f'{kind} "{name}"')
    return bad


def _nest(flat: dict) -> dict:
    return unflatten_dict(flat, sep="/")
