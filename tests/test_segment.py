"""tools/segment.py: which instance is the subject, how models are read, and what is kept of it whatever happens."""

import errno
import json
import pathlib
import sys

import numpy as np
import pytest
from make_videos import damaged, encode

from magvid import video
from magvid.data.folder import VideoFolder
from magvid.data.masks import decode_alpha, decode_mask
from magvid.flags import guarded
from magvid.types import UserError
from tools import segment
from tools.segment import Instance, Segmenter, choose, iou, label_ids, salience


def box(top, bottom, left, right, shape=(8, 12)):
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


# Which instance is the subject --------------------------------------------------------------------------------------


def test_salience_by_hand():
    """Score x area, weighted to the centre, less by the border."""
    y, x = np.exp(-2 * np.array([-0.75, -0.25, 0.25, 0.75]) ** 2), np.exp(-2 * np.array([-0.5, 0.5]) ** 2)
    one = np.zeros((4, 2), bool)
    one[1, 0] = True
    np.testing.assert_allclose(salience(Instance(one, "", 0.5)), 0.5 * y[1] * x[0] * np.exp(-1 / 2))
    np.testing.assert_allclose(salience(Instance(np.ones((4, 2), bool), "")), y.sum() * x.sum() * np.exp(-(8**2) / 8 / 2))
    np.testing.assert_allclose(*(salience(Instance(mask, "")) for mask in (box(3, 5, 5, 7), box(3, 5, 5, 7).T)), err_msg="halves of each side")
    large = [salience(Instance(np.kron(box(0, 5, 3, 7), np.ones((n, n), bool)), "")) / n**2 for n in (20, 40)]
    np.testing.assert_allclose(*large, rtol=0.05, err_msg="the size of the picture does not matter")


@pytest.mark.parametrize(
    "better, worse",
    [
        (Instance(box(2, 6, 4, 8), "a"), Instance(box(2, 5, 4, 7), "b")),  # larger
        (Instance(box(2, 6, 4, 8), "a", 0.9), Instance(box(2, 6, 4, 8), "b", 0.8)),  # surer
        (Instance(box(3, 5, 5, 7), "a"), Instance(box(1, 3, 1, 3), "b")),  # in the middle
        (Instance(box(3, 5, 5, 7), "a"), Instance(box(4, 8, 0, 12), "grass")),  # not what lies behind
        (Instance(box(3, 5, 5, 7), "a"), Instance(~box(3, 5, 5, 7), "wall")),
        (Instance(box(2, 8, 4, 8), "half out of the picture"), Instance(box(6, 8, 0, 12), "floor")),
    ],
)
def test_the_most_salient_instance(better, worse):
    assert choose([worse, better], None) is choose([better, worse], None) is better


def test_a_subject_is_followed():
    dog = Instance(box(2, 6, 2, 6), "dog")
    assert choose([], None) is None and choose([], dog) is None
    large, small, near = Instance(box(1, 7, 4, 10), "dog"), Instance(box(3, 7, 2, 6), "dog"), Instance(box(2, 6, 3, 7), "cat")
    assert (iou(dog.mask, small.mask), iou(dog.mask, near.mask)) == (12 / 20, 12 / 20) and iou(dog.mask, large.mask) == 8 / 44
    assert choose([large, small], dog) is small and choose([large], dog) is large, "the largest overlap, and not the largest"
    assert choose([large, near], dog) is near, "what overlaps by half is the same thing, whatever it is called"
    touching = Instance(box(2, 6, 5, 9), "cat")
    assert choose([touching], dog) is None and choose([touching, large], dog) is large
    far, farther = Instance(box(3, 6, 7, 10), "dog"), Instance(box(0, 1, 11, 12), "dog")
    assert choose([farther, touching, far], dog) is far, "away from where it was: the most salient one of its label"
    assert choose([Instance(np.ones((4, 4), bool), "cat")], dog) is None, "a frame of another size overlaps with nothing"


# Labels -------------------------------------------------------------------------------------------------------------

COCO = {0: "N/A", 1: "person", 2: "dog, hound", 3: "Tree-Merged", 4: "hot dog", 5: "person"}


def test_labels():
    assert label_ids(COCO, "Person ", "m", False) == {1, 5} and label_ids(COCO, "hound", "m", True) == {2}
    assert label_ids(COCO, "dog", "m", False) == {2} and label_ids(COCO, "tree-merged", "m", False) == {3}
    assert label_ids(COCO, None, "m", False) == set()
    for subject, message in (
        ("tree", 'm has no label "tree" (--subject); near it are "Tree-Merged"'),
        ("persom", 'm has no label "persom" (--subject); near it are "person"'),
        ("zebra", 'm has no label "zebra" (--subject); it has "N/A", "person", "dog, hound", "Tree-Merged", "hot dog", "person"'),
    ):
        with pytest.raises(UserError) as error:
            label_ids(COCO, subject, "m", False)
        assert str(error.value) == message
    many = {k: f"label {k}" for k in range(150)}
    with pytest.raises(UserError, match='m gives every pixel a label: say by --subject .* it has "label 0", .*"label 9", ...$'):
        label_ids(many, None, "m", True)


