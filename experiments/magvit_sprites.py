"""MAGVIT from nothing to videos in one command: train the tokenizer, train the ten-task transformer on it, sample,
evaluate, report.

    python experiments/magvit_sprites.py [--budget=quick|long] [--data=FOLDER_OF_VIDEOS] [--workdir=FOLDER]

budget=quick (default) takes minutes on two CPU cores in the named smaller world "small"; budget=long takes most of an
hour there, in the full world. An interrupted run goes on when the same command is given again. Results:
WORKDIR/report.html and WORKDIR/report.json.
With --data the same is done with a person's own videos (mp4, webm, mov, avi, gif; one class per sub-folder, or flat).
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the configs live beside this folder

import jax
import numpy as np
from absl import app, flags, logging

from configs import commit_sprites, vq3d_sprites
from magvid import runs
from magvid.curves import read_curves
from magvid.data.folder import VideoFolder
from magvid.evaluate import Evaluation, Example, evaluate_run
from magvid.masked.tasks import NAMES
from magvid.report import Number, Report
from magvid.train import train
from magvid.types import UserError

FLAGS = flags.FLAGS
flags.DEFINE_enum("budget", "quick", list(vq3d_sprites.BUDGETS), "how much to train")
flags.DEFINE_string("data", None, "a folder of videos to use in place of the sprites")
flags.DEFINE_string(
    "workdir", None, "where everything is written; default: runs/magvit_sprites-BUDGET, or runs/magvit-FOLDER"
)
flags.DEFINE_integer("clips", 200, "held-out clips to evaluate on", lower_bound=1)
flags.DEFINE_bool("smoke", False, "a few steps of tiny models: for tests")

CLASS_TASKS = ("CG", "CFP")
OPEN = ("FP",)  # one frame does not say what happens next: the best of several samples is measured
SKILL_TASKS = ("FI", "OPC", "OPV", "OPH", "OPD", "IPC", "IPD", "FP5")
TARGETS = {"quick": dict(psnr=23.0, accuracy=0.6, skill=0.4), "long": dict(psnr=28.0, accuracy=0.85, skill=0.7)}
BEST_OF = 16
PLOTS = {
    "tokenizer": ("train/mse", "train/psnr", "train/perplexity"),
    "transformer": ("train/loss", "train/masked_accuracy"),
}
TASK_HEADER = ["task", "skill", f"skill, best of {BEST_OF}", "accuracy (%)", "shape (%)", "action (%)"]
TASK_HEADER += ["colour and shape kept (%)", "given pixels (dB below the tokenizer)"]
SKILL_NOTE = (
    "skill = (MSE of the padded condition - MSE of the generated clip) / (MSE of the padded condition - MSE of the "
    "reconstruction), MSE pooled over clips. Where one frame is given, the future is open, and the best of several "
    "samples is the fairer number. Nothing given is pasted back."
)
DESCRIPTIONS = {
    "FP": "Given the first frame, the model continues the clip. One frame does not say what happens next: many futures "
    "are right.",
    "FP5": "Given five frames, the model continues the clip: now the motion is known.",
    "FI": "Given the first and the last frame, it fills in the motion between them.",
    "OPC": "Given the centre (a quarter of the picture), it paints everything around it.",
    "OPV": "Given the middle columns (half of the picture), it paints the left and the right.",
    "OPH": "Given the middle rows (half of the picture), it paints above and below.",
    "OPD": "Given a vertical band that travels from left to right, it paints the rest.",
    "IPC": "A rectangle in the centre is missing in all frames and is filled in.",
    "IPD": "A rectangle that travels from left to right is missing and is filled in.",
    "CG": "Given only a class, it makes a clip from nothing.",
    "CFP": "Given the first frame and the class, it continues the clip.",
}


def make_configs(workdir: pathlib.Path):
    """(tokenizer's config, transformer's config)."""
    arg = f"budget={FLAGS.budget},smoke={int(FLAGS.smoke)}"
    first, second = vq3d_sprites.get_config(arg), commit_sprites.get_config(arg)
    second.objective.tokenizer = dict(run=str(workdir / "tokenizer"), weights="ema")
    if FLAGS.data:
        use_folder(first, second)
    return first, second


def use_folder(*configs) -> None:
    """Clips of a person's videos in place of the sprites: same sizes, classes by sub-folder."""
    clip = configs[0].data.train.source
    folder = dict(
        target="magvid.data.folder:VideoFolder",
        path=str(pathlib.Path(FLAGS.data).expanduser().absolute()),
        frames=clip.frames,
        height=clip.height,
        width=clip.width,
    )
    found = VideoFolder(**{k: v for k, v in folder.items() if k != "target"})
    print(f"{len(found)} videos in {FLAGS.data}, {len(found.bad)} cannot be used, {len(found.classes)} classes")
    for config in configs:
        config.data.train.source = dict(folder, split="train")
        config.data.eval.source = dict(folder, split="validation")
        config.metrics = []
        if "vocab" in config.objective:
            config.objective.vocab.classes = len(found.classes)
            vocab = config.objective.vocab
            config.objective.transformer.vocab = vocab.codebook + vocab.classes + 1 + vocab.specials


