"""`magvid explain`: what a config would need, before anything is read, compiled or rented."""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from magvid import cost, runs, sharding
from magvid.data import blank
from magvid.job import Job, Prepared
from magvid.types import UserError


@dataclasses.dataclass(frozen=True)
class Plan:
    """A job on devices that need not be there. `batch`: {entry: shape and type} of the whole batch, spread over the mesh."""

    job: Job
    prepared: Prepared
    batch: Mapping[str, jax.ShapeDtypeStruct]
    origins: Mapping[str, str]  # {group: where its weights come from}; of those that are trained, the ones that begin with another run's

    @classmethod
    def of(cls, config: Mapping[str, Any], mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, load: Callable[[str], Any]) -> "Plan":
        """`config` as `check_config` gives it; `load` opens other configs ("configs/vq3d_ucf101.py:size=L"). UserError where it trains nothing."""
        if not config["optim"]:
            raise UserError("this config trains nothing: give it the argument tune=full, temporal or lora")
        job = Job.plan(config, mesh, load)
        example = blank.example(config["data"]["train"], job.config["objective"])
        place = sharding.batch_sharding(mesh)
        of = lambda x: jax.ShapeDtypeStruct((config["batch"], *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype), sharding=place)
        prepared = job.prepare(example)
        where = lambda spec: f"{spec['run']} at first" + ("" if spec.get("groups") else ", where it has this group")
        begins = {group: where(spec) for spec in config["init"] for group in spec.get("groups") or prepared.like.params}
        origins = {group: ref.get("run") or ref[runs.FILE] for _, group, ref in runs.references(config["objective"])}
        return cls(job, prepared, {k: of(x) for k, x in example.items()}, begins | origins)

    @property
    def local_batch(self) -> int:
        """Examples of a step that a device sees."""
        return self.job.config["batch"] // sharding.data_shards(self.job.mesh)

    def trace(self) -> Any:
        """The jaxpr of a step on the examples of one device, with all weights there."""
        whole = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
        batch = {k: jax.ShapeDtypeStruct((self.local_batch, *x.shape[1:]), x.dtype) for k, x in self.batch.items()}
        return jax.jit(self.job.pure_step(self.prepared)).trace(whole(self.prepared.like), batch).jaxpr

    def within(self, jaxpr: Any, platform: str) -> float:
        """Bytes that a device of a platform ("cpu", "cuda", "tpu") needs within a step, `trace` of it, beside what it holds between them, an estimate: what is alive at a time (of
        a value with the shape of a trained array that is divided over other axes than the batch's, such as its gradient, a part), and the weights that are gathered.
        """
        size = cost.tiled if platform == "tpu" else cost.plain
        trained, frozen = jax.tree.leaves(self.prepared.like.params), jax.tree.leaves(self.prepared.like.frozen)
        shares = {x.shape: x.size / math.prod(sharding.without_batch(x.sharding).shard_shape(x.shape)) for x in trained}
        item = jax.numpy.dtype(self.job.config["dtype"]).itemsize
        sizes = [(x, min(item, x.dtype.itemsize)) for x in trained] + [(x, x.dtype.itemsize) for x in frozen]
        gathered = sum(_gathered(x) * size_of_one for x, size_of_one in sizes)
        return cost.peak(jaxpr, lambda value: size(value) / shares.get(value.shape, 1), platform) + gathered

    def held(self) -> dict[str, int]:
        """{what: bytes} that a device holds between steps."""
        like = self.prepared.like
        parts = dict(parameters=like.params, frozen=like.frozen, optimiser=like.opt, average=like.ema, other=(like.extra, like.step), batch=self.batch)
        return {name: sum(map(local_bytes, jax.tree.leaves(tree))) for name, tree in parts.items()}


def _gathered(x: jax.ShapeDtypeStruct) -> int:
    """Numbers of an array that a device reads in a step; 0 where it holds these anyway."""
    there = sharding.without_batch(x.sharding)
    return 0 if there.is_equivalent_to(x.sharding, len(x.shape)) else math.prod(there.shard_shape(x.shape))


