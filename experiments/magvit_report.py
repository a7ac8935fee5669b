"""The page of magvit_sprites.py: what report.json holds, with curves and videos, as one self-contained file."""

import pathlib

from experiments.chain import finish, interval, plural
from magvid.evaluate import Example
from magvid.report import Number, Report

CLASS_TASKS = ("CG", "CFP")
OPEN = ("FP",)  # one frame does not say what happens next: the best of several samples is measured
BEST_OF = 16
SKILL_TASKS = ("FI", "OPC", "OPV", "OPH", "OPD", "IPC", "IPD", "FP5")
TARGETS = {"quick": dict(psnr=23.0, accuracy=0.6, skill=0.4), "long": dict(psnr=28.0, accuracy=0.85, skill=0.7)}
IDENTITY = 0.9  # share of FP clips that keep colour and shape, in both budgets
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


def write_report(
    workdir: pathlib.Path, result: dict, examples: dict[str, list[Example]], folder: str | None, targets: bool
) -> None:
    """`result` is what report.json holds; `folder`: of a person's videos, None for sprites; `targets`: show them."""
    sprites = folder is None
    target = TARGETS[result["budget"]] if targets else {}
    tasks, world = result["tasks"], result["world"]
    minutes = sum(result["seconds"].values()) / 60
    clips = plural(result["clips"], "clip")
    origin = f"{clips} not used in training" if result["held_out"] else f"{clips} used in training too: there is no other"
    judgement = ""
    if tasks["CG"].get("accuracy") is not None:
        right, chance = 100 * tasks["CG"]["accuracy"], 100 * tasks["CG"]["chance"]
        judgement = (
            f" Of the clips made from a class alone, {right:.0f} % show its shape and action (chance: {chance:.1f} %)."
        )
    page = Report(
        "MAGVIT on moving sprites" if sprites else f"MAGVIT on {pathlib.Path(folder).name}",
        "A 3D-VQ tokenizer learned to write short clips as discrete tokens, and one masked transformer learned to "
        "complete those tokens for ten tasks at once, from filling in frames to making a clip from a class name. Both "
        f"were trained from scratch in {plural(round(minutes), 'minute')} on {result['versions']['machine']}. All "
        f"numbers are from {origin}.{judgement}",
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
    rows = [task_row(task, v, target) for task, v in tasks.items()]
    shown = [i for i in range(len(TASK_HEADER)) if any(row[i] is not None for row in rows)]  # no judge, no column
    page.table("Tasks", [TASK_HEADER[i] for i in shown], [[row[i] for i in shown] for row in rows], note=SKILL_NOTE)
    page.section(
        "Training",
        "First the tokenizer learns to reconstruct; then it is frozen and the transformer learns to complete masked "
        "tokens.",
    )
    titles = {"tokenizer": "Tokenizer", "transformer": "Transformer"}
    finish(page, workdir, result, "magvit_sprites", titles, PLOTS, notes(result, target))


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
        interval(values, "identity_accuracy", IDENTITY if task == "FP" and target else None, True, digits=0),
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
        if (kept := tasks["FP"]["identity_accuracy"]) < IDENTITY:
            missed.append(f"FP keeps colour and shape in {kept:.2f} of {IDENTITY:g}")
        items.append(f"Missed targets: {'; '.join(missed)}." if missed else "Every target of this budget is met.")
    items.append("One seed.")
    return items
