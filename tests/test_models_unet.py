"""The U-Net's skeleton and Stable Diffusion's layers: equal to diffusers, exact sizes, and what the options promise."""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import helpers
from configs import unets
from helpers import Golden, drawn, relative_error
from helpers_diffusion import golden_input
from helpers_unet import (
    FAST_COMPILE,
    ONE_LEVEL,
    arrays,
    check_parity,
    golden_params,
    inputs,
    last,
    random_params,
    randomised,
    run,
    tiny,
    tokens,
)
from magvid.build import build
from magvid.models.unet import TimeEmbedding
from magvid.types import Condition
from tools.convert_unet import shapes

GOLDEN = Golden("unets", helpers.GOLDEN.parent / "diffusion")
COUNTS = dict(
    sd15=859_520_964,
    sd21=865_910_724,
    modelscope=1_411_233_860,
    mavin=1_411_336_260,
    svd=1_524_623_082,
    magdiff=1_207_971_876,
)


full_size = functools.cache(shapes)


def count(preset: str, *regexes: str) -> int:
    """Parameters in whose names all of the regexes are found."""
    return sum(math.prod(shape) for name, shape in full_size(preset).items() if all(re.search(r, name) for r in regexes))


@pytest.mark.parametrize("preset", COUNTS)
def test_full_sizes_have_the_published_number_of_parameters(preset):
    assert count(preset) == COUNTS[preset]


def test_what_mavin_trains_has_the_published_number_of_parameters():
    parts = {part: count("mavin", unets.MAVIN_TRAINED, part) for part in ("temp_convs/", "attn[12]/", "time_emb_proj/", "cond_proj/")}
    assert count("mavin", unets.MAVIN_TRAINED) == 496_042_176
    assert [round(n / 1e6, 1) for n in parts.values()] == [266.9, 201.2, 25.8, 0.1]


def test_golden():
    """A picture is a video of one frame."""
    unet, x = tiny("sd21", heads=(2, 4)), last(golden_input("u2_x", (2, 4, 8, 8)))[:, None]
    condition = Condition(tokens=tokens(text=golden_input("u2_c", (2, 7, 32))))
    params = golden_params("sd21", unet, x, jnp.zeros(2), condition)
    assert relative_error(run(unet, params, x, (5, 731), condition)[:, 0], last(GOLDEN["sd"])) < 1e-5


def given(channels=4, frames=3, h=6, w=10, n=5, seed=0) -> tuple:
    a = arrays(seed, x=(2, frames, h, w, channels), text=(2, n, 32))
    return a["x"], jnp.array([5.0, 731.0]), Condition(tokens=tokens(text=a["text"]))


def test_remat_changes_neither_names_nor_numbers():
    args = given()
    plain, remat = (tiny("sd21", remat=remat, **ONE_LEVEL) for remat in (False, True))
    params = random_params(plain, *args)
    assert jax.tree.map(jnp.shape, random_params(remat, *args)) == jax.tree.map(jnp.shape, params)
    loss = lambda unet: lambda p: jnp.sum(unet.apply({"params": p}, *args) ** 2)
    gradients = [FAST_COMPILE(jax.grad(loss(unet)))(params) for unet in (plain, remat)]
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients[0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * scale), *gradients)
    primitives = [str(jax.make_jaxpr(jax.grad(loss(unet)))(params)).count("prevent_cse") for unet in (plain, remat)]
    assert primitives == [0, 9]  # 5 res and 4 attention layers


def test_the_projection_of_the_length_begins_at_zero_where_asked():
    condition = Condition(scalars=dict(length=jnp.array([3.0])))
    for zero in (False, True):
        embedding = TimeEmbedding(8, width=4, before="length", before_zero=zero)
        params = drawn(embedding.init, jax.random.key(0), jnp.zeros(1), condition)["params"]
        assert params["cond_proj"]["kernel"].any() != zero


class Adapter(nn.Module):
    """A small adapter; it ends in `up`."""

    @nn.compact
    def __call__(self, x, condition, position):
        return nn.Dense(x.shape[-1], name="up")(nn.gelu(nn.Dense(4, name="down")(x)))


def with_adapters(*sites: str):
    """Stable Diffusion's network with such an adapter at each site."""
    adapters = lambda own: {site: Adapter for site in sites if site in own}
    others = {site: Adapter for site in sites if site != "after_res"}
    return tiny("sd21", **ONE_LEVEL, res=dict(adapters=adapters(["after_res"])), attention=dict(adapters=others))


