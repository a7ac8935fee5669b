"""`magvid compile`: a config's training step compiled for devices that need not be there, and what the compiler says of it."""

import dataclasses
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from magvid import cost, meter
from magvid.explain import Plan, size_text, table
from magvid.types import UserError


class Chip(NamedTuple):
    """Of one chip, by the maker's data sheet: bytes of memory, bytes per second to it, and to other chips over all of its links together."""

    memory: float
    bandwidth: float
    links: float


# By how a device's kind begins. https://cloud.google.com/tpu/docs/v5e, /v5p, /v6e: GiB, GB/s, and Gbit/s of the links, both ways together
CHIPS = {
    "TPU v5 lite": Chip(16 * 2**30, 819e9, 1600e9 / 8),
    "TPU v5": Chip(95 * 2**30, 2765e9, 4800e9 / 8),
    "TPU v6": Chip(32 * 2**30, 1640e9, 3584e9 / 8),
}
# Dimensions of the network between chips, and the chips of the largest pod, by the same pages
PODS = {"v5e": (2, 256), "v5p": (3, 8960), "v6e": (2, 256)}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Moved(NamedTuple):
    """Collective operations of one kind in a step: how many there are, bytes of their results, and bytes that a chip sends for them on a ring."""

    count: int
    result: float
    sent: float


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a step, for one chip."""

    topology: str
    kind: str  # of the devices
    chips: int
    mesh: dict[str, int]
    batch: int
    parameters: dict[str, int]  # of each group
    arguments: int  # bytes between steps
    temporary: int  # bytes within a step, beside them
    outputs: int  # bytes that take no argument's place
    code: int
    flops: float  # as magvid counts them, see cost.py
    bytes: float  # read and written in memory
    collectives: dict[str, Moved]
    seconds: dict[str, float]  # to compile; of a step, where it was timed
    peak: float | None = None  # most bytes that a device held, where it was timed

    @property
    def total(self) -> int:
        return self.arguments + self.temporary + self.outputs + self.code

    def roofline(self) -> dict[str, float]:
        """{what: seconds it takes at least} by the data sheet; empty where there is none of such a device. Compute in bfloat16, in which TPUs multiply float32 as
        well unless they are told otherwise.
        """
        chip, peak = meter.data_sheet(self.kind, CHIPS), meter.data_sheet(self.kind)
        if chip is None or peak is None:
            return {}
        sent = sum(moved.sent for moved in self.collectives.values())
        return {"compute": self.flops / peak, "memory": self.bytes / chip.bandwidth, "links": sent / (chip.links / 2)}

    def lines(self) -> Iterator[str]:
        """Paragraphs for people."""
        yield f"{self.topology}: {self.chips} x {self.kind}, mesh {', '.join(f'{a} {n}' for a, n in self.mesh.items())}, batch {self.batch}"
        chip = meter.data_sheet(self.kind, CHIPS)
        of = f" of {size_text(chip.memory)}: it fits" if chip else ""
        rows = [("arguments", self.arguments), ("temporary", self.temporary), ("outputs", self.outputs), ("code", self.code)]
        yield table(("bytes of a chip", ""), [(name, size_text(n)) for name, n in rows] + [("all", size_text(self.total) + of)])
        yield f"{self.flops / 1e12:,.4g} TFLOP, {size_text(self.bytes)} read and written by a chip in a step"
        rows = [(name, str(m.count), size_text(m.result), size_text(m.sent)) for name, m in self.collectives.items()]
        yield table(("collectives", "number", "results", "sent by a chip"), rows) if rows else "no collectives"
        if times := self.roofline():
            bound = max(times, key=times.get)
            each = ", ".join(f"{what} {t * 1e3:,.3g} ms" for what, t in times.items())
            yield f"a step takes at least {times[bound] * 1e3:,.3g} ms, bound by {bound} ({each})"
        yield ", ".join(f"{what} {t:,.4g} s" for what, t in self.seconds.items())
        if self.peak:
            yield f"{size_text(self.peak)} held at most"


def open_devices(topology: str, chips: int = 0) -> list[jax.Device]:
    """"v5e:16x16" and the like, without such devices; "cpu:8", made up; "local": those of this machine. `chips`: only the first so many.

    To be called before anything else asks jax for devices. UserError for a topology that there is not, or without the libtpu package.
    """
    family, _, shape = topology.partition(":")
    if topology == "local":
        devices = jax.devices()
    elif family == "cpu":
        if not shape.isdigit() or not int(shape):
            raise UserError(f"--topology={topology}: cpu:N, such as cpu:8")
        try:
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", int(shape))
        except RuntimeError as error:  # jax has been asked for devices before
            if jax.default_backend() != "cpu" or len(jax.devices()) < int(shape):
                raise UserError(f"--topology={topology}: jax has {len(jax.devices())} {jax.default_backend()} devices in this process already: start another one") from error
        devices = jax.devices()[: int(shape)]
    else:
        _check_shape(topology, family, shape)
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu asks the cloud what machine this is
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")  # else it says that it does not know these, as an error, and goes on
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # else one process at a time may compile
        jax.config.update("jax_platforms", "cpu")  # nothing runs
        from jax.experimental import topologies

        try:
            devices = list(topologies.get_topology_desc(topology_name=topology, platform="tpu").devices)
        except Exception as error:
            missing = "not installed" in str(error)
            remedy = 'the TPU compiler is missing: pip install -e ".[tpu]"' if missing else "such as v5e:16x16, v5p:4x4x4, v6e:16x16, cpu:8 or local"
            raise UserError(f"--topology={topology}: {(str(error).splitlines() or [type(error).__name__])[0][:200]}; {remedy}") from error
    if chips > len(devices):
        raise UserError(f"--chips={chips}: {topology} has {len(devices)}")
    if chips and not _is_block(devices[:chips]):
        blocks = [str(n) for n in range(1, len(devices) + 1) if _is_block(devices[:n])]
        raise UserError(f"--chips={chips}: of {topology} use the first {', '.join(blocks)}, which fill a part of it")
    return list(devices)[: chips or None]


def _is_block(devices: Sequence[jax.Device]) -> bool:
    """TPUs that fill all places from the first to the last in each direction, as jax wants those of a mesh to do; other devices have no places."""
    if not hasattr(devices[0], "coords"):
        return True
    places = np.array([(*device.coords, device.core_on_chip) for device in devices])
    return math.prod((places.max(0) - places.min(0) + 1).tolist()) == len(devices)


def _check_shape(topology: str, family: str, shape: str) -> None:
    """The compiler makes up what no cloud has: more dimensions than the chips' links go, and larger pods."""
    if not re.fullmatch(r"\d+(x\d+)*(_(un)?twisted)?", shape):
        raise UserError(f"--topology={topology}: a kind of chip and how many there are in each direction, such as v5e:16x16, v5p:4x4x4, v6e:16x16; or cpu:8, or local")
    if family in PODS and re.fullmatch(r"\d+(x\d+)*", shape):
        (dimensions, most), sizes = PODS[family], [int(size) for size in shape.split("x")]
        if len(sizes) != dimensions or math.prod(sizes) > most:
            raise UserError(f"--topology={topology}: a {family} has {dimensions} dimensions, and at most {most} chips, such as {family}:{'x'.join(['4'] * dimensions)}")


