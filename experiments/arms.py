"""What the ablations on sprites share: arms trained and scored beside each other, one process each, and tables of means over seeds."""

import concurrent.futures
import hashlib
import json
import math
import multiprocessing
import multiprocessing.util
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from configs import defaults
from magvid.flags import Flag, Program, parse

ROOT = pathlib.Path(__file__).resolve().parent.parent


def command_line(script: str, text: str) -> Program:
    """The command line of experiments/SCRIPT.py."""
    flags = [
        Flag("budget", "str", "quick", "quick|long", "how much to train"),
        Flag("seeds", "int", 3, "N", "runs of every arm", 1),
        Flag("clips", "int", 200, "N", "held-out clips to score on", 1),
        Flag("jobs", "int", 0, "N", "arms at the same time; default: one for each core, or 1 on an accelerator", 0),
        Flag("workdir", "str", None, "FOLDER", f"where everything is written; default: runs/{script}-BUDGET"),
        Flag("smoke", "bool", False, "", "two steps of tiny models: for tests"),
    ]
    return Program(f"python experiments/{script}.py", text, flags, ["", "--seeds=1 --clips=64"])


def opened(program: Program, argv: Sequence[str], budgets: Mapping[str, Any]) -> tuple[Any, pathlib.Path]:
    """(values of the flags, the folder to write in, not made yet). ValueError for a budget that is not of `budgets`."""
    options = parse(program, list(argv), need="")
    defaults.choose(budgets, options.budget, "budget")
    name = f"{pathlib.Path(program.name.split()[-1]).stem}-{options.budget}" + ("-smoke" if options.smoke else "")
    workdir = pathlib.Path(options.workdir or ROOT / "runs" / name).expanduser().absolute()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(workdir / "compiled"))  # the seeds of an arm share its programs
    return options, workdir


def run_stages(
    stages: Sequence[Mapping[str, Any]], work: Callable, arguments: Sequence[Any], jobs: int, say: Callable[[str], None]
) -> Iterator[tuple[str, Any]]:
    """What `work(name, arm, *arguments)` returns, a name first, for every {name: arm} of a stage, one process each; the next stage begins when
    all of one are done. `jobs` at the same time; 0: one for each core, or one on an accelerator.
    """
    cores, done, total = available_cores(), 0, sum(map(len, stages))
    jobs = jobs or (len(cores) if on_cpu() else 1)
    spawn = multiprocessing.get_context("spawn")
    free = spawn.Queue()
    for i in range(jobs):
        free.put(cores[i % len(cores)])
    # a process for each: what JAX keeps of an arm's programs takes gigabytes
    with concurrent.futures.ProcessPoolExecutor(jobs, spawn, start_worker, (cores, free), max_tasks_per_child=1) as pool:
        for stage in stages:
            running = [pool.submit(work, name, arm, *arguments) for name, arm in stage.items()]
            for future in concurrent.futures.as_completed(running):
                done += 1
                found = future.result()
                say(f"{done} of {total}: {found[0]}")
                yield found


