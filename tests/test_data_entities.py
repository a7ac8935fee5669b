"""Pictures of an entity out of clips and masks, against what can be written by hand."""

import numpy as np
import pytest
from PIL import Image

from magvid.data.entities import Entities, centred, cut_out, placed, subject_of
from magvid.data.masks import resized
from magvid.types import UserError
from magvid.video import resize_crop

T, H, W = 5, 12, 18
RNG = np.random.default_rng(0)
CLIP = RNG.integers(1, 256, (T, H, W, 3)).astype(np.uint8)
MASKS = np.zeros((T, H, W), bool)
for t in (0, 1, 3, 4):  # no subject in frame 2
    MASKS[t, 2 + t : 5 + t, 3 + 2 * t : 8 + 2 * t] = True
RECORD = {"video": CLIP, "masks": MASKS, "text": "a cat"}
draw = lambda seed=0, **options: Entities(**options)(RECORD, np.random.default_rng(seed))
cut = lambda t: np.where(MASKS[t, ..., None], CLIP[t], 0)


def test_subjects_of_as_many_frames_as_are_drawn_at_the_first_places():
    counts, orders = set(), set()
    for seed in range(60):
        found = draw(seed, references=(1, 3))
        pictures, valid = found["entities"], found["entity_valid"]
        n = int(valid.sum())
        assert valid[:n].all() and not pictures[n:].any() and pictures.dtype == np.uint8 and pictures.shape == CLIP.shape
        frames = [next(t for t in (0, 1, 3, 4) if np.array_equal(p, cut(t))) for p in pictures[:n]]
        assert len(set(frames)) == n
        counts.add(n)
        orders.add(tuple(frames))
        assert found["video"] is CLIP and found["text"] == "a cat"
    assert counts == {1, 2, 3} and len(orders) > 15


def test_the_first_subjects_in_their_order():
    """Of the same clips: what else is drawn does not depend on it."""
    for seed in range(20):
        found, other = (draw(seed, references=(1, 3), first=first, editing=0.3) for first in (True, False))
        np.testing.assert_array_equal(found["entity_valid"], other["entity_valid"])
        if not found["entity_valid"].all():
            for t, picture in zip((0, 1, 3), found["entities"][found["entity_valid"]]):
                np.testing.assert_array_equal(picture, cut(t))


def test_a_still_is_the_first_frame_shown_a_subject_of_any():
    told = set()
    for seed in range(60):
        found, clip = (draw(seed, references=(1, 1), still=still, editing=0.3, stays=True) for still in (True, False))
        assert all(len(found[key]) == 1 for key in ("video", "entities", "entity_valid", "stays"))
        for key in ("video", "entities", "stays"):
            np.testing.assert_array_equal(found[key], clip[key][:1])
        told.add(None if found["stays"].any() else next(t for t in (0, 1, 3, 4) if np.array_equal(found["entities"][0], cut(t))))
    assert told == {None, 0, 1, 3, 4}


def test_there_are_no_more_pictures_than_frames_with_a_subject():
    assert draw(references=(8, 8))["entity_valid"].tolist() == [True] * 4 + [False]
    nothing = Entities()(RECORD | {"masks": np.zeros_like(MASKS)}, np.random.default_rng(0))
    assert not nothing["entity_valid"].any() and not nothing["entities"].any()


def test_to_edit_everything_else_is_told():
    found = draw(editing=1.0, stays=True)
    np.testing.assert_array_equal(found["entities"], np.where(MASKS[..., None], 0, CLIP))
    np.testing.assert_array_equal(found["stays"], ~MASKS)
    assert found["entity_valid"].all()
    shares = [draw(seed, editing=0.3, references=(1, 1))["entity_valid"].all() for seed in range(300)]
    assert abs(np.mean(shares) - 0.3) < 0.08
    assert not draw(references=(1, 1), stays=True)["stays"].any()


def test_whole_frames_without_segmentation():
    picture = draw(references=(1, 1), segmented=False)["entities"][0]
    assert any(np.array_equal(picture, CLIP[t]) for t in (0, 1, 3, 4))


