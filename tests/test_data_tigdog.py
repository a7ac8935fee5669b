"""magvid.data.tigdog: a tiny archive laid out as the data set's README says."""

import pickle

import numpy as np
import pytest
import scipy.io
from make_videos import numbered, numbers
from PIL import Image

from magvid.data.motion import Measured, Motion, save
from magvid.data.tigdog import TigDog, read_ranges
from magvid.types import UserError

NAMES = "behaviors = {'walking', 'turning_head', 'blink'};\n"
RANGES = np.array([[4, 1, 8], [9, 9, 14], [11, 15, 17]], np.uint16)
WALK = [[1], [1, 2], [1], [1], [1], [], [2, 3], [2]]  # of the eight frames of shot 4


def annotate(archive, shot, behaviors):
    cells = np.empty((len(behaviors), 1), object)
    for k, ids in enumerate(behaviors):
        cells[k, 0] = np.array([ids], np.uint8) if ids else np.zeros((0, 0))
    content = dict(annotations=cells, numAnnotations=[len(ids) for ids in behaviors])
    scipy.io.savemat(archive / f"behaviors/tiger/{shot}.mat", content)


@pytest.fixture
def archive(tmp_path):
    for folder in ("tiger", "ranges/tiger", "behaviors/tiger"):
        (tmp_path / folder).mkdir(parents=True)
    for k, frame in enumerate(numbered(17, 24, 32), 1):
        Image.fromarray(frame).save(tmp_path / f"tiger/{k:08d}.jpg", quality=95)
    scipy.io.savemat(tmp_path / "ranges/tiger/ranges.mat", {"ranges": RANGES})
    (tmp_path / "behaviors/tiger/behaviors.m").write_text(NAMES)
    annotate(tmp_path, 4, WALK)
    annotate(tmp_path, 11, [[], [], []])
    return tmp_path


def test_shots_and_what_the_animal_does(archive):
    source = TigDog(archive, 3, 16, 16)
    assert source.files == ["tiger/11", "tiger/4", "tiger/9"] and not source.bad and source.fps is None
    assert source.classes == ("nothing", "walking", "turning head", "blink")
    told = [{k: v for k, v in record.items() if k != "video"} for record in source]
    assert [record.pop("digest") for record in told] == [source.whole(i)[1] for i in range(3)]
    assert told == [
        dict(label=0, action="nothing", text="tiger", file="tiger/11"),
        dict(label=1, action="walking", text="tiger walking", file="tiger/4"),
        dict(label=0, action="nothing", text="tiger", file="tiger/9"),
    ]
    assert [numbers(record["video"]) for record in source] == [[14, 15, 16], [3, 4, 5], [10, 11, 12]]
    assert source[0]["video"].shape == (3, 16, 16, 3) and source[0]["label"].dtype == np.int32


def test_the_action_is_that_of_the_clip(archive):
    source = TigDog(archive, 3, 16, 16, crop="centre", windows=6)
    found = [source[i]["action"] for i in range(1, 18, 3)]  # first frames 0, 1, ..., 5 of shot 4
    assert found == ["walking", "walking", "walking", "walking", "nothing", "turning head"]
    strided = TigDog(archive, 4, 16, 16, stride=2)
    assert strided.files == ["tiger/4"] and strided.bad["tiger/9"] == "too short: 6 frames, a clip needs 7"
    assert numbers(strided[0]["video"]) == [1, 3, 5, 7] and strided[0]["label"] == 1


def test_random_clips_repeat_exactly(archive):
    source = TigDog(archive, 2, 16, 16)
    copy = pickle.loads(pickle.dumps(source))
    starts = [numbers(source.read(1, np.random.default_rng(seed))["video"])[0] for seed in range(40)]
    assert set(starts) == set(range(7))
    assert starts == [numbers(copy.read(1, np.random.default_rng(seed))["video"])[0] for seed in range(40)]


def test_split_and_fingerprint(archive):
    of = lambda **options: TigDog(archive, 2, 16, 16, **options)
    assert sorted(of(split="train").files + of(split="validation").files) == of().files
    prints = [of().fingerprint, of(split="train").fingerprint, of(stride=2).fingerprint, of(keep_aspect=False).fingerprint]
    Image.fromarray(np.zeros((240, 320, 3), np.uint8)).save(archive / "tiger/00000001.jpg")
    assert len({*prints, of().fingerprint}) == 5


