"""Latent video diffusion from nothing to videos in one command: train the autoencoder and CLIP's two towers, keep the latents of
some thousand clips, train the U-Net on them, sample, evaluate, report.

    python experiments/diffusion_sprites.py [--budget=quick|long] [--workdir=FOLDER]

budget=quick (default) took 19 minutes on two CPU cores, in the named smaller world "small"; budget=long 74 beside other work, in
the full world. An interrupted run goes on when the same command is given again. Results: WORKDIR/report.html and WORKDIR/report.json.
"""

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the configs live beside this folder

from absl import logging

from configs import clip_sprites, defaults, diffusion_sprites, vae_sprites
from experiments.chain import Stages, kept_evaluation, use_cores, versions, write_json
from experiments.diffusion_report import write_report
from magvid import runs
from magvid.curves import read_curves
from magvid.encode import encode
from magvid.evaluate import Evaluation
from magvid.flags import Flag, Program, guarded, leave, parse, program_help, use_huge_pages
from magvid.train import train

PROGRAM = Program(
    "python experiments/diffusion_sprites.py",
    "Train an autoencoder, CLIP and a video U-Net on them, sample, evaluate and write a page; or go on with that.",
    [
        Flag("budget", "str", "quick", "quick|long", "how much to train"),
        Flag("workdir", "str", None, "FOLDER", "where everything is written; default: runs/diffusion_sprites-BUDGET"),
        Flag("clips", "int", 200, "N", "held-out clips to evaluate on", 1),
        Flag("smoke", "bool", False, "", "a few steps of tiny models: for tests"),
    ],
    ["", "--budget=long"],
)
KEPT = {"quick": 4000, "long": 6000}  # clips whose latents are kept: the U-Net sees each twice


def make_configs(options, workdir: pathlib.Path) -> dict:
    """{part: its config}; the U-Net's names the folders of the others."""
    arg = f"budget={options.budget},smoke={int(options.smoke)}"
    kept = 8 if options.smoke else KEPT[options.budget]
    diffusion = diffusion_sprites.get_config(f"{arg},clips={kept}")
    diffusion.data.train.cache = str(workdir / "latents")
    objective = diffusion.objective
    text, image = objective.conditioners
    objective.vae.run = image["vae"]["run"] = str(workdir / "vae")
    text["text"]["run"] = str(workdir / "clip")
    return dict(vae=vae_sprites.get_config(arg), clip=clip_sprites.get_config(arg), diffusion=diffusion)


def evaluate(options, workdir: pathlib.Path) -> Evaluation:
    """Numbers and examples of the trained U-Net."""
    run = runs.open_run(workdir / "diffusion")
    run.config["data"]["eval"]["source"]["split"] = "test"  # the budgets were tuned on validation clips
    return kept_evaluation(workdir / "evaluation", run, options.clips, {}, 4 if options.smoke else 40)


def main(argv: list[str]) -> None:
    if {"--help", "-h", "--helpfull"} & set(argv):
        print(program_help(PROGRAM))
        return
    options = parse(PROGRAM, argv, need="")
    defaults.choose(diffusion_sprites.BUDGETS, options.budget, "budget")
    logging.set_verbosity(logging.WARNING)  # Orbax tells every save and load
    use_cores()
    name = f"diffusion_sprites-{options.budget}" + ("-smoke" if options.smoke else "")
    workdir = pathlib.Path(options.workdir or ROOT / "runs" / name).expanduser().absolute()
    runs.make_folder(workdir, "--workdir")
    stages = Stages(workdir / "seconds.json")
    configs = make_configs(options, workdir)
    for part, config in configs.items():
        if part == "diffusion":
            print("== latents", flush=True)
            stages.run("latents", encode, config, workdir / "latents", batch=32)
        print(f"== {part}", flush=True)
        stages.run(part, train, config, workdir / part)
    print("== evaluate", flush=True)
    numbers, examples = stages.run("evaluate", evaluate, options, workdir)
    retrieval = read_curves(workdir / "clip").get("eval/retrieval_at_1")
    result = {
        "world": numbers["world"],
        "budget": options.budget,
        "clips": numbers["clips"],
        "reconstruction": numbers["reconstruction"],
        "retrieval_at_1": None if retrieval is None else float(retrieval[1][-1]),
        "tasks": numbers["tasks"],
        "seconds": stages.seconds,
        "config": {part: json.loads((workdir / part / "config.json").read_text()) for part in configs},
        "versions": versions(),
    }
    write_report(workdir, result, examples, targets=not options.smoke)
    write_json(workdir / "report.json", result)
    print(f"wrote {workdir / 'report.html'} and report.json")


if __name__ == "__main__":
    use_huge_pages()
    leave(guarded("diffusion_sprites", sys.argv[1:], main))
