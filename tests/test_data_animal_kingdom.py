"""magvid.data.animal_kingdom: a tiny archive laid out as the public one."""

import hashlib
import pickle
import sys

import numpy as np
import openpyxl
import pytest
from make_videos import damaged, encode, numbered, numbers

from magvid.data.animal_kingdom import AnimalKingdom, read_metadata
from magvid.data.video_index import index_folder
from magvid.types import UserError

HEADER = ("S/N", "video_id", "type", "labels", "list_animal_action")
ROWS = (
    ("AAAAHORS", "train", "[('Horse', 'Eating')]"),
    ("BBBBHORS", "train", "[('Horse', 'Walking'), ('Horse', 'Eating'), ('Horse', 'Walking')]"),
    ("CCCCHORS", "test", "[('Horse Young', 'Having A Flehmen Response'), ('Horse', 'Running'), ('Common Crane', 'Flying')]"),
    ("DDDDCRAN", "train", "[('Common Crane', 'Flying')]"),
    ("EEEEVIPE", "test", """['[("Russell\\'S Viper", \\'Keeping still\\')]', '[("Russell\\'S Viper", \\'Moving\\')]']"""),
    ("FFFFNONE", "train", "[]"),
    ("GGGGHORS", "train", "[('Horse', 'Jumping'), ('Horse', 'Running'), ('Horse', 'Eating')]"),
)


def metadata(tmp_path, rows=ROWS, header=HEADER, sheet="AR"):
    book = openpyxl.Workbook()
    book.active.title = sheet
    book.active.append(header)
    for number, (video_id, split, pairs) in enumerate(rows, 1):
        values = {"S/N": number, "video_id": video_id, "type": split, "labels": "2,40", "list_animal_action": pairs}
        book.active.append([values.get(name) for name in header])
    book.create_sheet("Action").append(("Label", "Category", "Action", "Description"))
    book.save(tmp_path / "AR_metadata.xlsx")


@pytest.fixture
def archive(tmp_path):
    metadata(tmp_path)
    for video_id, _, _ in ROWS[:-1]:
        encode(tmp_path / f"dataset/video/{video_id}.mp4", numbered(8))
    return tmp_path


def test_the_videos_of_one_animal(archive):
    source = AnimalKingdom(archive, 4, 16, 16, animal="Horse")
    assert source.files == ["AAAAHORS.mp4", "BBBBHORS.mp4", "CCCCHORS.mp4"]
    assert source.bad == {"GGGGHORS.mp4": "cannot be opened: No such file or directory"}
    assert source.classes == ("eating", "jumping", "running", "walking")
    told = [{k: v for k, v in record.items() if k != "video"} for record in source]
    digests = [record.pop("digest") for record in told]
    assert digests == [hashlib.sha256((archive / "dataset/video" / name).read_bytes()).hexdigest() for name in source.files]
    assert told == [
        dict(label=0, action="eating", text="horse eating", file="AAAAHORS.mp4"),
        dict(label=3, action="walking and eating", text="horse walking and eating", file="BBBBHORS.mp4"),
        dict(label=2, action="running", text="horse running", file="CCCCHORS.mp4"),
    ]
    record = source.read(1, np.random.default_rng(0))
    assert record["video"].shape == (4, 16, 16, 3) and record["label"].dtype == np.int32
    assert numbers(source[1]["video"]) == [2, 3, 4, 5]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint and copy[1]["text"] == told[1]["text"]


def test_only_these_videos_are_indexed(archive):
    file = archive / "dataset/video/index.json"
    AnimalKingdom(archive, 4, 16, 16, animal="common crane")
    assert {name for name in ("DDDDCRAN", "CCCCHORS", "AAAAHORS") if name in file.read_text()} == {"DDDDCRAN", "CCCCHORS"}
    AnimalKingdom(archive, 4, 16, 16, animal="russell's viper")
    assert all(name in file.read_text() for name in ("DDDDCRAN", "EEEEVIPE")), "what is known of others is kept"
    assert len(index_folder(archive / "dataset/video")) == 6


def test_several_animals_and_three_actions(archive):
    encode(archive / "dataset/video/GGGGHORS.mp4", numbered(8))
    source = AnimalKingdom(archive, 4, 16, 16, animal=["horse young", "Horse", "Russell'S Viper"])
    texts = [record["text"] for record in source]
    assert texts[2:] == [
        "horse young having a flehmen response and running",
        "russell's viper keeping still and moving",
        "horse jumping, running and eating",
    ]


def test_splits_of_the_archive(archive):
    of = lambda split: AnimalKingdom(archive, 4, 16, 16, animal="Horse", split=split)
    assert of("train").files == ["AAAAHORS.mp4", "BBBBHORS.mp4"] and of("test").files == ["CCCCHORS.mp4"]
    assert of("train").classes == of("test").classes == of(None).classes
    with pytest.raises(ValueError, match="split must be one of .*got 'validation'"):
        of("validation")
    damaged(archive / "dataset/video/CCCCHORS.mp4", "text")
    with pytest.raises(UserError, match='no usable video of .*video is of split "test"'):
        of("test")


def test_the_options_of_a_folder(archive):
    options = dict(fps=5, most_stride=2, crop="centre", windows=2, keep_aspect=False)
    source = AnimalKingdom(archive, 3, 16, 16, animal="Horse", **options)
    assert [numbers(source[i]["video"]) for i in (0, 3)] == [[0, 2, 4], [3, 5, 7]]


def test_an_animal_that_is_not_there(archive):
    with pytest.raises(UserError, match='has the animal "hors"; did you mean horse'):
        AnimalKingdom(archive, 4, 16, 16, animal="hors")
    with pytest.raises(UserError, match='has the animal "xyzzy", of 4 animals'):
        AnimalKingdom(archive, 4, 16, 16, animal=["Horse", "xyzzy"])


def test_another_layout_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="there is no file .*AR_metadata.xlsx: `path` is the folder action_recognition"):
        AnimalKingdom(tmp_path, 4, 16, 16, animal="Horse")
    metadata(tmp_path)
    with pytest.raises(UserError, match="there is no folder .*dataset/video: unpack dataset/video.tar.gz"):
        AnimalKingdom(tmp_path, 4, 16, 16, animal="Horse")
    metadata(tmp_path, sheet="CARe")
    with pytest.raises(UserError, match="has no sheet AR; it has CARe, Action"):
        read_metadata(tmp_path)
    metadata(tmp_path, header=("video_id", "labels", "list_animal"))
    with pytest.raises(UserError, match="has no column type, list_animal_action; it has video_id, labels, list_animal"):
        read_metadata(tmp_path)
    metadata(tmp_path, rows=[("A", "validation", "[]")])
    with pytest.raises(UserError, match='row 2: type is "validation", expected train or test'):
        read_metadata(tmp_path)
    for cell in ("Horse", "[('Horse',)]", "[(1, 2)]", "[3]", None, "['x']"):
        metadata(tmp_path, rows=[ROWS[0], ("A", "train", cell)])
        with pytest.raises(UserError, match=r"row 3: list_animal_action should be like \[\('Horse', 'Eating'\)\], got"):
            read_metadata(tmp_path)
    (tmp_path / "AR_metadata.xlsx").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UserError, match="cannot be read as an .xlsx file"):
        read_metadata(tmp_path)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(UserError, match=r'needs openpyxl.*pip install -e "\.\[xlsx\]"'):
        read_metadata(tmp_path)
