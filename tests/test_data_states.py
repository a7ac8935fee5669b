"""The file of future states, what is known by what in it, and the transforms that read it."""

import errno
import hashlib
import json
import os
import pathlib
import pickle

import numpy as np
import pytest
from make_videos import numbered

from magvid.build import build
from magvid.data import pipeline, states
from magvid.data.sprites import Sprites
from magvid.data.states import Predicted, Repeated, StateFile, States, digest_of, state_key
from magvid.data.text import WordTokenizer
from magvid.types import UserError

RNG = np.random.default_rng(0)
SETTINGS = {"model": "models/llava", "count": 2, "prompt": "say {it}", "dtype": "auto"}
KEY = state_key("digest of a", "push the cup")
CUP = Predicted("a.mp4", "push the cup", ("the cup is left", "the cup is right"), "model", 1)
RECORD = {"digest": "digest of a", "text": "push the cup", "file": "a.mp4", "label": 3}


@pytest.fixture
def file(tmp_path):
    StateFile(SETTINGS, {KEY: CUP}).save(tmp_path / "states.json")
    return tmp_path / "states.json"


# Keys ---------------------------------------------------------------------------------------------------------------


def test_a_key_is_of_the_content_and_the_words():
    assert KEY == hashlib.sha256(b"digest of a\npush the cup").hexdigest()[:32]
    assert state_key("digest of a", "  push\tthe \n cup ") == KEY
    others = [("digest of b", "push the cup"), ("digest of a", "push a cup"), ("digest of a", "Push the cup")]
    assert len({KEY, *(state_key(*other) for other in others)}) == 4
    assert state_key("d", "推杯子\u3000 到左边") == state_key("d", "推杯子 到左边")
    assert len(state_key("d", "a name that is no text: \udcff")) == 32  # as the names of files may have it


def test_a_record_without_digest_is_known_by_its_first_frame():
    video = numbered(4)
    frame = digest_of({"video": video})
    assert digest_of({"video": video, "digest": "of the file"}) == "of the file"
    assert len(frame) == 64 and digest_of({"video": np.asfortranarray(video[:1])}) == frame
    assert digest_of({"video": video[1:]}) != frame and digest_of({"video": video.reshape(4, 32, 24, 3)}) != frame
    with pytest.raises(UserError, match="neither digest nor video.*it has label, text"):
        digest_of({"label": 3, "text": "a"})
    source = Sprites(frames=4)
    assert digest_of(source[5]) == digest_of(source[5]) != digest_of(source[6])


# Transforms ---------------------------------------------------------------------------------------------------------


def test_states_are_looked_up(file):
    found = States(str(file))(RECORD, RNG)
    assert found["states"] == CUP.states and found["label"] == 3 and "states" not in RECORD
    tokenizer = WordTokenizer(("cup", "is", "left", "right", "the"), 7, key="states")
    assert tokenizer(found, RNG)["text_ids"].shape == (2, 7)
    assert States(str(file), key="instruction")({**RECORD, "instruction": "push  the cup", "text": "x"}, RNG)["states"] == CUP.states


def test_what_has_no_states(file):
    other = {**RECORD, "text": "lift the cup"}
    command = "run python tools/predict_states.py --config=.*--out=.*states.json with the model"
    message = f'states.json has no states of a.mp4 with the instruction "lift the cup": {command}'
    with pytest.raises(UserError, match=message):
        States(str(file))(other, RNG)
    with pytest.raises(UserError, match="no states of record 7 with"):
        States(str(file))({"video": numbered(2), "text": "push the cup", "index": 7}, RNG)
    with pytest.raises(UserError, match="no states of a.mp4 with"):
        States(str(file))({**RECORD, "digest": "another"}, RNG)
    assert States(str(file), fallback=True)(other, RNG)["states"] == ("lift the cup",) * 2
    assert States(str(file), fallback=True)(RECORD, RNG)["states"] == CUP.states
    with pytest.raises(UserError, match='no text "instruction".*its texts are: digest, text, file; set `key`'):
        States(str(file), key="instruction")(RECORD, RNG)
    with pytest.raises(UserError, match='no text "label"'):
        States(str(file), key="label")(RECORD, RNG)


def test_the_file_is_read_late_and_not_sent_to_workers(file, tmp_path):
    late = States(str(tmp_path / "none.json"), fallback=True)
    with pytest.raises(UserError, match="there is no file .*none.json: tools/predict_states.py writes it"):
        late(RECORD, RNG)
    transform = build(dict(target="magvid.data.states:States", path=str(file), fallback=True))
    before = transform(RECORD, RNG)
    copy = pickle.loads(pickle.dumps(transform))
    assert copy == transform and hash(copy) == hash(transform) and "predicted" in vars(transform) and "predicted" not in vars(copy)
    assert copy(RECORD, RNG) == before
    assert len(pickle.dumps(transform)) == len(pickle.dumps(copy))


