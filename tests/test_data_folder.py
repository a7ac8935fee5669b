"""magvid.data.folder: clips from real files of every kind, good and bad."""

import hashlib
import json
import pickle

import numpy as np
import pytest
from make_videos import damaged, encode, numbered, numbers

from magvid import video
from magvid.data.folder import VideoFolder
from magvid.data.motion import Measured, Motion, save
from magvid.data.pipeline import Loader
from magvid.data.text import Template
from magvid.types import UserError

FINGERPRINTS = ["95559a3aacd140bb", "232fc8ed513f782b", "360c525d8fb874d4"]  # of files and settings as they were before `spread`
KINDS = {  # file -> how it is encoded
    "a.mp4": {},
    "b.mov": {},
    "c.mkv": {"codec": "ffv1", "pixels": "bgr0"},
    "d.avi": {"codec": "mpeg4"},
    "e.webm": {"codec": "libvpx-vp9"},
}


def rng(seed=0):
    return np.random.default_rng(seed)


def test_every_format_gives_the_same_clip(tmp_path):
    for name, how in KINDS.items():
        encode(tmp_path / name, numbered(12), **how)
    video.write_video(tmp_path / "f.gif", numbered(12), fps=10)
    folder = VideoFolder(tmp_path, frames=5, height=16, width=16)
    assert folder.files == [*KINDS, "f.gif"] and not folder.bad
    for record in (folder[i] for i in range(6)):
        assert record["video"].shape == (5, 16, 16, 3) and record["video"].dtype == np.uint8
        assert numbers(record["video"]) == [4, 5, 6, 7, 8], record["file"]
    for record in (folder.read(i, rng(3)) for i in range(6)):
        found = numbers(record["video"])
        assert found == list(range(found[0], found[0] + 5)), record["file"]


def test_classes_are_subfolders(tmp_path):
    for name in ("run/a.mp4", "jump/deep/b.mp4", "run/c.mp4"):
        encode(tmp_path / name, numbered(4))
    damaged(tmp_path / "junk" / "x.mp4", "text")
    folder = VideoFolder(tmp_path, 2, 8, 8)
    assert folder.classes == ("jump", "run")
    labels = [(record["file"], int(record["label"]), record["action"]) for record in folder]
    assert labels == [("jump/deep/b.mp4", 0, "jump"), ("run/a.mp4", 1, "run"), ("run/c.mp4", 1, "run")]
    loader = Loader(folder, 2, shuffle=False, transforms=(Template("a horse {action}s"),), keys=("label", "text"))
    batch = next(loader)
    loader.close()
    assert batch["text"] == ["a horse jumps", "a horse runs"] and batch["label"].tolist() == [0, 1]


def test_a_flat_folder_is_one_class(tmp_path):
    encode(tmp_path / "cats" / "a.mp4", numbered(4))
    folder = VideoFolder(tmp_path / "cats", 2, 8, 8)
    assert folder.classes == ("cats",) and folder[0]["label"] == 0 and folder[0]["caption"] == ""


def test_random_windows_reach_every_moment_and_repeat_exactly(tmp_path):
    encode(tmp_path / "a.mp4", numbered(6))
    folder = VideoFolder(tmp_path, frames=3, height=8, width=8)
    starts = [numbers(folder.read(0, rng(seed))["video"])[0] for seed in range(30)]
    assert set(starts) == {0, 1, 2, 3}
    assert starts == [numbers(folder.read(0, rng(seed))["video"])[0] for seed in range(30)]
    centre = VideoFolder(tmp_path, frames=3, height=8, width=8, crop="centre")
    assert {numbers(centre.read(0, rng(seed))["video"])[0] for seed in range(5)} == {2}


