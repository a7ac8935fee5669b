"""Kill training runs of nine objectives at random moments, and see that nothing is lost: every checkpoint can be read, and a run that was killed
goes on from its newest checkpoint and ends as one that was not, bit for bit.

    python benchmarks/faults.py --kills=200 --out=benchmarks/results/faults_cpu.json

Runs are those of the configs on sprites with smoke=1, longer and saved more often, by `magvid train` in processes of their own. Of the kills a tenth come at
any moment from the start on, also before the first step, half of the others while a checkpoint is being written. Every fourth run has two processes, of which one is
killed, and the other has to notice. Prints a line for each run, and keeps it in --out, where the same command goes on after it was stopped; references are kept in --workdir.
"""

import importlib
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from magvid.flags import Flag, Program, guarded, leave, parse, program_help

PROGRAM = Program(
    "python benchmarks/faults.py",
    "Kill training runs at random moments, and compare what they end with.",
    [
        Flag("kills", "int", 200, "N", "in all", 1),
        Flag("each", "int", 5, "N", "of one run", 1),
        Flag("only", "str", None, "NAME", "this objective alone"),
        Flag("seed", "int", 0, "N", "of the moments", 0),
        Flag("workdir", "str", "runs/faults", "FOLDER", "where runs are kept"),
        Flag("out", "str", None, "FILE.json", "the figures"),
    ],
    ["", "--kills=4 --only=masked"],
)
# {name: (config, argument)}; the first train parts of the others
PARTS = {
    "tokenizer": ("vq3d_sprites", ""),
    "vae": ("vae_sprites", ""),
    "clip": ("clip_sprites", ""),
    "i2v": ("i2v_sprites", ""),
    "entities-vae": ("vae_sprites", "world=entities-seen,latent=8"),
    "entities-clip": ("clip_sprites", "world=entities-moves,motion=1"),
    "vq3d-central-0": ("ablation", "part=vq3d,inflate=0"),
}
OBJECTIVES = {
    "GAN": ("vq3d_sprites", ""),
    "masked": ("commit_sprites", ""),
    "autoencoder": ("vae_sprites", ""),
    "contrastive": ("clip_sprites", ""),
    "diffusion": ("diffusion_sprites", ""),
    "adapters": ("aid_sprites", ""),
    "infilling": ("mavin_sprites", ""),
    "entities": ("magdiff_sprites", ""),
    "autoregressive": ("ablation", "row=ar,root=runs/sprites"),
}
STEPS, SAVE = 24, 3
LONG = 600.0  # seconds that a start may take
NOTICED = 120.0  # seconds in which a process leaves whose peer is dead


def config_of(name: str, arg: str, workdir: pathlib.Path) -> dict:
    from experiments.arms import moved
    from magvid.job import check_config

    spec = importlib.import_module(f"configs.{name}").get_config(",".join(filter(None, ("smoke=1", arg)))).to_dict()
    return check_config(moved(spec, workdir / "parts"))


