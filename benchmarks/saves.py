"""How much of a run's time saving takes, and how long a run needs to save and leave when it is preempted.

    python benchmarks/saves.py --out=benchmarks/results/saves_cpu.json

Trains configs on sprites at their quick size, each in a process of its own, saved as often as they say themselves or every --every steps: the share of the time in which
training waits for a save, and the same run without saves after it for the speed. Then SIGTERM at a random moment, some times over: seconds until the process has left.
"""

import importlib
import json
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from magvid.flags import Flag, Program, guarded, leave, parse, program_help

PROGRAM = Program(
    "python benchmarks/saves.py",
    "Measure what saving costs a run, and how fast it leaves when it is preempted.",
    [
        Flag("steps", "int", 1050, "N", "of each run, more than the longest warm-up, 100", 120),
        Flag("every", "int", 0, "N", "steps between saves; 0: as the config says", 0),
        Flag("preempted", "int", 5, "N", "times that each config is sent SIGTERM", 0),
        Flag("workdir", "str", "runs/saves", "FOLDER", "where runs are kept; what is there is removed"),
        Flag("out", "str", None, "FILE.json", "the figures"),
    ],
    ["", "--steps=300 --every=20 --preempted=1"],
)
CONFIGS = ("vq3d_sprites", "vae_sprites", "clip_sprites")  # with a discriminator and an average; with an average; two towers


def own_interval(name: str) -> int:
    return importlib.import_module(f"configs.{name}").get_config("").save_every


def start(name: str, folder: pathlib.Path, steps: int, every: int, log) -> subprocess.Popen:
    fields = [f"--config.steps={steps}", f"--config.save_every={every}", "--config.eval_every=0", "--config.log_every=10", "--config.keep=2"]
    command = [sys.executable, "-m", "magvid", "train", f"--config={ROOT}/configs/{name}.py", f"--workdir={folder}", *fields]
    env = os.environ | dict(PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu", JAX_COMPILATION_CACHE_DIR=str(folder.parent / "compiled"))
    return subprocess.Popen(command, env=env, stdout=log, stderr=log)


def measure(name: str, folder: pathlib.Path, steps: int, every: int, log) -> dict:
    from magvid import logs

    if start(name, folder, steps, every, log).wait():
        raise RuntimeError(f"{name} did not train: see {log.name}")
    lines = [line for line in logs.read(folder / "metrics.jsonl") if "perf/steps_per_sec" in line]
    size = sum(p.stat().st_size for p in (folder / "checkpoints" / str(steps)).rglob("*") if p.is_file())
    speeds = [line["perf/steps_per_sec"] for line in lines]
    return dict(steps_per_sec=statistics.mean(speeds), save_wait_frac=sum(line["perf/save_wait_frac"] / v for line, v in zip(lines, speeds)) / sum(1 / v for v in speeds), checkpoint_mb=size / 1e6)


def preempt(name: str, folder: pathlib.Path, every: int, rng: random.Random, log) -> float:
    """Seconds from SIGTERM, at a random moment of training, until the process has left with 143."""
    shutil.rmtree(folder, ignore_errors=True)  # a run that goes on would be asked to stop before it trains
    process = start(name, folder, 10**6, every, log)
    while not (folder / "checkpoints" / str(every)).is_dir():
        if process.poll() is not None:
            raise RuntimeError(f"{name} did not train: see {log.name}")
        time.sleep(0.05)
    time.sleep(rng.uniform(0, 10))
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    if (code := process.wait()) != 143:
        raise RuntimeError(f"{name} left with {code}: see {log.name}")
    return time.monotonic() - begin


def main(argv: list[str]) -> None:
    if {"--help", "-h"} & set(argv):
        print(program_help(PROGRAM))
        return
    options, rng, found = parse(PROGRAM, argv, need=""), random.Random(0), {}
    workdir = pathlib.Path(options.workdir).absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "log.txt").open("a") as log:
        for name in CONFIGS:
            for kind in ("saved", "not", "preempted"):
                shutil.rmtree(workdir / f"{name}-{kind}", ignore_errors=True)
            every = options.every or own_interval(name)
            saved = measure(name, workdir / f"{name}-saved", options.steps, every, log) | dict(every=every)
            never = measure(name, workdir / f"{name}-not", options.steps, 0, log)
            left = [preempt(name, workdir / f"{name}-preempted", 50, rng, log) for _ in range(options.preempted)]
            found[name] = saved | dict(steps_per_sec_without=never["steps_per_sec"], preemption_seconds=[round(s, 2) for s in left])
            print(f"{name}: waits for saves {100 * saved['save_wait_frac']:.2f} % of its time, {saved['steps_per_sec']:.2f} steps per second, "
                  f"{never['steps_per_sec']:.2f} without saves, checkpoints of {saved['checkpoint_mb']:.1f} MB; left after {', '.join(f'{s:.1f}' for s in left)} s", flush=True)  # fmt: skip
            shutil.rmtree(workdir / f"{name}-preempted", ignore_errors=True)
    if options.out:
        pathlib.Path(options.out).write_text(json.dumps(dict(date=time.strftime("%Y-%m-%d"), steps=options.steps, found=found), indent=1) + "\n")


if __name__ == "__main__":
    leave(guarded("saves", sys.argv[1:], main))
