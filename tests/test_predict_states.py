"""tools/predict_states.py: what of an answer is used, how models are asked, and what is kept of it whatever happens."""

import errno
import hashlib
import json
import sys

import numpy as np
import pytest
from make_videos import encode

from magvid import video
from magvid.data.sprites import Sprites
from magvid.data.states import Predicted, StateFile, States, digest_of, state_key
from magvid.flags import guarded
from magvid.types import UserError
from tools import predict_states
from tools.hub import out_of_memory
from tools.predict_states import PROMPT, Batches, bare, moments, names, parse_states, question, read_prompt, word_f1

GOOD = "1. the cup is left\n2. the cup moves\n3. the cup is near\n4. the cup is right"
STATES = ("the cup is left", "the cup moves", "the cup is near", "the cup is right")
TEXTS = {
    "English": ("The cup is at the left.", "It moves 3.5 cm.", "It is near the edge!", "It lies on the floor."),
    "Chinese": ("杯子在左边。", "杯子在动。", "杯子在中间！", "杯子在右边。"),
    "Japanese": ("カップは左にある。", "カップが動く。", "カップは中央にある。", "カップは右にある。"),
    "Hindi": ("कप बाईं ओर है।", "कप हिल रहा है।", "कप बीच में है।", "कप दाईं ओर है।"),
    "Arabic": ("الكأس على اليسار.", "الكأس تتحرك.", "هل هي في الوسط؟", "الكأس على اليمين."),
    "Amharic": ("ኩባያው በግራ ነው።", "ኩባያው ይንቀሳቀሳል።", "ኩባያው መሃል ነው።", "ኩባያው በቀኝ ነው።"),
    "German": ("Die Tasse steht links.", "Sie bewegt sich.", "Sie ist in der Mitte.", "Sie liegt am Boden."),
}
DIGITS = ("0123456789", "０１２３４５６７８９", "٠١٢٣٤٥٦٧٨٩", "۰۱۲۳۴۵۶۷۸۹", "०१२३४५६७८९", "০১২৩৪৫৬৭৮৯", "๐๑๒๓๔๕๖๗๘๙")
NUMBERED = ("{k}. {s}", "{k}) {s}", "({k}) {s}", "[{k}] {s}", "{k}、{s}", "{k}．{s}", "{k}: {s}", "{k}：{s}", "{k} - {s}",
            "{k}/4: {s}", "（{k}）{s}")  # fmt: skip
LABELLED = (
    "Step {k}: {s}", "State {k}. {s}", "**State {k}:** {s}", "第{k}步：{s}", "状态{k}：{s}", "चरण {k}: {s}", "स्थिति {k}: {s}", "الخطوة {k}: {s}",
    "Schritt {k} - {s}", "État {k} : {s}", "Short sentence {k}: {s}",
)
PLAIN = (
    "{s}", "- {s}", "* {s}", "• {s}", "•{s}", "– {s}", "> {s}", "## {s}", "**{s}**", "*{s}*", "`{s}`", '"{s}"', "“{s}”", "„{s}“", "«{s}»",
    "「{s}」", "『{s}』", "'{s}'", '- **"{s}"**', '  "{s}",', "\u200f{s}", "  {s}  ",
)
MARKS = (
    "①②③④", "❶❷❸❹", "⑴⑵⑶⑷", ("一、", "二、", "三、", "四、"), ("第一步：", "第二步：", "第三步：", "第四步："), ("a) ", "b) ", "c) ", "d) "),
    [f"{k}\ufe0f\u20e3 " for k in range(1, 5)],
)  # fmt: skip


# What of an answer is used ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", TEXTS)
def test_lines_with_anything_around_them(language):
    texts = TEXTS[language]
    for form in (*NUMBERED, *LABELLED):
        for digits in DIGITS:
            answer = "\n".join(form.format(k=digits[k], s=s) for k, s in enumerate(texts, 1))
            assert parse_states(answer, 4) == texts, answer
    for form in PLAIN:
        answer = "\n".join(form.format(s=s) for s in texts)
        assert parse_states(answer, 4) == texts, answer
    for marks in MARKS:
        assert parse_states("\n".join(mark + s for mark, s in zip(marks, texts, strict=True)), 4) == texts


@pytest.mark.parametrize("language", TEXTS)
def test_one_paragraph(language):
    texts = TEXTS[language]
    assert parse_states(" ".join(texts), 4) == texts
    assert parse_states(" ".join(f"{k}. {s}" for k, s in enumerate(texts, 1)), 4) == texts
    assert parse_states(" ".join(f"{k}) {s}" for k, s in enumerate(texts, 1)), 4) == texts
    if language in ("Chinese", "Japanese"):
        assert parse_states("".join(texts), 4) == texts
    assert parse_states("Here they are:\n\n" + " ".join(texts), 4) == texts
    assert parse_states(" ".join(texts[:3]), 4) == "3 states instead of 4"


def test_paragraphs_with_points_inside():
    assert parse_states('It is 3.5 m away. He says "stop!" The cup... falls? No.', 3) == "5 states instead of 3"
    assert parse_states("It is 3.5 m away at 10:30. It falls!", 2) == ("It is 3.5 m away at 10:30.", "It falls!")
    assert parse_states('He says "stop." She says "go!" All move.', 3) == ('He says "stop."', 'She says "go!"', "All move.")
    assert parse_states("他说：“停。”她走了。", 2) == ("他说：“停。”", "她走了。")
    assert parse_states("１．左。２．右。", 2) == ("左。", "右。")
    assert parse_states("1) left 2) in the middle 3) right", 3) == ("left", "in the middle", "right")


