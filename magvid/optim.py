"""Which parameters are trained, and how: ordered (regex, schedule | None) rules per group, on optax."""

import dataclasses
import inspect
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Int

from magvid.build import near

Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]
SMALL = 2**18  # numbers of a matrix that Muon takes together with others


@dataclasses.dataclass(frozen=True)
class Optimiser:
    """The optimiser of one group. `tx` works on the tree of the trained leaves alone."""

    tx: optax.GradientTransformation
    trained: frozenset[str]  # '/'-joined names of the leaves with a schedule
    schedules: Mapping[str, Schedule]  # what to log: {"": schedule}, or {"/regex": schedule} where rules differ


def schedule(spec: Mapping[str, Any], steps: int, field: str = "optim.GROUP.rules[0][1]") -> Schedule:
    """Learning rate at step s: peak * min(1, s / warmup) * decay.

    "constant" has decay = 1; "cosine" has 1/2 (1 + cos(pi (x mod 1))) with x = max(0, s - warmup) / (total - warmup).
    `spec` = {peak, warmup = 0, decay = "cosine" | "constant", total = None -> steps}. The first update has s = 0 and so
    a rate of 0 with warm-up; for s = total the mod returns to the peak, but training stops before (official MAGVIT,
    specs section 5). `field`: of the config, that errors name.
    """
    check_schedule(spec, field)
    peak, warmup, decay = spec["peak"], spec.get("warmup") or 0, spec.get("decay", "cosine")
    total = steps if spec.get("total") is None else spec["total"]
    if decay == "cosine" and total <= warmup:
        raise ValueError(
            f"a cosine schedule over {total} steps cannot have a warm-up of {warmup}: "
            f"shorten warmup (--config.{field}.warmup=N) or train for longer"
        )

    def rate(s):
        s = jnp.asarray(s, jnp.float32)
        up = jnp.minimum(1.0, s / warmup) if warmup else 1.0
        phase = jnp.mod(jnp.maximum(0.0, s - warmup) / max(total - warmup, 1), 1.0)
        return peak * up * (0.5 * (1 + jnp.cos(jnp.pi * phase)) if decay == "cosine" else jnp.ones_like(s))

    return rate


def make(spec: Mapping[str, Any], params: Mapping[str, Any], steps: int, group: str = "") -> Optimiser:
    """The optimiser of a group with parameters `params` (arrays or shapes), for a run of `steps`.

    `spec` = {optimizer {name "adamw" | "adam" | "muon", and the arguments of `_adamw`, `_adam` or `_muon`}, rules
    [(regex, schedule dict | None), ...], clip}. The first rule whose regex is found in a parameter's name ('/'-joined)
    decides; None freezes the leaf. Decoupled weight decay applies to names in which `decay_regex` is found. `clip` bounds the global norm of the
    group's gradient. ValueError names a parameter that no rule covers and a rule that covers nothing.
    """
    check(spec, f"optim.{group or 'GROUP'}")
    rules = list(spec["rules"])
    names = list(flatten_dict(dict(params), sep="/"))
    labels = {n: match([r for r, _ in rules], n, f"optim.{group}.rules") for n in names}
    if unused := [r for i, (r, _) in enumerate(rules) if i not in labels.values()]:
        raise ValueError(
            f"optim.{group}.rules: {unused} decide about no parameter of {group}; its names are {_some(names)}"
        )
    field = f"optim.{group or 'GROUP'}.rules"
    rates = {i: schedule(s, steps, f"{field}[{i}][1]") for i, (_, s) in enumerate(rules) if s is not None}
    trained = frozenset(n for n, i in labels.items() if i in rates)
    if not trained:
        raise ValueError(
            f"optim.{group}: every parameter has schedule None; give a rule with a schedule, "
            "or take the group from a run"
        )
    label = lambda tree: _named_map(lambda n, _: labels[n], tree)
    parts = [optax.clip_by_global_norm(spec["clip"])] if spec.get("clip") else []
    parts += _direction(params, **spec.get("optimizer", {}))
    parts += [optax.partition({i: optax.scale_by_learning_rate(r) for i, r in rates.items()}, label)]
    logged = {"": next(iter(rates.values()))} if len(rates) == 1 else {f"/{rules[i][0]}": r for i, r in rates.items()}
    return Optimiser(optax.chain(*parts), trained, logged)


