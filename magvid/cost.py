"""What a traced program costs before any compiler has seen it: floating-point operations, and the bytes it holds."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jax.extend.core import Literal
from jax.interpreters import partial_eval

# What a compiler does again inside of what reads it, rather than write its result to memory
FUSED = frozenset(
    """abs add add_any and atan2 bitcast_convert_type broadcast_in_dim cbrt ceil clamp convert_element_type copy copy_p cos div eq erf erf_inv exp
    exp2 expand_dims expm1 floor ge gt integer_pow iota is_finite le log log1p logistic lt max min mul name ne neg nextafter not
    optimization_barrier or pad pow pvary random_bits random_fold_in random_seed random_unwrap random_wrap real reduce_precision rem reshape rev
    round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sharding_constraint sign sin slice sqrt square squeeze
    stop_gradient sub tan tanh threefry2x32 transpose xor""".split()
)


def flops(jaxpr: Any) -> float:
    """Floating-point operations of one run of a (closed) jaxpr, such as `jax.jit(f).trace(...).jaxpr`: those of matrix products and
    convolutions, a multiply and an add being 2, as roofline figures count. What a convolution multiplies with padding counts, with the
    zeros that a gradient puts between the elements of its input does not. Of branches the dearest counts; of forms of one operation for several platforms
    the plain one, as kernels compute things twice. What no output needs is left out, as compilers do. Shapes are those of the whole mesh, so that the sum is that of all devices.
    """
    return _count(_needed(jaxpr))


def recomputes(jaxpr: Any) -> bool:
    """Whether something is computed again in a backward pass rather than kept (`nn.remat`), beside what kernels do."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if eqn.primitive.name == "remat2" and eqn.params["differentiated"]:
            return True
        if not eqn.params.get("branches_platforms") and any(map(recomputes, _inside(eqn.params))):
            return True
    return False


def _needed(jaxpr: Any) -> Any:
    """Without what no output needs."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


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
        return max(map(_count, _branches(params)))
    times = params["length"] if name == "scan" else 1  # of a loop without a known length its body counts once
    if name == "shard_map":  # its shapes are those of one device
        times = math.prod(params["mesh"].shape.values())
    return times * sum(map(_count, _inside(params)))


def _branches(params: dict, platform: str = "") -> Sequence[Any]:
    """Those of a `cond` that may run: of forms for several platforms that of `platform`, or the plain one."""
    forms = dict(zip(params.get("branches_platforms") or (), params["branches"], strict=False))  # {names of platforms, of the plain one None: form}
    suits = next((names for names in forms if names and platform in names), None)
    return [forms[suits]] if suits in forms else params["branches"]


def _inside(params: dict) -> Iterator[Any]:
    """The jaxprs among an operation's parameters: what it calls, or the body of a loop."""
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(getattr(part, "jaxpr", part), "eqns"):
                yield part


# Memory --------------------------------------------------------------------------------------------------------------


def peak(jaxpr: Any, size: Callable[[Any], float], platform: str = "") -> float:
    """The most bytes that one run of a (closed) jaxpr holds at a time beside its inputs and outputs, an estimate: `size` of the abstract values
    that are alive where most are, in the order of the program; of forms of one operation for several platforms that of `platform`, or the plain one. What is computed element by element is not written where what it is made of is alive
    anyway, or is not larger. Compilers order and fuse otherwise, and on a chip that is nearly full compute things twice: see
    benchmarks/pods.md for how far this is from them.
    """
    return _peak(_needed(jaxpr), size, platform)


