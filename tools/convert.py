"""What the command lines of convert_unet.py, convert_vae.py and convert_clip.py share: a file of weights in the layout of
diffusers or transformers -> a folder that a config can name, and back.

The folder is a run without training: `objective.vae = dict(run="weights/sd-vae", weights="params")` takes the network and
its weights from it, as from any run. Its config.json says where they came from. Arrays are read, changed and written one
after the other: the memory needed is that of the largest few, whatever the file's size.
"""

import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from magvid import runs
from magvid.build import build
from magvid.checkpoints import ARRAYS, Checkpoints, Corrupt
from magvid.flags import Flag, Program, parse, program_help
from magvid.state import TrainState
from magvid.types import UserError
from tools import weights as files
from tools.rules import OPERATIONS, Rule, check, invert, rename_shapes, routes
from tools.weights import Stored, Weights, describe

Shapes = Mapping[str, tuple[int, ...]]

# What a text tower's words are made by, and how an image tower's pictures are prepared: small, and of no use apart.
BESIDE = (
    "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "preprocessor_config.json",
)  # fmt: skip
BATCH = 2**28  # bytes of arrays that are in memory at a time
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a network is found: `group` in our objectives, `folders` in a pipeline's folder, `prefixes` in one file of
    several networks; `beside`: folders of a pipeline whose files belong to it.
    """

    group: str
    folders: Sequence[str] = ()
    prefixes: Sequence[str] = ()
    beside: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Tool:
    """One kind of network: what its command line is given.

    `rules(preset)` lead from the published names to ours; `shapes(preset, module)` are {our name: shape}; `published(preset,
    {name: array})` gives older names their newer ones and leaves out what is no parameter; `configure(preset, spec, config)`
    takes over what a file's config.json says and shapes do not show, and raises ValueError for what the network cannot be.
    """

    name: str  # of the file
    what: str
    presets: Mapping[str, Mapping[str, Any]]  # {name: spec of the module}
    place: Callable[[str], Place]
    rules: Callable[[str], Sequence[Rule]]
    shapes: Callable[[str, Any], Shapes]
    published: Callable[[str, Mapping[str, Any]], dict[str, Any]] = lambda preset, arrays: dict(arrays)
    configure: Callable[[str, Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]] = lambda preset, spec, config: spec

    @property
    def program(self) -> Program:
        preset = next(iter(self.presets))
        return Program(
            f"python tools/{self.name}.py",
            f"Convert the weights of {self.what} to a folder that a config can name, or back.",
            [
                Flag("preset", "str", None, "NAME", f"one of {', '.join(self.presets)}; with --back, that of the folder"),
                Flag("weights", "str", None, "PATH", "file, .index.json or folder; with --back, the folder to read"),
                Flag("out", "str", None, "PATH", "the folder to write; with --back, FILE.safetensors"),
                Flag("dtype", "str", None, "|".join([*DTYPES, "keep"]), "of the numbers written; default: float32"),
                Flag("tokenizer", "str", None, "FOLDER", "files to copy beside a tower; default: those of its pipeline"),
                Flag("last", "bool", False, "", "with --back: the last weights of a trained run, not their average"),
                Flag("back", "bool", False, "", "from such a folder, or from a run that trained on (a LoRA: merged), to .safetensors"),
            ],
            [
                f"--preset={preset} --weights=downloads/model --out=weights/{preset}",
                f"--back --weights=weights/{preset} --out=model.safetensors",
            ],
        )


# There and back, without files --------------------------------------------------------------------------------------


def convert(found: Weights, shapes: Shapes, rules: Sequence[Rule], dtype: str = "float32") -> dict[str, Stored]:
    """Published names -> ours; `shapes` of ours. Nothing is read yet.

    Every name of `found` is used once and every name of `shapes` filled once; ValueError names, in the published names,
    what is missing, unknown or of a wrong shape.
    """
    check(found, rename_shapes(shapes, invert(rules)))
    return _reroute(found, shapes, rules, dtype)


def restore(ours: Weights, shapes: Shapes, rules: Sequence[Rule], dtype: str = "keep") -> dict[str, Stored]:
    """The inverse of `convert`; ValueError in our names."""
    check(ours, shapes)
    back = invert(rules)
    return _reroute(ours, rename_shapes(shapes, back), back, dtype)


def _reroute(found: Weights, shapes: Shapes, rules: Sequence[Rule], dtype: str) -> dict[str, Stored]:
    targets = routes(found, rules)
    return {
        name: _changed(source, found[source], shapes[name], operation, dtype)
        for name, (source, operation) in targets.items()
    }


def _changed(name: str, x: Stored, shape: tuple[int, ...], operation: str | None, dtype: str) -> Stored:
    if not np.issubdtype(x.dtype, np.floating) and x.dtype != ml_dtypes.bfloat16:
        raise ValueError(f"{name} has numbers of type {x.dtype}: weights are float32, float16 or bfloat16")
    kind = np.dtype(x.dtype if dtype == "keep" else DTYPES[dtype])

    def read() -> np.ndarray:
        array = np.asarray(x)
        if not np.isfinite(array).all():
            where = f"{x.place}: " if x.place else ""
            raise UserError(f"{where}{name} has values that are not finite: the file is damaged, or training diverged")
        return np.ascontiguousarray(OPERATIONS[operation](array) if operation else array, kind)

    return Stored(tuple(shape), kind, read)


def same(preset: str, config: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """ValueError for the first of the settings `wanted`, {key: the network's value}, that config.json has otherwise: those that
    the arrays do not show. What it leaves out, or has as null, is the library's default. A list has an entry for each level.
    """
    for key, own in wanted.items():
        found, own = config.get(key), list(own) if isinstance(own, tuple) else own
        length = max((len(x) for x in (found, own) if isinstance(x, list)), default=1)
        each = lambda x, length=length: x if isinstance(x, list) else [x] * length
        if found is not None and each(found) != each(own):
            raise ValueError(
                f"{key} is {json.dumps(found)}, where --preset={preset} has {json.dumps(own)}: the weights would give other "
                "numbers; choose the preset of this model, if there is one"
            )


# Files -> folder ----------------------------------------------------------------------------------------------------


def convert_file(
    tool: Tool, preset: str, path: str, out: str, *, dtype: str = "float32", tokenizer: str | None = None
) -> pathlib.Path:
    """Write the folder `out`. UserError in one sentence where the file does not fit: what it looks like, and which tool
    takes it.
    """
    spec, place = _spec(tool, preset), tool.place(preset)
    folder = pathlib.Path(out).expanduser().absolute()
    if (folder / runs.CONFIG).exists():
        raise UserError(f"{folder} holds a run already: choose another --out")
    source = files.open_weights(path, place.folders)
    shapes = tool.shapes(preset, build(spec))
    try:
        taken = tool.published(preset, _part(source.weights, place))
        ours = convert(taken, shapes, tool.rules(preset), dtype)
    except ValueError as error:
        raise UserError(f"{path}: {error}.{_hint(tool, preset, source.weights)}") from None
    try:
        spec = tool.configure(preset, spec, source.config)
    except ValueError as error:
        raise UserError(f"{source.config_file}: {error}") from None
    texts = _beside(place, source.files[0], pathlib.Path(path).expanduser(), tokenizer)
    runs.make_folder(folder / "checkpoints", "--out")
    hashes = [dict(name=file.name, sha256=files.sha256(file)) for file in source.files]
    origin = dict(tool=tool.name, preset=preset, dtype=dtype, files=hashes)
    save(folder, place.group, spec, ours, origin)
    for file in texts:
        (folder / place.beside[0]).mkdir(exist_ok=True)
        shutil.copyfile(file, folder / place.beside[0] / file.name)
    unused = "" if len(taken) == len(source.weights) else f" (of {len(source.weights)} in the file)"
    count = sum(x.size for x in ours.values())
    print(f"{out}: {place.group}, {len(ours)} arrays{unused}, {count:,} parameters")
    if place.beside:
        kept = f"{out}/{place.beside[0]}: {', '.join(f.name for f in texts)}"
        print(kept if texts else "no tokenizer was found beside the weights: copy its files with --tokenizer=FOLDER")
    return folder


def _spec(tool: Tool, preset: str) -> Mapping[str, Any]:
    if preset not in tool.presets:
        raise UserError(f"--preset={preset} is none of {', '.join(tool.presets)}")
    return tool.presets[preset]


def _part(found: Weights, place: Place) -> Weights:
    """Of several networks in a file, the one that is meant."""
    parts = files.parts(found)
    mine = [prefix for prefix in place.prefixes if prefix in parts]
    if not mine:
        return parts[""] if len(parts) == 1 and "" in parts else found
    if strangers := parts.get(""):
        raise ValueError(f"{len(strangers)} names begin with none of {', '.join(files.PREFIXES)}, such as {next(iter(strangers))}")
    return parts[mine[0]]


def _hint(tool: Tool, preset: str, found: Weights) -> str:
    """What the file is, unless it is what was asked for."""
    text = describe({name: x.shape for name, x in found.items()}, tool.name, list(tool.presets))
    return "" if f"tools/{tool.name}.py --preset={preset} takes" in text else f" {text}"


def _beside(place: Place, file: pathlib.Path, given: pathlib.Path, tokenizer: str | None) -> list[pathlib.Path]:
    """The files to copy: of the folder that is named, or else of the first of the likely ones that has any."""
    of = lambda folder: [folder / name for name in BESIDE if (folder / name).is_file()]
    if tokenizer:
        folder = pathlib.Path(tokenizer).expanduser()
        if not place.beside:
            raise UserError("--tokenizer is for towers of CLIP")
        if not of(folder):
            raise UserError(f"--tokenizer={tokenizer} has none of {', '.join(BESIDE)}")
        return of(folder)
    roots = [given, file.parent.parent, file.parent]
    likely = [root / name for root in roots for name in place.beside] + ([file.parent] if place.beside else [])
    return next((found for folder in likely if (found := of(folder))), [])


def save(folder: pathlib.Path, group: str, spec: Mapping[str, Any], arrays: Weights, origin: Mapping[str, Any]) -> None:
    """A run folder of one group at step 0, written array by array."""
    _stream()
    state = TrainState(np.int32(0), {group: unflatten_dict(dict(arrays), sep="/")}, {}, {}, {}, {}, jax.random.key(0))
    checkpoints = Checkpoints(folder / "checkpoints", write=True)
    checkpoints.save(0, state, {})
    checkpoints.wait()
    checkpoints.close()
    config = {"objective": {group: spec}, "origin": dict(origin)}
    runs.write_json(folder / runs.CONFIG, config)  # last: without it there is no run


def batches(arrays: Mapping[Any, Stored]) -> Iterator[list]:
    """The names in order, cut so that each list is of about BATCH bytes, or of one array."""
    batch, size = [], 0
    for name, x in arrays.items():
        if batch and size + x.nbytes > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(name)
        size += x.nbytes
    if batch:
        yield batch


def _stream() -> None:
    """Lets Orbax write a `Stored`, a batch of them at a time; of NumPy's arrays it would hold copies of all at once."""
    import orbax.checkpoint as ocp

    handlers = ocp.type_handlers
    if ARRAYS.has(Stored):
        return

    class Handler(handlers.NumpyHandler):
        async def serialize(self, values, infos, args=None):
            args = args or [handlers.SaveArgs()] * len(values)
            for batch in batches(dict(enumerate(values))):
                arrays = [np.asarray(values[i]) for i in batch]
                for future in await super().serialize(arrays, [infos[i] for i in batch], [args[i] for i in batch]):
                    future.result()
            return []

    ARRAYS.add(Stored, Handler(deepcopy_host_arrays=False), override=True, ignore_warnings=True)  # stored as NumPy's are


# Folder -> file -----------------------------------------------------------------------------------------------------


def convert_back(
    tool: Tool, path: str, out: str, *, preset: str | None = None, dtype: str = "keep", last: bool = False
) -> pathlib.Path:
    """Write the .safetensors file `out` with the weights of a converted folder, or of a run that trained such a network; of a
    run that trained a LoRA, its base with the LoRA merged in.
    """
    target = pathlib.Path(out).expanduser()
    if target.suffix != ".safetensors":
        raise UserError(f"--out={out} should end in .safetensors")
    if target.exists():
        raise UserError(f"{out} exists already: choose another --out")
    run = runs.open_run(path)
    preset = _preset(tool, run, preset)
    group = tool.place(preset).group
    spec, found = _merged(run, group, last) if group == "network" and "lora" in run.groups else _trained(tool, run, group, last)
    _check_kind(tool, preset, spec, f"the {group} of {run.path}")
    try:
        published = restore(found, tool.shapes(preset, build(spec)), tool.rules(preset), dtype)
    except ValueError as error:
        raise UserError(f"{run.path} and its config: {error}") from None
    runs.make_folder(target.absolute().parent, "--out")
    files.write_safetensors(target, published, {"converted_by": f"magvid tools/{tool.name}.py --preset={preset}"})
    print(f"{out}: {len(published)} arrays, {sum(x.size for x in published.values()):,} parameters")
    return target


def _preset(tool: Tool, run: runs.Run, preset: str | None) -> str:
    """Of a converted folder its own; of a trained run the one that is given."""
    origin = run.config.get("origin", {})
    own = origin.get("preset")
    if origin.get("tool", tool.name) != tool.name:
        raise UserError(f"{run.path} was written by tools/{origin['tool']}.py --preset={own}: read it with that tool")
    if preset is None and own is None:
        raise UserError(f"{run.path} does not say which preset it is of: give --preset=NAME, one of {', '.join(tool.presets)}")
    spec = _spec(tool, preset or own)
    if preset and own and tool.presets.get(own) != spec:
        raise UserError(f"--preset={preset}: {run.path} was converted with --preset={own}; leave the flag out")
    return preset or own


def _check_kind(tool: Tool, preset: str, spec: Mapping[str, Any], what: str) -> None:
    """UserError where the layers of a network, and the conditions that they read, are not the preset's. Its sizes, which are
    compared array by array, the type it computes in and its activations may be others.
    """

    def names(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
        if isinstance(value, Mapping):
            for key in value.keys() - {"dtype", "activation"}:
                yield from names(value[key], f"{path}.{key}" if path else key)
        elif isinstance(value, str):
            yield path, value
        elif isinstance(value, (list, tuple)) and value and all(isinstance(v, str) for v in value):
            yield path, ", ".join(value)

    own = dict(names(spec))
    differs = lambda preset: {k: v for k, v in names(tool.presets[preset]) if own.get(k, v) != v}
    if not (found := differs(preset)):
        return
    key, value = min(found.items())
    fits = [name for name in tool.presets if not differs(name)]
    advice = f"give --preset={' or '.join(fits)}" if fits else f"it is of none of {', '.join(tool.presets)}"
    raise UserError(f"--preset={preset} has {key} {value}, and {what} has {own[key]}: {advice}")


def _trained(tool: Tool, run: runs.Run, group: str, last: bool) -> tuple[Mapping[str, Any], Weights]:
    """(spec, weights) of what a run has trained, or holds from another file."""
    spec = _find(run.config["objective"], group)
    if group not in run.groups:
        took = isinstance(spec, Mapping) and "run" in spec
        whose = f'took its "{group}" from {spec["run"]} as it is: give that' if took else f'has no "{group}"'
        where = "" if took else f", which tools/{tool.name}.py --back writes: give a run that trained {tool.what}"
        raise UserError(f"run {run.path} has trained {', '.join(run.groups) or 'nothing'}, and {whose}{where}")
    return spec, _of_run(run, group, last)


def _find(spec: Any, group: str) -> Any:
    """The spec of a group, which may be a part of a conditioner; None where there is none."""
    if isinstance(spec, Mapping) and group in spec:
        return spec[group]
    parts = spec.values() if isinstance(spec, Mapping) else spec if isinstance(spec, (list, tuple)) else ()
    return next((found for part in parts if (found := _find(part, group)) is not None), None)


def _merged(run: runs.Run, group: str, last: bool) -> tuple[Mapping[str, Any], Weights]:
    """(spec, weights) of the network that a LoRA was trained on, the LoRA merged in. All of it is in memory, as to sample."""
    objective = run.config["objective"]
    which = "params" if last else None
    resolved, frozen, hashes = runs.resolve({"objective": {group: objective[group]}})
    runs.check_hashes({name: run.frozen[name] for name in hashes}, hashes, run.path)
    trained = run.all_weights(which, ["lora", *([] if group in frozen else [group])])
    merged = build(objective["lora"]).merge(frozen[group] if group in frozen else trained[group], trained["lora"])
    arrays = {name: np.asarray(x) for name, x in flatten_dict(merged, sep="/").items()}
    return resolved["objective"][group], {n: dataclasses.replace(Stored.of(x), place=run.path) for n, x in arrays.items()}


def _of_run(run: runs.Run, group: str, last: bool) -> dict[str, Stored]:
    """Of the averages where there are any. A batch of arrays is read when one of it is asked for, and kept until another
    one is: ask for them in order.
    """
    step, places, found, held = run.step, {}, {}, {}
    leaves = run.checkpoints.meta(step)["leaves"]
    for item in ("params",) if last else ("params", "ema"):
        start = f"{item}/{group}/"
        places |= {leaf.removeprefix(start): leaf for leaf in leaves if leaf.startswith(start)}

    def read(leaf: str, batch: Sequence[str]) -> np.ndarray:
        if leaf not in held:
            held.clear()
            for item in {name.partition("/")[0] for name in batch}:
                names = [name.removeprefix(f"{item}/") for name in batch if name.startswith(f"{item}/")]
                try:
                    arrays = run.checkpoints.some(step, item, names)
                except Corrupt as error:
                    raise UserError(f"step {step} in {run.checkpoints.folder} is damaged ({error}): move it away, and the one before it is taken") from None
                held.update({f"{item}/{name}": x for name, x in arrays.items()})
        return held[leaf]

    for name, leaf in places.items():
        shape, dtype, _ = leaves[leaf]
        found[name] = Stored(tuple(shape), np.dtype(DTYPES.get(dtype, dtype)), lambda: None, run.path)
    for batch in batches(found):
        of_batch = [places[name] for name in batch]
        for name in batch:
            found[name] = dataclasses.replace(found[name], read=functools.partial(read, places[name], of_batch))
    return found


# Command line -------------------------------------------------------------------------------------------------------


def main(tool: Tool, argv: list[str]) -> None:
    program = tool.program
    if {"--help", "-h"} & set(argv):
        print(program_help(program))
        return
    back = parse(program, argv, "").back
    flags = parse(program, argv, "weights out" if back else "preset weights out")
    dtype = flags.dtype or ("keep" if back else "float32")
    if dtype not in (*DTYPES, "keep"):
        raise UserError(f"--dtype={dtype} is none of {', '.join([*DTYPES, 'keep'])}")
    if unused := [f"--{name}" for name in (("tokenizer",) if back else ("last",)) if getattr(flags, name)]:
        raise UserError(f"{unused[0]} is not used {'with' if back else 'without'} --back")
    if back:
        convert_back(tool, flags.weights, flags.out, preset=flags.preset, dtype=dtype, last=flags.last)
    else:
        convert_file(tool, flags.preset, flags.weights, flags.out, dtype=dtype, tokenizer=flags.tokenizer)
