"""A run folder describes itself: config.json, data.json, checkpoints/, and a hash. Runs refer to each other by path.

objective.tokenizer = dict(run="runs/vq", weights="ema")   # the spec and frozen weights of that run's `tokenizer`
objective.conditioners[0].text = dict(run="runs/clip", part="clip.text")  # a part of one, under another name
objective.perceptual = dict(target=..., weights_file="a.npz")  # frozen weights from a file of tools/convert_features.py
objective.vae = dict(run="runs/vae", config="configs/vae.py")  # how it is made: said where it is missing, and planned with
metrics[0].vision = dict(run="runs/clip", part="clip.vision")  # likewise in a metric, see `evaluate.py`
init = [dict(run="runs/vq2d", map="mylab.maps:widen")]     # where trained parameters begin
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import json
import logging
import os
import pathlib
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from magvid import build
from magvid.checkpoints import CheckpointError, Checkpoints, merge
from magvid.state import join
from magvid.types import Groups, Params, UserError

log = logging.getLogger(__name__)

CONFIG = "config.json"
DATA = "data.json"
LOCK = ".lock"
FILE = "weights_file"
INITIAL = ("run", "map", "groups", "weights", "skip")  # entries of one of `init`
TOKENIZER = "magvid.data.text:HFTokenizer"  # its `folder` stands beside the weights


REFERENCE = {"run", "weights", "part", "fields", "config", "spec"}  # entries of one, see `_follow` and `planned`
READING = dict(stride=1, fps=None, most_stride=None, keep_aspect=True, spread=False)  # what a source says of how it reads, and what that is otherwise


@dataclasses.dataclass(frozen=True)
class ClipFormat:
    """What a video is made into before a run reads it: enough to sample from a file without the run's data set."""

    frames: int
    height: int
    width: int
    stride: int = 1  # every stride-th frame is taken
    fps: float | None = None  # at this rate; None: the file's own
    most_stride: int | None = None  # of the file's own frames every s-th, s = round(its rate / fps) but at most this
    keep_aspect: bool = True  # pictures are cropped to height x width, not squeezed
    spread: bool = False  # frames lie evenly over the whole file
    classes: tuple[str, ...] = ()  # names by number

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.frames, self.height, self.width

    @classmethod
    def of(cls, source: Any, shape: Sequence[int]) -> "ClipFormat":
        """Of a source whose clips have `shape` (t h w 3)."""
        named = {name: getattr(source, name, default) for name, default in READING.items()}
        return cls(*map(int, shape[:3]), **named, classes=tuple(map(str, getattr(source, "classes", ()))))

    def reading(self, rate: float) -> tuple[float | None, int]:
        """How a file of this mean rate is read: (frames per second; None: its own, every how many-th of them is taken)."""
        if self.most_stride is None:
            return self.fps, self.stride
        return None, max(min(round(rate / self.fps), self.most_stride), 1)

    def shown_rate(self, rate: float) -> float:
        """Frames per second of the clips that are made of a file of this mean rate."""
        fps, stride = self.reading(rate)
        return (fps or rate) / stride

    @classmethod
    def read(cls, path: pathlib.Path) -> "ClipFormat":
        """UserError where `path` does not hold what `write` wrote."""
        found = read_json(path)
        try:
            return cls(**found["clip"], classes=tuple(found["classes"]))
        except (KeyError, TypeError) as e:
            raise UserError(f"{path} does not describe clips ({e}): restore it from a copy, or remove it") from None

    def write(self, path: pathlib.Path) -> None:
        clip = dataclasses.asdict(self)
        classes = clip.pop("classes")
        write_json(path, {"clip": clip, "classes": classes})