def test_the_instruction_repeated():
    assert Repeated(3)(RECORD, RNG)["states"] == ("push the cup",) * 3
    assert Repeated(1, key="file")(RECORD, RNG)["states"] == ("a.mp4",)
    with pytest.raises(UserError, match='no text "caption".*set `key`'):
        Repeated(3, key="caption")(RECORD, RNG)
    with pytest.raises(ValueError, match="count=0: at least one"):
        Repeated(0)


def test_batches_of_states(tmp_path):
    source = Sprites(world="small", frames=4, height=16, width=16, keys=("video", "instruction"))
    entries = {}
    for i in range(6):
        record = source[i]
        told = tuple(f"state {k} of {i}" for k in range(4))
        entries[state_key(digest_of(record), record["instruction"])] = Predicted(str(i), record["instruction"], told, "model", 1)
    StateFile({**SETTINGS, "count": 4}, entries).save(tmp_path / "s.json")
    digits = tuple("0123456789") + ("of", "state")
    transforms = (States(str(tmp_path / "s.json"), key="instruction"), WordTokenizer(digits, 6, key="states"))
    batches = list(pipeline.epoch(source, 3, transforms, limit=6))
    ids = np.concatenate([batch["text_ids"] for batch in batches])
    assert ids.shape == (6, 4, 6)
    assert [transforms[1].decode(state) for state in ids[5]] == [f"state {k} of 5" for k in range(4)]


# The file -----------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(file):
    assert StateFile.load(file) == StateFile(SETTINGS, {KEY: CUP})
    content = json.loads(file.read_text())
    assert content["format"] == "magvid.states/1" and content["settings"] == SETTINGS and "score" not in content
    assert content["states"] == {KEY: {**CUP._asdict(), "states": list(CUP.states)}}
    told = Predicted("ü\udcff.mp4", "推", ("一", "二"), "instruction", 3)  # a name that is no text
    StateFile(SETTINGS, {"b": told, KEY: CUP}, {"f1": [0.5]}).save(file)
    assert StateFile.load(file) == StateFile(SETTINGS, {KEY: CUP, "b": told}, {"f1": [0.5]})
    StateFile(SETTINGS).save(file)
    assert StateFile.load(file).states == {}
    assert [p.name for p in file.parent.iterdir()] == ["states.json"]


def test_a_file_that_is_none(file):
    text = file.read_text()
    whole = json.loads(text)
    entry = lambda **changed: json.dumps(whole | {"states": {KEY: whole["states"][KEY] | changed}})
    for wrong in (
        "",
        text[:-9],
        text[: len(text) // 2],
        "[]",
        "{}",
        "null",
        json.dumps(whole | {"format": "magvid.motion/1"}),
        json.dumps(whole | {"settings": {}}),
        json.dumps(whole | {"settings": []}),
        json.dumps(whole | {"states": []}),
        json.dumps(whole | {"states": {KEY: [1]}}),
        json.dumps(whole | {"score": 3}),
        entry(states=["one"]),
        entry(states="ab"),
        entry(states=None),
        entry(states=["a", 3]),
        entry(states=["a", " "]),
        entry(how="guess"),
        entry(tries="1"),
        entry(file=None),
        entry(more=1),
    ):
        file.write_text(wrong)
        with pytest.raises(UserError, match="states.json is not what tools/predict_states.py writes, or damaged.*make it again"):
            StateFile.load(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="or damaged"):
        StateFile.load(file)


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("owner, name", [(pathlib.Path, "write_text"), (states.os, "replace")])
def test_a_full_disk_takes_nothing_away(file, monkeypatch, owner, name):
    monkeypatch.setattr(owner, name, full)
    with pytest.raises(UserError, match=r"states.json cannot be written \(No space left on device\): make room or give another --out"):
        StateFile(SETTINGS).save(file)
    monkeypatch.undo()
    assert StateFile.load(file).states == {KEY: CUP} and os.listdir(file.parent) == ["states.json"]


def test_what_cannot_be_read_or_written(file, monkeypatch):
    with pytest.raises(UserError, match="cannot be written"):
        StateFile(SETTINGS).save(file / "inside.json")
    monkeypatch.setattr(pathlib.Path, "read_text", full)
    with pytest.raises(UserError, match="cannot be read .*check its permissions"):
        StateFile.load(file)
