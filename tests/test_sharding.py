"""Where arrays lie, and that eight devices compute what one does."""

import chex
import helpers_objective as helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from magvid import job, sharding
from magvid.types import UserError

TREE = {
    "a": {"kernel": jax.ShapeDtypeStruct((64, 128), jnp.float32), "bias": jax.ShapeDtypeStruct((128,), jnp.float32)}
}


def test_mesh_takes_what_is_left():
    assert dict(sharding.make_mesh({"data": -1, "model": 2}).shape) == {"data": 4, "model": 2}
    assert dict(sharding.make_mesh({"data": -1}, jax.devices()[:1]).shape) == {"data": 1}
    assert dict(sharding.make_mesh({}).shape) == {"data": 8}


@pytest.mark.parametrize(
    "axes", [{"data": 3}, {"data": -1, "model": -1}, {"data": 0}, {"data": 16}, {"data": -1, "model": 3}]
)
def test_mesh_that_does_not_fit_is_an_error(axes):
    with pytest.raises(ValueError, match="mesh"):
        sharding.make_mesh(axes)


def test_rules_decide_in_order():
    mesh = sharding.make_mesh({"data": 4, "model": 2})
    found = sharding.shardings(TREE, [("bias", None), ("kernel", [None, "model"])], mesh)
    assert found["a"]["bias"].spec == P() and found["a"]["kernel"].spec == P(None, "model")
    assert sharding.shardings(TREE, [(".*", ["...", "model"])], mesh)["a"]["bias"].spec == P("model")
    assert sharding.shardings(TREE, [("bias", None), (".*", ["...", "model", None])], mesh)["a"]["kernel"].spec == P("model", None)
    assert sharding.shardings(TREE, [(".*", "fsdp")], mesh)["a"]["kernel"].spec == P(None, "data")
    assert sharding.shardings(TREE, [(".*", "fsdp")], mesh)["a"]["bias"].spec == P()  # small
    one = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    assert sharding.shardings(TREE, [("bias", None), (".*", [None, "model"])], one)["a"]["kernel"].spec == P(None, None)


@pytest.mark.parametrize(
    "rules, message",
    [
        ([("a/kernel", None)], 'no rule covers "a/bias"'),
        ([(".*", ["model", None, None])], "at most"),
        ([(".*", "model")], "not None"),
        ([("kernel", None), (".*", ["odd"])], "not divisible by the 3 devices"),
    ],
)
def test_wrong_rules_are_named(rules, message):
    with pytest.raises(ValueError, match=message):
        sharding.shardings(TREE, rules, sharding.make_mesh({"odd": 3}, jax.devices()[:3]))


def test_constrain_is_nothing_without_a_mesh_and_acts_with_one():
    x = jnp.ones((8, 4))
    assert sharding.constrain(x, ("data", None)) is x
    mesh = sharding.make_mesh({"data": 8})
    with jax.set_mesh(mesh):
        found = jax.jit(lambda x: sharding.constrain(x * 2, (("data", "fsdp"), "model")))(x)
        uneven = jax.jit(lambda x: sharding.constrain(x * 2, ("data", None)))(jnp.ones((12, 4)))
    assert found.sharding.is_equivalent_to(jax.NamedSharding(mesh, P("data", None)), 2)
    assert uneven.sharding.is_fully_replicated


def test_weights_are_gathered_where_the_batch_is_spread_and_gradients_scattered():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "model": 2})
    places = {"a": P("fsdp", "model"), "b": P(None, ("data", "fsdp")), "c": P(None, "model"), "d": P()}
    places = {name: jax.NamedSharding(mesh, spec) for name, spec in places.items()}
    tree = {name: jax.device_put(np.arange(32.0).reshape(4, 8), place) for name, place in places.items()}
    with jax.set_mesh(mesh):
        whole = jax.jit(lambda tree: sharding.gathered(tree, places))(tree)
        again = jax.jit(lambda tree: sharding.scattered(tree, places))(whole)
    for name, spec in {"a": P(None, "model"), "b": P(), "c": P(None, "model"), "d": P()}.items():
        assert whole[name].sharding.is_equivalent_to(jax.NamedSharding(mesh, spec), 2), name
        assert again[name].sharding.is_equivalent_to(places[name], 2)
    chex.assert_trees_all_equal(tree, whole, again)
    assert all(sharding.gathered(tree, places)[name] is tree[name] for name in "cd")  # nothing to say


def test_batch_is_spread_and_texts_stay():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "model": 2})
    batch = sharding.global_batch(
        {"video": np.zeros((8, 2, 3), np.uint8), "caption": ["x"] * 8, "name": np.array(["y"] * 8)}, mesh
    )
    assert list(batch) == ["video"] and batch["video"].sharding.shard_shape((8, 2, 3)) == (2, 2, 3)
    assert sharding.data_shards(mesh) == 4