def test_what_stands_between_the_states():
    assert parse_states(f"Sure! Here are the sentences:\n\n{GOOD}\n", 4) == STATES
    assert parse_states("这是答案：\r\n\r\n" + GOOD.replace("\n", "\r\n\r\n"), 4) == STATES
    told = "\n".join(f"**At {k}/4:**\n{s}" for k, s in enumerate(STATES))
    assert parse_states(told, 4) == STATES
    assert parse_states("```\n" + "\n".join(STATES) + "\n```", 4) == STATES
    assert parse_states("[\n" + ",\n".join(f'  "{s}"' for s in STATES) + "\n]", 4) == STATES
    assert parse_states("---\n" + "\n***\n".join(STATES), 4) == STATES
    assert parse_states("1.\n" + GOOD, 4) == STATES


@pytest.mark.parametrize(
    "line",
    ["3 cups are left", "3.5 cm to the left", "12:30 and still there", "It's the cup's edge", "the cup, left of the pan: gone",
     "1990s cups are left", "a cup", "A cup (red) is left", 'it says "stop"', '"Stop" stands beside "go"', "a_b and c*d",
     "100% is full", "-5 degrees", "The cup is 2/3 full", "x) marks the spot"],
)  # fmt: skip
def test_what_belongs_to_a_sentence_stays(line):
    assert bare(line) == line
    assert parse_states(f"{line}\nthe end", 2) == (line, "the end")


@pytest.mark.parametrize(
    "answer, reason",
    [
        ("", "0 states"),
        (" \n\t\n", "0 states"),
        ("...\n---\n!", "0 states"),
        ("1.\n2.\n3.\n4.", "0 states"),
        ("Here are the states:", "0 states"),
        ("the cup is left", "1 states"),
        ("one\ntwo\nthree", "3 states"),
        (GOOD + "\n5. and so on", "5 states"),
        (GOOD + "\n\nI hope this helps.", "5 states"),
        ("a. b\n" * 4, "that are all the same"),
        ("1. The cup\n2. the cup\n3. THE CUP\n4. the cup", "that are all the same"),
        ("a\nb\nc\n" + "d" * 201, "more than 200 characters"),
    ],
)
def test_answers_that_are_of_no_use(answer, reason):
    assert reason in parse_states(answer, 4)


def test_the_longest_state_and_any_number_of_them():
    assert parse_states("a\nb\nc\n" + "d" * 200, 4) == ("a", "b", "c", "d" * 200)
    for count in (2, 3, 12):
        lines = tuple(f"state {'x' * k}" for k in range(1, count + 1))
        assert parse_states("\n".join(f"{k}. {line}" for k, line in enumerate(lines, 1)), count) == lines
    for many in ("0", " .", "*a ", "a b1 ", "(", '"', "- "):
        assert parse_states(many * 20_000 + "1", 4) == "1 states instead of 4"  # in no time


# What is said -------------------------------------------------------------------------------------------------------


def test_the_prompt_for_any_count(tmp_path):
    assert moments(2) == "at the beginning and at the end"
    assert moments(3) == "at the beginning, in the middle and at the end"
    assert moments(4) == "at the beginning, at one third, at two thirds and at the end"
    assert moments(5) == "at the beginning, at 1/4, in the middle, at 3/4 and at the end"
    assert "in exactly 4 short sentences" in read_prompt(None, 4) and moments(4) in read_prompt(None, 4) and "{" not in read_prompt(None, 4)
    file = tmp_path / "prompt.txt"
    file.write_text(" Sag {count} Sätze, {moments}, als {json: true}.\n", "utf-8")
    assert read_prompt(str(file), 2) == "Sag 2 Sätze, at the beginning and at the end, als {json: true}."
    first, again = question("Say 2.", "push\nthe cup", 2, 0), question("Say 2.", "push the {cup}", 2, 1)
    assert first == "Say 2.\nInstruction: push the cup"
    assert again == "Say 2.\nInstruction: push the {cup}\nAnswer with exactly 2 lines, one short sentence each, and nothing else."
    for content, message in ((b" \n", "is empty"), (b"\xff", "cannot be read as UTF-8"), (b"say it", "does not say how many states")):
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"prompt.txt {message}"):
            read_prompt(str(file), 4)
    with pytest.raises(UserError, match="cannot be read"):
        read_prompt(str(tmp_path), 4)


# Asking, with a stub for the model ----------------------------------------------------------------------------------


class Stub:
    """Answers by what `replies` gives: of each call's instructions, the number of the call and its seed."""

    def __init__(self, reply):
        self.reply, self.asked, self.loaded, self.frames = reply, [], [], []

    def load(self, *args):
        self.loaded.append(args)
        return self

    def __call__(self, frames, texts, seed):
        assert len(frames) == len(texts)
        told = [text.split("Instruction: ")[1].split("\n")[0] for text in texts]
        self.asked.append((tuple(told), "Answer with exactly" in texts[0], seed))
        self.frames += frames
        return [self.reply(text, len(self.asked), seed) for text in told]

    @property
    def all(self):
        return [text for told, _, _ in self.asked for text in told]


@pytest.fixture
def stub(monkeypatch):
    """Of a function (instruction, number of the call, seed) -> answer."""

    def use(reply=lambda *args: GOOD):
        model = Stub(reply)
        monkeypatch.setattr(predict_states, "load_model", model.load)
        return model

    return use


