"""Trained runs that generate, and the clips that they are shown."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_runs

from magvid.conditions import blank
from magvid.generator import Clips, Generator, Preview, Programs
from magvid.masked.tasks import TASKS
from magvid.runs import ClipFormat, open_run
from magvid.types import UserError
from magvid.video import to_uint8


def test_a_sample_depends_on_seed_clip_and_draw_alone():
    model = Generator.open(tiny_runs.echo_run(0.5, 0.2), trust=True)
    rows = next(Clips.of(model.config).batches(0, 11, 11))
    rows = {**rows, "task": np.zeros(11, np.int32)}
    all_at_once = model.generate(rows, seed=5)
    np.testing.assert_array_equal(model.generate({k: v[9:] for k, v in rows.items()}, seed=5), all_at_once[9:])
    assert (model.generate(rows, seed=6) != all_at_once).any() and (
        model.generate(rows, seed=5, draw=1) != all_at_once
    ).any()
    assert model.generate(rows, seed=5).shape == (
        11,
        8,
        16,
        16,
        3,
    )  # padded to a multiple of the devices, and cut again


def ramp(**options) -> Generator:
    """Of clips of 8 frames, the first one black."""
    model = Generator.open(tiny_runs.echo_run(), trust=True)
    return dataclasses.replace(model, programs=Programs(tiny_runs.Ramp(**options)))


def black(n=3, task=0):
    video = np.zeros((n, 8, 16, 16, 3), np.uint8)
    return {"video": video, "task": np.full(n, task, np.int32), "index": np.arange(n), "label": np.zeros(n, np.int32)}


@pytest.mark.parametrize("overlap", [1, 4, 7])
@pytest.mark.parametrize("frames", [3, 8, 9, 40])
def test_a_ramp_goes_on_without_a_seam(frames, overlap):
    """Whatever the windows, frame i has grey level i: each window begins where the one before it ended."""
    video = ramp(overlap=overlap).extend(black(), frames)
    expected = np.broadcast_to(np.arange(frames)[:, None, None, None], (frames, 16, 16, 3))
    np.testing.assert_array_equal(video, np.broadcast_to(expected, (3, *expected.shape)))


def test_windows_fade_into_each_other():
    """Frame i of a window is i levels too bright: the overlapping frames have both windows' levels, by the weights."""
    levels = ramp(flicker=1).extend(black(1), 14, overlap=4)[0, :, 0, 0, 0]
    first = 2 * np.arange(8)
    second = first[4] + 2 * np.arange(8)  # from the video's own frames: no seam to see
    np.testing.assert_array_equal(levels, [*first, *second[4:8], *(second[4] + 8 + 2 * np.arange(2))])
    model = ramp(noise=20.0)
    window, following = (model.extend(black(1), 14, overlap=o, seed=1)[0, :, 0, 0, 0].astype(int) for o in (1, 4))
    jump = window[7] - 7
    assert 0 < jump < 20 and (window[7:14] == 7 + jump + np.arange(7)).all()  # overlap 1 keeps its frame
    assert (window[:8] == following[:8]).sum() >= 7 and following[7] == round(7 + jump / 4)  # weight 3/4 of frame 3


def test_windows_have_their_own_randomness_and_clips_their_own():
    model = ramp(noise=100.0, overlap=2)
    rows = black(5)
    video = model.extend(rows, 40, seed=3)
    np.testing.assert_array_equal(model.extend({k: v[3:] for k, v in rows.items()}, 40, seed=3), video[3:])
    np.testing.assert_array_equal(model.extend(rows, 17, seed=3), video[:, :17])
    np.testing.assert_array_equal(model.generate(rows, seed=3)[:, :6], video[:, :6])
    np.testing.assert_array_equal(model.extend(rows, 5, overlap=0, seed=3), video[:, :5])  # no window, so nothing that overlaps
    jumps = np.diff(video[..., 0, 0, 0].astype(int))
    assert (video[0] != video[1]).any() and len(set(jumps[0, 6::6])) > 1
    assert (model.extend(rows, 40, seed=3, draw=1) != video).any()


class Same(tiny_runs.Ramp):
    """Goes on as it begins."""

    def continuation(self, overlap):
        return self


def test_windows_that_are_made_alike_are_one_program():
    model = dataclasses.replace(ramp(), programs=Programs(Same(noise=100.0, overlap=2)))
    video = model.extend(black(2), 40, overlap=2)
    assert model.programs.continuation(2) is model.programs and model.programs.generate._cache_size() == 1
    assert len(set(np.diff(video[0, :, 0, 0, 0].astype(int))[6::6])) > 1  # and each has its own randomness


