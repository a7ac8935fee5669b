"""The page of aid_sprites.py: what scores.json holds, with curves and videos, as one self-contained file."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.aid_sprites import BASE, COLUMNS, ROWS, rows_of
from experiments.arms import slug, table, tile
from experiments.chain import finish, plural
from magvid.report import Report

FIRST = f"{slug('AID')}-0"
TITLES = {"vae": "Autoencoder", "clip": "CLIP", "i2v": "Base", FIRST: "AID, first seed"}
PLOTS = {"vae": ("train/mse", "train/psnr"), "clip": ("train/loss", "train/retrieval_at_1"), "i2v": ("train/loss",), FIRST: ("train/loss",)}


def write_report(workdir: pathlib.Path, result: Mapping, films: Sequence[Mapping[str, np.ndarray]]) -> None:
    """`films`: of each example {row: clip}."""
    scores, fixed, seeds = result["scores"], result["fixed"], result["seeds"]
    ours = [scores[f"{slug('AID')}-{seed}"] for seed in range(seeds)]
    page = Report(
        "Instructions for moving sprites",
        "A small image-to-video model was trained from scratch to go on from a first frame, somehow. Then it was frozen, and adapters beside its layers learned "
        f"to do what an instruction says, {plural(seeds, 'time')} with another seed. All numbers are from {plural(result['clips'], 'clip')} not used in training.",
        world=result["world"],
    )
    page.tiles(
        [
            ("Instruction", tile(ours, "told_accuracy"), "action, shape and colour as told, read back from pixels by a judge"),
            ("Base", tile([fixed[BASE]], "told_accuracy"), "the same of the frozen base, which is told nothing: chance"),
            ("Action", tile(ours, "action_accuracy"), "the action alone"),
        ]
    )
    page.section("Videos", "The first test clips, not chosen. All rows of the table for the first seed.")
    for i, film in enumerate(films):
        columns = list(film.items())
        for part, some in enumerate((columns[:8], columns[8:]), 1):
            if some:
                page.videos(f"Clip {i + 1}, part {part}", [name for name, _ in some], [dict(label="", clips=[clip for _, clip in some])])
    page.section("Numbers", f"Means over {plural(seeds, 'seed')} with 95 % intervals (Student's t over the seeds). The judge knows nothing of the instructions.")
    page.table("Table", *table(COLUMNS, rows_of(scores, fixed, seeds)))
    page.section("Training", "The base is trained once; every arm on the same base, latents and texts, with the same number of steps.")
    notes = [
        f"The numbers are of the world {result['world']} and this budget alone; they do not compare with other worlds or published results.",
        f"Rows: {'; '.join(ROWS)}.",
    ]
    finish(page, workdir, result, "aid_sprites", TITLES, PLOTS, notes)
