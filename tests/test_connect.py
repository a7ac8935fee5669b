"""Clips joined into one: which frames are shown and made, and what is refused before anything is generated."""

import dataclasses
import pathlib

import numpy as np
import pytest
import tiny_pipeline

from magvid import connect
from magvid.connect import Clip, Options, Window, joined
from magvid.data.folder import VideoFolder
from magvid.generator import Generator
from magvid.runs import ClipFormat
from magvid.types import UserError
from magvid.video import read_video, write_video

PARTS = tiny_pipeline.PARTS | dict(vision=dict(target="tiny_diffusion:Vision"))
PLAIN = dict(target="magvid.objectives.denoise:Sampling", steps=2)
STARTS = range(5, 16)  # of a window of 32 frames with a gap of 12


def numbered(*lengths: int) -> list[Clip]:
    """Clips whose frames are (number of the clip, number of the frame)."""
    return [Clip(f"clip{i}", lambda i=i, n=n: iter([(i, k) for k in range(n)])) for i, n in enumerate(lengths)]


def join(clips, pairs, starts=STARTS, t=32):
    shown: list[Window] = []

    def fill(window):
        shown.append(window)
        return [f"made{window.number}"] * window.length

    return list(joined(clips, pairs, [starts] * len(pairs), t, fill, 8)), shown


# Which frames ---------------------------------------------------------------------------------------------------------


def test_two_clips_of_sixteen_frames_are_the_papers_window():
    video, (window,) = join(numbered(16, 16), [(6, 6)])
    assert window.before == [(0, k) for k in range(10)] and window.after == [(1, k) for k in range(6, 16)]
    assert window.length == 12 and len(video) == 32
    assert video == [*window.before, *["made0"] * 12, *window.after]


def test_all_other_frames_stay():
    """Long, short and odd: every frame that is not made anew is there once, in order."""
    lengths, pairs = (100, 45, 38, 20), [(6, 6), (3, 4), (5, 8)]
    starts = [range(max(5, 17 - a - b), min(15, 27 - a - b) + 1) for a, b in pairs]
    clips, shown = numbered(*lengths), []
    fill = lambda window: shown.append(window) or ["made"] * window.length
    video = list(joined(clips, pairs, starts, 32, fill, 8))
    kept = []
    for i, n in enumerate(lengths):
        first = pairs[i - 1][1] if i else 0
        last = n - (pairs[i][0] if i < len(pairs) else 0)
        kept += [(i, k) for k in range(first, last)]
    assert [frame for frame in video if frame != "made"] == kept and len(video) == sum(lengths)
    for window, (a, b) in zip(shown, pairs, strict=True):
        assert len(window.before) + window.length + len(window.after) == 32 and window.length == a + b
        assert abs(2 * len(window.before) + window.length - 32) <= 1  # in the middle


def test_a_short_clip_in_the_middle_is_shown_what_was_made_before_it():
    video, (_, second) = join(numbered(40, 16, 40), [(6, 6), (6, 6)])
    assert second.before == [(1, k) for k in range(6, 10)] or second.before[-4:] == [(1, k) for k in range(6, 10)]
    assert "made0" in second.before and len(video) == 96


def test_a_gap_moves_to_where_the_frames_are():
    _, (window,) = join(numbered(12, 40), [(6, 6)])
    assert len(window.before) == 6 and len(window.after) == 14
    _, (window,) = join(numbered(40, 12), [(6, 6)])
    assert len(window.before) == 14 and len(window.after) == 6


def test_a_clip_of_which_nothing_would_be_left_is_refused():
    with pytest.raises(UserError, match="clip1 has 12 frames, read at 8 per second, and 12 of them are made anew, so that none would be left"):
        join(numbered(40, 12, 40), [(6, 6), (6, 6)], starts=range(5, 15))
    video, _ = join(numbered(40, 13, 40), [(6, 6), (6, 6)])
    assert [frame for frame in video if frame[0] == 1] == [(1, 6)]


