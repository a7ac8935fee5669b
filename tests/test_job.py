"""Configs: complete, compared, and cut into what devices hold."""

import helpers_objective as helpers
import jax
import numpy as np
import pytest

from magvid import job
from magvid.types import UserError


def make(devices=1, **changes):
    return job.Job.from_config(job.check_config(helpers.config(**changes)), jax.devices()[:devices])


def test_a_config_is_plain_and_complete():
    config = job.check_config(helpers.config(ema_groups=("generator",)))
    assert config["ema_groups"] == ["generator"] and config["keep"] == 3 and config["sharding"] == [[".*", None]]
    with pytest.raises(UserError, match="lacks steps, batch"):
        job.check_config(dict(objective={}, data={}, optim={}))


@pytest.mark.parametrize(
    "data, message",
    [
        (dict(train=dict(source={}, transfroms=[])), "config.data.train has no field transfroms, did you mean transforms?; it may have source"),
        (dict(trian=dict(source={})), "config.data has no trian, did you mean train?; it may have train, eval, pictures"),
        (dict(train=dict(source={}), eval=dict(source={}, limits=3)), "config.data.eval has no field limits, did you mean limit?"),
    ],
)
def test_wrong_fields_of_data_are_named(data, message):
    with pytest.raises(UserError) as error:
        job.check_config(helpers.config() | dict(data=data))
    assert message in str(error.value)


def test_options_of_the_compiler_are_its_own():
    """Those of another platform are not looked at; a name that the compiler does not know is told."""

    def step(**options):
        the_job = make(compiler_options=options)
        return the_job.step(the_job.prepare(next(the_job.loader())))

    step(tpu={"xla_no_such_option": False}), step(cpu={"xla_cpu_enable_fast_math": False})
    with pytest.raises(UserError, match='config.compiler_options.cpu is {"xla_no_such_option": false}: .*No such compile option'):
        step(cpu={"xla_no_such_option": False})
    with pytest.raises(UserError, match="config.compiler_options.tpus is {}: give {option: value} for one of cpu, gpu, tpu"):
        make(compiler_options={"tpus": {}})


def test_microbatches_fit_the_devices():
    def count(batch, microbatch, devices):
        return make(devices, batch=batch, microbatch=microbatch).microbatches()

    assert [count(16, 0, 1), count(16, 4, 1), count(16, 4, 4), count(16, 3, 2), count(16, 1, 8)] == [1, 4, 1, 4, 2]


def test_differences_look_inside():
    old = dict(a=dict(b=1, c=[1]), steps=1, data=dict(train=dict(workers=1, x=1)), only=2)
    new = dict(a=dict(b=1, c=[2]), steps=2, data=dict(train=dict(workers=2, x=2)))
    assert job.differences(old, new) == ["a.c ([1] -> [2])", "data.train.x (1 -> 2)", "only (2 -> null)"]


def test_held_out_data_is_one_pass_over_full_batches():
    data = helpers.config()["data"]
    for size, limit, expected in [(20, None, [8, 8]), (20, 10, [8]), (3, None, [8])]:
        source = dict(target="helpers_objective:Clips", size=size)
        the_job = make(data=data | dict(eval=dict(source=source, limit=limit)))
        batches = list(the_job.held_out())
        assert [len(b["video"]) for b in batches] == expected
        np.testing.assert_array_equal(batches[0]["video"][0], helpers.Clips()[0]["video"])
    assert list(make(data=dict(train=data["train"])).held_out()) == []


def test_a_job_starts_from_its_seed():
    the_job = make()
    batch = next(the_job.loader())
    first, again, other = (j.prepare(batch).init() for j in (the_job, make(), make(seed=1)))
    kernel = lambda s: np.asarray(s.params["generator"]["enter"]["kernel"])
    np.testing.assert_array_equal(kernel(first), kernel(again))
    assert not np.array_equal(kernel(first), kernel(other))
    assert first.step == 0 and set(first.ema) == {"generator"}
