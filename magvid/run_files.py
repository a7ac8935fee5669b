"""A run as one file (.safetensors), and such a file as a run: its trained weights, its config, and how its clips are read. To sample, to evaluate,
to build on and to begin with; the optimiser stays behind.
"""

import json
import os
import pathlib
import shutil
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from magvid import runs
from magvid.checkpoints import Checkpoints
from magvid.state import TrainState
from magvid.types import UserError

FORMAT = "magvid.run/1"
NAMED, CHECKSUM = "magvid", "magvid.crc32"  # entries of the file's metadata: what it says of itself, and that text's own checksum
ROUNDED = "float16"


def export(run: runs.Run, out: str | os.PathLike, weights: str | None = None, dtype: str | None = None) -> int:
    """Writes all trained groups to `out`; returns how many parameters they have. `weights`: "ema" or "params", these alone; by default both where both are
    there, bit for bit, so that runs that build on this one find the same in what is imported. `dtype`: as `write`.
    """
    def both(step: int) -> dict[str, np.ndarray]:
        leaves, found = run.checkpoints.meta(step)["leaves"], {}
        for item in ("params", "ema"):
            names = [n.removeprefix(f"{item}/") for n in leaves if n.startswith(f"{item}/")]
            found |= {f"{item}/{n}": x for n, x in run.checkpoints.some(step, item, names).items()} if names else {}
        return found

    flat = run.checkpoints.newest(both) if weights is None else flatten_dict({"params": run.all_weights(weights)}, sep="/")
    about = dict(format=FORMAT, config=runs.relative(run.config, run.path), step=run.step, frozen=run.frozen, weights=weights)
    if run.trained_clip is not None:
        about["data"] = runs.read_json(run.path / runs.DATA)
    write(out, flat, about, dtype)
    return sum(x.size for name, x in flat.items() if name.startswith("params/"))


def write(out: str | os.PathLike, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any], dtype: str | None = None) -> int:
    """Under its name only when it is complete; returns how many numbers. `dtype`: None keeps arrays as they are; of "float16" those in float32 are rounded
    to it, and in float32 again when they are read. UserError where it cannot be written.
    """
    from safetensors.numpy import save_file

    path = pathlib.Path(out).expanduser()
    if path.suffix != ".safetensors":
        raise UserError(f"--out={out} should end in .safetensors")
    runs.check_writable(path.parent, "--out")
    if dtype not in (None, ROUNDED):
        raise UserError(f"--dtype={dtype}: {ROUNDED}, or leave it out for arrays as they are")
    if dtype:
        with np.errstate(over="ignore"):  # looked at next
            rounded = {name: np.asarray(x, ROUNDED) for name, x in arrays.items() if x.dtype == np.float32}
        if large := next((name for name, x in rounded.items() if not np.isfinite(x).all()), None):
            raise UserError(f"--dtype={dtype}: {large} has numbers that it cannot hold; leave it out")
        arrays, about = {**arrays, **rounded}, {**about, ROUNDED: sorted(rounded)}
    arrays = {name: np.asarray(x, order="C") for name, x in arrays.items()}  # np.ascontiguousarray makes a scalar a vector
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sums = {name: zlib.crc32(x.tobytes()) for name, x in arrays.items()}
        told = json.dumps({**about, "checksums": sums})
        part.touch()
        mode = part.stat().st_mode  # as the user's files are; safetensors' own is its owner's alone
        save_file(arrays, part, {NAMED: told, CHECKSUM: str(zlib.crc32(told.encode()))})
        part.chmod(mode)
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}): make room, or give another --out") from error
    finally:
        part.unlink(missing_ok=True)
    return sum(x.size for x in arrays.values())


def read(file: str | os.PathLike) -> tuple[dict, dict[str, np.ndarray]]:
    """(what the file says of itself, its arrays by name). UserError where magvid has not written it, or an array is not what it was."""
    from safetensors import SafetensorError, safe_open

    path = pathlib.Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"there is no file {file}: `magvid export` writes one from a run")
    try:
        with safe_open(path, "numpy") as stored:
            metadata = stored.metadata() or {}
            about = json.loads(told := metadata.get(NAMED, "{}"))
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}): export it again") from None
    sums, own = about.pop("checksums", {}), str(zlib.crc32(told.encode()))
    wrong = ["its description"] * (metadata.get(CHECKSUM, own) != own)
    wrong += [name for name, x in arrays.items() if sums and zlib.crc32(x.tobytes()) != sums.get(name)]
    if wrong or (lost := sorted(set(sums) - set(arrays))):
        what = f"the checksum of {wrong[0]} is wrong" if wrong else f"it lacks {lost[0]}"
        raise UserError(f"{file} is damaged: {what}; copy or export it again")
    return about, arrays | {name: arrays[name].astype(np.float32) for name in about.pop(ROUNDED, ())}


def load(file: str | os.PathLike, out: str | os.PathLike, trust: bool = False) -> list[str]:
    """Makes the run folder `out`, with one checkpoint, of a file that `export` wrote; returns what there is to say, in lines. UserError where `out` has something in it."""
    about, arrays = read(file)
    if about.get("format") != FORMAT:
        what = "adapters, which `--adapters` of predict takes" if "adapters" in str(about.get("format")) else "no run"
        raise UserError(f"{file} holds {what}: `magvid export` writes a run that took no adapters")
    folder = pathlib.Path(out).expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out={out} is there already, and not empty: give a new folder")
    config = runs.anchored(about["config"], folder)
    if not trust:
        runs.check_trust(config, folder)
    part = folder.with_name(f".{folder.name}.part")  # what is interrupted leaves nothing under its name
    shutil.rmtree(part, ignore_errors=True)
    runs.make_folder(part, "--out")
    trees = unflatten_dict(arrays, sep="/")
    try:
        _fill(part, about, trees)
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    said = [f"{out}: {', '.join(sorted(trees['params']))} of step {about['step']}"]
    for path, _, ref in runs.references(config["objective"]):
        place = pathlib.Path(ref.get("run") or ref[runs.FILE])
        if not place.exists():
            said.append(f"{path} is to be at {place}: put it there, or say where it is by --config.{path}.{'run' if 'run' in ref else runs.FILE}=PATH")
    return said


def _fill(folder: pathlib.Path, about: Mapping[str, Any], trees: Mapping[str, Any]) -> None:
    # a file of the averages alone: who asks the run for its averages is given them
    averages = trees["params"] if about.get("weights") == "ema" else trees.get("ema", {})
    state = TrainState(np.int32(about["step"]), trees["params"], {}, {}, averages, {}, jax.random.key(0))
    checkpoints = Checkpoints(folder / "checkpoints", write=True)
    checkpoints.save(about["step"], state, {}, about["frozen"])
    checkpoints.wait()
    checkpoints.close()
    if "data" in about:
        runs.write_json(folder / runs.DATA, about["data"])
    runs.write_json(folder / runs.CONFIG, about["config"])
