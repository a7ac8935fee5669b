"""MAVIN on sprites: train the transition model and its ablations from nothing, join the ends of held-out clips, score, report.

    python experiments/mavin_sprites.py [--budget=quick|long] [--seeds=3] [--clips=200] [--jobs=N] [--workdir=FOLDER]

Every arm has the same budget (configs/mavin_sprites.py), and all share an autoencoder and CLIP; scores are means over seeds with 95 % intervals
(Student's t), of held-out test clips of two actions whose middle is hidden, with gaps of 2 to 10 frames. Also the metric itself on damaged
clips, and a sweep of the Gaussian filter mixer. An interrupted experiment goes on when the same command is given again. Results:
WORKDIR/report.html, table.md, scores.json and *.png.
"""

import functools
import json
import pathlib
import sys
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the configs live beside this folder

import numpy as np

from configs import clip_sprites, mavin_sprites, vae_sprites
from experiments.arms import command_line, film_strip, films, markdown, moved, opened, run_stages, score, slug, table, train_once, untrained
from magvid.flags import guarded, leave, program_help, use_huge_pages

PROGRAM = command_line("mavin_sprites", "Train and score MAVIN's transition model and its ablations, or go on with that; write tables, pictures and a page.")
TRAINED = {"full": "", "no-bfg": "bfg=0", "bert": "noising=bert", "one-length": "variable=0", "noise": "prediction=eps", "untrained": ""}
ROWS = {  # row of the table: (trained run, argument of the config that samples from it)
    "MAVIN": ("full", ""),
    "no Gaussian filter mixer": ("full", "gfm=none"),
    "mixer as released (temporal frequencies)": ("full", "gfm=official3d"),
    "FreeInit's filter": ("full", "gfm=freeinit3d"),
    "no boundary frame guidance": ("no-bfg", "bfg=0"),
    "no guidance, mixer as released": ("no-bfg", "bfg=0,gfm=official3d"),
    "BERT-style masking": ("bert", "noising=bert"),
    "gaps of one length": ("one-length", "variable=0"),
    "noise predicted, not v": ("noise", "prediction=eps"),
    "noise predicted, no mixer": ("noise", "prediction=eps,gfm=none"),
    "noise predicted, mixer as released": ("noise", "prediction=eps,gfm=official3d"),
    "untrained": ("untrained", ""),
}
BASELINES = {"linear between latents": "interpolate", "boundary frames held": "hold"}
LIMIT = "autoencoder alone"
SHOWN = ("real", "given", "MAVIN", "BERT-style masking", "linear between latents")  # in the picture
COLUMNS = {  # of the table: (name of the number, digits, factor)
    "position at the boundary, px": ("position", 2, 1),
    "velocity at the boundary, px/frame": ("velocity", 2, 1),
    "track, px": ("track", 2, 1),
    "largest step, px": ("step", 2, 1),
    "drawing agrees": ("agrees", 3, 1),
    "shape and colour, %": ("identity", 0, 100),
    "action before, %": ("before", 0, 100),
    "action after, %": ("after", 0, 100),
    "CLIP-RS": ("clip_rs", 4, 1),
    "gap PSNR, dB": ("gap_psnr", 1, 1),
}
SWEPT = "noise"  # the run whose mixer's cut-offs are swept: where v is predicted the mixer matters little
SWEEP = {"f0": (0.2, 0.4, 0.6, 0.8), "decay": (0.0, 0.05, 0.1, 0.2)}
DAMAGES = ("shuffled", "jump", "hue", "blur")


# One arm, in a process of its own ------------------------------------------------------------------------------------


def config_of(arg: str, workdir: pathlib.Path) -> dict:
    """The config of an arm, with the towers of `workdir`."""
    config = mavin_sprites.get_config(arg)
    config.eval_every = 0
    config.data.eval.source["split"] = "test"  # the budget was tuned on validation clips
    return moved(config.to_dict(), workdir)


def train_towers(name: str, arg: str, workdir: str) -> tuple[str, None]:
    """The autoencoder or CLIP, in a process of its own."""
    make = dict(vae=vae_sprites, clip=clip_sprites)[name]
    train_once(make.get_config(arg), pathlib.Path(workdir) / name)
    return name, None


