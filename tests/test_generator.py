"""Trained runs that generate, and the clips that they are shown."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_runs

from magvid.generator import Clips, Generator, Preview
from magvid.masked.tasks import TASKS
from magvid.runs import ClipFormat, open_run
from magvid.types import UserError


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
    assert run.clip == Clips.of(run.config).format and Generator.open(gone, ["FP"], clip=run.clip).tasks == ("FP",)
    with pytest.raises(UserError, match="/nowhere"):
        Generator.open(gone, ["FP"])
    with pytest.raises(ValueError, match="length"):
        Generator.open(gone, ["FP"], clip=ClipFormat(4, 16, 16))