@dataclasses.dataclass(frozen=True)
class Run:
    """A folder written by `train`: what was trained, and its weights."""

    path: pathlib.Path
    config: dict  # plain; paths of other runs in it are absolute

    @functools.cached_property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.path / "checkpoints")

    @functools.cached_property
    def trained_clip(self) -> ClipFormat | None:
        """As the training data had it; None where the folder does not say."""
        return ClipFormat.read(self.path / DATA) if (self.path / DATA).is_file() else None

    @property
    def clip(self) -> ClipFormat | None:
        """`trained_clip`, or None where `config` has other data than the folder's."""
        same = self.trained_clip and read_config(self.path).get("data") == self.config.get("data")
        return self.trained_clip if same else None

    @property
    def samples(self) -> pathlib.Path:
        """Where videos of it are written."""
        return self.path / "samples"

    @property
    def step(self) -> int:
        """The newest saved step of which nothing was found damaged so far, its description least of all."""

        def described(step: int) -> int:
            self.checkpoints.meta(step)
            return step

        try:
            return self.checkpoints.newest(described)
        except CheckpointError as e:
            if self.checkpoints.steps():
                raise
            raise UserError(f"run {self.path} has no checkpoint yet ({e}): train it first") from None

    @property
    def hash(self) -> str:
        """12 hex digits of the config and of all weights at the newest step; changes when either does."""
        return _digest([relative(self.config, self.path), self.checkpoints.meta(self.step)["leaves"]])

    @property
    def groups(self) -> list[str]:
        """The trained groups, whose weights are here."""
        return _groups(self.checkpoints.meta(self.step), "params")

    @property
    def averaged(self) -> bool:
        """Whether averaged weights are kept of any group."""
        return bool(_groups(self.checkpoints.meta(self.step), "ema"))

    @property
    def frozen(self) -> dict[str, dict]:
        """{group: {"run", "weights", "hash"}} of the groups that this run took from others."""
        return self.checkpoints.meta(self.step)["frozen"]

    def weights(self, group: str, which: str | None = None, step: int | None = None) -> Params:
        """Nested numpy arrays of `group`. `which` = "ema" (UserError if the run keeps none), "params", or None: "ema"
        where there is one.

        A leaf that is not trained has no average and comes from "params".
        """
        return self.read(group, which, step)[0]

    def all_weights(self, which: str | None = None, groups: Sequence[str] | None = None) -> Groups:
        """`weights` of several groups (None: all), all of one step. Of "ema" those that have no average are as they are, where another has one."""

        def load(step: int) -> Groups:
            wanted = _groups(self.checkpoints.meta(step), "params") if groups is None else groups
            averaged = _groups(self.checkpoints.meta(step), "ema")
            kind = lambda group: "params" if which == "ema" and averaged and group not in averaged else which
            return {group: self.read_at(step, group, kind(group))[0] for group in wanted}

        return self.checkpoints.newest(load)

    def read(self, group: str, which: str | None = None, step: int | None = None) -> tuple[Params, str]:
        """`weights` and 12 hex digits of their content."""
        return self.checkpoints.newest(lambda step: self.read_at(step, group, which), step)

    def read_at(self, step: int, group: str, which: str | None = None) -> tuple[Params, str]:
        """`read`, for `Checkpoints.newest`: Corrupt where it is damaged."""
        if which not in (None, "ema", "params"):
            raise UserError(f'weights="{which}" is unknown: use "ema" or "params"')
        if group not in (trained := _groups(self.checkpoints.meta(step), "params")):
            raise UserError(f'run {self.path} has not trained "{group}": it has {", ".join(trained)}')
        params = self.checkpoints.group(step, "params", group)
        ema = self.checkpoints.group(step, "ema", group) if which != "params" else {}
        if which == "ema" and not ema:
            raise UserError(f'run {self.path} keeps no average of "{group}": use weights="params"')
        items = tuple(f"{item}/{group}/" for item in (("params", "ema") if ema else ("params",)))
        leaves = self.checkpoints.meta(step)["leaves"]
        return join({group: params}, {group: ema})[group], _digest({n: v for n, v in leaves.items() if n.startswith(items)})


