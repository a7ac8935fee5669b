"""magvid.data.msrvtt: a tiny archive laid out as the public ones."""

import hashlib
import json
import pickle

import numpy as np
import pytest
from make_videos import damaged, encode, numbered, numbers
from test_data_folder import bright, film, subject, write_masks

from magvid.data.msrvtt import CATEGORIES, MSRVTT, SPLITS, read_labels
from magvid.types import UserError

CLIPS = {  # number: category and captions
    0: (9, ["A car is  shown.", "a man drives"]),
    6512: (0, ["a band plays"]),
    6513: (0, ["a song"]),
    7010: (17, ["soup", "a pan"]),
    9999: (2, ["a game"]),
}
LIST = "key,vid_key,video_id,sentence\r\nret0,msr9999,video9999,someone plays a game\r\nret1,msr7010,video7010,\"soup, in a pan\"\r\n"
FILES = {k: f"{'TrainValVideo' if k < 7010 else 'TestVideo'}/video{k}.mp4" for k in CLIPS}


def content(numbers):
    """As the json files have it, all of them called "train"."""
    videos = [{"video_id": f"video{k}", "category": CLIPS[k][0], "split": "train", "id": k, "start time": 1.5} for k in numbers]
    said = [(k, caption) for k in numbers for caption in CLIPS[k][1]]
    return {"info": {}, "videos": videos, "sentences": [{"video_id": f"video{k}", "sen_id": i, "caption": c} for i, (k, c) in enumerate(said)]}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))


@pytest.fixture
def archive(tmp_path):
    write(tmp_path / "train_val_videodatainfo.json", content([0, 6512, 6513]))
    write(tmp_path / "test_videodatainfo.json", content([7010, 9999]))
    write(tmp_path / "MSRVTT_JSFUSION_test.csv", LIST)
    for frames, name in enumerate(FILES.values(), 6):
        encode(tmp_path / name, numbered(frames))
    return tmp_path


def rng(seed=0):
    return np.random.default_rng(seed)


def test_videos_and_their_captions(archive):
    source = MSRVTT(archive, 3, 18, 14)
    assert source.files == sorted(FILES.values()) and not source.bad and source.classes == CATEGORIES and len(CATEGORIES) == 20
    record = source[2]
    digest = hashlib.sha256((archive / FILES[0]).read_bytes()).hexdigest()
    assert {k: v for k, v in record.items() if k != "video"} == dict(label=9, text="a car is shown", file=FILES[0], digest=digest)
    assert record["video"].shape == (3, 18, 14, 3) and record["label"].dtype == np.int32
    assert {source.read(2, rng(seed))["text"] for seed in range(10)} == {"a car is shown", "a man drives"}
    assert [source.classes[record["label"]] for record in source] == ["cooking", "gaming", "vehicles", "music", "music"]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint and copy[3]["text"] == "a band plays"


def test_splits_go_by_the_number_of_the_video(archive):
    of = lambda split, **options: MSRVTT(archive, 3, 18, 14, split=split, **options)
    expected = {"train": [0, 6512], "validation": [6513], "test": [7010, 9999]}
    for split, which in expected.items():
        assert of(split, index=archive / f"{split}.json").files == [FILES[k] for k in which]
        assert sorted(json.loads((archive / f"{split}.json").read_text())["files"]) == [FILES[k] for k in which]
    assert [len(SPLITS[split]) for split in expected] == [6513, 497, 2990]
    with pytest.raises(ValueError, match="split must be one of train, validation, test, test_1ka or None, got 'val'"):
        of("val")
    (archive / "train_val_videodatainfo.json").unlink()
    assert of("test").files == [FILES[7010], FILES[9999]]  # a split needs only its own file
    with pytest.raises(UserError, match=r"there is no file .*train_val_videodatainfo.json, nor MSRVTT_data.json: unpack the annotations"):
        of("train")


def test_the_test_list_1ka_has_captions_of_its_own(archive):
    source = MSRVTT(archive, 3, 18, 14, split="test_1ka")
    assert [(record["file"], record["text"]) for record in source] == [(FILES[7010], "soup, in a pan"), (FILES[9999], "someone plays a game")]
    assert source.fingerprint != MSRVTT(archive, 3, 18, 14, split="test").fingerprint
    write(archive / "MSRVTT_JSFUSION_test.csv", LIST.replace("sentence", "sentences"))
    assert MSRVTT(archive, 3, 18, 14, split="test_1ka").fingerprint == source.fingerprint
    write(archive / "MSRVTT_JSFUSION_test.csv", LIST + "ret2,msr8000,video8000,a cat\n")
    with pytest.raises(UserError, match=r"MSRVTT_JSFUSION_test.csv names 1 videos that .*test_videodatainfo.json does not, such as video8000"):
        MSRVTT(archive, 3, 18, 14, split="test_1ka")
    for wrong, message in ((LIST.replace(",", ";"), "should begin with key,vid_key,video_id,sentence, got 'key;vid"), (LIST[:31], "has no rows")):
        write(archive / "MSRVTT_JSFUSION_test.csv", wrong)
        with pytest.raises(UserError, match=f"MSRVTT_JSFUSION_test.csv {message}"):
            MSRVTT(archive, 3, 18, 14, split="test_1ka")
    (archive / "MSRVTT_JSFUSION_test.csv").unlink()
    with pytest.raises(UserError, match=r"there is no file .*MSRVTT_JSFUSION_test.csv: it is in msrvtt_data.zip"):
        MSRVTT(archive, 3, 18, 14, split="test_1ka")


