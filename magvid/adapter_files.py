"""What a run trained beside frozen networks, in one small file (.safetensors): saved alone, loaded onto the base, swapped, combined.

The file's metadata say which networks it belongs to, by the hashes of their weights, and from which run it comes.
"""

import json
import os
import pathlib
from typing import NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from magvid import grafts, runs
from magvid.types import Groups, UserError

FORMAT = "magvid.adapters/1"


class Adapters(NamedTuple):
    """`frozen`: {group: hash of its weights} of the networks beside which these groups were trained."""

    groups: Groups
    frozen: dict[str, str]
    run: str
    step: int


def export(run: runs.Run, out: str | os.PathLike, weights: str | None = None) -> int:
    """Writes all trained groups of a run, averaged where there is an average, to `out`; returns how many parameters they have.

    UserError for a run that took no network from elsewhere: its weights are no addition to anything.
    """
    from safetensors.numpy import save_file

    path = pathlib.Path(out).expanduser()
    if path.suffix != ".safetensors":
        raise UserError(f"--out={out} should end in .safetensors")
    if not run.frozen:
        raise UserError(f"{run.path} has no network that it took from elsewhere: what it trained is no addition to one")
    runs.check_writable(path.parent, "--out")
    flat = flatten_dict({group: run.weights(group, weights) for group in run.groups}, sep="/")
    arrays = {name: np.ascontiguousarray(x, np.float32) for name, x in flat.items()}
    about = dict(format=FORMAT, frozen={g: s["hash"] for g, s in run.frozen.items()}, run=run.path.name, step=run.step)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(arrays, part, {"magvid": json.dumps(about)})
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return sum(x.size for x in arrays.values())


def load(file: str | os.PathLike) -> Adapters:
    """UserError where `file` is not what `export` writes."""
    from safetensors import SafetensorError, safe_open

    path = pathlib.Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"there is no file {file}: `magvid export` writes the adapters of a run")
    try:
        with safe_open(path, "numpy") as stored:
            about = json.loads((stored.metadata() or {}).get("magvid", "{}"))
            if about.get("format") != FORMAT:
                raise UserError(f"{file} holds other weights than adapters of magvid: `magvid export` writes them")
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{file} cannot be read as adapters ({error}): export them again") from None
    return Adapters(unflatten_dict(arrays, sep="/"), about["frozen"], about["run"], about["step"])


def combine(text: str) -> tuple[Groups, dict[str, str]]:
    """Of "a.safetensors", or the weighted mean of several, "a.safetensors:3,b.safetensors:1": (groups, {frozen group: hash}).

    UserError for files of other networks or other forms.
    """
    files, weights = zip(*(_weighted(part.strip()) for part in text.split(",")), strict=True)
    found = [load(file) for file in files]
    for file, other in zip(files, found, strict=True):
        if other.frozen != found[0].frozen:
            raise UserError(f"{files[0]} and {file} were trained beside other networks: they cannot be combined")
    try:
        total = sum(weights)
        return grafts.average([f.groups for f in found], [w / total for w in weights]), found[0].frozen
    except ValueError as error:
        raise UserError(f"--adapters={text}: {error}") from None


def _weighted(part: str) -> tuple[str, float]:
    file, colon, weight = part.rpartition(":")
    if not colon or not weight.replace(".", "", 1).isdigit():
        return part, 1.0
    if not float(weight) > 0:
        raise UserError(f"--adapters: {part}: a weight is above 0")
    return file, float(weight)


def beside(run: runs.Run, text: str, trust: bool = False) -> tuple[dict, Groups]:
    """As `runs.load`, with the adapters of `combine(text)` in place of what the run trained. UserError where they were trained beside
    other weights than those that the run takes from elsewhere.
    """
    groups, frozen = combine(text)
    config, params, hashes = runs.resolve(run.config, trust)
    for group, value in frozen.items():
        if hashes.get(group) != value:
            here = f"here it is {hashes[group]}" if group in hashes else "here there is none"
            raise UserError(f'--adapters={text} were trained with "{group}" at {value}, and {here}: they belong to another network')
    return config, {**params, **groups}
