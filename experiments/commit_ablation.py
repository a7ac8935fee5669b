"""What COMMIT, its loss terms, its decoding, 3D tokens and inflation are worth: MAGVIT's tables 5 to 7 on sprites.

    python experiments/commit_ablation.py [--seeds=3] [--clips=200] [--tasks=CFP,MT8] [--jobs=N] [--workdir=FOLDER]

Every arm has the same budget (configs/ablation.py), every seed a tokenizer of its own; scores are means over seeds with
95 % intervals (Student's t), of held-out test clips. An interrupted experiment goes on when the same command is given
again. Results: WORKDIR/table.md, WORKDIR/scores.json and WORKDIR/*.png.
"""

import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the configs live beside this folder

import numpy as np

from configs import ablation
from experiments.arms import cell, film_strip, markdown, run_stages, train_once
from magvid.flags import Flag, Program, guarded, leave, parse, program_help

PROGRAM = Program(
    "python experiments/commit_ablation.py",
    "Train and score every arm of the ablation, or go on with that; write tables and pictures.",
    [
        Flag("seeds", "int", 3, "N", "runs of every arm", 1),
        Flag("clips", "int", 200, "N", "held-out clips to score on", 1),
        Flag("tasks", "str", "CFP,MT8", "NAME[,NAME]", "CFP alone takes half of the time"),
        Flag("jobs", "int", 0, "N", "arms at the same time; default: one for each core, or 1 on an accelerator", 0),
        Flag("workdir", "str", None, "FOLDER", "where everything is written; default: runs/ablation"),
        Flag("smoke", "bool", False, "", "two steps of tiny models: for tests"),
    ],
    [""],
)

TOKENIZERS = {  # row of the table: (name of the run, argument of the config)
    "2D-VQ": ("vq2d", "part=vq2d"),
    "3D-VQ, from scratch": ("vq3d-none", "part=vq3d,inflate=0"),
    "3D-VQ, average inflation": ("vq3d-average", "part=vq3d,inflate=average"),
    "3D-VQ, central inflation": ("vq3d-central", "part=vq3d,inflate=central"),
}
ARMS = {  # row of the table: (row of the config, how it is decoded where not as it was trained)
    "latent masking, MTM decoding (MaskGIT)": ("latent", None),
    "the same on 2D tokens": ("maskgit_2d", None),
    "prefix condition": ("prefix", None),
    "autoregressive": ("ar", None),
    "COMMIT, L_mask": ("commit_mask", None),
    "COMMIT, L_mask + L_recons": ("commit_mask_recons", None),
    "COMMIT, L_mask + L_recons + L_refine": ("commit", None),
    "the same, MTM decoding": ("commit", "latent"),
    "untrained": ("untrained", None),
}
COPY = "copy of the padded condition"
SINGLE = (*ablation.ONE_TASK, "maskgit_2d")  # trained on the one task only
SETS = {"CFP": ("CFP",), "MT8": ablation.EIGHT}
HEADERS = {
    "CFP": ["CFP: skill", "CFP: shape and action right", "CFP: given frame, dB below the tokenizer"],
    "MT8": ["MT8: mean skill", "MT8: given pixels, dB below the tokenizer"],
}


def runs_of(seed: int, smoke: bool, root: str, sets: Sequence[str] = tuple(SETS)) -> list[dict[str, str]]:
    """[{name of the run: argument of its config}, ...]: all of one stage can be trained at the same time."""
    common = f"seed={seed},smoke={int(smoke)},root={root}"
    first = {f"{name}-{seed}": f"{arg},{common}" for name, arg in TOKENIZERS.values()}
    stages = [{f"vq2d-{seed}": first.pop(f"vq2d-{seed}")}, first]
    for tasks in sets:
        rows = [row for row in dict.fromkeys(row for row, _ in ARMS.values()) if tasks == "CFP" or row not in SINGLE]
        stages.append({f"{row}-{tasks}-{seed}": f"part=transformer,row={row},tasks={tasks},{common}" for row in rows})
    return stages


def config_of(arg: str):
    """The config of an arm; row=untrained is COMMIT after one step at a rate of 0."""
    if "row=untrained" not in arg:
        return ablation.get_config(arg)
    config = ablation.get_config(arg.replace("row=untrained", "row=commit"))
    config.steps = 1
    config.optim.transformer.rules[0][1].update(warmup=1, decay="constant")  # the first step of a warm-up has a rate of 0
    return config


# One arm, in a process of its own ------------------------------------------------------------------------------------