def evaluate(workdir: pathlib.Path) -> Evaluation:
    """Numbers and examples of the trained transformer; kept in the work folder, so that a second call is quick."""
    kept, run = workdir / "evaluation", runs.open_run(workdir / "transformer")
    wanted = dict(hash=run.hash, step=run.step, asked_clips=FLAGS.clips)
    if (kept / "evaluation.json").exists():
        numbers = json.loads((kept / "evaluation.json").read_text())
        if all(numbers.get(k) == v for k, v in wanted.items()):
            with np.load(kept / "examples.npz", allow_pickle=False) as arrays:
                return Evaluation(numbers, unpack(arrays))
    best_of = {task: BEST_OF for task in OPEN} if not FLAGS.smoke else {}
    found = evaluate_run(run, clips=FLAGS.clips, best_of=best_of, batch=8 if FLAGS.smoke else 40, on_progress=progress)
    numbers = found.numbers | wanted
    kept.mkdir(exist_ok=True)
    np.savez_compressed(kept / "examples.npz", **pack(found.examples))
    write_json(kept / "evaluation.json", numbers)
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

    def run(self, name: str, f, *args):
        start = time.monotonic()
        try:
            return f(*args)
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


def summary_numbers(numbers: dict, seconds: dict, configs: dict) -> dict:
    """What report.json holds."""
    name = lambda task: NAMES.get(task, "frame prediction given 5 frames")
    tasks = {task: {"name": name(task), **values} for task, values in numbers["tasks"].items()}
    return {
        "world": numbers["world"],
        "budget": FLAGS.budget,
        "clips": numbers["clips"],
        "reconstruction": numbers["reconstruction"],
        "tasks": tasks,
        "seconds": seconds,
        "config": configs,
        "versions": versions(),
    }


def interval(values: dict, name: str, target=None, percent: bool = False, **style) -> Number:
    """A metric with the bounds it came with."""
    scale = 100 if percent else 1
    get = lambda k: None if values.get(k) is None else scale * values[k]
    bounds = (get(f"{name}_low"), get(f"{name}_high"))
    target = None if target is None else scale * target
    return Number(get(name), bounds if None not in bounds else None, target, **style)


