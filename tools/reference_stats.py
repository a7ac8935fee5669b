"""Features of real clips, kept once for all evaluations: FVD and KVD then compare with these in place of the clips that are evaluated on.

    python tools/reference_stats.py --config=configs/commit_ucf101.py:size=B,i3d=weights/i3d.npz --split=train --clips=9537 --out=weights/ucf101-real.npz
    magvid evaluate --run=runs/commit_ucf101-B --data=configs/commit_ucf101.py:size=B,i3d=weights/i3d.npz,real=weights/ucf101-real.npz --clips=3783

Videos are drawn at random (--seed) without replacement from the config's training or held-out ones; of each the middle is read, not mirrored, and prepared and
understood as the config's metric does it. The file says of which clips, preparation and weights it is; a metric of another kind refuses it. Fields of the config
may be overridden, such as --config.data.train.source.path=FOLDER.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np

from magvid.flags import Flag, Program, guarded, leave, load_config, parse, program_help, use_huge_pages
from magvid.types import UserError

PROGRAM = Program(
    "python tools/reference_stats.py",
    "Keep I3D's features of real clips, which FVD and KVD compare generated ones with.",
    [
        Flag("config", "str", None, "FILE.py:ARG", "whose clips, and whose metric: give it i3d=FILE"),
        Flag("split", "str", "train", "train|eval", "training or held-out clips"),
        Flag("clips", "int", 2048, "N", "how many, drawn at random", 2),
        Flag("seed", "int", 0, "N", "of the drawing", 0),
        Flag("batch", "int", 16, "N", "clips read at a time", 1),
        Flag("out", "str", None, "FILE.npz", "where to write"),
    ],
    ["--config=configs/commit_ucf101.py:i3d=weights/i3d.npz --clips=9537 --out=weights/ucf101-real.npz"],
)


def kept(config: dict, split: str, clips: int, seed: int, batch: int, say=print) -> dict[str, np.ndarray]:
    """What the file holds: `features` (n 400) float32, the metric's label, and what was read as JSON, `about`. UserError for a config without FVD."""
    from magvid import runs
    from magvid.build import build
    from magvid.data import pipeline
    from magvid.generator import Clips

    specs = [spec for spec in config["metrics"] if spec["target"] == "magvid.metrics.frechet:VideoDistance"]
    if not specs:
        raise UserError("the config measures no FVD: give it the argument i3d=FILE, the weights of I3D by tools/convert_features.py")
    if split not in config["data"]:
        raise UserError(f"the config has no data.{split}: it has {', '.join(config['data'])}")
    spec, groups, _ = runs.resolve_spec({k: v for k, v in specs[0].items() if k != "real"}, "metrics")
    section = dict(config["data"][split])
    section["transforms"] = [t for t in section.get("transforms", ()) if t["target"] != "magvid.data.pipeline:Augment"]
    metric, data = build(spec).with_weights(groups), Clips.of({"data": {"train": section}})
    total = len(data.source)
    if total < clips:
        say(f"there are only {total} clips, {clips} were asked for")
    chosen = np.sort(np.random.default_rng(seed).permutation(total)[:clips])
    found, clip = [], ()
    for rows in pipeline.epoch(Chosen(data.source, chosen), batch, data.transforms):
        video = rows["video"][rows["valid"]]
        found.append(metric.logits(video))
        clip = video.shape[1:4]
        say(f"{sum(map(len, found))} of {len(chosen)} clips")
    about = dict(world=data.world, split=split, clips=len(chosen), of=total, seed=seed, **section)
    return dict(features=np.concatenate(found), **{k: np.str_(v) for k, v in metric.label(clip).items()}, about=np.str_(json.dumps(about, default=str)))


class Chosen:
    """Some records of a source."""

    def __init__(self, source, indices: np.ndarray):
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> dict:
        return self.source[int(self.indices[i])]


def main(argv: list[str]) -> None:
    if {"--help", "-h"} & set(argv):
        print(program_help(PROGRAM))
        return
    flags = parse(PROGRAM, argv, "config out")
    out = pathlib.Path(flags.out)
    if out.suffix != ".npz":
        raise UserError(f"--out={out} should end in .npz")
    if flags.split not in ("train", "eval"):
        raise UserError(f"--split={flags.split} is none of train, eval")
    from magvid import runs
    from magvid.job import check_config

    runs.check_writable(out.parent, "--out")
    config = parse(PROGRAM, argv, "config out", config=load_config(flags.config)).config
    arrays = kept(check_config(config), flags.split, flags.clips, flags.seed, flags.batch)
    runs.make_folder(out.parent, "--out")
    np.savez(out, **arrays)
    print(f"{out}: features of {len(arrays['features'])} clips of {arrays['clip']}, {arrays['net']}")


if __name__ == "__main__":
    use_huge_pages()
    leave(guarded("reference_stats", sys.argv[1:], main))
