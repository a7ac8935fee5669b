"""From a config to what is trained: objective, mesh, data, optimisers, shape and place of every array of the state."""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from magvid import optim, runs, sharding, state
from magvid.build import build, check_spec, near
from magvid.checkpoints import merge
from magvid.data import pipeline
from magvid.data.joint import Joint
from magvid.draw import Drawing
from magvid.optim import Optimiser
from magvid.provenance import describe, keeps_features, on_cache, open_cache
from magvid.state import Objective, TrainState
from magvid.types import Groups, UserError

REQUIRED = ("steps", "batch", "objective", "data", "optim")
DEFAULTS = dict(
    seed=0,
    microbatch=0,  # most examples that a device holds at a time; 0: no limit
    ema=0.0,  # decay of the average; 0: no average
    ema_groups=(),  # (): every trained group
    mesh={"data": -1},
    sharding=[[".*", None]],
    activations={},  # how what stands between blocks is spread: {"tokens": [axes of b n d], "frames": [axes of b t h w c]}
    remat_policy=None,  # of jax.checkpoint_policies: what blocks with `remat` keep; None: nothing but their input
    dtype="float32",  # of the trained groups in the forward pass
    log_every=50,
    save_every=1000,
    eval_every=0,  # 0: never
    keep=3,  # checkpoints, the newest
    keep_every=0,  # and for good those of steps that are multiples of it; 0: none
    rollbacks=0,  # at what is not finite, back to the last save and past the batches since, so many times until the next save; 0: stop
    spike=0.0,  # a loss so many deviations above the last ones counts as not finite (see magvid/guard.py); 0: none does
    metrics=[],
    init=[],
    compiler_options={},  # {platform: {option: value}} of XLA, for the training step: {"tpu": {"xla_tpu_run_space_to_batch": False}}
    compile_cache=None,  # a folder that keeps compiled programs
)
# {field: (least, most)} of whole numbers
WHOLE = {
    "steps": (1, None),
    "batch": (1, None),
    "microbatch": (0, None),
    "seed": (0, 2**32 - 1),
    "log_every": (1, None),
    "save_every": (0, None),
    "eval_every": (0, None),
    "keep": (1, None),
    "keep_every": (0, None),
    "rollbacks": (0, None),
}
# {split: fields of config.data.<split>}; features=False: those in the cache are not used
DATA = {
    "train": ("source", "transforms", "workers", "cache", "features"),
    "eval": ("source", "transforms", "cache", "features", "batch", "limit"),
    "pictures": ("source", "transforms", "workers", "batch", "every", "cache", "features"),
}
DTYPES = ("float32", "bfloat16")
PLATFORMS = ("cpu", "gpu", "tpu")
AXES = ("data", "fsdp", "model", "seq")  # of a mesh, in what the library and its configs name
# What may differ when a run goes on: how long, what is said, and on which devices, with how many examples at a time.
MAY_CHANGE = {"microbatch", "data.eval.batch", "steps", "log_every", "save_every", "eval_every", "keep", "keep_every", "rollbacks", "spike", "metrics", "mesh", "sharding", "activations", "remat_policy", "compiler_options", "compile_cache"}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What the first batch allows: `init()` makes the initial state; `like` has its shapes and places."""

    optimisers: Mapping[str, Optimiser]
    init: Callable[[], TrainState]
    like: TrainState  # ShapeDtypeStructs with shardings; the frozen groups are arrays already, unless the job is only planned
    spared: Groups = dataclasses.field(default_factory=dict)  # frozen groups that the step does without: arrays of this machine, to evaluate with


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained, on what data and devices."""

    config: dict  # complete; references to runs are replaced by their specs
    objective: Objective
    mesh: jax.sharding.Mesh
    frozen: Groups  # weights from other runs
    sources: Mapping[str, Mapping[str, str]]  # {frozen group: {"run", "weights", "hash"}}
    trust: bool = False
    planned: bool = False  # nothing is there but the config: of all weights shapes alone

    def __post_init__(self):
        # UserError here, before anything is read or written
        check_spec({name: self.config[name] for name in ("data", "metrics")})
        self.microbatches()
        self._check_frames()
        if self.config["data"].get("eval") and (batch := self._held_out_batch()) % (shards := sharding.data_shards(self.mesh)):
            raise UserError(f"config.data.eval.batch is {batch}, which does not divide over {shards} devices: use a multiple of {shards}")

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], devices: Sequence[jax.Device] | None = None, trust: bool = False
    ) -> "Job":
        """`config` as `check_config` gives it; `devices` default to all."""
        resolved, frozen, sources = resolve(config, trust)
        objective = on_cache(build(resolved["objective"]), config["data"])
        return cls(resolved, objective, sharding.make_mesh(config["mesh"], devices), frozen, sources, trust)

    @classmethod
    def plan(cls, config: Mapping[str, Any], mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, load: Callable[[str], Mapping[str, Any]]) -> "Job":
        """`config` as `check_config` gives it, on devices that need not be there, without the runs, weights and data that it names. See `runs.planned`."""
        config = dict(config, objective=runs.planned(config["objective"], load), init=[])
        return cls(config, build(config["objective"]), mesh, {}, {}, planned=True)

    @functools.cached_property
    def training_data(self) -> tuple[Any, tuple]:
        """(source, transforms)."""
        return self._open("train")

    @functools.cached_property
    def held_out_data(self) -> tuple[Any, tuple]:
        return self._open("eval")

    @functools.cached_property
    def picture_data(self) -> tuple[Any, tuple]:
        return self._open("pictures")

    def _open(self, split: str) -> tuple[Any, tuple]:
        """(source, transforms) of `config.data.<split>`, with tokens or latents in place of videos where it has a `cache`."""
        data = self.config["data"][split]
        source, transforms = build(data["source"]), build(tuple(data.get("transforms", ())))
        folder, insisted = data.get("cache"), data.get("features")
        if not folder:
            if insisted:
                raise UserError(f"data.{split}.features is True, and there is no data.{split}.cache to take them from: add it, or leave features out")
            return source, transforms
        features = insisted is not False and keeps_features(self.objective, folder)
        cache = open_cache(source, folder, describe(self.config, self.objective, self.sources, split, source, features))
        if insisted and not getattr(cache, "features", None):
            raise UserError(f"data.{split}.features is True, and {folder} has none that this run could use: leave it out, or write them by `magvid encode --features=all`")
        return cache, (*transforms, *cache.last)

    def loader(self) -> pipeline.Loader | Joint:
        """Endless training batches, this process's rows. With `data.pictures` (as `data.train`, and `batch` and `every`) some are of
        pictures, see `data.joint`.
        """
        data = self.config["data"]
        if (data.get("eval") or {}).get("cache"):
            self.held_out_data  # a cache that does not fit is an error now, not at the first evaluation
        videos, pictures = self._loader("train", *self.training_data, self.config["batch"]), data.get("pictures")
        if not pictures:
            return videos
        shards, batch = sharding.data_shards(self.mesh), pictures["batch"]
        if batch % (shards * self.microbatches()):
            raise UserError(f"data.pictures.batch is {batch}: a multiple of {shards * self.microbatches()}, as microbatches and devices ask")
        return Joint(videos, self._loader("pictures", *self.picture_data, batch), pictures["every"])

    def _loader(self, split: str, source: Any, transforms: Sequence[Any], batch: int) -> pipeline.Loader:
        workers = self.config["data"][split].get("workers", 0)
        return pipeline.Loader(source, batch, seed=self.config["seed"], transforms=transforms, workers=workers, **self._rows())

    def _rows(self) -> dict[str, int]:
        i, n = sharding.rows_of(self.mesh, jax.process_index())
        return dict(process_index=i, process_count=n)

    def clip_shape(self, batch: Mapping[str, np.ndarray]) -> tuple[int, ...]:
        """(t h w) of the clips of a batch, also of one of tokens or latents."""
        return tuple(batch["video"].shape[1:4]) if "video" in batch else self.objective.clip

    def held_out(self) -> Iterator[dict[str, np.ndarray]]:
        """One finite pass over the evaluation data, without a last batch that is not full (unless it is alone)."""
        data = self.config["data"].get("eval")
        if not data:
            return
        source, transforms = self.held_out_data
        batch, limit = self._held_out_batch(), data.get("limit")
        full = (len(source) if limit is None else min(limit, len(source))) // batch  # a count that all processes share
        batches = pipeline.epoch(source, batch, transforms, limit=limit, **self._rows())
        yield from itertools.islice(batches, max(full, 1))

    def _held_out_batch(self) -> int:
        return self.config["data"]["eval"].get("batch") or self.config["batch"]

    def prepare(self, batch: Mapping[str, np.ndarray]) -> Prepared:
        """Optimisers, initial state and its places. `batch` only shows the shape of an example."""
        config, objective = self.config, self.objective
        batch = {k: np.zeros_like(v[:1]) for k, v in sharding.numeric(batch).items()}  # the same on every process
        key, train_key = jax.random.split(jax.random.key(config["seed"]))
        features, everywhere = self._features()
        shown = {k: v for k, v in batch.items() if k not in features}
        drawing = Drawing(objective.init, key, shown)
        shapes = drawing.shapes
        frozen, spared = {g: merge(tree, shapes[g]) for g, tree in self.frozen.items()}, {}
        if everywhere:
            shown |= {k: v for k, v in batch.items() if k in everywhere}
            drawing = Drawing(objective.init, key, shown)
            shapes = drawing.shapes
            spared = {g: frozen.pop(g) for g in [*frozen] if g not in shapes}
        if self.planned:
            frozen = {g: tree for g, tree in shapes.items() if g not in config["optim"]}
        averaged = self._check_groups(shapes, frozen)
        shapes = {g: shapes[g] for g in config["optim"]}
        optimisers = {g: optim.make(spec, shapes[g], config["steps"], g) for g, spec in config["optim"].items()}
        given = _arrays(runs.initial(config["init"], shapes, self.trust))

        def begin(params, frozen):
            extra = objective.init_extra() if hasattr(objective, "init_extra") else {}
            return state.init_state(params, frozen, extra, train_key, optimisers, averaged)

        like = jax.eval_shape(begin, shapes, frozen)
        places = sharding.state_shardings(like, config["sharding"], self.mesh)
        like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, places)
        if not self.planned:
            frozen = jax.device_put(frozen, places.frozen)
            like = like.replace(frozen=frozen)

        def init():
            wanted = {g: _without(places.params[g], given.get(g, {})) for g in shapes}
            *random, finish = drawing(wanted, key, shown)
            finished = lambda drawn, others, given, frozen: begin(state.join(finish(drawn, others), given), frozen)
            return jax.jit(finished, out_shardings=places, donate_argnums=0)(*random, given, frozen)

        return Prepared(optimisers, init, like, spared)

    def _features(self) -> tuple[set[str], set[str]]:
        """Features of frozen towers that training clips have, and those of them that all clips have, whose towers are not needed."""
        of = lambda source: set(getattr(source, "features", ()))
        if self.planned or not (mine := of(self.training_data[0])):
            return set(), set()
        everywhere = mine
        if self.config["data"].get("eval"):
            everywhere = everywhere & of(self.held_out_data[0])
        if self.config["data"].get("pictures"):
            everywhere = everywhere & of(self.picture_data[0])
        return mine, everywhere

    @property
    def on_cpu(self) -> bool:
        return isinstance(self.mesh, jax.sharding.Mesh) and self.mesh.devices.flat[0].platform == "cpu"

    def microbatches(self) -> int:
        """Into how many equal parts a batch is cut so that a device holds at most `microbatch` examples at a time."""
        batch, shards, most = self.config["batch"], sharding.data_shards(self.mesh), self.config["microbatch"]
        if batch % shards:
            raise UserError(
                f"batch {batch} does not divide over {shards} devices: use a multiple of {shards}, or another mesh"
            )
        local = batch // shards
        return next(n for n in range(1, local + 1) if local % n == 0 and (not most or local // n <= most))

    def pure_step(self, prepared: Prepared, remat: bool = True) -> Callable:
        """The training step (state, batch) -> (state, metrics, finite), to be traced; with remat=False nothing is computed twice in it."""
        options = dict(microbatches=self.microbatches(), unroll=self.on_cpu, ema=self.config["ema"], dtype=self.config["dtype"])
        places = jax.tree.map(lambda x: x.sharding, {**prepared.like.params, **prepared.like.frozen})
        trained, _ = state.split({g: places[g] for g in prepared.optimisers}, prepared.optimisers)
        where = dict(gather=lambda params: sharding.gathered(params, places), scatter=lambda grads: sharding.scattered(grads, trained))
        return self._spread(state.make_step(self.objective, prepared.optimisers, **options, **where), self.config["remat_policy"] if remat else False)

    def step(self, prepared: Prepared):
        """The compiled training step; the given state is donated."""
        step = self.pure_step(prepared)
        places = jax.tree.map(lambda x: x.sharding, prepared.like)
        whole = sharding.replicated(self.mesh)
        return jax.jit(step, donate_argnums=0, out_shardings=(places, whole, whole), compiler_options=self.compiler_options())

    def compiler_options(self) -> dict[str, Any] | None:
        """Those of the mesh's platform. UserError where its compiler, if it is here, knows none of a name."""
        platform = self.mesh.devices.flat[0].platform
        options = self.config["compiler_options"].get(platform)
        if options and platform == jax.default_backend():
            try:
                jax.jit(lambda: 0, compiler_options=options).lower().compile()
            except jax.errors.JaxRuntimeError as error:
                raise UserError(f"config.compiler_options.{platform} is {json.dumps(options)}: {str(error).splitlines()[0]}") from None
        return options

    def eval_step(self):
        """The compiled (params, extra, batch, key, step) -> {name: scalar} without dropout or update."""
        step = self._spread(state.make_eval(self.objective), self.config["remat_policy"])
        return jax.jit(step, out_shardings=sharding.replicated(self.mesh))

    def _spread(self, f: Callable, remat: str | bool | None) -> Callable:
        """`f` traced with the config's `activations`, and `remat` as `sharding.edges` has it."""

        def spread(*args):
            with sharding.edges(self.config["activations"], remat):
                return f(*args)

        return spread

    def _check_frames(self) -> None:
        """XLA's partitioner (jax 0.10.2) gives a convolution that is spread over pixels a gradient that is too large, as often as the pixels' parts are
        repeated over another axis of the mesh.
        """
        axes = self.config["activations"].get("frames") or []
        large, within = [name for name, size in self.mesh.shape.items() if size > 1], _axes(axes[1:])
        if within & set(large) and (missing := [name for name in large if name not in _axes(axes)]):
            raise UserError(
                f"config.activations.frames is {json.dumps(axes)}, without {', '.join(missing)} of the mesh: frames that are spread over pixels are spread over "
                f'all axes, such as ["{next(iter(within))}", "{missing[0]}"] for h, or their gradients come out wrong'
            )

    def _check_groups(self, shapes: Groups, frozen: Groups) -> tuple[str, ...]:
        """Every group has one origin; returns the groups that are averaged."""
        trained, averaged = self.config["optim"], self.config["ema_groups"]
        for group in shapes:
            if group not in trained and group not in frozen:
                raise UserError(f'group "{group}" has neither optim.{group} nor a run to come from: add one of them')
            if group in trained and group in frozen:
                raise UserError(
                    f'group "{group}" comes from a run, which freezes it: remove optim.{group}, '
                    "or use `init` to begin there"
                )
        for what, groups in (("optim", trained), ("a run", frozen)):
            if unknown := set(groups) - set(shapes):
                raise UserError(f"{what} names {sorted(unknown)}, but the objective has {sorted(shapes)}")
        if unknown := set(averaged) - set(trained):
            raise UserError(f"ema_groups names {sorted(unknown)}, but only {sorted(trained)} are trained")
        return tuple(averaged or trained) if self.config["ema"] else ()


def resolve(config: Mapping[str, Any], trust: bool = False) -> tuple[dict, Groups, dict[str, dict]]:
    """(config with the specs of other runs in place of references, frozen weights, their origin {"run", "weights",
    "hash"}), the last two per group.
    """
    resolved, frozen, hashes = runs.resolve(config, trust)
    origins = {group: {k: v for k, v in spec.items() if k not in ("config", "spec")} for _, group, spec in runs.references(config["objective"])}
    return resolved, frozen, {g: origins[g] | {"hash": h} for g, h in hashes.items()}


def check_config(config: Mapping[str, Any]) -> dict:
    """A plain, complete copy of `config` (a dict or ConfigDict).

    UserError names a field that is missing or unknown, or a value that cannot be meant.
    """
    config = json.loads(json.dumps(config.to_dict() if hasattr(config, "to_dict") else config, default=dict))
    fields = [*REQUIRED, *DEFAULTS]
    for name in config:
        if name not in fields:
            raise UserError(f"the config has no field {name}{near(name, fields)}; it has {', '.join(fields)}")
    if missing := [n for n in REQUIRED if n not in config]:
        raise UserError(f"the config lacks {', '.join(missing)}")
    config = json.loads(json.dumps(DEFAULTS)) | config
    _check_values(config)
    _check_data(config["data"])
    if not isinstance(config["objective"].get("target"), str):
        raise UserError('config.objective has no target: name what is trained, such as "magvid.objectives.vqgan:VQGAN"')
    for group, spec in config["optim"].items():
        try:
            optim.check(spec, f"config.optim.{group}")
        except ValueError as error:
            raise UserError(str(error)) from None
    for i, spec in enumerate(config["init"]):
        runs.check_initial(spec, f"config.init[{i}]")
    return config


def _check_data(data: Mapping[str, Any]) -> None:
    for split, section in data.items():
        if split not in DATA:
            raise UserError(f"config.data has no {split}{near(split, DATA)}; it may have {', '.join(DATA)}")
        if section is None and split != "train":
            continue
        if not isinstance(section, Mapping):
            raise UserError(f"config.data.{split} is {json.dumps(section)}: give a dict with source, and what else it may have of {', '.join(DATA[split])}")
        for name in section:
            if name not in DATA[split]:
                raise UserError(f"config.data.{split} has no field {name}{near(name, DATA[split])}; it may have {', '.join(DATA[split])}")
        for name, kind in dict(source=dict, transforms=(list, tuple)).items():
            if name in section and not isinstance(section[name], kind):
                raise UserError(f"config.data.{split}.{name} is {json.dumps(section[name])}: give {'a dict with target' if name == 'source' else 'a list of such dicts'}")
        for name, least in dict(batch=1, limit=1, workers=0, every=2).items():
            if (value := section.get(name)) is not None and (type(value) is not int or value < least):
                raise UserError(f"config.data.{split}.{name} is {json.dumps(value)}: give a whole number of at least {least}")
        needs = ("source", "batch", "every") if split == "pictures" else ("source",)
        if missing := [name for name in needs if section.get(name) is None]:
            raise UserError(f"config.data.{split} lacks {', '.join(missing)}")
    if "train" not in data:
        raise UserError("config.data lacks train: a dict with the source of what is trained on")


def _check_values(config: Mapping[str, Any]) -> None:
    kinds = dict(objective=dict, data=dict, optim=dict)
    kinds |= {name: dict if isinstance(value, dict) else list for name, value in DEFAULTS.items() if isinstance(value, (dict, list, tuple))}
    for name, kind in kinds.items():
        if not isinstance(config[name], kind):
            raise UserError(f"config.{name} is {json.dumps(config[name])}: give a {kind.__name__}")
    for name, (low, high) in WHOLE.items():
        value = config[name]
        if type(value) is not int or value < low or (high is not None and value > high):
            most = "" if high is None else f" and at most {high}"
            raise UserError(f"config.{name} is {json.dumps(value)}: give a whole number of at least {low}{most}")
    if not isinstance(config["ema"], (int, float)) or not 0 <= config["ema"] < 1:
        raise UserError(f"config.ema is {json.dumps(config['ema'])}: give a decay of at least 0 and below 1")
    if type(config["spike"]) not in (int, float) or config["spike"] < 0:
        raise UserError(f"config.spike is {json.dumps(config['spike'])}: give a number of deviations, or 0 for none")
    if config["keep_every"] and (not config["save_every"] or config["keep_every"] % config["save_every"]):
        raise UserError(f"config.keep_every is {config['keep_every']}: a multiple of save_every, which is {config['save_every']}")
    if config["dtype"] not in DTYPES:
        raise UserError(f"config.dtype is {json.dumps(config['dtype'])}: use {' or '.join(DTYPES)}")
    _check_spread(config)
    if bad := next(_not_finite(config), None):
        raise UserError(f"config{bad}: give a finite number")


def _check_spread(config: Mapping[str, Any]) -> None:
    if bad := {axis: size for axis, size in config["mesh"].items() if type(size) is not int}:
        raise UserError(f"config.mesh is {json.dumps(config['mesh'])}: {', '.join(bad)} is to be a whole number of devices, or -1")
    for i, rule in enumerate(config["sharding"]):
        _check_rule(rule, f"config.sharding[{i}] is {json.dumps(rule)}")
        if isinstance(rule[1], list):
            _check_axes(rule[1], f"config.sharding[{i}]")
    known = {"tokens": "b n d", "frames": "b t h w c"}
    for name, axes in config["activations"].items():
        if name not in known:
            raise UserError(f"config.activations has no {name}: it may have {' and '.join(known)}")
        if not isinstance(axes, list) or len(axes) != len(known[name].split()):
            raise UserError(f"config.activations.{name} is {json.dumps(axes)}: give a list of mesh axes (or null) for {known[name]}")
        _check_axes(axes, f"config.activations.{name}")
    named = {axis: "activations" for spec in config["activations"].values() for axis in _axes(spec)}
    named |= {axis: "sharding" for _, spec in config["sharding"] if spec != "fsdp" for axis in _axes(spec)}
    for axis in config["mesh"]:
        if axis not in AXES and axis not in named:
            raise UserError(f'config.mesh has an axis "{axis}", over which nothing is spread{near(axis, AXES)}; usual are {", ".join(AXES)}')
    for axis, field in named.items():
        if axis not in AXES and axis not in config["mesh"]:
            raise UserError(f'config.{field} names a mesh axis "{axis}", which there is not{near(axis, [*AXES, *config["mesh"]])}; usual are {", ".join(AXES)}')
    for platform, options in config["compiler_options"].items():
        if platform not in PLATFORMS or not isinstance(options, Mapping):
            raise UserError(f"config.compiler_options.{platform} is {json.dumps(options)}: give {{option: value}} for one of {', '.join(PLATFORMS)}")
    policy, policies = config["remat_policy"], [name for name in dir(jax.checkpoint_policies) if name.endswith("saveable")]
    if policy is not None and policy not in policies:
        raise UserError(f"config.remat_policy is {json.dumps(policy)}: use null or one of {', '.join(policies)}")


def _check_rule(rule: Any, what: str) -> None:
    if not (isinstance(rule, list) and len(rule) == 2 and isinstance(rule[0], str)):
        raise UserError(f'{what}: give [regex, axes], such as ["kernel", [null, "model"]] or [".*", "fsdp"]')
    try:
        re.compile(rule[0])
    except re.error as error:
        raise UserError(f"{what}: its first part is no regular expression ({error})") from None
    if not (rule[1] is None or rule[1] == "fsdp" or isinstance(rule[1], list)):
        raise UserError(f'{what}: its second part is a list of mesh axes (or null), null for whole arrays, or "fsdp"')


def _check_axes(axes: Sequence[Any], what: str) -> None:
    """Each null, the name of an axis, or a list of names; none twice."""
    for axis in axes:
        several = isinstance(axis, list) and all(isinstance(name, str) for name in axis)
        if not (axis is None or isinstance(axis, str) or several):
            raise UserError(f"{what}: {json.dumps(axis)} is no mesh axis, list of axes, or null")
    named = [name for axis in axes if axis for name in ([axis] if isinstance(axis, str) else axis)]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise UserError(f"{what} is {json.dumps(axes)}: {', '.join(twice)} can divide one dimension, not two")


def _axes(spec: Any) -> set[str]:
    """The mesh axes in a list of axes, lists of axes and nulls."""
    return {name for axis in spec or () for name in ([axis] if isinstance(axis, str) else axis or ())} - {"..."}


def _not_finite(value: Any, name: str = "") -> Iterator[str]:
    """".a[0].b is nan" for every number that JSON does not have."""
    if isinstance(value, float) and not np.isfinite(value):
        yield f"{name} is {value}"
    children = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _not_finite(child, f"{name}[{key}]" if isinstance(key, int) else f"{name}.{key}")


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """["field.sub (old -> new)", ...] for everything that must not change when a run goes on."""
    found = []
    for key in sorted({**old, **new}):
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if a == b or name in MAY_CHANGE or (name.startswith("data.") and key in ("workers", "cache", "features")):
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{name}.")
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b) and all(isinstance(x, Mapping) for x in a + b):
            found += [each for i, pair in enumerate(zip(a, b)) for each in differences(*pair, f"{name}[{i}].")]
        else:
            found.append(f"{name} ({_short(a)} -> {_short(b)})")
    return found


def _short(value: Any, most: int = 120) -> str:
    text = json.dumps(value)
    return text if len(text) <= most else f"{text[:most]}..."


def _arrays(tree: Mapping[str, Any]) -> dict:
    """`tree` without the leaves that are only shapes."""
    inner = {k: _arrays(v) if isinstance(v, Mapping) else v for k, v in tree.items()}
    return {k: v for k, v in inner.items() if not isinstance(v, jax.ShapeDtypeStruct)}


def _without(tree: Mapping[str, Any], given: Mapping[str, Any]) -> dict:
    """`tree` less the leaves of `given`."""
    return {k: _without(v, given.get(k, {})) if isinstance(v, Mapping) else v for k, v in tree.items() if k not in given or isinstance(v, Mapping)}