def local_bytes(x: jax.ShapeDtypeStruct) -> int:
    """Of a device's part."""
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def explain(plan: Plan, depth: int) -> Iterator[str]:
    """Paragraphs, each as soon as it is known; the last ones need the step to be traced, seconds to a minute. `depth`: of the module tree."""
    job, like = plan.job, plan.prepared.like
    devices, shards = math.prod(job.mesh.shape.values()), sharding.data_shards(job.mesh)
    micro = plan.local_batch // job.microbatches()
    mesh = ", ".join(f"{axis} {size}" for axis, size in job.mesh.shape.items())
    if job.config["data"]["train"].get("cache"):
        yield f"as without data.train.cache={job.config['data']['train']['cache']}: what is kept there would not be computed in each step"
    yield f"{devices} device{'s' * (devices > 1)} (mesh: {mesh}), batch {job.config['batch']}: {plan.local_batch} on each of {shards}, {micro} at a time"
    groups = {**like.params, **like.frozen}
    yield "\n".join(_tree(groups, depth))
    yield table(("group", "parameters", "trained", "from"), [_group(plan, name, tree) for name, tree in groups.items()])
    if len(job.config["sharding"]) > 1 or set(job.mesh.shape) - {"data"}:
        yield table(("sharding", "place", "arrays", "all", "on a device"), list(_rules(plan)))
    rows = [(k, "x".join(map(str, x.shape[1:])) or "1", x.dtype.name, size_text(x.size * x.dtype.itemsize)) for k, x in plan.batch.items()]
    yield table(("data of a step", "an example", "type", "all"), rows)
    held = {name: size for name, size in plan.held().items() if size}
    jaxpr = plan.trace()
    flops = cost.flops(jaxpr) * shards
    twice = ", with what `remat` computes again" if cost.recomputes(jaxpr) else ""
    yield f"a step: {flops / 1e12:,.4g} TFLOP, {flops / devices / 1e12:,.4g} on each device, {flops / job.config['batch'] / 1e12:,.4g} for an example{twice}"
    found = {name: plan.within(jaxpr, platform) for name, platform in (("TPU", "tpu"), ("GPU", "cuda"), ("CPU", "cpu"))}
    rows = [(name, *[size_text(size)] * len(found)) for name, size in held.items()]
    rows += [("within a step, estimate", *map(size_text, found.values())), ("all", *(size_text(sum(held.values()) + size) for size in found.values()))]
    yield table(("memory of a device", *found), rows)


def _group(plan: Plan, name: str, tree: Any) -> tuple[str, ...]:
    count = sum(x.size for x in jax.tree.leaves(tree))
    if name in plan.prepared.like.frozen:
        return name, f"{count:,}", "0", plan.origins.get(name, "")
    trained = len(plan.prepared.optimisers[name].trained)
    leaves = {sharding.path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}
    some = sum(x.size for n, x in leaves.items() if n in plan.prepared.optimisers[name].trained)
    return name, f"{count:,}", f"{some:,}" if trained < len(leaves) else "all", plan.origins.get(name, "this run")


def _rules(plan: Plan) -> Iterator[tuple[str, ...]]:
    """Of each sharding rule: what it decides about, which is nothing where it is misspelt or means another network."""
    rules, like = plan.job.config["sharding"], plan.prepared.like
    decided: dict[int, list] = {i: [] for i in range(len(rules))}
    for path, x in jax.tree_util.tree_leaves_with_path({**like.params, **like.frozen}):
        decided[sharding.deciding(sharding.path_name(path), rules)].append(x)
    for (regex, place), arrays in zip(rules, decided.values(), strict=True):
        yield regex, json.dumps(place), str(len(arrays)), size_text(sum(x.size * x.dtype.itemsize for x in arrays)), size_text(sum(map(local_bytes, arrays)))


def _tree(groups: Mapping[str, Any], depth: int) -> Iterator[str]:
    """Lines: modules with what they hold, down to `depth`, and arrays with their shapes; what is alike one after the other is one line."""

    def lines(tree: Mapping[str, Any], indent: int) -> Iterator[str]:
        for names, child in _alike(tree):
            label = names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]} ({len(names)} alike)"
            if not isinstance(child, Mapping):
                yield f"{'  ' * indent}{label}  {tuple(child.shape)}"
                continue
            yield f"{'  ' * indent}{label}  {sum(x.size for x in jax.tree.leaves(child)):,}" + (" each" if len(names) > 1 else "")
            if indent < depth:
                yield from lines(child, indent + 1)

    yield from lines(groups, 0)


def _alike(tree: Mapping[str, Any]) -> Iterator[tuple[list[str], Any]]:
    """Children, those of equal shapes in a row together; arrays alone."""
    kind = lambda child: str(jax.tree.map(lambda x: x.shape, child)) if isinstance(child, Mapping) else None
    names: list[str] = []
    for name, child in sorted(tree.items(), key=lambda item: _natural(item[0])):
        if names and kind(child) is not None and kind(child) == kind(tree[names[0]]):
            names.append(name)
            continue
        if names:
            yield names, tree[names[0]]
        names = [name]
    if names:
        yield names, tree[names[0]]


def _natural(name: str) -> list:
    """Layer_2 before Layer_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; numbers to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    align = lambda row: "  ".join(cell.ljust(w) if i == 0 or not cell[:1].isdigit() else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip()
    return "\n".join(align(row) for row in (header, *rows))


def size_text(count: float) -> str:
    """In decimal units, of three digits."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:,.3g} {unit}" if count < 1000 * factor else f"{count / factor:,.0f} {unit}"
    return f"{count:.0f} B"
