"""What the scripts that chain training, evaluation and a report share: stages, kept evaluations, versions, pages."""

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from magvid import runs
from magvid.curves import read_curves
from magvid.evaluate import Evaluation, Example, evaluate_run
from magvid.report import Number, Report

ROOT = pathlib.Path(__file__).resolve().parent.parent


def kept_evaluation(
    folder: pathlib.Path, run: runs.Run, clips: int, best_of: Mapping[str, int], batch: int
) -> Evaluation:
    """Of `run`, from `folder` where it was made before, so that a second call is quick."""
    wanted = dict(hash=run.hash, step=run.step, asked_clips=clips, source=run.config["data"]["eval"]["source"])
    if (folder / "evaluation.json").exists():
        numbers = json.loads((folder / "evaluation.json").read_text())
        if all(numbers.get(k) == v for k, v in wanted.items()):
            with np.load(folder / "examples.npz", allow_pickle=False) as arrays:
                return Evaluation(numbers, unpack(arrays))
    found = evaluate_run(run, clips=clips, best_of=best_of, batch=batch, on_progress=progress)
    numbers = found.numbers | wanted
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / "examples.npz", **pack(found.examples))
    write_json(folder / "evaluation.json", numbers)
    return Evaluation(numbers, found.examples)


def pack(examples: dict[str, list[Example]]) -> dict[str, np.ndarray]:
    numbered = {f"{task}/{i}": e for task, rows in examples.items() for i, e in enumerate(rows)}
    return {f"{n}/{k}": np.asarray(v) for n, e in numbered.items() for k, v in e._asdict().items() if v is not None}


def unpack(arrays) -> dict[str, list[Example]]:
    found: dict[str, dict[int, dict]] = {}
    for name, value in arrays.items():
        task, i, field = name.split("/")
        row = found.setdefault(task, {}).setdefault(int(i), {"condition": None})
        row[field] = value if value.ndim else value.item()
    return {task: [Example(**rows[i]) for i in sorted(rows)] for task, rows in found.items()}


def progress(done: int, total: int, task: str) -> None:
    if done % 50 == 0 or done == total:
        print(f"evaluate: {done} of {total} batches ({task})", flush=True)


def write_json(path: pathlib.Path, value) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)


class Stages:
    """Seconds per stage; those of an interrupted run are kept and added to."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.seconds = json.loads(path.read_text()) if path.exists() else {}

    def run(self, name: str, f, *args, **options):
        start = time.monotonic()
        try:
            return f(*args, **options)
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0) + time.monotonic() - start, 1)
            write_json(self.path, self.seconds)


def versions() -> dict[str, str]:
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    device = jax.devices()[0]
    names = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    packages = {name: importlib.metadata.version(name) for name in names}
    machine = f"{len(jax.devices())} x {device.device_kind}, {os.cpu_count()} CPU cores"
    return {
        "commit": git.stdout.strip() or "unknown",
        "python": platform.python_version(),
        **packages,
        "machine": machine,
    }


def use_cores() -> None:
    """A CPU device for each of up to four cores: on two, small batches train 1.35 times as fast as on one device."""
    jax.config.update("jax_num_cpu_devices", max(n for n in (1, 2, 4) if n <= (os.cpu_count() or 1)))


# Pages --------------------------------------------------------------------------------------------------------------


def plural(n: int, one: str, many: str | None = None) -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def interval(values: dict, name: str, target=None, percent: bool = False, **style) -> Number | None:
    """A metric with the bounds it came with; None where it was not measured."""
    if values.get(name) is None:
        return None
    scale = 100 if percent else 1
    get = lambda k: None if values.get(k) is None else scale * values[k]
    bounds = (get(f"{name}_low"), get(f"{name}_high"))
    target = None if target is None else scale * target
    return Number(get(name), bounds if None not in bounds else None, target, **style)


def finish(
    page: Report,
    workdir: pathlib.Path,
    result: Mapping,
    script: str,
    titles: Mapping[str, str],
    plots: Mapping[str, Sequence[str]],
    notes: Sequence[str],
) -> None:
    """The end of every page: the curves `plots` of each part of the job that was trained here, time, how to do it again, configs, notes. Writes it.

    `titles`: {part, a folder of `workdir`: its name}; `result` is what report.json holds.
    """
    for part, title in titles.items():
        if not (workdir / part / "metrics.jsonl").exists():  # its weights, or its numbers, were there already
            continue
        curves = read_curves(workdir / part)
        for plot in plots[part]:
            pair = {k: curves[k] for k in (plot, plot.replace("train/", "eval/")) if k in curves}
            page.curves(f"{title}: {plot.removeprefix('train/')}", pair, log=plot == "train/mse", smooth=0.9)
    page.section("Time and machine").bars("Seconds per stage", result["seconds"]).facts("Versions", result["versions"])
    page.section("Reproduce").code("From a fresh clone", f"python experiments/{script}.py " + " ".join(sys.argv[1:]))
    for part, config in result["config"].items():
        page.config(config, f"Configuration: {titles[part]}")
    page.section("Notes").notes(notes)
    page.write(workdir / "report.html")
