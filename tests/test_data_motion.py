"""Which windows of a video may be clips, and tools/measure_motion.py, which measures it."""

import json
import pickle
import sys

import numpy as np
import pytest
import scipy.io
from make_videos import encode, numbered, numbers
from skimage.metrics import structural_similarity

from magvid import video
from magvid.build import build
from magvid.data.folder import VideoFolder
from magvid.data.motion import Measured, Motion, load, save
from magvid.types import UserError
from tools import measure_motion

SETTINGS = {"size": [16, 16], "flow": "dis"}
CUT = np.array([1, 1, 1, 1, 0.05, 1, 1, 1, 1], np.float32)  # between frames 4 and 5 of 10
FLOW = np.arange(9, dtype=np.float32)
ALL = np.arange(10)


def measurement(tmp_path, **files):
    file = tmp_path / "motion.json"
    save(file, SETTINGS, {f"{name}.mp4": Measured(f"digest of {name}", *pairs) for name, pairs in files.items()})
    return file


def starts(motion, order=ALL, frames=3, stride=1, name="a"):
    found = motion.starts(f"{name}.mp4", f"digest of {name}", order, frames, stride)
    return found if isinstance(found, str) else list(found)


def test_no_window_has_a_scene_cut(tmp_path):
    file = measurement(tmp_path, a=(CUT, None), b=(np.ones(9), None))
    motion = Motion(file)
    assert starts(motion) == [0, 1, 2, 5, 6, 7]
    assert starts(motion, stride=2) == [0, 5]  # frames that are skipped count: 0..4 and 5..9
    assert starts(motion, order=ALL[::2]) == [0]  # 0 2 4, but not 2 4 6
    assert starts(motion, order=np.repeat(ALL, 2), frames=2) == [*range(9), *range(10, 19)]  # twice the frame rate
    assert starts(motion, frames=1) == list(range(10))
    assert starts(motion, name="b") == list(range(8))
    assert starts(Motion(file, least_ssim=0.05)) == list(range(8))
    assert starts(motion, frames=6) == "every window has a scene cut (an SSIM below 0.1)"


def test_only_windows_that_move(tmp_path):
    file = measurement(tmp_path, a=(np.ones(9), FLOW), b=(CUT, FLOW))
    assert starts(Motion(file, least_flow=5.5)) == [5, 6, 7]  # means of pairs (s, s + 1): s + 0.5
    assert starts(Motion(file, least_flow=5.5, gap=[1, 2])) == [5, 6, 7]
    # frames s .. s + 4, of which s + 2 is filled in: pairs s + 1 and s + 2
    assert starts(Motion(file, least_flow=5.5, gap=(2, 3)), frames=5) == [4, 5]
    # every second frame: a step is two pairs, s + 2 .. s + 5, two steps: (4 s + 14) / 2
    assert starts(Motion(file, least_flow=9, gap=(2, 3)), frames=4, stride=2) == [1, 2, 3]
    assert starts(Motion(file, least_flow=0), frames=1) == list(range(10))
    assert starts(Motion(file, least_flow=5.5), name="b") == [5, 6, 7]
    assert starts(Motion(file, least_flow=8), name="b") == "no window without a scene cut has a mean flow of 8 pixels"


def test_a_copy_for_a_worker_is_small_and_equal(tmp_path):
    motion = build(dict(target="magvid.data.motion:Motion", file=str(measurement(tmp_path, a=(CUT, FLOW))), least_flow=1, gap=[1, 2]))
    before = starts(motion)
    copy = pickle.loads(pickle.dumps(motion))
    assert copy == motion and "measured" not in vars(copy) and starts(copy) == before
    assert copy.fingerprint == motion.fingerprint
    assert len({m.fingerprint for m in (motion, Motion(motion.file), Motion(motion.file, least_flow=1))}) == 3
    measurement(tmp_path, a=(FLOW, FLOW))
    assert copy.fingerprint != Motion(motion.file).fingerprint