def write_report(workdir: pathlib.Path, result: dict, examples: dict[str, list[Example]]) -> None:
    sprites = not FLAGS.data
    target = TARGETS[FLAGS.budget] if sprites and not FLAGS.smoke else {}
    tasks, world = result["tasks"], result["world"]
    minutes = sum(result["seconds"].values()) / 60
    judgement = ""
    if tasks["CG"].get("accuracy") is not None:
        right, chance = 100 * tasks["CG"]["accuracy"], 100 * tasks["CG"]["chance"]
        judgement = (
            f" Of the clips made from a class alone, {right:.0f} % show its shape and action (chance: {chance:.1f} %)."
        )
    page = Report(
        "MAGVIT on moving sprites" if sprites else f"MAGVIT on {pathlib.Path(FLAGS.data).name}",
        "A 3D-VQ tokenizer learned to write short clips as discrete tokens, and one masked transformer learned to "
        "complete those tokens for ten tasks at once, from filling in frames to making a clip from a class name. Both "
        f"were trained from scratch in {minutes:.0f} minutes on {result['versions']['machine']}. All numbers are from "
        f"{result['clips']} clips that were not used in training.{judgement}",
        world=world,
    )
    psnr = Number(result["reconstruction"]["psnr"], target=target.get("psnr"), unit=" dB", digits=1)
    tiles = [("Reconstruction", psnr, "PSNR of the tokenizer's copy of held-out clips")]
    if sprites:
        accuracy = interval(tasks["CG"], "accuracy", target.get("accuracy"), True, unit=" %", digits=0)
        read_back = "shape and action of class-conditional clips, read back from pixels by a judge"
        tiles.append(("Class accuracy", accuracy, read_back))
    skill = interval(tasks["FI"], "skill", target.get("skill"))
    scale = "0: no better than cross-fading the given frames; 1: as good as the tokenizer allows"
    tiles.append(("Interpolation skill", skill, scale))
    page.tiles([*tiles, ("Time", f"{minutes:.1f} min", "all stages, without installation")])
    page.section(
        "Ten tasks",
        "Each row is a held-out clip. Real: the clip. Reconstruction: the tokenizer's copy, the best that generation "
        "could do. Condition: what the model was given, padded. Generated: what it made, first sample, not chosen.",
    )
    for task, values in tasks.items():
        page.videos(
            f"{task} · {values['name']}",
            ["real", "reconstruction", "condition", "generated"],
            [film_row(task, example) for example in examples[task]],
            note=DESCRIPTIONS[task],
            numbers=film_numbers(task, values, target),
        )
    page.section("Numbers", "Intervals are 95 %: bootstrap over clips for skills, Wilson for accuracies.")
    page.table("Tasks", TASK_HEADER, [task_row(task, v, target) for task, v in tasks.items()], note=SKILL_NOTE)
    page.section(
        "Training",
        "First the tokenizer learns to reconstruct; then it is frozen and the transformer learns to complete masked "
        "tokens.",
    )
    for name, title in (("tokenizer", "Tokenizer"), ("transformer", "Transformer")):
        curves = read_curves(workdir / name)
        for plot in PLOTS[name]:
            pair = {k: curves[k] for k in (plot, plot.replace("train/", "eval/")) if k in curves}
            page.curves(f"{title}: {plot.removeprefix('train/')}", pair, log=plot == "train/mse", smooth=0.9)
    page.section("Time and machine").bars("Seconds per stage", result["seconds"]).facts("Versions", result["versions"])
    page.section("Reproduce").code(
        "From a fresh clone", "python experiments/magvit_sprites.py " + " ".join(sys.argv[1:])
    )
    for name, config in result["config"].items():
        page.config(config, f"Configuration of the {name}")
    page.section("Notes").notes(notes(result, target))
    page.write(workdir / "report.html")


def film_row(task: str, e: Example) -> dict:
    return dict(
        label=str(e.label), clips=[e.real, e.reconstruction, None if task == "CG" else e.condition, e.generated]
    )


def film_numbers(task: str, values: dict, target: dict) -> dict[str, Number | str]:
    found = {}
    if task in CLASS_TASKS and "accuracy" in values:
        wanted = target.get("accuracy") if task == "CG" else None
        found["shape and action right"] = interval(values, "accuracy", wanted, True, unit=" %", digits=0)
    if task in OPEN:
        found[f"skill, best of {BEST_OF}"] = interval(values, "best_skill")
    elif "skill" in values:
        found["skill"] = interval(values, "skill", target.get("skill") if task in SKILL_TASKS else None)
    return found