@pytest.fixture
def folder(tmp_path):
    """Six videos; e.mp4 has two captions and f.mp4 has none."""
    data = tmp_path / "data"
    for k, name in enumerate("abcdef"):
        frames = np.full((6, 24, 32, 3), 20 * k + 20, np.uint8)
        frames[1:] = 250  # only the first frame tells
        encode(data / f"{name}.mp4", frames)
    lines = [("a", "lift a"), ("b", "lift b"), ("c", "lift c"), ("./d", "lift d"), ("e", "lift e"), ("e", "drop e")]
    (data / "captions.jsonl").write_text("".join(json.dumps({"file": f"{n}.mp4", "caption": c}) + "\n" for n, c in lines))
    return data


TOLD = ["lift a", "lift b", "lift c", "lift d", "lift e", "drop e"]


@pytest.fixture
def run(folder, tmp_path):
    def run(*argv, out=tmp_path / "states.json"):
        predict_states.main([f"--data={folder}", f"--out={out}", "--model=llava", "--batch=2", *argv])
        return StateFile.load(out)

    return run


def test_a_folder_of_videos(folder, run, stub, capsys):
    model = stub()
    found = run()
    assert model.loaded == [("llava", None, "auto", 320)]
    assert [told for told, _, _ in model.asked] == [("lift a", "lift b"), ("lift c", "lift d"), ("lift e", "drop e")]
    assert {seed for _, _, seed in model.asked} == {None} and not any(reminded for _, reminded, _ in model.asked)
    assert [f.shape for f in model.frames] == [(24, 32, 3)] * 6, "whole, at its own size"
    np.testing.assert_allclose([f.mean() for f in model.frames], [20, 40, 60, 80, 100, 100], atol=3)
    assert found.settings == {"model": "llava", "count": 4, "prompt": read_prompt(None, 4), "dtype": "auto"}
    digest = hashlib.sha256((folder / "b.mp4").read_bytes()).hexdigest()
    assert found.states[state_key(digest, "lift b")] == Predicted("b.mp4", "lift b", STATES, "model", 1)
    assert sorted(entry.instruction for entry in found.states.values()) == sorted(TOLD)
    printed = capsys.readouterr()
    assert 'left out: f.mp4 has no instruction: add a line {"file": "f.mp4", "caption": "..."} to captions.jsonl' in printed.err
    summary = "states.json: states of 6 videos and instructions, 0 of them the instruction repeated, 6 asked now, 1 left out\n"
    assert printed.out.endswith(summary)
    record = {"digest": digest, "text": "lift b"}
    assert States(str(folder.parent / "states.json"))(record, np.random.default_rng(0))["states"] == STATES


def test_what_is_there_is_not_asked_again(folder, run, stub, tmp_path):
    stub()
    run("--limit=2", "--model=llava/")
    model = stub()
    before = run("--limit=2")
    assert not model.loaded, "a model that is not needed is not loaded"
    assert len(before.states) == 2
    (folder / "captions.jsonl").write_text((folder / "captions.jsonl").read_text().replace("lift b", "turn  b"))
    after = run()
    assert model.all == ["turn b", *TOLD[2:]] and len(after.states) == 7 and after.states.items() > before.states.items()
    content = (tmp_path / "states.json").read_bytes()
    for other, what in (("--count=3", "count"), ("--dtype=bfloat16", "dtype"), ("--model=other", "model")):
        message = rf"was predicted with \{{'{what}': .*now it is \{{'{what}': .*give another --out, or delete it"
        with pytest.raises(UserError, match=message):
            run(other)
    assert (tmp_path / "states.json").read_bytes() == content


def test_equal_videos_are_asked_about_once(folder, run, stub):
    """In a batch and later; the same video with other words is another question."""
    lines = []
    for name, caption in (("a2", "lift  a"), ("c2", "lift c"), ("c3", "drop c")):
        (folder / f"{name}.mp4").write_bytes((folder / f"{name[0]}.mp4").read_bytes())
        lines.append(json.dumps({"file": f"{name}.mp4", "caption": caption}) + "\n")
    with open(folder / "captions.jsonl", "a") as file:
        file.writelines(lines)
    model = stub()
    assert len(run().states) == 7 and model.all == ["lift a", "lift b", "lift c", "drop c", *TOLD[3:]]


def test_answers_of_no_use_are_asked_for_again(run, stub, capsys):
    def reply(text, call, seed):
        return {"lift a": "", "lift c": GOOD if seed == 2 else "one\ntwo"}.get(text, GOOD)

    model = stub(reply)
    found = {entry.instruction: entry for entry in run().states.values()}
    ab, cd = ("lift a", "lift b"), ("lift c", "lift d")
    assert model.asked[:3] == [(ab, False, None), (ab[:1], True, None), (ab[:1], True, 2)]
    assert model.asked[3:] == [(cd, False, None), (cd[:1], True, None), (cd[:1], True, 2), (("lift e", "drop e"), False, None)]
    assert found["lift a"] == Predicted("a.mp4", "lift a", ("lift a",) * 4, "instruction", 3)
    assert (found["lift b"].how, found["lift b"].tries) == ("model", 1)
    assert (found["lift c"].states, found["lift c"].how, found["lift c"].tries) == (STATES, "model", 3)
    printed = capsys.readouterr()
    assert 'a.mp4: the instruction is repeated, for there are 0 states instead of 4 in ""' in printed.err and "c.mp4" not in printed.err
    assert "1 of them the instruction repeated, 6 asked now" in printed.out