def train_and_score(name: str, arm: tuple[str, str, Mapping], workdir: str, clips: int) -> tuple[str, dict]:
    """(name, {row of the table: numbers}) of one run; what is done already is not done again. `arm`: what is trained, the config's argument,
    {row: argument to sample with}.
    """
    from magvid import runs

    (trained, arg, rows), workdir = arm, pathlib.Path(workdir)
    folder = workdir / name
    config = config_of(f"{arg},{TRAINED[trained]}".strip(","), workdir)
    train_once(untrained(config) if trained == "untrained" else config, folder)
    run, scores = runs.open_run(folder), {}
    for row, change in rows.items():
        config = config_of(f"{arg},{change}".strip(","), workdir)
        scores[row] = score_as(run, config["objective"]["sampling"], clips, folder, row)
    return name, scores


def score_as(run, sampling: Mapping, clips: int, folder: pathlib.Path, row: str) -> dict:
    run.config["objective"]["sampling"] = dict(sampling)
    return score(run, clips, folder, row, "TVI", EXAMPLES)


EXAMPLES = 8


# Without a network, and the metric itself -----------------------------------------------------------------------------


def open_metrics(config: Mapping) -> list:
    """Those that the config names, with their weights."""
    from magvid import evaluate

    return [m for m in evaluate.open_metrics(config["metrics"])[0] if m not in evaluate.METRICS]


def baselines(workdir: pathlib.Path, clips: int) -> tuple[dict[str, dict], dict[str, np.ndarray]]:
    """({row: numbers}, {row: the first clips}) of latents that are filled in without a network."""
    import jax

    from magvid import runs
    from magvid.diffusion import mavin as mathematics
    from magvid.evaluate import Scores
    from magvid.generator import Clips, Generator
    from magvid.video import to_uint8

    model = Generator.open(runs.open_run(workdir / "full-0"), batch=min(clips, 40))
    objective, metrics = model.programs.objective, open_metrics(model.config)

    def fill(params, rows, how):
        z = objective.latents(params, rows, None)
        return objective.decode(params, z if how is None else how(z, rows["known"]))

    forms = {LIMIT: None} | {row: getattr(mathematics, name) for row, name in BASELINES.items()}
    programs = {row: jax.jit(functools.partial(fill, how=how)) for row, how in forms.items()}
    scores, shown = {row: Scores(metrics) for row in forms}, {}
    for rows in Clips.of(model.config).batches(0, clips, model.batch):
        condition, given = model.condition({**rows, "task": np.zeros(len(rows["video"]), np.int32)})
        for row, program in programs.items():
            video = to_uint8(np.asarray(program(model.params, {k: rows[k] for k in ("video", "known")})))
            shown.setdefault(row, video[:EXAMPLES])
            scores[row].add({**rows, "video": video, "target": rows["video"], "condition": condition, "given": given})
    return {row: s.result() for row, s in scores.items()}, shown


def damaged(video: np.ndarray, gap: np.ndarray, how: str, rng: np.random.Generator) -> np.ndarray:
    """One clip whose gap is put out of order in time ("shuffled"; "jump": frozen, then jumping), or all of whose frames look otherwise
    ("hue": colours turned by a third; "blur").
    """
    from PIL import Image, ImageFilter

    video, frames = video.copy(), np.flatnonzero(gap)
    if how == "shuffled":
        order = frames
        while np.array_equal(order, frames):
            order = rng.permutation(frames)
        video[frames] = video[order]
    elif how == "jump":
        video[frames[: len(frames) // 2]] = video[frames[0] - 1]
    elif how == "hue":
        video = video[..., [1, 2, 0]]
    elif how == "blur":
        video = np.stack([np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(1.0))) for frame in video])
    return video


def validate_metric(workdir: pathlib.Path, clips: int) -> dict[str, dict]:
    """{damage: numbers} of real clips damaged in their gaps: what CLIP-RS says of motion, and what of looks."""
    from magvid import runs
    from magvid.evaluate import Scores
    from magvid.generator import Clips

    config = runs.open_run(workdir / "full-0").config
    metrics, scores = open_metrics(config), {}
    for how in DAMAGES:
        scores[how] = Scores(metrics)
        for rows in Clips.of(config).batches(0, clips, min(clips, 40)):
            given = np.broadcast_to(rows["known"][..., None, None, None], (*rows["video"].shape[:-1], 1))
            draws = [np.random.default_rng(int(i)) for i in rows["index"]]
            video = np.stack([damaged(v, ~known, how, rng) for v, known, rng in zip(rows["video"], rows["known"], draws)])
            scores[how].add({**rows, "video": video, "target": rows["video"], "condition": rows["video"], "given": given})
    return {how: s.result() for how, s in scores.items()}


