"""magvid.data.epic: a tiny archive laid out as the public one."""

import hashlib
import json
import pickle

import numpy as np
import pytest
from make_videos import damaged, encode, numbered, numbers

from magvid import video
from magvid.data.epic import EpicKitchens, read_annotations
from magvid.types import UserError

HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,narration,verb,"
    "verb_class,noun,noun_class,all_nouns,all_noun_classes"
)
VERBS = "id,key,instances,category\n0,take,\"['get', 'take']\",retrieve\n1,put,\"['put']\",leave\n2,turn-on,\"['turn-on']\",access\n"
TRAIN = [  # narration_id, video_id, start, stop, narration, verb_class
    ("P01_01_0", "P01_01", "00:00:00.00", "00:00:00.75", "take plate", 0),
    ("P01_01_1", "P01_01", "00:00:00.60", "00:00:01.90", "Turn on  tap.", 2),
    ("P02_103_0", "P02_103", "00:00:00.20", "00:00:01.00", "put down pan", 1),
]
VALIDATION = [("P02_07_0", "P02_07", "00:00:00.50", "00:00:02.00", "take lid, put it down", 0)]
TAP = "P01/videos/P01_01.MP4#P01_01_1"


def write(archive, split, rows, header=HEADER):
    folder = archive / "epic-kitchens-100-annotations"
    folder.mkdir(exist_ok=True)
    lines = [header]
    for narration_id, video_id, start, stop, narration, verb_class in rows:
        known = [narration_id, video_id.split("_")[0], video_id, "00:00:00.100", start, stop, "1", "9", f'"{narration}"', "verb"]
        lines.append(",".join([*known, str(verb_class), "noun", "2", "\"['noun']\"", "[2]"]))
    (folder / f"EPIC_100_{split}.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def archive(tmp_path):
    write(tmp_path, "train", TRAIN)
    write(tmp_path, "validation", VALIDATION)
    (tmp_path / "epic-kitchens-100-annotations/EPIC_100_verb_classes.csv").write_text(VERBS)
    for name in ("P01/videos/P01_01", "P02/videos/P02_103", "P02/videos/P02_07"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        encode(tmp_path / f"{name}.mp4", numbered(20), rate=10, gop=4).rename(tmp_path / f"{name}.MP4")
    return tmp_path


def test_actions_and_their_narrations(archive):
    source = EpicKitchens(archive, 4, 16, 16)
    files = ["P01/videos/P01_01.MP4#P01_01_0", TAP, "P02/videos/P02_07.MP4#P02_07_0", "P02/videos/P02_103.MP4#P02_103_0"]
    assert source.files == files and not source.bad and source.classes == ("take", "put", "turn-on")
    told = [{k: v for k, v in record.items() if k not in ("video", "digest")} for record in source]
    texts = [(0, "take plate"), (2, "turn on tap"), (0, "take lid, put it down"), (1, "put down pan")]
    assert told == [dict(label=label, text=text, file=file) for (label, text), file in zip(texts, files, strict=True)]
    assert source[0]["video"].shape == (4, 16, 16, 3) and source[0]["label"].dtype == np.int32
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint and copy[1]["text"] == "turn on tap"


def test_clips_show_the_whole_segment(archive):
    """The frames on screen from its start to its stop: 10 frames per second, number k from k / 10 s on."""
    source = EpicKitchens(archive, 4, 16, 16)
    shown = [[0, 2, 5, 7], [6, 10, 15, 19], [5, 10, 14, 19], [2, 5, 7, 10]]
    assert [numbers(record["video"]) for record in source] == shown
    assert [numbers(source.read(i, np.random.default_rng(i))["video"]) for i in range(4)] == shown
    every = EpicKitchens(archive, 14, 16, 16, split="train")
    assert every.files == [TAP] and numbers(every[0]["video"]) == list(range(6, 20))
    assert every.bad["P02/videos/P02_103.MP4#P02_103_0"] == "too short: 9 frames, a clip needs 14"


def test_a_part_of_a_segment(archive):
    source = EpicKitchens(archive, 3, 16, 16, split="train", spread=False, stride=2, crop="centre", windows=2)
    assert [numbers(source[i]["video"]) for i in (1, 4)] == [[6, 8, 10], [15, 17, 19]]
    drawn = EpicKitchens(archive, 3, 16, 16, split="train", spread=False)
    assert {numbers(drawn.read(0, np.random.default_rng(seed))["video"])[0] for seed in range(40)} == set(range(6))
    slow = EpicKitchens(archive, 4, 16, 16, split="train", fps=5)
    assert [numbers(record["video"]) for record in slow] == [[0, 2, 4, 6], [6, 10, 14, 18], [2, 4, 6, 8]]
    assert numbers(EpicKitchens(archive, 3, 16, 16, split="train", fps=5, spread=False)[1]["video"]) == [10, 12, 14]


def test_the_whole_segment(archive):
    source = EpicKitchens(archive, 4, 16, 16, split="train")
    name, digest, frames = source.whole(1)
    assert (name, digest) == (TAP, source[1]["digest"]) and numbers(np.stack(list(frames))) == list(range(6, 20))


def test_a_segment_is_searched_not_decoded_from_the_start(archive, monkeypatch):
    source, decoded, decode = EpicKitchens(archive, 4, 16, 16), [], video.decode

    def count(*args, **kwargs):
        for frame in decode(*args, **kwargs):
            decoded.append(frame)
            yield frame

    monkeypatch.setattr(video, "decode", count)
    assert numbers(source[2]["video"]) == [5, 10, 14, 19]
    assert decoded[0].pts > 0 and len(decoded) < 20  # from a key frame before frame 5 to frame 19


def test_the_digest_is_that_of_the_file_and_the_bounds(archive):
    of = lambda: {record["file"]: record["digest"] for record in EpicKitchens(archive, 2, 16, 16, split="train")}
    before = of()
    content = hashlib.sha256((archive / "P01/videos/P01_01.MP4").read_bytes()).hexdigest()
    assert len(set(before.values())) == 3
    assert before[TAP] == hashlib.sha256(json.dumps([content, 0.6, 1.9]).encode()).hexdigest()
    write(archive, "train", [TRAIN[0], (*TRAIN[1][:3], "00:00:01.80", *TRAIN[1][4:]), TRAIN[2]])
    after = of()
    assert [name for name in before if before[name] != after[name]] == [TAP]
    encode(archive / "other.mp4", numbered(19), rate=10).rename(archive / "P02/videos/P02_103.MP4")
    last = of()
    assert [name for name in after if after[name] != last[name]] == ["P02/videos/P02_103.MP4#P02_103_0"]


def test_splits_of_the_archive(archive):
    of = lambda split, **options: EpicKitchens(archive, 4, 16, 16, split=split, **options)
    of("validation", index=archive / "i.json")
    assert list(json.loads((archive / "i.json").read_text())["files"]) == ["P02/videos/P02_07.MP4"]
    assert len(of("train")) == 3 and of("validation").files == ["P02/videos/P02_07.MP4#P02_07_0"]
    with pytest.raises(ValueError, match="split must be \"train\", \"validation\" or None, got 'test': the test videos have no narrations"):
        of("test")
    prints = [of(None), of("train"), of("validation"), of("train", spread=False), of("train", fps=5)]
    write(archive, "train", [(*TRAIN[0][:4], "take a plate", 0), *TRAIN[1:]])
    assert len({source.fingerprint for source in [*prints, of("train")]}) == 6


def test_annotations_elsewhere(archive):
    (archive / "epic-kitchens-100-annotations").rename(archive / "csv")
    with pytest.raises(UserError, match=r"there is no file .*EPIC_100_verb_classes.csv: git clone https://github.com/epic-kitchens/epic-"):
        EpicKitchens(archive, 4, 16, 16)
    assert len(EpicKitchens(archive, 4, 16, 16, annotations=archive / "csv")) == 4


def test_actions_that_are_left_out(archive, caplog):
    more = [
        ("P01_01_2", "P01_01", "00:00:00.00", "00:00:01.00", " ", 0),
        ("P01_01_3", "P01_01", "00:00:01.00", "00:00:01.00", "take cup", 0),
        ("P01_01_4", "P01_01", "00:01:00.00", "01:00:01.50", "take cup", 0),
        ("P01_01_5", "P01_01", "00:00:01.80", "00:00:09.00", "take cup", 0),
        ("P09_01_0", "P09_01", "00:00:00.00", "00:00:01.00", "take cup", 0),
    ]
    write(archive, "train", [*TRAIN, *more])
    source = EpicKitchens(archive, 4, 16, 16, split="train")
    assert len(source) == 3 and source.bad == {
        "P01/videos/P01_01.MP4#P01_01_2": "has no text",
        "P01/videos/P01_01.MP4#P01_01_3": "lasts from 1 to 1 s",
        "P01/videos/P01_01.MP4#P01_01_4": "begins at 60 s, and 1.9 s is the last frame of its file",
        "P01/videos/P01_01.MP4#P01_01_5": "too short: 2 frames, a clip needs 4",
        "P09/videos/P09_01.MP4#P09_01_0": "cannot be opened: No such file or directory",
    }
    assert caplog.text.count("5 of 8 actions are left out: P01/videos/P01_01.MP4#P01_01_2 (has no text); ") == 1
    with pytest.raises(UserError, match="none of the 8 actions in .* is usable"):
        EpicKitchens(archive, 21, 16, 16, split="train")


def test_a_damaged_video_is_replaced_by_the_next(archive, caplog):
    source = EpicKitchens(archive, 4, 16, 16)
    damaged(archive / "P01/videos/P01_01.MP4", "text")
    record = source[0]
    assert record["file"] == "P02/videos/P02_07.MP4#P02_07_0" and record["text"] == "take lid, put it down"
    assert caplog.text.count("P01_01.MP4 cannot be read") == 2  # for each of its two actions


def test_another_layout_is_named(archive):
    folder = archive / "epic-kitchens-100-annotations"
    read = lambda: read_annotations(folder, ["train"])
    for text, message in (
        ("", r"verb_classes.csv has no column id, key; it has none"),
        ("id,name\n0,take\n", r"verb_classes.csv has no column key; it has id, name"),
        ("id,key\n", r"verb_classes.csv has no rows: download it again"),
        ("id,key\n0,take\n2,put\n", r'verb_classes.csv row 3: id should be 1, got "2"'),
    ):
        (folder / "EPIC_100_verb_classes.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            read()
    (folder / "EPIC_100_verb_classes.csv").write_text(VERBS)
    write(archive, "train", [], HEADER.replace("narration,", "text,"))
    with pytest.raises(UserError, match="EPIC_100_train.csv has no column narration; it has narration_id, participant_id, "):
        read()
    write(archive, "train", [])
    with pytest.raises(UserError, match="EPIC_100_train.csv has no rows: download it again"):
        read()
    for verb in (3, -1, "take", ""):
        write(archive, "train", [(*TRAIN[0][:5], verb)])
        with pytest.raises(UserError, match=rf'EPIC_100_train.csv row 2: verb_class should be a number from 0 to 2, got "{verb}"'):
            read()
    for time in ("0.5", "00:00:xx", ""):
        write(archive, "train", [TRAIN[0], (*TRAIN[1][:3], time, *TRAIN[1][4:])])
        with pytest.raises(UserError, match=rf'EPIC_100_train.csv row 3: stop_timestamp should be like 00:00:01.89, got "{time}"'):
            read()
    (folder / "EPIC_100_train.csv").unlink()
    with pytest.raises(UserError, match="there is no file .*EPIC_100_train.csv: git clone .* or say where it is"):
        read()
    write(archive, "train", TRAIN)
    for participant in ("P01", "P02"):
        (archive / participant / "videos").rename(archive / participant / "rgb_frames")
    with pytest.raises(UserError, match="there is no folder .*/P01/videos or of another participant: `path` is EPIC-KITCHENS"):
        EpicKitchens(archive, 4, 16, 16)