def test_no_and_many_retries(run, stub, tmp_path):
    model = stub(lambda *args: "one\ntwo")
    assert {entry.how for entry in run("--retries=0", "--limit=1").states.values()} == {"instruction"} and len(model.asked) == 1
    run("--retries=4", "--limit=1", out=tmp_path / "other.json")
    assert [seed for _, _, seed in model.asked[1:]] == [None, None, 2, 3, 4]


class OutOfMemoryError(RuntimeError):
    """As torch.OutOfMemoryError is."""


ON_CPU = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")


@pytest.mark.parametrize("kind", [OutOfMemoryError("CUDA out of memory. Tried to allocate"), ON_CPU, MemoryError()])
def test_a_batch_that_is_too_large_is_halved(run, stub, monkeypatch, capsys, kind):
    model, sizes = stub(), []

    def limited(frames, texts, seed):
        sizes.append(len(texts))
        if len(texts) > 1:
            raise kind
        return model(frames, texts, seed)

    monkeypatch.setattr(predict_states, "load_model", lambda *args: limited)
    found = run("--batch=5")
    assert sizes == [5, 2, *[1] * 6] and model.all == TOLD and len(found.states) == 6
    assert [line for line in capsys.readouterr().err.splitlines() if "memory" in line] == [
        f"memory does not suffice for {n} pictures at a time: going on with {n // 2}" for n in (5, 2)
    ]


def test_memory_that_does_not_suffice_for_one(run, stub, tmp_path):
    def reply(text, call, seed):
        if text == "lift c":
            raise OutOfMemoryError("CUDA out of memory")
        return GOOD

    stub(reply)
    with pytest.raises(UserError, match=r"does not suffice for one picture \(CUDA out of memory\): give --dtype=bfloat16"):
        run("--batch=1")
    assert len(StateFile.load(tmp_path / "states.json").states) == 2, "those before are kept"


def test_other_errors_are_not_hidden(run, stub, tmp_path):
    def reply(text, call, seed):
        if call == 2:
            raise RuntimeError("shapes do not match")
        return GOOD

    model = stub(reply)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run()
    assert len(model.asked) == 2 and len(StateFile.load(tmp_path / "states.json").states) == 2


def test_batches_keep_the_order():
    sizes = []

    def ask(frames, texts, seed):
        sizes.append(len(texts))
        if len(texts) == 4:
            raise OutOfMemoryError
        return [f"{frame} {text} {seed}" for frame, text in zip(frames, texts, strict=True)]

    batches = Batches(lambda: ask, 4)
    assert batches([1, 2, 3, 4, 5], list("abcde"), 7) == ["1 a 7", "2 b 7", "3 c 7", "4 d 7", "5 e 7"]
    assert sizes == [4, 2, 2, 1] and batches.size == 2


def test_an_interrupted_run_goes_on(run, stub, tmp_path, capsys):
    def reply(text, call, seed):
        if call == 3:
            raise KeyboardInterrupt
        return GOOD if text != "lift d" else ""

    stub(reply)
    with pytest.raises(KeyboardInterrupt):
        run("--retries=0")
    before = StateFile.load(tmp_path / "states.json").states
    assert sorted(entry.instruction for entry in before.values()) == TOLD[:4]
    model = stub()
    after = run("--retries=0")
    assert model.all == TOLD[4:] and len(after.states) == 6 and after.states.items() > before.items()
    assert sum(entry.how == "instruction" for entry in after.states.values()) == 1, "what fell back is there as well"
    assert "1 of them the instruction repeated, 2 asked now" in capsys.readouterr().out


def test_it_is_saved_while_it_runs(run, stub, monkeypatch, tmp_path, capsys):
    """A process that is killed loses SAVE seconds at most."""
    now, there = [0.0], []

    def reply(text, call, seed):
        now[0] += 4  # a batch of two: 8 seconds
        out = tmp_path / "states.json"
        there.append(len(StateFile.load(out).states) if out.exists() else 0)
        return GOOD

    monkeypatch.setattr(predict_states.time, "monotonic", lambda: now[0])
    stub(reply)
    run()
    assert there == [0, 0, 0, 0, 4, 4] and predict_states.SAVE == 10
    assert "of 6 records" in capsys.readouterr().out


def test_a_disk_that_fills_up(run, stub, monkeypatch, tmp_path, folder, capsys):
    stub()
    run("--limit=2")
    content = (tmp_path / "states.json").read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("magvid.data.states.os.replace", full)
    argv = [f"--data={folder}", f"--out={tmp_path / 'states.json'}", "--model=llava"]
    assert guarded("predict_states", argv, predict_states.main) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("predict_states: ") and "cannot be written (No space left on device): make room or give another --out" in error
    assert (tmp_path / "states.json").read_bytes() == content
    assert not list(tmp_path.glob(".states*"))


def test_a_video_that_breaks_is_left_out(run, stub, monkeypatch, capsys):
    decode = video.decode

    def broken(path, start=None):
        if path.name == "b.mp4":
            raise UserError(f"{path} is corrupt")
        return iter(()) if path.name == "c.mp4" else decode(path)

    stub()
    run("--limit=1")  # the index needs the files
    monkeypatch.setattr(video, "decode", broken)
    found = run()
    assert sorted(entry.instruction for entry in found.states.values()) == ["drop e", "lift a", "lift d", "lift e"]
    printed = capsys.readouterr()
    assert "b.mp4 is corrupt" in printed.err and "c.mp4 holds no frames any more" in printed.err and "3 left out" in printed.out