def start(workdir: pathlib.Path, config: Mapping, count: int = 1) -> list[subprocess.Popen]:
    """Processes of `magvid train` in `workdir`/run."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(config))
    module = workdir / "faulty.py"
    module.write_text(f"import json, ml_collections\n\ndef get_config(arg=None):\n    return ml_collections.ConfigDict(json.load(open({str(workdir / 'config.json')!r})))\n")
    flags = [f"--config={module}", f"--workdir={workdir / 'run'}"]
    if count > 1:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            flags += [f"--coordinator=127.0.0.1:{s.getsockname()[1]}", f"--processes={count}"]
    command = lambda i: [sys.executable, "-m", "magvid", "train", *flags, *([f"--process={i}"] if count > 1 else [])]
    env = os.environ | dict(PYTHONPATH=str(ROOT), JAX_NUM_CPU_DEVICES="1", JAX_COMPILATION_CACHE_DIR=str(workdir.parent / "compiled"))
    with (workdir / "log.txt").open("a") as log:
        return [subprocess.Popen(command(i), env=env | dict(JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0"), stdout=log, stderr=log) for i in range(count)]


def newest(workdir: pathlib.Path) -> int:
    """The step from which a run is to go on; 0: from the beginning."""
    folder = workdir / "run" / "checkpoints"
    return max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0) if folder.is_dir() else 0


def logged(workdir: pathlib.Path) -> int:
    """Bytes of its log."""
    file = workdir / "log.txt"
    return file.stat().st_size if file.exists() else 0


def went_on(workdir: pathlib.Path, begun: int) -> int | None:
    """From which step the newest start went on, of whose log the first `begun` bytes are of earlier ones; None where it does not say."""
    said = (workdir / "log.txt").read_bytes()[begun:].decode(errors="replace")
    found = re.search(r"going on from step (\d+)|this run is at step (\d+) already", said)
    return int(found[1] or found[2]) if found else None


def wait(processes: list[subprocess.Popen], most: float = LONG) -> list[int]:
    """Their exit codes. TimeoutExpired after `most` seconds."""
    try:
        return [p.wait(most) for p in processes]
    finally:
        for p in processes:
            p.kill()


def unfinished(folder: pathlib.Path) -> set[tuple[str, int]]:
    """Checkpoints that are being written, or that a killed process left so."""
    return {(p.name, p.stat().st_ino) for p in folder.iterdir() if "tmp" in p.name} if folder.is_dir() else set()


def kill(processes: list[subprocess.Popen], workdir: pathlib.Path, rng: random.Random, left: set) -> str:
    """SIGKILL to one of them: "saving" while a checkpoint is being written that is not one of `left`, "training" or "starting" at another moment, or "over" where it
    ended before.
    """
    folder = workdir / "run" / "checkpoints"

    def being_written() -> bool:
        try:
            return bool(unfinished(folder) - left)
        except FileNotFoundError:  # it was complete between the list and the look
            return False

    saved = lambda: sum(p.name.isdigit() for p in folder.iterdir()) if folder.is_dir() else 0
    before, begin = saved(), time.monotonic()
    alive = lambda: all(p.poll() is None for p in processes)
    if rng.random() < 0.1:
        time.sleep(rng.uniform(0, 20))
    else:
        saving = rng.random() < 0.5
        while alive() and time.monotonic() - begin < LONG and not (being_written() if saving else saved() > before):
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.03 if saving else 0.5))
    if not alive():
        return "over"
    what = "saving" if being_written() else "training" if saved() > before else "starting"
    rng.choice(processes).send_signal(signal.SIGKILL)
    return what


def unreadable(workdir: pathlib.Path) -> int:
    """Saved steps of which an array, or the position of the data, is not what was written."""
    from magvid.checkpoints import Checkpoints, Corrupt

    folder, bad = workdir / "run" / "checkpoints", 0
    if not folder.is_dir():
        return 0
    checkpoints = Checkpoints(folder)
    for step in checkpoints.steps():
        try:
            for item, names in itertools.groupby(checkpoints.meta(step)["leaves"], lambda name: name.partition("/")[0]):
                checkpoints.some(step, item, [name.removeprefix(f"{item}/") for name in names])
            checkpoints.data(step)
        except Corrupt:
            bad += 1
    checkpoints.close()
    return bad


def ending(workdir: pathlib.Path) -> tuple[dict, list]:
    """Checksums of all that the last checkpoint holds, the position of its data, and what was logged."""
    from magvid import logs
    from magvid.checkpoints import Checkpoints

    checkpoints = Checkpoints(workdir / "run" / "checkpoints")
    meta = checkpoints.meta(STEPS)
    checkpoints.close()
    lines = [{k: v for k, v in line.items() if not k.startswith("perf/") and k != "time"} for line in logs.read(workdir / "run" / "metrics.jsonl")]
    return {"leaves": meta["leaves"], "data": meta["data"]}, lines


def main(argv: list[str]) -> None:
    if {"--help", "-h"} & set(argv):
        print(program_help(PROGRAM))
        return
    options = parse(PROGRAM, argv, need="")
    from configs import defaults
    from experiments.arms import train_once
    from experiments.chain import versions, write_json

    chosen = [options.only] if options.only else list(OBJECTIVES)
    for name in chosen:
        defaults.choose(OBJECTIVES, name, "--only")
    workdir = pathlib.Path(options.workdir).absolute()
    for name, (config, arg) in PARTS.items():
        train_once(config_of(config, arg, workdir), workdir / "parts" / name)
    runs = [(name, count) for count in (1, 1, 1, 2) for name in chosen]
    out = options.out and pathlib.Path(options.out)
    found = json.loads(out.read_text())["runs"] if out and out.exists() else []
    number = len(found)
    while sum(r["kills"] for r in found) < options.kills:
        name, count = runs[number % len(runs)]
        folder, number = workdir / f"{number}-{name}-{count}", number + 1
        config = config_of(*OBJECTIVES[name], workdir) | dict(steps=STEPS, save_every=SAVE, log_every=1, eval_every=0, keep=2 * STEPS, mesh={"data": -1})
        reference = workdir / f"{name}-{count}"
        if not (reference / "run" / "checkpoints" / str(STEPS)).is_dir() and any(wait(start(reference, config, count))):
            raise ValueError(f"{name} does not train: see {reference / 'log.txt'}")
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier call
        rng = random.Random(f"{options.seed}-{number}")
        record = dict(objective=name, processes=count, date=time.strftime("%Y-%m-%d"), commit=versions()["commit"], kills=0, saving=0, starting=0, unreadable=0, elsewhere=0, late=0)
        for _ in range(min(options.each, options.kills - sum(r["kills"] for r in found))):
            left, step, begun = unfinished(folder / "run" / "checkpoints"), newest(folder), logged(folder)
            processes = start(folder, config, count)
            what = kill(processes, folder, rng, left)
            try:
                wait(processes, NOTICED if what in ("training", "saving") else LONG)  # at the start others are waited for
            except subprocess.TimeoutExpired:
                record["late"] += 1
            # one that was killed early has not said it yet; a run that begins anew would end with the same numbers
            record["elsewhere"] += went_on(folder, begun) not in ((step,) if step and what != "starting" else (step, None))
            if what == "over":
                break
            record["kills"] += 1
            if what != "training":
                record[what] += 1
            record["unreadable"] += unreadable(folder)
        step, begun = newest(folder), logged(folder)
        if any(wait(start(folder, config, count))):
            raise ValueError(f"{name} does not go on: see {folder / 'log.txt'}")
        record["unreadable"] += unreadable(folder)
        record["elsewhere"] += went_on(folder, begun) != (step or None)
        record["same"] = ending(folder) == ending(reference)
        found.append(record)
        print(json.dumps(record), flush=True)
        if out:
            write_json(out, dict(total=total(found), runs=found, versions=versions()))
    print(json.dumps(total(found)))


def total(found: list[Mapping]) -> dict[str, int]:
    sums = {key: sum(r[key] for r in found) for key in ("kills", "saving", "starting", "unreadable", "elsewhere", "late")}
    return sums | {"runs": len(found), "different": sum(not r["same"] for r in found)}


if __name__ == "__main__":
    leave(guarded("faults", sys.argv[1:], main))
