"""magvid.data.folder: clips from real files of every kind, good and bad."""

import hashlib
import json
import pickle

import numpy as np
import pytest
from make_videos import damaged, encode, numbered, numbers
from PIL import Image

from magvid import video
from magvid.data.folder import InstructionFolder, Told, VideoFolder
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
    told = VideoFolder(tmp_path, 2, 8, 8, captioned=True)
    assert told.files == ["run/a.mp4"] and "has no caption in" in told.bad["run/b.mp4"]
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


# Masks --------------------------------------------------------------------------------------------------------------


def subject(frames, height=24, width=40):
    """bool (t h w): a box that moves and grows, on the picture's border in the first frame."""
    masks = np.zeros((frames, height, width), bool)
    for k in range(frames):
        masks[k, k : k + 9 + k, 2 * k : 2 * k + 13] = True
    return masks


def film(path, masks):
    """A lossless file in which the subject is white on black."""
    return encode(path, np.repeat(masks[..., None], 3, axis=-1).astype(np.uint8) * 255, codec="ffv1", pixels="bgr0")


def write_masks(folder, masks, numbers=None):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(len(masks)) if numbers is None else numbers:
        Image.fromarray(masks[k].astype(np.uint8) * 255).save(folder / f"{k:05d}.png")


def bright(record):
    return record["video"][..., 0] >= 128


@pytest.fixture
def masked(tmp_path):
    for name, frames in (("run/a.b.mkv", 7), ("run/c.mkv", 9)):
        film(tmp_path / "videos" / name, subject(frames))
        write_masks(tmp_path / "masks" / name.removesuffix(".mkv"), subject(frames))
    return tmp_path


CUTS = [{}, {"stride": 2}, {"fps": 5}, {"spread": True}, {"keep_aspect": False}, {"crop": "centre", "windows": 3}, {"fps": 5, "most_stride": 2}]


@pytest.mark.parametrize("options", CUTS)
def test_masks_move_with_the_picture(masked, options):
    folder = VideoFolder(masked / "videos", 3, 18, 14, masks=masked / "masks", **options)
    records = [folder[i] for i in range(len(folder))] + [folder.read(i % 2, rng(i)) for i in range(12)]
    for record in records:
        assert record["masks"].shape == (3, 18, 14) and record["masks"].dtype == bool
        np.testing.assert_array_equal(record["masks"], bright(record))
    assert 0.1 < np.mean([record["masks"].mean() for record in records]) < 0.9
    assert set(folder[0]) == {"video", "masks", "label", "action", "caption", "file", "digest"}
    enlarged = VideoFolder(masked / "videos", 2, 48, 90, masks=masked / "masks", **options).read(0, rng())
    np.testing.assert_array_equal(enlarged["masks"], bright(enlarged))


def test_without_masks_nothing_changes(masked):
    plain, folder = VideoFolder(masked / "videos", 3, 18, 14), VideoFolder(masked / "videos", 3, 18, 14, masks=masked / "masks")
    assert "masks" not in plain[0] and plain.files == folder.files
    np.testing.assert_array_equal(plain.read(1, rng(4))["video"], folder.read(1, rng(4))["video"])


def test_a_frame_without_a_mask_has_no_subject(masked):
    for k in (0, 1, 2, 4, 5):
        (masked / f"masks/run/c/{k:05d}.png").unlink()
    folder = VideoFolder(masked / "videos", 3, 18, 14, crop="centre", windows=7, masks=masked / "masks")
    clips = [folder[2 * k + 1] for k in range(7)]  # of the nine frames all windows of three
    assert all(np.array_equal(clip["masks"].any((1, 2)), np.isin(np.arange(k, k + 3), (3, 6, 7, 8))) for k, clip in enumerate(clips))
    np.testing.assert_array_equal(clips[3]["masks"][[0]], bright(clips[3])[[0]])
    assert not clips[0]["masks"].any()


