"""magvid.data.davis: a tiny archive laid out as the public ones."""

import hashlib
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from magvid.data.davis import Davis, read_annotation
from magvid.types import UserError

PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + [0] * 252 * 3
FRAMES = {"bear": 7, "dog-agility": 9, "car-turn": 6}


def objects(frames, height, width):
    """Of each pixel 0, 1 (moves down), 2 (moves to the right) or 255 (a line between them and nothing)."""
    numbers = np.zeros((frames, height, width), np.uint8)
    for k in range(frames):
        numbers[k, 2 + k : 9 + k, 3:15] = 1
        numbers[k, 12:20, 2 * k + 16 : 2 * k + 26] = 2
        numbers[k, 22] = 255
    return numbers


def write(archive, name, frames, resolution="480p", size=(24, 40), white=False):
    """Frames in which object 1 is red and object 2 is green."""
    numbers = objects(frames, 24, 40)
    for kind in ("JPEGImages", "Annotations"):
        (archive / kind / resolution / name).mkdir(parents=True)
    for k, found in enumerate(numbers):
        large = lambda image: Image.fromarray(image).resize(size[::-1], Image.Resampling.NEAREST)
        picture = np.stack([found == 1, found == 2, np.zeros_like(found)], -1).astype(np.uint8) * 255
        large(picture).save(archive / f"JPEGImages/{resolution}/{name}/{k:05d}.jpg", quality=100, subsampling=0)
        annotation = large(np.isin(found, (1, 2)).astype(np.uint8) * 255 if white else found)
        if not white:
            annotation.putpalette(PALETTE)
        annotation.save(archive / f"Annotations/{resolution}/{name}/{k:05d}.png")


def lists(archive, year="2017", train="bear\ndog-agility\n\n", val="car-turn\r\n"):
    (archive / "ImageSets" / year).mkdir(parents=True)
    (archive / f"ImageSets/{year}/train.txt").write_bytes(train.encode())
    (archive / f"ImageSets/{year}/val.txt").write_bytes(val.encode())


@pytest.fixture
def archive(tmp_path):
    for name, frames in FRAMES.items():
        write(tmp_path, name, frames)
    lists(tmp_path)
    return tmp_path


def rng(seed=0):
    return np.random.default_rng(seed)


def agree(record, colours=(0, 1)):
    """Whether the mask is where these colours of the picture are; JPEG leaves some doubt about borders."""
    light = record["video"][..., list(colours)].max(-1).astype(int)
    sure = np.abs(light - 128) > 16
    return sure.mean() > 0.8 and (record["masks"] == (light > 128))[sure].all()


def test_videos_with_the_masks_of_their_objects(archive):
    source = Davis(archive, 3, 18, 14)
    assert source.files == ["bear", "car-turn", "dog-agility"] and not source.bad and source.classes == ("davis",) and source.fps is None
    told = [{k: v for k, v in record.items() if k not in ("video", "masks", "digest")} for record in source]
    texts = {"bear": "bear", "car-turn": "car turn", "dog-agility": "dog agility"}
    assert told == [dict(label=0, text=text, file=name) for name, text in texts.items()]
    assert source[0]["video"].shape == (3, 18, 14, 3) and source[0]["label"].dtype == np.int32
    assert source[0]["masks"].shape == (3, 18, 14) and source[0]["masks"].dtype == bool
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint and copy[2]["text"] == "dog agility"


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"spread": True}, {"keep_aspect": False}, {"crop": "centre", "windows": 3}])
def test_masks_move_with_the_picture(archive, options):
    source = Davis(archive, 3, 18, 14, **options)
    records = [source[i] for i in range(len(source))] + [source.read(i % 3, rng(i)) for i in range(12)]
    assert all(agree(record) for record in records)
    assert 0.1 < np.mean([record["masks"].mean() for record in records]) < 0.9


def test_the_frames_of_a_clip(archive):
    """Object 1 is a row lower in every frame."""
    tops = lambda record: [int(np.flatnonzero(mask[:, 3:13].any(1))[0]) - 2 for mask in record["masks"]]
    of = lambda **options: Davis(archive, 3, 24, 40, objects=(1,), **options)
    assert [tops(record) for record in of()] == [[2, 3, 4], [2, 3, 4], [3, 4, 5]]
    assert [tops(record) for record in of(spread=True)] == [[0, 3, 6], [0, 2, 5], [0, 4, 8]]
    assert {tops(of().read(0, rng(seed)))[0] for seed in range(40)} == {0, 1, 2, 3, 4}
    windows = of(stride=2, crop="centre", windows=2)
    assert [tops(windows[i]) for i in range(6)] == [[0, 2, 4]] * 3 + [[2, 4, 6], [1, 3, 5], [4, 6, 8]]
    assert Davis(archive, 7, 18, 14).bad == {"car-turn": "too short: 6 frames, a clip needs 7"}


