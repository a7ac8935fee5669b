"""What a run trained beside frozen networks, in one small file (.safetensors): saved alone, loaded onto the base, swapped, combined.

The file's metadata say which networks it belongs to, by the hashes of their weights, and from which run it comes.
"""

import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict, unflatten_dict

from magvid import grafts, run_files, runs
from magvid.types import Groups, UserError

FORMAT = "magvid.adapters/1"


class Adapters(NamedTuple):
    """`frozen`: {group: hash of its weights} of the networks beside which these groups were trained; `told`: settings of their conditions; `seed`:
    which random numbers they began with, None where a file does not say.
    """

    groups: Groups
    frozen: dict[str, str]
    run: str
    step: int
    told: dict[str, Any]
    seed: int | None


def told(config: Mapping[str, Any]) -> dict[str, Any]:
    """{"given", "grey", ...: value} of a config's conditioners, without networks, which the hashes tell apart, and sizes of clips."""
    specs = config["objective"].get("conditioners", ())
    plain = lambda value: isinstance(value, str | int | float | bool)
    return {k: v for spec in specs for k, v in spec.items() if plain(v) and k not in ("target", "frames")}


def export(run: runs.Run, out: str | os.PathLike, weights: str | None = None, dtype: str | None = None) -> int:
    """Writes all trained groups of a run, averaged where there is an average, to `out`; returns how many parameters they have. `dtype`: as `run_files.write`.

    UserError for a run that trained no adapters and no LoRA, or took no network from elsewhere: its weights are no addition to anything.
    """
    if not additions(run):
        raise UserError(f"{run.path} has no network that it took from elsewhere: what it trained is no addition to one")
    flat = flatten_dict(run.all_weights(weights), sep="/")
    about = dict(format=FORMAT, frozen={g: s["hash"] for g, s in run.frozen.items()}, run=run.path.name, step=run.step, told=told(run.config), seed=run.config["seed"])
    return run_files.write(out, {name: x.astype("float32") for name, x in flat.items()}, about, dtype)


def additions(run: runs.Run) -> bool:
    """Whether what a run trained is added to a network that it took from elsewhere."""
    return bool(run.frozen) and any(run.config["objective"].get(name) for name in ("adapters", "lora"))


def load(file: str | os.PathLike) -> Adapters:
    """UserError where `file` is not what `export` writes."""
    about, arrays = run_files.read(file)
    if about.get("format") != FORMAT:
        raise UserError(f"{file} holds other weights than adapters of magvid: `magvid export` writes them")
    return Adapters(unflatten_dict(arrays, sep="/"), about["frozen"], about["run"], about["step"], about.get("told", {}), about.get("seed"))


def combine(text: str) -> Adapters:
    """Of "a.safetensors", or the weighted mean of several, "a.safetensors:3,b.safetensors:1"; what else it says is of the first. Says where
    they did not begin with the same random numbers: a mean of weights then need not do what either does.

    UserError for files of other networks or other forms.
    """
    files, weights = zip(*(_weighted(part.strip()) for part in text.split(",")), strict=True)
    found = [load(file) for file in files]
    for file, other in zip(files, found, strict=True):
        if other.frozen != found[0].frozen:
            raise UserError(f"{files[0]} and {file} were trained beside other networks: they cannot be combined")
        if other.seed != found[0].seed:
            print(f"{files[0]} and {file} began with other random numbers (seed={found[0].seed} and {other.seed}): their mean may do neither's task")
    try:
        total = sum(weights)
        return found[0]._replace(groups=grafts.average([f.groups for f in found], [w / total for w in weights]))
    except ValueError as error:
        raise UserError(f"--adapters={text}: {error}") from None


def _weighted(part: str) -> tuple[str, float]:
    file, colon, weight = part.rpartition(":")
    if not part:
        raise UserError("--adapters: a name is empty: write FILE.safetensors, or several with weights, a.safetensors:2,b.safetensors:1")
    if not colon or not file.endswith(".safetensors"):
        return part, 1.0
    try:
        value = float(weight)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise UserError(f'--adapters: the weight of {file} is "{weight}": give a number above 0')
    return file, value


def beside(run: runs.Run, text: str, trust: bool = False) -> tuple[dict, Groups]:
    """As `runs.load`, with the adapters of `combine(text)` in place of what the run trained. UserError where they were trained beside
    other weights than those that the run takes from elsewhere. Says where they were trained on other conditions.
    """
    found = combine(text)
    here = told(run.config)
    if other := [f"{k}={v} (here {here[k]})" for k, v in found.told.items() if k in here and here[k] != v]:
        print(f"--adapters={text} were trained with {', '.join(other)}: what they make may be worse")
    config, params, hashes = runs.resolve(run.config, trust)
    for group, value in found.frozen.items():
        if hashes.get(group) != value:
            here = f"here it is {hashes[group]}" if group in hashes else "here there is none"
            raise UserError(f'--adapters={text} were trained with "{group}" at {value}, and {here}: they belong to another network')
    return config, {**params, **found.groups}