@pytest.mark.parametrize(
    "lengths, has, needs",
    [
        ((10, 40), "clip0 has 4 frames", "at least 5 of it"),
        ((40, 10), "clip1 has 4 frames", "at least 5 of it"),
        ((3, 40), "clip0 has 0 frames", "at least 5 of it"),
        ((7, 7), "clip0 has 1 frame", "at least 5 of it"),
        ((15, 15), "clip0 and clip1 have 9 and 9 frames", "20"),
    ],
)
def test_clips_that_are_too_short_are_told_what_is_missing(lengths, has, needs):
    told = rf"^{has} to show beside a gap of 12 \(read at 8 per second\); the model needs {needs}: take longer clips"
    with pytest.raises(UserError, match=told):
        join(numbered(*lengths), [(6, 6)])


def test_no_more_is_held_than_a_window_may_need():
    """Of endless clips the first frames come out at once."""
    count = 0

    def endless():
        nonlocal count
        while True:
            count += 1
            yield count

    stream = joined([Clip("a", endless), Clip("b", endless)], [(6, 6)], [STARTS], 32, lambda w: [], 8)
    for k in range(1000):
        assert next(stream) == k + 1
    assert count <= 1000 + 6 + 15 + 1


def test_many_short_clips_are_not_held():
    """At every join all is out but what the window shows and what it gives way to."""
    given, held = 0, []
    fill = lambda window: held.append(16 * (window.number + 1) - given) or [0] * window.length
    for _ in joined(numbered(*[16] * 50), [(6, 6)] * 49, [STARTS] * 49, 32, fill, 8):
        given += 1
    assert given == 50 * 16 and max(held) <= 6 + 15


# Options --------------------------------------------------------------------------------------------------------------


def options(**changes) -> Options:
    return Options(**(dict(clips=["a.mp4", "b.mp4", "c.mp4"], out="x.mp4") | changes))


