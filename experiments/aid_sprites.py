"""AID on sprites: a small image-to-video model learns to move sprites somehow; then adapters teach it, frozen, to do what an instruction says.

    python experiments/aid_sprites.py [--budget=quick|long] [--seeds=3] [--clips=200] [--jobs=N] [--workdir=FOLDER]

Autoencoder, CLIP and the base (configs/i2v_sprites.py) are trained once; on them every arm of AID's ablation (configs/aid_sprites.py), each with the same
budget, and for comparison the whole network. Scores are means over seeds with 95 % intervals (Student's t), of held-out test clips: whether a
judge that knows nothing of the instruction reads its action, and the shape and colour of the sprite that the first frame shows. An
interrupted experiment goes on when the same command is given again. Results: WORKDIR/report.html, table.md, scores.json and predictions.png.
"""

import json
import pathlib
import sys
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the configs live beside this folder

import numpy as np

from configs import aid_sprites, clip_sprites, i2v_sprites, vae_sprites
from experiments.arms import command_line, digest, film_strip, films, hashes, kept, markdown, moved, opened, run_stages, score, slug, table, train_once, training, untrained
from magvid.flags import guarded, leave, program_help, use_huge_pages

PROGRAM = command_line("aid_sprites", "Train a base and on it AID's adapters and their ablations, or go on with that; write tables, pictures and a page.")
ROWS = {  # row of the table: argument of the config
    "AID": "",
    "no multimodal condition": "mcond=none",
    "upper branch alone": "branches=upper",
    "lower branch alone": "branches=lower",
    "no predicted states": "states=instruction",
    "no spatial adapter": "spatial=0",
    "no short-term adapter": "short=0",
    "no long-term adapter": "long=0",
    "decoupled": "mcond=decoupled",
    "whole network": "tune=full",
    "untrained": "",
}
BASE, HELD, LIMIT = "base, told nothing", "first frame held", "autoencoder alone"
SHOWN = ("real", "AID", BASE, "no multimodal condition", "whole network")  # in the picture
COLUMNS = {  # of the table: (name of the number, digits, factor)
    "instruction followed, %": ("told_accuracy", 0, 100),
    "action, %": ("action_accuracy", 0, 100),
    "shape, %": ("shape_accuracy", 0, 100),
    "colour, %": ("colour_accuracy", 0, 100),
    "first frame, dB below the autoencoder": ("given_gap", 1, 1),
    "PSNR, dB": ("psnr", 1, 1),
    "trained, thousands": ("trained", 0, 1e-3),
    "steps per second": ("speed", 2, 1),
}
PARTS = dict(vae=vae_sprites, clip=clip_sprites, i2v=i2v_sprites)


# One arm, in a process of its own ------------------------------------------------------------------------------------


def config_of(make, arg: str, workdir: pathlib.Path) -> dict:
    """With the runs of `workdir` in place of those in runs/sprites, scored on test clips: budgets were tuned on validation clips."""
    config = make.get_config(arg)
    config.eval_every = 0
    config.data.eval.source["split"] = "test"
    return moved(config.to_dict(), workdir)


def train_part(name: str, arg: str, workdir: str) -> tuple[str, None]:
    """The autoencoder, CLIP or the base, in a process of its own."""
    make, folder = PARTS[name], pathlib.Path(workdir)
    train_once(config_of(make, arg, folder) if name == "i2v" else make.get_config(arg), folder / name)
    return name, None


def train_and_score(name: str, arm: tuple[str, str], workdir: str, clips: int) -> tuple[str, dict]:
    """(name, numbers) of one run; what is done already, as `workdir`/numbers has it, is not done again. `arm`: its row, the config's argument."""
    from magvid import runs

    (row, arg), workdir = arm, pathlib.Path(workdir)
    folder, config = workdir / name, config_of(aid_sprites, arg, workdir)
    (task,) = config["objective"]["tasks"]

    def make() -> dict[str, float]:
        train_once(untrained(config) if row == "untrained" else config, folder)
        run = runs.open_run(folder)
        return score(run, clips, folder, row, task) | training(run)

    made_of = dict(config=digest(aid_sprites.get_config(arg).to_dict()), parts=hashes(workdir, PARTS), clips=clips)
    return name, kept(workdir / "numbers" / f"{name}.json", made_of, make)