def _direction(params: Mapping[str, Any], name: str = "adamw", **options) -> list[optax.GradientTransformation]:
    """What turns a gradient into a direction, before the learning rate."""
    return MAKERS[name](params, **options)


def _adam(params, b1=0.9, b2=0.999, eps=1e-8) -> list[optax.GradientTransformation]:
    return [optax.scale_by_adam(b1, b2, eps)]


def _adamw(
    params, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, decay_regex="kernel"
) -> list[optax.GradientTransformation]:
    return _adam(params, b1, b2, eps) + _decay(weight_decay, decay_regex)


def _muon(
    params, matrices=(), beta=0.95, iterations=5, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, decay_regex="kernel"
) -> list[optax.GradientTransformation]:
    """Muon (Jordan, 2024) for matrices, Adam for all else, at one learning rate: Muon's updates are scaled to Adam's
    usual RMS of 0.2 (Liu et al., 2025, equation 4).

    `matrices` = [(regex, inputs), ...]: parameters in whose name the first regex is found are matrices, of which the
    leading `inputs` axes are the input and the others the output (-1: all but the last).
    """
    if not matrices:
        raise ValueError('optimizer "muon" needs matrices=[(regex, number of leading input axes), ...]')
    inputs, shapes = {}, {name: x.shape for name, x in flatten_dict(dict(params), sep="/").items()}
    for name, shape in shapes.items():
        found = next((count for regex, count in matrices if re.search(regex, name)), None)
        if found is not None:
            rank = len(shape)
            if rank < 2 or not (found == -1 or 1 <= found < rank):
                raise ValueError(
                    f'optimizer.matrices gives "{name}" of shape {shape} {found} input axes: give 1 to {rank - 1}, '
                    "or -1 for all but the last (a matrix has at least two axes)"
                )
            inputs[name] = found % rank
    if not inputs:
        raise ValueError(
            f"optimizer.matrices: {[r for r, _ in matrices]} are found in no name of {_some(list(shapes))}"
        )

    def to_adams_size(name, update):
        if isinstance(update, optax.MaskedNode):
            return update
        shape = update.shape
        return update * 0.2 * max(math.prod(shape[: inputs[name]]), math.prod(shape[inputs[name] :])) ** 0.5

    muon = optax.chain(
        _together(inputs, ns_steps=iterations, beta=beta),
        optax.stateless(lambda updates, _: _named_map(to_adams_size, updates)),
    )
    kinds = lambda tree: _named_map(lambda n, _: "matrix" if n in inputs else "other", tree)
    either = optax.partition({"matrix": muon, "other": optax.scale_by_adam(b1, b2, eps)}, kinds)
    return [either, *_decay(weight_decay, decay_regex)]


def _together(inputs: Mapping[str, int], **options) -> optax.GradientTransformation:
    """optax's `scale_by_muon` of matrices {name: number of leading input axes}, small ones of one size orthogonalised together: those of a network are hundreds,
    of a dozen sizes, and take longer to begin than to compute; and XLA needs minutes to order the operations of so many on a CPU. The state is optax's.
    """
    each = lambda stacks: jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(1, 2), stacks)
    muon = optax.contrib.scale_by_muon(weight_dimension_numbers=each, **options)
    arrays = lambda tree: {n: x for n, x in flatten_dict(tree, sep="/").items() if not isinstance(x, optax.MaskedNode)}
    like = lambda tree, flat: _named_map(lambda n, x: x if isinstance(x, optax.MaskedNode) else flat[n].reshape(x.shape), tree)

    def update(updates, state, params=None):
        found, momentum = arrays(updates), arrays(state.mu)
        sizes = {n: (math.prod(x.shape[: inputs[n]]), math.prod(x.shape[inputs[n] :])) for n, x in found.items()}
        stacks = defaultdict(list)
        for name, x in found.items():
            stacks[f"{sizes[name]} {x.dtype} {name if x.size > SMALL else ''}"].append(name)
        stacked = lambda flat: {key: jnp.stack([flat[n].reshape(sizes[n]) for n in names]) for key, names in stacks.items()}
        apart = lambda whole: {n: x for key, names in stacks.items() for n, x in zip(names, whole[key], strict=True)}
        directions, state_of_stacks = muon.update(stacked(found), state._replace(mu=stacked(momentum)))
        return like(updates, apart(directions)), state_of_stacks._replace(mu=like(state.mu, apart(state_of_stacks.mu)))

    return optax.GradientTransformation(muon.init, update)


