"""MAGVIT from nothing to videos in one command: train the tokenizer, train the ten-task transformer on it, sample,
evaluate, report.

    python experiments/magvit_sprites.py [--budget=quick|long] [--data=FOLDER_OF_VIDEOS] [--workdir=FOLDER]

budget=quick (default) takes minutes on two CPU cores in the named smaller world "small"; budget=long about an hour
there, in the full world. An interrupted run goes on when the same command is given again. Results:
WORKDIR/report.html and WORKDIR/report.json.
With --data the same is done with a person's own videos (mp4, webm, mov, avi, gif; one class per sub-folder, or flat).
"""

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the configs live beside this folder

from absl import logging

from configs import commit_sprites, defaults, vq3d_sprites
from experiments.chain import Stages, kept_evaluation, plural, use_cores, versions, write_json
from experiments.magvit_report import BEST_OF, OPEN, write_report
from magvid import runs
from magvid.build import build
from magvid.data.folder import VideoFolder
from magvid.evaluate import Evaluation
from magvid.flags import Flag, Program, guarded, leave, parse, program_help, use_huge_pages
from magvid.masked.tasks import NAMES
from magvid.train import train
from magvid.types import UserError

FEW = 20  # clips: numbers from fewer say little
PROGRAM = Program(
    "python experiments/magvit_sprites.py",
    "Train a tokenizer and the ten-task transformer on it, sample, evaluate and write a page; or go on with that.",
    [
        Flag("budget", "str", "quick", "quick|long", "how much to train"),
        Flag("data", "str", None, "FOLDER", "videos to use in place of the sprites; one class per sub-folder, or flat"),
        Flag(
            "workdir",
            "str",
            None,
            "FOLDER",
            "where everything is written; default: runs/magvit_sprites-BUDGET, or runs/magvit-FOLDER",
        ),
        Flag("clips", "int", 200, "N", "held-out clips to evaluate on", 1),
        Flag("smoke", "bool", False, "", "a few steps of tiny models: for tests"),
    ],
    ["", "--budget=long", "--data=holidays --workdir=runs/holidays"],
)


def make_configs(options, workdir: pathlib.Path):
    """(tokenizer's config, transformer's config)."""
    arg = f"budget={options.budget},smoke={int(options.smoke)}"
    first, second = vq3d_sprites.get_config(arg), commit_sprites.get_config(arg)
    second.objective.tokenizer = dict(run=str(workdir / "tokenizer"), weights="ema")
    if options.data:
        use_folder(options.data, first, second)
    return first, second


def use_folder(path: str, *configs) -> None:
    """Clips of a person's videos in place of the sprites: same sizes, classes by sub-folder."""
    clip = configs[0].data.train.source
    folder = dict(
        target="magvid.data.folder:VideoFolder",
        path=str(pathlib.Path(path).expanduser().absolute()),
        frames=clip.frames,
        height=clip.height,
        width=clip.width,
    )
    found = VideoFolder(**{k: v for k, v in folder.items() if k != "target"})
    several = f"{plural(len(found), 'usable video')}, {plural(len(found.bad), 'other')}"
    print(f"{path}: {several}, {plural(len(found.classes), 'class', 'classes')}")
    for config in configs:
        config.data.train.source = dict(folder, split="train")
        config.data.eval.source = dict(folder, split="validation")
        config.metrics = []
        if "vocab" in config.objective:
            config.objective.vocab.classes = len(found.classes)
            vocab = config.objective.vocab
            config.objective.transformer.vocab = vocab.codebook + vocab.classes + 1 + vocab.specials


def evaluate(options, workdir: pathlib.Path) -> Evaluation:
    """Numbers and examples of the trained transformer."""
    run = runs.open_run(workdir / "transformer")
    if not options.data:  # the budgets were tuned on validation clips
        run.config["data"]["eval"]["source"]["split"] = "test"
    best_of = {task: BEST_OF for task in OPEN} if not options.smoke else {}
    return kept_evaluation(workdir / "evaluation", run, options.clips, best_of, 8 if options.smoke else 40)


def held_out(config) -> bool:
    """Whether the clips of the evaluation were kept from training: not where a folder has one video."""
    train_files, eval_files = (getattr(build(config.data[part].source), "files", None) for part in ("train", "eval"))
    return train_files is None or train_files != eval_files


def summary_numbers(budget: str, numbers: dict, seconds: dict, configs: dict) -> dict:
    """What report.json holds."""
    name = lambda task: NAMES.get(task, "frame prediction given 5 frames")
    tasks = {task: {"name": name(task), **values} for task, values in numbers["tasks"].items()}
    return {
        "world": numbers["world"],
        "budget": budget,
        "clips": numbers["clips"],
        "reconstruction": numbers["reconstruction"],
        "tasks": tasks,
        "seconds": seconds,
        "config": configs,
        "versions": versions(),
    }


def main(argv: list[str]) -> None:
    if {"--help", "-h", "--helpfull"} & set(argv):
        print(program_help(PROGRAM))
        return
    options = parse(PROGRAM, argv, need="")
    defaults.choose(vq3d_sprites.BUDGETS, options.budget, "budget")
    if options.data is not None and not options.data.strip():
        raise UserError("--data is empty: give a folder of videos, or leave it out for the sprites")
    logging.set_verbosity(logging.WARNING)  # Orbax tells every save and load
    use_cores()
    name = f"magvit-{pathlib.Path(options.data).name}" if options.data else f"magvit_sprites-{options.budget}"
    name += "-smoke" if options.smoke else ""
    workdir = pathlib.Path(options.workdir or ROOT / "runs" / name).expanduser().absolute()
    runs.make_folder(workdir, "--workdir")
    stages = Stages(workdir / "seconds.json")
    first, second = stages.run("prepare", make_configs, options, workdir)
    for config, part in ((first, "tokenizer"), (second, "transformer")):
        print(f"== {part}", flush=True)
        stages.run(part, train, config, workdir / part)
    print("== evaluate", flush=True)
    found = stages.run("evaluate", evaluate, options, workdir)
    configs = {part: json.loads((workdir / part / "config.json").read_text()) for part in ("tokenizer", "transformer")}
    result = summary_numbers(options.budget, found.numbers, stages.seconds, configs) | {"held_out": held_out(first)}
    if result["clips"] < FEW:
        print(f"only {plural(result['clips'], 'clip')} to evaluate on: the numbers say little")
    write_report(workdir, result, found.examples, options.data, targets=not options.data and not options.smoke)
    write_json(workdir / "report.json", result)
    print(f"wrote {workdir / 'report.html'} and report.json")


if __name__ == "__main__":
    use_huge_pages()
    leave(guarded("magvit_sprites", sys.argv[1:], main))