def test_only_windows_that_are_allowed(archive):
    digest = TigDog(archive, 2, 16, 16).whole(1)[1]
    ssim = np.array([1, 1, 1, 0, 1, 1, 1], float)
    save(archive / "m.json", {"size": [16, 16], "flow": None}, {"tiger/4": Measured(digest, ssim, None)})
    source = TigDog(archive, 4, 16, 16, motion=Motion(archive / "m.json"))
    assert source.files == ["tiger/4"] and source.bad["tiger/9"].startswith("is not in")
    assert {numbers(source.read(0, np.random.default_rng(seed))["video"])[0] for seed in range(20)} == {0, 4}


@pytest.mark.parametrize(
    "text",
    [
        NAMES,
        "% what the ids mean\nbehaviors{1} = 'walking';\nbehaviors{3} = 'blink';\nbehaviors{2} = 'turning_head';\n",
        '1 = "walking"\n2 = "turning_head"\n3 = "blink"\n',
        "% 1 walking\n% 2 turning_head\n% 3 blink\n",
        "names = {...\n  'walking', ...\n  'turning_head', ...\n  'blink'};\n",
    ],
)
def test_names_of_behaviours(archive, text):
    (archive / "behaviors/tiger/behaviors.m").write_text(text)
    assert TigDog(archive, 3, 16, 16).classes == ("nothing", "walking", "turning head", "blink")


@pytest.mark.parametrize("text", ["", "walking = 1;\nturning_head = 2;\n", "1 = walking\n3 = blink\n", "% 12 behaviors\nx = 1;"])
def test_names_that_are_not_understood(archive, text):
    (archive / "behaviors/tiger/behaviors.m").write_text(text)
    with pytest.raises(UserError, match="behaviors.m is not understood: expected a name for each of the ids 1, 2, "):
        TigDog(archive, 3, 16, 16)
    source = TigDog(archive, 3, 16, 16, behaviors=["walk", "turn_head", "blink"])
    assert source[1]["action"] == "walk" and source.classes[2] == "turn head"


def test_an_archive_without_behaviours(archive):
    for file in (archive / "behaviors/tiger").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="there is no file .*behaviors.m, which names the behaviours"):
        TigDog(archive, 3, 16, 16)
    (archive / "behaviors/tiger").rmdir()
    source = TigDog(archive, 3, 16, 16)
    assert source.classes == ("nothing",) and source[1]["text"] == "tiger"


def test_shots_that_are_no_good_are_named(archive, caplog):
    (archive / "tiger/00000010.jpg").unlink()
    (archive / "tiger/00000012.jpg").write_bytes(b"")
    annotate(archive, 4, WALK[:-1])
    source = TigDog(archive, 3, 16, 16)
    assert source.files == ["tiger/11"]
    assert source.bad["tiger/9"] == "2 of its frames are missing or empty, such as 00000010.jpg"
    assert source.bad["tiger/4"].endswith("behaviors/tiger/4.mat has 7 annotations for 8 frames")
    assert "2 of 3 shots are left out" in caplog.text
    annotate(archive, 4, [[7], *WALK[1:]])
    assert "has behaviour 7, of 3 with a name" in TigDog(archive, 3, 16, 16).bad["tiger/4"]
    scipy.io.savemat(archive / "behaviors/tiger/4.mat", {"landmarks": [1]})
    assert "4.mat has no `annotations`; it has landmarks" in TigDog(archive, 3, 16, 16).bad["tiger/4"]
    (archive / "behaviors/tiger/4.mat").write_bytes(b"junk")
    assert "cannot be read as a .mat file" in TigDog(archive, 3, 16, 16).bad["tiger/4"]
    with pytest.raises(UserError, match="none of the 3 shots in .* is usable: .*too short: 3 frames, a clip needs 5"):
        TigDog(archive, 5, 16, 16)


def test_a_frame_that_breaks_later(archive):
    source = TigDog(archive, 3, 16, 16)
    (archive / "tiger/00000016.jpg").write_bytes(b"junk")
    assert source[0]["file"] == "tiger/4"


def test_another_layout_is_named(archive):
    with pytest.raises(UserError, match=r"there is no folder .*/horse: put TigDog's frames \(horse.tar.gz\) there"):
        TigDog(archive, 3, 16, 16, animal="horse")
    file = archive / "ranges/tiger/ranges.mat"
    for content, message in (
        ({"ranges": RANGES[:, :2]}, r"has shape \(3, 2\), type uint16: expected numbers \(shots, 3\)"),
        ({"ranges": np.array([[4, 8, 1]])}, "shot 4 goes from frame 8 to 1"),
        ({"videoIntervals": RANGES}, "has no `ranges`; it has videoIntervals"),
    ):
        scipy.io.savemat(file, content)
        with pytest.raises(UserError, match=message):
            read_ranges(file)
    file.unlink()
    with pytest.raises(UserError, match="there is no file .*ranges.mat: `path` is the folder behaviorDiscovery2.0"):
        TigDog(archive, 3, 16, 16)
