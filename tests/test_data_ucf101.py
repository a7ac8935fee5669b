"""magvid.data.ucf101: a tiny archive laid out as the public one."""

import hashlib
import json
import pickle

import numpy as np
import pytest
from make_videos import damaged, encode, numbered, numbers
from test_data_folder import bright, film, subject, write_masks

from magvid.data.ucf101 import UCF101, words
from magvid.types import UserError

A, B, C, D = (
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
    "YoYo/v_YoYo_g01_c01.avi",
    "YoYo/v_YoYo_g08_c01.avi",
)
LISTS = {
    "classInd.txt": "1 ApplyEyeMakeup\r\n2 Archery\r\n3 YoYo\r\n",
    "trainlist01.txt": f"{B} 1\n{D} 3\n\n",
    "testlist01.txt": f"{A}\r\n{C}\r\n",
    "trainlist02.txt": f"{A} 1\n{D} 3\n",
    "testlist02.txt": f"{B}\n{C}\n",
}


@pytest.fixture
def archive(tmp_path):
    (tmp_path / "ucfTrainTestlist").mkdir()
    for name, text in LISTS.items():
        (tmp_path / "ucfTrainTestlist" / name).write_bytes(text.encode())
    for name, frames in ((A, 7), (B, 8), (C, 9), (D, 10)):
        encode(tmp_path / "UCF-101" / name, numbered(frames), codec="mpeg4")
    return tmp_path


def test_videos_with_the_names_of_their_actions(archive):
    source = UCF101(archive, 4, 16, 16)
    assert source.files == [A, B, C, D] and not source.bad and source.classes == ("ApplyEyeMakeup", "Archery", "YoYo")
    told = [{k: v for k, v in record.items() if k != "video"} for record in source]
    digest = lambda name: hashlib.sha256((archive / "UCF-101" / name).read_bytes()).hexdigest()
    texts = [(0, "apply eye makeup"), (0, "apply eye makeup"), (2, "yo yo"), (2, "yo yo")]
    expected = [dict(label=k, text=text, file=f, digest=digest(f)) for (k, text), f in zip(texts, (A, B, C, D), strict=True)]
    assert told == expected
    shown = [[0, 2, 4, 6], [0, 2, 5, 7], [0, 3, 5, 8], [0, 3, 6, 9]]
    assert [numbers(record["video"]) for record in source] == shown
    assert [numbers(source.read(i, np.random.default_rng(i))["video"]) for i in range(4)] == shown
    assert source[0]["video"].shape == (4, 16, 16, 3) and source[0]["label"].dtype == np.int32
    assert pickle.loads(pickle.dumps(source)).fingerprint == source.fingerprint


def test_splits_and_folds_of_the_archive(archive):
    of = lambda split, **options: UCF101(archive, 4, 16, 16, split=split, **options)
    assert of("train").files == [B, D] and of("test").files == [A, C]
    assert of("train", fold=2).files == [A, D] and of("test", fold=2).files == [B, C]
    with pytest.raises(UserError, match=r"there is no file .*ucfTrainTestlist/trainlist03.txt: unpack UCF101TrainTestSplits-"):
        of("train", fold=3)
    with pytest.raises(ValueError, match="split must be \"train\", \"test\" or None, got 'validation'"):
        of("validation")
    with pytest.raises(ValueError, match="fold must be 1, 2 or 3, got 0"):
        of("train", fold=0)
    prints = [of(None), of("train"), of("test"), of("train", fold=2), of("train", spread=False)]
    assert len({source.fingerprint for source in prints}) == 5


def test_only_the_split_is_indexed(archive):
    UCF101(archive, 4, 16, 16, split="test", index=archive / "i.json")
    assert sorted(json.loads((archive / "i.json").read_text())["files"]) == [A, C]