@dataclasses.dataclass(frozen=True)
class Recipe(Run):
    """A config all of whose weights come from elsewhere, converted public ones for example: it needs no training, and is
    sampled like a run. `path` is the config's file.
    """

    groups = ()
    frozen = {}
    step = 0
    averaged = False
    trained_clip = None

    def all_weights(self, which: str | None = None, groups: Sequence[str] | None = None) -> Groups:
        return {}

    @property
    def hash(self) -> str:
        return _digest(self.config)

    @property
    def clip(self) -> ClipFormat | None:
        """`objective.clip`, at the rate of the videos to train on."""
        shape, source = self.config["objective"].get("clip"), self.config["data"]["train"]["source"]
        source = source.get("source", source)  # of what Views are made of
        return None if shape is None else ClipFormat(*shape, **{k: source.get(k, default) for k, default in READING.items()})

    @property
    def samples(self) -> pathlib.Path:
        """A folder for each objective, as a config's arguments and fields make it: other settings do not overwrite its files."""
        return pathlib.Path("samples") / f"{self.path.stem}-{_digest(self.config['objective'])[:6]}"


def _groups(meta: Mapping[str, Any], item: str) -> list[str]:
    return sorted({name.split("/")[1] for name in meta["leaves"] if name.startswith(f"{item}/")})


def open_run(path: str | os.PathLike, trust: bool = False) -> Run:
    """The run in folder `path`.

    UserError when it is none (a similar folder is suggested), or when its config names code outside of magvid and
    `trust` is False: a config is a program.
    """
    folder = pathlib.Path(path).expanduser().absolute()
    if not folder.is_dir():
        if folder.suffix == ".safetensors" and folder.is_file():
            raise UserError(f"{path} is a file: `magvid import {path} --out=FOLDER` makes a run folder of it")
        near = difflib.get_close_matches(folder.name, _folders(folder.parent), 1)
        raise UserError(f"there is no folder {path}" + (f"; did you mean {folder.parent / near[0]}?" if near else ""))
    if not (folder / CONFIG).is_file():
        inside = [n for n in _folders(folder) if (folder / n / CONFIG).is_file()]
        hint = f"; the runs inside it are {', '.join(sorted(inside))}" if inside else ""
        raise UserError(f"{path} is not a run folder: it has no {CONFIG}{hint}")
    config = read_config(folder)
    if not trust:
        check_trust(config, folder)
    return Run(folder, config)


def read_config(folder: pathlib.Path) -> dict:
    """The config in a run folder, with the paths of other runs absolute; UserError names a file that holds none."""
    return anchored(read_json(folder / CONFIG), folder)


def read_json(path: pathlib.Path) -> dict:
    """The object in a JSON file; UserError naming the file where it holds none."""
    try:
        value = json.loads(path.read_text())
    except ValueError as e:
        raise UserError(f"{path} is not valid JSON ({e}): restore it from a copy") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {json.dumps(value)[:40]}, not an object {{...}}: restore it from a copy")
    return value


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Appears under its name only when it is complete. ValueError for NaN, which JSON does not have; UserError where it cannot be written."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): make room, or choose another folder") from error
    finally:
        part.unlink(missing_ok=True)


def load(run: Run, which: str | None = None, trust: bool = False) -> tuple[dict, Groups]:
    """(config with every reference replaced by its spec, {group: weights} of all groups), to sample and evaluate.

    UserError when a run that this one builds on has changed since.
    """
    config, frozen, hashes = resolve(run.config, trust)
    check_hashes(run.frozen, hashes, run.path)
    return config, run.all_weights(which) | frozen


def check_hashes(saved: Mapping[str, Mapping[str, str]], now: Mapping[str, str], path: pathlib.Path) -> None:
    """UserError when frozen weights are not those with which the run in `path` was trained."""
    for group, source in saved.items():
        if now.get(group) != source["hash"]:
            raise UserError(
                f'{path} was trained with "{group}" of {source.get("run") or source[FILE]} at {source["hash"]}, which is now '
                f"{now.get(group)}: restore that run, or train anew"
            )