@pytest.mark.parametrize(("chosen", "colours"), [((1,), (0,)), ([2], (1,)), ((2, 1), (0, 1)), ((1, 7), (0,))])
def test_some_of_the_objects(archive, chosen, colours):
    assert all(agree(record, colours) for record in Davis(archive, 3, 18, 14, objects=chosen))


def test_videos_without_the_object_are_left_out(archive):
    empty = Image.fromarray(np.zeros((24, 40), np.uint8))
    empty.putpalette(PALETTE)
    empty.save(archive / "Annotations/480p/bear/00000.png")
    assert Davis(archive, 3, 18, 14).bad == {"bear": "has no object in its first frame"}
    with pytest.raises(UserError, match=r"none of the 3 videos in .* is usable: bear \(has no object \[3\] in its first frame\)"):
        Davis(archive, 3, 18, 14, objects=(3,))
    for wrong in ((), (0,), (1, 255)):
        with pytest.raises(ValueError, match="objects=.*: numbers from 1 to 254, or None for all objects"):
            Davis(archive, 3, 18, 14, objects=wrong)


def test_splits_of_the_archive(archive):
    assert Davis(archive, 3, 18, 14, split="train").files == ["bear", "dog-agility"]
    assert Davis(archive, 3, 18, 14, split="validation").files == ["car-turn"]
    with pytest.raises(ValueError, match="split must be \"train\", \"validation\" or None, got 'test': the test videos have no annotations"):
        Davis(archive, 3, 18, 14, split="test")
    with pytest.raises(ValueError, match="year must be 2016 or 2017, got 2018"):
        Davis(archive, 3, 18, 14, year=2018)


def test_the_lists_of_2016(archive):
    """In the archive of 2017 they name videos, in that of 2016 frames."""
    lists(archive, "2016", "bear\n", "car-turn\n")
    assert Davis(archive, 3, 18, 14, year=2016).files == ["bear", "car-turn"]
    (archive / "ImageSets/2016/train.txt").unlink()
    with pytest.raises(UserError, match=r"there is no file .*ImageSets/2016/train.txt: `path` is the folder DAVIS, which has ImageSets"):
        Davis(archive, 3, 18, 14, year=2016)
    of = lambda name: "".join(f"/JPEGImages/480p/{name}/{k:05d}.jpg /Annotations/480p/{name}/{k:05d}.png \n" for k in range(3))
    lists(archive, "480p", of("dog-agility") + of("bear"), of("car-turn"))
    assert Davis(archive, 3, 18, 14, year=2016, split="train").files == ["bear", "dog-agility"]
    with pytest.raises(UserError, match=r"there is no file .*ImageSets/2017/train.txt"):
        (archive / "ImageSets/2017/train.txt").unlink()
        Davis(archive, 3, 18, 14)


def test_objects_white_on_black(tmp_path):
    write(tmp_path, "bear", 5, white=True)
    lists(tmp_path, "480p", "/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png\n")
    for chosen in (None, (1,)):
        record = Davis(tmp_path, 4, 18, 14, year=2016, split="train", objects=chosen)[0]
        assert agree(record) and record["masks"].any()


def test_full_resolution_with_masks_of_another_size(archive):
    """A large JPEG is decoded at a fraction of its size."""
    write(archive, "bear", 5, "Full-Resolution", (192, 320))
    write(archive, "dog-agility", 5, "Full-Resolution", (97, 161))
    lists(archive, "2016", "bear\ndog-agility", "bear")
    source = Davis(archive, 3, 18, 14, year=2016, resolution="Full-Resolution")
    assert source.files == ["bear", "dog-agility"]
    for record in source:
        differ = record["masks"] != (record["video"].max(-1) > 128)
        assert differ.mean() < 0.02 and record["masks"].mean() > 0.1