def test_windows_spread_over_each_video(tmp_path):
    """Window by window, so that the first clips are the beginnings of all videos."""
    for name, frames in (("a.mp4", 12), ("b.mp4", 7)):
        encode(tmp_path / name, numbered(frames))
    folder = VideoFolder(tmp_path, frames=3, height=8, width=8, crop="centre", windows=4)
    assert len(folder) == 8 and folder.fingerprint != VideoFolder(tmp_path, 3, 8, 8, crop="centre").fingerprint
    starts = [numbers(folder[i]["video"])[0] for i in range(8)]
    assert starts == [0, 0, 3, 1, 6, 2, 9, 4] == [numbers(folder.read(i, rng(i))["video"])[0] for i in range(8)]
    first = VideoFolder(tmp_path, 3, 8, 8, crop="centre", windows=1)
    assert [numbers(clip["video"])[0] for clip in first] == [0, 0]
    for wrong in (dict(windows=4), dict(windows=-1, crop="centre")):
        with pytest.raises(ValueError, match="a number of windows goes with"):
            VideoFolder(tmp_path, 3, 8, 8, **wrong)


def test_random_crops_move_along_the_longer_side(tmp_path):
    halves = np.zeros((2, 16, 64, 3), np.uint8)
    halves[:, :, 32:] = 255
    encode(tmp_path / "a.mp4", halves)
    folder = VideoFolder(tmp_path, frames=2, height=16, width=16)
    means = [folder.read(0, rng(seed))["video"].mean() for seed in range(20)]
    assert min(means) < 10 and max(means) > 245
    assert 100 < folder[0]["video"].mean() < 155


def test_frame_rate_and_stride(tmp_path):
    encode(tmp_path / "a.mp4", numbered(20), rate=20)
    encode(tmp_path / "b.mkv", numbered(5), rate=100, times=[0, 10, 20, 80, 90])  # 1 s at a variable rate
    folder = VideoFolder(tmp_path, frames=5, height=8, width=8, fps=10, stride=2)
    assert numbers(folder[0]["video"]) == [2, 6, 10, 14, 18]  # 10 frames at 10 fps: of the two windows the second
    assert numbers(folder[1]["video"]) == [1, 2, 2, 2, 4]
    native = VideoFolder(tmp_path, frames=2, height=8, width=8, stride=3)
    assert numbers(native[1]["video"]) == [1, 4]


def test_whole_strides_near_a_frame_rate(tmp_path):
    """The rule of the released MAVIN: min(2, round(rate / 8)), at least 1, and less in a short file."""
    for name, rate, frames in (("slow", 8, 20), ("film", 12, 20), ("middle", 13, 20), ("fast", 30, 20), ("short", 30, 8), ("tiny", 30, 4)):
        encode(tmp_path / f"{name}.mp4", numbered(frames), rate=rate)
    folder = VideoFolder(tmp_path, frames=5, height=8, width=8, fps=8, most_stride=2)
    assert folder.bad == {"tiny.mp4": "too short: 4 frames, a clip needs 5"} and folder.fps == 8
    shown = {record["file"]: numbers(record["video"]) for record in folder}
    # round half to even, as Python has it: 12 / 8 -> 2
    assert shown == {
        "fast.mp4": [6, 8, 10, 12, 14],
        "film.mp4": [6, 8, 10, 12, 14],
        "middle.mp4": [6, 8, 10, 12, 14],
        "short.mp4": [2, 3, 4, 5, 6],
        "slow.mp4": [8, 9, 10, 11, 12],
    }
    free = VideoFolder(tmp_path, frames=5, height=8, width=8, fps=8, most_stride=4)
    assert numbers(free[0]["video"]) == [2, 6, 10, 14, 18] and free.fingerprint != folder.fingerprint
    for wrong in (dict(most_stride=2), dict(most_stride=0, fps=8), dict(most_stride=2, fps=8, stride=2)):
        with pytest.raises(ValueError, match="most_stride=.: at least 1, and together with fps and stride=1"):
            VideoFolder(tmp_path, 5, 8, 8, **wrong)


def test_clips_spread_over_the_whole_file(tmp_path):
    for name, frames in (("a.mp4", 12), ("b.mp4", 5), ("c.mp4", 20), ("d.mp4", 4)):
        encode(tmp_path / name, numbered(frames))
    folder = VideoFolder(tmp_path, 5, 8, 8, spread=True)
    assert folder.bad == {"d.mp4": "too short: 4 frames, a clip needs 5"}
    shown = [[0, 3, 6, 8, 11], [0, 1, 2, 3, 4], [0, 5, 10, 14, 19]]  # 5.5 and 9.5 are rounded to the even number
    assert [numbers(record["video"]) for record in folder] == shown
    assert [numbers(folder.read(i % 3, rng(i))["video"]) for i in range(9)] == shown * 3  # whatever is drawn
    assert [numbers(record["video"]) for record in VideoFolder(tmp_path, 1, 8, 8, spread=True)] == [[0]] * 4
    assert folder.fingerprint != VideoFolder(tmp_path, 5, 8, 8).fingerprint


