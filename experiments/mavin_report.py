"""The page of mavin_sprites.py: what scores.json holds, with curves and videos, as one self-contained file."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.arms import table, tile
from experiments.chain import finish, plural
from experiments.mavin_sprites import COLUMNS, ROWS, lengths, rows_of
from magvid.report import Number, Report

TITLES = {"vae": "Autoencoder", "clip": "CLIP", "full-0": "Transition model, first seed"}
PLOTS = {"vae": ("train/mse", "train/psnr"), "clip": ("train/loss", "train/retrieval_at_1"), "full-0": ("train/loss",)}
DAMAGED = {
    "shuffled": "the gap's frames in random order",
    "jump": "half of the gap frozen, then a jump",
    "hue": "colours of the whole clip turned by a third",
    "blur": "the whole clip blurred",
}


def write_report(workdir: pathlib.Path, result: Mapping, films: Sequence[Mapping[str, np.ndarray]]) -> None:
    """`films`: of each example {row: clip}."""
    scores, fixed, seeds = result["scores"], result["fixed"], result["seeds"]
    numbers = [scores[f"full-{seed}"]["MAVIN"] for seed in range(seeds)]
    page = Report(
        "Transitions between two actions of moving sprites",
        "Of a clip in which a sprite does one thing and then another, the model is given the beginning and the end, and makes what lies "
        f"between. Everything was trained from scratch, {plural(seeds, 'time')} with another seed. All numbers are from "
        f"{plural(result['clips'], 'clip')} not used in training, with gaps of 2 to 10 of 16 frames.",
        world=result["world"],
    )
    tiles = [
        ("Place", "position", "distance of sprite and real sprite beside the boundary, pixels", 2, ""),
        ("Speed", "velocity", "the same of the step beside the boundary, pixels per frame", 2, ""),
        ("Identity", "identity", "shape and colour read right from the gap alone", 0, " %"),
    ]
    page.tiles([(title, tile(numbers, key, digits, unit), text) for title, key, text, digits, unit in tiles])
    page.section(
        "Videos",
        "The first test clips, not chosen. Given: what the model saw, black where it saw nothing. All rows of the table for the first seed.",
    )
    for i, film in enumerate(films):
        columns = list(film.items())
        for part, some in enumerate((columns[:7], columns[7:]), 1):
            if some:
                page.videos(f"Clip {i + 1}, part {part}", [name for name, _ in some], [dict(label="", clips=[clip for _, clip in some])])
    page.section(
        "Numbers",
        f"Means over {plural(seeds, 'seed')} with 95 % intervals (Student's t over the seeds). The sprite's place is fitted in every frame; "
        "the fit knows which sprite it is and nothing of where it should be.",
    )
    page.table("Table", *table(COLUMNS, rows_of(scores, fixed, seeds)))
    page.table("Track by length of the gap, px", *table(lengths(), rows_of(scores, fixed, seeds)))
    page.section("CLIP-RS itself", "Real clips, damaged: 1 is as smooth as the real one. Motion should count, looks should not.")
    header = ["damage", "CLIP-RS", "CLIP-RS as released", "CLIP similarity to the real frames"]
    names = ("clip_rs", "clip_rs_released", "clip_outer")
    rows = [[DAMAGED[how], *(Number(found[n], (found[f"{n}_low"], found[f"{n}_high"]), digits=4) for n in names)] for how, found in result["metric"].items()]
    page.table("Damages", header, rows)
    page.section("Gaussian filter mixer", f"The first seed of the model that predicts the noise, {plural(result['swept_clips'], 'clip')}: the cut-off at the boundary (f0), how much it falls per frame (decay).")
    swept = {name: found for name, found in result["sweep"].items()}
    header = ["setting", *COLUMNS]
    page.table("Sweep", header, [[name, *(found.get(key) if found.get(key) is None else factor * found[key] for key, _, factor in COLUMNS.values())] for name, found in swept.items()])
    page.section("Training", "The autoencoder and CLIP are trained once; every arm on the same latents and texts.")
    notes = [
        f"The numbers are of the world {result['world']} and this budget alone; they do not compare with other worlds or published results.",
        f"Rows: {'; '.join(ROWS)}. The actions are read from given and made frames together, half of which are given: rows differ little there.",
    ]
    finish(page, workdir, result, "mavin_sprites", TITLES, PLOTS, notes)