# Configs and pictures -----------------------------------------------------------------------------------------------


def write_config(tmp_path, source, transforms=(), split="train", **data):
    path = tmp_path / "configs" / "some.py"
    path.parent.mkdir(exist_ok=True)
    data = {split: dict(source=source, transforms=list(transforms), **data)}
    path.write_text(f"def get_config(arg=None):\n    return dict(data={data!r})\n")
    return f"--config={path}"


SPRITES = dict(target="magvid.data.sprites:Sprites", split="validation", world="small", frames=4, height=16, width=16)


def test_the_clips_of_a_config(tmp_path, stub):
    config, out = write_config(tmp_path, SPRITES | dict(seed=0)), tmp_path / "states.json"
    model = stub()
    predict_states.main([config, f"--out={out}", "--model=m", "--limit=3"])
    clips = [Sprites("validation", 4, 16, 16, world="small")[i] for i in range(3)]
    assert model.all == [clip["instruction"] for clip in clips]
    for frame, clip in zip(model.frames, clips, strict=True):
        np.testing.assert_array_equal(frame, clip["video"][0])
    look_up = States(str(out), key="instruction")
    assert [look_up(clip, np.random.default_rng(0))["states"] for clip in clips] == [STATES] * 3
    assert {entry.file for entry in StateFile.load(out).states.values()} == {"record 0", "record 1", "record 2"}
    predict_states.main([config, f"--out={out}", "--model=m", "--limit=2", "--config.data.train.source.seed=1"])
    assert len(model.all) == 5, "fields of a config can be changed"


def test_eval_data_is_as_long_as_the_config_says(tmp_path, stub):
    config, out = write_config(tmp_path, SPRITES, split="eval", limit=3), f"--out={tmp_path / 'states.json'}"
    model = stub()
    predict_states.main([config, out, "--model=m", "--split=eval"])
    assert len(model.all) == 3
    with pytest.raises(UserError, match="the config has no data.train: there is nothing to ask about"):
        predict_states.main([config, out, "--model=m"])


def test_the_instruction_is_what_training_will_look_up(tmp_path, folder, stub):
    """By transforms that make a text, with each of the texts; others are not run."""
    source = dict(target="magvid.data.folder:VideoFolder", path=str(folder), frames=3, height=16, width=16)
    captions = dict(target="magvid.data.text:Captions", path=str(folder / "captions.jsonl"))
    template = dict(target="magvid.data.text:Template", template="please {text}")
    states = dict(target="magvid.data.states:States", path=str(tmp_path / "states.json"))
    other = dict(target="no.such.module:Crop")
    for name, (transforms, told) in {
        "a": ([], ["lift a", "lift b", "lift c", "lift d", "lift e"]),  # the source's own first captions
        "b": ([other, captions, template, states, other], [f"please lift {x}" for x in "abc"] + ["please lift e", "please drop e"]),
        "c": ([dict(states, key="action"), captions], ["data"] * 6),
    }.items():
        model, out = stub(), f"--out={tmp_path / name}.json"
        predict_states.main([write_config(tmp_path, source, transforms), out, "--model=m", "--batch=1"])
        assert model.all == told
    key = state_key(digest_of(predict_states.VideoFolder(folder, 3, 16, 16)[0]), "please lift a")
    assert key in StateFile.load(tmp_path / "b.json").states


def test_data_without_instructions(tmp_path, stub, capsys):
    stub()
    out = f"--out={tmp_path / 'states.json'}"
    config = write_config(tmp_path, SPRITES | dict(keys=("video", "label")))
    message = "none of the first 100 records can be asked about: record 0 has no instruction: none of instruction, text, caption"
    with pytest.raises(UserError, match=message):
        predict_states.main([config, out, "--model=m"])
    assert capsys.readouterr().err.count("left out:") == 5
    with pytest.raises(UserError, match="none of the first 2 records"):
        predict_states.main([config, out, "--model=m", "--limit=2"])
    encode(tmp_path / "bare/a.mp4", np.zeros((4, 16, 16, 3), np.uint8))
    with pytest.raises(UserError, match='there are no captions .*captions.jsonl: give a file of lines {"file"'):
        predict_states.main([f"--data={tmp_path / 'bare'}", out, "--model=m"])
    assert not (tmp_path / "states.json").exists()


def test_one_picture(tmp_path, stub, capsys):
    picture = tmp_path / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    video.write_image(picture, pixels)
    argv = [f"--image={picture}", "--instruction=push  the cup", "--model=m"]
    model = stub()
    predict_states.main(argv)
    assert capsys.readouterr().out == "\n".join(STATES) + "\n"
    np.testing.assert_array_equal(model.frames[0], pixels)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png"]
    out = tmp_path / "states.json"
    predict_states.main([*argv, f"--out={out}"])
    digest = hashlib.sha256(picture.read_bytes()).hexdigest()
    assert StateFile.load(out).states == {state_key(digest, "push the cup"): Predicted("a.png", "push  the cup", STATES, "model", 1)}
    capsys.readouterr()
    predict_states.main([*argv, f"--out={out}"])
    assert len(model.asked) == 2, "what is kept is not asked again"
    assert capsys.readouterr().out.endswith("\n".join(STATES) + "\n")