def test_spread_at_a_frame_rate(tmp_path):
    encode(tmp_path / "a.mkv", numbered(5), rate=100, times=[0, 10, 20, 80, 90])  # 1 s at a variable rate
    folder = VideoFolder(tmp_path, 4, 8, 8, fps=10, spread=True)
    assert numbers(folder[0]["video"]) == [0, 2, 2, 4]  # of the ten frames 0 1 2 2 2 2 2 2 3 4 numbers 0, 3, 6 and 9
    assert numbers(VideoFolder(tmp_path, 4, 8, 8, spread=True)[0]["video"]) == [0, 1, 3, 4]


def test_a_spread_clip_is_cropped_in_space_alone(tmp_path):
    halves = np.zeros((6, 16, 64, 3), np.uint8)
    halves[:, :, 32:] = 255
    encode(tmp_path / "a.mp4", halves)
    folder = VideoFolder(tmp_path, 2, 16, 16, spread=True)
    means = [folder.read(0, rng(seed))["video"].mean() for seed in range(20)]
    assert min(means) < 10 and max(means) > 245
    centre = VideoFolder(tmp_path, 2, 16, 16, spread=True, crop="centre", windows=1)
    assert len({centre.read(0, rng(seed))["video"].tobytes() for seed in range(5)}) == 1


def test_what_does_not_go_with_spread(tmp_path):
    encode(tmp_path / "a.mp4", numbered(6))
    for wrong in (dict(stride=2), dict(windows=2, crop="centre")):
        with pytest.raises(ValueError, match="spread: a clip is of the whole file, so stride must be 1 and windows at most 1, got "):
            VideoFolder(tmp_path, 2, 8, 8, spread=True, **wrong)
    with pytest.raises(ValueError, match="most_stride=2: with spread the length of a file decides"):
        VideoFolder(tmp_path, 2, 8, 8, spread=True, fps=8, most_stride=2)


def test_motion_judges_all_of_a_spread_clip(tmp_path):
    encode(tmp_path / "a.mp4", numbered(8))
    encode(tmp_path / "b.mp4", numbered(9))
    folder = VideoFolder(tmp_path, 3, 8, 8)
    ssim = {"a.mp4": [1, 1, 0, 1, 1, 1, 1], "b.mp4": [1] * 8}
    measured = {name: Measured(folder.whole(i)[1], np.array(ssim[name], float), None) for i, name in enumerate(folder.files)}
    save(tmp_path / "m.json", {"size": [8, 8], "flow": None}, measured)
    motion = Motion(tmp_path / "m.json")
    assert VideoFolder(tmp_path, 3, 8, 8, motion=motion).files == ["a.mp4", "b.mp4"]
    spread = VideoFolder(tmp_path, 3, 8, 8, motion=motion, spread=True)
    assert spread.files == ["b.mp4"] and numbers(spread[0]["video"]) == [0, 4, 8]
    assert spread.bad == {"a.mp4": "every window has a scene cut (an SSIM below 0.1)"}


def test_the_digest_is_that_of_the_file(tmp_path):
    encode(tmp_path / "a.mp4", numbered(4))
    record = VideoFolder(tmp_path, 2, 8, 8)[0]
    assert record["digest"] == hashlib.sha256((tmp_path / "a.mp4").read_bytes()).hexdigest()
    assert set(record) == {"video", "label", "action", "caption", "file", "digest"}