def train_and_score(name: str, arg: str, workdir: str, clips: int) -> tuple[str, dict]:
    """(name, {decoding: numbers}) of one run; what is done already is not done again."""
    from magvid import runs

    folder = pathlib.Path(workdir) / name
    kept = folder / "done.json"
    train_once(config_of(arg), folder)
    run = runs.open_run(folder)
    wanted = dict(hash=run.hash, clips=clips)
    if kept.exists() and (done := json.loads(kept.read_text()))["made of"] == wanted:
        return name, done["scores"]
    scores = {"": score(run, clips, folder)}
    if name.startswith("vq"):
        scores["codes"] = code_usage(run, clips)
    for row, decoding in ARMS.values():
        if decoding and name.startswith(f"{row}-"):
            run.config["objective"]["decoding"]["conditioning"] = dict(
                target="magvid.masked.commit:Conditioning", **ablation.CONDITIONING[decoding][0]
            )
            scores[decoding] = score(run, clips, folder, suffix=f"-{decoding}")
    runs.write_json(kept, {"made of": wanted, "scores": scores})
    return name, scores


def score(run, clips: int, folder: pathlib.Path, suffix: str = "") -> dict:
    """{"reconstruction": {...}, task: {...}} of magvid's evaluation; keeps the first clips that were generated."""
    from magvid.evaluate import evaluate_run

    found = evaluate_run(run, clips=clips, batch=min(clips, 40))
    shown = {task: np.stack([e.generated for e in some]) for task, some in found.examples.items()}
    shown |= {f"real/{task}": np.stack([e.real for e in some]) for task, some in found.examples.items()}
    given = {t: some for t, some in found.examples.items() if some[0].condition is not None}
    shown |= {f"condition/{task}": np.stack([e.condition for e in some]) for task, some in given.items()}
    np.savez_compressed(folder / f"examples{suffix}.npz", **shown)
    return {"reconstruction": found.numbers["reconstruction"], **found.numbers["tasks"]}


def code_usage(run, clips: int) -> dict[str, float]:
    """Share of the codebook that occurs in the clips, and perplexity 2^H of how often each code does."""
    import jax

    from magvid.generator import Clips, Generator
    from magvid.objectives.vqgan import scale

    model = Generator.open(run, batch=min(clips, 40))
    tokenizer = model.programs.objective.tokenizer
    encode = jax.jit(lambda p, v: tokenizer.apply({"params": p["tokenizer"]}, scale(v), method="encode_ids"))
    counts = np.zeros(tokenizer.quantizer.size)
    for rows in Clips.of(model.config).batches(0, clips, model.batch):
        counts += np.bincount(np.asarray(encode(model.params, rows["video"])).ravel(), minlength=len(counts))
    share = counts[counts > 0] / counts.sum()
    return {"usage": float(np.mean(counts > 0)), "perplexity": float(np.exp(-np.sum(share * np.log(share))))}


def copy_scores(workdir: pathlib.Path, clips: int, tasks: str) -> dict[str, dict[str, float]]:
    """Scores of the padded conditions themselves."""
    from magvid import runs
    from magvid.build import build
    from magvid.evaluate import METRICS, Scores
    from magvid.generator import Clips, Generator

    model = Generator.open(runs.open_run(workdir / f"commit-{tasks}-0"), batch=min(clips, 40))
    metrics = [*METRICS, *build(tuple(model.config["metrics"]))]
    found = {task: Scores(metrics) for task in model.tasks}
    for rows in Clips.of(model.config).batches(0, clips, model.batch):
        reconstruction = model.reconstruct(rows)
        for i, task in enumerate(model.tasks):
            condition, given = model.condition({**rows, "task": np.full(len(rows["video"]), i, np.int32)})
            videos = dict(video=condition, condition=condition, given=given, reconstruction=reconstruction)
            found[task].add({**rows, "target": rows["video"], **videos})
    return {task: scores.result() for task, scores in found.items()}


# Tables --------------------------------------------------------------------------------------------------------------


def tokenizer_table(scores: Mapping[str, Mapping], seeds: range) -> str:
    rows = []
    for title, (name, _) in TOKENIZERS.items():
        of = [scores[f"{name}-{s}"] for s in seeds]
        pick = lambda part, key: [o[part].get(key) for o in of]
        reconstruction = [o[""]["reconstruction"] for o in of]
        psnr, right = ([r.get(k) for r in reconstruction] for k in ("psnr", "accuracy"))
        usage, perplexity = pick("codes", "usage"), pick("codes", "perplexity")
        rows.append([title, cell(psnr), cell([100 * u for u in usage], 0), cell(perplexity, 0), cell(right)])
    return markdown(["tokenizer", "PSNR, dB", "codes used, %", "perplexity", "shape and action read right"], rows)


