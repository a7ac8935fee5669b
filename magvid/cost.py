"""What a traced program costs before any compiler has seen it."""

import math
from collections.abc import Iterator
from typing import Any

from jax.interpreters import partial_eval


def flops(jaxpr: Any) -> float:
    """Floating-point operations of one run of a (closed) jaxpr, such as `jax.jit(f).trace(...).jaxpr`: those of matrix products and
    convolutions, a multiply and an add being 2, as roofline figures count. What a convolution multiplies with padding counts, with the
    zeros that a gradient puts between the elements of its input does not. Of branches the dearest counts: where they are forms of one operation for
    several platforms, they are equal. What no output needs is left out, as compilers do. Shapes are those of the whole mesh, so that the sum is that of all devices.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(needed)


def _count(jaxpr: Any) -> float:
    return sum(_operation(eqn) for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _operation(eqn: Any) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        ((contracted, _), _), shape = params["dimension_numbers"], eqn.invars[0].aval.shape
        return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel, spec = eqn.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
        products = math.prod(kernel[i] for i in spec[1:])  # for one number of the output: all but its own channel's axis
        return 2.0 * math.prod(eqn.outvars[0].aval.shape) * products / math.prod(params["lhs_dilation"])
    if name == "cond":
        return max(map(_count, params["branches"]))
    times = params["length"] if name == "scan" else 1  # of a loop without a known length its body counts once
    if name == "shard_map":  # its shapes are those of one device
        times = math.prod(params["mesh"].shape.values())
    return times * sum(map(_count, _inside(params)))


def _inside(params: dict) -> Iterator[Any]:
    """The jaxprs among an operation's parameters: what it calls, or the body of a loop."""
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(getattr(part, "jaxpr", part), "eqns"):
                yield part