def test_fingerprints_of_old_settings_stay(tmp_path):
    """Runs that were begun before there was more to set go on."""
    (tmp_path / "a.mp4").touch()
    file = (tmp_path / "a.mp4").stat()
    timeline = dict(first=0, runs=[[1], [5]], tick=[1, 10], rate=10.0, seek=True)
    entry = dict(size=0, mtime=file.st_mtime_ns, sha256="0" * 64, timeline=timeline)
    (tmp_path / "index.json").write_text(json.dumps({"format": "magvid.video_index/1", "files": {"a.mp4": entry}}))
    of = lambda **options: VideoFolder(tmp_path, 2, 8, 8, **options).fingerprint
    assert [of(), of(crop="centre", windows=3), of(fps=5, most_stride=2, keep_aspect=False)] == FINGERPRINTS


def test_the_whole_picture_squeezed(tmp_path):
    halves = np.zeros((2, 16, 64, 3), np.uint8)
    halves[:, :, 32:] = 255
    encode(tmp_path / "a.mp4", halves)
    folder = VideoFolder(tmp_path, frames=2, height=16, width=16, keep_aspect=False)
    clip = folder.read(0, rng())["video"]
    assert clip.shape == (2, 16, 16, 3) and clip[:, :, :7].max() < 30 and clip[:, :, 9:].min() > 225
    assert folder.fingerprint != VideoFolder(tmp_path, 2, 16, 16).fingerprint


def test_long_files_are_searched_not_decoded_from_the_start(tmp_path, monkeypatch):
    encode(tmp_path / "a.mp4", rng().integers(0, 256, (120, 16, 16, 3), dtype=np.uint8), gop=10)
    whole = np.stack([frame.rgb() for frame in video.decode(tmp_path / "a.mp4")])
    folder = VideoFolder(tmp_path, frames=4, height=16, width=16)
    decoded, decode = [], video.decode

    def count(*args, **kwargs):
        for frame in decode(*args, **kwargs):
            decoded.append(frame)
            yield frame

    monkeypatch.setattr(video, "decode", count)
    for seed in range(10):
        first = int(rng(seed).random(4)[0] * 117)
        np.testing.assert_array_equal(folder.read(0, rng(seed))["video"], whole[first : first + 4])
    assert len(decoded) <= 10 * (4 + 10)


def test_bad_files_are_named_and_counted(tmp_path, caplog):
    encode(tmp_path / "good.mp4", numbered(8))
    encode(tmp_path / "short.mp4", numbered(3))
    for kind in ("zero", "text", "sound", "truncated"):
        damaged(tmp_path / f"{kind}.mp4", kind)
    folder = VideoFolder(tmp_path, frames=4, height=8, width=8)
    assert folder.files == ["good.mp4"]
    assert sorted(folder.bad) == ["short.mp4", "sound.mp4", "text.mp4", "truncated.mp4", "zero.mp4"]
    assert folder.bad["short.mp4"] == "too short: 3 frames, a clip needs 4"
    assert "5 of 6 videos are left out" in caplog.text
    assert all(f"{name} ({reason})" in caplog.text for name, reason in folder.bad.items())
    caplog.clear()
    assert VideoFolder(tmp_path, frames=4, height=8, width=8).bad == folder.bad and not caplog.text  # told once


def test_nothing_usable_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match="there is no folder .*nowhere"):
        VideoFolder(tmp_path / "nowhere", 2, 8, 8)
    with pytest.raises(UserError, match=r"holds no videos: expected files named \*\.mp4"):
        VideoFolder(tmp_path, 2, 8, 8)
    encode(tmp_path / "a.mp4", numbered(3))
    with pytest.raises(UserError, match="a.mp4, it is a file"):
        VideoFolder(tmp_path / "a.mp4", 2, 8, 8)
    damaged(tmp_path / "b.mp4", "zero")
    with pytest.raises(UserError, match=r"none of the 2 .*: a.mp4 \(too short: 3 frames, .*; b.mp4 \(empty file\)"):
        VideoFolder(tmp_path, 4, 8, 8)