def sweep(name: str, arm: str, workdir: str, clips: int, trained: str) -> tuple[str, dict]:
    """(name, numbers) of the first seed's model of this name, sampled as the config with this argument."""
    from magvid import runs

    config, folder = config_of(arm, pathlib.Path(workdir)), pathlib.Path(workdir) / f"{trained}-0"
    return name, score_as(runs.open_run(folder), config["objective"]["sampling"], clips, folder, name)


# Tables --------------------------------------------------------------------------------------------------------------


def rows_of(scores: Mapping[str, Mapping], fixed: Mapping[str, Mapping], seeds: int) -> dict[str, list[Mapping]]:
    """{row of the table: numbers of each seed}: the arms, then what has no seed."""
    found = {row: [scores[f"{trained}-{seed}"][row] for seed in range(seeds)] for row, (trained, _) in ROWS.items()}
    return found | {row: [numbers] for row, numbers in fixed.items()}


def lengths() -> dict[str, tuple[str, int, float]]:
    """Columns: the track's distance by the length of the gap."""
    low, high = mavin_sprites.GAP["end"][0] - mavin_sprites.GAP["start"][1], mavin_sprites.GAP["end"][1] - mavin_sprites.GAP["start"][0]
    return {f"{n} frames": (f"track_{n}", 2, 1) for n in range(low, high + 1, 2)}


# All -----------------------------------------------------------------------------------------------------------------


def main(argv: list[str]) -> None:
    if {"--help", "-h"} & set(argv):
        print(program_help(PROGRAM))
        return
    options, workdir = opened(PROGRAM, argv, mavin_sprites.BUDGETS)
    from experiments.chain import Stages, versions, write_json
    from experiments.mavin_report import write_report
    from magvid import runs

    runs.make_folder(workdir, "--workdir")
    stages, say = Stages(workdir / "seconds.json"), lambda text: print(text, flush=True)
    common = f"budget={options.budget},smoke={int(options.smoke)}"
    clips, some = options.clips, min(options.clips, 64)
    towers = [{"vae": common, "clip": common}]
    stages.run("towers", lambda: list(run_stages(towers, train_towers, (str(workdir),), options.jobs, say)))
    rows = {t: {row: change for row, (trained, change) in ROWS.items() if trained == t} for t in TRAINED}
    arms = [{f"{t}-{seed}": (t, f"{common},seed={seed}", rows[t]) for seed in range(options.seeds) for t in TRAINED if rows[t]}]
    scores = stages.run("arms", lambda: dict(run_stages(arms, train_and_score, (str(workdir), clips), options.jobs, say)))
    swept = f"{common},{TRAINED[SWEPT]}"
    points = {f"f0 {f0:g} decay {decay:g}": f"{swept},f0={f0},decay={decay}" for f0 in SWEEP["f0"] for decay in SWEEP["decay"]}
    points = dict(list(points.items())[: 1 if options.smoke else None])
    swept = stages.run("sweep", lambda: dict(run_stages([points], sweep, (str(workdir), some, SWEPT), options.jobs, say)))
    fixed, shown = stages.run("baselines", baselines, workdir, clips)
    metric = stages.run("metric", validate_metric, workdir, clips)
    result = dict(
        world=mavin_sprites.BUDGETS[options.budget]["world"], budget=options.budget, clips=clips, swept_clips=some, seeds=options.seeds,
        scores=scores, fixed=fixed, sweep=swept, metric=metric, seconds=stages.seconds, versions=versions(),
        settings=json.loads((workdir / "full-0" / f"{slug('MAVIN')}.json").read_text())["settings"],
        config={part: json.loads((workdir / part / "config.json").read_text()) for part in ("vae", "clip", "full-0")},
    )  # fmt: skip
    write_json(workdir / "scores.json", result)
    found = rows_of(scores, fixed, options.seeds)
    texts = [markdown(*table(columns, found)) for columns in (COLUMNS, lengths())]
    (workdir / "table.md").write_text("\n\n".join(texts) + "\n")
    files = {row: workdir / f"{trained}-0" / f"{slug(row)}.npz" for row, (trained, _) in ROWS.items()}
    examples = films(files, {row: video for row, video in shown.items() if row != LIMIT}, ("real", "condition"))
    film_strip({f"{row} {i + 1}": film[row] for i, film in enumerate(examples[:5]) for row in SHOWN if row in film}, workdir / "transitions.png")
    write_report(workdir, result, examples)
    print("\n\n".join(texts) + f"\n\nwrote {workdir / 'report.html'}, table.md, scores.json and pictures")


if __name__ == "__main__":
    use_huge_pages()
    leave(guarded("mavin_sprites", sys.argv[1:], main))
