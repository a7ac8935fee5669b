"""magvid.data.bridge: a tiny archive laid out as the public one."""

import hashlib
import json
import pickle

import numpy as np
import pytest
from make_videos import numbered, numbers
from PIL import Image

from magvid.data.bridge import Bridge
from magvid.types import UserError

V1 = "bridge_data_v1/berkeley/toykitchen1/put_banana_on_plate/2021-08-01_10-00-00/raw/traj_group0"
V2 = "bridge_data_v2/datacol2_toykitchen7/drawer_pnp/01/2023-04-19_09-18-15/raw/traj_group0"
A, B, C = f"{V1}/traj0", f"{V2}/traj0", f"{V2}/traj1"


def trajectory(archive, name, frames, text=None, cameras=(0,)):
    for camera in cameras:
        folder = archive / name / f"images{camera}"
        folder.mkdir(parents=True)
        for k, frame in enumerate(numbered(frames + camera)[camera:]):
            Image.fromarray(frame).save(folder / f"im_{k}.jpg", quality=95)
    (archive / name).mkdir(parents=True, exist_ok=True)
    (archive / name / "obs_dict.pkl").write_bytes(b"not read")
    if text is not None:
        (archive / name / "lang.txt").write_text(text)


@pytest.fixture
def archive(tmp_path):
    trajectory(tmp_path, A, 12, "Put banana  on plate.\nconfidence: 0.9\n")
    trajectory(tmp_path, B, 5, "open the drawer\n", cameras=(0, 2))
    trajectory(tmp_path, C, 8, "put the pot into the drawer")
    return tmp_path


def test_trajectories_and_their_instructions(archive):
    source = Bridge(archive, 4, 16, 16)
    assert source.files == [A, B, C] and not source.bad and source.fps is None
    assert source.classes == ("drawer_pnp", "put_banana_on_plate")
    told = [{k: v for k, v in record.items() if k not in ("video", "digest")} for record in source]
    assert told == [
        dict(label=1, text="put banana on plate", file=A),
        dict(label=0, text="open the drawer", file=B),
        dict(label=0, text="put the pot into the drawer", file=C),
    ]
    assert source[0]["video"].shape == (4, 16, 16, 3) and source[0]["label"].dtype == np.int32
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint and copy[1]["text"] == "open the drawer"


def test_clips_show_the_whole_trajectory(archive):
    """In the order of the frames' numbers: im_10.jpg comes after im_9.jpg."""
    source = Bridge(archive, 4, 16, 16)
    shown = [[0, 4, 7, 11], [0, 1, 3, 4], [0, 2, 5, 7]]
    assert [numbers(record["video"]) for record in source] == shown
    assert [numbers(source.read(i, np.random.default_rng(i))["video"]) for i in range(3)] == shown
    assert numbers(Bridge(archive, 12, 16, 16)[0]["video"]) == list(range(12))


def test_a_part_of_a_trajectory(archive):
    source = Bridge(archive, 3, 16, 16, spread=False, stride=2, crop="centre", windows=2)
    assert [numbers(source[i]["video"]) for i in (0, 1, 3)] == [[0, 2, 4], [0, 2, 4], [7, 9, 11]]
    drawn = Bridge(archive, 3, 16, 16, spread=False)
    assert {numbers(drawn.read(1, np.random.default_rng(seed))["video"])[0] for seed in range(30)} == {0, 1, 2}
    with pytest.raises(ValueError, match="spread: a clip is of the whole file, so stride must be 1"):
        Bridge(archive, 3, 16, 16, stride=2)


def test_another_camera(archive):
    source = Bridge(archive, 4, 16, 16, camera=2)
    assert source.files == [B] and source.bad == {A: "has no images2", C: "has no images2"}
    assert numbers(source[0]["video"]) == [2, 3, 5, 6]
    assert source.classes == Bridge(archive, 4, 16, 16).classes


def test_splits_are_disjoint(archive):
    of = lambda split, **options: Bridge(archive, 4, 16, 16, split=split, **options)
    for k in range(2, 8):
        trajectory(archive, f"{V2}/traj{k}", 4, f"push number {k}")
    train, held_out = of("train").files, of("validation").files
    assert sorted(train + held_out) == of(None).files and train and held_out
    assert len(of("validation", holdout=0.9).files) > len(held_out)
    assert of("train").classes == of("validation").classes == of(None).classes
    inside = lambda split: [f"{V2.split('/')[0]}/{name}" for name in Bridge(archive / "bridge_data_v2", 4, 16, 16, split=split).files]
    assert set(inside("validation")) <= set(held_out) and set(inside("train")) <= set(train)  # from wherever they are looked for
    with pytest.raises(ValueError, match="split must be \"train\", \"validation\" or None, got 'test'"):
        of("test")