def resolve(config: Mapping[str, Any], trust: bool = False) -> tuple[dict, Groups, dict[str, str]]:
    """(config, {group: frozen weights}, {group: hash}) without references in the objective, see `resolve_spec`."""
    objective, frozen, hashes = resolve_spec(config["objective"], "objective", trust)
    return {**config, "objective": objective}, frozen, hashes


def resolve_spec(spec: Mapping[str, Any], path: str, trust: bool = False) -> tuple[dict, Groups, dict[str, str]]:
    """(spec, {group: weights}, {group: hash}) without references; `path` is where it stands in the config.

    Each `<field> = dict(run=..., weights=...)` in it, also inside of its parts, becomes the spec of that field
    in that run, and the weights of the group `<field>`. A reference to a reference is followed. `weights_file` in a spec
    is taken out of it: its arrays are the weights of the group. UserError where a group would have two sources.
    """
    frozen, hashes, sources, specs = {}, {}, {}, {}
    for where, field, part in references(spec, path, path):
        first, given = sources.setdefault(field, (where, part))
        if given != part:
            raise UserError(f"{first} is {given}, and {where} is {part}: they share their weights, so give both the same")

    def resolved(path: str, field: str, spec: Any) -> Any:
        if _is_reference(spec):
            if field not in frozen:  # two parts may share a network
                specs[field], frozen[field], hashes[field] = _follow(path, field, spec, trust)
            return specs[field]
        if isinstance(spec, Mapping):
            if FILE in spec:
                frozen[field], hashes[field] = _read_weights(path, spec[FILE])
            return {k: resolved(f"{path}.{k}", k, v) for k, v in spec.items() if k != FILE}
        if isinstance(spec, (list, tuple)):
            return type(spec)(resolved(f"{path}[{i}]", field, v) for i, v in enumerate(spec))
        return spec

    return resolved(path, path, spec), frozen, hashes


def references(spec: Any, path: str = "objective", field: str = "objective") -> Iterator[tuple[str, str, Mapping]]:
    """(path in the config, field, {"run", ...} or {"weights_file"}) of all weights that come from elsewhere."""
    if _is_reference(spec):
        yield path, field, dict(spec)
    elif isinstance(spec, Mapping):
        if FILE in spec:
            yield path, field, {FILE: spec[FILE]}
        for k, v in spec.items():
            yield from references(v, f"{path}.{k}", k)
    elif isinstance(spec, (list, tuple)):
        for i, v in enumerate(spec):
            yield from references(v, f"{path}[{i}]", field)


def check_writable(folder: pathlib.Path, flag: str) -> None:
    """UserError that names `flag`, before anything slow, where files cannot be written to `folder`. Creates nothing."""
    there = next((p for p in (folder, *folder.absolute().parents) if p.exists()), folder)
    try:
        probe = there / f".write.{uuid.uuid4().hex}"  # in a container every process is number 1
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): choose another {flag}") from error


def make_folder(folder: pathlib.Path, flag: str) -> None:
    """Creates `folder`, with its parents; UserError as `check_writable`."""
    check_writable(folder, flag)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder} ({error.strerror}): choose another {flag}") from error