def test_what_cannot_be_meant(tmp_path):
    file = measurement(tmp_path, a=(CUT, None))
    with pytest.raises(ValueError, match="least_ssim lies in"):
        Motion(file, least_ssim=2)
    with pytest.raises(ValueError, match="least_flow is not negative"):
        Motion(file, least_flow=-1)
    with pytest.raises(ValueError, match=r"gap=\(1, 2\) is where the flow is averaged: give least_flow"):
        Motion(file, gap=(1, 2))
    for gap in ((0, 1), (2, 2), (2, 3)):
        with pytest.raises(ValueError, match="must leave a frame before and after it in a clip of 3 frames"):
            starts(Motion(file, least_flow=1, gap=gap))
    with pytest.raises(UserError, match="motion.json has no optical flow: measure it with tools/measure_motion.py --flow"):
        starts(Motion(file, least_flow=1))


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(UserError, match="there is no file .*none.json: tools/measure_motion.py writes it"):
        starts(Motion(tmp_path / "none.json"))
    file = measurement(tmp_path, a=(CUT, FLOW))
    assert load(file)[0] == SETTINGS
    np.testing.assert_array_equal(load(file)[1]["a.mp4"].ssim, CUT)
    whole = json.loads(file.read_text())
    row = whole["files"]["a.mp4"]
    for wrong in (
        file.read_text()[:-9],
        "[]",
        "{}",
        json.dumps(whole | {"format": "magvid.video_index/1"}),
        json.dumps(whole | {"files": {"a.mp4": row[:2]}}),
        json.dumps(whole | {"files": {"a.mp4": [row[0], row[1], row[2][:-1]]}}),
        json.dumps(whole | {"files": {"a.mp4": [row[0], "much", None]}}),
    ):
        file.write_text(wrong)
        with pytest.raises(UserError, match="motion.json is not what tools/measure_motion.py writes, or damaged"):
            load(file)


def test_files_of_other_content(tmp_path):
    motion = Motion(measurement(tmp_path, a=(CUT, None)))
    assert starts(motion, name="b") == f"is not in {motion.file}: run tools/measure_motion.py again"
    changed = f"has changed since {motion.file} was made: run tools/measure_motion.py again"
    assert motion.starts("a.mp4", "another", ALL, 3, 1) == changed
    assert starts(motion, order=np.arange(11)) == changed


# Measuring ----------------------------------------------------------------------------------------------------------


def scenes(*lengths):
    """Scenes of noise, which are nothing like each other; within one every frame is the same."""
    rng = np.random.default_rng(0)
    return np.concatenate([np.repeat(rng.integers(0, 256, (1, 24, 32, 3), np.uint8), n, axis=0) for n in lengths])


def run(*argv):
    measure_motion.main([*argv, "--size=16x16"])


@pytest.fixture
def folder(tmp_path):
    """Of 40 frames with a cut before frame 30, of still frames, and of a cut in every window of 8."""
    data = tmp_path / "data"
    for name, lengths in (("cut", (30, 10)), ("still", (12,)), ("wild", (4, 4, 4))):
        encode(data / f"{name}.mp4", scenes(*lengths), gop=5)
    run(f"--data={data}", f"--out={tmp_path / 'motion.json'}")
    return data


def test_every_pair_of_every_file_is_measured(folder, tmp_path, capsys):
    settings, found = load(tmp_path / "motion.json")
    assert settings == {"size": [16, 16], "flow": None} and sorted(found) == ["cut.mp4", "still.mp4", "wild.mp4"]
    cut = found["cut.mp4"]
    assert cut.flow is None and cut.ssim.shape == (39,) and np.argmin(cut.ssim) == 29 and cut.ssim[29] < 0.1
    assert np.delete(cut.ssim, 29).min() > 0.5
    frames = [measure_motion.stretch(frame.rgb()[None], 16, 16)[0] for frame in video.decode(folder / "cut.mp4")]
    how = dict(gaussian_weights=True, use_sample_covariance=False, data_range=255, channel_axis=-1)
    expected = [structural_similarity(a, b, **how) for a, b in zip(frames, frames[1:], strict=False)]
    np.testing.assert_allclose(cut.ssim, expected, atol=1e-4)