class Lowered(NamedTuple):
    """A step as jax hands it to the compiler, its FLOPs on one chip, and the config's options of the compiler."""

    program: jax.stages.Lowered
    flops: float
    options: Mapping[str, Any] | None = None

    @property
    def fingerprint(self) -> str:
        """16 hex digits: equal for configs that compile to the same."""
        told = json.dumps(self.options, sort_keys=True) if self.options else ""
        return hashlib.sha256((self.program.as_text() + told).encode()).hexdigest()[:16]


def lower(plan: Plan) -> Lowered:
    """Traced once, which takes up to a minute; nothing is compiled."""
    with jax.set_mesh(plan.job.mesh):
        traced = plan.job.step(plan.prepared).trace(plan.prepared.like, plan.batch)
        return Lowered(traced.lower(), cost.flops(traced.jaxpr) / plan.job.mesh.size, plan.job.compiler_options())


def compile_step(plan: Plan, topology: str, lowered: Lowered, steps: int = 0) -> Compiled:
    """UserError with what it would need where the step does not fit. `steps`: so many are timed, on devices that are there."""
    mesh, flops = plan.job.mesh, lowered.flops
    begin = time.monotonic()
    try:
        compiled = lowered.program.compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" in str(error):
            raise UserError(f"config.compiler_options: {str(error).splitlines()[0]}") from None
        if not (found := too_much(str(error))):
            raise
        raise UserError(f"{topology}: it does not fit, {found[0]} GiB of {found[1]}: use more chips, a smaller batch or microbatch, fsdp, or remat") from None
    seconds = dict(compile=time.monotonic() - begin)
    memory, said = compiled.memory_analysis(), compiled.cost_analysis() or {}
    text = compiled.as_text()
    loops = max(flops / said["flops"], 1.0) if said.get("flops") else 1.0  # as the compiler counts the body of a loop once
    peak = None
    if steps:
        timed, peak = _timed(compiled, plan, steps)
        seconds |= {"step": min(timed[1:])}
    return Compiled(
        topology=topology, kind=mesh.devices.flat[0].device_kind, chips=mesh.size, mesh=dict(mesh.shape), batch=plan.job.config["batch"],
        parameters={g: sum(x.size for x in jax.tree.leaves(tree)) for g, tree in {**plan.prepared.like.params, **plan.prepared.like.frozen}.items()},
        arguments=memory.argument_size_in_bytes, temporary=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes, code=memory.generated_code_size_in_bytes,
        flops=flops, bytes=said.get("bytes accessed", 0.0) * repeats(text, loops), collectives=collectives(text, mesh.size, loops),
        seconds={k: round(v, 4) for k, v in seconds.items()}, peak=peak,
    )  # fmt: skip


