"""What `magvid compile` says: bytes, collectives and the least time of a step."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest
import tiny_config

from magvid import ahead, cost, explain, meter, sharding
from magvid.__main__ import main
from magvid.flags import load_config
from magvid.job import check_config
from magvid.types import UserError

SPREAD = {
    "data": {},
    "fsdp": dict(mesh={"fsdp": -1}, sharding=[[".*", "fsdp"]]),
}


def plan(**fields):
    config = check_config(tiny_config.get_config() | fields)
    return explain.Plan.of(config, sharding.make_mesh(config["mesh"], jax.devices()), load_config)


@pytest.mark.parametrize("how", SPREAD)
def test_a_step_on_eight_devices(how):
    """Arguments are what was planned; gradients are summed over the devices, and with FSDP what is spread is gathered."""
    planned = plan(**SPREAD[how])
    found = ahead.compile_step(planned, "cpu:8", ahead.lower(planned))
    held = sum(planned.held().values())
    assert 0.97 * held < found.arguments <= 1.01 * held and found.temporary > 0 and found.chips == 8  # what no output needs is left out
    assert found.flops == pytest.approx(cost.flops(planned.trace()))
    weights = 4 * sum(found.parameters.values())
    assert found.collectives["all-reduce"].count > 0 and ("all-gather" in found.collectives) == (how == "fsdp")
    if how == "data":
        reduced = found.collectives["all-reduce"]
        assert weights <= reduced.result < 1.1 * weights and reduced.sent == pytest.approx(2 * 7 / 8 * reduced.result)
    else:
        spread = sum(x.size * 4 for x in jax.tree.leaves(planned.prepared.like.params) if not x.sharding.is_fully_replicated)
        assert found.collectives["all-gather"].result >= spread > 0.8 * weights


TEXT = """HloModule step, is_scheduled=true

%body.1 (p: (s32[], f32[2,3])) -> (s32[], f32[2,3]) {
  %all-reduce.7 = f32[2,3]{1,0} all-reduce(%x), replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %tuple = (s32[], f32[2,3]{1,0}) tuple(%i, %all-reduce.7)
}

%unknown.1 (p: f32[5]) -> f32[5] {
  ROOT %all-to-all.1 = f32[5]{0} all-to-all(%x), dimensions={0}
}

%begun.1 (p: f32[9]) -> f32[9] {
  ROOT %all-gather.9 = f32[800]{0} all-gather(%x), channel_id=9, replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=4] {'axis_2'}, dimensions={0}, frontend_attributes={chain_id="0"}
}

%ended.1 (p: f32[9]) -> f32[9] {
  ROOT %all-gather.10 = f32[800]{0} all-gather(%x), channel_id=9, replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=4] {'axis_2'}, dimensions={0}, frontend_attributes={chain_id="0"}
}

%all-reduce-scatter.1 (p: f32[80]) -> f32[40] {
  %all-reduce.9 = f32[80]{0} all-reduce(%x), channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_0','axis_1':(2)2}, to_apply=%add
  ROOT %dynamic-slice = f32[20]{0} dynamic-slice(%all-reduce.9, %i), dynamic_slice_sizes={20}
}

