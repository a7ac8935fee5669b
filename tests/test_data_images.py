"""magvid.data.images: pictures of every kind, good and bad."""

import io
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from magvid.data import source
from magvid.data.images import ImageFolder, decode_image
from magvid.types import UserError


def noise(height=6, width=9, seed=0, channels=3, dtype=np.uint8):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def save(path, image, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **how)
    return path


def rng(seed=0):
    return np.random.default_rng(seed)


def test_lossless_formats_keep_every_pixel(tmp_path):
    names = ["a.png", "b.BMP", "c.webp", "d/e.png"]
    for k, name in enumerate(names):
        save(tmp_path / name, noise(seed=k), **({"lossless": True} if name == "c.webp" else {}))
    folder = ImageFolder(tmp_path, 6, 9)
    assert folder.files == names and not folder.bad
    for k, record in enumerate(folder):
        assert record["video"].dtype == np.uint8 and record["file"] == names[k]
        np.testing.assert_array_equal(record["video"], noise(seed=k)[None])


def test_every_kind_of_pixel_becomes_rgb(tmp_path):
    """As it is meant to be seen: alpha over white, palettes looked up, grey repeated, 16 bits rounded down to 8."""
    colour, grey, deep = noise(), noise(channels=0), noise(channels=0, dtype=np.uint16)
    alpha = noise(channels=0, seed=1)[..., None]
    over = np.concatenate([colour, alpha], -1)
    white = colour * (alpha / 255) + 255 * (1 - alpha / 255)
    assert np.abs(decode_image(save(tmp_path / "rgba.png", over)).astype(float) - white).max() <= 1
    la = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha[..., 0])])
    expected = grey[..., None] * (alpha / 255) + 255 * (1 - alpha / 255)
    assert np.abs(decode_image(save(tmp_path / "la.png", la)) - expected).max() <= 1
    np.testing.assert_array_equal(decode_image(save(tmp_path / "l.png", grey)), np.repeat(grey[..., None], 3, -1))
    np.testing.assert_array_equal(decode_image(save(tmp_path / "16.png", deep))[..., 1], deep >> 8)
    one = grey > 127
    np.testing.assert_array_equal(decode_image(save(tmp_path / "1.png", Image.fromarray(one)))[..., 2], one * 255)
    index = Image.fromarray(np.arange(54, dtype=np.uint8).reshape(6, 9) % 3).convert("P")
    index.putpalette([255, 0, 0, 0, 128, 0, 0, 0, 64])
    palette = np.array([[255, 0, 0], [0, 128, 0], [0, 0, 64]])[np.arange(54).reshape(6, 9) % 3]
    np.testing.assert_array_equal(decode_image(save(tmp_path / "p.png", index)), palette)
    clear = palette.copy()
    clear[np.arange(54).reshape(6, 9) % 3 == 1] = 255  # the second colour is transparent
    np.testing.assert_array_equal(decode_image(save(tmp_path / "pt.png", index, transparency=1)), clear)
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    assert np.abs(decode_image(save(tmp_path / "cmyk.jpg", flat)).astype(int) - [255, 0, 0]).max() <= 3
    frames = [Image.fromarray(np.full((4, 4, 3), level, np.uint8)) for level in (200, 10)]
    save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert (decode_image(tmp_path / "a.gif") == 200).all()


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    path = save(tmp_path / "a.png", noise(4, 7), exif=exif)
    np.testing.assert_array_equal(decode_image(path), np.rot90(noise(4, 7), -1))


def test_crops_cover_the_size_and_move_along_the_longer_side(tmp_path):
    halves = np.zeros((16, 64, 3), np.uint8)
    halves[:, 32:] = 255
    save(tmp_path / "a.png", halves)
    save(tmp_path / "b.png", noise(1, 1))
    folder = ImageFolder(tmp_path, 12, 8)
    assert folder[0]["video"].shape == folder[1]["video"].shape == (1, 12, 8, 3)
    np.testing.assert_array_equal(folder[1]["video"], np.broadcast_to(noise(1, 1), (1, 12, 8, 3)))
    means = [folder.read(0, rng(seed))["video"].mean() for seed in range(20)]
    assert min(means) < 10 and max(means) > 245 and 100 < folder[0]["video"].mean() < 155
    assert means == [folder.read(0, rng(seed))["video"].mean() for seed in range(20)]
    centre = ImageFolder(tmp_path, 12, 8, crop="centre")
    np.testing.assert_array_equal(centre.read(0, rng(3))["video"], folder[0]["video"])


def test_large_jpegs_are_decoded_small_enough_to_cover(tmp_path):
    y, x = np.mgrid[:200, :300]
    smooth = np.stack([y, x * 0.8, 255 - y], -1).astype(np.uint8)
    path = save(tmp_path / "a.jpg", smooth, quality=95)
    assert decode_image(path).shape == (200, 300, 3)
    assert decode_image(path, (40, 60)).shape == (100, 150, 3) and decode_image(path, (60, 150)).shape == (200, 300, 3)
    record = ImageFolder(tmp_path, 40, 60)[0]["video"]
    np.testing.assert_allclose(record[0].astype(float), smooth[2::5, 2::5].astype(float), atol=6)