def tiled(value: Any) -> float:
    """Bytes on a TPU, whose memory holds tiles of 8 x 128 numbers of 32 bits, or 16 x 128 of 16: of the shape's axes the first or the last is padded to
    128, and another one to 8, those that cost least.
    """
    item, dims = value.dtype.itemsize, [n for n in value.shape if n > 1]
    count, rows = math.prod(dims) * item, max(32 // item, 8)
    up = lambda n, to: -(-n // to) * to / n
    if len(dims) < 2 or count < 2**16:
        return count
    lanes = {0, len(dims) - 1}
    return count * min(up(dims[i], 128) * up(dims[j], rows) for i in lanes for j in range(len(dims)) if i != j)


def plain(value: Any) -> float:
    """Bytes elsewhere."""
    return math.prod(value.shape) * value.dtype.itemsize


class _Step(NamedTuple):
    """Values are numbers."""

    name: str
    reads: Sequence[int]
    writes: Sequence[int]
    body: Sequence[Any]  # jaxprs that run within, of a loop


def _peak(jaxpr: Any, size: Callable[[Any], float], platform: str) -> float:
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    numbers, sizes, steps = itertools.count(), {}, []
    known = {v: next(numbers) for v in (*jaxpr.invars, *jaxpr.constvars)}
    given = set(known.values())
    _write_out(jaxpr, known, numbers, sizes, steps, size, platform)
    kept = _kept(steps, sizes, given)
    until: dict[int, int] = {}
    for k, step in enumerate(steps):
        until |= dict.fromkeys((root for v in step.reads for root in kept.get(v, ())), k)
    results = {known[v] for v in jaxpr.outvars if not isinstance(v, Literal) and v in known}
    live = most = 0.0
    ends = defaultdict(float)
    for k, step in enumerate(steps):
        for v in step.writes:
            if kept[v] == {v} and v in until and v not in results:
                live += sizes[v]
                ends[until[v]] += sizes[v]
        most = max(most, live + max((_peak(body, size, platform) for body in step.body), default=0.0))
        live -= ends.pop(k, 0.0)
    return most


def _write_out(jaxpr: Any, known: dict, numbers: Iterator[int], sizes: dict[int, float], steps: list[_Step], size: Callable, platform: str) -> None:
    """Appends the steps of `jaxpr`, with those of what it calls in the calls' places; of branches the longest."""
    for eqn in jaxpr.eqns:
        reads = [known.get(v) if not isinstance(v, Literal) else None for v in eqn.invars]
        name, inside = eqn.primitive.name, [getattr(part, "jaxpr", part) for part in _inside(eqn.params)]
        if name == "cond":
            reads, inside = reads[1:], [max((branch.jaxpr for branch in _branches(eqn.params, platform)), key=lambda branch: len(branch.eqns))]
        if inside and len(inside[0].invars) == len(reads) and name not in ("scan", "while"):
            called = dict(zip(inside[0].invars, reads, strict=True))
            _write_out(inside[0], called, numbers, sizes, steps, size, platform)
            known |= {v: called.get(w) for v, w in zip(eqn.outvars, inside[0].outvars, strict=True) if not isinstance(w, Literal)}
            continue
        writes = [next(numbers) for _ in eqn.outvars]
        known |= zip(eqn.outvars, writes, strict=True)
        sizes |= {i: size(v.aval) for i, v in zip(writes, eqn.outvars, strict=True)}
        steps.append(_Step(name, [v for v in reads if v is not None], writes, inside))


def _kept(steps: Sequence[_Step], sizes: dict[int, float], given: set[int]) -> dict[int, set[int]]:
    """{value: the values in memory that it is read from}: itself, or what it is computed from again."""
    last = {v: k for k, step in enumerate(steps) for v in step.reads}
    until, kept = dict(last), {v: set() for v in given}
    for k, step in enumerate(steps):
        kept |= {v: {v} for v in step.writes}
        if step.name in FUSED and len(step.writes) == 1:
            made, end = step.writes[0], last.get(step.writes[0], k)
            roots = set().union(*(kept[v] for v in step.reads))
            if sum(sizes[r] for r in roots if until.get(r, -1) < end) <= sizes[made]:
                kept[made] = roots
                until |= {r: max(until.get(r, -1), end) for r in roots}
    return kept
