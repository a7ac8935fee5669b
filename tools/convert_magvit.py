"""Checkpoints of the official MAGVIT and MaskGIT code (flax msgpack) <-> run folders, there and back.

    python tools/convert_magvit.py --config=configs/vq3d_ucf101.py:size=B,official=1 \
        --checkpoint=ucf_3d_base/checkpoint_37000 --workdir=runs/vq3d_ucf101-B
    python tools/convert_magvit.py --config=configs/commit_ucf101.py:size=B,official=1 \
        --checkpoint=ucf_gvt_base_cg/checkpoint_74000 --workdir=runs/commit_ucf101-B
    magvid sample --run=runs/commit_ucf101-B --label=3
    python tools/convert_magvit.py --back --workdir=runs/commit_ucf101-B --checkpoint=checkpoint_0

MaskGIT's public checkpoints (here of 256x256 images; 512: `vqgan_imagenet.py:size=512` and so on):

    python tools/convert_magvit.py --format=maskgit --config=configs/vqgan_imagenet.py \
        --checkpoint=tokenizer_imagenet256_checkpoint --workdir=runs/vqgan_imagenet-256
    python tools/convert_magvit.py --format=maskgit --config=configs/maskgit_imagenet.py \
        --checkpoint=maskgit_imagenet256_checkpoint --workdir=runs/maskgit_imagenet-256
    magvid sample --run=runs/maskgit_imagenet-256 --label=90

The run is one of `magvid train` but for the state of its optimiser, which is not converted: to train on, begin another
run with it (`init=runs/commit_ucf101-B` in the config's argument).
"""

import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import numpy as np
from flax import serialization
from flax.traverse_util import unflatten_dict

from magvid import job, runs
from magvid.build import build
from magvid.checkpoints import Checkpoints, merge
from magvid.flags import Flag, Program, guarded, leave, load_config, parse, program_help
from magvid.runs import ClipFormat
from magvid.state import TrainState
from magvid.types import UserError
from tools.official import FORMATS, SAME, Flat, describe, entry, flat, read_state, unreplicate
from tools.rules import Rule, check, invert, rename

PROGRAM = Program(
    "python tools/convert_magvit.py",
    "Convert a checkpoint of the official MAGVIT or MaskGIT code to a run folder, or back.",
    [
        Flag("config", "str", None, "FILE.py[:ARG]", "the config whose model the weights are of; with --back, the run's"),
        Flag("checkpoint", "str", None, "FILE", "official checkpoint; with --back, where to write one"),
        Flag("workdir", "str", None, "FOLDER", "the run folder to write; with --back, to read"),
        Flag("format", "str", "magvit", "|".join(FORMATS), "whose code the checkpoint is of"),
        Flag("tree", "str", None, "A/B", "where the file has the weights; default: where that code puts them"),
        Flag("classes", "str", None, "FILE", "names of the classes in order, one a line, for --label; default: numbers"),
        Flag("back", "bool", False, "", "from a run folder to an official checkpoint"),
    ],
    [
        "--config=configs/vq3d_ucf101.py:size=B,official=1 --checkpoint=checkpoint_37000 --workdir=runs/vq3d_ucf101-B",
        "--format=maskgit --config=configs/vqgan_imagenet.py --checkpoint=tokenizer_imagenet256_checkpoint "
        "--workdir=runs/vqgan_imagenet-256",
        "--back --workdir=runs/vq3d_ucf101-B --checkpoint=checkpoint_0",
    ],
    "--config.objective.tokenizer.run=runs/mine",
)

OPTIONAL = {"discriminator"}  # what a file may lack


# Names --------------------------------------------------------------------------------------------------------------


def rules_of(format: str, group: str, spec: Mapping[str, Any]) -> list[Rule]:
    """Official names -> those of the module that `spec` describes."""
    return FORMATS[format].rules.get((group, spec["target"]), SAME)


def to_ours(official: Flat, shapes: Mapping[str, tuple[int, ...]], rules: list[Rule]) -> Flat:
    """Official names and arrays -> ours; `shapes` of our parameters by our names. ValueError names, in the official
    names, what is missing, unknown or of a wrong shape.
    """
    check(official, official_shapes(shapes, rules))
    return rename(official, rules)


def to_official(ours: Flat, shapes: Mapping[str, tuple[int, ...]], rules: list[Rule]) -> Flat:
    """The reverse; ValueError in our names."""
    check(ours, shapes)
    return rename(ours, invert(rules))


def official_shapes(shapes: Mapping[str, tuple[int, ...]], rules: list[Rule]) -> dict[str, tuple[int, ...]]:
    """Our shapes by the official names; no array is allocated."""
    blank = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    return {name: x.shape for name, x in rename(blank, invert(rules)).items()}


# Models -------------------------------------------------------------------------------------------------------------


