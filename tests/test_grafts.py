"""Parameters beside a frozen network: what is split off, merged, scaled and averaged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import flatten, nest
from magvid.grafts import Grafts, average

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
draw = lambda *shape: jnp.asarray(RNG.normal(size=shape), jnp.float32)
WHOLE = nest(
    {
        "enter/kernel": draw(3, 5, 4),
        "attn2/to_k/kernel": draw(4, 6),
        "attn1/to_k/kernel": draw(4, 6),
        "beside/down/kernel": draw(4, 2),
        "beside/up/kernel": draw(2, 4),
        "beside/up/bias": draw(4),
    }
)
GRAFTS = Grafts(new="^beside/", changed="attn2/", widened="^enter/kernel", more=2)


def test_the_base_and_what_is_added():
    base, added = GRAFTS.split(WHOLE, KEY)
    assert {n: x.shape for n, x in flatten(base).items()} == {
        "enter/kernel": (3, 3, 4),
        "attn2/to_k/kernel": (4, 6),
        "attn1/to_k/kernel": (4, 6),
    }
    assert {n: x.shape for n, x in flatten(added).items()} == {
        "enter/kernel": (3, 2, 4),
        "attn2/to_k/kernel": (4, 6),
        "beside/down/kernel": (4, 2),
        "beside/up/kernel": (2, 4),
        "beside/up/bias": (4,),
    }
    assert not added["enter"]["kernel"].any() and not added["attn2"]["to_k"]["kernel"].any()
    merged = flatten(GRAFTS.merge(base, added))
    assert set(merged) == set(flatten(WHOLE))
    for name in ("attn1/to_k/kernel", "attn2/to_k/kernel", "beside/down/kernel", "beside/up/bias"):
        np.testing.assert_array_equal(merged[name], flatten(WHOLE)[name])
    np.testing.assert_array_equal(merged["enter/kernel"][:, :3], WHOLE["enter"]["kernel"][:, :3])
    assert merged["enter/kernel"].shape == (3, 5, 4) and not merged["enter/kernel"][:, 3:].any()


def test_differences_are_added_and_the_last_projections_scaled():
    base, added = GRAFTS.split(WHOLE, KEY)
    added = jax.tree.map(lambda x: x + 1, added)
    merged = flatten(Grafts("^beside/", "attn2/", "^enter/kernel", 2, scale=0.5).merge(base, added))
    np.testing.assert_allclose(merged["attn2/to_k/kernel"], base["attn2"]["to_k"]["kernel"] + 0.5)
    np.testing.assert_allclose(merged["enter/kernel"][:, 3:], np.full((3, 2, 4), 0.5))
    np.testing.assert_allclose(merged["beside/up/kernel"], 0.5 * added["beside"]["up"]["kernel"])
    np.testing.assert_allclose(merged["beside/up/bias"], 0.5 * added["beside"]["up"]["bias"])
    np.testing.assert_array_equal(merged["beside/down/kernel"], added["beside"]["down"]["kernel"])


def test_shapes_suffice_and_narrow_types_are_kept():
    shapes = jax.eval_shape(lambda: GRAFTS.split(WHOLE, KEY))
    jax.tree.map(lambda s, x: np.testing.assert_equal(s.shape, x.shape), shapes, GRAFTS.split(WHOLE, KEY))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), GRAFTS.split(WHOLE, KEY))
    assert {x.dtype for x in jax.tree.leaves(GRAFTS.merge(*half))} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("fields, message", [(dict(new="adapter"), 'new="adapter" is found in the name of no parameter; there are enter/kernel'),
                                             (dict(new="", changed="attn3"), 'changed="attn3"'), (dict(new="", widened="exit"), 'widened="exit"')])  # fmt: skip
def test_a_regex_that_finds_nothing_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Grafts(**fields).split(WHOLE, KEY)


def test_what_belongs_to_another_network_is_named():
    base, added = GRAFTS.split(WHOLE, KEY)
    for name, shape in (("attn2/to_k/kernel", (4, 7)), ("enter/kernel", (3, 2, 5))):
        wrong = nest({**flatten(added), name: np.zeros(shape)})
        with pytest.raises(ValueError, match=f"the adapters' {name} is .*: they belong to another network"):
            GRAFTS.merge(base, wrong)


def test_a_weighted_mean():
    parts = [{"a": {"b": np.full(3, float(i))}} for i in (1, 5)]
    np.testing.assert_allclose(average(parts, [0.75, 0.25])["a"]["b"], np.full(3, 2.0))
    with pytest.raises(ValueError, match=r"cannot be combined: a/b is \(3,\) and \(4,\)"):
        average([parts[0], {"a": {"b": np.zeros(4)}}], [0.5, 0.5])
    with pytest.raises(ValueError, match="a/c is missing and"):
        average([parts[0], {"a": {"b": np.zeros(3), "c": np.zeros(1)}}], [0.5, 0.5])