def test_a_masked_model_predicts_window_after_window():
    model = Generator.open(open_run(tiny_runs.masked_run()), ["FP", "CFP5", "OPC"])
    rows = next(Clips.of(model.config).batches(0, 3, 3)) | {"task": np.array([0, 1, 1], np.int32)}
    video = model.extend(rows, 21, overlap=3)
    assert video.shape == (3, 21, 16, 16, 3)
    np.testing.assert_array_equal(video[:, :5], model.generate(rows)[:, :5])
    np.testing.assert_array_equal(model.extend({k: v[1:] for k, v in rows.items()}, 21, overlap=3), video[1:])
    with pytest.raises(UserError, match="task OPC cannot go on beyond a clip"):
        model.extend({**rows, "task": np.array([0, 2, 1])}, 21)
    with pytest.raises(ValueError, match="overlap=8: windows of 8 frames can overlap by 1 to 7"):
        model.extend(rows, 21, overlap=8)
    with pytest.raises(ValueError, match="a video of 0 frames"):
        model.extend(rows, 0)
    assert model.extend({**rows, "task": np.array([0, 2, 1])}, 8).shape == (3, 8, 16, 16, 3)  # of a clip alone, any task


def test_steps_end_at_what_is_generated():
    model = Generator.open(open_run(tiny_runs.masked_run()), ["FP", "CG"])
    rows = next(Clips.of(model.config).batches(0, 3, 3)) | {"task": np.array([0, 1, 0], np.int32)}
    steps = model.steps(rows, seed=4)
    assert steps.seen.shape == (3, 3, 8, 16, 16, 3) and steps.masked.shape == (3, 3, 2, 4, 4)
    np.testing.assert_array_equal(to_uint8(steps.sampled[:, -1]), model.generate(rows, seed=4))
    with pytest.raises(UserError, match="Echo has no steps of parallel decoding"):
        Generator.open(tiny_runs.echo_run(), trust=True).steps(rows)


def test_masked_serves_exactly_the_tasks_whose_tokens_it_has():
    model = Generator.open(open_run(tiny_runs.masked_run()))
    assert set(model.tasks) == set(TASKS)
    objective = model.programs.objective.with_tasks(["FP", "CG"])
    assert objective.with_tasks(["FP5"]).rows[0].token == TASKS["FP"].token and objective.labelled == (False, True)
    assert objective.with_decoding(steps=7).decoding == {"steps": 7, "temperature": 1.0}
    with pytest.raises(ValueError, match="task FI was not trained"):
        objective.with_tasks(["FI"])


def test_preview_shows_condition_generated_and_real():
    run = tiny_runs.echo_run()
    model = Generator.open(run, trust=True)
    preview = Preview(run.config)
    shown = preview(model.programs.objective, model.params, 1)["samples"]
    assert shown.shape == (2, 8, 48, 16, 3)
    np.testing.assert_array_equal(shown[1, :, :16], 0)  # nothing is given
    np.testing.assert_array_equal(shown[1, :, 32:], Clips.of(run.config).source[1]["video"])
    assert Preview({"data": {"train": {}}})(model.programs.objective, model.params, 1) == {}


def test_weights_of_another_model_are_named():
    run = open_run(tiny_runs.masked_run())
    config = json.loads(json.dumps(run.config))
    config["objective"]["transformer"]["width"] = 32
    with pytest.raises(
        UserError,
        match=r"another model than its config.*: transformer/\S+ is \(2, 8\) and should be \(2, 16\), and \d+ more",
    ):
        Generator.open(dataclasses.replace(run, config=config))


def test_clips_end_where_their_source_ends():
    with pytest.raises(ValueError, match="1048576"):
        next(Clips.of(tiny_runs.echo_run().config).batches(2**20 - 1, 2, 2))


def test_a_model_opens_without_its_data():
    """The format of the clips, as the run folder has it, stands for the source."""
    run = open_run(tiny_runs.masked_run())
    source = dict(target="magvid.data.folder:VideoFolder", path="/nowhere", frames=8, height=16, width=16)
    gone = dataclasses.replace(run, config={**run.config, "data": {"train": {"source": source}}})
    assert run.clip == Clips.of(run.config).format and Generator.open(gone, ["FP"], like=blank(run.clip)).tasks == ("FP",)
    with pytest.raises(UserError, match="/nowhere"):
        Generator.open(gone, ["FP"])
    with pytest.raises(ValueError, match="4x16x16 .* make 1x4x4 tokens, .*: it takes clips of 8x16x16 only"):
        Generator.open(gone, ["FP"], like=blank(ClipFormat(4, 16, 16)))
