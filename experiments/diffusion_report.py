"""The page of diffusion_sprites.py: what report.json holds, with curves and videos, as one self-contained file."""

import pathlib

from experiments.chain import finish, interval, plural
from magvid.evaluate import Example
from magvid.report import Number, Report

PSNR, RETRIEVAL = 32.0, 0.9  # targets
PLOTS = {"vae": ("train/mse", "train/psnr"), "clip": ("train/loss", "train/retrieval_at_1"), "diffusion": ("train/loss",)}
TITLES = {"vae": "Autoencoder", "clip": "CLIP", "diffusion": "U-Net"}
NAMES = {
    "T2V": ("text to video", "Given only a caption, it makes a clip from noise."),
    "I2V": ("picture to video", "Given the first frame and no text, it continues the clip: many futures are right."),
    "TI2V": ("text and picture to video", "Given the first frame and the caption, which says what happens next."),
}
HEADER = ["task", "shape and action (%)", "shape (%)", "action (%)", "colour (%)", "shape and colour (%)", "first frame (dB below the autoencoder)"]


def write_report(workdir: pathlib.Path, result: dict, examples: dict[str, list[Example]], targets: bool) -> None:
    """`result` is what report.json holds; `targets`: show them."""
    tasks, minutes = result["tasks"], sum(result["seconds"].values()) / 60
    chance = next(iter(tasks.values())).get("chance")
    right = {task: values.get("accuracy") for task, values in tasks.items()}
    page = Report(
        "Latent video diffusion on moving sprites",
        "An autoencoder learned to write frames as small latents, CLIP's two towers learned which caption belongs to which clip, and "
        "a video U-Net learned to make clips of such latents out of noise, told a caption, a first frame, or both. All three were "
        f"trained from scratch in {plural(round(minutes), 'minute')} on {result['versions']['machine']}. All numbers are from "
        f"{plural(result['clips'], 'clip')} not used in training. Of the clips made from a caption alone, "
        f"{100 * right['T2V']:.0f} % show its shape and action (chance: {100 * chance:.1f} %).",
        world=result["world"],
    )
    psnr = Number(result["reconstruction"]["psnr"], target=PSNR if targets else None, unit=" dB", digits=1)
    tiles = [("Reconstruction", psnr, "PSNR of the autoencoder's copy of held-out clips")]
    if result["retrieval_at_1"] is not None:
        found = Number(100 * result["retrieval_at_1"], target=100 * RETRIEVAL if targets else None, unit=" %", digits=0)
        tiles.append(("Retrieval", found, "right caption first of 64, and right clip, by CLIP"))
    for task in ("T2V", "TI2V"):
        shown = interval(tasks[task], "accuracy", None, True, unit=" %", digits=0)
        tiles.append((NAMES[task][0].capitalize(), shown, "shape and action as the caption says, read back from pixels by a judge"))
    page.tiles(tiles)
    page.section(
        "Videos",
        "The first test clips, not chosen. Reconstruction: real frames through the autoencoder, the best that latents could do. "
        "Condition: the picture that the model was given, standing still; black where it was given none.",
    )
    for task in tasks:
        name, text = NAMES[task]
        rows = [dict(label=str(e.label), clips=[e.real, e.reconstruction, e.condition, e.generated]) for e in examples[task]]
        page.videos(f"{task} · {name}", ["real", "reconstruction", "condition", "generated"], rows, note=text)
    page.section("Numbers", "Intervals are 95 % (Wilson). The judge knows nothing of the captions; ids are compared after it has read.")
    page.table("Tasks", HEADER, [task_row(task, values) for task, values in tasks.items()])
    page.section("Training", "First autoencoder and CLIP; then both are frozen, and the U-Net learns to remove noise from latents.")
    finish(page, workdir, result, "diffusion_sprites", TITLES, PLOTS, notes(result, targets))


def task_row(task: str, values: dict) -> list:
    names = ("accuracy", "shape_accuracy", "action_accuracy", "colour_accuracy", "identity_accuracy")
    gap = values.get("given_gap")
    numbers = [interval(values, name, None, True, digits=0) for name in names]
    return [f"{task} · {NAMES[task][0]}", *numbers, None if gap is None else Number(gap)]


def notes(result: dict, targets: bool) -> list[str]:
    items = [
        f"The numbers are of the world {result['world']} and this budget alone; they do not compare with other worlds "
        "or published results.",
        "Of a first frame alone the action cannot be known: there the judge's accuracy of actions is about chance.",
    ]
    if targets:
        missed = []
        if result["reconstruction"]["psnr"] < PSNR:
            missed.append(f"reconstruction {result['reconstruction']['psnr']:.1f} dB of {PSNR:g}")
        if (result["retrieval_at_1"] or 0) < RETRIEVAL:
            missed.append(f"retrieval {result['retrieval_at_1']:.2f} of {RETRIEVAL:g}")
        items.append(f"Missed targets: {'; '.join(missed)}." if missed else "Every target is met.")
    return [*items, "One seed."]