def test_the_options_of_a_folder(archive):
    options = dict(spread=False, stride=2, crop="centre", windows=2, keep_aspect=False)
    source = UCF101(archive, 3, 16, 16, split="train", **options)
    assert [numbers(source[i]["video"]) for i in range(4)] == [[0, 2, 4], [0, 2, 4], [3, 5, 7], [5, 7, 9]]
    assert numbers(UCF101(archive, 3, 16, 16, split="train", fps=5)[1]["video"]) == [0, 4, 8]


def test_masks(archive):
    for name, frames in ((B, 6), (D, 8)):
        film(archive / "UCF-101" / name, subject(frames))
        write_masks(archive / "masks" / name.removesuffix(".avi"), subject(frames))
    (archive / f"masks/{B.removesuffix('.avi')}/00005.png").unlink()
    source = UCF101(archive, 4, 18, 14, split="train", masks=archive / "masks")
    assert source.files == [B, D] and set(source[0]) == {"video", "masks", "label", "text", "file", "digest"}
    for seed in range(6):
        np.testing.assert_array_equal((record := source.read(1, np.random.default_rng(seed)))["masks"], bright(record))
    assert source[0]["masks"].shape == (4, 18, 14) and source[0]["masks"].any((1, 2)).tolist() == [True] * 3 + [False]
    assert UCF101(archive, 4, 18, 14, masks=archive / "masks").bad.keys() == {A, C}
    assert source.fingerprint != UCF101(archive, 4, 18, 14, split="train").fingerprint


@pytest.mark.parametrize(
    ("name", "text"),
    [("HandstandPushups", "handstand pushups"), ("TaiChi", "tai chi"), ("Biking", "biking"), ("CuttingInKitchen", "cutting in kitchen")],
)
def test_words(name, text):
    assert words(name) == text


def test_videos_that_are_left_out(archive):
    damaged(archive / "UCF-101" / B, "zero")
    (archive / "UCF-101" / A).unlink()
    source = UCF101(archive, 10, 16, 16)
    assert source.files == [D] and source.bad == {
        A: "cannot be opened: No such file or directory",
        B: "empty file",
        C: "too short: 9 frames, a clip needs 10",
    }


def test_a_damaged_video_is_replaced_by_the_next(archive, caplog):
    source = UCF101(archive, 4, 16, 16)
    damaged(archive / "UCF-101" / B, "text")
    record = source[1]
    assert record["file"] == C and record["text"] == "yo yo" and f"{B} cannot be read" in caplog.text


def test_another_layout_is_named(archive):
    lists = archive / "ucfTrainTestlist"
    for wrong in ("x/v_x_g01_c01.avi 1", "v_YoYo_g01_c01.avi", "Biking/v_Biking_g01_c01.avi"):
        (lists / "trainlist01.txt").write_text(f"{B} 1\n{wrong}\n")
        with pytest.raises(UserError, match='trainlist01.txt line 2 should be like "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", got "'):
            UCF101(archive, 4, 16, 16)
    (lists / "trainlist01.txt").write_text(" \n")
    with pytest.raises(UserError, match="trainlist01.txt is empty: unpack it again"):
        UCF101(archive, 4, 16, 16)
    for wrong in ("1 ApplyEyeMakeup\n3 YoYo", "ApplyEyeMakeup\nYoYo", "1 ApplyEyeMakeup\n2 Yo Yo", "1 ApplyEyeMakeup\n2"):
        (lists / "classInd.txt").write_text(wrong)
        with pytest.raises(UserError, match=r'classInd.txt line [12] should be like "[12] ApplyEyeMakeup", got "'):
            UCF101(archive, 4, 16, 16)
    (lists / "classInd.txt").unlink()
    with pytest.raises(UserError, match=r"there is no file .*classInd.txt: unpack UCF101TrainTestSplits-RecognitionTask.zip beside"):
        UCF101(archive, 4, 16, 16)
    for name, text in LISTS.items():
        (lists / name).write_text(text)
    (archive / "UCF-101").rename(archive / "videos")
    with pytest.raises(UserError, match=r"there is no folder .*/UCF-101: unpack UCF101.rar there"):
        UCF101(archive, 4, 16, 16)