def test_one_video(folder, tmp_path, stub, capsys):
    """Is known by its file, as one of a folder or config is."""
    model, out = stub(), tmp_path / "states.json"
    argv = [f"--image={folder / 'b.mp4'}", "--instruction=lift b", "--model=m", f"--out={out}"]
    predict_states.main(argv)
    assert capsys.readouterr().out.endswith("\n".join(STATES) + "\n")
    assert model.frames[0].shape == (24, 32, 3) and abs(model.frames[0].mean() - 40) < 3, "the first frame"
    predict_states.main([f"--data={folder}", "--model=m", f"--out={out}"])
    assert sorted(model.all) == sorted(TOLD), "it is not asked about again"
    (tmp_path / "none.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match="none.mp4 cannot be read as a video"):
        predict_states.main([f"--image={tmp_path / 'none.mp4'}", *argv[1:]])


# Messages -----------------------------------------------------------------------------------------------------------


def test_flags_that_do_not_go_together(tmp_path, capsys):
    predict_states.main(["--help"])
    assert "--retries=N" in capsys.readouterr().out
    data, model, out = f"--data={tmp_path}", "--model=m", f"--out={tmp_path / 's.json'}"
    for argv, message in (
        ([model, out], "--data or --config or --image is missing"),
        ([data, "--image=a.png", model, out], "is one too many"),
        ([data, model], "--out is missing: say where to write, such as --out=states.json"),
        ([data, out], "--model is missing: give llava-hf/llava-1.5-7b-hf"),
        ([data, model, out, "--split=eval"], "--split goes with --config"),
        ([data, model, out, "--instruction=push"], "--instruction goes with --image"),
        (["--config=c.py", model, out, "--split=test"], '--split must be train or eval, got "test"'),
        ([data, model, out, "--dtype=int8"], '--dtype must be auto, float32, float16 or bfloat16, got "int8"'),
        ([data, model, f"--out={tmp_path}"], "--out=.*: name a file"),
        ([data, model, "--out=a.mp4"], "--out=a.mp4: name a file"),
        (["--image=a.png", model], "--image needs --instruction"),
        (["--image=a.png", "--instruction= ", model], "--image needs --instruction"),
        (["--image=a.png", "--instruction=push", model, "--score"], "a picture does not have: leave it out"),
        ([f"--image={tmp_path / 'a.png'}", "--instruction=push", model], "there is no picture .*a.png"),
        ([data, model, out, "--count=1"], "--count=1"),
        ([data, model, out, "--batch=0"], "--batch=0"),
        ([data, model, out], "holds no videos"),
        ([f"--data={tmp_path / 'none'}", model, out], "there is no folder .*none"),
        (["--config=none.py", model, out], "there is no config none.py"),
        ([data, model, out, "--prompt=none.txt"], "--prompt=none.txt cannot be read"),
        ([data, out, "--score"], "there is no file .*s.json: tools/predict_states.py writes it"),
    ):
        with pytest.raises((UserError, ValueError), match=message):
            predict_states.main(argv)


def test_a_damaged_file_is_not_overwritten(run, stub, tmp_path, capsys):
    model = stub()
    run("--limit=1")
    text = (tmp_path / "states.json").read_text()
    (tmp_path / "states.json").write_text(text[:-5])
    with pytest.raises(UserError, match="states.json is not what tools/predict_states.py writes, or damaged"):
        run()
    assert (tmp_path / "states.json").read_text() == text[:-5] and len(model.asked) == 1


def test_without_torch(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    argv = [f"--data={folder}", f"--out={tmp_path / 's.json'}", "--model=llava"]
    assert guarded("predict_states", argv, predict_states.main) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--model needs torch, the torchvision of the same release, and transformers, which cannot be imported" in error
    assert error.endswith('pip install -e ".[parity]"')
    assert not (tmp_path / "s.json").exists()


# Rating -------------------------------------------------------------------------------------------------------------


def test_the_measures_by_hand():
    assert word_f1("the red disc", "The red disc") == 1 and word_f1("a b", "c d") == word_f1("", "a") == 0
    assert word_f1("the red the the", "the blue the") == 2 * 2 / (4 + 3)
    assert names("a Red striped disc", "the red disc is at the left") and not names("a red square", "the red disc is at the left")
    assert not names("a blue disc", "the red disc") and not names("a credited discus", "the red disc")


def test_predicted_states_are_compared_with_the_true_ones(tmp_path, stub, capsys):
    config, out = write_config(tmp_path, SPRITES), tmp_path / "states.json"
    clips = [Sprites("validation", 4, 16, 16, world="small")[i] for i in range(3)]
    truth = {clip["instruction"]: list(clip["states"]) for clip in clips}

    def reply(text, call, seed):
        if text == clips[1]["instruction"]:
            return "a\nb\nc\nd"
        return "" if text == clips[2]["instruction"] else "\n".join([*truth[text][:3], "and then nothing"])

    stub(reply)
    argv = [config, f"--out={out}", "--limit=3"]
    predict_states.main([*argv, "--model=m", "--score"])
    found = StateFile.load(out).score
    assert found["records"] == 3 and found["by_model"] == 2
    repeated = [[word_f1(clip["instruction"], state) for state in clip["states"]] for clip in clips]
    first = [1, 1, 1, word_f1("and then nothing", clips[0]["states"][3])]
    second = [word_f1(x, state) for x, state in zip("abcd", clips[1]["states"], strict=True)]
    told = [first, second, repeated[2]]
    np.testing.assert_allclose(found["predicted"]["f1"], np.mean(told, axis=0), atol=1e-4)
    np.testing.assert_allclose(found["instruction"]["f1"], np.mean(repeated, axis=0), atol=1e-4)
    assert found["instruction"]["named"] == [1] * 4, "an instruction of sprites names both"
    np.testing.assert_allclose(found["predicted"]["named"], [2 / 3, 2 / 3, 2 / 3, 1 / 3], atol=1e-4)
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.split()[0] == "4")
    assert row.split()[2] == "0.333" and "3 records, 2 of them answered by the model" in printed
    # again, of what is there, without a model
    content = out.read_bytes()
    predict_states.main([*argv, "--score"])
    assert out.read_bytes() == content and capsys.readouterr().out == printed[printed.index("state  word F1") :]
    # what is asked after that is not in the score
    stub()
    predict_states.main([config, f"--out={out}", "--limit=4", "--model=m"])
    assert StateFile.load(out).score is None and len(StateFile.load(out).states) == 4


def test_what_cannot_be_compared(tmp_path, folder, run, stub):
    stub()
    out = f"--out={tmp_path / 'states.json'}"
    run()
    with pytest.raises(UserError, match="--score needs records with true states, which sprites have"):
        predict_states.main([f"--data={folder}", out, "--score"])
    config = write_config(tmp_path, SPRITES)
    with pytest.raises(UserError, match="states.json has no states of these records: predict them first, with --model"):
        predict_states.main([config, out, "--score", "--limit=2"])
    stub(lambda *args: "a b\nc d")
    other = f"--out={tmp_path / 'other.json'}"
    with pytest.raises(UserError, match="2 states of each record were predicted, and the true ones are 4: predict with --count=4"):
        predict_states.main([config, other, "--score", "--limit=2", "--model=m", "--count=2"])


# Real models, tiny --------------------------------------------------------------------------------------------------

WORDS = ["the", "red", "disc", "cup", "left", "right", "lift", "in", "of", "ASSISTANT:", "USER:", "one\n", "two\n", "three\n", "four"]
SAID = ("ASSISTANT:", "one\n", "two\n", "three\n", "four", "</s>")  # what the fluent one says, whatever it sees


def tiny_llava(path, fluent, template=None):
    """A LLaVA whose words after one another are random, or, if it is fluent, SAID."""
    from helpers_torch import torch, transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "<image>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])  # as Llama's does
    special = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", additional_special_tokens=["<image>"])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    how = dict(patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=template)
    transformers.LlavaProcessor(pictures, tokenizer, **how).save_pretrained(path)
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    vision = transformers.CLIPVisionConfig(image_size=28, patch_size=14, **small)
    ids = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    language = transformers.LlamaConfig(vocab_size=len(vocabulary), initializer_range=0.5, max_position_embeddings=1024, **small, **ids)
    torch.manual_seed(0)
    config = transformers.LlavaConfig(vision_config=vision, text_config=language, image_token_index=4)
    model = transformers.LlavaForConditionalGeneration(config)
    if fluent:  # each layer adds nothing, so that a word alone says which is the next
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")) and "vision" not in name:
                    weight.zero_()
            model.get_input_embeddings().weight.copy_(torch.eye(len(vocabulary), 32))
            head = torch.zeros(len(vocabulary), 32)
            for word, then in zip(SAID, SAID[1:], strict=False):
                head[vocabulary[then], vocabulary[word]] = 1
            model.get_output_embeddings().weight.copy_(head)
    model.save_pretrained(path)
    return str(path)


@pytest.mark.full
def test_a_tiny_llava_end_to_end(folder, tmp_path, monkeypatch, capsys):
    model, out = tiny_llava(tmp_path / "llava", fluent=True), tmp_path / "states.json"
    argv = [f"--data={folder}", f"--out={out}", f"--model={model}", "--batch=4", "--device=cpu"]
    predict_states.main([*argv, "--limit=3"])
    found = StateFile.load(out)
    assert {(e.states, e.how, e.tries) for e in found.states.values()} == {(("one", "two", "three", "four"), "model", 1)}
    assert len(found.states) == 3
    predict_states.main(argv)
    assert len(StateFile.load(out).states) == 6 and "3 asked now" in capsys.readouterr().out
    before = out.read_bytes()
    load = predict_states.load_model
    monkeypatch.setattr(predict_states, "load_model", None)
    predict_states.main(argv)
    assert out.read_bytes() == before
    monkeypatch.setattr(predict_states, "load_model", load)
    picture = tmp_path / "a.png"
    video.write_image(picture, np.zeros((20, 30, 3), np.uint8))
    capsys.readouterr()
    for dtype in ("float32", "bfloat16", "float16"):
        predict_states.main([f"--image={picture}", "--instruction=lift the cup", f"--model={model}", f"--dtype={dtype}"])
        assert capsys.readouterr().out == "one\ntwo\nthree\nfour\n"


@pytest.mark.full
def test_a_model_that_babbles_ends_with_the_instruction(folder, tmp_path, capsys):
    out = tmp_path / "states.json"
    argv = [f"--data={folder}", f"--out={out}", "--device=cpu", "--limit=2", "--count=3"]
    predict_states.main([*argv, f"--model={tiny_llava(tmp_path / 'llava', fluent=False)}"])
    found = StateFile.load(out)
    assert {(e.instruction, e.states, e.how, e.tries) for e in found.states.values()} == {
        (f"lift {x}", (f"lift {x}",) * 3, "instruction", 3) for x in "ab"
    }
    printed = capsys.readouterr()
    assert "2 of them the instruction repeated, 2 asked now" in printed.out and "a.mp4: the instruction is repeated" in printed.err


@pytest.fixture
def babbling(tmp_path):
    return predict_states.load_model(tiny_llava(tmp_path / "llava", fluent=False), "cpu", "auto", 24)


@pytest.mark.full
def test_a_batch_answers_as_each_picture_alone(babbling):
    frames = [np.random.default_rng(k).integers(0, 256, (20 + 10 * k, 40, 3), np.uint8) for k in range(3)]
    texts = ["lift the cup", "the red disc is left of the cup in the cup of the cup", "in"]
    alone = [babbling([frame], [text], None)[0] for frame, text in zip(frames, texts, strict=True)]
    assert babbling(frames, texts, None) == alone and len(set(alone)) == 3
    assert babbling(frames[:1], texts[1:2], None) != alone[1:2], "the picture is seen"
    assert babbling(frames[:1], ["lift <image> the cup"], None) == alone[:1], "a text cannot stand for a picture"
    assert all("USER:" not in text[:5] and "<image>" not in text for text in alone)
    drawn = [babbling(frames, texts, seed) for seed in (2, 2, 3, 4, 5)]
    assert drawn[0] == drawn[1] and any(other != drawn[0] for other in drawn[2:])
    assert babbling(frames, texts, None) == alone, "greedy again after sampling"


@pytest.mark.full
def test_a_chat_template_is_used_where_there_is_one(tmp_path):
    from helpers_torch import transformers

    template = (
        "{% for message in messages %}<s>USER: {% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}"
        " {{ part['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )
    frames = [np.zeros((20, 30, 3), np.uint8)] * 2
    texts = ["lift the cup", "in"]
    inputs = []
    for name, given in (("plain", None), ("templated", template)):
        processor = transformers.AutoProcessor.from_pretrained(tiny_llava(tmp_path / name, False, given))
        processor.tokenizer.padding_side = "left"
        inputs.append(predict_states.inputs_of(processor, frames, texts))
    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *WORDS]
    read = lambda inputs: [[words[i] for i in row] for row in inputs["input_ids"].tolist()]
    user = lambda *text: ["USER:", *["<image>"] * 4, *text, "ASSISTANT:"]
    for found in inputs:  # <s> once
        assert read(found) == [["<s>", *user("lift", "the", "cup")], ["<pad>", "<pad>", "<s>", *user("in")]]
        assert found["pixel_values"].shape == (2, 3, 28, 28)


@pytest.mark.full
def test_models_that_are_not_there(tmp_path, monkeypatch, capsys):
    from helpers_torch import transformers

    picture = tmp_path / "a.png"
    video.write_image(picture, np.zeros((20, 30, 3), np.uint8))
    argv = [f"--image={picture}", "--instruction=lift the cup", f"--out={tmp_path / 's.json'}"]

    def error(*more):
        assert guarded("predict_states", [*argv, *more], predict_states.main) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("predict_states:")]
        assert len(lines) == 1
        return lines[0]

    assert "there is no folder" in error(f"--model={tmp_path / 'none'}") and "there is no folder none/of/it" in error("--model=none/of/it")
    (tmp_path / "empty").mkdir()
    assert "empty holds no model that answers to pictures and words" in error(f"--model={tmp_path / 'empty'}")
    words = tiny_llava(tmp_path / "words", fluent=False)
    transformers.LlamaConfig(hidden_size=32, num_hidden_layers=1).save_pretrained(words)  # a model of words alone
    assert "words holds no model that answers to pictures and words" in error(f"--model={words}")
    half = tmp_path / "half"
    tiny_llava(half, fluent=False)
    (half / "model.safetensors").write_bytes((half / "model.safetensors").read_bytes()[:5000])
    assert "half holds no model that answers to pictures and words, or not all of it" in error(f"--model={half}")
    (half / "model.safetensors").unlink()
    assert "half holds no model" in error(f"--model={half}")
    tiny_llava(half, fluent=False)
    assert "--device=cuda:99 cannot be used" in error(f"--model={half}", "--device=cuda:99")
    assert "--device=toaster cannot be used" in error(f"--model={half}", "--device=toaster")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # as it is without a network
    message = error("--model=nobody/no-such-llava")
    assert "the model nobody/no-such-llava cannot be had" in message
    assert "hf download nobody/no-such-llava --local-dir=FOLDER) and give --model=FOLDER" in message
    assert not (tmp_path / "s.json").exists()


@pytest.mark.full
def test_memory_that_does_not_suffice_for_the_model(tmp_path, monkeypatch):
    from helpers_torch import torch, transformers

    def large(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 13 GiB")

    path = tiny_llava(tmp_path / "llava", fluent=False)
    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", large)
    with pytest.raises(UserError, match=r"memory does not suffice for .*llava \(CUDA out of memory.*\): give --dtype=bfloat16"):
        predict_states.load_model(path, "cpu", "auto", 24)
    assert out_of_memory(torch.OutOfMemoryError("x")) and not out_of_memory(RuntimeError("shape"))


def test_the_prompt_names_what_it_must():
    assert "{count}" in PROMPT and "{moments}" in PROMPT and "first frame" in PROMPT