def test_a_file_lost_later_is_replaced_by_the_next(tmp_path, caplog):
    for k, name in enumerate("abcd"):
        encode(tmp_path / f"{name}.mp4", np.full((4, 8, 8, 3), 60 * k, np.uint8))
    folder = VideoFolder(tmp_path, 2, 8, 8)
    (tmp_path / "b.mp4").unlink()
    damaged(tmp_path / "c.mp4", "text")
    caplog.clear()
    assert [r["file"] for r in folder] == ["a.mp4", "d.mp4", "d.mp4", "d.mp4"]
    assert [folder.read(1, rng(5))["file"] for _ in range(3)] == ["d.mp4"] * 3
    assert len(caplog.records) == 2 and "b.mp4" in caplog.text and "c.mp4" in caplog.text
    for name in "ad":
        (tmp_path / f"{name}.mp4").unlink()
    with pytest.raises(UserError, match=r"4 of 4 clips in a row cannot be read: .*a.mp4"):
        folder[0]


def test_a_file_that_became_shorter_is_replaced(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        encode(tmp_path / name, numbered(12))
    folder = VideoFolder(tmp_path, 4, 8, 8)
    encode(tmp_path / "a.mp4", numbered(5))
    assert folder[0]["file"] == "b.mp4"


def test_split_is_stable_disjoint_and_never_empty(tmp_path, caplog):
    for k in range(12):
        encode(tmp_path / f"{k}.mp4", numbered(2, 8, 8))

    def files(split, holdout=0.3):
        return VideoFolder(tmp_path, 2, 8, 8, split=split, holdout=holdout).files

    train, validation = files("train"), files("validation")
    assert sorted(train + validation) == sorted(files(None)) and 1 <= len(validation) <= 7
    encode(tmp_path / "new.mp4", numbered(2, 8, 8))
    assert set(train) <= set(files("train")) and set(validation) <= set(files("validation"))
    assert len(files("validation", 1e-6)) == 1 and len(files("train", 1 - 1e-6)) == 1
    with pytest.raises(ValueError, match="split must be"):
        files("test")
    for file in list(tmp_path.glob("*.mp4"))[1:]:
        file.unlink()
    caplog.clear()
    assert files("train") == files("validation") and "only one usable file" in caplog.text


def test_captions(tmp_path):
    for name in ("run/a.mp4", "run/b.mp4"):
        encode(tmp_path / name, numbered(4))
    rows = [{"file": "run/a.mp4", "caption": c} for c in ("a man runs", "running")]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    folder = VideoFolder(tmp_path, 2, 8, 8)
    assert [r["caption"] for r in folder] == ["a man runs", ""]
    assert {folder.read(0, rng(seed))["caption"] for seed in range(10)} == {"a man runs", "running"}
    for bad in ('{"file": "run/a.mp4", "caption": 5}', "[]"):
        (tmp_path / "captions.jsonl").write_text(bad)
        with pytest.raises(UserError, match="captions.jsonl line 1 should be"):
            VideoFolder(tmp_path, 2, 8, 8)
    (tmp_path / "captions.jsonl").write_bytes(b'{"file": "a.mp4", "caption": "\xff"}')
    with pytest.raises(UserError, match="captions.jsonl is not UTF-8 text"):
        VideoFolder(tmp_path, 2, 8, 8)
    (tmp_path / "captions.jsonl").write_text('{"file": "run/a.mp4"}\n')
    with pytest.raises(UserError, match="captions.jsonl line 1 should be"):
        VideoFolder(tmp_path, 2, 8, 8)


def test_fingerprint_and_pickle(tmp_path):
    encode(tmp_path / "a.mp4", numbered(6))
    folder = VideoFolder(tmp_path, 2, 8, 8)
    same = pickle.loads(pickle.dumps(folder))
    assert same.fingerprint == folder.fingerprint
    np.testing.assert_array_equal(same[0]["video"], folder[0]["video"])
    assert VideoFolder(tmp_path, 3, 8, 8).fingerprint != folder.fingerprint
    encode(tmp_path / "a.mp4", numbered(7))
    assert VideoFolder(tmp_path, 2, 8, 8).fingerprint != folder.fingerprint


@pytest.mark.parametrize("wrong", [{"crop": "middle"}, {"frames": 0}, {"fps": 0.0}, {"stride": 0}])
def test_wrong_arguments(tmp_path, wrong):
    with pytest.raises(ValueError, match="crop must be|sizes must be positive|fps must be positive"):
        VideoFolder(tmp_path, **{"frames": 2, "height": 8, "width": 8, **wrong})