def test_files_without_masks_are_left_out(masked, caplog):
    for name in ("d", "e", "f"):
        film(masked / f"videos/jump/{name}.mkv", subject(4))
    write_masks(masked / "masks/jump/e", subject(4), ())
    (masked / "masks/jump/e/2.png").touch()
    write_masks(masked / "masks/jump/f", subject(5))
    damaged(masked / "videos/jump/g.mkv", "text")
    folder = VideoFolder(masked / "videos", 3, 18, 14, masks=masked / "masks")
    assert folder.files == ["run/a.b.mkv", "run/c.mkv"] and folder.classes == ("jump", "run") and folder[0]["label"] == 1
    assert {name: reason.replace(str(masked), "") for name, reason in folder.bad.items()} == {
        "jump/d.mkv": "has no masks: those of frames 0 to 3 would be /masks/jump/d/00000.png and so on",
        "jump/e.mkv": "has no masks: those of frames 0 to 3 would be /masks/jump/e/00000.png and so on",
        "jump/f.mkv": "has 4 frames, from 0 on, and /masks/jump/f has a mask of frame 4",
        "jump/g.mkv": "cannot be read as a video: Invalid data found when processing input",
    }
    assert "4 of 6 videos are left out" in caplog.text
    (masked / "none").mkdir()
    with pytest.raises(UserError, match=r"none of the 6 videos in .* is usable: .*run/a.b.mkv \(has no masks: .*none/run/a.b/00000.png"):
        VideoFolder(masked / "videos", 3, 18, 14, masks=masked / "none")
    with pytest.raises(UserError, match="there is no folder .*nowhere: `masks` is where the mask of frame 12 of running/a.mp4 is running/a/00012"):
        VideoFolder(masked / "videos", 3, 18, 14, masks=masked / "nowhere")


def test_pictures_of_what_is_in_a_video(masked, caplog):
    """One beside the others by the video's name, or a folder of them; files without are left out, and the fingerprint knows them."""
    pictures, videos = masked / "pictures", masked / "videos"
    film(videos / "jump/d.mkv", subject(4))
    (pictures / "run/c").mkdir(parents=True)
    for i, name in enumerate(("run/a.b.PNG", "run/c/2.webp", "run/c/1.png")):
        picture = np.full((8, 8, 4), 100 + 50 * i, np.uint8)
        picture[..., 3] = np.repeat([0, 255], 4)[:, None]
        Image.fromarray(picture).save(pictures / name, lossless=True)
    (pictures / "run/c/notes.txt").touch()
    folder = VideoFolder(videos, 3, 18, 18, pictures=pictures)
    assert folder.files == ["run/a.b.mkv", "run/c.mkv"] and "masks" not in folder[0]
    one, two = (folder[i]["pictures"] for i in range(2))
    assert one.shape == (1, 18, 18, 4) and two.shape == (2, 18, 18, 4) and one.dtype == np.uint8
    assert (one[0, 12:, :, 0] == 100).all() and (two[:, 12, 9, 0] == [200, 150]).all()  # by name
    assert not one[0, :7].any() and (one[0, 12:, :, 3] == 255).all()
    where = f"{pictures}/jump/d"
    assert folder.bad["jump/d.mkv"] == f"has no picture of what is in it: that would be {where}.png or .webp, or several in {where}/"
    plain = VideoFolder(videos, 3, 18, 18).fingerprint
    (pictures / "run/c/2.webp").unlink()
    again = VideoFolder(videos, 3, 18, 18, pictures=pictures)
    assert len({plain, folder.fingerprint, again.fingerprint}) == 3
    (pictures / "run/c/1.png").write_text("not a picture")
    np.testing.assert_array_equal(again[1]["video"], again[0]["video"])  # the next usable one takes its place
    assert "1.png cannot be read as an image" in caplog.text
    with pytest.raises(UserError, match="there is no folder .*nowhere: `pictures` is where a picture of what is in running/a.mp4 is running/a.png"):
        VideoFolder(videos, 3, 18, 18, pictures=masked / "nowhere")


def test_masks_of_parts_have_the_numbers_of_the_file(masked):
    told = {f"c#{k}": Told("run/c.mkv", 0, "runs", part) for k, part in enumerate([(0.0, 0.25), (0.4, 0.75), (0.0, 0.15)])}
    for k in range(3):
        (masked / f"masks/run/c/{k:05d}.png").unlink()
    folder = InstructionFolder(masked / "videos", 2, 18, 14, told, ("run",), spread=True, masks=masked / "masks")
    assert list(folder.bad) == ["c#0", "c#2"] and "has no masks: those of frames 0 to 2 would be " in folder.bad["c#0"]
    record = folder[0]
    assert record["text"] == "runs" and record["masks"].any((1, 2)).all()
    np.testing.assert_array_equal(record["masks"], bright(record))


@pytest.mark.parametrize("size", [(48, 80), (12, 20), (36, 61)])
def test_masks_of_another_size_are_scaled(masked, size):
    for k, mask in enumerate(subject(7)):
        image = Image.fromarray(mask.astype(np.uint8) * 255).resize(size[::-1], Image.Resampling.NEAREST)
        image.save(masked / f"masks/run/a.b/{k:05d}.png")
    folder = VideoFolder(masked / "videos", 3, 18, 14, masks=masked / "masks")
    for seed in range(5):
        record = folder.read(0, rng(seed))
        assert record["file"] == "run/a.b.mkv" and (record["masks"] != bright(record)).mean() < 0.05