def test_a_folder_gives_the_windows_that_are_allowed(folder, tmp_path, caplog):
    motion = Motion(tmp_path / "motion.json")
    source = VideoFolder(folder, 8, 16, 16, motion=motion)
    assert source.files == ["cut.mp4", "still.mp4"]
    assert source.bad == {"wild.mp4": "every window has a scene cut (an SSIM below 0.1)"}
    assert "1 of 3 videos are left out: wild.mp4 (every window" in caplog.text
    for seed in range(20):
        clip = source.read(0, np.random.default_rng(seed))["video"]
        assert np.ptp(clip.astype(int), axis=0).mean() < 20, "one scene only"
    spread = VideoFolder(folder, 8, 16, 16, crop="centre", windows=2, motion=motion)
    begin, end = spread[0]["video"], spread[2]["video"]
    assert np.abs(begin.astype(int) - end).mean() > 20, "the first window and the last one, of the two scenes"
    assert len({s.fingerprint for s in (source, spread, VideoFolder(folder, 8, 16, 16))}) == 3
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[0]["video"], source[0]["video"])
    encode(folder / "still.mp4", scenes(13))
    encode(folder / "new.mp4", scenes(13))
    reasons = VideoFolder(folder, 8, 16, 16, motion=motion).bad
    assert reasons["still.mp4"].startswith("has changed since") and reasons["new.mp4"].startswith("is not in")


def test_a_measurement_goes_on_where_it_was(folder, tmp_path, monkeypatch, capsys):
    out, opened, whole = f"--out={tmp_path / 'motion.json'}", [], VideoFolder.whole

    def count(self, i):
        opened.append(self.files[i])
        name, digest, frames = whole(self, i)
        return name, digest, (opened.append("frame") or frame for frame in frames)

    monkeypatch.setattr(VideoFolder, "whole", count)
    encode(folder / "still.mp4", scenes(9))
    run(f"--data={folder}", out)
    assert opened == ["cut.mp4", "still.mp4", *["frame"] * 9, "wild.mp4"]
    assert load(tmp_path / "motion.json")[1]["still.mp4"].ssim.shape == (8,)
    assert "3 videos, 2 with a scene cut" in capsys.readouterr().out
    before = (tmp_path / "motion.json").read_bytes()
    with pytest.raises(UserError, match=r"was measured with \{'size': \[16, 16\].*now it is \{'size': \[24, 24\]"):
        measure_motion.main([f"--data={folder}", out, "--size=24x24"])
    assert (tmp_path / "motion.json").read_bytes() == before


def test_a_video_that_breaks_is_left_out(folder, tmp_path, monkeypatch, capsys):
    decode = video.decode

    def broken(path, start=None):
        yield next(decode(path))
        if path.name == "cut.mp4":
            raise UserError(f"{path} is corrupt")
        yield from decode(path)

    monkeypatch.setattr(video, "decode", broken)
    run(f"--data={folder}", f"--out={tmp_path / 'other.json'}")
    assert sorted(load(tmp_path / "other.json")[1]) == ["still.mp4", "wild.mp4"]
    printed = capsys.readouterr()
    assert "cut.mp4 is corrupt" in printed.err and "1 left out" in printed.out