# Videos, with a stub for the model ----------------------------------------------------------------------------------


class Stub:
    """Finds what is white; `fault(number of the call)` may raise."""

    def __init__(self, words, fault):
        self.words, self.fault, self.loaded, self.asked = words, fault, [], []

    def load(self, *args):
        self.loaded.append(args)
        return Segmenter(self.segment, self.words)

    def segment(self, frames, texts):
        assert len(frames) == len(texts)
        self.asked.append((len(frames), *dict.fromkeys(texts)))
        self.fault(len(self.asked))
        masks = [frame[..., 0] > 128 for frame in frames]
        return [[Instance(mask, "white")] if mask.any() else [] for mask in masks]


@pytest.fixture
def stub(monkeypatch):
    def use(words=False, fault=lambda call: None):
        model = Stub(words, fault)
        monkeypatch.setattr(segment, "load_model", model.load)
        return model

    return use


def moving(frames, start=0, shape=(24, 32)):
    """A white square on black from frame `start` on, and where it is."""
    masks = np.stack([box(8, 16, 4 + 2 * k, 12 + 2 * k, shape) & (k >= start) for k in range(frames)])
    return np.repeat(masks[..., None], 3, axis=-1).astype(np.uint8) * 255, masks


@pytest.fixture
def folder(tmp_path):
    """a.mp4, run/b.mp4 whose first two frames are without a subject, and c.mp4 without any."""
    data = tmp_path / "data"
    for name, start in (("a", 0), ("run/b", 2), ("c", 9)):
        encode(data / f"{name}.mp4", moving(6, start)[0])
    return data


@pytest.fixture
def run(folder, tmp_path):
    def run(*argv, out=tmp_path / "masks"):
        segment.main([f"--data={folder}", f"--out={out}", "--model=m", *argv])
        return json.loads((out / "masks.json").read_text())

    return run


def masks_of(out):
    return sorted(file.relative_to(out).as_posix() for file in out.rglob("*.png"))


def numbered(name, *numbers):
    return [f"{name}/{number:05d}.png" for number in numbers]


def test_a_folder_of_videos(folder, run, stub, tmp_path, capsys):
    model, out = stub(), tmp_path / "masks"
    content = run()
    assert model.loaded == [("m", None, "auto", None, 0.5)]
    assert model.asked == [(4, ""), (2, "")] * 3
    assert masks_of(out) == [*numbered("a", *range(6)), *numbered("run/b", 2, 3, 4, 5)]
    for name, start in (("a", 0), ("run/b", 2)):
        for file, mask in zip(sorted((out / name).iterdir()), moving(6, start)[1][start:], strict=True):
            image = video.import_pillow().open(file)
            assert image.mode == "L" and set(np.unique(image)) == {0, 255}
            np.testing.assert_array_equal(decode_mask(file), mask)
    assert content["settings"] == {"model": "m", "subject": None, "threshold": 0.5, "every": 1}
    assert {name: (row["frames"], row["masks"]) for name, row in content["done"].items()} == {"a.mp4": (6, 6), "run/b.mp4": (6, 4), "c.mp4": (6, 0)}
    told = "masks: 10 masks of 3 files, 8 frames without a subject, 1 files without any, 3 files done now\n"
    assert capsys.readouterr().out.endswith(told)
    source = VideoFolder(folder, 6, 24, 32, masks=out)
    assert source.files == ["a.mp4", "run/b.mp4"]
    for record, start in zip((source[0], source[1]), (0, 2), strict=True):
        np.testing.assert_array_equal(record["masks"], moving(6, start)[1])