@contextlib.contextmanager
def locked(folder: pathlib.Path, doing: str = "trained", flag: str = "--workdir"):
    """Within, `folder` is this process's to write; UserError where another process has it. A lock of the operating
    system, which a process that dies gives back. `doing`, `flag`: words of the error.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    with open(folder / LOCK, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{folder} is being {doing} by another process ({file.read().strip()}): wait for it, stop it, or choose "
                f"another {flag}"
            ) from None
        except OSError:  # a file system without locks
            pass
        with contextlib.suppress(OSError):  # a full disk: nobody is told whose it is
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


def _read_weights(where: str, path: str) -> tuple[Params, str]:
    """The arrays of an .npz as nested parameters, and 12 hex digits of the file's content."""
    from flax.traverse_util import unflatten_dict

    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        without = f"train without it: set {where} to None in the config (published configs: perceptual=0)"
        if where.startswith("metrics"):
            without = "measure without it (published configs: leave out i3d, c3d or real)"
        tool = "reference_stats" if where.endswith(".real") else "convert_features"
        raise UserError(f"{where}.{FILE}: there is no file {path}; make it with tools/{tool}.py, or {without}")
    try:
        weights = unflatten_dict(read_npz(file), sep="/")
    except (ValueError, IndexError) as e:  # names such as a and a/b
        raise UserError(f"{where}.{FILE}: {path} is not a file of converted weights ({e})") from None
    return weights, hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def read_npz(file: pathlib.Path) -> dict[str, Any]:
    """The arrays of an .npz file; ValueError for one that is damaged, or none."""
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except MemoryError:
        raise
    except Exception as error:  # zip, zlib and the header's parser raise whatever comes up in a damaged file; a lone array is no archive
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _follow(where: str, field: str, spec: Mapping[str, Any], trust: bool) -> tuple[Any, Params, str]:
    """(spec, weights, hash) of what a reference names: `part`, a path such as "clip.text", or else the field itself.
    `fields` change the spec, in what leaves the weights alone, such as `dtype`.
    """
    if unknown := set(spec) - REFERENCE:
        raise UserError(f"{where} refers to a run and has unknown entries {sorted(unknown)}: it may have {', '.join(sorted(REFERENCE))}")
    try:
        run = open_run(spec["run"], trust)
    except UserError as e:
        how, text = "train it first (public weights: convert them, docs/diffusion.md)", str(e).rstrip("?")
        if "config" in spec:
            how = f"train it first (magvid train --config={spec['config']} --workdir={spec['run']})"
            if not pathlib.Path(spec["run"]).expanduser().exists():
                text = f"there is no folder {spec['run']}"  # one that is named like it is another run
        raise UserError(f"{where}.run: {text}: {how}, or say where it is by --config.{where}.run=FOLDER") from None
    group, *inner = (spec.get("part") or field).split(".")
    there = run.config["objective"].get(group)
    if there is None:
        raise UserError(f'run {run.path} has no "{group}": its objective has {", ".join(run.config["objective"])}')
    if _is_reference(there):
        if inner:
            there = {**there, "part": ".".join([there.get("part") or group, *inner])}
        there = {**there, "fields": {**there.get("fields", {}), **spec.get("fields", {})}}
        return _follow(where, group, there, trust)
    if run.step < run.config.get("steps", 0):
        log.warning('"%s" is of %s, which stopped at step %d of %d', field, run.path, run.step, run.config["steps"])
    weights, digest = run.read(group, spec.get("weights"))
    for i, name in enumerate(inner):
        if name not in there or name not in weights:
            at = ".".join([group, *inner[:i]])
            raise UserError(f'{where}.part: {at} of run {run.path} has no part "{name}": it has {", ".join(weights)}')
        there, weights = there[name], weights[name]
    return {**there, **spec.get("fields", {})}, weights, digest


def planned(spec: Any, load: Callable[[str], Mapping[str, Any]], path: str = "objective", field: str = "objective") -> Any:
    """`spec` with the specs of other runs in place of references to them; no weights are read. Where a run is not there: the reference's `spec`,
    or what its `config` makes ("configs/vq3d_ucf101.py:size=L", which `load` opens). UserError where it has neither.
    """
    if isinstance(spec, (list, tuple)):
        return type(spec)(planned(v, load, f"{path}[{i}]", field) for i, v in enumerate(spec))
    if not isinstance(spec, Mapping):
        return spec
    if not _is_reference(spec):
        return {k: planned(v, load, f"{path}.{k}", k) for k, v in spec.items() if k != FILE}
    group, *inner = (spec.get("part") or field).split(".")
    if (pathlib.Path(spec["run"]).expanduser() / CONFIG).is_file():
        there = open_run(spec["run"]).config["objective"][group]
    elif "spec" in spec:
        there, inner = spec["spec"], ()
    elif "config" in spec:
        there = load(spec["config"])["objective"][group]
    else:
        raise UserError(f"{path}.run: there is no run {spec['run']}, and the reference has neither `config` nor `spec` that says how it is made")
    there = planned(there, load, path, group)
    for name in inner:
        there = there[name]
    return {**there, **spec.get("fields", {})}


