import hashlib
import json
from pathlib import Path
import pickle
import time

import numpy as np
import pytest

from magvid.data.sprite_world import ACTIONS, COLOURS, SHAPES, TEXTURES, World
from magvid.data.sprites import KEYS, SPLITS, Recolour, Sprites

GOLDEN = Path(__file__).parent / "golden" / "sprites_sha256.json"
SOURCES = {  # name: (source, clips); 200 clips in all
    "full train 16x32x32": (Sprites(), 60),
    "full validation 16x32x32": (Sprites("validation"), 40),
    "full test 12x32x40 seed 7": (Sprites("test", 12, 32, 40, seed=7), 40),
    "small train 16x32x32": (Sprites(world="small"), 30),
    "full sequences 24x48x64": (Sprites("train", 24, 48, 64, sequence=1.0), 30)}


def _digest(source, clips):
    out = hashlib.sha256()
    for i in range(clips):
        record = source[i * 4999]
        out.update(record["video"].tobytes() + record["caption"].encode() + bytes([record["label"]]))
    return out.hexdigest()


@pytest.mark.parametrize("name", SOURCES)
def test_pixels_are_the_committed_ones(name):
    assert _digest(*SOURCES[name]) == json.loads(GOLDEN.read_text())[name]


def test_the_record_is_complete_and_typed():
    t, h, w = 12, 32, 40
    source = Sprites("test", t, h, w)
    for i in range(20):
        record = source[i]
        assert tuple(record) == KEYS
        shapes = {k: (v.dtype.name, v.shape) for k, v in record.items() if isinstance(v, np.ndarray)}
        assert shapes == {"video": ("uint8", (t, h, w, 3)), "entity": ("uint8", (h, w, 3)),
                          "entity_mask": ("bool", (h, w)), "masks": ("bool", (t, h, w)), "actions": ("int32", (t,)), "track": ("float32", (t, 5)),
                          "distractors": ("float32", (2, 7))}
        shape, action = source.world.pairs[record["label"]]
        assert (SHAPES[record["shape"]], ACTIONS[record["action"]]) == (shape, action)
        assert (record["actions"] == record["action"]).all() and len(record["states"]) == 4
        assert source.classes[record["label"]].split()[0] == shape and source.chance == 1 / source.num_classes == 1 / 66


def test_random_access_is_deterministic_and_clips_differ():
    source = pickle.loads(pickle.dumps(Sprites(keys=("video",))))
    forward = [source[i]["video"] for i in range(50)]
    backward = [Sprites()[i]["video"] for i in reversed(range(50))][::-1]
    np.testing.assert_array_equal(forward, backward)
    assert len({video.tobytes() for video in forward}) == 50
    assert (Sprites(seed=1, keys=("video",))[0]["video"] != forward[0]).any()
    assert len(source) == 2**20 and source[2**20 - 1]["video"].shape == (16, 32, 32, 3)
    with pytest.raises(IndexError):
        source[2**20]


@pytest.mark.parametrize("world, size", [("full", (32, 32)), ("full", (16, 16)), ("small", (20, 48))])
def test_splits_cannot_share_a_clip(world, size):
    for number, split in enumerate(SPLITS):
        for seed in (0, 3):
            source = Sprites(split, 4, *size, seed=seed, world=world, keys=("video",))
            corners = np.array([source[i]["video"][:, 0, 0, 1] for i in range(100)])
            assert (corners % 3 == number).all() and len(np.unique(corners)) > 3


def test_labels_are_uniform_and_every_part_appears():
    source = Sprites(frames=4, keys=("label", "shape", "colour", "texture", "action", "background", "tone"))
    records = [source[i] for i in range(6600)]
    counts = np.bincount([r["label"] for r in records], minlength=66)
    assert ((counts - 100) ** 2 / 100).sum() < 115          # chi^2, 65 degrees of freedom: p = 1e-4
    for part, size in (("colour", 8), ("texture", 3), ("background", 3), ("tone", 4)):
        seen = np.bincount([r[part] for r in records], minlength=size)
        assert len(seen) == size and seen.min() > 0.75 * 6600 / size
    round_spins = [r for r in records if ACTIONS[r["action"]] == "spin" and SHAPES[r["shape"]] in ("disc", "ring")]
    assert round_spins and all(TEXTURES[r["texture"]] != "plain" for r in round_spins)