@pytest.mark.parametrize(
    "held, parts",
    [
        ([[0], [1], [2], [3]], [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ([[0], [0], [1], [1]], [(0, 2), (0, 2), (1, 2), (1, 2)]),  # an axis "model" over two processes each
        ([[0, 1], [0, 1]], [(0, 1), (0, 1)]),
        ([[2, 3], [0, 1]], [(1, 2), (0, 2)]),  # devices in another order than processes
        ([[0, 2], [1, 3]], None),
        ([[0, 1], [1, 2], [3]], None),
    ],
)
def test_rows_of_a_process_are_those_its_devices_hold(held, parts, monkeypatch):
    """`held`: of each process, the rows of its devices."""

    class Places:
        def devices_indices_map(self, shape):
            return {(p, row): (slice(row, row + 1),) for p, rows in enumerate(held) for row in rows}

    class Device(tuple):
        process_index = property(lambda self: self[0])

    places = {Device(k): v for k, v in Places().devices_indices_map(()).items()}
    monkeypatch.setattr(Places, "devices_indices_map", lambda self, shape: places)
    monkeypatch.setattr(sharding, "batch_sharding", lambda mesh: Places())
    mesh = sharding.abstract_mesh({"data": -1}, 1 + max(map(max, held)))
    if parts:
        assert [sharding.rows_of.__wrapped__(mesh, p) for p in range(len(held))] == parts
    else:
        with pytest.raises(UserError, match="a process would need other rows of a batch than it can read"):
            sharding.rows_of.__wrapped__(mesh, 0)


def run(devices, mesh, rules, **changes):
    """Two steps of the toy: (state, metrics)"""
    config = helpers.config(objective=dict(target="helpers_objective:ToyGan"), mesh=mesh, sharding=rules, **changes)
    the_job = job.Job.from_config(job.check_config(config), devices)
    loader = the_job.loader()
    prepared = the_job.prepare(next(loader))
    train_state, step = prepared.init(), the_job.step(prepared)
    with jax.set_mesh(the_job.mesh):
        for _ in range(2):
            train_state, metrics, _ = step(train_state, sharding.global_batch(next(loader), the_job.mesh))
    loader.close()
    return train_state, metrics


@pytest.fixture(scope="module")
def alone():
    return run(jax.devices()[:1], {"data": -1}, [(".*", None)])


@pytest.mark.parametrize(
    "mesh, rules, changes",
    [
        ({"data": -1}, [(".*", None)], {}),
        (
            {"data": 2, "fsdp": 2, "model": 2},
            [("generator/enter/kernel", ["fsdp", "model"]), (".*", "fsdp")],
            {"microbatch": 1},
        ),
    ],
)
def test_eight_devices_equal_one(alone, mesh, rules, changes):
    many = run(jax.devices()[:8], mesh, rules, **changes)
    for a, b in ((alone[0].params, many[0].params), (alone[0].ema, many[0].ema), (alone[1], many[1])):
        chex.assert_trees_all_close(jax.device_get(a), jax.device_get(b), rtol=2e-4, atol=1e-5)
    kernel, moment = many[0].params["generator"]["enter"]["kernel"], many[0].opt["generator"][1].mu["enter"]["kernel"]
    average = many[0].ema["generator"]["enter"]["kernel"]
    assert kernel.sharding.is_equivalent_to(moment.sharding, 2) and kernel.sharding.is_equivalent_to(
        average.sharding, 2
    )
    if "model" in mesh:
        assert kernel.sharding.shard_shape((96, 48)) == (48, 24)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_checksum_sees_a_change_an_exchange_and_no_mesh(dtype):
    values = np.random.default_rng(0).integers(0, 2, (4, 6, 8)).astype(jnp.dtype(dtype))
    spread = jax.device_put(values, jax.NamedSharding(sharding.make_mesh({"a": 2, "b": 4}), jax.P("b", None, "a")))
    assert sharding.checksum(values) == sharding.checksum(jnp.asarray(values)) == sharding.checksum(spread)
    other = values.copy()
    other[1, 2, 3] = 1 - values[1, 2, 3]
    assert sharding.checksum(other) != sharding.checksum(values) != sharding.checksum(np.roll(values, 1, axis=1))


def test_checksum_in_closed_form():
    c = 2654435761
    assert sharding.checksum(np.array([[3, 0], [0, 5]], np.uint32)) == (3 + 5 * (2 * 3 * c + 1)) % 2**32
    assert sharding.checksum(np.uint32(9)) == 9
    with pytest.raises(ValueError, match="32 bits"):
        sharding.checksum(np.zeros(2))


def test_checksums_by_item_and_name():
    x = np.arange(3, dtype=np.int32)
    assert sharding.checksums({"params": {"a/b": x}, "ema": {}}) == {"params/a/b": sharding.checksum(x)}
