"""One mesh, and where every array lies on it: (regex, spec | "fsdp" | None) rules become `NamedSharding`s."""

import contextlib
import contextvars
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from magvid.types import UserError

DATA_AXES = ("data", "fsdp")  # mesh axes over which the batch is spread
FSDP_MIN_SIZE = 4096  # a smaller array costs more to gather than to keep whole

Rules = Sequence[tuple[str, Any]]


def make_mesh(axes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh {axis: size} over `devices` (default: all); one size may be -1 and takes what is left."""
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_sizes(axes, len(devices))
    # Linen and sharding constraints need automatic axes; jax's default became explicit.
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def abstract_mesh(axes: Mapping[str, int], count: int) -> AbstractMesh:
    """The same of `count` devices that are not there."""
    sizes = mesh_sizes(axes, count)
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def mesh_sizes(axes: Mapping[str, int], count: int) -> dict[str, int]:
    """{axis: size} of a mesh over `count` devices; ValueError where it does not fit them."""
    axes = dict(axes) or {"data": -1}
    known = math.prod(s for s in axes.values() if s != -1)
    if list(axes.values()).count(-1) > 1 or any(s != -1 and s < 1 for s in axes.values()):
        raise ValueError(f"mesh {axes}: sizes are positive, and at most one may be -1")
    sizes = {axis: count // known if s == -1 else s for axis, s in axes.items()}
    if math.prod(sizes.values()) != count:
        raise ValueError(f"mesh {axes} does not fit {count} device{'s' * (count > 1)}: make the product {count}, or let one axis be -1")
    return sizes


def least_devices(axes: Mapping[str, int]) -> int:
    """The fewest devices that a mesh {axis: size} fits, where an axis of -1 may be 1."""
    return math.prod(size for size in axes.values() if size > 0)


def constrain(x: Array, axes: Sequence[str | Sequence[str] | None]) -> Array:
    """Ask for dimension i of `x` to be spread over mesh axis axes[i]; axes that the mesh lacks are dropped, and those of a dimension that they do not divide evenly:
    with XLA's partitioner (jax 0.10.2) tokens that were spread unevenly gave an embedding a wrong gradient.

    The mesh is that of `jax.set_mesh`; without one it returns `x`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = [_present(a, mesh.axis_names) for a in axes]
    even = (a if size % _parts(a, mesh) == 0 else None for a, size in zip(spec, x.shape, strict=True))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*even))


def gathered(tree: Any, places: Any) -> Any:
    """Weights as a loss is to read them: whole on all devices over which the batch is spread, and divided over other axes as `places` (shardings, a tree
    like theirs) has them. So their gradients are summed over the batch before they are divided: left to itself, XLA's partitioner (jax 0.10.2) gathers
    the activations of the whole batch on each device, which then computes its part of a convolution's gradient.
    """
    return jax.tree.map(lambda x, place: _placed(x, place, without_batch(place)), tree, places)


def scattered(tree: Any, places: Any) -> Any:
    """Gradients divided as `places` has the weights."""
    return jax.tree.map(lambda x, place: _placed(x, place, place), tree, places)


def without_batch(place: NamedSharding) -> NamedSharding:
    """Divided over the axes of `place` alone over which the batch is not."""
    names = (((axes,) if isinstance(axes, str) else axes or ()) for axes in place.spec)
    kept = [tuple(a for a in axes if a not in DATA_AXES or place.mesh.shape[a] == 1) or None for axes in names]
    return NamedSharding(place.mesh, PartitionSpec(*kept))


def _placed(x: Array, place: NamedSharding, there: NamedSharding) -> Array:
    """`x` as `there` says; arrays of which no dimension is spread over the batch's axes, by `place`, are left to the partitioner."""
    if place.is_equivalent_to(without_batch(place), x.ndim):
        return x
    return constrain(x, [*there.spec] + [None] * (x.ndim - len(there.spec)))


_edges: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar("edges", default={})


@contextlib.contextmanager
def edges(activations: Mapping[str, Sequence], remat: str | bool | None = None) -> Iterator[None]:
    """Within, `edge` and `rematerialised` do as a config's fields of these names say, in what is traced; with remat=False blocks stay as they are."""
    token = _edges.set(dict(activations, remat=remat))
    try:
        yield
    finally:
        _edges.reset(token)


def edge(x: Array) -> Array:
    """`x` at the edge of a block of layers: tokens (b n d) or frames (b t h w c), spread as `edges` says. Frames of which one dimension cannot be spread so are spread
    over the batch alone: on the axes that were left out the parts of the others would be repeated, which see in `Job`.
    """
    axes = _edges.get().get({3: "tokens", 5: "frames"}.get(x.ndim))
    if not axes:
        return x
    mesh = jax.sharding.get_abstract_mesh()
    if x.ndim == 5 and any(size % _parts(_present(a, mesh.axis_names), mesh) for a, size in zip(axes, x.shape, strict=True)):
        axes = [axes[0]] + [None] * 4
    return constrain(x, axes)