def check_initial(spec: Any, field: str) -> None:
    """UserError where `initial` cannot take this entry of `init`."""
    if not isinstance(spec, Mapping) or not isinstance(spec.get("run"), str):
        raise UserError(f'{field} is {json.dumps(spec)}: give {{"run": FOLDER}}, which may also have {", ".join(INITIAL[1:])}')
    if unknown := sorted(set(spec) - set(INITIAL)):
        raise UserError(f"{field} has unknown entries {unknown}{build.near(unknown[0], INITIAL)}: it may have {', '.join(INITIAL)}")


def initial(specs: list[Mapping[str, Any]], params: Groups, trust: bool = False) -> Groups:
    """`params` (shapes) with leaves from other runs, for `init = [dict(run, map, groups, weights, skip), ...]`.

    `map` = "module:function" turns (weights of a group there, shapes of the group here) into weights that fit. `groups`
    defaults to those that both have. `skip` lists regexes of names that may stay as initialised. Leaves that stay are
    still shapes in the result.
    """
    for i, spec in enumerate(specs):
        check_initial(spec, f"init[{i}]")
        try:
            run = open_run(spec["run"], trust)
        except UserError as e:
            raise UserError(
                f"init: {e}; train that run first, or begin without it (published configs: inflate=0, begin=0)"
            ) from None
        groups = spec.get("groups") or [g for g in run.groups if g in params]
        if not groups:
            raise UserError(
                f"init: run {run.path} has {run.groups}, this run trains {sorted(params)}: "
                "nothing in common, name `groups`"
            )
        for group, loaded in run.all_weights(spec.get("weights"), groups).items():
            if spec.get("map"):
                loaded = build.resolve(spec["map"])(loaded, params[group])
            params = {**params, group: merge(loaded, params[group], spec.get("skip") or ())}
    return params


def anchored(config: Mapping[str, Any], base: str | os.PathLike) -> dict:
    """`config` with the paths of other runs, of caches and of published tokenizers absolute; relative ones start at `base`."""
    return _map_runs(
        config, lambda path: os.path.normpath(pathlib.Path(base).absolute() / pathlib.Path(path).expanduser())
    )


def relative(config: Mapping[str, Any], base: str | os.PathLike) -> dict:
    """The reverse, as it is saved: folders of runs that belong together can be moved together."""
    return _map_runs(config, lambda path: os.path.relpath(path, base))


def _map_runs(spec: Any, f) -> Any:
    if isinstance(spec, Mapping):
        paths = {"run": "target" not in spec, "cache": "source" in spec, "folder": spec.get("target") == TOKENIZER, FILE: True}
        return {k: f(v) if isinstance(v, str) and paths.get(k) else _map_runs(v, f) for k, v in spec.items()}
    return [_map_runs(v, f) for v in spec] if isinstance(spec, (list, tuple)) else spec


def _is_reference(spec: Any) -> bool:
    return isinstance(spec, Mapping) and "run" in spec and "target" not in spec


def check_trust(spec: Any, folder: pathlib.Path) -> None:
    """UserError where a config names code outside of magvid: a config is a program."""
    if isinstance(spec, Mapping):
        for key in ("target", "factory", "map"):
            path = spec.get(key)
            if isinstance(path, str) and ":" in path and not path.startswith("magvid."):
                raise UserError(
                    f'the config of {folder} names "{path}", which is not part of magvid: give --trust if you trust it'
                )
        spec = list(spec.values())
    if isinstance(spec, list):
        for part in spec:
            check_trust(part, folder)


def _folders(path: pathlib.Path) -> list[str]:
    return [p.name for p in path.iterdir() if p.is_dir()] if path.is_dir() else []


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