def too_much(message: str) -> tuple[str, str] | None:
    """(GiB that it wants, GiB that there are), where a compiler says that a program does not fit."""
    found = re.search(r"Used ([\d.]+)G of ([\d.]+)G hbm|HLO temporaries \(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)", message)
    return found and (found[1] or found[3], found[2] or found[4])


def collectives(text: str, chips: int, loops: float = 1.0) -> dict[str, Moved]:
    """{kind: Moved} of a compiled program's text. `loops`: how often a loop goes round of which the compiler does not say it.

    For TPUs collectives are fused with what is computed while they are under way: the same one, by its chain's number, stands in all of these fusions, and a
    reduce-scatter is an all-reduce in a computation of that name, of whose result a part is taken.
    """
    found: dict[str, Moved] = {}
    seen = set()
    for line, times, inside in _executed(text, loops, fusions=True):
        if not (match := re.match(rf"(.*?) ({'|'.join(KINDS)})(-start)?\(", line)):
            continue
        shapes, kind = re.findall(SHAPE, match[1]), match[2]
        if chain := re.search(r'chain_id="(\d+)"', line):
            if chain[1] in seen:
                continue
            seen.add(chain[1])
        if match[3] and kind != "all-reduce":  # operands stand before the results, numbers of the operation's own behind them
            shapes = [shape for shape in shapes if shape[1]]
            shapes = shapes[len(shapes) // 2 :]
        n, result = _group(line, chips), float(sum(_bytes(*shape) for shape in shapes))
        if inside.startswith("all-reduce-scatter"):
            kind, result = "reduce-scatter", result / n
        sent = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1, "collective-permute": 1.0}.get(kind, (n - 1) / n) * result
        count, results, all_sent = found.get(kind, (0, 0.0, 0.0))
        found[kind] = Moved(count + round(times), results + times * result, all_sent + times * sent)
    return {kind: found[kind] for kind in KINDS if kind in found}