def test_classes_are_subfolders_or_the_folder(tmp_path):
    for name in ("run/a.png", "jump/deep/b.png", "run/c.png"):
        save(tmp_path / "x" / name, noise())
    folder = ImageFolder(tmp_path / "x", 6, 9)
    assert folder.classes == ("jump", "run")
    assert [(record["file"], int(record["label"])) for record in folder] == [
        ("jump/deep/b.png", 0),
        ("run/a.png", 1),
        ("run/c.png", 1),
    ]
    flat = ImageFolder(tmp_path / "x" / "run", 6, 9)
    assert flat.classes == ("run",) and flat[0]["label"] == 0


def test_files_are_not_opened_at_the_start(tmp_path):
    """Only what listing shows is known then."""
    save(tmp_path / "a.png", noise())
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.png").write_text("not a picture")
    (tmp_path / "d.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "notes.txt").write_text("other")
    folder = ImageFolder(tmp_path, 6, 9)
    assert folder.files == ["a.png", "c.png"]
    assert folder.bad == {"b.png": "empty file", "d.jpg": "cannot be opened: No such file or directory"}


def damage(path, kind):
    """kind: "text", "cut" (its second half missing), "gone"."""
    data = path.read_bytes()
    path.unlink()
    if kind != "gone":
        path.write_bytes(b"not a picture" if kind == "text" else data[: len(data) // 2])


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif"])
def test_a_damaged_file_is_replaced_by_the_next(tmp_path, suffix, caplog):
    for name in "abcd":
        save(tmp_path / f"{name}.{suffix}", noise(40, 50, seed=ord(name)))
    folder = ImageFolder(tmp_path, 20, 30)
    for name, kind in zip("abc", ("text", "cut", "gone")):
        damage(tmp_path / f"{name}.{suffix}", kind)
    found = [folder[i]["file"] for i in range(4)] + [folder.read(i, rng(i))["file"] for i in range(4)]
    assert set(found) == {f"d.{suffix}"}
    assert len(caplog.records) == 3 and all(f"{name}.{suffix} " in caplog.text for name in "abc")
    assert f"a.{suffix} cannot be read as an image: it is none, whatever its name says" in caplog.text
    damage(tmp_path / f"d.{suffix}", "gone")
    with pytest.raises(UserError, match=rf"4 of 4 clips in a row cannot be read: .*a.{suffix} cannot be read"):
        folder[0]


def test_not_every_file_of_a_broken_disk_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "TRIES", 3)
    for k in range(6):
        (tmp_path / f"{k}.png").write_text("x")
    folder = ImageFolder(tmp_path, 6, 9)
    with pytest.raises(UserError, match="3 of 6 clips in a row"):
        folder[0]


def test_a_bomb_is_named(tmp_path, monkeypatch):
    save(tmp_path / "a.png", noise(20, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="a.png cannot be read as an image: .*decompression bomb"):
        decode_image(tmp_path / "a.png")


def test_nothing_usable_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match="there is no folder .*nowhere"):
        ImageFolder(tmp_path / "nowhere", 6, 9)
    with pytest.raises(UserError, match=r"holds no images: expected files named \*\.png"):
        ImageFolder(tmp_path, 6, 9)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 1 images in .* is usable: a.png \(empty file\)"):
        ImageFolder(tmp_path, 6, 9)
    with pytest.raises(UserError, match="a.png, it is a file"):
        ImageFolder(tmp_path / "a.png", 6, 9)
    for wrong in (dict(crop="middle"), dict(height=0), dict(split="test")):
        save(tmp_path / "b.png", noise())
        with pytest.raises(ValueError, match="crop must be|sizes must be|split must be"):
            ImageFolder(tmp_path, **{"height": 6, "width": 9, **wrong})


def test_splits_fingerprint_and_pickle(tmp_path):
    for k in range(12):
        save(tmp_path / f"{k}.png", noise(seed=k))
    folders = {split: ImageFolder(tmp_path, 6, 9, split=split, holdout=0.3) for split in ("train", "validation", None)}
    assert sorted(folders["train"].files + folders["validation"].files) == sorted(folders[None].files)
    assert 1 <= len(folders["validation"]) < 12
    assert len({folder.fingerprint for folder in folders.values()}) == 3
    same = pickle.loads(pickle.dumps(folders["train"]))
    again = ImageFolder(tmp_path, 6, 9, split="train", holdout=0.3)
    assert same.fingerprint == folders["train"].fingerprint == again.fingerprint
    np.testing.assert_array_equal(same[0]["video"], folders["train"][0]["video"])
    assert ImageFolder(tmp_path, 6, 8).fingerprint != folders[None].fingerprint
    save(tmp_path / "3.png", noise(7, 9))
    assert ImageFolder(tmp_path, 6, 9).fingerprint != folders[None].fingerprint


def test_a_name_that_is_not_text(tmp_path, caplog):
    save(tmp_path / "a.png", noise())
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff.png")
    folder = ImageFolder(tmp_path, 6, 9, split="train")
    np.testing.assert_array_equal(folder[0]["video"][0], noise())
    assert len(folder.fingerprint) == 16 and r"(\udcff.png)" in caplog.text


def test_bytes_in_place_of_a_file():
    stream = io.BytesIO()
    Image.fromarray(noise()).save(stream, "PNG")
    np.testing.assert_array_equal(decode_image(stream.getvalue()), noise())
    with pytest.raises(UserError, match="record 3 cannot be read as an image"):
        decode_image(stream.getvalue()[:40], name="record 3")
