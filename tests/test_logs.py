"""metrics.jsonl, TensorBoard files and progress."""

import io
import json
import math
import resource

import numpy as np
import pytest
from PIL import Image

from magvid import logs


def events(folder):
    """[(step, tag, value or gif)] of a TensorBoard folder."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401 (the format: length, crc, bytes, crc)

    found = []
    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            length = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            found += [(event.step, v.tag, v.image.encoded_image_string or v.simple_value) for v in event.summary.value]
    return found


def test_scalars_are_lines_and_points(tmp_path):
    logger = logs.Logger(tmp_path, 10)
    logger.scalars(1, {"train/loss": np.float32(0.5), "train/psnr": math.inf})
    logger.scalars(2, {"eval/loss": 0.25})
    logger.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line.get("train/loss"), line.get("eval/loss")) for line in lines] == [
        (1, 0.5, None),
        (2, None, 0.25),
    ]
    assert lines[0]["train/psnr"] is None and lines[0]["time"] <= lines[1]["time"]
    points = events(tmp_path / "tb")
    assert (1, "train/loss", 0.5) in points and (2, "eval/loss", 0.25) in points


def test_resume_says_each_step_once(tmp_path):
    logger = logs.Logger(tmp_path, 10, tensorboard=False)
    for step in (1, 2, 3):
        logger.scalars(step, {"x": step})
    logger.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "x"')  # killed while writing
    logger = logs.Logger(tmp_path, 10, step=2, tensorboard=False)
    logger.scalars(3, {"x": 30})
    logger.close()
    assert [(line["step"], line["x"]) for line in logs.read(tmp_path / "metrics.jsonl")] == [(1, 1), (2, 2), (3, 30)]


@pytest.mark.parametrize("tail", [b"\0" * 50, b"\0" * 50 + b"\n", b"\xff\xfe\xfa", b"5\n", b"[1]\n", b'{"step": 3, "a": "\xc3', b'{"step": 3', b"\n"])
def test_what_a_power_cut_leaves_is_removed(tmp_path, tail):
    path, lines = tmp_path / "metrics.jsonl", b'{"step": 1, "time": 1.0}\n{"step": 2, "time": 2.0}\n'
    path.write_bytes(lines + tail)
    assert [line["step"] for line in logs.read(path) if line["step"] < 3] == [1, 2]
    logs.truncate(path, 2)
    assert path.read_bytes() == lines


def test_videos_are_animated_gifs(tmp_path):
    logger = logs.Logger(tmp_path, 10)
    video = np.zeros((2, 3, 4, 5, 3), np.uint8)
    video[1] = 255 * np.arange(3)[:, None, None, None] // 2
    logger.videos(7, "eval/samples", video, fps=10)
    logger.close()
    ((step, tag, gif),) = [p for p in events(tmp_path / "tb") if p[1] == "eval/samples"]
    image = Image.open(io.BytesIO(gif))
    assert (step, image.size, image.info["duration"]) == (7, (10, 4), 100)
    image.seek(image.n_frames - 1)
    last = np.asarray(image.convert("RGB"))
    assert not last[:, :5].any() and (last[:, 5:] == 255).all() and image.n_frames == 3


def test_plain_progress_off_a_terminal(tmp_path, capsys, monkeypatch):
    clock = iter([0.0, 20.0, 21.0, 40.0])
    monkeypatch.setattr(logs.time, "monotonic", lambda: next(clock))
    logger = logs.Logger(tmp_path, 100, tensorboard=False)
    for step in (1, 41, 43, 81):
        logger.progress(step, "loss 1.5")
    logger.say("a word")
    logger.close()
    assert capsys.readouterr().out.splitlines() == [
        "step 1/100  loss 1.5",
        "step 41/100  2.00 steps/s  0:29 left  loss 1.5",
        "step 81/100  2.00 steps/s  0:09 left  loss 1.5",
        "a word",
    ]


def test_bar_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    logger = logs.Logger(tmp_path, 4, tensorboard=False)
    logger.progress(1, "loss 2")
    logger.progress(4, "loss 1")
    logger.say("[a] word")
    logger.close()
    out = capsys.readouterr().out
    assert "4/4" in out and "steps/s loss 1" in out and "[a] word" in out


@pytest.mark.parametrize("seconds, text", [(5.9, "0:05"), (65, "1:05"), (3665, "1:01:05")])
def test_duration(seconds, text):
    assert logs.duration(seconds) == text


def test_missing_tensorboard_names_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(ImportError, match="pip install"):
        logs.Logger(tmp_path, 1)


def test_a_full_disk_is_said_once_and_loses_no_line(tmp_path, capsys):
    """Files may not grow beyond 4 kB for a while: what was logged meanwhile is written afterwards, and nobody waits for ever."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    logger = logs.Logger(tmp_path, 200)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        for step in range(1, 200):
            logger.scalars(step, {f"train/{name}": step for name in "abcdefgh"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    logger.scalars(200, {"train/a": 0})
    logger.close()
    assert [line["step"] for line in logs.read(tmp_path / "metrics.jsonl")] == list(range(1, 201))
    assert capsys.readouterr().out.count("is the disk full?") == 1


def test_a_run_goes_back_on_a_full_disk(tmp_path):
    """And what waits for room is of the steps that stay."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    logger = logs.Logger(tmp_path, 200, tensorboard=False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        for step in range(1, 100):
            logger.scalars(step, {f"train/{name}": step for name in "abcdefgh"})
        logger.back(90)
        logger.scalars(91, {"train/a": -1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    logger.close()
    lines = logs.read(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 92)) and lines[-1]["train/a"] == -1
