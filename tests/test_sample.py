import dataclasses
import json
import shutil

import numpy as np
import pytest
import tiny_runs

from magvid.__main__ import main
from magvid.data.sprites import Sprites
from magvid.runs import open_run
from magvid.sample import Options, find_class, sample_run
from magvid.types import UserError
from magvid.video import read_video, write_video

NAMES = ("disc moving left", "disc growing", "square moving left")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    write_video(path, Sprites(frames=12, height=48, width=64, split="test")[0]["video"], 25)
    return path


def echo(out, **options):
    return sample_run(tiny_runs.echo_run(0.5, 0.2), Options(out=str(out), **options), trust=True)


def test_one_file_per_clip_and_task_and_a_grid(tmp_path):
    paths = echo(tmp_path, index=3, number=2, format="gif", scale=1, seed=7)
    assert [p.name for p in paths] == [
        f"{n}_seed7.gif" for n in ("FP_00003", "FP_00004", "CG_00003", "CG_00004", "grid_2tasks_00003")
    ]
    for path in paths[:-1]:
        assert read_video(path)[0].shape == (8, 16, 16, 3)
    frames, height, width, _ = read_video(paths[-1])[0].shape
    assert frames == 8 and height > 4 * 96 and width > 3 * 96


def test_small_clips_are_enlarged_to_be_seen(tmp_path):
    assert read_video(echo(tmp_path, tasks=["FP"], number=1)[0])[0].shape == (8, 128, 128, 3)
    assert read_video(echo(tmp_path, tasks=["FP"], number=1, scale=2)[0])[0].shape == (8, 32, 32, 3)


def test_equal_seeds_give_equal_videos(tmp_path):
    def read(name, **options):
        paths = echo(tmp_path / name, tasks=["FP"], format="gif", scale=1, **options)
        return read_video(paths[0])[0]

    first = read("a", number=1)
    np.testing.assert_array_equal(read("b", number=2), first)  # whatever its neighbours
    assert (read("c", number=1, seed=1) != first).any() and (read("d", number=1, index=1) != first).any()


