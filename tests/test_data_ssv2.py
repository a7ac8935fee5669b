"""magvid.data.ssv2: a tiny archive laid out as the public one."""

import hashlib
import json
import pickle

import numpy as np
import pytest
from make_videos import damaged, encode, numbered, numbers

from magvid.data.ssv2 import SSV2, read_labels
from magvid.types import UserError

CLASSES = {"Closing something": "0", "Moving something up": "1", "Something falling like a feather or paper": "2"}
TRAIN = [
    {"id": "11", "label": "moving Cup up.", "template": "Moving [something] up", "placeholders": ["Cup"]},
    {"id": "9", "label": "closing  a box ", "template": "Closing [something]", "placeholders": ["a box"]},
]
VALIDATION = [
    {"id": "7", "label": "plastic falling like a feather or paper", "template": "[Something] falling like a feather or paper"},
    {"id": "8", "label": "moving spoon up", "template": "Moving [something] up", "placeholders": ["spoon"]},
]
VIDEOS = "20bn-something-something-v2"


@pytest.fixture
def archive(tmp_path):
    write(tmp_path, train=TRAIN, validation=VALIDATION, labels=CLASSES, test=[{"id": "30"}])
    for row in [*TRAIN, *VALIDATION, {"id": "30"}]:
        encode(tmp_path / f"{VIDEOS}/{row['id']}.webm", numbered(int(row["id"])), codec="libvpx-vp9")
    return tmp_path