def test_captions(archive):
    rows = [("bear", "a bear walks"), ("bear", "a brown bear"), ("car-turn", " ")]
    (archive / "captions.jsonl").write_text("\n".join(json.dumps({"file": f, "caption": c}) for f, c in rows))
    source = Davis(archive, 3, 18, 14)
    assert [record["text"] for record in source] == ["a bear walks", "car turn", "dog agility"]
    assert {source.read(0, rng(seed))["text"] for seed in range(10)} == {"a bear walks", "a brown bear"}
    (archive / "captions.jsonl").write_text('{"file": "bear"}')
    with pytest.raises(UserError, match="captions.jsonl line 1 is not"):
        Davis(archive, 3, 18, 14)


def test_digest_and_fingerprint(archive):
    of = lambda **options: Davis(archive, 3, 18, 14, **options)
    folders = [archive / kind / "480p/bear" for kind in ("JPEGImages", "Annotations")]
    sizes = [[(file.name, file.stat().st_size) for file in sorted(folder.iterdir())] for folder in folders]
    assert of()[0]["digest"] == hashlib.sha256(json.dumps(sizes).encode()).hexdigest()
    prints = [of(), of(spread=True), of(split="train"), of(keep_aspect=False), of(crop="centre"), of(objects=(1,)), of(stride=2)]
    prints = [source.fingerprint for source in prints]
    (archive / "captions.jsonl").write_text('{"file": "bear", "caption": "a bear"}')
    prints.append(of().fingerprint)
    Image.fromarray(rng().integers(0, 256, (24, 40), dtype=np.uint8)).save(archive / "Annotations/480p/bear/00003.png")
    assert len({*prints, of().fingerprint}) == 9


def test_videos_that_are_left_out(archive, caplog):
    for name in ("a", "b", "c", "d"):
        write(archive, name, 4)
    (archive / "JPEGImages/480p/a/00001.jpg").unlink()
    (archive / "Annotations/480p/b/00002.png").write_bytes(b"")
    (archive / "Annotations/480p/c/00000.png").write_bytes(b"junk")
    (archive / "ImageSets/2017/train.txt").write_text("a\nb\nbear\nc\nd\ne\n")
    source = Davis(archive, 3, 18, 14, split="train")
    assert source.files == ["bear", "d"]
    assert {name: reason.replace(str(archive), "") for name, reason in source.bad.items()} == {
        "a": "1 of its frames or their annotations are missing or empty, such as 00001",
        "b": "1 of its frames or their annotations are missing or empty, such as 00002",
        "c": "/Annotations/480p/c/00000.png cannot be read as an annotation: cannot identify image file '/Annotations/480p/c/00000.png'",
        "e": "has no frames in /JPEGImages/480p",
    }
    assert caplog.text.count("4 of 6 videos are left out: ") == 1


def test_a_damaged_frame_or_mask_is_replaced_by_the_next_video(archive, caplog):
    source = Davis(archive, 3, 18, 14)
    (archive / "Annotations/480p/bear/00003.png").write_bytes(b"junk")
    assert source[0]["file"] == "car-turn" and "00003.png cannot be read as an annotation" in caplog.text
    (archive / "JPEGImages/480p/car-turn/00002.jpg").write_bytes(b"junk")
    assert source[0]["file"] == "dog-agility" and "00002.jpg cannot be read as an image" in caplog.text
    Image.fromarray(np.full((40, 24), 255, np.uint8)).save(archive / "Annotations/480p/dog-agility/00004.png")
    with pytest.raises(UserError, match="3 of 3 clips in a row cannot be read"):
        source[0]
    assert "dog-agility/00004.png is 24x40 pixels and its picture 40x24: a mask has the shape of its picture" in caplog.text


def test_another_layout_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no folder .*JPEGImages/480p: put DAVIS \(DAVIS-2017-trainval-480p.zip\) there"):
        Davis(tmp_path, 3, 18, 14)
    write(tmp_path, "bear", 4)
    with pytest.raises(UserError, match=r"there is no folder .*JPEGImages/1080p: put DAVIS"):
        Davis(tmp_path, 3, 18, 14, resolution="1080p")
    lists(tmp_path, train=" \n")
    with pytest.raises(UserError, match="train.txt is empty: unpack it again"):
        Davis(tmp_path, 3, 18, 14)


def test_numbers_of_an_annotation(archive):
    np.testing.assert_array_equal(read_annotation(archive / "Annotations/480p/bear/00002.png"), objects(7, 24, 40)[2] % 255)
