"""Clips that are not square, and of other sizes than those a run was trained on; t, h and w are all different."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest
import tiny_runs

from magvid.__main__ import main
from magvid.build import build
from magvid.video import read_video, write_video
from test_configs import with_own_tokenizer

WIDE = 24
WIDER = [f"--config.data.{part}.source.width={WIDE}" for part in ("train", "eval")]


@functools.cache
def wide_run() -> pathlib.Path:
    """A transformer on clips of 8x16x24, on the tokenizer that was trained on 8x16x16."""
    command = ["train", f"--config={tiny_runs.TINY}:masked,{tiny_runs.tokenizer_run()}", *WIDER]
    workdir = tiny_runs.folder() / "wide"
    assert main([*command, f"--workdir={workdir}", "--config.objective.transformer.length=50"]) == 0
    return workdir


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    write_video(path, np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3)).astype(np.uint8), 25)
    return path


def test_a_wide_run_samples_every_task_from_a_file(tmp_path, clip):
    command = ["sample", f"--run={wide_run()}", "--number=1", "--format=gif", "--scale=1", "--label=3"]
    assert main([*command, f"--video={clip}", f"--out={tmp_path}"]) == 0
    videos = [p for p in tmp_path.glob("*.gif") if not p.name.startswith("grid")]
    assert len(videos) == 10 and all(read_video(p)[0].shape == (8, 16, WIDE, 3) for p in videos)


def test_a_wide_run_is_evaluated(capsys):
    assert main(["evaluate", f"--run={wide_run()}", "--clips=4", "--tasks=FP,OPV,IPD", "--batch=8"]) == 0
    numbers = json.loads((wide_run() / "evaluation.json").read_text())
    assert set(numbers["tasks"]) == {"FP", "OPV", "IPD"} and np.isfinite(numbers["reconstruction"]["psnr"])


def test_a_tokenizer_is_evaluated_at_another_size(tmp_path):
    out = tmp_path / "wide.json"
    command = ["evaluate", f"--run={tiny_runs.tokenizer_run()}", "--clips=4", "--batch=8", f"--out={out}"]
    assert main([*command, *WIDER, "--config.data.eval.source.frames=12"]) == 0
    assert np.isfinite(json.loads(out.read_text())["reconstruction"]["psnr"])


OTHER = {
    "sample --run={wide} --video={clip} --size=24x16": "clips of 8x24x16 (t h w) make 2x6x4 tokens",
    "sample --run={masked} --video={clip} --size=16x24": "it takes clips of 8x16x16 only",
    "sample --run={wide} --config.data.eval.source.width=16 --config.data.eval.source.height=24": "takes clips of 8x16x24 only",
    "sample --run={wide} --config.data.eval.source.frames=16": "make 4x4x6 tokens, but this transformer has learned positions",
    "evaluate --run={wide} --config.data.eval.source.width=32": "make 2x4x8 tokens",
    "train --config={tiny}:masked,{vq} --workdir={new} --config.data.train.source.width=24": "set transformer.length=50",
    "train --config={tiny}:masked,{vq} --workdir={masked} --config.data.train.source.width=24": "data.train.source.width (16 -> 24)",
    "train --config={tiny} --workdir={new} --config.data.train.source.width=18": "cannot be cut into patches of 4x4x4",
    "sample --run={vq} --video={clip} --size=18x16": "cannot be cut into patches of 4x4x4: give multiples",
    "sample --run={vq} --config.data.eval.source.width=18": "cannot be cut into patches",
    "evaluate --run={vq} --config.data.eval.source.width=18": "cannot be cut into patches",
}


@pytest.mark.parametrize("command", OTHER)
def test_a_size_that_does_not_fit_is_one_line(command, clip, tmp_path, capsys):
    places = dict(wide=wide_run(), masked=tiny_runs.masked_run(), vq=tiny_runs.tokenizer_run(), clip=clip)
    places |= dict(tiny=tiny_runs.TINY, new=tmp_path / "new")
    out = [f"--out={tmp_path / 'out.json'}"] if "evaluate" in command else []
    out += [f"--out={tmp_path}"] if "sample" in command else []
    assert main([*command.format(**places).split(), *out]) == 2
    err = capsys.readouterr().err
    assert OTHER[command] in err and err.count("\n") == 1


def test_published_settings_at_another_size():
    """The tokenizer takes any; the transformer says what to set. Shapes only."""
    video = dict(video=np.zeros((1, 12, 64, 160, 3), np.uint8), label=np.zeros(1, int), task=np.zeros(1, int))
    init = lambda name, arg: jax.eval_shape(
        build(with_own_tokenizer(name, arg).objective.to_dict()).init, jax.random.key(0), video
    )
    with pytest.raises(ValueError, match="transformer.length=1025, but clips of 12x64x160 .* make 481 tokens"):
        init("commit_ucf101", "size=B")
    assert {"tokenizer", "discriminator"} <= set(init("vq3d_ucf101", "perceptual=0"))
