"""Grids and pictures hold what they should, at its place."""

import numpy as np

from magvid import pictures
from magvid.pictures import labelled_grid, steps_picture
from magvid.types import DecodingSteps


def test_grid_holds_the_videos_under_their_names():
    videos = [[np.full((3, 96, 96, 3), 10 * (2 * r + c), np.uint8) for c in range(2)] for r in range(2)]
    canvas = labelled_grid(videos, ["condition", "real"], ["a", "bb"])
    left = canvas.shape[2] - (2 * 96 + 4)
    for r in range(2):
        for c in range(2):
            assert (
                canvas[:, 20 + 100 * r : 116 + 100 * r, left + 100 * c : left + 96 + 100 * c] == 10 * (2 * r + c)
            ).all()
    assert canvas.shape[:2] == (3, 20 + 2 * 96 + 4)
    assert (canvas[:, :20, left : left + 60] < 128).any() and (canvas[:, 40:100, : left - 4] < 128).any()


def steps(count=3):
    """Of clips of 4x128x256 pixels and 2x2x4 cells: in every step two cells more are kept, from the second frame on."""
    order = np.arange(16).reshape(2, 2, 4)
    unknown = np.stack([order < 16 - 2 * k for k in range(count)])
    condition = unknown & (order < 8)
    hidden = np.concatenate([unknown[1:], np.zeros((1, 2, 2, 4), bool)])
    seen, sampled = (np.full((count, 4, 128, 256, 3), level, np.float32) for level in (0.2, 0.4))
    return DecodingSteps(seen, sampled, unknown, unknown & ~condition, condition, hidden)


def test_a_row_per_step_of_what_is_seen_sampled_and_kept():
    image = steps_picture(steps(), "FP 00000")
    x, y = pictures.MARGIN + pictures.LABEL, pictures.HEADING
    panel = 2 * (256 + pictures.GAP) - pictures.GAP + pictures.MARGIN
    cell = lambda step, panel_, frame, i, j: image[
        y + step * (128 + pictures.ROW_GAP) :, x + panel_ * panel + frame * (256 + pictures.GAP) :
    ][64 * i : 64 * i + 64, 64 * j : 64 * j + 64]
    for k in range(3):
        for i in range(2):
            for j in range(4):
                masked = 4 * i + j < 8 - 2 * k
                first, second = cell(k, 0, 0, i, j), cell(k, 0, 1, i, j)
                assert (first[4:-4, 4:-4] == 51).all()  # a condition token, decoded
                assert np.isin(second, [pictures.PAPER[0], pictures.HATCH[0]]).all() if masked else (second == 51).all()
                assert (cell(k, 1, 0, i, j) == 102).all() and (cell(k, 1, 1, i, j) == 102).all()
                again = k < 2 and 4 * i + j < 6 - 2 * k
                kept = cell(k, 2, 1, i, j)
                assert np.isin(kept, [pictures.PAPER[0], pictures.HATCH[0]]).all() if again else (kept == 102).all()
    frame = image[y : y + 128, x : x + 256]
    marked = (frame == pictures.MARK).all(-1)
    assert marked[:2].all() and marked[-2:].all() and marked[:, :2].all() and not marked[2:-2, 2:-2].any()


def test_long_decodings_and_small_clips_stay_readable():
    image = steps_picture(steps(30), "x")
    rows = (image.shape[0] - pictures.HEADING - pictures.LEGEND) / (128 + pictures.ROW_GAP)
    assert rows == pictures.STEPS
    small = DecodingSteps(*(a[:, :, ::4, ::4] if a.ndim == 5 else a for a in steps()))
    rows = (steps_picture(small, "x").shape[0] - pictures.HEADING - pictures.LEGEND) / (96 + pictures.ROW_GAP)
    assert rows == 3  # frames of 32 pixels, three times as large
    odd = DecodingSteps(*(a[:, :3, :100, :200] if a.ndim == 5 else a for a in steps()))
    assert steps_picture(odd, "x").ndim == 3
