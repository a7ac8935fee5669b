"""Which parameters are trained, and how: ordered (regex, schedule | None) rules per group, on optax."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Int

Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Optimiser:
    """The optimiser of one group. `tx` works on the tree of the trained leaves alone."""

    tx: optax.GradientTransformation
    trained: frozenset[str]  # '/'-joined names of the leaves with a schedule
    schedules: Mapping[str, Schedule]  # what to log: {"": schedule}, or {"/regex": schedule} where rules differ


def schedule(spec: Mapping[str, Any], steps: int) -> Schedule:
    """Learning rate at step s: peak * min(1, s / warmup) * decay.

    "constant" has decay = 1; "cosine" has 1/2 (1 + cos(pi (x mod 1))) with x = max(0, s - warmup) / (total - warmup).
    `spec` = {peak, warmup = 0, decay = "cosine" | "constant", total = None -> steps}. The first update has s = 0 and so
    a rate of 0 with warm-up; for s = total the mod returns to the peak, but training stops before (official MAGVIT,
    specs section 5).
    """
    if (unknown := set(spec) - {"peak", "warmup", "decay", "total"}) or "peak" not in spec:
        raise ValueError(f"a schedule has peak, and may have warmup, decay, total; got {sorted(unknown) or dict(spec)}")
    peak, warmup, decay = spec["peak"], spec.get("warmup") or 0, spec.get("decay", "cosine")
    total = steps if spec.get("total") is None else spec["total"]
    if decay not in ("cosine", "constant"):
        raise ValueError(f'decay "{decay}" is unknown: use "cosine" or "constant"')
    if decay == "cosine" and total <= warmup:
        raise ValueError(
            f"a cosine schedule over {total} steps cannot have a warm-up of {warmup}: "
            "shorten warmup or train for longer"
        )

    def rate(s):
        s = jnp.asarray(s, jnp.float32)
        up = jnp.minimum(1.0, s / warmup) if warmup else 1.0
        phase = jnp.mod(jnp.maximum(0.0, s - warmup) / max(total - warmup, 1), 1.0)
        return peak * up * (0.5 * (1 + jnp.cos(jnp.pi * phase)) if decay == "cosine" else jnp.ones_like(s))

    return rate


def make(spec: Mapping[str, Any], params: Mapping[str, Any], steps: int, group: str = "") -> Optimiser:
    """The optimiser of a group with parameters `params` (arrays or shapes), for a run of `steps`.

    `spec` = {optimizer {name "adamw" | "adam", b1, b2, eps, weight_decay, decay_regex}, rules [(regex, schedule dict |
    None), ...], clip}. The first rule whose regex is found in a parameter's name ('/'-joined) decides; None freezes the
    leaf. Decoupled weight decay applies to names in which `decay_regex` is found. `clip` bounds the global norm of the
    group's gradient. ValueError names a parameter that no rule covers and a rule that covers nothing.
    """
    if unknown := set(spec) - {"optimizer", "rules", "clip"}:
        raise ValueError(f'optim.{group} has no field {sorted(unknown)}; it has "optimizer", "rules", "clip"')
    rules = list(spec["rules"])
    names = list(flatten_dict(dict(params), sep="/"))
    labels = {n: match([r for r, _ in rules], n, f"optim.{group}.rules") for n in names}
    if unused := [r for i, (r, _) in enumerate(rules) if i not in labels.values()]:
        raise ValueError(
            f"optim.{group}.rules: {unused} decide about no parameter of {group}; its names are {_some(names)}"
        )
    rates = {i: schedule(s, steps) for i, (_, s) in enumerate(rules) if s is not None}
    trained = frozenset(n for n, i in labels.items() if i in rates)
    if not trained:
        raise ValueError(
            f"optim.{group}: every parameter has schedule None; give a rule with a schedule, "
            "or take the group from a run"
        )
    label = lambda tree: _named_map(lambda n, _: labels[n], tree)
    parts = [optax.clip_by_global_norm(spec["clip"])] if spec.get("clip") else []
    parts += _adam(**spec.get("optimizer", {}))
    parts += [optax.partition({i: optax.scale_by_learning_rate(r) for i, r in rates.items()}, label)]
    logged = {"": next(iter(rates.values()))} if len(rates) == 1 else {f"/{rules[i][0]}": r for i, r in rates.items()}
    return Optimiser(optax.chain(*parts), trained, logged)


def _adam(
    name="adamw", b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, decay_regex="kernel"
) -> list[optax.GradientTransformation]:
    if name not in ("adamw", "adam"):
        raise ValueError(f'optimizer "{name}" is unknown: use "adamw" or "adam"')
    if name == "adam" and weight_decay:
        raise ValueError('optimizer "adam" takes no weight_decay: use "adamw"')
    decayed = lambda tree: _named_map(lambda n, _: bool(re.search(decay_regex, n)), tree)
    decay = [optax.add_decayed_weights(weight_decay, decayed)] if weight_decay else []
    return [optax.scale_by_adam(b1, b2, eps), *decay]


def match(patterns: Sequence[str], name: str, where: str) -> int:
    """Index of the first pattern found in `name`; ValueError when there is none."""
    for i, pattern in enumerate(patterns):
        if re.search(pattern, name):
            return i
    raise ValueError(
        f'{where}: no rule covers "{name}"; add one, e.g. (".*", ...) at the end (rules are {list(patterns)})'
    )


def _named_map(f: Callable[[str, Any], Any], tree: Any, prefix: str = "") -> Any:
    return {k: _named_map(f, v, f"{prefix}{k}/") if isinstance(v, dict) else f(prefix + k, v) for k, v in tree.items()}


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(sorted(names)[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")
