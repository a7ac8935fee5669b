"""The page of magdiff_sprites.py: what scores.json holds, with curves and videos, as one self-contained file."""

import pathlib
from collections.abc import Mapping, Sequence

from experiments.arms import slug, tile
from experiments.chain import finish, plural
from experiments.magdiff_sprites import EDITS, HELD, OURS, ROWS, tables
from magvid.report import Report

FIRST = f"{slug(OURS)}-0"
TITLES = {"entities-vae": "Autoencoder", "entities-clip": "CLIP", "entities-base": "Base, from text alone", FIRST: "MagDiff, first seed"}
PLOTS = {
    "entities-vae": ("train/mse", "train/psnr"), "entities-clip": ("train/loss", "train/retrieval_at_1"), "entities-base": ("train/loss",), FIRST: ("train/loss",)
}  # fmt: skip


def write_report(workdir: pathlib.Path, result: Mapping, made: Sequence[Mapping], edits: Sequence[Mapping]) -> None:
    """`made`, `edits`: of each example {row: clip}."""
    scores, fixed, seeds = result["scores"], result["fixed"], result["seeds"]
    runs_of = lambda row: [scores[f"{FIRST[:-1]}{seed}"][row] for seed in range(seeds)]
    page = Report(
        "Sprites that were never seen, made to move",
        "A model was shown pictures of a sprite and told in words what it shall do. Of every shape and colour it had never seen one texture in training; the sprites "
        f"of this page have it. It began as a model that knows text alone, and was trained {plural(seeds, 'time')} with another seed; all numbers are from {plural(result['clips'], 'clip')} not used in training.",
        world=result["world"],
    )
    page.tiles(
        [
            ("Sprite", tile(runs_of(OURS), "entity_accuracy"), "shape, colour and texture as in the pictures, read back from pixels by a judge"),
            ("Motion", tile(runs_of(OURS), "action_accuracy"), "as the text says"),
            ("Picture held still", tile([fixed[HELD]], "action_accuracy"), "the motion of a copy of the picture: chance"),
        ]
    )
    page.section("Videos", "The first test clips, not chosen. All rows of the table for the first seed.")
    for i, film in enumerate(made):
        page.videos(f"Clip {i + 1}", list(film), [dict(label="", clips=list(film.values()))])
    page.section("Edits", "The sprite was cut out of every frame, and made anew as the caption says.")
    for i, film in enumerate(edits):
        page.videos(f"Edit {i + 1}", list(film), [dict(label="", clips=list(film.values()))])
    page.section("Numbers", f"Means over {plural(seeds, 'seed')} with 95 % intervals (Student's t over the seeds). The judge knows nothing of pictures and texts.")
    for title, cells in tables(scores, fixed, seeds).items():
        page.table(title, *cells)
    page.section("Training", "Autoencoder, CLIP and the base, which makes videos from text alone, are trained once; every arm begins as the base and takes the same number of steps. Curves are of what was trained here.")
    notes = [
        f"The numbers are of the world {result['world']} and this budget alone; they do not compare with other worlds or published results.",
        f"Rows: {'; '.join(ROWS)}. Edits: {'; '.join(EDITS)}.",
    ]
    finish(page, workdir, result, "magdiff_sprites", TITLES, PLOTS, notes)
