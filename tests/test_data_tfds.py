"""magvid.data.tfds: data sets prepared by TFDS, read without TensorFlow, pixel by pixel."""

import json
import pathlib
import pickle
import shutil
import sys

import numpy as np
import pytest
from make_tfds import BAIR_FRAMES, Pictures, Robot, rewritten
from tensorflow_datasets.proto import tf_example_pb2

from magvid.data.pipeline import Loader
from magvid.data.tfds import TFDS
from magvid.types import UserError

# Written by TFDS 4.9.10 with TensorFlow 2.21 (tfrecord): a Video feature of 6, 7, ... frames, and a grey one of 8.
GOLDEN = pathlib.Path(__file__).parent / "golden" / "tfds"


def rng(seed=0):
    return np.random.default_rng(seed)


def shapes(i, frames, channels=3):
    """Clip i of the golden data set."""
    values = np.arange(frames * 4 * 6 * channels) * 37 + 11 * i
    return np.broadcast_to((values % 256).astype(np.uint8).reshape(frames, 4, 6, channels), (frames, 4, 6, 3))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data_dir with `pictures` and `robot`."""
    folder = tmp_path_factory.mktemp("tfds")
    for builder in (Pictures, Robot):
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    assert "tensorflow" not in sys.modules
    return folder


def robot(folder, split="train", frames=16, **more):
    return TFDS("robot", split, frames, 6, 8, data_dir=folder, picture="image_aux1", **more)


def test_images_with_their_classes(prepared):
    source = TFDS("pictures", "train", 1, 10, 14, data_dir=prepared)
    assert len(source) == 8 and source.classes == ("cat", "eel", "yak") and source.world_name == "pictures"
    record = source[0]
    np.testing.assert_array_equal(record["video"], Pictures.picture(0)[None])
    assert record["label"].dtype == np.int32 and [int(r["label"]) for r in source] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert source[5]["video"].shape == (1, 10, 14, 3)
    assert any((source.read(5, rng(s))["video"] != source[5]["video"]).any() for s in range(5))


def test_grey_and_transparent_images_become_rgb(prepared):
    source = TFDS("pictures", "validation", 1, 12, 10, data_dir=prepared)
    np.testing.assert_array_equal(source[2]["video"][0], np.repeat(Pictures.picture(10)[..., None], 3, -1))
    rgba = Pictures.picture(11).astype(float)
    over = TFDS("pictures", "validation", 1, 8, 8, data_dir=prepared)[3]["video"][0]
    share = rgba[..., 3:] / 255
    assert np.abs(over - (rgba[..., :3] * share + 255 * (1 - share))).max() <= 1


def test_frames_of_a_sequence(prepared):
    source = robot(prepared)
    assert len(source) == 5 and source.classes == ("robot",) and source[1]["label"] == 0
    for i, record in enumerate(source):
        np.testing.assert_array_equal(record["video"], Robot.clip(i)[7:23])
    main = TFDS("robot", "train", 4, 6, 8, stride=3, data_dir=prepared, picture="image_main")
    np.testing.assert_array_equal(main[2]["video"], Robot.clip(2, "main")[10:20:3])
    starts = set()
    for seed in range(60):
        found = source.read(3, rng(seed))["video"]
        (start,) = [s for s in range(15) if (found == Robot.clip(3)[s : s + 16]).all()]
        starts.add(start)
    assert len(starts) > 10


@pytest.mark.parametrize("windows", [1, 14, 15])
def test_the_official_windows_of_an_evaluation(prepared, windows):
    """Offsets linspace(0, 14) in whole frames; window by window, so that the first clips are the beginnings."""
    source = robot(prepared, "test", crop="centre", windows=windows)
    offsets = np.linspace(0, BAIR_FRAMES - 16, windows).astype(int)
    assert len(source) == 2 * windows
    for i, record in enumerate(source):
        start = offsets[i // 2]
        np.testing.assert_array_equal(record["video"], Robot.clip(5 + i % 2)[start : start + 16])


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_a_video_feature_as_tensorflow_wrote_it(tmp_path, file_format):
    for config in ("colour", "grey"):
        rewritten(GOLDEN / "shapes" / config / "1.2.0", tmp_path / "shapes" / config / "1.2.0", file_format)
    for data_dir in (GOLDEN, tmp_path):
        source = TFDS("shapes/colour", "train+test", 6, 4, 6, data_dir=data_dir)
        assert source.classes == ("circle", "square") and [int(r["label"]) for r in source] == [0, 1, 0, 1, 0]
        for i, record in enumerate(source):
            np.testing.assert_array_equal(record["video"], shapes(i, 6 + i)[(i + 1) // 2 :][:6])
        grey = TFDS("shapes/grey", "train[1:]", 8, 4, 6, data_dir=data_dir)
        np.testing.assert_array_equal(grey[0]["video"], shapes(1, 8, 1))
        assert len(grey) == 2
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_parts_of_splits_over_several_files(prepared, tmp_path, file_format):
    rewritten(prepared / "robot" / "2.0.0", tmp_path / "robot" / "2.0.0", file_format)
    for split, clips in {"train[1:4]": [1, 2, 3], "train[80%:]": [4], "test+train[:3]": [5, 6, 0, 1, 2]}.items():
        source = robot(tmp_path, split)
        assert len(source) == len(clips)
        for record, i in zip(source, clips, strict=True):
            np.testing.assert_array_equal(record["video"], Robot.clip(i)[7:23])


def test_a_clip_longer_than_some_videos_or_all(caplog):
    source = TFDS("shapes/colour", "train", 8, 4, 6, data_dir=GOLDEN)  # of 6, 7 and 8 frames
    for i in range(3):
        np.testing.assert_array_equal(source[i]["video"], shapes(2, 8))
    assert len(caplog.records) == 2
    assert "record 0 of shapes/colour train is too short: 6 frames, a clip needs 8" in caplog.text
    with pytest.raises(UserError, match="3 of 3 clips in a row cannot be read: .* too short: 6 frames, a clip needs 9"):
        TFDS("shapes/colour", "train", 5, 4, 6, stride=2, data_dir=GOLDEN)[0]
    with pytest.raises(UserError, match='"video" of shapes/grey has 8 frames, a clip needs 9'):
        TFDS("shapes/grey", "train", 9, 4, 6, data_dir=GOLDEN)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_damaged_records_are_replaced(prepared, tmp_path, file_format, caplog):
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(b"not a picture")
    damage = {("train", 1): b"\xff\xff\xff", ("train", 2): example.SerializeToString(), ("train", 3): b""}
    rewritten(prepared / "pictures" / "5.1.0", tmp_path / "pictures" / "5.1.0", file_format, damage)
    source = TFDS("pictures", "train", 1, 10, 14, data_dir=tmp_path)
    whole = TFDS("pictures", "train", 1, 10, 14, data_dir=prepared)
    for i, j in enumerate([0, 4, 4, 4, 4, 5]):
        np.testing.assert_array_equal(source[i]["video"], whole[j]["video"])
    assert len(caplog.records) == 3 and "record 2 of pictures train cannot be read as an image" in caplog.text


def test_a_shortened_or_missing_file(prepared, tmp_path, caplog):
    folder = tmp_path / "robot" / "2.0.0"
    rewritten(prepared / "robot" / "2.0.0", folder, "tfrecord")
    second = folder / "robot-train.tfrecord-00001-of-00002"
    second.write_bytes(second.read_bytes()[:-5])
    source = robot(tmp_path)
    np.testing.assert_array_equal(source[4]["video"], Robot.clip(0)[7:23])
    assert "00001-of-00002 is damaged: it has 1 whole records, 2 were expected" in caplog.text
    second.unlink()
    with pytest.raises(UserError, match="1 of 2 files of a data set are missing, the first is .*00001-of-00002"):
        robot(tmp_path)


def batches(source, workers=0):
    loader = Loader(source, 4, seed=3, workers=workers)
    found = [next(loader) for _ in range(3)]
    loader.close()
    return found


def same(first, second):
    return all((a["video"] == b["video"]).all() for a, b in zip(first, second, strict=True))


def test_a_pickled_source_gives_the_same_batches(prepared):
    source = robot(prepared)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint and same(batches(source), batches(copy))
    assert robot(prepared, "train[:4]").fingerprint != source.fingerprint != robot(prepared, frames=15).fingerprint


@pytest.mark.full
@pytest.mark.parametrize("name", ["robot", "shapes/colour"])
def test_workers_give_the_same_batches(prepared, name):
    source = robot(prepared) if name == "robot" else TFDS(name, "train", 6, 4, 6, data_dir=GOLDEN)
    assert same(batches(source), batches(source, workers=2))


def test_a_data_set_that_is_not_there_comes_with_the_command(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    command = r"tfds.builder\('imagenet2012', data_dir='.*', file_format='array_record'\).download_and_prepare\(\)"
    with pytest.raises(UserError, match=f"there is no prepared data set imagenet2012 in {tmp_path}.*{command}"):
        TFDS("imagenet2012", "train", 1, 8, 8)
    with pytest.raises(UserError, match="only the configs or versions colour, grey of it"):
        TFDS("shapes", "train", 1, 4, 6, data_dir=GOLDEN)
    with pytest.raises(UserError, match="only the configs or versions 5.1.0 of it"):
        TFDS("pictures:4.0.0", "train", 1, 8, 8, data_dir=prepared)
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert len(TFDS("pictures:5.1.0", "train", 1, 8, 8)) == 8
    with pytest.raises(UserError, match="gs://bucket is not a folder of this machine"):
        TFDS("pictures", "train", 1, 8, 8, data_dir="gs://bucket")


def test_what_cannot_be_meant_is_named(prepared):
    wrong = {
        "cannot read split 'trian' of .*Unknown split": dict(split="trian"),
        r"split 'train\[:0\]' of .* has no records; it has train, test": dict(split="train[:0]"),
        "2 features that may be the picture: give picture=, one of image_aux1, image_main": dict(picture=None),
        "no picture 'image': give picture=": dict(picture="image"),
        '"image_aux1" of robot has 30 frames, a clip needs 31': dict(frames=31),
    }
    for message, more in wrong.items():
        arguments = dict(name="robot", split="train", frames=2, height=6, width=8, picture="image_aux1") | more
        with pytest.raises(UserError, match=message):
            TFDS(**arguments, data_dir=prepared)
    with pytest.raises(UserError, match='"image" of pictures is an image, which has one frame, not 4'):
        TFDS("pictures", "train", 4, 6, 8, data_dir=prepared)
    with pytest.raises(UserError, match="no label 'kind': give label=, one of label"):
        TFDS("pictures", "train", 1, 6, 8, data_dir=prepared, label="kind")
    assert TFDS("pictures", "train", 1, 6, 8, data_dir=prepared, label="").classes == ("pictures",)


def edited(folder, to, change):
    """A copy of a data set whose features.json or dataset_info.json is changed by `change(features, info)`."""
    shutil.copytree(folder, to)
    files = [to / "features.json", to / "dataset_info.json"]
    contents = [json.loads(file.read_text()) for file in files]
    change(*contents)
    for file, content in zip(files, contents):
        file.write_text(json.dumps(content))


def test_descriptions_of_other_kinds(prepared, tmp_path):
    image = lambda features: features["featuresDict"]["features"]["image"]["image"]
    label = lambda features: features["featuresDict"]["features"]["label"]["classLabel"]
    changes = {
        "depth": (lambda f, i: image(f).update(dtype="float32"), '"image" of depth is float32'),
        "old": (lambda f, i: (f.clear(), f.update(type="FeaturesDict")), "no features that may be the picture"),
        "riegeli": (lambda f, i: i.update(fileFormat="riegeli"), "format riegeli, magvid reads array_record and"),
    }
    for name, (change, message) in changes.items():
        edited(prepared / "pictures" / "5.1.0", tmp_path / name / "5.1.0", change)
        with pytest.raises(UserError, match=message):
            TFDS(name, "train", 1, 6, 8, data_dir=tmp_path)
    edited(prepared / "pictures" / "5.1.0", tmp_path / "few" / "5.1.0", lambda f, i: label(f).update(numClasses="2"))
    few = TFDS("few", "train", 1, 6, 8, data_dir=tmp_path)
    assert few.classes == ("0", "1") and few[1]["label"] == 1  # the names are of another number of classes
    with pytest.raises(ValueError, match='record 2 of few train has label 2, there are 2 classes: .* label=""'):
        few[2]
    (tmp_path / "few" / "5.1.0" / "features.json").write_text("{")
    with pytest.raises(UserError, match="features.json cannot be read"):
        TFDS("few", "train", 1, 6, 8, data_dir=tmp_path)


def test_without_tensorflow_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[tfds\]"'):
        TFDS("shapes/colour", "train", 6, 4, 6, data_dir=GOLDEN)
