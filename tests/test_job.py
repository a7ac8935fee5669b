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
        (dict(train=3), "config.data.train is 3: give a dict with source"),
        (dict(train=None), "config.data.train is null: give a dict with source"),
        (dict(eval=dict(source={})), "config.data lacks train"),
        (dict(train=dict(workers=1)), "config.data.train lacks source"),
        (dict(train=dict(source="videos")), 'config.data.train.source is "videos": give a dict with target'),
        (dict(train=dict(source={}, transforms={})), "config.data.train.transforms is {}: give a list of such dicts"),
        (dict(train=dict(source={}), eval=dict(source={}, batch="x")), 'config.data.eval.batch is "x": give a whole number of at least 1'),
        (dict(train=dict(source={}, workers=-1)), "config.data.train.workers is -1: give a whole number of at least"),
        (dict(train=dict(source={}), pictures=dict(source={}, batch=8)), "config.data.pictures lacks every"),
    ],
)
def test_wrong_fields_of_data_are_named(data, message):
    with pytest.raises(UserError) as error:
        job.check_config(helpers.config() | dict(data=data))
    assert message in str(error.value)


RULES = [[".*", dict(peak=1.0)]]


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(objective=dict(tokenizer=1)), "config.objective has no target: name what is trained"),
        (dict(optim=dict(generator=None)), "config.optim.generator is null: give a dict with optimizer, rules, clip"),
        (dict(optim=dict(generator={})), "config.optim.generator.rules is null: give [regex, schedule or null]"),
        (dict(optim=dict(generator=dict(rulez=RULES))), "config.optim.generator has no field ['rulez'], did you mean rules?; it may have optimizer, rules, clip"),
        (dict(optim=dict(generator=dict(rules=[[".*"]]))), 'config.optim.generator.rules[0] is [".*"]: give [regex, schedule or null]'),
        (dict(optim=dict(generator=dict(rules=[["(", None]]))), 'config.optim.generator.rules[0]: "(" is no regular expression'),
        (dict(optim=dict(generator=dict(rules=[[".*", 1e-3]]))), "config.optim.generator.rules[0][1] is 0.001: give a dict with peak, warmup, decay, total of a schedule"),
        (dict(optim=dict(generator=dict(rules=[[".*", dict(peek=1)]]))), "config.optim.generator.rules[0][1] has no field ['peek'], did you mean peak?"),
        (dict(optim=dict(generator=dict(rules=[[".*", dict(peak="x")]]))), 'config.optim.generator.rules[0][1].peak is "x": give a number of at least 0'),
        (dict(optim=dict(generator=dict(rules=[[".*", dict(peak=1, decay="cosin")]]))), 'decay "cosin" is unknown, did you mean cosine?'),
        (dict(optim=dict(generator=dict(rules=RULES, clip="x"))), 'config.optim.generator.clip is "x": give the greatest norm of a gradient'),
        (dict(optim=dict(generator=dict(rules=RULES, optimizer="adamw"))), 'config.optim.generator.optimizer is "adamw"'),
        (dict(optim=dict(generator=dict(rules=RULES, optimizer=dict(name="adamx")))), 'optimizer "adamx" is unknown, did you mean adam'),
        (dict(optim=dict(generator=dict(rules=RULES, optimizer=dict(name="adamw", weight_decy=1)))), "takes no ['weight_decy'], did you mean weight_decay?"),
        (dict(init=["runs/vq"]), 'config.init[0] is "runs/vq": give {"run": FOLDER}'),
        (dict(init=[dict(rn="runs/vq")]), 'config.init[0] is {"rn": "runs/vq"}: give {"run": FOLDER}'),
        (dict(init=[dict(run="runs/vq", group=["a"])]), "config.init[0] has unknown entries ['group'], did you mean groups?"),
        (dict(sharding=[[".*", [1]]]), "config.sharding[0]: 1 is no mesh axis, list of axes, or null"),
        (dict(sharding=[[".*", ["model", "model"]]]), "model can divide one dimension, not two"),
    ],
)
def test_wrong_values_are_named(changes, message):
    with pytest.raises(UserError) as error:
        job.check_config(helpers.config() | changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(data=dict(train=dict(source=dict(target="helpers_objective:Clps")))), 'has no "Clps"; it has .*, did you mean Clips?'),
        (dict(data=dict(train=dict(source=dict(target="helpers_objective:Clips", siz=4)))), "did you mean size?; its arguments are"),
        (dict(metrics=[dict(target="magvid.metrics.sprites:SpriteJuge")]), 'has no "SpriteJuge"'),
    ],
)
def test_names_in_what_is_opened_later_are_looked_at_first(changes, message):
    held_out = dict(data=helpers.config()["data"] | dict(eval=changes["data"]["train"])) if "data" in changes else changes
    for config in (changes, held_out):
        with pytest.raises(ValueError, match=message.replace("?", r"\?")):
            make(**config)


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
    smaller = dict(microbatch=1, data=dict(eval=dict(batch=8, limit=9)))
    towers = lambda *runs: dict(towers=[dict(target="a:B", run=run) for run in runs])
    assert job.differences(towers("a", "b"), towers("a", "c")) == ['towers[1].run ("b" -> "c")'] and len(job.differences(towers("a"), towers("a", "b"))) == 1
    assert job.differences(smaller, dict(microbatch=2, data=dict(eval=dict(batch=4, limit=9)))) == []  # other devices hold as much as they can
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