def test_masks_of_another_shape_are_refused(masked, caplog):
    write_masks(masked / "masks/run/a.b", subject(7).transpose(0, 2, 1))
    folder = VideoFolder(masked / "videos", 7, 18, 14, masks=masked / "masks")
    assert folder[0]["file"] == "run/c.mkv"
    assert "run/a.b/00000.png is 24x40 pixels and its picture 40x24: a mask has the shape of its picture; the next usable one" in caplog.text


def test_masks_are_of_the_picture_as_it_is_seen(tmp_path):
    masks = subject(4)
    encode(tmp_path / "videos/a.mp4", np.repeat(masks[..., None], 3, axis=-1).astype(np.uint8) * 255, rotation=90)
    write_masks(tmp_path / "masks/a", np.rot90(masks, axes=(1, 2)))
    record = VideoFolder(tmp_path / "videos", 4, 40, 24, masks=tmp_path / "masks")[0]
    assert (record["masks"] != bright(record)).mean() < 0.02 and record["masks"].any()


def test_pictures_of_every_kind_are_masks(masked):
    """Of bits, greys, palettes of colours and of greys, transparency, and without any though there could be."""
    grey = [Image.fromarray(mask.astype(np.uint8) * 255) for mask in subject(7)]
    palette = Image.fromarray(subject(7)[2].astype(np.uint8) * 3).convert("P")
    palette.putpalette([0, 0, 0, 1, 1, 1, 2, 2, 2, 128, 0, 0])
    clear = Image.new("RGBA", grey[3].size, "black")
    clear.putalpha(grey[3])
    both = Image.merge("LA", (Image.new("L", grey[4].size), grey[4]))
    middle = Image.fromarray(np.where(subject(7)[6], 128, 127).astype(np.uint8))
    opaque = grey[1].convert("RGBA")  # its transparency says nothing
    white_first = Image.fromarray(1 - subject(7)[5].astype(np.uint8)).convert("P")
    white_first.putpalette([255, 255, 255, 0, 0, 0])
    kinds = [grey[0].convert("1"), opaque, palette, clear, both, white_first, middle]
    for k, image in enumerate(kinds):
        image.save(masked / f"masks/run/a.b/{k:05d}.png")
    record = VideoFolder(masked / "videos", 7, 18, 14, masks=masked / "masks")[0]
    np.testing.assert_array_equal(record["masks"], bright(record))


def test_a_damaged_mask_is_replaced_by_the_next_video(masked, caplog):
    folder = VideoFolder(masked / "videos", 7, 18, 14, masks=masked / "masks")
    (masked / "masks/run/a.b/00003.png").write_bytes((masked / "masks/run/a.b/00003.png").read_bytes()[:60])
    assert folder[0]["file"] == "run/c.mkv" and "run/a.b/00003.png cannot be read as a mask" in caplog.text
    (masked / "masks/run/c/00004.png").unlink()
    with pytest.raises(UserError, match=r"2 of 2 clips in a row cannot be read: .*a.b/00003.png cannot be read as a mask"):
        folder[0]


def test_the_fingerprint_changes_with_the_masks(masked):
    of = lambda **options: VideoFolder(masked / "videos", 3, 18, 14, **options)
    prints = [of().fingerprint, of(masks=masked / "masks").fingerprint]
    (masked / "masks/run/c/00002.png").unlink()
    prints.append(of(masks=masked / "masks").fingerprint)
    Image.fromarray(rng().integers(0, 256, (24, 40), dtype=np.uint8)).save(masked / "masks/run/c/00003.png")
    prints.append(of(masks=masked / "masks").fingerprint)
    assert len(set(prints)) == 4 and of().fingerprint == prints[0]
    folder = pickle.loads(pickle.dumps(of(masks=masked / "masks")))
    assert folder.fingerprint == prints[3] and folder[0]["masks"].any()


def test_a_clip_may_have_several_texts(masked):
    told = {"run/c.mkv": Told("run/c.mkv", 0, ("a box", "it grows"))}
    folder = InstructionFolder(masked / "videos", 2, 18, 14, told, ("run",))
    assert folder[0]["text"] == "a box" and {folder.read(0, rng(seed))["text"] for seed in range(10)} == {"a box", "it grows"}
    one = InstructionFolder(masked / "videos", 2, 18, 14, {"run/c.mkv": Told("run/c.mkv", 0, "a box")}, ("run",))
    assert one.fingerprint != folder.fingerprint
    with pytest.raises(UserError, match=r"run/c.mkv \(has no text\)"):
        InstructionFolder(masked / "videos", 2, 18, 14, {"run/c.mkv": Told("run/c.mkv", 0, ())}, ("run",))