@pytest.mark.parametrize("t", [0, 4])
def test_a_subject_is_moved_to_the_middle(t):
    (moved,) = centred(cut_out(CLIP[t : t + 1], MASKS[t : t + 1]), MASKS[t : t + 1])
    rows, columns = np.nonzero(moved.any(-1))
    assert abs((rows.min() + rows.max()) / 2 - (H - 1) / 2) <= 0.5 and abs((columns.min() + columns.max()) / 2 - (W - 1) / 2) <= 0.5
    inside = moved[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    np.testing.assert_array_equal(inside, CLIP[t, 2 + t : 5 + t, 3 + 2 * t : 8 + 2 * t][:, : inside.shape[1]])


def test_a_whole_frame_is_moved_with_its_subject_and_its_edge_goes_on():
    (picture,) = draw(references=(4, 4), segmented=False, centre=True)["entities"][:1]
    t = next(t for t in (0, 1, 3, 4) if np.array_equal(picture, shifted(t)))
    assert not np.array_equal(picture, CLIP[t])


def shifted(t):
    """Frame t with the middle of its subject, at (3 + t, 5 + 2 t), near the middle of the picture, at (5.5, 8.5): of two as near the even one."""
    rows, columns = np.arange(H) + round(t - 2.5), np.arange(W) + round(2 * t - 3.5)
    return CLIP[t][np.ix_(rows.clip(0, H - 1), columns.clip(0, W - 1))]


def test_what_is_edited_is_grown():
    found = draw(editing=1.0, stays=True, grow=2)
    for mask, stays, picture, frame in zip(MASKS, found["stays"], found["entities"], CLIP):
        near = np.zeros_like(mask)
        for y, x in zip(*np.nonzero(mask)):
            near[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = True
        np.testing.assert_array_equal(stays, ~near)
        np.testing.assert_array_equal(picture, np.where(near[..., None], 0, frame))
    assert np.array_equal(draw(references=(1, 1), grow=2)["entities"], draw(references=(1, 1))["entities"])  # of what is edited alone


def test_pictures_may_be_larger_than_the_clip():
    found = draw(size=(8, 12), editing=1.0, stays=True)
    assert found["video"].shape == (T, 8, 12, 3) and found["entities"].shape == (T, H, W, 3)
    smaller = lambda masks, *size: resized(masks, lambda images: resize_crop(images, *size))
    np.testing.assert_array_equal(found["stays"], ~smaller(MASKS, 8, 12))
    still = np.zeros((1, 4, 6), bool)
    still[:, :2, 2:] = True
    np.testing.assert_array_equal(smaller(still, 2, 3), still[:, ::2, ::2])


def test_pictures_have_a_place_each():
    pictures, valid = placed(CLIP[:2], 3)
    np.testing.assert_array_equal(pictures[:2], CLIP[:2])
    assert valid.tolist() == [True, True, False] and not pictures[2].any()
    with pytest.raises(ValueError, match="5 pictures of an entity: a clip of 3 frames has a place for 3"):
        placed(CLIP, 3)


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(references=(0, 2)), "references"),
        (dict(references=(3, 2)), "references"),
        (dict(editing=1.5), "editing=1.5"),
        (dict(grow=-1), "grow=-1: so many pixels, at least 0"),
        (dict(size=(0, 4)), r"size=\(0, 4\): height and width in pixels, at least 1"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises(ValueError, match=says):
        Entities(**options)


@pytest.mark.parametrize("editing", [0.0, 1.0])
@pytest.mark.parametrize(
    "field, says",
    [
        (dict(video=CLIP / 255), "video is float64: give pixels as uint8"),
        (dict(masks=MASKS.astype(np.uint8)), "masks are uint8"),
        (dict(masks=MASKS[:1]), r"masks are bool \(1, 12, 18\) and its video is \(5, 12, 18, 3\)"),
        (dict(masks=MASKS[:, 1:]), r"one for each pixel, \(5, 12, 18\)"),
    ],
)
def test_bad_records(field, says, editing):
    with pytest.raises(ValueError, match=says):
        Entities(editing=editing, stays=True, size=(8, 12))(RECORD | field, np.random.default_rng(0))


def test_a_record_without_masks_is_told_so():
    with pytest.raises(ValueError, match="no masks of a subject; it has video"):
        Entities()({"video": CLIP}, np.random.default_rng(0))


# Pictures of an entity's own -----------------------------------------------------------------------------------------

OWN = np.zeros((3, H, W, 4), np.uint8)
for i in range(3):
    OWN[i, 2 + i : 5 + i, 3:9] = [50 + 60 * i, 0, 0, 255]
OWN[..., 1] = 255  # what is not the subject's is not told
OWN[OWN[..., 3] > 0, 1] = 0


def test_pictures_of_its_own_stand_for_the_clips_subjects():
    """Of as many as are drawn, in any order, at the first places; without masks."""
    orders = set()
    for seed in range(40):
        found = Entities(references=(1, 3))({"video": CLIP, "pictures": OWN, "text": "a cat"}, np.random.default_rng(seed))
        n = int(found["entity_valid"].sum())
        assert set(found) == {"video", "text", "entities", "entity_valid"} and found["entities"].shape == CLIP.shape and not found["entities"][n:].any()
        order = [(int(picture.max()) - 50) // 60 for picture in found["entities"][:n]]
        for i, picture in zip(order, found["entities"]):
            np.testing.assert_array_equal(picture, np.where(OWN[i, ..., 3:] > 0, OWN[i, ..., :3], 0))
        orders.add(tuple(order))
    assert {len(order) for order in orders} == {1, 2, 3} and len(orders) > 10
    one = Entities(references=(1, 1), first=True, centre=True, still=True)({"video": CLIP, "pictures": OWN}, np.random.default_rng(0))
    assert one["video"].shape == one["entities"].shape == (1, H, W, 3) and (one["entities"][0, 4:7, 6:12, 0] == 50).all()


def test_pictures_of_its_own_are_no_more_than_a_clip_has_places_for():
    """Single frames are trained on beside clips, with the same pictures."""
    for frames in (1, 2):
        for seed in range(10):
            found = Entities(references=(1, 8))({"video": CLIP[:frames], "pictures": OWN}, np.random.default_rng(seed))
            assert found["entities"].shape == (frames, H, W, 3) and 1 <= found["entity_valid"].sum() <= frames


def test_what_is_edited_needs_masks_as_before():
    edited, plain = (Entities(editing=1.0, stays=True)(r, np.random.default_rng(1)) for r in (RECORD | {"pictures": OWN}, RECORD))
    for key in ("entities", "stays", "entity_valid"):
        np.testing.assert_array_equal(edited[key], plain[key])
    with pytest.raises(ValueError, match="has no masks of a subject to edit 30% of the clips; it has video, pictures"):
        Entities(editing=0.3)({"video": CLIP, "pictures": OWN}, np.random.default_rng(0))
    with pytest.raises(ValueError, match="segmented=False tells whole frames, and the record has pictures of an entity's own"):
        Entities(segmented=False)(RECORD | {"pictures": OWN}, np.random.default_rng(0))


def test_a_subject_out_of_a_file(tmp_path):
    """Nothing of what is below the transparency; all of a picture without any, which is said once it is used."""
    picture = np.zeros((24, 36, 4), np.uint8)
    picture[..., 1] = 255
    picture[6:12, 9:27] = [200, 0, 0, 255]
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(picture[..., :3]).save(tmp_path / "b.png")
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(tmp_path / "c.png")
    said = []
    shown, place = subject_of(tmp_path / "a.png", None, (12, 18), said.append)
    assert shown.shape == (1, 12, 18, 3) and not shown[..., 1:].any() and shown[0, 3:6, 5:13, 0].min() > 180 and place[0, 3:6, 5:13].all() and not said
    shown, place = subject_of(tmp_path / "b.png", None, (12, 18), said.append)
    assert place.all() and shown[0, 0, 0, 1] == 255 and "b.png has no transparency: all of it is told" in said[0]
    with pytest.raises(UserError, match="c.png shows no subject .all of it is transparent."):
        subject_of(tmp_path / "c.png", None, (12, 18), said.append)