def rematerialised(block: Callable, **options: Any) -> Callable:
    """`nn.remat` of a module or function, that keeps for the backward pass what the policy of `edges` says; without one nothing but its input."""
    name = _edges.get().get("remat")
    return block if name is False else nn.remat(block, policy=name and getattr(jax.checkpoint_policies, name), **options)


def data_shards(mesh: Mesh) -> int:
    """Into how many parts the batch is spread."""
    return math.prod(mesh.shape[a] for a in DATA_AXES if a in mesh.shape)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(tuple(a for a in DATA_AXES if a in mesh.shape) or None))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


@functools.cache
def rows_of(mesh: Mesh, process: int) -> tuple[int, int]:
    """(i, n): the devices of a process hold the i-th of n equal parts of a batch, which it reads; another may hold, and read, the same part, where an axis such
    as "model" goes over both. UserError where its parts do not lie beside each other, or are shared only partly.
    """
    shards = data_shards(mesh)
    held: dict[int, set[int]] = {}
    for device, (rows,) in batch_sharding(mesh).devices_indices_map((shards,)).items():
        held.setdefault(device.process_index, set()).add(rows.indices(shards)[0])
    mine = held[process]
    first, size = min(mine), len(mine)
    equal = all(len(other) == size and (other == mine or not other & mine) for other in held.values())
    if not equal or max(mine) - first != size - 1 or first % size:
        raise UserError(
            f"mesh {dict(mesh.shape)}: a process would need other rows of a batch than it can read: let the axes data and fsdp come first, and their "
            "sizes be multiples of the number of processes, or divide it"
        )
    return first // size, shards // size


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Array]:
    """This process's rows (`rows_of`) as part of arrays of the whole batch, spread over the data axes; texts are left out."""
    sharding, (_, parts) = batch_sharding(mesh), rows_of(mesh, jax.process_index())
    return {k: jax.make_array_from_process_local_data(sharding, v, (parts * len(v), *v.shape[1:])) for k, v in numeric(batch).items()}


def numeric(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The entries that a device can hold; texts and lists are left out."""
    return {k: v for k, v in batch.items() if getattr(v, "dtype", None) is not None and v.dtype.kind in "biuf"}


def shardings(tree: Mapping[str, Any], rules: Rules, mesh: Mesh) -> dict[str, Any]:
    """A NamedSharding for every leaf of {group: tree of arrays or shapes}.

    The first rule whose regex is found in the name "group/layer/kernel" decides: None keeps the array whole on every
    device, "fsdp" spreads its largest dimension that divides evenly, a list such as (None, "model") names a mesh axis
    per dimension, ("...", "model") of the last ones. ValueError names a parameter that no rule covers, or the dimension that a spec does not divide.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, x: _sharding(path_name(path), x.shape, rules, mesh), dict(tree)
    )


def like_parameters(tree: Any, named: Mapping[str, tuple[tuple[int, ...], NamedSharding]], mesh: Mesh) -> Any:
    """Shardings for `tree` (an optimiser's state).

    A leaf whose path ends in the name of a parameter of equal shape lies like it, others are whole on every device.
    `named` = {"layer/kernel": (shape, sharding)}.
    """

    def place(path, x):
        parts = path_name(path).split("/")
        for start in range(len(parts)):
            shape, sharding = named.get("/".join(parts[start:]), (None, None))
            if shape == x.shape:
                return sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, tree)


def state_shardings(state: Any, rules: Rules, mesh: Mesh) -> Any:
    """A TrainState of shardings for a TrainState of shapes: optimiser state and average lie like their parameter."""
    params = shardings(state.params, rules, mesh)

    def beside(group: str, tree: Any) -> Any:
        flat = jax.tree_util.tree_leaves_with_path(state.params[group])
        places = jax.tree.leaves(params[group])
        return like_parameters(tree, {path_name(p): (x.shape, s) for (p, x), s in zip(flat, places, strict=True)}, mesh)

    whole = lambda tree: jax.tree.map(lambda _: replicated(mesh), tree)
    return state.replace(
        step=replicated(mesh),
        params=params,
        frozen=shardings(state.frozen, rules, mesh),
        opt={g: beside(g, tree) for g, tree in state.opt.items()},
        ema={g: beside(g, tree) for g, tree in state.ema.items()},
        extra=whole(state.extra),
        key=replicated(mesh),
    )