# Without adapters ----------------------------------------------------------------------------------------------------


def references(workdir: pathlib.Path, clips: int) -> tuple[dict[str, dict], dict[str, np.ndarray]]:
    """({row: numbers}, {row: the first clips}) of the base, which is told nothing, the first frame held, and the autoencoder's copy."""
    from magvid import runs
    from magvid.evaluate import Scores, open_metrics
    from magvid.generator import Clips, Generator

    numbers = {BASE: score(runs.open_run(workdir / "i2v"), clips, workdir / "i2v", BASE, "I2V")}
    model = Generator.open(runs.open_run(workdir / f"{slug('AID')}-0"), batch=min(clips, 40))
    metrics, _ = open_metrics(model.config["metrics"])
    scores = {HELD: Scores(metrics), LIMIT: Scores(metrics)}
    for rows in Clips.of(model.config).batches(0, clips, model.batch):
        condition, given = model.condition({**rows, "task": np.zeros(len(rows["video"]), np.int32)})
        copy = model.reconstruct(rows)
        for row, video in ((HELD, condition), (LIMIT, copy)):
            seen = {"video": video, "target": rows["video"], "condition": condition, "given": given, "reconstruction": copy}
            scores[row].add({**rows, **seen})
    with np.load(workdir / "i2v" / f"{slug(BASE)}.npz") as arrays:
        shown = {BASE: arrays["generated"]}
    return numbers | {row: s.result() for row, s in scores.items()}, shown


# Tables --------------------------------------------------------------------------------------------------------------


def rows_of(scores: Mapping[str, Mapping], fixed: Mapping[str, Mapping], seeds: int) -> dict[str, list[Mapping]]:
    """{row of the table: numbers of each seed}: the arms, then what has no seed."""
    return {row: [scores[f"{slug(row)}-{seed}"] for seed in range(seeds)] for row in ROWS} | {row: [found] for row, found in fixed.items()}


# All -----------------------------------------------------------------------------------------------------------------


def main(argv: list[str]) -> None:
    if {"--help", "-h"} & set(argv):
        print(program_help(PROGRAM))
        return
    options, workdir = opened(PROGRAM, argv, aid_sprites.BUDGETS)
    from experiments.aid_report import write_report
    from experiments.chain import Stages, versions, write_json
    from magvid import runs

    runs.make_folder(workdir, "--workdir")
    stages, say = Stages(workdir / "seconds.json"), lambda text: print(text, flush=True)
    common = f"budget={options.budget},smoke={int(options.smoke)}"
    parts = [{"vae": common, "clip": common}, {"i2v": common}]
    stages.run("base", lambda: list(run_stages(parts, train_part, (str(workdir),), options.jobs, say)))
    arms = [{f"{slug(row)}-{seed}": (row, f"{common},seed={seed},{arg}".strip(",")) for seed in range(options.seeds) for row, arg in ROWS.items()}]
    scores = stages.run("arms", lambda: dict(run_stages(arms, train_and_score, (str(workdir), options.clips), options.jobs, say)))
    fixed, shown = stages.run("references", references, workdir, options.clips)
    result = dict(
        world=aid_sprites.BUDGETS[options.budget]["world"], budget=options.budget, clips=options.clips, seeds=options.seeds,
        scores=scores, fixed=fixed, seconds=stages.seconds, versions=versions(),
        config={part: json.loads((workdir / part / "config.json").read_text()) for part in (*PARTS, f"{slug('AID')}-0")},
    )  # fmt: skip
    write_json(workdir / "scores.json", result)
    text = markdown(*table(COLUMNS, rows_of(scores, fixed, options.seeds)))
    (workdir / "table.md").write_text(text + "\n")
    examples = films({row: workdir / f"{slug(row)}-0" / f"{slug(row)}.npz" for row in ROWS}, shown)
    film_strip({f"{row} {i + 1}": film[row] for i, film in enumerate(examples[:5]) for row in SHOWN if row in film}, workdir / "predictions.png")
    write_report(workdir, result, examples)
    print(f"{text}\n\nwrote {workdir / 'report.html'}, table.md, scores.json and pictures")


if __name__ == "__main__":
    use_huge_pages()
    leave(guarded("aid_sprites", sys.argv[1:], main))