def arm_table(scores: Mapping[str, Mapping], copies: Mapping[str, Mapping], seeds: range) -> str:
    rows = []
    for title, (row, decoding) in ARMS.items():
        columns = []
        for tasks in copies:
            if f"{row}-{tasks}-0" not in scores:
                columns += ["–"] * len(HEADERS[tasks])
                continue
            of = [scores[f"{row}-{tasks}-{s}"][decoding or ""] for s in seeds]
            columns += arm_cells(of, tasks)
        rows.append([title, *columns])
    copied = [[*arm_cells([found], tasks)[:-1], "exact"] for tasks, found in copies.items()]  # nothing is tokenized
    rows.append([COPY, *(cell for cells in copied for cell in cells)])
    return markdown(["arm", *(name for tasks in copies for name in HEADERS[tasks])], rows)


def arm_cells(of: Sequence[Mapping], tasks: str) -> list[str]:

    def mean(o: Mapping, key: str) -> float | None:
        values = [o[t][key] for t in SETS[tasks]]
        return None if None in values else float(np.mean(values))

    skill, gap = ([mean(o, key) for o in of] for key in ("skill", "given_gap"))
    right = [cell([o["CFP"].get("accuracy") for o in of])] if tasks == "CFP" else []
    return [cell(skill), *right, cell(gap)]


# Pictures ------------------------------------------------------------------------------------------------------------


def picture(workdir: pathlib.Path, tasks: str, task: str, out: pathlib.Path, clip: int = 0) -> None:
    """Frames of one clip: the condition, what each arm of seed 0 makes of it, and the real one."""
    found, real = {}, {}
    for title, (row, decoding) in ARMS.items():
        file = workdir / f"{row}-{tasks}-0" / f"examples{f'-{decoding}' if decoding else ''}.npz"
        if file.exists():
            with np.load(file) as arrays:
                found[title] = arrays[task][clip]
                real = {"given (padded)": arrays[f"condition/{task}"][clip], "real": arrays[f"real/{task}"][clip]}
    film_strip({**real, **found}, out)


def reconstructions(workdir: pathlib.Path, out: pathlib.Path, clip: int = 1) -> None:
    """Frames of one clip as each tokenizer of seed 0 reconstructs them."""
    rows = {}
    for title, (name, _) in TOKENIZERS.items():
        with np.load(workdir / f"{name}-0" / "examples.npz") as arrays:
            rows = {"real": arrays["real/reconstruction"][clip], **rows, title: arrays["reconstruction"][clip]}
    film_strip(rows, out)


# All -----------------------------------------------------------------------------------------------------------------


def run_all(options, sets: Sequence[str], workdir: pathlib.Path, say: Callable[[str], None]) -> dict[str, dict]:
    """{name of the run: its scores}."""
    of_seeds = [runs_of(seed, options.smoke, str(workdir), sets) for seed in range(options.seeds)]
    stages = [dict(item for stage in same for item in stage.items()) for same in zip(*of_seeds, strict=True)]
    return dict(run_stages(stages, train_and_score, (str(workdir), options.clips), options.jobs, say))


def main(argv: list[str]) -> None:
    if {"--help", "-h"} & set(argv):
        print(program_help(PROGRAM))
        return
    options = parse(PROGRAM, argv, need="")
    from magvid import runs
    from magvid.types import UserError

    workdir = pathlib.Path(options.workdir or ROOT / "runs" / ("ablation-smoke" if options.smoke else "ablation"))
    workdir = workdir.expanduser().absolute()
    runs.make_folder(workdir, "--workdir")
    if "," in str(workdir):  # it is part of a config's argument
        raise UserError(f"--workdir={workdir} has a comma: choose another folder")
    sets = tuple(options.tasks.split(","))
    if "CFP" not in sets or set(sets) - set(SETS):
        raise UserError(f"--tasks={options.tasks}: give CFP, or CFP,MT8")
    scores = run_all(options, sets, workdir, lambda text: print(text, flush=True))
    copies = {tasks: copy_scores(workdir, options.clips, tasks) for tasks in sets}
    runs.write_json(workdir / "scores.json", {"scores": scores, "copy": copies})
    seeds = range(options.seeds)
    tables = f"{tokenizer_table(scores, seeds)}\n\n{arm_table(scores, copies, seeds)}\n"
    (workdir / "table.md").write_text(tables)
    picture(workdir, "CFP", "CFP", workdir / "cfp.png")
    for task in ("OPC", "FI") if "MT8" in sets else ():
        picture(workdir, "MT8", task, workdir / f"mt8_{task.lower()}.png")
    reconstructions(workdir, workdir / "tokenizers.png")
    print(f"{tables}\nwrote {workdir / 'table.md'}, scores.json and pictures")


if __name__ == "__main__":
    leave(guarded("commit_ablation", sys.argv[1:], main))
