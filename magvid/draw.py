"""First parameters. Each array is drawn by a program of its own, in its place on the devices: arrays of one initialiser and one
shape share the program, where one for a whole network would have XLA compile the same random numbers hundreds of times.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.extend.core as core

from magvid.sharding import edges


class Drawing:
    """`init(*args)`, which makes a nested dict of parameters from keys, as one trace recorded it: Python takes longer to trace the
    forward pass of a large network than XLA to draw its parameters. `shapes` is what it returns, as shapes.
    """

    def __init__(self, init: Callable, *args: Any):
        with edges({}, remat=False):  # a block that is computed again in the backward pass is one step of the trace, parameters and all
            self._traced, self.shapes = jax.make_jaxpr(init, return_shape=True)(*args)

    def __call__(self, places: Mapping[str, Any], *args: Any) -> tuple[list[jax.Array], list[jax.Array], Callable[[list, list], dict]]:
        """(drawn, others, finish). `places` is a nested dict of shardings, of as much of `shapes` as is wanted; `drawn` lie there
        already, and `finish(drawn, others)` gives the parameters. It is to be called under `jit`, with `places`, which may donate `drawn`: left
        to do are zeros, ones and what `init` does to random numbers, the `others`, that no `layers.once_a_shape` made as they are.
        """
        jaxpr = self._traced.jaxpr
        wanted, tree = jax.tree.flatten(_within(jax.tree.unflatten(jax.tree.structure(self.shapes), jaxpr.outvars), places))
        place_of = {v: place for v, place in zip(wanted, jax.tree.leaves(places)) if isinstance(v, core.Var)}
        steps = _needed_for(wanted, jaxpr.eqns)
        draws = [s for s in steps if _is_draw(s)]
        before = _needed_for(_read_by(draws), steps)
        done = {id(s) for s in (*draws, *before)}
        after = [s for s in steps if id(s) not in done]

        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*self._traced.consts, *jax.tree.leaves(args))))
        self._run(before, known, _read_by([*draws, *after]))
        for s in draws:
            given = [v.val if isinstance(v, core.Literal) else known[v] for v in s.invars]
            known[s.outvars[0]] = _program(s.params["jaxpr"], place_of.get(s.outvars[0]))(*given)
        drawn = {v: known.pop(v) for s in draws for v in s.outvars if v in place_of}
        others = {v: known[v] for v in _read_by(after) if v in known}

        def finish(values: list[jax.Array], more: list[jax.Array]) -> dict:
            found = dict(zip((*drawn, *others), (*values, *more)))
            self._run(after, found, wanted)
            return jax.tree.unflatten(tree, [v.val if isinstance(v, core.Literal) else found[v] for v in wanted])

        return [*drawn.values()], [*others.values()], finish

    def _run(self, steps: list, known: dict, wanted: Iterable[Any]) -> None:
        """Adds to what is known what these steps make of it and is wanted."""
        made = {v for s in steps for v in s.outvars}
        outs = [v for v in dict.fromkeys(v for v in wanted if isinstance(v, core.Var)) if v in made]
        used = [v for v in _read_by(steps) if v in known]
        jaxpr = self._traced.jaxpr.replace(constvars=[], invars=used, outvars=outs, eqns=steps)
        known |= zip(outs, core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, []))(*(known[v] for v in used)))


def _within(tree: Mapping[str, Any], part: Mapping[str, Any]) -> dict:
    """As much of `tree` as `part` has."""
    return {k: _within(tree[k], v) if isinstance(v, Mapping) else tree[k] for k, v in part.items()}


def _read_by(steps: Iterable[Any]) -> list:
    return [*dict.fromkeys(v for s in steps for v in s.invars if isinstance(v, core.Var))]


def _needed_for(outs: Iterable[Any], steps: list) -> list:
    """The steps that `outs` depend on, in their order."""
    needed, kept = {v for v in outs if isinstance(v, core.Var)}, []
    for s in reversed(steps):
        if needed.intersection(s.outvars):
            kept.append(s)
            needed.update(_read_by([s]))
    return kept[::-1]


def _is_draw(step: Any) -> bool:
    """An initialiser under `jit`: from a key to one array."""
    is_key = lambda v: jax.dtypes.issubdtype(v.aval.dtype, jax.dtypes.prng_key)
    return step.primitive.name == "jit" and len(step.outvars) == 1 and any(map(is_key, step.invars)) and not is_key(step.outvars[0])


@functools.cache
def _program(jaxpr: core.ClosedJaxpr, place: jax.sharding.Sharding | None) -> Callable:
    run = core.jaxpr_as_fun(jaxpr)
    on_cpu = all(d.platform == "cpu" for d in (place.device_set if place else jax.devices()))
    # LLVM takes seconds to optimise each shape's random numbers, which are drawn once
    options = {"xla_backend_optimization_level": 1} if on_cpu else {}
    return jax.jit(lambda *args: run(*args)[0], out_shardings=place, compiler_options=options)