def test_any_folder_within_the_archive(archive):
    source = Bridge(archive / V2, 4, 16, 16)
    assert source.files == ["traj0", "traj1"] and source.classes == ("drawer_pnp",)


def test_digest_and_fingerprint(archive):
    of = lambda **options: Bridge(archive, 4, 16, 16, **options)
    sizes = [(f"im_{k}.jpg", (archive / B / f"images0/im_{k}.jpg").stat().st_size) for k in range(5)]
    before = [record["digest"] for record in of()]
    assert before[1] == hashlib.sha256(json.dumps(sizes).encode()).hexdigest()
    prints = [of(), of(spread=False), of(camera=2), of(split="train"), of(keep_aspect=False), of(crop="centre")]
    prints = [source.fingerprint for source in prints]
    (archive / B / "lang.txt").write_text("close the drawer\n")
    prints.append(of().fingerprint)
    assert [record["digest"] for record in of()] == before
    Image.fromarray(np.zeros((240, 320, 3), np.uint8)).save(archive / B / "images0/im_4.jpg")
    assert len({*prints, of().fingerprint}) == 8
    assert [a == record["digest"] for a, record in zip(before, of(), strict=True)] == [True, False, True]


def test_trajectories_that_are_left_out(archive, caplog):
    for k, text in enumerate((None, "  \nconfidence: 1\n", "push", "push", "push", "push"), 2):
        trajectory(archive, f"{V2}/traj{k}", 3 if k == 7 else 6, text, cameras=() if k == 4 else (0,))
    (archive / f"{V2}/traj5/images0/im_2.jpg").unlink()
    (archive / f"{V2}/traj6/images0/im_5.jpg").write_bytes(b"")
    (archive / C / "lang.txt").write_bytes(b"caf\xff")
    source = Bridge(archive, 4, 16, 16)
    assert source.files == [A, B]
    assert {name.removeprefix(f"{V2}/"): reason for name, reason in source.bad.items()} == {
        "traj1": "lang.txt is not UTF-8 text",
        "traj2": "has no lang.txt",
        "traj3": "lang.txt has no text",
        "traj4": "has no images0",
        "traj5": "1 of its frames are missing or empty, such as im_2.jpg",
        "traj6": "1 of its frames are missing or empty, such as im_5.jpg",
        "traj7": "too short: 3 frames, a clip needs 4",
    }
    assert caplog.text.count("7 of 9 trajectories are left out: ") == 1
    with pytest.raises(UserError, match="none of the 9 trajectories in .* is usable: .*too short: 12 frames, a clip needs 13"):
        Bridge(archive, 13, 16, 16)


def test_a_damaged_frame_is_replaced_by_the_next_trajectory(archive, caplog):
    source = Bridge(archive, 4, 16, 16)
    (archive / A / "images0/im_4.jpg").write_bytes(b"junk")
    (archive / B / "images0/im_2.jpg").write_bytes(b"junk")  # which no clip shows
    record = source[0]
    assert record["file"] == B and record["text"] == "open the drawer" and "im_4.jpg cannot be read as an image" in caplog.text
    (archive / B / "images0/im_1.jpg").unlink()
    assert source[0]["file"] == C


def test_another_layout_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no folder .*/nowhere: put BridgeData V2 \(raw/ of demos_8_17.zip\) there"):
        Bridge(tmp_path / "nowhere", 4, 16, 16)
    (tmp_path / "traj_group0").mkdir()
    with pytest.raises(UserError, match="has no folder traj0, traj1, ...: unpack demos_8_17.zip of BridgeData V2 there"):
        Bridge(tmp_path, 4, 16, 16)


def test_links_are_followed_once(archive, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("linked")
    (elsewhere / "raw").symlink_to(archive / "bridge_data_v2")
    (elsewhere / "raw/loop").symlink_to(elsewhere)
    assert Bridge(elsewhere, 4, 16, 16).files == [name.replace("bridge_data_v2", "raw", 1) for name in (B, C)]