def task_row(task: str, values: dict, target: dict) -> list:
    gap = values.get("given_gap")
    cells = [
        interval(values, "skill", target.get("skill") if task in SKILL_TASKS else None),
        interval(values, "best_skill"),
        interval(values, "accuracy", target.get("accuracy") if task == "CG" else None, True, digits=0),
        interval(values, "shape_accuracy", None, True, digits=0),
        interval(values, "action_accuracy", None, True, digits=0),
        interval(values, "identity_accuracy", 0.9 if task == "FP" and target else None, True, digits=0),
        Number(gap, target=1.0 if target else None, lower_is_better=True) if gap is not None else None,
    ]
    return [f"{task} · {values['name']}", *cells]


def notes(result: dict, target: dict) -> list[str]:
    items = [
        f"The numbers are of the world {result['world']} and this budget alone; they do not compare with other worlds "
        "or published results."
    ]
    missed, tasks = [], result["tasks"]
    if target:
        if result["reconstruction"]["psnr"] < target["psnr"]:
            missed.append(f"reconstruction {result['reconstruction']['psnr']:.1f} dB of {target['psnr']:g}")
        if result["tasks"]["CG"]["accuracy"] < target["accuracy"]:
            missed.append(f"class accuracy {result['tasks']['CG']['accuracy']:.2f} of {target['accuracy']:g}")
        low = {t: tasks[t]["skill"] for t in SKILL_TASKS if tasks[t]["skill"] < target["skill"]}
        missed += [f"{t} skill {value:.2f} of {target['skill']:g}" for t, value in low.items()]
        gaps = {t: v["given_gap"] for t, v in tasks.items() if v.get("given_gap", 0) > 1}
        missed += [f"{t} given pixels {gap:.2f} dB below the tokenizer, of 1" for t, gap in gaps.items()]
        items.append(f"Missed targets: {'; '.join(missed)}." if missed else "Every target of this budget is met.")
    items.append("One seed. Budgets were tuned on validation clips, which the numbers are from as well.")
    return items


def use_cores() -> None:
    """A CPU device for each of up to four cores: on two, small batches train 1.35 times as fast as on one device."""
    jax.config.update("jax_num_cpu_devices", max(n for n in (1, 2, 4) if n <= (os.cpu_count() or 1)))


def main(argv):
    logging.set_verbosity(logging.WARNING)  # Orbax tells every save and load
    use_cores()
    if len(argv) > 1:
        raise UserError(f'unexpected argument "{argv[1]}": flags look like --budget=long')
    name = f"magvit-{pathlib.Path(FLAGS.data).name}" if FLAGS.data else f"magvit_sprites-{FLAGS.budget}"
    workdir = pathlib.Path(FLAGS.workdir or ROOT / "runs" / name).expanduser().absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    stages = Stages(workdir / "seconds.json")
    first, second = stages.run("prepare", make_configs, workdir)
    for config, part in ((first, "tokenizer"), (second, "transformer")):
        print(f"== {part}", flush=True)
        stages.run(part, train, config, workdir / part)
    print("== evaluate", flush=True)
    found = stages.run("evaluate", evaluate, workdir)
    configs = {part: json.loads((workdir / part / "config.json").read_text()) for part in ("tokenizer", "transformer")}
    result = summary_numbers(found.numbers, stages.seconds, configs)
    write_report(workdir, result, found.examples)
    write_json(workdir / "report.json", result)
    print(f"wrote {workdir / 'report.html'} and report.json")


def run():
    """A person's mistake is one line and exit code 2."""
    try:
        app.run(main)
    except (UserError, ValueError, OSError) as error:
        print(f"magvit_sprites: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