def repeats(text: str, loops: float = 1.0) -> float:
    """How much larger what a step writes is than what it would write if no loop went round more than once."""
    once = again = 0.0
    for line, times, _ in _executed(text, loops):
        match = re.match(r"(.*?) ([a-z][\w-]*)\(", line)
        if match and match[2] not in ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"):
            written = sum(_bytes(*shape) for shape in re.findall(SHAPE, match[1]))
            once, again = once + written, again + times * written
    return again / once if once else 1.0


SHAPE = r"(\w+)\[([\d,]*)\]"  # bf16[8,128]


def _executed(text: str, loops: float, fusions: bool = False) -> Iterator[tuple[str, float, str]]:
    """(an instruction without its name, how often a step runs it, the computation in which it stands), from the program's entry on; of a choice every
    branch, and with `fusions` what stands in these.
    """
    parts: dict[str, list[str]] = {}
    entry = ""
    for line in text.splitlines():
        if match := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            lines = parts[match[2]] = []
            entry = match[2] if match[1] else entry
        elif parts and (match := re.match(r"\s+(?:ROOT )?%?[\w.-]+ = (.*)", line)):
            lines.append(match[1])

    called = "call|conditional|async-start" + ("|fusion" if fusions else "")

    def walk(name: str, times: float) -> Iterator[tuple[str, float, str]]:
        for line in parts.get(name, ()):
            yield line, times, name
            if match := re.search(r" while\(.*body=%?([\w.-]+)", line):
                known = re.search(r'known_trip_count\D*(\d+)', line)
                yield from walk(match[1], times * (float(known[1]) if known else loops))
            elif re.search(rf" ({called})\(", line):
                for inside in re.findall(r"(?:to_apply|calls|(?:true|false)_computation)=%?([\w.-]+)", line):
                    yield from walk(inside, times)
                for inside in re.findall(r"branch_computations=\{([^}]*)\}", line):
                    yield from (found for branch in inside.split(",") for found in walk(branch.strip(" %"), times))

    yield from walk(entry, 1.0)


def _group(line: str, chips: int) -> int:
    """Over how many chips an operation goes."""
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):  # named axes, of which some, or parts 'axis':(before)size, are gone over
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", match[1]))
        return math.prod(int(part or sizes[name]) for name, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", match[2]))
    return chips


def _bytes(kind: str, shape: str) -> int:
    if kind in ("pred", "s8", "u8") or kind.startswith("f8"):
        item = 1
    else:
        item = int(re.sub(r"\D", "", kind) or 32) // 8
    return item * math.prod(int(n) for n in shape.split(",") if n)


def _timed(compiled: Callable, plan: Plan, steps: int) -> tuple[list[float], float]:
    """(seconds of each step after a first, the most bytes that a device held). Weights and videos are random: the numbers that come out mean
    nothing, but no product is of zeros.
    """
    rng = np.random.default_rng(0)

    def some(path: Sequence[Any], x: jax.ShapeDtypeStruct) -> Any:
        if jnp.issubdtype(x.dtype, jnp.floating):
            drawn = jax.random.normal(jax.random.key(x.size), x.shape, x.dtype) * 0.02
            return abs(drawn) if ".nu" in jax.tree_util.keystr(path) else drawn  # Adam takes the root
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        return rng.integers(0, 2 if x.dtype == bool else 100, x.shape).astype(x.dtype)

    fill = lambda tree: jax.tree_util.tree_map_with_path(lambda path, x: jax.device_put(some(path, x), x.sharding), tree)
    with jax.set_mesh(plan.job.mesh):
        now, batch, seconds = fill(plan.prepared.like), fill(dict(plan.batch)), []
        for _ in range(1 + steps):
            begin = time.monotonic()
            now, *rest = compiled(now, batch)
            jax.block_until_ready((now, rest))
            seconds.append(time.monotonic() - begin)
    held = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in plan.job.mesh.devices.flat]
    return seconds, float(max(held))