def example(config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A black training clip of the config, as a batch of one; no data is read."""
    section = config["data"]["train"]
    source = section["source"]
    while "height" not in source and "source" in source:  # inside of Views
        source = source["source"]
    source = {"frames": 1, **source}  # sources of images do not say it
    size = [source.get(name) for name in ("frames", "height", "width")]
    if None in size:
        raise UserError("the config's data.train.source does not say height and width of a clip: set them")
    record = {"video": np.zeros((*size, 3), np.uint8), "index": 0, "label": np.int32(0)}
    for transform in build(tuple(section.get("transforms", ()))):
        record = transform(record, np.random.default_rng(0))
    return {k: np.asarray(v)[None] for k, v in record.items() if k in ("video", "label", "task", "ratio")}


def model(config: Mapping[str, Any]) -> tuple[dict[str, dict[str, tuple[int, ...]]], dict[str, dict[str, str]]]:
    """({group: {name: shape}}, {frozen group: {"run", "weights", "hash"}}) of a config. UserError where a run that it
    refers to is missing or does not fit.
    """
    resolved, frozen, hashes = runs.resolve(config)
    trees = jax.eval_shape(build(resolved["objective"]).init, jax.random.key(0), example(config))
    for group, weights in frozen.items():
        merge(weights, trees[group])
    origin = lambda group: {k: v for k, v in config["objective"][group].items() if k in ("run", "weights", runs.FILE)}
    return {g: shapes(tree) for g, tree in trees.items()}, {g: origin(g) | {"hash": h} for g, h in hashes.items()}


def shapes(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: x.shape for name, x in flat(tree).items()}


def without(config: dict, groups: set[str]) -> dict:
    """The config of a run that has no such groups."""
    drop = lambda part: {k: v for k, v in part.items() if k not in groups}
    averaged = [g for g in config["ema_groups"] if g not in groups]
    return config | {"objective": drop(config["objective"]), "optim": drop(config["optim"]), "ema_groups": averaged}


# There --------------------------------------------------------------------------------------------------------------


def convert(config: Mapping[str, Any], checkpoint: str, workdir: str, *, format="magvit", tree=None, classes=None) -> None:
    """Write the run folder `workdir`: the groups that `config` trains, from an official checkpoint.

    A discriminator that the file does not have is left out of the run, as is the perceptual network, which only
    training needs. UserError or ValueError where the file does not fit, in one sentence.
    """
    folder = pathlib.Path(workdir).expanduser().absolute()
    if (folder / runs.CONFIG).exists():
        raise UserError(f"{folder} holds a run already: choose another --workdir")
    config = without(runs.anchored(job.check_config(config), os.getcwd()), {"perceptual"}) | {"init": []}
    if strangers := set(config["optim"]) - set(FORMATS[format].places) - OPTIONAL:
        raise UserError(f"the config trains {', '.join(sorted(strangers))}, which --format={format} does not have")
    path = pathlib.Path(checkpoint).expanduser()
    state = read_state(path)
    try:
        found = {g: _entries(state, format, g, None if g in OPTIONAL else tree) for g in config["optim"]}
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    for group in set(found) - OPTIONAL:
        if not found[group]:
            where = tree or FORMATS[format].places[group][0]
            raise UserError(f"{path} has no {where}, where --format={format} keeps a {group}. {describe(state)}")
    config = without(config, {g for g in OPTIONAL if not found.get(g)})
    (expected, sources), clip = model(config), example(config)["video"].shape[1:]
    source, names = config["data"]["train"]["source"], _class_names(classes, config)
    clip = ClipFormat(*clip[:3], stride=source.get("stride", 1), fps=source.get("fps"), classes=names)
    params, averages = {}, {}
    for group in config["optim"]:
        rules = rules_of(format, group, config["objective"][group])
        for kind, into in (("params", params), ("ema", averages)):
            if kind in found[group]:
                into[group] = _checked(path, state, found[group][kind], expected[group], rules)
    step = int(np.ravel(state.get("global_step", state.get("step", 0)))[0])
    _write(folder, config, clip, params, averages, step, sources)
    numbers = sum(a.size for tree in params.values() for a in tree.values())
    kept = ", ".join(f"{g} (and its average)" if g in averages else g for g in params)
    print(f"{workdir}: {kept}; step {step}; {numbers:,} parameters")


def _entries(state: Mapping[str, Any], format: str, group: str, tree: str | None) -> dict[str, Flat]:
    """{"params": arrays, "ema": averaged arrays}, as far as the file has them; one of both alone is "params"."""
    places = (tree,) if tree else FORMATS[format].places.get(group, ())
    found = [arrays for place in places if (arrays := entry(state, place)) is not None]
    return dict(zip(("params", "ema"), found))


def _checked(path: pathlib.Path, state, arrays: Flat, expected: Mapping[str, tuple[int, ...]], rules: list[Rule]) -> Flat:
    try:
        arrays = unreplicate(arrays, official_shapes(expected, rules))
        ours = to_ours(arrays, expected, rules)
    except ValueError as error:
        raise UserError(f"{path}: {error}. {describe(state)}") from None
    if bad := [name for name, a in arrays.items() if not np.isfinite(a).all()]:
        raise UserError(f"{path}: {bad[0]} is not finite, and {len(bad) - 1} more: it is damaged, or training diverged")
    return {name: np.ascontiguousarray(a, np.float32) for name, a in ours.items()}


def _class_names(file: str | None, config: Mapping[str, Any]) -> tuple[str, ...]:
    if file is None:
        return ()
    names = tuple(pathlib.Path(file).expanduser().read_text("utf-8").splitlines())
    count = config["objective"].get("vocab", {}).get("classes", len(names))
    if len(names) != count:
        raise UserError(f"--classes={file} has {len(names)} lines, and the config {count} classes: give one name a line")
    return names


def _write(folder: pathlib.Path, config, clip: ClipFormat, params, averages, step: int, sources) -> None:
    runs.make_folder(folder / "checkpoints", "--workdir")
    nest = lambda groups: {g: unflatten_dict(dict(arrays), sep="/") for g, arrays in groups.items()}
    key = jax.random.key(config["seed"])
    state = TrainState(np.int32(step), nest(params), {}, {}, nest(averages), {}, key)
    checkpoints = Checkpoints(folder / "checkpoints", write=True)
    checkpoints.save(step, state, {}, sources)
    checkpoints.wait()
    checkpoints.close()
    clip.write(folder / runs.DATA)
    runs.write_json(folder / runs.CONFIG, runs.relative(config, folder))  # last: without it there is no run


# And back -----------------------------------------------------------------------------------------------------------


def convert_back(workdir: str, checkpoint: str, *, format: str = "magvit") -> None:
    """Write an official checkpoint with the weights of a run folder: its averages too where that code keeps any, and
    in the place of the weights where it does not."""
    run, path = runs.open_run(workdir), pathlib.Path(checkpoint).expanduser()
    if path.exists():
        raise UserError(f"{path} exists already: choose another --checkpoint")
    expected, _ = model(run.config)
    groups = [g for g in run.groups if g in FORMATS[format].places]
    if not groups:
        raise UserError(f"run {run.path} has {', '.join(run.groups)}: none of them is part of --format={format}")

    def official(step: int) -> dict[str, dict[str, np.ndarray]]:
        """{place in the checkpoint: its arrays} of one step."""
        leaves, found = run.checkpoints.meta(step)["leaves"], {}
        for group in groups:
            rules = rules_of(format, group, run.config["objective"][group])
            places = FORMATS[format].places[group]
            averaged = any(name.startswith(f"ema/{group}/") for name in leaves)
            kinds = ("params", "ema") if averaged and len(places) > 1 else (None,)
            for place, kind in zip(places, kinds):
                try:
                    found[place] = to_official(flat(run.read_at(step, group, kind)[0]), expected[group], rules)
                except ValueError as error:
                    raise UserError(f"{run.path} and its config: {error}") from None
        return found

    found = run.checkpoints.newest(official)
    state = {place: unflatten_dict(arrays, sep="/") for place, arrays in found.items()}
    count = sum(x.size for arrays in found.values() for x in arrays.values())
    if format == "magvit":
        state["global_step"] = np.int32(run.step)
    runs.make_folder(path.absolute().parent, "--checkpoint")
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(serialization.msgpack_serialize(state))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    print(f"{path}: {', '.join(state)}; {count:,} parameters")


def main(argv: list[str]) -> None:
    if {"--help", "-h"} & set(argv):
        print(program_help(PROGRAM))
        return
    back = parse(PROGRAM, argv, "").back
    flags = parse(PROGRAM, argv, "checkpoint workdir" if back else "config checkpoint workdir")
    if flags.format not in FORMATS:
        raise UserError(f"--format={flags.format} is none of {', '.join(FORMATS)}")
    if back:
        if unused := [f"--{n}" for n in ("config", "tree", "classes") if getattr(flags, n)]:
            raise UserError(f"{', '.join(unused)} is not used with --back: the run folder says it")
        convert_back(flags.workdir, flags.checkpoint, format=flags.format)
        return
    config = load_config(flags.config)
    config = parse(PROGRAM, argv, config=config).config.to_dict()
    options = dict(format=flags.format, tree=flags.tree, classes=flags.classes)
    convert(config, flags.checkpoint, flags.workdir, **options)


if __name__ == "__main__":
    leave(guarded("convert_magvit", sys.argv[1:], main))
