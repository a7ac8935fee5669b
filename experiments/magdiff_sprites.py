"""MagDiff on sprites: pictures of a sprite as it was never seen, and a text that says what it does -> a video of it; parts of videos made anew.

    python experiments/magdiff_sprites.py [--budget=quick|long] [--seeds=3] [--clips=200] [--jobs=N] [--workdir=FOLDER]

Every arm has the same budget (configs/magdiff_sprites.py) and begins with the same base, which makes videos of texts; all share an autoencoder
and CLIP. These three are taken from experiments/weights where they were trained by the same configs, and trained otherwise. Scores are means over seeds with 95 % intervals (Student's t), of test clips with combinations of shape, colour and texture that training left
out, whose text tells the motion alone: whether a judge that knows nothing of pictures and texts reads the sprite that the pictures show, and the
motion. The first row's runs are also scored with more pictures, on combinations that were seen, and on edits. An interrupted experiment
goes on when the same command is given again. Results: WORKDIR/report.html, table.md, scores.json and *.png.
"""

import json
import pathlib
import sys
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the configs live beside this folder

import numpy as np

from configs import clip_sprites, magdiff_sprites, vae_sprites
from experiments.arms import command_line, digest, film_strip, films, hashes, kept, markdown, moved, opened, run_stages, score, slug, table, take, train_once, training, untrained
from magvid.flags import guarded, leave, program_help, use_huge_pages

PROGRAM = command_line("magdiff_sprites", "Train and score MagDiff and its ablations, or go on with that; write tables, pictures and a page.")
OURS, NEVER = "MagDiff", "no edits in training"
ROWS = {  # row of the table: argument of the config
    OURS: "",
    "whole frames, no subjects": "segmented=0",
    "one softmax for text and pictures": "apa=joint",
    "no pictures in attention": "apa=none",
    "no pyramid, one size": "rep=32",
    "no latents joined": "rep=none",
    "trained on one picture": "refs=1",
    NEVER: "editing=0",
    "untrained": "",
}
PICTURES = {f"{n} pictures": f"shown={n}" for n in (2, 4, 8)}  # row: argument to evaluate with; the table's own is 1
SEEN = {"combinations that were seen": "unseen=0"}
EDITS = {"as it was": "edits=same", "in another colour": "edits=colour"}
HELD, LIMIT = "picture held still", "autoencoder alone"
SHOWN = ("real", OURS, "no pictures in attention", "no latents joined", HELD)  # in the picture
COLUMNS = {  # of the table: (name of the number, digits, factor)
    "shape, colour and texture, %": ("entity_accuracy", 1, 100),
    "shape, %": ("shape_accuracy", 1, 100),
    "colour, %": ("colour_accuracy", 1, 100),
    "texture, %": ("texture_accuracy", 1, 100),
    "motion, %": ("action_accuracy", 1, 100),
    "trained, thousands": ("trained", 0, 1e-3),
    "steps per second": ("speed", 2, 1),
}
EDIT_COLUMNS = {
    "shape, colour and motion, %": ("told_accuracy", 1, 100),
    "colour, %": ("colour_accuracy", 1, 100),
    "texture, %": ("texture_accuracy", 1, 100),
    "what stays, dB": ("given_psnr", 1, 1),
    "dB below the autoencoder": ("given_gap", 2, 1),
}
TOWERS = {"entities-vae": (vae_sprites, magdiff_sprites.VAE), "entities-clip": (clip_sprites, magdiff_sprites.CLIP)}
WEIGHTS = ROOT / "experiments" / "weights"  # the parts as `magvid export` wrote them: training them takes hours on a CPU
PARTS = TOWERS | {"entities-base": (magdiff_sprites, "base=1")}  # the base needs the towers


# One arm, in a process of its own ------------------------------------------------------------------------------------


def config_of(arg: str, workdir: pathlib.Path) -> dict:
    """With the runs of `workdir` in place of those in runs/sprites, scored on test clips: budgets were tuned on validation clips."""
    config = magdiff_sprites.get_config(arg)
    config.eval_every = 0
    config.data.eval.source["split"] = "test"
    return moved(config.to_dict(), workdir)


def train_part(name: str, arg: str, workdir: str) -> tuple[str, None]:
    """What all arms share, each in a process of its own: taken from WEIGHTS where that was trained so."""
    (module, own), workdir = PARTS[name], pathlib.Path(workdir)
    config = moved(module.get_config(f"{arg},{own}").to_dict(), workdir)
    take(WEIGHTS / f"{name}.safetensors", config, workdir / name)
    train_once(config, workdir / name)
    return name, None


def train_and_score(name: str, arm: tuple[str, str, Mapping[str, str]], workdir: str, clips: int) -> tuple[str, dict]:
    """(name, {row: numbers}) of one run, that of the table, and those of the other tables; what is done already, as `workdir`/numbers
    has it, is not done again. `arm`: its row, the config's argument, and {row: another argument to evaluate with}.
    """
    from magvid import runs

    (row, arg, others), workdir = arm, pathlib.Path(workdir)
    folder, config = workdir / name, config_of(arg, workdir)

    def make() -> dict[str, dict]:
        train_once(untrained(config) if row == "untrained" else config, folder)
        run, found = runs.open_run(folder), {}
        for other, change in ({row: ""} | others).items():
            run.config["data"]["eval"] = config_of(f"{arg},{change}".strip(","), workdir)["data"]["eval"]
            found[other] = score(run, clips, folder, other, "S2V")
        found[row] |= training(run)
        return found

    made_of = dict(config=digest(magdiff_sprites.get_config(arg).to_dict()), parts=hashes(workdir, PARTS), rows=dict(others), clips=clips)
    return name, kept(workdir / "numbers" / f"{name}.json", made_of, make)