def _decay(weight_decay: float, regex: str) -> list[optax.GradientTransformation]:
    decayed = lambda tree: _named_map(lambda n, _: bool(re.search(regex, n)), tree)
    return [optax.add_decayed_weights(weight_decay, decayed)] if weight_decay else []


MAKERS = {"adam": _adam, "adamw": _adamw, "muon": _muon}


# What cannot be meant -----------------------------------------------------------------------------------------------


def check(spec: Any, field: str) -> None:
    """ValueError for what `make` cannot take, whatever the parameters are; `field`: of the config, that errors name."""
    _only(spec, ("optimizer", "rules", "clip"), field)
    if not isinstance(rules := spec.get("rules"), (list, tuple)) or not rules:
        raise ValueError(f"{field}.rules is {json.dumps(rules)}: give [regex, schedule or null] for parameters by name, such as [[\".*\", {{\"peak\": 1e-4}}]]")
    for i, rule in enumerate(rules):
        if not isinstance(rule, (list, tuple)) or len(rule) != 2 or not isinstance(rule[0], str):
            raise ValueError(f"{field}.rules[{i}] is {json.dumps(rule)}: give [regex, schedule or null]")
        try:
            re.compile(rule[0])
        except re.error as error:
            raise ValueError(f'{field}.rules[{i}]: "{rule[0]}" is no regular expression ({error})') from None
        if rule[1] is not None:
            check_schedule(rule[1], f"{field}.rules[{i}][1]")
    if (clip := spec.get("clip")) is not None and not _number(clip):
        raise ValueError(f"{field}.clip is {json.dumps(clip)}: give the greatest norm of a gradient, or 0 for none")
    options = spec.get("optimizer", {})
    name = options.get("name", "adamw") if isinstance(options, Mapping) else None
    if name not in MAKERS:
        what = f'{field}.optimizer: optimizer "{name}" is unknown' if isinstance(name, str) else f"{field}.optimizer is {json.dumps(options)}"
        raise ValueError(f'{what}{near(str(name), MAKERS)}: give {{"name": one of {", ".join(MAKERS)}, and its arguments}}')
    known = {"name", *inspect.signature(MAKERS[name]).parameters} - {"params"}
    if unknown := sorted(set(options) - known):
        hint = ' (use "adamw")' if "weight_decay" in unknown else near(unknown[0], known)
        raise ValueError(f'{field}.optimizer: optimizer "{name}" takes no {unknown}{hint}; it takes {sorted(known)}')


def check_schedule(spec: Any, field: str) -> None:
    """The same of a schedule."""
    _only(spec, ("peak", "warmup", "decay", "total"), field, " of a schedule")
    if "peak" not in spec:
        raise ValueError(f"{field}: a schedule has peak, and may have warmup, decay, total; got {dict(spec)}")
    for name in ("peak", "warmup", "total"):
        if (value := spec.get(name)) is not None and not _number(value) or name == "peak" and value is None:
            raise ValueError(f"{field}.{name} is {json.dumps(value)}: give a number of at least 0")
    if (decay := spec.get("decay", "cosine")) not in ("cosine", "constant"):
        raise ValueError(f'{field}: decay "{decay}" is unknown{near(str(decay), ("cosine", "constant"))}: use "cosine" or "constant"')


def _only(spec: Any, names: Sequence[str], field: str, of: str = "") -> None:
    if not isinstance(spec, Mapping):
        raise ValueError(f"{field} is {json.dumps(spec)}: give a dict with {', '.join(names)}{of}")
    if unknown := sorted(set(spec) - set(names)):
        raise ValueError(f"{field} has no field {unknown}{near(unknown[0], names)}; it may have {', '.join(names)}{of}")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


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