def write(archive, prefix="", **files):
    (archive / "labels").mkdir(exist_ok=True)
    for name, content in files.items():
        (archive / f"labels/{prefix}{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_videos_and_their_instructions(archive):
    source = SSV2(archive, 4, 16, 16)
    assert source.files == ["11.webm", "7.webm", "8.webm", "9.webm"] and not source.bad
    assert source.classes == tuple(CLASSES)
    told = [{k: v for k, v in record.items() if k != "video"} for record in source]
    digest = lambda name: hashlib.sha256((archive / VIDEOS / name).read_bytes()).hexdigest()
    assert told == [
        dict(label=1, text="moving cup up", file="11.webm", digest=digest("11.webm")),
        dict(label=2, text="plastic falling like a feather or paper", file="7.webm", digest=digest("7.webm")),
        dict(label=1, text="moving spoon up", file="8.webm", digest=digest("8.webm")),
        dict(label=0, text="closing a box", file="9.webm", digest=digest("9.webm")),
    ]
    record = source.read(0, np.random.default_rng(0))
    assert record["video"].shape == (4, 16, 16, 3) and record["label"].dtype == np.int32
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint and copy[3]["text"] == "closing a box"


def test_clips_show_the_whole_video(archive):
    source = SSV2(archive, 4, 16, 16)
    shown = [[0, 3, 7, 10], [0, 2, 4, 6], [0, 2, 5, 7], [0, 3, 5, 8]]
    assert [numbers(record["video"]) for record in source] == shown
    assert [numbers(source.read(i, np.random.default_rng(i))["video"]) for i in range(4)] == shown
    part = SSV2(archive, 4, 16, 16, spread=False, stride=2)
    assert [numbers(part[i]["video"]) for i in (0, 1)] == [[2, 4, 6, 8], [0, 2, 4, 6]]
    assert SSV2(archive, 8, 16, 16).bad == {"7.webm": "too short: 7 frames, a clip needs 8"}


def test_splits_of_the_archive(archive):
    of = lambda split, **options: SSV2(archive, 4, 16, 16, split=split, **options)
    assert of("train").files == ["11.webm", "9.webm"] and of("validation").files == ["7.webm", "8.webm"]
    assert of("train").classes == of("validation").classes == tuple(CLASSES)
    indexed = json.loads((archive / VIDEOS / "index.json").read_text())["files"]
    assert sorted(indexed) == ["11.webm", "7.webm", "8.webm", "9.webm"], "none of the test videos"
    for wrong in ("test", "val"):
        with pytest.raises(ValueError, match=f'split must be "train", "validation" or None, got \'{wrong}\': the test videos have no'):
            of(wrong)
    prints = [of(None), of("train"), of("validation"), of("train", spread=False), of("train", keep_aspect=False)]
    assert len({source.fingerprint for source in prints}) == 5


def test_a_split_needs_only_its_own_files(archive):
    (archive / "labels/train.json").unlink()
    assert len(SSV2(archive, 4, 16, 16, split="validation")) == 2
    with pytest.raises(UserError, match=r"there is no file .*labels/train.json: unpack the labels of Something-Something V2 .*`labels`"):
        SSV2(archive, 4, 16, 16)


def test_the_names_of_20bn_and_another_folder(archive, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("annotations")
    write(elsewhere, "something-something-v2-", train=TRAIN, labels=CLASSES)
    assert SSV2(archive, 4, 16, 16, split="train", labels=elsewhere / "labels").files == ["11.webm", "9.webm"]


def test_the_fingerprint_changes_with_texts_and_labels(archive):
    prints = [SSV2(archive, 4, 16, 16).fingerprint]
    for change in ({"label": "moving mug up"}, {"template": "Closing [something]"}):
        write(archive, train=[TRAIN[0] | change, TRAIN[1]])
        prints.append(SSV2(archive, 4, 16, 16).fingerprint)
    assert len(set(prints)) == 3


def test_videos_that_are_left_out(archive, caplog):
    untold = [{"id": "8", "label": " ", "template": "Closing [something]"}, {"id": "30", "template": "Closing [something]"}]
    write(archive, validation=[VALIDATION[0], *untold, VALIDATION[0] | {"id": "404"}])
    source = SSV2(archive, 4, 16, 16, split="validation")
    assert source.files == ["7.webm"]
    assert source.bad == {"30.webm": "has no text", "404.webm": "cannot be opened: No such file or directory", "8.webm": "has no text"}
    assert caplog.text.count("3 of 4 videos are left out: 30.webm (has no text); 404.webm (cannot be opened") == 1
    caplog.clear()
    assert SSV2(archive, 4, 16, 16, split="validation").bad == source.bad and not caplog.text  # told once
    write(archive, validation=untold)
    with pytest.raises(UserError, match=r"none of the 2 videos in .* is usable: 30.webm \(has no text\); 8.webm \(has no text\)"):
        SSV2(archive, 4, 16, 16, split="validation")


def test_a_damaged_video_is_replaced_by_the_next(archive, caplog):
    source = SSV2(archive, 4, 16, 16)
    damaged(archive / VIDEOS / "7.webm", "text")
    record = source[1]
    assert record["file"] == "8.webm" and record["text"] == "moving spoon up" and "7.webm cannot be read" in caplog.text
    assert SSV2(archive, 4, 16, 16).files == ["11.webm", "8.webm", "9.webm"]


def test_another_layout_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*labels/labels.json: unpack the labels"):
        SSV2(tmp_path, 4, 16, 16)
    write(tmp_path, train=TRAIN, validation=VALIDATION, labels=CLASSES)
    with pytest.raises(UserError, match=r"there is no folder .*20bn-something-something-v2: cat 20bn-something-something-v2-\?\? \| tar"):
        SSV2(tmp_path, 4, 16, 16)
    for wrong in ([], {}, {"A": "1"}, {"A": "x"}, {"A": None}, {"A": "0", "B": "0"}):
        write(tmp_path, labels=wrong)
        with pytest.raises(UserError, match="labels.json should have the numbers 0, 1, ... of all templates"):
            read_labels(tmp_path / "labels")
    write(tmp_path, labels=CLASSES)
    for wrong in ({}, [], 3):
        write(tmp_path, train=wrong)
        with pytest.raises(UserError, match='train.json should be a list of {"id": ..., "label": ..., "template": ...}'):
            read_labels(tmp_path / "labels")
    for wrong in ({"id": "4", "label": "x"}, {"template": "Closing [something]"}, [1], TRAIN[0] | {"label": 5}, TRAIN[0] | {"template": 5}):
        write(tmp_path, train=[TRAIN[0], wrong])
        with pytest.raises(UserError, match='train.json: entry 1 should have "id", "label" and "template", got '):
            read_labels(tmp_path / "labels")
    write(tmp_path, train=[TRAIN[0] | {"template": "Eating [something]"}])
    with pytest.raises(UserError, match='train.json: the template "Eating something" of video 11 is not one of the 3 in labels.json'):
        read_labels(tmp_path / "labels")
    write(tmp_path, train="[{")
    with pytest.raises(UserError, match=r"train.json cannot be read as json \(.*\): download it again"):
        read_labels(tmp_path / "labels")
    (tmp_path / "labels/train.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"train.json cannot be read as json \(.*\): download it again"):
        read_labels(tmp_path / "labels")