def checksums(arrays: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """{"item/name": checksum}. Of a jax.Array every process has a part; a NumPy array is whole on each."""
    flat = {f"{item}/{name}": x for item, tree in arrays.items() for name, x in tree.items()}
    large = [name for name, x in flat.items() if x.nbytes > 2**20]
    with ThreadPoolExecutor() as pool:  # NumPy lets other threads run
        sums = dict(zip(large, pool.map(lambda name: checksum(flat[name]), large)))
    sums |= {name: checksum(x) for name, x in flat.items() if name not in sums}
    parts = {name: sums[name] for name, x in flat.items() if isinstance(x, jax.Array)}
    if jax.process_count() > 1 and parts:
        from jax.experimental import multihost_utils

        gathered = multihost_utils.process_allgather(np.array(list(parts.values()), np.uint32))
        sums |= {n: int(v) for n, v in zip(parts, gathered.sum(0, dtype=np.uint32), strict=True)}
    return sums


def checksum(x: Array | np.ndarray) -> int:
    """This process's part of a 32-bit sum of the bits of `x`; the parts add up to the same number on any mesh.

    sum_i word_i * (2 i c + 1) over the elements i in row-major order: each weight is odd, so that any change within one
    word changes the sum, and the weights differ, so that words cannot trade places. Orbax has no checksum: a flipped
    byte in its files restores without an error.
    """
    if x.dtype.itemsize > 4:
        raise ValueError(f"a checkpoint holds arrays of at most 32 bits per element, got {x.dtype}")
    if not x.size:
        return 0
    if isinstance(x, jax.Array):
        parts = [(s.index, s.data) for s in x.addressable_shards if s.replica_id == 0]
    else:
        parts = [((slice(None),) * x.ndim, x)]
    total = 0
    for index, part in parts:
        words = np.asarray(part, order="C").view(f"uint{8 * x.dtype.itemsize}").astype(np.uint32, copy=False)
        stride = x.size
        for size, cut in zip(x.shape, index, strict=True):  # i is a sum of what each axis contributes
            stride //= size
            rows = words.reshape(len(range(*cut.indices(size))), -1)
            contributed = (np.arange(*cut.indices(size)) * stride).astype(np.uint32)
            total += 2 * 2654435761 * int(np.dot(rows.sum(1, dtype=np.uint32), contributed))
            words = rows.sum(0, dtype=np.uint32)
        total += int(words.sum(dtype=np.uint32))
    return total % 2**32


def path_name(path: Sequence[Any]) -> str:
    """A jax key path as "a/b/0"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def deciding(name: str, rules: Rules) -> int:
    """The number of the rule that says where the parameter lies: the first that fits. ValueError where none does."""
    for i, (regex, _) in enumerate(rules):
        if re.search(regex, name):
            return i
    raise ValueError(f'sharding: no rule covers "{name}"; add one, e.g. [".*", null] at the end (rules are {[r for r, _ in rules]})')


def _sharding(name: str, shape: tuple[int, ...], rules: Rules, mesh: Mesh) -> NamedSharding:
    spec = rules[deciding(name, rules)][1]
    if spec is None:
        return replicated(mesh)
    if spec == "fsdp":
        return NamedSharding(mesh, _fsdp(shape, mesh))
    if not isinstance(spec, str) and list(spec[:1]) == ["..."]:
        spec = [None] * (len(shape) - len(spec) + 1) + list(spec[1:])
    if isinstance(spec, str) or len(spec) > len(shape):
        raise ValueError(
            f'sharding of "{name}" {shape}: {spec!r} is not None, "fsdp" or a list of at most {len(shape)} mesh axes'
        )
    spec = [_present(a, mesh.axis_names) for a in spec]
    for size, axes in zip(shape, spec, strict=False):
        parts = _parts(axes, mesh)
        if size % parts:
            raise ValueError(
                f'sharding of "{name}" {shape}: {size} is not divisible by the {parts} devices of axis {axes}: give it '
                'a rule of its own before this one, such as None or "fsdp"'
            )
    return NamedSharding(mesh, PartitionSpec(*spec))


def _fsdp(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    axis = next((a for a in ("fsdp", "data") if a in mesh.shape), None)
    fits = [i for i, s in enumerate(shape) if axis and s % mesh.shape[axis] == 0]
    if not fits or math.prod(shape) < FSDP_MIN_SIZE:
        return PartitionSpec()
    largest = max(fits, key=lambda i: shape[i])
    return PartitionSpec(*(axis if i == largest else None for i in range(len(shape))))


def _parts(axes: str | Sequence[str] | None, mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts these axes divide a dimension."""
    return math.prod(mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes or ()))


def _present(axes: str | Sequence[str] | None, names: Sequence[str]) -> str | tuple[str, ...] | None:
    if isinstance(axes, str) or axes is None:
        return axes if axes in names else None
    return tuple(a for a in axes if a in names) or None