@pytest.mark.parametrize("frames, height, width", [(16, 32, 32), (16, 16, 16), (9, 40, 24), (17, 48, 80)])
def test_each_action_is_visibly_what_it_is_called(frames, height, width):
    unit = min(height, width) / 32
    source = Sprites("train", frames, height, width, keys=("track", "action", "video"))
    seen = set()
    for i in range(250):
        record = source[i]
        y, x, radius, angle, visible = record["track"].T.astype(np.float64)
        dy, dx, action = y - y[0], x - x[0], ACTIONS[record["action"]]
        seen.add(action)
        reach = 1.15 * radius + 0.5
        assert (y - reach >= 0).all() and (y + reach <= height).all() and (visible == 1).all()
        assert (x - reach >= 0).all() and (x + reach <= width).all()
        still = {"y": np.ptp(y) == 0, "x": np.ptp(x) == 0, "radius": np.ptp(radius) == 0, "angle": np.ptp(angle) == 0}
        moves = {"left": "x", "right": "x", "up": "y", "down": "y", "bounce": "y", "jump": "y", "grow": "radius",
                 "shrink": "radius", "spin": "angle", "orbit": "yx", "stand": ""}[action]
        assert still == {name: name not in ([*moves] if action == "orbit" else [moves]) for name in still}
        towards = {"left": -dx, "right": dx, "up": -dy, "down": dy}
        if action in towards:
            assert towards[action][-1] >= 3 * unit and (np.diff(towards[action]) > 0).all()
        elif action in ("bounce", "jump"):
            assert -dy.min() >= 3 * unit and dy.max() < 1e-3 and abs(dy[-1]) < 1e-3
            peaks = ((dy[1:-1] < dy[:-2]) & (dy[1:-1] <= dy[2:])).sum()
            assert peaks == (2 if action == "bounce" else 1)
        elif action in ("grow", "shrink"):
            ratio = radius[-1] / radius[0]
            assert (ratio if action == "grow" else 1 / ratio) >= 1.4
        elif action == "spin":
            assert np.pi / 2 < abs(angle[-1] - angle[0]) < np.radians(191)
        elif action == "orbit":
            assert np.ptp(y) >= 3 * unit and np.ptp(x) >= 3 * unit and np.hypot(dy[-1], dx[-1]) < 1e-3
        changed = (record["video"][0] != record["video"][frames // 2]).any() or action == "bounce" and frames % 2
        assert changed == (action != "stand")
    assert seen == set(ACTIONS)


def test_the_track_is_where_the_pixels_are():
    source = Sprites(world=World(colours=("white",), textures=("plain",), backgrounds=("plain",), max_distractors=0))
    grid = np.arange(32) + 0.5
    for i in range(40):
        record = source[i]
        light = record["video"].astype(np.float64).mean(-1)
        light -= light[:, :1, :1]
        total = light.sum((1, 2))
        centre = np.stack([light.sum(2) @ grid, light.sum(1) @ grid], 1) / total[:, None]
        np.testing.assert_allclose(centre, record["track"][:, :2], atol=0.15)


def test_distractors_differ_and_leave_the_entity_on_top():
    source, counts = Sprites(), np.zeros(3, int)
    for i in range(150):
        record = source[i]
        others = record["distractors"][record["distractors"][:, 6] == 1]
        counts[len(others)] += 1
        assert (others[:, 4] != record["shape"]).all() and (others[:, 5] != record["colour"]).all()
        assert (others[:, 2] < record["track"][:, 2].min()).all() and len(set(others[:, 5])) == len(others)
        y, x = record["track"][0, :2].astype(int)
        if SHAPES[record["shape"]] != "ring" and TEXTURES[record["texture"]] == "plain":
            np.testing.assert_array_equal(record["video"][0, y, x], list(COLOURS.values())[record["colour"]])
    assert counts.min() > 30


def test_the_entity_is_cut_out_on_black():
    for i in range(20):
        record = Sprites()[i]
        entity, mask = record["entity"], record["entity_mask"]
        assert (entity[~mask].sum(-1) <= 0.51 * sum(list(COLOURS.values())[record["colour"]])).all()
        assert (entity[mask].sum(-1) > 0).all() and not entity[0].any() and 30 < mask.sum() < 400


def test_sequences_are_eased_and_have_no_jumps():
    keys, several = ("track", "actions", "caption", "instruction"), 0
    fine, finest = (Sprites("train", frames, 64, 64, sequence=1.0, keys=keys) for frames in (97, 193))
    for i in range(60):
        record, twice = fine[i], finest[i]
        changes = np.flatnonzero(np.diff(record["actions"]))
        several += len(changes) > 0
        assert record["caption"].count(", then ") == record["instruction"].count(", then ") == len(changes)
        steps, half = (np.abs(np.diff(r["track"][:, :4].astype(np.float64), axis=0)) for r in (record, twice))
        assert record["caption"] == twice["caption"] and (half.max(0) < 0.6 * steps.max(0) + 1e-6).all()   # continuous
        for change in changes:      # at a change the entity is almost at rest
            assert (steps[change, :2] < 1.5).all() and (steps[change, 2:] < 0.1).all()
    assert several > 50


def test_words_say_what_is_drawn():
    texts = {}
    source = Sprites(world=World(textures=("plain",)))
    for i in range(400):
        record = source[i]
        texts.setdefault(ACTIONS[record["action"]], record)
    record = texts["left"]
    noun = f"{list(COLOURS)[record['colour']]} {SHAPES[record['shape']]}"
    assert record["instruction"] == f"move the {noun} to the left"
    assert f"{noun} moves left on a" in record["caption"]
    for k, state in enumerate(record["states"]):
        y, x = record["track"][round(15 * k / 3), :2]
        place = state.rsplit(" at the ", 1)[1]
        assert state.startswith("the ") and noun in state
        assert ("left" in place) == (x < 32 / 3) and ("right" in place) == (x >= 64 / 3)
        assert ("top" in place) == (y < 32 / 3) and ("bottom" in place) == (y >= 64 / 3)
    sizes = [("small", "medium", "large").index(state.split()[1]) for state in texts["shrink"]["states"]]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]
    assert "turned by" in texts["spin"]["states"][3] and "turned" not in texts["spin"]["states"][0]


def test_keys_choose_the_fields():
    record = Sprites(keys=["video", "label"])[3]
    assert tuple(record) == ("video", "label")
    np.testing.assert_array_equal(record["video"], Sprites()[3]["video"])


@pytest.mark.parametrize("wrong, message", [
    (dict(split="dev"), "'dev'"), (dict(frames=3), "3x32x32"), (dict(width=15), "16x32x15"), (dict(seed=-1), "seed=-1"),
    (dict(world="tiny"), "'tiny'"), (dict(keys=("vide",)), "vide"), (dict(sequence=0.5, frames=8), "8 frames")])
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        Sprites(**wrong)


def test_numbers_carry_their_world():
    assert Sprites().world_name == "full" and Sprites(world="small").world_name == "small"
    assert Sprites(world=World(max_distractors=0), sequence=0.5).world_name == \
        "full-custom(max_distractors=0)+sequence(0.5)"


def test_at_least_300_clips_per_second_and_core():
    source = Sprites(keys=("video", "label"))
    start = time.process_time()
    for i in range(200):
        source[i]
    assert 200 / (time.process_time() - start) >= 300


@pytest.mark.parametrize("world", ["small-middle", "full-middle"])
@pytest.mark.parametrize("size", [(32, 32), (48, 64)])
def test_where_all_begin_in_the_middle_the_first_frame_tells_nothing(world, size):
    source = Sprites("train", 8, *size, world=world, keys=("track", "action", "video"))
    clips = [source[i] for i in range(400)]
    tracks, actions = np.stack([c["track"] for c in clips]), np.array([c["action"] for c in clips])
    first = np.concatenate([(tracks[:, 0, :2] - np.array(size) / 2), tracks[:, 0, 2:3]], 1) / source.unit
    assert np.abs(first[:, :2]).max() <= 2.5 + 1e-5 and 4.5 - 1e-5 <= first[:, 2].min() <= first[:, 2].max() <= 5 + 1e-5
    for action in set(actions):  # a mean of n uniform draws, five of its standard deviations
        mine = first[actions == action]
        assert (np.abs(mine.mean(0) - [0, 0, 4.75]) < 5 * np.array([5, 5, 0.5]) / np.sqrt(12 * len(mine))).all()
    reach = 1.15 * tracks[..., 2:3]
    assert (tracks[..., :2] - reach).min() > 0 and (tracks[..., :2] + reach - size).max() < 0


def test_sequences_do_not_begin_in_the_middle():
    with pytest.raises(ValueError, match="room for one action"):
        Sprites(world="small-middle", sequence=0.5)
    with pytest.raises(ValueError, match="give at most 5"):
        World(middle=True)


def test_a_mask_is_where_the_entity_is():
    """Bright against a dark background, in every frame; its middle is that of the track."""
    world = World(textures=("plain",), colours=("white", "yellow"), max_distractors=0, backgrounds=("plain",), tones=("grey",))
    source = Sprites("train", 6, 32, 48, world=world)
    for i in range(40):
        record = source[i]
        ground = record["video"][:, :1, :1, 0].astype(float)
        share = (record["video"][..., 0] - ground) / (240 - ground)  # of the pixel, which is rounded
        assert share[record["masks"]].min() > 0.49 and share[~record["masks"]].max() < 0.51
        y, x = np.nonzero(record["masks"][3])
        if record["shape"] not in (SHAPES.index("triangle"), SHAPES.index("star")):
            np.testing.assert_allclose([y.mean() + 0.5, x.mean() + 0.5], record["track"][3, :2], atol=0.6)


@pytest.mark.parametrize("some", ["seen", "unseen"])
def test_clips_are_of_the_combinations_of_their_world(some):
    source = Sprites(world=f"entities-{some}", keys=("shape", "colour", "texture", "motion", "caption"))
    clips = [source[i] for i in range(1000)]
    found = {tuple(int(c[k]) for k in ("shape", "colour", "texture")) for c in clips}
    assert len(found) == (60 if some == "seen" else 12)
    assert all((sum(of) % 3 == 0 and (of[0] + of[1]) % 2 == 0) == (some == "unseen") for of in found)
    assert {c["motion"] for c in clips} == {"moves left", "moves right", "moves up", "moves down"}
    assert all(f" {c['motion']} on " in c["caption"] for c in clips)


def test_another_colour_is_asked_for():
    source = Sprites("train", 8, 32, 32, world="entities-seen", keys=("video", "caption", "colour", "label"))
    for i in range(12):
        record = source[i]
        asked = Recolour("entities-seen")(record, np.random.default_rng(i))
        before, after = (list(COLOURS)[r["colour"]] for r in (record, asked))
        assert after != before and after in source.world.colours
        assert asked["caption"].split()[1:] == [after, *record["caption"].split()[2:]] and record["caption"].split()[1] == before
        assert asked["caption"].split()[0] == ("an" if after[0] in "aeiou" else "a")
        assert all(asked[key] is record[key] for key in ("video", "label"))