def test_what_is_complete_is_not_done_again(folder, run, stub, tmp_path, capsys):
    stub()
    run("--limit=1", "--model=m/")
    out = tmp_path / "masks"
    stamps = {name: (out / name).stat().st_mtime_ns for name in masks_of(out)}
    model = stub()
    run("--batch=6")
    assert model.asked == [(6, "")] * 2 and "2 files done now" in capsys.readouterr().out
    assert all((out / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())
    model, before = stub(), (out / "masks.json").read_bytes()
    run()
    assert not model.loaded and (out / "masks.json").read_bytes() == before, "a model that is not needed is not loaded"
    (out / "a/00003.png").unlink()
    encode(folder / "run/b.mp4", moving(4)[0])
    run("--batch=6")
    assert model.asked == [(6, ""), (4, "")] and masks_of(out) == [*numbered("a", *range(6)), *numbered("run/b", *range(4))]
    content = (out / "masks.json").read_bytes()
    for other, what in (("--every=2", "every"), ("--model=n", "model"), ("--threshold=.4", "threshold"), ("--subject=dog", "subject")):
        with pytest.raises(UserError, match=rf"masks was segmented with \{{'{what}': .*now it is \{{'{what}': .*give another --out"):
            run(other)
    assert (out / "masks.json").read_bytes() == content


def test_an_interrupted_run_loses_the_current_video(run, stub, tmp_path):
    def fault(call):
        if call == 6:
            raise KeyboardInterrupt

    model = stub(fault=fault)
    with pytest.raises(KeyboardInterrupt):
        run("--batch=2")
    out = tmp_path / "masks"
    assert masks_of(out) == numbered("a", *range(6)), "nothing of what was cut short"
    assert list(json.loads((out / "masks.json").read_text())["done"]) == ["a.mp4"]
    model = stub()
    run("--batch=6")
    assert model.asked == [(6, "")] * 2 and len(masks_of(out)) == 10


def test_what_a_killed_process_left_is_made_again(run, stub, tmp_path):
    stub()
    run()
    out = tmp_path / "masks"
    content = json.loads((out / "masks.json").read_text())
    del content["done"]["run/b.mp4"]
    (out / "masks.json").write_text(json.dumps(content))
    (out / "run/b/00000.png").write_bytes((out / "a/00000.png").read_bytes())
    run()
    assert masks_of(out / "run") == numbered("b", 2, 3, 4, 5)


def test_it_is_saved_while_it_runs(run, stub, monkeypatch, tmp_path, capsys):
    now, there = [0.0], []

    def fault(call):
        now[0] += 8
        there.append(len(json.loads((tmp_path / "masks/masks.json").read_text())["done"]))

    monkeypatch.setattr(segment.time, "monotonic", lambda: now[0])
    stub(fault=fault)
    run("--batch=3")
    assert there == [0, 0, 1, 1, 2, 2] and segment.SAVE == 10
    printed = capsys.readouterr().out
    assert "2 of 3 done" in printed and "a.mp4: 6 frames" in printed


def test_every_second_frame(run, stub, tmp_path):
    model = stub()
    content = run("--every=2")
    assert masks_of(tmp_path / "masks") == [*numbered("a", *range(6)), *numbered("run/b", 2, 3, 4, 5)]
    assert model.asked == [(3, "")] * 3 and {row["frames"] for row in content["done"].values()} == {6}
    first, between = (decode_mask(tmp_path / f"masks/a/{k:05d}.png") for k in (2, 3))
    np.testing.assert_array_equal(first, between)


def test_the_same_instance_in_all_frames(run, stub, monkeypatch, tmp_path):
    """The other one becomes the most salient."""
    model, square = stub(), lambda left: Instance(box(8, 16, left, left + 8, (24, 32)), "dog")

    def segments(frames, texts):
        model.asked += [len(model.asked)] * len(frames)
        return [[square(2 * (k + len(model.asked) - len(frames))), square(24)] for k in range(len(frames))]

    monkeypatch.setattr(segment, "load_model", lambda *args: Segmenter(segments))
    run("--limit=1")
    for k in range(6):
        np.testing.assert_array_equal(decode_mask(tmp_path / f"masks/a/{k:05d}.png"), square(2 * k).mask)


def test_captions_are_the_subject(folder, run, stub, tmp_path, capsys):
    """Of a model that takes words; the first that says something."""
    rows = [("./a.mp4", " "), ("a.mp4", "a square"), ("a.mp4", "it moves"), ("run/b.mp4", "a box")]
    (folder / "captions.jsonl").write_text("".join(json.dumps({"file": name, "caption": text}) + "\n" for name, text in rows))
    model = stub(words=True)
    content = run("--batch=6")
    assert model.asked == [(6, "a square"), (6, "a box")]
    assert {name: row["caption"] for name, row in content["done"].items()} == {"a.mp4": "a square", "run/b.mp4": "a box"}
    printed = capsys.readouterr()
    assert 'left out: c.mp4 has no caption: give --subject, or add a line {"file": "c.mp4", "caption": "..."}' in printed.err
    assert "2 files done now, 1 left out" in printed.out
    (folder / "captions.jsonl").write_text((folder / "captions.jsonl").read_text().replace("a box", "a disc"))
    run("--batch=6")
    assert model.asked[2:] == [(6, "a disc")], "other words are another subject"
    run("--subject=a thing", "--batch=6", out=tmp_path / "other")
    assert model.asked[3:] == [(6, "a thing")] * 3
    labelled = stub()
    assert {row["caption"] for row in run("--batch=6", out=tmp_path / "third")["done"].values()} == {None} and labelled.asked == [(6, "")] * 3


class OutOfMemoryError(RuntimeError):
    """As torch.OutOfMemoryError is."""


def test_a_batch_that_is_too_large_is_halved(run, stub, tmp_path, capsys):
    model = stub()

    def fault(call):
        if model.asked[-1][0] > 2:
            raise OutOfMemoryError("CUDA out of memory")

    model.fault = fault
    run("--batch=5", "--limit=1")
    assert [count for count, _ in model.asked] == [5, 2, 2, 1, 1] and masks_of(tmp_path / "masks") == numbered("a", *range(6))
    assert "memory does not suffice for 5 pictures at a time: going on with 2" in capsys.readouterr().err


def test_memory_that_does_not_suffice_for_one(run, stub, tmp_path):
    def fault(call):
        if call > 2:
            raise OutOfMemoryError("CUDA out of memory")

    stub(fault=fault)
    with pytest.raises(UserError, match=r"does not suffice for one picture \(CUDA out of memory\): give --dtype=bfloat16"):
        run()
    assert masks_of(tmp_path / "masks") == numbered("a", *range(6)), "those before are kept"


def test_other_errors_are_not_hidden(run, stub, tmp_path):
    def fault(call):
        raise RuntimeError("shapes do not match")

    stub(fault=fault)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run()


def test_videos_that_cannot_be_read_are_left_out(folder, run, stub, monkeypatch, tmp_path, capsys, caplog):
    stub()
    damaged(folder / "d.mp4", "text")
    run("--limit=1")
    assert "1 of 4 videos are left out: d.mp4" in caplog.text
    decode = video.decode

    def broken(path, start=None):
        for k, frame in enumerate(decode(path)):
            if path.name == "b.mp4" and k == 4:
                raise UserError(f"{path} is corrupt")
            yield frame

    monkeypatch.setattr(video, "decode", broken)
    content = run("--batch=2")
    printed, out = capsys.readouterr(), tmp_path / "masks"
    assert "run/b.mp4 is corrupt" in printed.err and "1 left out" in printed.out
    assert masks_of(out) == numbered("a", *range(6)) and set(content["done"]) == {"a.mp4", "c.mp4"}
    monkeypatch.setattr(video, "decode", decode)
    run()
    assert len(masks_of(out)) == 10, "it is tried again"


def test_nothing_but_corrupt_videos(tmp_path, stub):
    model = stub()
    data, out = damaged(tmp_path / "bad/a.mp4", "truncated").parent, tmp_path / "masks"
    damaged(data / "b.webm", "zero")
    with pytest.raises(UserError, match="none of the 2 videos in .*bad is usable: a.mp4"):
        segment.main([f"--data={data}", f"--out={out}", "--model=m"])
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(b"no picture")
    (pictures / "b.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="none of 2 videos or pictures can be segmented: .*a.png cannot be read as an image"):
        segment.main([f"--data={pictures}", f"--out={out}", "--model=m"])
    assert model.asked == []


def test_nothing_found(folder, run, stub, tmp_path):
    """Is an error, and other settings may be tried in the same place."""
    for name in ("a", "run/b"):
        (folder / f"{name}.mp4").unlink()
    model = stub()
    for _ in range(2):
        with pytest.raises(UserError, match="no subject was found in any of 6 frames: give a lower --threshold, another --subject or"):
            run("--batch=6")
    assert len(model.asked) == 1, "it is known"
    encode(folder / "a.mp4", moving(6)[0])
    assert run("--threshold=0.3", "--batch=6")["settings"]["threshold"] == 0.3 and len(model.asked) == 3


def test_a_disk_that_fills_up(folder, run, stub, monkeypatch, tmp_path, capsys):
    stub()
    run("--limit=1")
    write = video.write_image

    def full(path, image):
        if path.name == "00004.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, image)

    monkeypatch.setattr(video, "write_image", full)
    argv = [f"--data={folder}", f"--out={tmp_path / 'masks'}", "--model=m"]
    assert guarded("segment", argv, segment.main) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("segment: ") and "00004.png cannot be written (No space left on device): make room or give another --out" in error
    assert masks_of(tmp_path / "masks") == numbered("a", *range(6))


def test_videos_whose_masks_would_be_in_one_place(folder, run, stub):
    encode(folder / "run/b.webm", moving(3)[0], codec="libvpx-vp9")
    stub()
    with pytest.raises(UserError, match="run/b.mp4 and run/b.webm would have their masks in one folder, run/b: rename one"):
        run()
    (folder / "run/b.webm").rename(folder / "run.webm")
    assert run()["done"]["run.webm"]["masks"] == 3


# Pictures and single videos -----------------------------------------------------------------------------------------


def test_a_folder_of_pictures(tmp_path, stub, capsys):
    model, data, out = stub(), tmp_path / "pictures", tmp_path / "masks"
    for k, image in enumerate(moving(2)[0]):
        video.write_image(data / f"cats/{k}.png", image)
    (data / "bad.jpg").write_bytes(b"no picture")
    argv = [f"--data={data}", f"--out={out}", "--model=m"]
    segment.main(argv)
    assert masks_of(out) == ["cats/0/00000.png", "cats/1/00000.png"] and len(model.asked) == 2
    np.testing.assert_array_equal(decode_mask(out / "cats/1/00000.png"), moving(2)[1][1])
    assert "left out: " in (printed := capsys.readouterr()).err and "bad.jpg cannot be read as an image" in printed.err
    segment.main(argv)
    assert len(model.asked) == 2
    with pytest.raises(UserError, match="lies inside of --data=.*pictures: the masks would be taken for pictures"):
        segment.main([argv[0], f"--out={data / 'masks'}", "--model=m"])


def test_one_picture(tmp_path, stub, capsys):
    stub()
    frames, masks = moving(1)
    picture, out = tmp_path / "a.png", tmp_path / "cut.png"
    video.write_image(picture, frames[0])
    segment.main([f"--image={picture}", f"--out={out}", "--model=m"])
    np.testing.assert_array_equal(decode_alpha(out), masks[0])
    np.testing.assert_array_equal(np.asarray(video.import_pillow().open(out))[..., :3], frames[0])
    assert capsys.readouterr().out == f"{out}: white, 8.3% of the picture\n"
    video.write_image(picture, frames[0] // 4)
    with pytest.raises(UserError, match="no subject was found in .*a.png: give a lower --threshold"):
        segment.main([f"--image={picture}", f"--out={tmp_path / 'b.png'}", "--model=m"])
    stub(words=True)
    with pytest.raises(UserError, match="is told the subject in words: give --subject"):
        segment.main([f"--image={picture}", f"--out={tmp_path / 'b.png'}", "--model=m"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "cut.png"]


def test_one_video(folder, tmp_path, stub, capsys):
    model, out = stub(), tmp_path / "masks/clip"
    argv = [f"--image={folder / 'run/b.mp4'}", f"--out={out}", "--model=m", "--batch=6"]
    segment.main(argv)
    segment.main(argv)
    assert masks_of(out) == [f"{k:05d}.png" for k in (2, 3, 4, 5)] and len(model.asked) == 1
    damaged(tmp_path / "bad.mp4", "text")
    with pytest.raises(UserError, match="bad.mp4 cannot be read as a video"):
        segment.main([f"--image={tmp_path / 'bad.mp4'}", f"--out={tmp_path / 'none'}", "--model=m"])
    stub(words=True)
    with pytest.raises(UserError, match="b.mp4 has no caption: give --subject"):
        segment.main([argv[0], f"--out={tmp_path / 'none'}", "--model=m"])


# Messages -----------------------------------------------------------------------------------------------------------


def test_flags_that_cannot_be_meant(tmp_path, folder, stub, capsys):
    stub()
    segment.main(["--help"])
    assert "--threshold=X" in capsys.readouterr().out
    picture, foreign, file = tmp_path / "a.png", tmp_path / "foreign", tmp_path / "file"
    video.write_image(picture, moving(1)[0][0])
    video.write_image(foreign / "a/00000.png", moving(1)[0][0])
    file.touch()
    (tmp_path / "empty").mkdir()
    data, image, model, out, to = f"--data={folder}", f"--image={picture}", "--model=m", f"--out={tmp_path / 'masks'}", f"--out={tmp_path / 'b.png'}"
    for argv, message in (
        ([model, out], "--data or --image is missing"),
        ([data, image, model, out], "is one too many"),
        ([data, out], "--model is missing"),
        ([data, model], "--out is missing"),
        ([data, model, out, "--subject= "], "--subject is empty"),
        ([data, model, out, "--threshold=1.5"], "--threshold=1.5: a probability, from 0 to 1"),
        ([data, model, out, "--threshold=-1"], "--threshold"),
        ([data, model, out, "--dtype=int8"], '--dtype must be auto, float32, float16 or bfloat16, got "int8"'),
        ([data, model, out, "--every=0"], "--every=0"),
        ([data, model, out, "--batch=0"], "--batch=0"),
        ([data, model, out, "--prompt=dog"], "there is no flag --prompt"),
        ([data, model, f"--out={foreign}"], "foreign is not empty, and not of this tool"),
        ([data, model, f"--out={folder}"], "data is not empty, and not of this tool"),
        ([data, model, f"--out={file}"], r"cannot write to .*file \(Not a directory\): choose another --out"),
        ([data, model, f"--out={file / 'masks'}"], r"cannot write to .*masks \(Not a directory\): choose another --out"),
        ([data, model, to], "name a folder, for the masks are many"),
        ([f"--data={tmp_path / 'none'}", model, out], "there is no folder .*none"),
        ([f"--data={tmp_path / 'empty'}", model, out], "holds no videos"),
        ([f"--image={tmp_path / 'c.png'}", model, to], "there is no file .*c.png"),
        ([f"--image={folder}", model, to], "a folder of them is --data"),
        ([f"--image={file}", model, to], "file cannot be read as an image"),
        ([image, model, out], r"name a file \*.png"),
        ([image, model, f"--out={tmp_path / 'b.jpg'}"], r"name a file \*.png"),
        ([image, model, f"--out={picture}"], "a.png is the picture itself: give another name"),
        ([image, model, to, "--limit=2"], "--limit goes with --data"),
        ([image, model, to, "--every=2"], "--every goes with videos"),
    ):
        with pytest.raises((UserError, ValueError), match=message):
            segment.main(argv)
        assert guarded("segment", argv, segment.main) == 2
        assert [line for line in capsys.readouterr().err.splitlines() if not line.startswith("left out")][-1].startswith("segment: ")
    assert not (tmp_path / "masks").exists() and not (tmp_path / "b.png").exists()


def test_a_damaged_record_is_not_overwritten(run, stub, tmp_path):
    model, file = stub(), tmp_path / "masks/masks.json"
    run("--limit=1")
    text = file.read_text()
    for content in (text[:-5], "[]", text.replace("magvid.masks/1", "magvid.masks/9"), text.replace('"frames"', '"pictures"')):
        file.write_text(content)
        with pytest.raises(UserError, match="masks.json cannot be read, is another file or damaged .*: delete .*masks or give another --out"):
            run()
        assert file.read_text() == content
    assert len(model.asked) == 2


def test_without_torch(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert guarded("segment", [f"--data={folder}", f"--out={tmp_path / 'masks'}", "--model=m"], segment.main) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--model needs torch, the torchvision of the same release, and transformers, which cannot be imported" in error and not (tmp_path / "masks").exists()


# Real models, tiny --------------------------------------------------------------------------------------------------

LABELS = {0: "dog", 1: "cat, kitten", 2: "grass-merged"}
NAMED = dict(id2label=LABELS, label2id={label: k for k, label in LABELS.items()})
SHORT = dict(size=dict(shortest_edge=32, longest_edge=64))  # keeps the shape of a frame, and pads it
HEADS = dict(encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=8, decoder_attention_heads=8)
SMALL = dict(encoder_feedforward_dim=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16)


def tiny(path, kind):
    """A random model of a kind, saved to path/kind."""
    from helpers_torch import torch, transformers as t

    def tokenizer():
        from tokenizers import Tokenizer, models, pre_tokenizers, processors

        words = ["<pad>", "<s>", "</s>", "<unk>", "dog", "cat", "the", "task", "is", "panoptic", "instance"]
        read = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>"))
        read.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        read.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
        special = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
        return t.PreTrainedTokenizerFast(tokenizer_object=read, model_input_names=["input_ids", "attention_mask"], **special)

    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = lambda: t.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2, out_features=stages)
    resnet = lambda: t.ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic", out_features=stages)
    detr = lambda: t.DetrConfig(d_model=64, num_queries=5, backbone_config=resnet(), use_timm_backbone=False, **HEADS, **NAMED)
    wide = dict(feature_size=32, mask_feature_size=32, hidden_dim=32)
    queries = dict(backbone_config=swin(), num_queries=5)
    torch.manual_seed(0)
    if kind == "clipseg":
        small = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
        text = dict(vocab_size=11, max_position_embeddings=12, bos_token_id=1, eos_token_id=2, pad_token_id=0, **small)
        how = dict(projection_dim=16, extract_layers=[0, 1], reduce_dim=16, decoder_num_attention_heads=2, decoder_intermediate_size=16)
        model = t.CLIPSegForImageSegmentation(t.CLIPSegConfig(text_config=text, vision_config=dict(image_size=32, patch_size=8, **small), **how))
        processor = t.CLIPSegProcessor(t.ViTImageProcessor(size=dict(height=32, width=32)), tokenizer())
    elif kind == "segformer":
        small = dict(num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 8], patch_sizes=[7, 3], strides=[4, 2])
        small |= dict(num_attention_heads=[1, 1], mlp_ratios=[1, 1], decoder_hidden_size=8)
        model = t.SegformerForSemanticSegmentation(t.SegformerConfig(**small, **NAMED))
        processor = t.SegformerImageProcessor(size=dict(height=32, width=32))
    elif kind == "mobilenet":  # whose processor cuts out the middle
        model = t.MobileNetV2ForSemanticSegmentation(t.MobileNetV2Config(depth_multiplier=0.1, **NAMED))
        processor = t.MobileNetV2ImageProcessor(size=dict(shortest_edge=40), crop_size=dict(height=32, width=32))
    elif kind == "mask2former":
        model = t.Mask2FormerForUniversalSegmentation(t.Mask2FormerConfig(**queries, **wide, **SMALL, **NAMED))
        processor = t.Mask2FormerImageProcessor(size_divisor=32, **SHORT)
    elif kind == "maskformer":
        parts = dict(backbone_config=swin(), decoder_config=detr(), fpn_feature_size=32, mask_feature_size=32)
        model = t.MaskFormerForInstanceSegmentation(t.MaskFormerConfig(**parts, **NAMED))
        processor = t.MaskFormerImageProcessor(size_divisor=32, **SHORT)
    elif kind == "oneformer":
        text = dict(text_encoder_width=32, text_encoder_num_layers=1, text_encoder_vocab_size=11, text_encoder_context_length=8)
        how = dict(hidden_dim=32, conv_dim=32, mask_dim=32, query_dec_layers=1, task_seq_len=8, max_seq_len=8)
        model = t.OneFormerForUniversalSegmentation(t.OneFormerConfig(**queries, **text, **how, **SMALL, **NAMED))
        processor = t.OneFormerProcessor(t.OneFormerImageProcessor(**SHORT), tokenizer(), task_seq_length=8, max_seq_length=8)
    else:
        model, processor = t.DetrForSegmentation(detr()), t.DetrImageProcessor(**SHORT)
    model.save_pretrained(path / kind)
    processor.save_pretrained(path / kind)
    if kind == "oneformer":  # as the published ones say; the file is on the hub
        file = path / kind / "processor_config.json"
        content = json.loads(file.read_text())
        content["image_processor"]["class_info_file"] = "coco_panoptic.json"
        file.write_text(json.dumps(content))
    return str(path / kind)


NOISE = [np.random.default_rng(k).integers(0, 256, (40, 60, 3), np.uint8) for k in range(3)]


def loaded(path, subject, threshold=0.05):
    return segment.load_model(path, "cpu", "float32", subject, threshold)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["clipseg", "segformer", "mobilenet", "mask2former", "maskformer", "oneformer", "detr"])
def test_tiny_models_end_to_end(kind, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path, out = tiny(tmp_path, kind), tmp_path / "masks"
    labelled = ["--subject=dog"] if kind in ("clipseg", "segformer", "mobilenet") else []
    argv = [f"--data={folder}", f"--model={path}", "--threshold=0.01", "--device=cpu", *labelled]
    segment.main([*argv, f"--out={out}", "--batch=4"])
    assert masks_of(out)
    for file in out.rglob("*.png"):
        assert decode_mask(file).shape == (24, 32)
    segment.main([*argv, f"--out={tmp_path / 'bf16'}", "--dtype=bfloat16", "--limit=1", "--every=6"])
    # in a batch as alone
    model = loaded(path, *["dog"] * len(labelled) or [None])
    together, alone = model(NOISE, ["dog"] * 3), [model([frame], ["dog"])[0] for frame in NOISE]
    assert [len(some) for some in together] == [len(some) for some in alone]
    for one, other in zip(sum(together, []), sum(alone, []), strict=True):
        assert one.mask.shape == (40, 60) and one.label == other.label and abs(one.score - other.score) < 1e-4
        assert (one.mask != other.mask).mean() < 0.01


@pytest.mark.full
def test_words_are_read(tmp_path):
    path = tiny(tmp_path, "clipseg")
    model = loaded(path, None, 0.5)
    assert model.words
    (dog,), (cat,) = model(NOISE[:1] * 2, ["dog", "cat " * 50])
    assert (dog.label, cat.label) == ("dog", "cat " * 50) and (dog.mask != cat.mask).any()
    assert loaded(path, None, 1.0)(NOISE[:1], ["dog"]) == [[]], "a mask without a pixel is none"


@pytest.mark.full
def test_the_whole_frame_is_seen_where_a_processor_cuts(tmp_path, monkeypatch):
    """Its border, which a square from the middle does not have."""
    from helpers_torch import transformers

    model, seen = loaded(tiny(tmp_path, "mobilenet"), "dog"), []
    forward = transformers.MobileNetV2ForSemanticSegmentation.forward
    look = lambda self, pixel_values: seen.append(pixel_values) or forward(self, pixel_values)
    monkeypatch.setattr(transformers.MobileNetV2ForSemanticSegmentation, "forward", look)
    frame = np.zeros((40, 120, 3), np.uint8)
    frame[:, 90:] = 255
    model([frame], [""])
    (pixels,) = seen[0].numpy()
    assert pixels.shape == (3, 32, 32) and (pixels[..., 28:] > 0.9).all() and (pixels[..., :20] < -0.9).all()


@pytest.mark.full
def test_instances_as_mask2former_computes_them(tmp_path):
    """Against its own processor, at the size at which that computes them."""
    from helpers_torch import torch, transformers

    rng = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=rng)
    outputs = transformers.utils.ModelOutput(class_queries_logits=4 * draw(2, 6, 4), masks_queries_logits=9 * draw(2, 6, 24, 24))
    found = segment.instances_of(outputs, None, [(384, 384)] * 2, LABELS, 0.5)
    theirs = transformers.Mask2FormerImageProcessor().post_process_instance_segmentation(
        outputs, threshold=0.5, target_sizes=[(384, 384)] * 2, return_binary_maps=True
    )
    assert sum(map(len, found)) > 3
    for ours, other in zip(found, theirs, strict=True):
        pairs = zip(other["segmentation"], other["segments_info"], strict=True)
        expected = sorted(((info["score"], LABELS[info["label_id"]], mask.numpy() > 0) for mask, info in pairs), key=lambda x: x[0])
        for one, (score, label, mask) in zip(sorted(ours, key=lambda x: x.score), expected, strict=True):
            assert one.label == label and abs(one.score - score) < 1e-5
            np.testing.assert_array_equal(one.mask, mask)


@pytest.mark.full
def test_instances_by_hand():
    """Overlapping ones are whole, a lone one is no larger than its mask, what was padded counts for nothing."""
    from helpers_torch import torch

    masks = torch.full((1, 3, 8, 12), -9.0)
    masks[0, 0, 2:6, 2:8], masks[0, 1, 2:6, 6:12], masks[0, 2] = 9, 9, 9
    classes = torch.tensor([[[9.0, 0, 0, 0], [0, 9.0, 0, 0], [0, 0, 0, 9.0]]])
    outputs = dict(logits=classes, pred_masks=masks)
    ((dog, cat),) = segment.instances_of(outputs, None, [(8, 12)], LABELS, 0.5)
    assert (dog.label, cat.label) == ("dog", "cat, kitten") and 0.998 < dog.score < 1
    np.testing.assert_array_equal([dog.mask, cat.mask], [box(2, 6, 2, 8), box(2, 6, 6, 12)])
    pixel_mask = torch.zeros((1, 32, 48), dtype=torch.int64)
    pixel_mask[:, :24, :32] = 1
    outputs["logits"] = classes[:, [0, 2, 2]]
    ((dog,),) = segment.instances_of(outputs, pixel_mask, [(6, 8)], LABELS, 0.5)
    np.testing.assert_array_equal(dog.mask, box(2, 6, 2, 8, (6, 8)))
    assert segment.instances_of(outputs, None, [(8, 12)], LABELS, 0.9999) == [[]]


@pytest.mark.full
def test_a_label_is_all_of_its_instances(tmp_path, monkeypatch):
    path = tiny(tmp_path, "mask2former")
    two = [[Instance(box(0, 2, 0, 2), "cat, kitten", 0.9), Instance(box(4, 6, 4, 6), "cat, kitten", 0.6), Instance(box(3, 4, 3, 4), "dog")]]
    monkeypatch.setattr(segment, "instances_of", lambda *args: two)
    ((found,),) = loaded(path, "kitten")(NOISE[:1], [""])
    np.testing.assert_array_equal(found.mask, box(0, 2, 0, 2) | box(4, 6, 4, 6))
    assert loaded(path, "grass-merged")(NOISE[:1], [""]) == [[]] and len(loaded(path, None)(NOISE[:1], [""])[0]) == 3


@pytest.mark.full
def test_models_that_are_not_there(tmp_path, monkeypatch, capsys):
    from helpers_torch import transformers

    picture = tmp_path / "a.png"
    video.write_image(picture, NOISE[0])
    argv = [f"--image={picture}", f"--out={tmp_path / 'out.png'}"]

    def error(model, *more):
        assert guarded("segment", [*argv, f"--model={model}", *more], segment.main) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("segment:")]
        assert len(lines) == 1
        return lines[0]

    assert "there is no folder" in error(tmp_path / "none") and "there is no folder none/of/it" in error("none/of/it")
    (tmp_path / "empty").mkdir()
    assert "empty holds no model that segments pictures, or not all of it" in error(tmp_path / "empty")
    config = transformers.CLIPConfig()
    config.architectures = ["CLIPModel"]
    config.save_pretrained(tmp_path / "clip")
    message = error(tmp_path / "clip")
    assert "clip is a CLIPModel, which does not segment as this tool needs it: give one of CLIPSegForImageSegmentation, Mask2Former" in message
    config.architectures = None
    config.save_pretrained(tmp_path / "clip")
    assert "clip is a model of type clip, which does not segment" in error(tmp_path / "clip")
    path = pathlib.Path(tiny(tmp_path, "segformer"))
    assert 'segformer gives every pixel a label: say by --subject which is the subject\'s; it has "dog", "cat, kitten"' in error(path)
    assert 'segformer has no label "grass" (--subject); near it are "grass-merged"' in error(path, "--subject=grass")
    assert "--device=cuda:99 cannot be used" in error(path, "--subject=dog", "--device=cuda:99")
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:5000])
    assert "segformer holds no model that segments pictures, or not all of it" in error(path, "--subject=dog")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # as it is without a network
    message = error("nobody/no-such-model")
    assert "the model nobody/no-such-model cannot be had" in message and "give --model=FOLDER" in message
    assert not (tmp_path / "out.png").exists()
