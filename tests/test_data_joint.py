"""Batches of pictures among batches of videos, and that a run with both goes on as if nothing had happened."""

import os
import signal
import threading

import helpers_objective as helpers
import jax
import numpy as np
import pytest

from magvid import train
from magvid.checkpoints import Checkpoints
from magvid.curves import read_curves
from magvid.data.joint import Joint
from magvid.data.pipeline import Frames, Loader
from magvid.job import Job, check_config
from magvid.types import UserError

ONE = dict(devices=jax.devices()[:1])


def joint(every=3):
    pictures = Loader(helpers.Clips(), 8, seed=1, transforms=[Frames((0,))])
    return Joint(Loader(helpers.Clips(), 4, seed=0), pictures, every)


def test_every_third_batch_is_of_pictures():
    loader, videos, pictures = joint(), Loader(helpers.Clips(), 4, seed=0), Loader(helpers.Clips(), 8, seed=1)
    for i in range(1, 10):
        batch, alone = next(loader), next(videos if i % 3 else pictures)
        assert batch["video"].shape == ((4, 2, 4, 4, 3) if i % 3 else (8, 1, 4, 4, 3))
        np.testing.assert_array_equal(batch["video"], alone["video"] if i % 3 else alone["video"][:, :1])
    for one in (loader, videos, pictures):
        one.close()


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_the_state_goes_on_at_any_batch(stop):
    loader = joint()
    for _ in range(stop):
        next(loader)
    state = loader.get_state()
    rest = [next(loader)["index"].tolist() for _ in range(6)]
    loader.close()
    again = joint()
    again.set_state(state)
    assert [next(again)["index"].tolist() for _ in range(6)] == rest
    again.close()


def test_not_every_batch_is_of_pictures():
    with pytest.raises(ValueError, match="every=1"):
        joint(1)


def config(**changes):
    base = helpers.config(total=20)
    source = dict(source=dict(target="helpers_objective:Clips", size=32), transforms=[])
    return base | dict(data=base["data"] | dict(pictures=source | dict(batch=16, every=3) | changes))


def test_a_run_with_both_goes_on(tmp_path):
    train.train(config() | dict(steps=10), tmp_path / "parts", **ONE)
    train.train(config(), tmp_path / "parts", **ONE)
    train.train(config(), tmp_path / "whole", **ONE)
    ours, theirs = (Checkpoints(tmp_path / name / "checkpoints").meta(20) for name in ("parts", "whole"))
    assert ours["leaves"] == theirs["leaves"] and ours["data"] == theirs["data"]


@pytest.mark.parametrize("compilation, saved", [(1, []), (2, [2])])  # for videos before the first step, for pictures before the third
def test_asked_to_stop_while_a_step_is_compiled_it_leaves_at_once(tmp_path, monkeypatch, compilation, saved):
    """The batch that the step is compiled for is not lost."""
    train.train(config(), tmp_path / "whole", **ONE)
    compile, over, begun = jax.stages.Lowered.compile, threading.Event(), []

    def waits(self, *args):
        begun.append(self)
        if len(begun) == compilation:
            os.kill(os.getpid(), signal.SIGTERM)
            over.wait(600)
        return compile(self, *args)

    with monkeypatch.context() as patch, pytest.raises(train.Interrupted):
        patch.setattr(jax.stages.Lowered, "compile", waits)
        train.train(config(), tmp_path / "stopped", **ONE)
    over.set()
    assert len(begun) == compilation and Checkpoints(tmp_path / "stopped/checkpoints").steps() == saved
    train.train(config(), tmp_path / "stopped", **ONE)
    ours, theirs = (Checkpoints(tmp_path / name / "checkpoints").meta(20) for name in ("stopped", "whole"))
    assert ours["leaves"] == theirs["leaves"] and ours["data"] == theirs["data"]


def test_the_speed_counts_pictures_as_they_come(tmp_path):
    train.train(config() | dict(log_every=3), tmp_path, **ONE)
    curves = read_curves(tmp_path)
    (steps, speed), (_, examples) = (curves[f"perf/{name}_per_sec"] for name in ("steps", "examples"))
    videos = helpers.config(total=20)["batch"]
    whole = [e / s for step, s, e in zip(steps, speed, examples) if step > 3 and step % 3 == 0]  # the first step, which compiles, is not counted
    assert len(whole) >= 5 and np.allclose(whole, (2 * videos + 16) / 3)


def test_a_batch_of_pictures_that_does_not_divide_is_refused():
    job = Job.from_config(check_config(config(batch=15) | dict(microbatch=2)), **ONE)
    with pytest.raises(UserError, match="data.pictures.batch is 15: a multiple of 4"):
        job.loader()
