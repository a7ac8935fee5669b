from dataclasses import replace

import numpy as np
import pytest

from magvid.data.sprite_world import SHAPES, TEXTURES, WORLDS, World, as_world, brightness, distance, rasterise


def _draw(shape, radius, angle=0.0, texture="plain", size=64):
    pose = np.array([[size / 2 + 0.3, size / 2 - 0.2, radius, angle]])
    alpha, shade = rasterise(shape, texture, pose, *[np.arange(size)[None] + 0.5] * 2)
    return alpha[0], np.broadcast_to(shade, alpha.shape)[0]


@pytest.mark.parametrize("shape, area", [
    ("disc", np.pi), ("ring", np.pi * (1 - 0.5**2)), ("square", 1.6**2), ("triangle", 3 * np.sqrt(3) * 0.575**2),
    ("cross", 2 * 2.1 * 0.72 - 0.72**2), ("star", 5 * 1.15 * 0.52 * np.sin(np.pi / 5))])
@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_coverage_sums_to_the_area_and_is_centred(shape, area, angle):
    alpha, _ = _draw(shape, 20, angle)
    np.testing.assert_allclose(alpha.sum(), area * 20**2, rtol=0.005)
    grid = np.arange(64) + 0.5
    centre = np.array([alpha.sum(1) @ grid, alpha.sum(0) @ grid]) / alpha.sum()
    np.testing.assert_allclose(centre, [32.3, 31.8], atol=0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_reach_no_further_than_their_extent_and_not_much_less(shape):
    y, x = np.meshgrid(*[np.linspace(-1.5, 1.5, 301)] * 2, indexing="ij")
    inside = distance(shape, y, x) < 0
    reach = np.hypot(y, x)[inside].max()
    assert 0.95 < reach <= 1.15 + 1e-9


def test_the_triangle_and_the_star_point_up():
    for shape in ("triangle", "star"):
        assert distance(shape, np.array(-1.1), np.array(0.0)) < 0 < distance(shape, np.array(1.1), np.array(0.0))


def test_a_turn_is_clockwise_on_the_screen():
    alpha, _ = _draw("triangle", 20, np.pi / 2)     # its tip, once up, now points to the right
    assert alpha[32, 32 + 20] == 1 and alpha[32, 32 - 20] == 0


@pytest.mark.parametrize("texture", TEXTURES)
def test_brightness_stays_within_its_range(texture):
    alpha, shade = _draw("disc", 20, 0.3, texture)
    inside = shade[alpha == 1]
    assert inside.max() == 1 and inside.min() == (1.0 if texture == "plain" else 0.6)


def test_unknown_parts_are_named():
    with pytest.raises(ValueError, match="'blob'"):
        distance("blob", np.zeros(1), np.zeros(1))
    with pytest.raises(ValueError, match="'furry'"):
        brightness("furry", np.zeros(1), np.zeros(1), np.ones(1))


def test_a_world_carries_its_name():
    assert as_world("full").name == "full" and replace(WORLDS["small"]).name == "small"
    assert World(shapes=("disc", "square")).name == "full-custom(shapes=disc+square)"
    assert World(shapes=["disc"], max_distractors=0, tilt=0.0).name == \
        "full-custom(shapes=disc, max_distractors=0, tilt=0.0)"


def test_only_visible_pairs_are_classes():
    assert len(WORLDS["full"].pairs) == 66 and len(WORLDS["small"].pairs) == 18
    plain = World(textures=("plain",))
    assert len(plain.pairs) == 64 and ("disc", "spin") not in plain.pairs and ("square", "spin") in plain.pairs
    assert WORLDS["full"].visible_textures("ring", "spin") == ("striped", "dotted")


def test_combinations_that_are_held_out_are_made_of_parts_that_are_seen():
    worlds = {some: WORLDS[f"entities-{some}"] for some in ("seen", "unseen")}
    parts = [(s, c) for s in WORLDS["entities"].shapes for c in WORLDS["entities"].colours]
    of = {some: {(*p, t) for p in parts for t in world.textures_of(*p)} for some, world in worlds.items()}
    assert len(of["seen"]) == 60 and len(of["unseen"]) == 12 and not of["seen"] & of["unseen"]
    assert len(of["seen"] | of["unseen"]) == 72 == sum(len(WORLDS["entities"].textures_of(*p)) for p in parts)
    for k in range(3):
        assert {combination[k] for combination in of["seen"]} == {combination[k] for combination in of["unseen"]}
    assert [w.name for w in worlds.values()] == ["entities-seen", "entities-unseen"]


@pytest.mark.parametrize("wrong, message", [
    (dict(shapes=("disc", "blob")), "blob"), (dict(colours=()), "colours"), (dict(actions=("up", "up")), "actions"),
    (dict(radius=(1, 2)), "radius"), (dict(max_distractors=3), "max_distractors=3"),
    (dict(shapes=("disc",)), "at least two"), (dict(combined="some"), "choose seen"), (dict(combined="seen"), "no spin"),
    (dict(shapes=("disc",), actions=("spin",), textures=("plain",), max_distractors=0), "cannot spin")])
def test_a_world_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        World(**wrong)


def test_an_unknown_world_is_named():
    with pytest.raises(ValueError, match="'tiny'.*full.*small"):
        as_world("tiny")