@pytest.mark.parametrize("folder", ["videos/all", "videos", "."])
def test_the_layout_for_retrieval(tmp_path, folder):
    for k in CLIPS:
        encode(tmp_path / folder / f"video{k}.mp4", numbered(6))
    write(tmp_path / "msrvtt_data/MSRVTT_data.json", content(CLIPS))
    write(tmp_path / "msrvtt_data/MSRVTT_JSFUSION_test.csv", LIST)
    of = lambda split: MSRVTT(tmp_path, 3, 18, 14, split=split, labels=tmp_path / "msrvtt_data")
    name = "video{}.mp4" if folder == "." else folder + "/video{}.mp4"
    assert of("train").files == [name.format(k) for k in (0, 6512)] and len(of(None)) == 5
    assert of("test_1ka")[0]["text"] == "soup, in a pan"


def test_the_options_of_a_folder(archive):
    source = MSRVTT(archive, 3, 18, 14, split="test", stride=2, crop="centre", windows=2, keep_aspect=False)
    assert [numbers(source[i]["video"]) for i in range(4)] == [[0, 2, 4], [0, 2, 4], [4, 6, 8], [5, 7, 9]]
    assert numbers(MSRVTT(archive, 3, 18, 14, split="test", spread=True)[1]["video"]) == [0, 4, 9]
    assert numbers(MSRVTT(archive, 3, 18, 14, split="validation", fps=5)[0]["video"]) == [2, 4, 6]


def test_masks(archive):
    for k, frames in ((0, 5), (6512, 7)):
        film(archive / FILES[k], subject(frames))
        write_masks(archive / f"masks/TrainValVideo/video{k}", subject(frames))
    source = MSRVTT(archive, 3, 18, 14, split="train", masks=archive / "masks")
    for seed in range(8):
        record = source.read(seed % 2, rng(seed))
        assert record["masks"].shape == (3, 18, 14)
        np.testing.assert_array_equal(record["masks"], bright(record))
    assert set(record) == {"video", "masks", "label", "text", "file", "digest"}
    with pytest.raises(UserError, match=r"none of the 1 videos in .* is usable: TrainValVideo/video6513.mp4 \(has no masks"):
        MSRVTT(archive, 3, 18, 14, split="validation", masks=archive / "masks")


def test_videos_that_are_left_out(archive):
    (archive / FILES[0]).unlink()
    damaged(archive / FILES[7010], "zero")
    rows = content([0, 6512, 6513])
    rows["sentences"] = [row | {"caption": " . "} if row["video_id"] == "video6513" else row for row in rows["sentences"]]
    write(archive / "train_val_videodatainfo.json", rows)
    source = MSRVTT(archive, 3, 18, 14)
    assert source.files == [FILES[9999], FILES[6512]] and source.bad == {
        FILES[7010]: "empty file",
        FILES[6513]: "has no text",
        "video0.mp4": "cannot be opened: No such file or directory",
    }


def test_a_damaged_video_is_replaced_by_the_next(archive, caplog):
    source = MSRVTT(archive, 3, 18, 14, split="test")
    damaged(archive / FILES[7010], "text")
    assert source[0]["file"] == FILES[9999] and "video7010.mp4 cannot be read" in caplog.text


def test_another_layout_is_named(tmp_path):
    file, rows = tmp_path / "MSRVTT_data.json", content([0])
    write(file, rows)
    with pytest.raises(UserError, match=r"there are no videos in .*/{TrainValVideo,TestVideo,videos/all,videos}: unpack train_val_videos.zip and"):
        MSRVTT(tmp_path, 3, 18, 14)
    with pytest.raises(UserError, match='MSRVTT_data.json has no video of split "test": these are 7010 to 9999'):
        read_labels(tmp_path, "test")
    for wrong in ([], {"videos": []}, {"videos": {}, "sentences": []}, {"videos": [], "sentences": []}, rows["videos"]):
        write(file, wrong)
        with pytest.raises(UserError, match='MSRVTT_data.json should have the lists "videos" and "sentences"'):
            read_labels(tmp_path)
    for key, wrong in (("videos", {"video_id": "video3"}), ("videos", 5), ("sentences", {"caption": "a cat"})):
        write(file, rows | {key: [wrong]})
        with pytest.raises(UserError, match=f'MSRVTT_data.json: an entry of "{key}" should have video_id and ca.*, got '):
            read_labels(tmp_path)
    for wrong in ({"video_id": "clip1"}, {"video_id": 3}, {"category": 20}, {"category": "music"}):
        write(file, rows | {"videos": [rows["videos"][0] | wrong]})
        with pytest.raises(UserError, match="MSRVTT_data.json: video .* of category .*; expected video0 to video9999, 0 to 19"):
            read_labels(tmp_path)
    write(file, "[{")
    with pytest.raises(UserError, match=r"MSRVTT_data.json cannot be read as json \(.*\): download it again"):
        read_labels(tmp_path)
