"""magvid.data.video_index: every file is decoded once, and never again without need."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
from make_videos import damaged, encode, numbered

from magvid import video
from magvid.data import video_index
from magvid.types import UserError


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files decoded since the list was last cleared."""
    names, decode = [], video.decode
    monkeypatch.setattr(video, "decode", lambda path, start=None: [names.append(path.name), decode(path, start)][1])
    return names


def test_entries_hold_the_timestamps_of_every_frame(tmp_path):
    encode(tmp_path / "a.mkv", numbered(5), rate=100, times=[0, 10, 20, 80, 90])
    encode(tmp_path / "b" / "c.mp4", numbered(7), rate=10)
    entries = video_index.index_folder(tmp_path)
    assert list(entries) == ["a.mkv", "b/c.mp4"]
    assert video_index.timestamps(entries["a.mkv"]["timeline"]).tolist() == [0, 100, 200, 800, 900]
    whole = [frame.pts for frame in video.decode(tmp_path / "b" / "c.mp4")]
    assert video_index.timestamps(entries["b/c.mp4"]["timeline"]).tolist() == whole
    assert entries["b/c.mp4"]["timeline"]["runs"][1] == [6]  # a constant rate is one run
    assert json.loads((tmp_path / "index.json").read_text())["files"] == entries


@pytest.mark.parametrize("pts", [[4], [0, 1], [0, 1, 2, 3, 5, 7, 8], [-3, 0, 1]])
def test_run_lengths_are_exact(pts):
    runs = video_index._runs(np.diff(pts))
    assert video_index.timestamps({"first": pts[0], "runs": runs}).tolist() == pts


def test_only_changed_files_are_decoded_again(tmp_path, decoded):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        encode(tmp_path / name, numbered(4))
    damaged(tmp_path / "bad.mp4", "text")
    first = video_index.index_folder(tmp_path)
    assert sorted(decoded) == ["a.mp4", "b.mp4", "bad.mp4", "c.mp4"]
    decoded.clear()
    assert video_index.index_folder(tmp_path) == first and not decoded
    os.utime(tmp_path / "a.mp4", (1, 1))  # same content, other time
    (tmp_path / "b.mp4").unlink()
    encode(tmp_path / "c.mp4", numbered(6))
    second = video_index.index_folder(tmp_path)
    assert decoded == ["c.mp4"]
    assert sorted(second) == ["a.mp4", "bad.mp4", "c.mp4"]
    assert len(video_index.timestamps(second["c.mp4"]["timeline"])) == 6
    assert second["a.mp4"]["timeline"] == first["a.mp4"]["timeline"]


def test_reasons(tmp_path):
    for kind in ("zero", "text", "sound", "truncated"):
        damaged(tmp_path / f"{kind}.mp4", kind)
    (tmp_path / "link.mp4").symlink_to(tmp_path / "nowhere.mp4")
    errors = {name: entry["error"] for name, entry in video_index.index_folder(tmp_path).items()}
    assert errors["zero.mp4"] == "empty file"
    assert errors["sound.mp4"] == "has no video stream, only sound"
    assert errors["text.mp4"].startswith("cannot be read as a video")
    assert errors["link.mp4"] == "cannot be opened: No such file or directory"
    assert len(errors) == 5
    assert len(video_index.index_folder(tmp_path)) == 5  # the broken link does not stop a second pass


def test_hidden_files_are_ignored_and_linked_folders_followed_once(tmp_path):
    encode(tmp_path / "real" / "A.MP4", numbered(2))
    damaged(tmp_path / "real" / "._A.mp4", "text")
    damaged(tmp_path / ".trash" / "b.mp4", "text")
    outside = tmp_path.with_name(tmp_path.name + "_outside")
    encode(outside / "c.mp4", numbered(2))
    (tmp_path / "linked").symlink_to(outside)
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    assert list(video_index.index_folder(tmp_path)) == ["linked/c.mp4", "real/A.MP4"]


def test_a_folder_that_cannot_be_written_is_indexed_in_the_cache(tmp_path, decoded, monkeypatch, caplog):
    folder, cache = tmp_path / "videos", tmp_path / "cache"
    encode(folder / "a.mp4", numbered(3))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(video_index.os, "access", lambda path, mode: False)
    video_index.index_folder(folder)
    (file,) = (cache / "magvid").iterdir()
    assert not (folder / "index.json").exists() and str(file) in caplog.text
    decoded.clear()
    video_index.index_folder(folder)
    assert not decoded
    shutil.copy(file, folder / "index.json")  # an index its owner made is used there
    file.unlink()
    video_index.index_folder(folder)
    assert not decoded and not file.exists()


def test_a_foreign_index_is_left_alone(tmp_path, monkeypatch):
    folder = tmp_path / "videos"
    encode(folder / "a.mp4", numbered(3))
    (folder / "index.json").write_text('{"mine": 1}')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert len(video_index.index_folder(folder)) == 1
    assert (folder / "index.json").read_text() == '{"mine": 1}'
    with pytest.raises(UserError, match="is not an index of this library"):
        video_index.index_folder(folder, folder / "index.json")


def test_an_index_elsewhere_and_of_an_older_format(tmp_path, decoded):
    encode(tmp_path / "videos" / "a.mp4", numbered(3))
    elsewhere = tmp_path / "x" / "my.json"
    entries = video_index.index_folder(tmp_path / "videos", elsewhere)
    assert elsewhere.exists() and [p.name for p in (tmp_path / "videos").iterdir()] == ["a.mp4"]
    elsewhere.write_text(json.dumps({"format": "magvid.video_index/0", "files": {}}))
    decoded.clear()
    assert video_index.index_folder(tmp_path / "videos", elsewhere) == entries and decoded == ["a.mp4"]


def test_a_missing_package_is_not_blamed_on_the_files(tmp_path, monkeypatch):
    encode(tmp_path / "a.mp4", numbered(3))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match="pip install av"):
        video_index.index_folder(tmp_path)
    assert not (tmp_path / "index.json").exists()