def train_once(config: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Train in `folder`, or go on there; nothing where it is done. UserError where another config was trained there."""
    from magvid import runs
    from magvid.job import check_config, differences
    from magvid.train import train
    from magvid.types import UserError

    config = check_config(config)
    if not (folder / "checkpoints" / str(config["steps"])).exists():
        train(config, folder)
    elif changed := differences(runs.read_config(folder), runs.anchored(config, os.getcwd())):
        raise UserError(f"{folder} was trained with another {', '.join(changed[:3])}: choose another --workdir")


def take(file: pathlib.Path, config: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Makes the run `folder` of a file that `magvid export` wrote, where there is no such folder yet and the file's run was trained to its end as `config` says."""
    from magvid import run_files, runs
    from magvid.job import check_config, differences

    if folder.exists() or not file.is_file():
        return
    about, _ = run_files.read(file)
    wanted = runs.anchored(check_config(config), os.getcwd())
    if about["step"] == wanted["steps"] and not differences(runs.anchored(about["config"], folder), wanted):
        run_files.load(file, folder)


def moved(spec: Any, workdir: pathlib.Path) -> Any:
    """A config whose references to runs/sprites/NAME are to WORKDIR/NAME."""
    if isinstance(spec, Mapping):
        return {k: str(workdir / pathlib.Path(v).name) if k == "run" and str(v).startswith("runs/sprites/") else moved(v, workdir) for k, v in spec.items()}
    return type(spec)(moved(v, workdir) for v in spec) if isinstance(spec, (list, tuple)) else spec


def untrained(config: dict) -> dict:
    """The same config with one step, at a rate of 0: the first of a warm-up. Other than that it is the step of the trained, which is compiled already."""
    for spec in config["optim"].values():
        for _, schedule in spec["rules"]:
            schedule.update(warmup=schedule.get("warmup") or 1, total=schedule.get("total") or config["steps"])
    return config | dict(steps=1)


def kept(file: pathlib.Path, made_of: Mapping[str, Any], make: Callable[[], dict]) -> dict:
    """`make()`, or what it gave before where `file` says that it was made of the same: numbers outlive the weights they were measured on."""
    from magvid import runs

    if file.exists() and (found := json.loads(file.read_text())).pop("made of") == made_of:
        return found
    found = make()
    file.parent.mkdir(exist_ok=True)
    runs.write_json(file, {"made of": made_of} | found)
    return found


def digest(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def hashes(workdir: pathlib.Path, parts: Collection[str]) -> dict[str, str]:
    """{part: hash} of runs in `workdir`, of which an arm's numbers are: those of another base are others."""
    from magvid import runs

    return {part: runs.open_run(workdir / part).hash for part in sorted(parts)}


def score(run, clips: int, folder: pathlib.Path, row: str, task: str, examples: int = 8) -> dict[str, float]:
    """Numbers of magvid's evaluation of one task, kept in `folder` with the first clips that were generated, `row`.json and .npz."""
    from magvid.evaluate import evaluate_run

    def make() -> dict:
        found = evaluate_run(run, clips=clips, batch=min(clips, 40), examples=examples)
        some = found.examples[task]
        arrays = {k: np.stack([getattr(e, k) for e in some]) for k in ("real", "condition", "generated", "reconstruction")}
        np.savez_compressed(folder / f"{slug(row)}.npz", **arrays)
        return dict(numbers=found.numbers["tasks"][task], settings=found.numbers["settings"])

    return kept(folder / f"{slug(row)}.json", dict(hash=run.hash, clips=clips), make)["numbers"]


def training(run) -> dict[str, float | None]:
    """{"trained": how many parameters, "speed": steps per second, None where it was hardly trained}."""
    import jax

    from magvid.curves import read_curves

    trained = sum(x.size for group in run.groups for x in jax.tree.leaves(run.weights(group, "params")))
    _, speed = read_curves(run.path).get("perf/steps_per_sec", ((), ()))
    return dict(trained=trained, speed=float(np.median(speed)) if len(speed) else None)


def slug(row: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in row.lower())


def start_worker(cores: Sequence[int], free: multiprocessing.Queue) -> None:
    """One thread of computation in each process, on a core of its own out of `free`: two small programs beside each other outrun one on two
    threads.
    """
    from absl import logging

    logging.set_verbosity(logging.WARNING)  # Orbax tells every save and load
    if not hasattr(os, "sched_setaffinity"):  # Linux alone has it
        return
    core = free.get()
    multiprocessing.util.Finalize(None, free.put, (core,), exitpriority=0)  # for the process that comes after this one
    os.sched_setaffinity(0, {core})
    import jax

    jax.devices()  # makes the pool of threads
    os.sched_setaffinity(0, cores)


def available_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def on_cpu() -> bool:
    """Asked in a process of its own: this one shall not take the memory of an accelerator."""
    command = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "cpu"


# Tables --------------------------------------------------------------------------------------------------------------


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half width of the 95 % interval by Student's t); nan for one value."""
    from scipy import stats

    n = len(values)
    half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n) if n > 1 else math.nan
    return float(np.mean(values)), float(half)


def cell(values: Sequence[float] | None, digits: int = 2) -> str:
    if not values or any(v is None for v in values):
        return "–"
    mean, half = interval(values)
    return f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def table(columns: Mapping[str, tuple[str, int, float]], found: Mapping[str, Sequence[Mapping]]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of {row: numbers of each of its runs}; `columns`: {title: (name of the number, digits, factor)}."""
    scaled = lambda runs, key, factor: [None if numbers.get(key) is None else factor * numbers[key] for numbers in runs]
    rows = [[row, *(cell(scaled(runs, key, factor), digits) for key, digits, factor in columns.values())] for row, runs in found.items()]
    return ["row", *columns], rows


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(line) + " |" for line in [header, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def tile(numbers: Sequence[Mapping], key: str, digits: int = 0, unit: str = " %"):
    """A number at the top of a page: the mean over runs, of shares in percent, with its interval."""
    from magvid.report import Number

    mean, half = interval([(100 if unit else 1) * n[key] for n in numbers])
    return Number(mean, None if math.isnan(half) else (mean - half, mean + half), unit=unit, digits=digits)


# Pictures ------------------------------------------------------------------------------------------------------------


def films(files: Mapping[str, pathlib.Path], others: Mapping[str, np.ndarray], given: Sequence[str] = ("real",)) -> list[dict[str, np.ndarray]]:
    """Of each example {row: clip}: what was `given` ("real", "condition"), what `score` kept of every row, then the `others`."""
    found: list[dict[str, np.ndarray]] = []
    for row, file in files.items():
        if not file.exists():  # numbers are kept longer than pictures
            continue
        with np.load(file) as arrays:
            for i, clip in enumerate(arrays["generated"]):
                if len(found) <= i:
                    found.append({GIVEN.get(name, name): arrays[name][i] for name in given})
                found[i][row] = clip
    return [film | {row: clips[i] for row, clips in others.items()} for i, film in enumerate(found)]


GIVEN = dict(condition="given")  # its name in pictures


def film_strip(rows: Mapping[str, np.ndarray], out: pathlib.Path) -> None:
    """Clips (t h w 3) of one length, a row each with its label, frame by frame -> .png."""
    from PIL import Image

    from magvid.pictures import labelled_grid

    frames = range(len(next(iter(rows.values()))))
    grid = labelled_grid([[v[t : t + 1] for t in frames] for v in rows.values()], [f"frame {t}" for t in frames], list(rows))
    Image.fromarray(grid[0]).save(out)