def test_pairs_and_texts_for_each_join():
    assert options(refine="6,6").pairs(8) == [(6, 6), (6, 6)] and options(refine="6,6,3,4").pairs(8) == [(6, 6), (3, 4)]
    assert options().pairs(8) == [(4, 4), (4, 4)] and options().pairs(7) == [(4, 3), (4, 3)]
    assert options().texts() == ["", ""] and options().texts("horse movement") == ["horse movement"] * 2
    assert options(prompt="a").texts("own") == ["a", "a"] and options(prompt="a | b").texts() == ["a", "b"]
    assert options(prompt="run|jump|eat").texts() == ["run, then jump", "jump, then eat"]
    assert options(clips=["a.mp4", "b.mp4"], prompt="run|eat").texts() == ["run, then eat"] and options(prompt="").texts() == ["", ""]
    script = dict(clips=[], actions="run", image="a.png", prompt="run|jump|eat")
    assert options(**script).texts() == ["run, then jump", "jump, then eat"] and options(**script).count == 3
    assert options(**script).texts("tiger movement") == ["tiger movement"] * 2


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(clips=["a.mp4"]), "there are two or more clips to join, and 1 is given"),
        (dict(clips=[]), "and 0 are given"),
        (dict(refine="6"), "give two numbers, or two for each of the 2 joins"),
        (dict(refine="6,6,6"), "give two numbers"),
        (dict(refine="6;6"), "give two numbers, such as 6,6"),
        (dict(refine="-1,6"), "give two numbers, such as 6,6"),
        (dict(prompt="a|b|c|d"), "has 4 texts: give one, 2 .one per join. or 3"),
        (dict(clips=["a.mp4", "b.mp4"], prompt="a|b|c"), "has 3 texts: give one, 2 .one per clip."),
        (dict(prompt="a|"), "has an empty text"),
        (dict(out="x.txt"), r"name it \*.mp4 or \*.webm or \*.gif"),
        (dict(out="./b.mp4"), "which is shown: name another file"),
        (dict(clips=["~/a.mp4", "b.mp4"], out=f"{pathlib.Path.home()}/a.mp4"), "which is shown: name another file"),
        (dict(size="32"), "give height and width in pixels"),
        (dict(fps=0), "fps must lie between"),
        (dict(fps=float("nan")), "fps must lie between"),
        (dict(actions="run"), "--actions and --image go together"),
        (dict(actions="run", image="a.png", prompt="a|b"), "and no files"),
        (dict(clips=[], actions="run", image="a.png"), 'give one action each in --prompt="run|jump|eat"'),
    ],
)
def test_what_cannot_be_meant_is_named(changes, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        options(**changes)


# Videos ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return tiny_pipeline.recipe(tmp_path_factory.mktemp("mavin"), PARTS, tiny_pipeline.infilling)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three files of different size, length, rate and format."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    for name, shape, rate in (("a.mp4", (12, 32, 48), 5), ("b.webm", (25, 50, 40), 12.5), ("c.gif", (30, 24, 24), 20)):
        write_video(folder / name, rng.integers(0, 256, (*shape, 3)).astype(np.uint8), rate)
    return folder


def test_files_of_all_kinds_are_joined(recipe, clips, tmp_path, capsys):
    """What is written are the frames as they are read, and the model's own in the gaps."""
    written = {}
    files = [str(clips / name) for name in ("a.mp4", "b.webm", "c.gif")]
    chosen = Options(files, str(tmp_path / "out.webm"), refine="1,2,2,2", prompt="red disc|blue disc", seed=3)
    write = lambda path, frames, fps: written.update(path=path, frames=np.stack(list(frames)), fps=fps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connect, "write_video", write)
        assert connect.connect(recipe, chosen, trust=True) == [tmp_path / "out.webm"]
    read = [np.stack(list(connect.file_clip(f, recipe.clip, 5.0).frames())) for f in files]
    assert [len(r) for r in read] == [12, 10, 7] and written["fps"] == 5
    frames = written["frames"]
    np.testing.assert_array_equal(frames[:11], read[0][:11])
    np.testing.assert_array_equal(frames[14:20], read[1][2:8])
    np.testing.assert_array_equal(frames[24:], read[2][2:])
    assert len(frames) == 29 and "joined a.mp4 and b.webm: 3 frames made" in capsys.readouterr().out

    tokenizer = connect.conditions.find_tokenizer(recipe.config)
    like = connect.conditions.blank(recipe.clip) | connect.conditions.words(tokenizer, "")
    model = Generator.open(recipe, batch=1, like=like, trust=True)
    window, known = np.zeros((1, 8, 16, 24, 3), np.uint8), np.ones((1, 8), bool)
    window[0, :2], window[0, 5:], known[0, 2:5] = read[0][9:11], read[1][2:5], False
    rows = dict(video=window, known=known, index=np.array([0]), task=np.zeros(1, np.int32), label=np.zeros(1, np.int32))
    told = lambda text: dict(text_ids=tokenizer.encode(text)[None], null_ids=tokenizer.encode("")[None])
    np.testing.assert_array_equal(model.generate(rows | told("red disc"), 3)[0, 2:5], frames[11:14])
    assert np.any(model.generate(rows | told("blue disc"), 3)[0, 2:5] != frames[11:14])
    assert np.any(model.generate(rows | told("red disc"), 4)[0, 2:5] != frames[11:14])


@pytest.mark.parametrize("rate, stride", [(30, 2), (12, 2), (8, 1), (6, 1), (24, 2)])
def test_files_are_read_as_training_reads_them(rate, stride, tmp_path):
    """MAVIN's rule of frame rates, and pictures squeezed to the clips' shape: frame by frame what the source shows."""
    video = np.random.default_rng(rate).integers(0, 256, (30, 24, 48, 3)).astype(np.uint8)
    write_video(tmp_path / "a.webm", video, rate)
    source = VideoFolder(tmp_path, 8, 16, 16, fps=8, most_stride=2, keep_aspect=False, crop="centre")
    shown = source[0]["video"]
    clip = ClipFormat.of(source, shown.shape)
    assert clip.shown_rate(rate) == rate / stride and clip.reading(rate) == (None, stride)
    fps = connect._rate(clip, [str(tmp_path / "a.webm")])
    frames = np.stack(list(connect.file_clip(str(tmp_path / "a.webm"), clip, fps).frames()))
    places = [i for i in range(len(frames) - 7) if np.array_equal(frames[i : i + 8], shown)]
    whole = connect.conditions.of_video(clip, str(tmp_path / "a.webm"), 1, None, 0.0, 8, 8)
    assert fps == pytest.approx(rate / stride, rel=1e-3) and whole.fps == pytest.approx(rate / stride, rel=1e-3)
    np.testing.assert_array_equal(whole.rows["video"][0], frames[:8])
    assert len(places) == 1  # the middle window, which begins at an even frame


def test_the_same_command_gives_the_same_video(recipe, clips, tmp_path):
    files = [str(clips / "a.mp4"), str(clips / "b.webm")]
    for name in ("1.mp4", "2.mp4"):
        connect.connect(recipe, Options(files, str(tmp_path / name), refine="2,2", size="32x48", fps=8), trust=True)
    (one, rate), (two, _) = (read_video(tmp_path / name) for name in ("1.mp4", "2.mp4"))
    assert one.shape == (19 + 16, 32, 48, 3) and rate == 8
    np.testing.assert_array_equal(one, two)


BAD = {
    "gap": (dict(refine="3,2"), "--refine=3,2: a gap of 5 frames is out of range: this model fills gaps of 1 to 4 of 8 frames"),
    "no gap": (dict(refine="0,0"), "a gap of 0 frames is out of range"),
    "missing": (dict(clips=["{a}", "nowhere.mp4"]), "there is no video nowhere.mp4"),
    "a folder": (dict(clips=["{a}", "."]), ". is a folder: name a video in it"),
    "folder": (dict(out="{a}/x.mp4"), "cannot write to"),
    "short": (dict(clips=["{a}", "{short}"]), "^short.mp4 has 1 frame to show beside a gap of 4"),
    "damaged": (dict(clips=["{a}", "{damaged}"]), "damaged.mp4"),
    "no video": (dict(clips=["{a}", "{text}"]), "cannot be read as a video"),
    "size": (dict(size="31x48"), "31x48 pixels: the autoencoder takes multiples of 2"),
    "texts": (dict(prompt="purple red cube"), '--prompt: the vocabulary of 4 words lacks "purple" and "cube"'),
    "negative": (dict(negative="blob"), '--negative: the vocabulary of 4 words lacks "blob"'),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_anything_is_made(case, recipe, clips, tmp_path):
    places = dict(a=str(clips / "a.mp4"), short=str(tmp_path / "short.mp4"), damaged=str(tmp_path / "damaged.mp4"), text=str(tmp_path / "text.mp4"))
    write_video(places["short"], np.zeros((3, 16, 24, 3), np.uint8), 5)
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "damaged.mp4").write_bytes((clips / "a.mp4").read_bytes()[:900])
    changes, message = BAD[case]
    changes = {k: [v.format(**places) for v in x] if isinstance(x, list) else x.format(**places) for k, x in changes.items()}
    fields = dict(clips=[places["a"], str(clips / "b.webm")], out=str(tmp_path / "out" / "x.mp4"), refine="2,2") | changes
    with pytest.raises((UserError, ValueError), match=message):
        connect.connect(recipe, Options(**fields), trust=True)
    assert not (tmp_path / "out").exists()


def test_the_usual_gap_is_the_runs_own(recipe, clips, tmp_path, capsys):
    """And what guidance leads away from is refused where there is none."""
    files = [str(clips / "a.mp4"), str(clips / "b.webm")]
    connect.connect(recipe, Options(files, str(tmp_path / "x.gif")), trust=True)
    assert "3 frames made" in capsys.readouterr().out
    plain = tiny_pipeline.recipe(tmp_path / "plain", PARTS, lambda parts: tiny_pipeline.infilling(parts) | dict(sampling=PLAIN))
    with pytest.raises(UserError, match="--negative: .* is sampled without guidance.*give --guidance=G as well"):
        connect.connect(plain, Options(files, str(tmp_path / "y.gif"), negative="red"), trust=True)
    connect.connect(plain, Options(files, str(tmp_path / "y.gif"), negative="red", guidance=3.0), trust=True)
    connect.connect(plain, Options(files, str(tmp_path / "z.gif")), trust=True)
    guided, unguided = (read_video(tmp_path / name)[0] for name in ("y.gif", "z.gif"))
    assert guided.shape == unguided.shape and np.any(guided != unguided)


def test_a_run_without_gaps_is_refused(tmp_path, clips):
    plain = tiny_pipeline.recipe(tmp_path)
    with pytest.raises(UserError, match=r"fills no gaps between clips: give a run of configs/mavin_\*.py"):
        connect.connect(plain, Options([str(clips / "a.mp4")] * 2, str(tmp_path / "x.mp4")), trust=True)


OPEN = connect.ActionScript.open


def opener(run):
    """ActionScript.open of a run that is no folder."""

    def opened(options, trust):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(connect.runs, "open_run", lambda path, trust: run)
            return OPEN(options, trust)

    return opened


def test_an_action_script_makes_its_clips(recipe, clips, tmp_path, capsys):
    """Each action goes on from the picture; then they are joined. The model of actions is given one frame."""
    from PIL import Image

    picture = np.random.default_rng(1).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    action = lambda parts: {
        **tiny_pipeline.infilling(parts),
        "noising": dict(target="magvid.diffusion.mavin:First"),
        "tasks": dict(TI2V=[]),
    }
    run = tiny_pipeline.recipe(tmp_path / "action", PARTS, action)
    chosen = Options([], str(tmp_path / "x.mp4"), refine="2,2", actions="the run", image=str(tmp_path / "a.png"), prompt="red|blue|disc")
    with pytest.MonkeyPatch.context() as patch:
        of_all = dict(target="magvid.data.text:Template", template="red disc")
        patch.setitem(recipe.config["data"]["train"], "transforms", [of_all, *recipe.config["data"]["train"]["transforms"]])
        patch.setattr(connect.ActionScript, "open", opened := opener(run))
        made = opened(chosen, True).make(chosen, dataclasses.replace(recipe.clip, height=8, width=12), True)
        for image, message in (("a.png,b.png", "--image names 2 pictures for 3 actions"), ("gone.png", "there is no picture gone.png")):
            with pytest.raises(UserError, match=message):
                opened(dataclasses.replace(chosen, image=image), True)
        with pytest.raises(ValueError, match="a gap of 5 frames is out of range"):  # before anything is made
            connect.connect(recipe, dataclasses.replace(chosen, refine="3,2"), trust=True)
        with pytest.raises(UserError, match='"blue" has 8 frames, read at 5 per second, and 8 of them are made anew'):
            connect.connect(recipe, dataclasses.replace(chosen, refine="0,4,4,0"), trust=True)
        assert "made" not in capsys.readouterr().out.replace('made "red"', "", 1).replace('made "blue"', "", 1).replace('made "disc"', "", 1)
        connect.connect(recipe, chosen, trust=True)
        assert read_video(tmp_path / "x.mp4")[0].shape == (24, 16, 24, 3)
        patch.setattr(connect.ActionScript, "open", opener(recipe))
        with pytest.raises(UserError, match="does not go on from a first frame"):
            connect.connect(recipe, chosen, trust=True)
    frames = [np.stack(list(clip.frames())) for clip in made]
    assert [f.shape for f in frames] == [(8, 8, 12, 3)] * 3 and np.any(frames[0] != frames[1])
    assert 'made "blue": 8 frames' in capsys.readouterr().out
