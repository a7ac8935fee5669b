"""A run that goes astray returns to its last save and passes by what led it there."""

import os
import signal

import helpers_objective as helpers
import jax
import numpy as np
import pytest
from test_resume import check_same, numbers

from magvid import logs, train
from magvid.guard import LEAST, WINDOW, Guard
from magvid.job import Job, check_config
from magvid.types import UserError

ONE = dict(devices=jax.devices()[:1])


def config(batch_number: int, fault=1e38, **changes):
    """20 steps, saved at every fourth, logged at each; a record of that batch (from 1) makes the loss `fault` times as large, by
    default too large for its gradient to be finite.
    """
    base = {"steps": 20, "save_every": 4, "log_every": 1, "eval_every": 0, "total": 20} | changes
    loader = Job.from_config(check_config(helpers.config(**base)), **ONE).loader()
    batches = [next(loader)["index"] for _ in range(batch_number)]
    loader.close()
    toy = dict(target="helpers_objective:ToyGan", noise=0.1, bad=int(batches[-1][0]), fault=fault)
    return helpers.config(**{"objective": toy, "rollbacks": 1} | base)


def test_it_goes_back_and_past_the_batches_since(tmp_path, capsys):
    train.train(config(7), tmp_path, **ONE)
    said = capsys.readouterr().out
    assert 'step 7: not finite: ' in said and "back to step 4, and past 3 batches (1 of 1 times until the next save)" in said
    lines = numbers(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert all(np.isfinite(line["train/loss/generator"]) for line in lines)
    assert [line.get("guard/rollbacks", 0) for line in lines] == [0] * 4 + [1] * 16 and lines[-1]["guard/skipped"] == 3


def test_a_run_that_is_killed_after_it_went_back_equals_one_that_was_not(tmp_path, capsys):
    train.train(config(7, eval_every=6), tmp_path / "whole", **ONE)
    seen = []

    def dies(objective, params, step):
        seen.append(step)
        if seen == [6, 6]:
            raise RuntimeError("killed")
        return {}

    with pytest.raises(RuntimeError, match="killed"):
        train.train(config(7, eval_every=6), tmp_path / "killed", evaluate=dies, **ONE)
    train.train(config(7, eval_every=6), tmp_path / "killed", **ONE)
    assert capsys.readouterr().out.count("back to step 4") == 3
    check_same(tmp_path / "killed", tmp_path / "whole")


def test_an_evaluation_that_is_stopped_after_going_back_is_made_up_for(tmp_path):
    """Although the run had evaluated itself at that step before it went astray."""
    seen = []

    def stopped(objective, params, step):
        seen.append(step)
        if seen == [6, 6]:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"n": 1.0}

    with pytest.raises(train.Interrupted):
        train.train(config(7, eval_every=6, steps=8), tmp_path, evaluate=stopped, **ONE)
    train.train(config(7, eval_every=6, steps=8), tmp_path, evaluate=stopped, **ONE)
    assert [line["step"] for line in logs.read(tmp_path / "metrics.jsonl") if "eval/n" in line] == [6, 8]


def test_how_often_it_went_back_is_saved(tmp_path):
    """Also where nothing was logged since."""
    rare = config(7, log_every=20, eval_every=11)
    train.train(rare, tmp_path / "whole", **ONE)

    def dies(objective, params, step):
        raise RuntimeError(f"killed at {step}")

    with pytest.raises(RuntimeError, match="killed at 11"):
        train.train(rare, tmp_path / "killed", evaluate=dies, **ONE)
    train.train(rare, tmp_path / "killed", **ONE)
    check_same(tmp_path / "killed", tmp_path / "whole")
    assert [line["guard/rollbacks"] for line in numbers(tmp_path / "killed") if "guard/rollbacks" in line] == [1]


def test_before_the_first_save_it_begins_anew(tmp_path, capsys):
    train.train(config(2), tmp_path, **ONE)
    assert "step 2: not finite" in (said := capsys.readouterr().out) and "back to step 0, and past 2 batches" in said
    assert numbers(tmp_path)[-1]["step"] == 20


def test_it_stops_where_going_back_does_not_help(tmp_path):
    astray = helpers.config(objective=dict(target="helpers_objective:ToyGan", nan_at=5), steps=20, save_every=4, rollbacks=2)
    with pytest.raises(train.Diverged, match=r"step 6: not finite: .*, after going back 2 times; the last checkpoint is step 4"):
        train.train(astray, tmp_path, **ONE)


def test_a_spike_counts_as_going_astray(tmp_path, capsys):
    spiky = config(18, fault=1e3, spike=20.0)
    train.train(spiky, tmp_path, **ONE)
    assert "step 18: loss/generator rose to" in (said := capsys.readouterr().out) and "back to step 16, and past 2 batches" in said
    assert numbers(tmp_path)[-1]["guard/skipped"] == 2
    with pytest.raises(train.Diverged, match="step 18: loss/generator rose to .*; the last checkpoint is step 16"):
        train.train(spiky | {"rollbacks": 0}, tmp_path / "stops", **ONE)


def test_what_a_spike_is():
    guard = Guard(1, 5.0)
    losses = 1 + 0.1 * np.random.default_rng(0).standard_normal(WINDOW + 40)
    for i, value in enumerate(losses):
        assert not guard.spikes({"loss/g": value, "loss/d": -value})
        if i < LEAST - 1:
            assert not _copy(guard).spikes({"loss/g": 1e6})  # too few to say
    seen = np.array(guard.losses["loss/g"])
    np.testing.assert_array_equal(seen, losses[-WINDOW:])
    limit = np.median(seen) + 5 * 1.4826 * np.median(np.abs(seen - np.median(seen)))
    assert not _copy(guard).spikes({"loss/g": limit - 1e-6}) and not _copy(guard).spikes({"loss/g": -1e6})
    assert _copy(guard).spikes({"loss/g": limit + 1e-6, "loss/d": -1.0}) == [f"loss/g rose to {limit + 1e-6:.4g} from about {np.median(seen):.4g}"]
    assert not Guard(1, 0.0).spikes({"loss/g": 1e9})


def _copy(guard: Guard) -> Guard:
    other = Guard(guard.most, guard.spike)
    other.set_state(guard.get_state())
    return other


@pytest.mark.parametrize("changes, message", [({"spike": -1.0}, "config.spike is -1.0"), ({"rollbacks": -1}, "config.rollbacks is -1")])
def test_wrong_values_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        check_config(helpers.config(**changes))