ENTRY %main.1 (x: f32[9]) -> f32[9] {
  %while.1 = (s32[], f32[2,3]{1,0}) while(%tuple.1), condition=%cond.1, body=%body.1, backend_config={"known_trip_count":{"n":"5"},"known_init_step":{"init":"0"}}
  %while.2 = f32[5]{0} while(%x), condition=%cond.2, body=%unknown.1
  %fusion.1 = f32[9]{0} fusion(%x), kind=kOutput, calls=%begun.1
  %fusion.2 = f32[20]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %all-reduce.1 = f32[1024,256]{1,0} all-reduce(%x), channel_id=1, replica_groups=[1,16]<=[16], to_apply=%add
  ROOT %all-reduce.2 = (f32[8]{0}, bf16[8,4]{1,0:T(8,128)}) all-reduce(%x, %y), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  %all-gather-start.1 = (f32[64,16]{1,0}, f32[128,16]{1,0}) all-gather-start(%x), replica_groups=[2,2]<=[4], dimensions={0}
  %all-gather-start.2 = ((f32[4]{0}, f32[8]{0}), (f32[8]{0}, f32[16]{0})) all-gather-start(%x, %y), replica_groups=[2,2]<=[4], dimensions={0}
  %all-gather-done.1 = f32[128,16]{1,0} all-gather-done(%all-gather-start.1)
  %reduce-scatter.3 = bf16[32,16]{1,0} reduce-scatter(%x), replica_groups=[1,4]<=[4], dimensions={0}
  %collective-permute-start = (u8[100]{0}, u8[100]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %all-to-all.9 = f32[10,10]{1,0} all-to-all(%x), dimensions={0}
  ROOT %fusion = f32[9]{0} fusion(%all-reduce.1), kind=kLoop, calls=%ended.1
}
"""


def test_collectives_are_read_from_a_program():
    """Those of a loop as often as it goes round, those that are fused on TPUs once."""
    assert ahead.collectives(TEXT, 4, loops=3) == {
        "all-reduce": (2 + 5, 4 * 2**18 + 32 + 64 + 5 * 24, 2 * 15 / 16 * 4 * 2**18 + 96 + 5 * 36),
        "all-gather": (3, 4 * (2048 + 8 + 16) + 3200, 2 * (2048 + 8 + 16) + 2400),
        "reduce-scatter": (2, 1024 + 80, 3 * 1024 + 3 * 80),
        "all-to-all": (1 + 3, 400 + 3 * 20, 300 + 3 * 15),
        "collective-permute": (1, 100, 100),
    }


def test_what_a_loop_writes_counts_as_often_as_it_goes_round():
    def step(x):
        y = jax.lax.fori_loop(0, 20, lambda i, y: y @ x + y[::-1], x)  # two arrays a round, or what the compiler makes of it
        return jnp.sort(y)

    text = jax.jit(step).lower(jnp.ones((64, 64))).compile().as_text()
    assert 8 < ahead.repeats(text) < 20 and ahead.repeats(text.replace("known_trip_count", "no"), loops=20) == ahead.repeats(text)


def test_microbatches_are_counted():
    """The loop over them, not the optimiser behind it."""
    of = lambda microbatch: (lambda planned: ahead.compile_step(planned, "cpu:8", ahead.lower(planned)))(plan(batch=32, microbatch=microbatch))
    whole, parts = of(0), of(1)
    assert parts.flops == pytest.approx(whole.flops, rel=0.05)
    assert whole.bytes < parts.bytes < 4 * whole.bytes


def test_the_least_time_of_a_step():
    planned = plan()
    found = ahead.compile_step(planned, "cpu:8", ahead.lower(planned))
    assert found.roofline() == {}
    made_up = dataclasses.replace(found, kind="TPU v5 lite", flops=197e12, bytes=819e9 / 2, collectives={"all-gather": ahead.Moved(1, 1e9, 25e9)})
    assert made_up.roofline() == pytest.approx({"compute": 1.0, "memory": 0.5, "links": 0.25})
    text = "\n".join(made_up.lines())
    assert "a step takes at least 1e+03 ms, bound by compute" in text and "of 17.2 GB: it fits" in text
    of = lambda kind: meter.data_sheet(kind, ahead.CHIPS)
    assert of("TPU v5p").memory == 95 * 2**30 and of("TPU v5 lite").memory == 16 * 2**30


def test_equal_programs_have_equal_fingerprints():
    options = {"cpu": {"xla_cpu_enable_fast_min_max": True}}
    same = [ahead.lower(plan(**fields)).fingerprint for fields in ({}, {"log_every": 7}, {"batch": 16}, {"compiler_options": options})]
    assert same[0] == same[1] and len(set(same)) == 3


def test_what_does_not_fit_is_said():
    class Program:
        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.93G of 15.75G hbm. Exceeded")

    with pytest.raises(UserError, match="v5e:4x4: it does not fit, 18.93 GiB of 15.75"):
        ahead.compile_step(plan(), "v5e:4x4", ahead.Lowered(Program(), 1.0))


BAD = {
    "--topology=cpu:none": "--topology=cpu:none: cpu:N, such as cpu:8",
    "--topology=local --chips=99": "--chips=99: local has 8",
    "--topology=v9z:2x2": "--topology=v9z:2x2: ",
    "--topology=v5e": "--topology=v5e: a kind of chip and how many there are in each direction, such as v5e:16x16",
    "--topology=v5e:4by4": "--topology=v5e:4by4: a kind of chip and how many",
    "--topology=v5e:4x4x4": "--topology=v5e:4x4x4: a v5e has 2 dimensions, and at most 256 chips, such as v5e:4x4",
    "--topology=v6e:32x32": "--topology=v6e:32x32: a v6e has 2 dimensions, and at most 256 chips",
    "--topology=v5p:4x4": "--topology=v5p:4x4: a v5p has 3 dimensions, and at most 8960 chips, such as v5p:4x4x4",
    "--topology=cpu:9": "--topology=cpu:9: jax has 8 cpu devices in this process already: start another one",
    "--topology=cpu:8 --steps=2": "--steps=2: steps are timed where the devices are, --topology=local",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_named(words, capsys):
    assert main(["compile", f"--config={tiny_config.__file__}", *words.split()]) == 2
    assert BAD[words] in capsys.readouterr().err


def test_some_chips_of_a_topology_fill_a_part_of_it(monkeypatch):
    """What jax makes meshes of."""
    from jax.experimental import topologies

    chips = [types.SimpleNamespace(coords=(x, y, 0), core_on_chip=0) for y in range(4) for x in range(4)]
    monkeypatch.setattr(topologies, "get_topology_desc", lambda **_: types.SimpleNamespace(devices=chips))
    assert ahead.open_devices("v5e:4x4", 8) == chips[:8] and ahead.open_devices("v5e:4x4") == chips
    with pytest.raises(UserError, match="--chips=5: of v5e:4x4 use the first 1, 2, 3, 4, 8, 12, 16, which fill a part of it"):
        ahead.open_devices("v5e:4x4", 5)


def test_made_up_devices_where_there_are_some_already():
    assert len(ahead.open_devices("cpu:8")) == 8 and ahead.open_devices("cpu:2") == jax.devices()[:2]


def test_steps_are_timed_here(capsys):
    assert main(["compile", f"--config={tiny_config.__file__}", "--steps=2"]) == 0
    out = capsys.readouterr().out
    assert "8 x cpu, mesh data 8, batch 8" in out and ", step 0." in out


@pytest.mark.parametrize(
    "message, found",
    [
        ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 25.22G of 15.75G hbm. Exceeded", ("25.22", "15.75")),
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (15.77G) exceeds available HBM (15.75G).", ("15.77", "15.75")),
        ("INTERNAL: something else", None),
    ],
)
def test_what_a_compiler_says_of_too_large_a_program(message, found):
    assert ahead.too_much(message) == found