@pytest.mark.full
def test_optical_flow_of_a_moving_picture(tmp_path):
    picture = np.cumsum(np.random.default_rng(0).normal(size=(64, 120, 3)), axis=1)
    picture = (255 * (picture - picture.min()) / np.ptp(picture)).astype(np.uint8)
    moving = np.stack([picture[:, 2 * k : 2 * k + 64] for k in range(20)])
    encode(tmp_path / "a.mp4", moving)
    measure_motion.main([f"--data={tmp_path}", f"--out={tmp_path / 'm.json'}", "--flow", "--size=64x64"])
    settings, found = load(tmp_path / "m.json")
    assert settings["flow"] == "dis" and found["a.mp4"].flow.shape == (19,)
    np.testing.assert_allclose(np.median(found["a.mp4"].flow), 2, atol=0.3)
    assert len(VideoFolder(tmp_path, 4, 16, 16, motion=Motion(tmp_path / "m.json", least_flow=1.5))) == 1
    with pytest.raises(UserError, match="no window without a scene cut has a mean flow of 3 pixels"):
        VideoFolder(tmp_path, 4, 16, 16, motion=Motion(tmp_path / "m.json", least_flow=3))


def test_tools_messages(tmp_path, monkeypatch, capsys):
    measure_motion.main(["--help"])
    assert "--raft=FILE" in capsys.readouterr().out
    data = f"--data={tmp_path}"
    for argv, message in (
        ([data], "--out is missing"),
        (["--out=m.json"], "--data is missing"),
        ([data, "--out=m.json", "--size=16"], '--size must be like 256x256 .*got "16"'),
        ([data, "--out=m.json"], "holds no videos"),
        ([data, "--out=m.json", "--animal=Horse"], r"is neither Animal Kingdom .* nor TigDog \(ranges/\): leave out --animal"),
        ([data, "--out=m.json", "--raft=none.pth"], "there is no file none.pth: those of RAFT-large are https"),
        ([data, "--out=m.json", "--raft=none.pth", "--size=100x256"], "multiples of 8, at least 128, got 100x256"),
    ):
        with pytest.raises((UserError, ValueError), match=message):
            measure_motion.main(argv)
    (tmp_path / "ranges").mkdir()
    with pytest.raises(UserError, match="has several animals: choose by --animal"):
        measure_motion.main([data, "--out=m.json"])
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r'--flow needs OpenCV.*pip install -e "\.\[flow\]"'):
        measure_motion.main([data, "--out=m.json", "--flow"])
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="--raft needs torch and torchvision"):
        (tmp_path / "raft.pth").write_bytes(b"")
        measure_motion.main([data, "--out=m.json", f"--raft={tmp_path / 'raft.pth'}"])


def test_a_shot_of_tigdog_is_measured_as_well(tmp_path):
    (tmp_path / "tiger").mkdir()
    (tmp_path / "ranges/tiger").mkdir(parents=True)
    for k, frame in enumerate(scenes(3, 2), 1):
        video.import_pillow().fromarray(frame).save(tmp_path / f"tiger/{k:08d}.jpg")
    scipy.io.savemat(tmp_path / "ranges/tiger/ranges.mat", {"ranges": np.array([[7, 1, 5]])})
    run(f"--data={tmp_path}", "--animal=tiger", f"--out={tmp_path / 'm.json'}")
    assert np.argmin(load(tmp_path / "m.json")[1]["tiger/7"].ssim) == 2


def test_numbers_of_a_strided_clip(tmp_path):
    """The frames that are read are those that were judged."""
    encode(tmp_path / "a.mp4", numbered(20))
    digest = VideoFolder(tmp_path, 2, 8, 8).whole(0)[1]
    ssim = np.ones(19)
    ssim[7] = 0  # between 7 and 8: clips of 0 .. 4 up to 3 .. 7, and from 8 .. 12 on
    save(tmp_path / "m.json", SETTINGS, {"a.mp4": Measured(digest, ssim, None)})
    source = VideoFolder(tmp_path, 3, 8, 8, stride=2, motion=Motion(tmp_path / "m.json"))
    found = {numbers(source.read(0, np.random.default_rng(seed))["video"])[0] for seed in range(60)}
    assert found == {0, 1, 2, 3, *range(8, 16)}
    assert numbers(source[0]["video"]) == [10, 12, 14]  # the middle one of the twelve