def test_a_video_file_is_the_condition(tmp_path, capsys, clip):
    run = tiny_runs.masked_run()
    capsys.readouterr()  # of the training
    command = [
        "sample",
        f"--run={run}",
        "--task=FP,CFP5",
        f"--video={clip}",
        "--label=disc growing",
        "--number=2",
    ]
    assert main([*command, f"--out={tmp_path}", "--steps=2", "--temperature=0.5", "--format=gif", "--scale=1"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "clip.mp4: 8 frames at 25 per second, 64x48 pixels centre-cropped and resized to 16x16"
    names = ["FP_clip_00", "FP_clip_01", "CFP5_clip_00", "CFP5_clip_01", "grid_2tasks_clip_00"]
    asked = "seed0_labeldisc-growing_steps2_temperature0.5"
    assert said[1:] == [str(tmp_path / f"{n}_{asked}.gif") for n in names]
    one, two = (read_video(tmp_path / f"{n}_{asked}.gif")[0] for n in names[:2])
    assert one.shape == (8, 16, 16, 3) and (one != two).any()


def test_a_video_file_needs_no_data_set(tmp_path, capsys, clip):
    """A run whose data has moved reads the file as data.json says; without data.json it asks the data."""
    folder = shutil.copytree(tiny_runs.echo_run().path, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    for part in ("train", "eval"):
        size = dict(frames=8, height=16, width=16)
        config["data"][part]["source"] = dict(target="magvid.data.folder:VideoFolder", path="/nowhere", **size)
    (folder / "config.json").write_text(json.dumps(config))
    command = [
        "sample",
        f"--run={folder}",
        f"--video={clip}",
        "--number=1",
        "--task=FP",
        "--trust",
        f"--out={tmp_path}",
    ]
    assert main([*command, "--scale=1"]) == 0
    assert read_video(tmp_path / "FP_clip_00_seed0.mp4")[0].shape == (8, 16, 16, 3)
    assert main([*command, "--config.data.eval.source.frames=9"]) == 2 and "/nowhere" in capsys.readouterr().err
    (folder / "data.json").write_text("[]")
    assert main(command) == 2 and "data.json holds []" in capsys.readouterr().err
    (folder / "data.json").unlink()
    assert main(command) == 2 and "/nowhere" in capsys.readouterr().err


def test_a_video_without_a_class_leaves_out_what_needs_one(tmp_path, capsys, clip):
    run = tiny_runs.echo_run(labels=True)
    options = Options(video=str(clip), number=1, out=str(tmp_path))
    paths = sample_run(run, options, trust=True)
    assert len(paths) == 2 and "CG is left out" in capsys.readouterr().out
    with pytest.raises(UserError, match="task CG needs a class: give --label"):
        sample_run(run, dataclasses.replace(options, tasks=("FP", "CG")), trust=True)


def test_a_class_alone_needs_no_clips(tmp_path):
    """More samples than there are held-out clips, and nothing beside them that they could be taken for."""
    run = tiny_runs.echo_run(labels=True, noise=0.2)
    run.config["data"]["eval"]["source"]["split"] = "test"
    options = Options(tasks=("CG",), label="3", number=3, index=2**20 + 5, out=str(tmp_path), scale=1)
    paths = sample_run(run, options, trust=True)
    assert [p.name for p in paths[:3]] == [f"CG_{2**20 + i:05d}_seed0_label3.mp4" for i in (5, 6, 7)]
    videos = [read_video(p)[0] for p in paths]
    assert (videos[0] != videos[1]).any() and videos[3].shape[2] < 2 * 96 + 80  # one column


def test_flags_that_would_do_nothing_are_refused(tmp_path, clip):
    with pytest.raises(UserError, match="--label=3: FP is not given a class; leave it out"):
        sample_run(tiny_runs.echo_run(labels=True), Options(tasks=("FP",), label="3", out=str(tmp_path)), trust=True)
    for bad in (dict(start=1.0), dict(fps=9.0), dict(size="16x24")):
        with pytest.raises(ValueError, match="give one with --video"):
            Options(**bad)
    with pytest.raises(ValueError, match="--index counts evaluation clips"):
        Options(video=str(clip), index=1)
    with pytest.raises(ValueError, match="say its length with --frames"):
        Options(overlap=3)
    with pytest.raises(ValueError, match="leave out --frames"):
        Options(intermediates=True, frames=20)
    with pytest.raises(ValueError, match="--task=FP,FP names a task twice"):
        Options(tasks=("FP", "FP"))
    for size in ("16", "16x", "0x16", "16x-3", "axb"):
        with pytest.raises(ValueError, match=f"--size={size}: give height and width"):
            Options(video=str(clip), size=size)


def test_a_tokenizer_reconstructs(tmp_path, clip):
    run = open_run(tiny_runs.tokenizer_run())
    paths = sample_run(run, Options(out=str(tmp_path), video=str(clip), number=1))
    assert [p.name for p in paths] == ["reconstruction_clip_00_seed0.mp4", "grid_reconstruction_clip_00_seed0.mp4"]
    with pytest.raises(UserError, match="it is a VQGAN, which only reconstructs"):
        sample_run(run, Options(out=str(tmp_path), tasks=["FP"]))


def test_a_tokenizer_takes_a_file_at_any_size_and_length(tmp_path, clip, capsys):
    run = open_run(tiny_runs.tokenizer_run())
    options = Options(out=str(tmp_path), video=str(clip), number=1, size="20x36", frames=12, scale=1, format="gif")
    video = read_video(sample_run(run, options)[0])[0]
    assert video.shape == (12, 20, 36, 3) and "12 frames" in capsys.readouterr().out
    with pytest.raises(ValueError, match="a video of 8x21x36 cannot be cut into patches of 4x4x4: give multiples"):
        sample_run(run, dataclasses.replace(options, size="21x36"))
    with pytest.raises(ValueError, match="a video of 10x20x36 cannot be cut"):
        sample_run(run, dataclasses.replace(options, frames=10))
    with pytest.raises(UserError, match="too short: 12 frames from 0 s on, this run needs 16"):
        sample_run(run, dataclasses.replace(options, frames=16))
    with pytest.raises(UserError, match="--frames=9: evaluation clips .*data.eval.source.frames=N"):
        sample_run(run, Options(out=str(tmp_path), frames=9))
    with pytest.raises(UserError, match="--overlap=2: a tokenizer reads a video as a whole"):
        sample_run(run, dataclasses.replace(options, overlap=2))
    with pytest.raises(UserError, match="--intermediates: a tokenizer reconstructs at once"):
        sample_run(run, Options(out=str(tmp_path), intermediates=True))


def test_long_videos_with_the_real_one_as_far_as_it_goes(tmp_path, clip):
    """The file has 12 frames, the model 8: the grid shows 12 real ones and then white."""
    run = tiny_runs.echo_run(0.0)
    options = Options(tasks=("FP",), video=str(clip), frames=18, number=1, out=str(tmp_path), scale=1, format="gif")
    paths = sample_run(run, options, trust=True)
    video, grid = (read_video(path)[0] for path in paths)
    assert video.shape == (18, 16, 16, 3) and len(grid) == 18
    real = grid[:, 20:116, -96:]
    assert (real[12:] == 255).all() and all((frame != 255).any() for frame in real[:12])
    condition = grid[:, 20:116, -296:-200]
    assert (condition == condition[:1]).all() and (condition != 255).any()  # its padding goes on
    short = sample_run(run, dataclasses.replace(options, frames=5, overlap=7), trust=True)
    assert [len(read_video(path)[0]) for path in short] == [5, 5]


def test_prediction_needs_no_more_of_a_video_than_it_is_given(tmp_path, clip, capsys):
    run = tiny_runs.echo_run(0.0)
    options = Options(tasks=("FP",), video=str(clip), start=0.4, number=1, out=str(tmp_path), scale=1, format="gif")
    video, grid = (read_video(path)[0] for path in sample_run(run, options, trust=True))
    assert video.shape == (8, 16, 16, 3) and "clip.mp4: 2 frames" in capsys.readouterr().out
    real = grid[:, 20:116, -96:]
    assert (real[2:] == 255).all() and all((frame != 255).any() for frame in real[:2])
    with pytest.raises(UserError, match="too short: 2 frames from 0.4 s on, this run needs 8"):
        sample_run(run, dataclasses.replace(options, tasks=("FP", "CG")), trust=True)


def test_of_all_tasks_frame_prediction_goes_on(tmp_path, capsys):
    run = tiny_runs.echo_run(0.0)
    options = Options(frames=11, number=1, out=str(tmp_path))
    names = [p.name for p in sample_run(run, options, trust=True)]
    assert names == ["FP_00000_seed0_frames11.mp4", "grid_FP_00000_seed0_frames11.mp4"]
    assert "CG is left out: it makes clips of one length" in capsys.readouterr().out
    with pytest.raises(UserError, match="task CG makes clips of one length: --frames is for tasks that go on from a last frame"):
        sample_run(run, dataclasses.replace(options, tasks=("FP", "CG")), trust=True)
    with pytest.raises(ValueError, match="overlap=8: windows of 8 frames"):
        sample_run(run, dataclasses.replace(options, overlap=8), trust=True)


def test_intermediates_are_a_picture_per_sample(tmp_path, capsys):
    command = ["sample", f"--run={tiny_runs.masked_run()}", "--task=FP,CG", "--number=2", "--intermediates"]
    assert main([*command, f"--out={tmp_path}", "--steps=4", "--schedule=uniform", "--guidance=1.5"]) == 0
    assert "--guidance=1.5: this run was trained with objective.condition_drop=0" in capsys.readouterr().out
    pictures, asked = sorted(p.name for p in tmp_path.glob("*.png")), "seed0_steps4_scheduleuniform_guidance1.5"
    assert pictures == [f"{t}_0000{i}_{asked}_decoding.png" for t in ("CG", "FP") for i in (0, 1)]
    assert len(list(tmp_path.glob("*.mp4"))) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(video="missing.mp4"), "there is no video missing.mp4"),
        (dict(video=__file__), "cannot be read as a video"),
        (dict(start=0.3), r"too short: 5 frames from 0.3 s on, this run needs 8"),
        (dict(start=9.0), "before start=9"),
        (dict(fps=5.0), "too short: 2 frames"),
    ],
)
def test_bad_videos(tmp_path, clip, options, message):
    with pytest.raises(UserError, match=message):
        echo(tmp_path, **{"video": str(clip), **options})


@pytest.mark.parametrize(
    "bad",
    [dict(seed=-1), dict(number=0), dict(number=2000), dict(temperature=float("nan")), dict(fps=0.0), dict(scale=100),
     dict(guidance=float("nan")), dict(frames=0), dict(frames=10**6)],
)
def test_numbers_out_of_range_are_named(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must lie between"):
        Options(**bad)


def test_formats_and_empty_tasks():
    with pytest.raises(ValueError, match="mp4, gif, webm, png"):
        Options(format="jpg")
    with pytest.raises(ValueError, match="no task is named"):
        Options(tasks=())


def test_classes_by_number_or_name():
    assert find_class("2", NAMES) == find_class("square moving left", NAMES) == 2
    assert find_class("7", (), 10) == 7
    for label, message in {
        "3": "3 classes",
        "-1": "out of range",
        "disc mving left": "did you mean disc moving left",
        "zzz": "there are disc moving left",
    }.items():
        with pytest.raises(ValueError, match=message):
            find_class(label, NAMES)
    with pytest.raises(ValueError, match="no classes"):
        find_class("0", ())
    with pytest.raises(ValueError, match="give its number"):
        find_class("disc", (), 10)