# Without a network ---------------------------------------------------------------------------------------------------


def references(workdir: pathlib.Path, arg: str, clips: int) -> tuple[dict[str, dict], dict[str, np.ndarray]]:
    """({row: numbers}, {row: the first clips}) of the first picture held still, and of the autoencoder's copy of the real clips; `arg`: of the config whose
    clips these are. By the base, which has that autoencoder: an arm's weights may be gone where its numbers are kept.
    """
    from magvid import runs, video
    from magvid.evaluate import Scores, open_metrics
    from magvid.generator import Clips, Generator

    run = runs.open_run(workdir / "entities-base")
    run.config["data"]["eval"] = config_of(arg, workdir)["data"]["eval"]
    model = Generator.open(run, batch=min(clips, 40))
    metrics, _ = open_metrics(model.config["metrics"])
    scores, shown = {HELD: Scores(metrics), LIMIT: Scores(metrics)}, {}
    for rows in Clips.of(model.config).batches(0, clips, model.batch):
        held = np.stack([video.resize_crop(first[None], *rows["video"].shape[2:4]) for first in rows["entities"][:, 0]])
        for row, made in ((HELD, np.repeat(held, rows["video"].shape[1], axis=1)), (LIMIT, model.reconstruct(rows))):
            scores[row].add({**rows, "video": made, "target": rows["video"]})
            shown.setdefault(row, made[:8])
    return {row: s.result() for row, s in scores.items()}, shown


# Tables --------------------------------------------------------------------------------------------------------------


def tables(scores: Mapping[str, Mapping], fixed: Mapping[str, Mapping], seeds: int) -> dict[str, tuple[list, list]]:
    """{title: (header, rows)}."""
    runs_of = lambda row, arm=OURS: [scores[f"{slug(arm)}-{seed}"][row] for seed in range(seeds)]
    arms = {row: runs_of(row, row) for row in ROWS} | {row: [found] for row, found in fixed.items()}
    judged = dict(list(COLUMNS.items())[:5])
    return {
        "Never seen in training": table(COLUMNS, arms),
        "How many pictures": table(judged, {"1 picture": runs_of(OURS)} | {row: runs_of(row) for row in PICTURES} | {row: runs_of(row) for row in SEEN}),
        "Edits": table(EDIT_COLUMNS, {f"{row}{said}": runs_of(row, arm) for arm, said in ((OURS, ""), (NEVER, f", {NEVER}")) if arm in ROWS for row in EDITS}),
    }


# All -----------------------------------------------------------------------------------------------------------------


def main(argv: list[str]) -> None:
    if {"--help", "-h"} & set(argv):
        print(program_help(PROGRAM))
        return
    options, workdir = opened(PROGRAM, argv, magdiff_sprites.BUDGETS)
    from experiments.chain import Stages, versions, write_json
    from experiments.magdiff_report import write_report
    from magvid import runs

    runs.make_folder(workdir, "--workdir")
    stages, say = Stages(workdir / "seconds.json"), lambda text: print(text, flush=True)
    common = f"budget={options.budget},smoke={int(options.smoke)}"
    parts = [dict.fromkeys(TOWERS, common), dict.fromkeys(PARTS.keys() - TOWERS, common)]
    stages.run("parts", lambda: list(run_stages(parts, train_part, (str(workdir),), options.jobs, say)))
    others = {OURS: PICTURES | SEEN | EDITS, NEVER: EDITS}
    arm = lambda row, seed: (row, f"{common},seed={seed},{ROWS[row]}".strip(","), others.get(row, {}))
    arms = [{f"{slug(row)}-{seed}": arm(row, seed) for seed in range(options.seeds) for row in ROWS}]
    scores = stages.run("arms", lambda: dict(run_stages(arms, train_and_score, (str(workdir), options.clips), options.jobs, say)))
    fixed, shown = stages.run("references", references, workdir, common, options.clips)
    first = f"{slug(OURS)}-0"
    result = dict(
        world=magdiff_sprites.WORLD, budget=options.budget, clips=options.clips, seeds=options.seeds, scores=scores, fixed=fixed,
        seconds=stages.seconds, versions=versions(),
        config={part: json.loads((workdir / part / "config.json").read_text()) for part in PARTS} | {first: config_of(f"{common},seed=0", workdir)},
    )  # fmt: skip
    write_json(workdir / "scores.json", result)
    texts = [f"{title}\n\n{markdown(*cells)}" for title, cells in tables(scores, fixed, options.seeds).items()]
    (workdir / "table.md").write_text("\n\n".join(texts) + "\n")
    made = films({row: workdir / f"{slug(row)}-0" / f"{slug(row)}.npz" for row in ROWS}, shown)
    edits = films({row: workdir / first / f"{slug(row)}.npz" for row in EDITS}, {})
    for file, examples, rows in (("compositions.png", made, SHOWN), ("edits.png", edits, ("real", *EDITS))):
        if strips := {f"{row} {i + 1}": film[row] for i, film in enumerate(examples[:5]) for row in rows if row in film}:
            film_strip(strips, workdir / file)
    write_report(workdir, result, made, edits)
    print("\n\n".join(texts) + f"\n\nwrote {workdir / 'report.html'}, table.md, scores.json and pictures")


if __name__ == "__main__":
    use_huge_pages()
    leave(guarded("magdiff_sprites", sys.argv[1:], main))