def check_adapters(base, unet, args, count: int):
    """Without adapters and with them at zero, the same bits; not at zero, others. `count` parameters are added."""
    params, whole = random_params(base, *args), random_params(unet, *args)
    up = lambda path: path[-2].key == "up"
    at_zero = jax.tree_util.tree_map_with_path(lambda path, x: _at(params, path, x * 0 if up(path) else x), whole)
    busy = jax.tree_util.tree_map_with_path(lambda path, x: _at(params, path, x), whole)
    assert len(jax.tree.leaves(whole)) - len(jax.tree.leaves(params)) == count
    expected = run(base, params, *args)
    np.testing.assert_array_equal(run(unet, at_zero, *args), expected)
    assert relative_error(run(unet, busy, *args), expected) > 1e-3


def test_adapters_at_zero_leave_the_output_bit_equal():
    unet = with_adapters("after_res", "beside_spatial")
    check_adapters(tiny("sd21", **ONE_LEVEL), unet, given(), 4 * (5 + 4))


def _at(tree, path, default):
    for key in path:
        tree = tree.get(key.key) if isinstance(tree, dict) else None
    return default if tree is None else tree


def test_odd_sizes_and_joined_latents():
    x, time, condition = given(h=7, w=13)
    unet = tiny("sd21", channels=(32, 32, 32), attention_levels=(False, True, False), heads=2)
    condition = condition.replace(concat=jnp.zeros((*x.shape[:-1], 5)))
    y, variables = jax.eval_shape(lambda: unet.init_with_output(jax.random.key(0), x, time, condition))
    assert y.shape == (2, 3, 7, 13, 4) and variables["params"]["conv_in"]["kernel"].shape == (3, 3, 9, 32)


def test_bfloat16_keeps_float32_parameters():
    x, time, condition = given()
    unet = tiny("sd21", dtype="bfloat16", **ONE_LEVEL)
    y, variables = jax.eval_shape(lambda: unet.init_with_output(jax.random.key(0), x, time, condition))
    assert y.dtype == jnp.bfloat16 and {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_wrong_options_are_named():
    init = lambda unet, *args: jax.eval_shape(unet.init, jax.random.key(0), *(args or given()))
    with pytest.raises(ValueError, match=r"heads=\(2, 4, 8\) needs 2 numbers for the 2 levels"):
        init(tiny("sd21", heads=(2, 4, 8)))
    with pytest.raises(ValueError, match="needs 5 numbers"):
        init(tiny("sd21", epsilon=(1e-5, 1e-6)))
    with pytest.raises(ValueError, match="no site beside_temporal for an adapter here; this layer has beside_spatial"):
        init(with_adapters("beside_temporal"))
    x, time, _ = given()
    with pytest.raises(ValueError, match="the condition has none: give text"):
        init(tiny("sd21"), x, time, Condition())


def test_presets_have_the_inputs_they_name():
    assert unets.PRESETS.keys() == unets.INPUTS.keys() and unets.svd == unets.svd_xt


@pytest.mark.full
@pytest.mark.parametrize("name", unets.MAVIN_VARIANTS)
def test_variants_of_mavin_have_its_parameters(name):
    unet = build(dict(target="magvid.models.unet:UNet", **unets.mavin | unets.MAVIN_VARIANTS[name]))
    told = dict(unets.INPUTS["mavin"], scalars=("length", "start", "end"))
    assert shapes("mavin", unet, told) == full_size("mavin")


CONFIGS = [
    ("sd21", dict(channels=(32, 64), layers=1, heads=(2, 4), attention_levels=(True, False)), dict(h=6, w=10, n=5)),
    ("sd15", dict(channels=(32, 64, 96), layers=1, heads=8, attention_levels=(True, False, True)), dict(h=5, w=7, n=9)),
    ("sd21", dict(channels=(64,), layers=2, heads=(4,), attention_levels=(True,)), dict(h=9, w=4, n=1)),
]


@pytest.mark.full
@pytest.mark.parametrize("number", range(len(CONFIGS)))
def test_equals_diffusers(number):
    from helpers_torch import diffusers, torch

    preset, fields, size = CONFIGS[number]
    x, time, condition = given(seed=number, **size)
    attends, heads = fields["attention_levels"], fields["heads"]
    module = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        block_out_channels=fields["channels"],
        layers_per_block=fields["layers"],
        cross_attention_dim=32,
        attention_head_dim=heads,
        use_linear_projection=preset == "sd21",
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
    )
    randomised(module, number)
    b, t, h, w, c = x.shape
    text = torch.from_numpy(np.repeat(np.asarray(condition.tokens["text"])[:, 0], t, axis=0))
    times = torch.tensor(np.asarray(time)).repeat_interleave(t)

    def call(x):
        frames = x.reshape(b * t, h, w, c).permute(0, 3, 1, 2)
        y = module(frames, times, encoder_hidden_states=text).sample
        return y.permute(0, 2, 3, 1).reshape(b, t, h, w, -1)

    check_parity(preset, tiny(preset, **fields), inputs(preset), module, call, x, time, condition)
