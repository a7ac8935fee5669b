"""First parameters are those that `init` alone would draw, each made where it is to lie."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import drawn, flatten
from magvid import draw, sharding
from magvid.build import build
from magvid.draw import Drawing
from magvid.models.layers import Conv, Dense, normal
from magvid.sharding import rematerialised
from test_meshes import OBJECTIVES, opened, planned

KEY = jax.random.key(3)


class Net(nn.Module):
    """Three kernels of one shape, one of another, an array of Flax's own initialiser, and what is not random."""

    @nn.compact
    def __call__(self, x):
        for i in range(3):
            x = Dense(16, name=f"dense_{i}")(x)
        x = x + self.param("positions", nn.initializers.normal(0.5), (16,)) + self.param("table", normal(0.1), (3, 16))[0]
        return x * self.param("scale", nn.initializers.constant(0.5), ())


X = jnp.ones((2, 16))


def init(key, x):
    """Two groups, one of them changed after it is drawn."""
    keys = jax.random.split(key, 3)
    return {"net": Net().init(keys[0], x)["params"], "conv": jax.tree.map(lambda p: p + 1, Conv(4, (1, 3, 3)).init(keys[2], x[:, None, None, None])["params"])}


def whole(sharding, tree):
    return jax.tree.map(lambda _: sharding, tree)


def test_they_are_those_of_init():
    expected, found = flatten(init(KEY, X)), flatten(drawn(init, KEY, X))
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)
    assert len({x.tobytes() for x in map(np.asarray, found.values())}) == len(found) - 2  # the three biases alone are equal


def test_arrays_of_one_shape_share_a_program_and_what_is_not_wanted_is_not_drawn():
    drawing, place = Drawing(init, KEY, X), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    draw._program.cache_clear()
    values, others, finish = drawing({"net": whole(place, drawing.shapes["net"])}, KEY, X)
    assert len(values) == 4 and [x.shape for x in others] == [(16,)]
    assert draw._program.cache_info().misses == 3
    assert set(finish(values, others)) == {"net"}
    values, others, finish = drawing({"net": {"dense_1": {"kernel": place}}}, KEY, X)
    assert len(values) == 1 and not others and draw._program.cache_info().misses == 3
    np.testing.assert_array_equal(finish(values, others)["net"]["dense_1"]["kernel"], drawn(init, KEY, X)["net"]["dense_1"]["kernel"])


def test_blocks_that_are_computed_again_are_drawn_as_others():
    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            return rematerialised(Net)(name="block")(Net(name="before")(x))

    drawing, place = Drawing(Deep().init, KEY, X), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    values, others, _ = drawing({"params": {"block": whole(place, drawing.shapes["params"]["block"])}}, KEY, X)
    assert len(values) == 4 and [x.shape for x in others] == [(16,)]  # and nothing of what they are applied to


def test_each_is_drawn_in_its_place():
    mesh = jax.make_mesh((8,), ("fsdp",))
    drawing = Drawing(init, KEY, X)
    over = lambda x: jax.NamedSharding(mesh, jax.P("fsdp") if x.ndim == 2 and x.shape[0] == 16 else jax.P())
    places = jax.tree.map(over, drawing.shapes)
    values, others, finish = drawing(places, KEY, X)
    assert [x.addressable_shards[0].data.shape for x in values if x.shape == (16, 16)] == [(2, 16)] * 3
    found = jax.jit(finish, out_shardings=places, donate_argnums=0)(values, others)
    assert jax.tree.map(lambda x: x.sharding, found) == places
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, drawn(init, KEY, X))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_of_every_objective_all_random_numbers_are_drawn_in_place(name):
    """But for the four kernels of a layer of MAGVIT's transformers, which Flax's DenseGeneral draws flat."""
    config = planned(name)
    loader = opened(name, config, {}, 1).loader()
    batch = {k: v[:1] for k, v in sharding.numeric(next(loader)).items()}
    loader.close()
    drawing, place = Drawing(build(config["objective"]).init, KEY, batch), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    trained = {g: drawing.shapes[g] for g in config["optim"]}
    values, others, _ = drawing(whole(place, trained), KEY, batch)
    assert len(others) == (4 if name in ("masked", "autoregressive") else 0)
    assert values and all(jnp.issubdtype(x.dtype, jnp.floating) for x in others)  # no key is left for `finish` to draw from
