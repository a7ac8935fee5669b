"""The video families' layers: equal to diffusers and to the golden files of MAVIN and MagDiff; without what they add, Stable
Diffusion's network.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import helpers
from configs import unets
from helpers import Golden, drawn, flatten, nest, relative_error
from helpers_diffusion import golden_input, golden_weight
from helpers_unet import (
    FAST_COMPILE,
    ONE_LEVEL,
    SVD_IDS,
    arrays,
    check_parity,
    golden_params,
    inputs,
    last,
    random_params,
    randomised,
    run,
    source_shapes,
    tiny,
    tokens,
)
from magvid.adapters.magdiff import EPAF
from magvid.models import temporal
from magvid.models.attention import Attention
from magvid.models.layers import sinusoid
from magvid.types import Condition
from test_models_unet import GOLDEN, Adapter, check_adapters
from tools import convert_unet
from tools.rules import rename

svd_scalars = lambda ids: dict(zip(SVD_IDS, jnp.asarray(ids, jnp.float32).T, strict=True))
length = lambda n: dict(length=jnp.full(2, float(n)))


def check(preset: str, unet, x, time, condition: Condition, expected):
    params = golden_params(preset, unet, x, jnp.zeros(len(x)), condition)
    assert relative_error(run(unet, params, x, time, condition), expected) < 1e-5


def mavin() -> dict:
    return dict(
        x=last(golden_input("mv_x", (2, 4, 6, 8, 8))),
        text=golden_input("mv_ctx", (2, 7, 32)),
        image=golden_input("mv_img", (2, 10, 32)),
    )


def test_golden_mavin():
    a = mavin()
    condition = Condition(tokens=tokens(text=a["text"], image=a["image"]), scalars=length(12))
    check("mavin", tiny("mavin"), a["x"], (5, 731), condition, last(GOLDEN["mavin_bfg_len12"]))


MAVIN = Golden("mavin", helpers.GOLDEN.parent / "diffusion")
SEEN = (..., slice(2, None, 4), slice(1, None, 4))  # the pixels (b c t h w) that are kept in tests/golden
GAP = dict(start=jnp.full(2, 2.0), end=jnp.full(2, 4.0))


def variant(name: str, **attention) -> dict:
    """Fields of a variant of MAVIN at the size of `tiny`."""
    fields = unets.MAVIN_VARIANTS[name]
    stem = dict(fields.get("stem", unets.mavin["stem"]), head_dim=8)
    return dict(attention=dict(fields["attention"], **attention), stem=stem)


def check_variant(fields: dict, expected, seen=...):
    """The golden ones read the text alone, without the length of the gap; `seen` of (b c t h w)."""
    x, text = mavin()["x"], mavin()["text"]
    condition, unet = Condition(tokens=tokens(text=text), scalars=GAP), tiny("modelscope", **fields)
    params = golden_params("modelscope", unet, x, jnp.zeros(2), condition)
    y = np.moveaxis(run(unet, params, x, (5, 731), condition), -1, 1)
    assert relative_error(y[seen], expected) < 1e-5


@pytest.mark.parametrize("name", ["centred", "sparse_causal"])
def test_golden_variants_of_mavin(name):
    check_variant(variant(name, tokens=("text",)), MAVIN[name], SEEN)


def test_golden_positions_of_mavin():
    q, rope = jnp.asarray(golden_input("rope_q", (3, 6, 16))), temporal.RotaryAttention(1)
    np.testing.assert_allclose(temporal.rotate(q, rope.frequencies(16)), MAVIN["q_rot"], atol=1e-6)
    for frames, start in ((6, 2), (8, 5)):
        position = temporal.interleaved_sinusoid(jnp.arange(frames) - float(start), 16)
        np.testing.assert_allclose(position, MAVIN[f"centered_f{frames}_pstart{start}"][0], atol=1e-6)


def test_each_example_has_its_own_gap():
    x, starts = jnp.asarray(arrays(0, x=(3, 5, 2, 1, 8))["x"]), jnp.array([1.0, 2.0, 0.0])
    condition = Condition(scalars=dict(start=starts, end=jnp.array([3.0, 4.0, 5.0])))  # the last is all of the clip
    variables = drawn(Attention(2).init, jax.random.key(0), x)
    run = lambda layer, x: FAST_COMPILE(layer.apply)(variables, x, condition)
    moved = x + temporal.interleaved_sinusoid(jnp.arange(5) - starts[:, None], 8)[:, :, None, None]
    y = run(temporal.CentredAttention(2), x)
    np.testing.assert_allclose(y, run(Attention(2, over="time"), moved), atol=1e-6)
    frame = lambda x: temporal.SparseCausalAttention(2).apply(variables, x, condition)[:, 2].sum()
    read = np.abs(FAST_COMPILE(jax.grad(frame))(x)).sum((2, 3, 4)) > 0
    assert [set(np.flatnonzero(row).tolist()) for row in read] == [{0, 2, 3}, {1, 2, 4}, {0, 2, 4}]


def svd_input(context: str, n: int) -> tuple:
    x = np.moveaxis(golden_input("svd_x", (2, 5, 8, 8, 8)), 2, -1)
    scalars = svd_scalars([(6, 127, 0.02), (6, 60, 0.1)])
    return x, (0.7, 0.7), Condition(tokens=tokens(image=golden_input(context, (2, n, 32))), scalars=scalars)


SVD_TINY = dict(epsilon=(1e-6, 1e-5, 1e-5, 1e-6, 1e-6), time_embedding=dict(after_width=32))


def test_golden_svd():
    check("svd", tiny("svd", **SVD_TINY), *svd_input("svd_ctx", 1), np.moveaxis(GOLDEN["svd_1"], 2, -1))


def test_golden_magdiff():
    x, context = last(golden_input("mg_u", (2, 8, 4, 8, 8))), golden_input("mg_uctx", (2, 89, 32))
    condition = Condition(tokens=tokens(text=context[:, :77], image=context[:, 77:]), concat=x[..., 4:])
    check("magdiff", tiny("magdiff", heads=(2, 4)), x[..., :4], (5, 731), condition, last(GOLDEN["magdiff"]))


def test_golden_epaf():
    """MagDiff's names of the layer alone; nine tokens as one frame of 3x3."""
    context = golden_input("mg_ctx", (2, 109, 24))
    condition = Condition(tokens=tokens(text=context[:, :77], image=context[:, 77:]))
    weight = lambda name, *shape: golden_weight(f"{name}.weight", shape).T
    params = {f"to_{k}": {"kernel": weight(f"to_{k}", 32, 24)} for k in ("k", "v", "k_ip", "v_ip")}
    params["to_q"] = {"kernel": weight("to_q", 32, 32)}
    params["to_out"] = {"kernel": weight("to_out.0", 32, 32), "bias": golden_weight("to_out.0.bias", (32,))}
    for kind in ("text", "image"):
        params[f"{kind}_scale"] = golden_weight(f"{kind}_cross_attention_scale", (1,))
    x = golden_input("mg_x", (2, 9, 32)).reshape(2, 1, 3, 3, 32)
    y = EPAF(4).apply({"params": params}, x, condition)
    assert relative_error(y.reshape(2, 9, 32), GOLDEN["epaf"]) < 1e-5
    first = drawn(EPAF(4).init, jax.random.key(0), x, condition)["params"]
    assert float(first["text_scale"][0]) == 1.0 and float(first["image_scale"][0]) == 1.5


# What reduces to Stable Diffusion -----------------------------------------------------------------------------------


def small(preset: str, **options):
    return tiny(preset, **ONE_LEVEL | options)


def given(preset: str, frames: int = 3) -> tuple:
    """Arguments of a small U-Net; every family is told all that any of them reads."""
    a = arrays(3, x=(2, frames, 4, 6, 4), text=(2, 5, 32), image=(2, 2, 32))
    scalars = svd_scalars([(6, 127, 0.02), (6, 60, 0.1)])
    return a["x"], jnp.array([5.0, 731.0]), Condition(tokens=tokens(text=a["text"], image=a["image"]), scalars=scalars)


def spatial(params: dict, of) -> dict:
    """The part of `params` that Stable Diffusion's network `of` has."""
    names = flatten_dict(jax.eval_shape(of.init, jax.random.key(0), *given("sd21"))["params"])
    return unflatten_dict({n: x for n, x in flatten_dict(params).items() if n in names})


def changed(params: dict, rule) -> dict:
    """Parameters with rule(name, x) in the place of x."""
    return jax.tree_util.tree_map_with_path(lambda p, x: rule(jax.tree_util.keystr(p, simple=True, separator="/"), x), params)


def test_blended_all_spatial_is_stable_diffusion():
    args, unet = given("svd"), small("svd", time_embedding=dict(after_width=32, after=()))
    base = small("sd21", attention=dict(tokens=("image",)))
    params = random_params(unet, *args)
    expected = run(base, spatial(params, base), *args)
    assert relative_error(run(unet, params, *args), expected) > 0.01
    only = changed(params, lambda n, x: np.full_like(x, 40.0) if "mix_factor" in n else x)
    assert relative_error(run(unet, only, *args), expected) < 1e-5
    x, time, condition = args
    flagged = condition.replace(scalars=condition.scalars | {"image_only": jnp.array([1.0, 0.0])})
    y = run(unet, params, x, time, flagged)
    assert relative_error(y[0], expected[0]) < 1e-5 and relative_error(y[1], expected[1]) > 0.01


def test_modelscope_with_zero_projections_is_stable_diffusion():
    args, unet, base = given("modelscope"), small("modelscope"), small("sd21")
    params = random_params(unet, *args)
    ends = ("temp_convs/conv4", "temp_attentions/proj_out", "transformer_in/proj_out")
    silent = changed(params, lambda n, x: x * 0 if any(e in n for e in ends) else x)
    assert relative_error(run(unet, silent, *args), run(base, spatial(params, base), *args)) < 1e-5


class WithoutPositions(temporal.InlineTransformer):
    def position(self, x):
        return super().position(x) * 0


def test_mavin_begins_as_modelscope():
    """While the projection of the length is zero, whatever the length; tokens of frames are as more of the text, or masked out."""
    x, time, condition = given("mavin")
    lengths, read = dict(length=jnp.array([3.0, 12.0])), jnp.array([[False, False], [True, True]])
    text, image = (condition.tokens[n] for n in ("text", "image"))
    apart = condition.replace(masks={"image": read}, scalars=lengths)
    mask = jnp.concatenate([jnp.ones((2, 5), bool), read], axis=1)
    joined = Condition({"text": jnp.concatenate([text, image], axis=2)}, {"text": mask}, scalars=lengths)
    # attention in the middle alone; norms with one channel in each group would take out what is embedded
    size = dict(attention_levels=(False,), channels=(64,), heads=4)
    base, unet = small("modelscope", **size), small("mavin", **size)
    text_only = small("mavin", **size, attention=dict(tokens=("text",)))
    params = random_params(unet, x, time, apart)
    silent = changed(params, lambda n, x: x * 0 if "cond_proj" in n else x)
    of_base = nest({n: p for n, p in flatten(params).items() if "cond_proj" not in n})
    expected = run(base, of_base, x, time, joined)
    networks = ((FAST_COMPILE(text_only.apply), joined), (FAST_COMPILE(unet.apply), apart))
    begins, goes_on = ([call({"params": p}, x, time, told) for call, told in networks] for p in (silent, params))
    assert all(relative_error(y, expected) < 1e-5 for y in begins)
    assert relative_error(goes_on[0], expected) > 1e-3 and relative_error(*goes_on) < 1e-5


def test_magdiff_on_equal_frames_without_its_additions_is_stable_diffusion():
    x, time, condition = given("magdiff")
    base = small("sd21")
    unet = small("magdiff", attention=partial(WithoutPositions, cross_attention=EPAF))
    params = random_params(unet, x, time, condition)
    ends = ("temp_convs/conv4", "temp_attn/to_out", "image_scale")
    silent = changed(params, lambda n, x: x * 0 if any(e in n for e in ends) else x)
    silent = changed(silent, lambda n, x: x * 0 + 1 if "text_scale" in n else x)
    still = np.repeat(x[:, :1], 3, axis=1)
    error = lambda x: relative_error(*(run(u, p, x, time, condition) for u, p in ((unet, silent), (base, of_base))))
    of_base = spatial(params, base)
    assert error(still) < 1e-5
    assert error(x) > 1e-3  # the norms see the whole clip


def test_magdiff_from_stable_diffusion_begins_as_it():
    """Norms of each frame, positions that do not stay, and the picture's part at zero: equal for any frames."""
    x, time, condition = given("magdiff")
    quiet = partial(temporal.InlineTransformer, position_stays=False, cross_attention=partial(EPAF, scales=(1.0, 0.0)))
    unet, base = small("magdiff", clip_norm=False, attention=quiet), small("sd21")
    fresh = drawn(unet.init, jax.random.key(0), x, time, condition)["params"]
    of_base = spatial(fresh, base)
    y, expected = run(unet, fresh, x, time, condition), run(base, of_base, x, time, condition)
    assert relative_error(y, expected) < 1e-5 and np.abs(np.asarray(expected)).max() > 0.1


@pytest.mark.parametrize("preset", ["svd", *(pytest.param(p, marks=pytest.mark.full) for p in ("modelscope", "magdiff"))])
def test_an_adapter_beside_temporal_attention(preset):
    """At zero it changes no bit; it sees the video, and the frames' positions where the family has any."""
    seen = set()

    class Watching(Adapter):
        def __call__(self, x, condition, position):
            seen.add((x.shape, None if position is None else position.shape))
            return super().__call__(x, condition, position)

    options = dict(time_embedding=dict(after=())) if preset == "svd" else {}
    unet = small(preset, attention=dict(adapters={"beside_temporal": Watching}), **options)
    check_adapters(small(preset, **options), unet, given(preset), 4 * 4)
    assert seen == {((2, 3, 4, 6, 32), None if preset == "modelscope" else (3, 32))}


def test_dropout_acts_where_a_key_is_given():
    x, layer = jnp.ones((1, 3, 4, 4, 32)), temporal.Stack()
    variables = jax.tree.map(lambda p: p + 0.1, drawn(layer.init, jax.random.key(0), x))
    drop = lambda seed: layer.apply(variables, x, rngs={"dropout": jax.random.key(seed)})
    np.testing.assert_array_equal(layer.apply(variables, x), layer.apply(variables, x))
    assert not np.allclose(layer.apply(variables, x), drop(1)) and not np.allclose(drop(1), drop(2))


def test_missing_scalars_are_named():
    x, time, condition = given("mavin")
    with pytest.raises(ValueError, match="lacks the scalars length: this model reads length"):
        jax.eval_shape(small("mavin").init, jax.random.key(0), x, time, condition)
    for name, scalars in (("centred", "start"), ("sparse_causal", "start, end")):
        told = condition.replace(scalars=length(12))
        with pytest.raises(ValueError, match=f"lacks the scalars {scalars}: this model reads {scalars}"):
            jax.eval_shape(small("mavin", **variant(name)).init, jax.random.key(0), x, time, told)
    with pytest.raises(ValueError, match="depth=2: SVD's transformer has one spatial and one temporal block"):
        jax.eval_shape(small("svd", attention=dict(depth=2)).init, jax.random.key(0), x, time, condition)


# diffusers ----------------------------------------------------------------------------------------------------------

CONFIGS = [
    dict(channels=(32, 64), layers=1, attention_levels=(True, False), size=dict(t=5, h=6, w=10, n=5)),
    dict(channels=(32, 64, 96), layers=1, attention_levels=(True, False, True), size=dict(t=3, h=5, w=7, n=1)),
    dict(channels=(64,), layers=2, attention_levels=(True,), size=dict(t=7, h=9, w=4, n=3)),
]
first = lambda x: x.permute(0, 4, 1, 2, 3)  # (b t h w c) -> (b c t h w)


def blocks(kind: str, attends) -> dict:
    """diffusers' names of the blocks."""
    return dict(
        down_block_types=[("CrossAttnDownBlock" if a else "DownBlock") + kind for a in attends],
        up_block_types=[("CrossAttnUpBlock" if a else "UpBlock") + kind for a in reversed(attends)],
    )


def config(number: int, channels: int) -> tuple[dict, dict, dict]:
    """(fields of ours, diffusers' arguments, arrays) of a configuration."""
    fields = dict(CONFIGS[number])
    size = fields.pop("size")
    t, h, w, n = size.values()
    theirs = dict(
        in_channels=channels,
        out_channels=4,
        block_out_channels=fields["channels"],
        layers_per_block=fields["layers"],
        cross_attention_dim=24,
    )
    a = arrays(number, x=(2, t, h, w, channels), context=(2, n, 24), time=(2,), extra=(2, 3))
    return fields, theirs, a


@pytest.mark.full
@pytest.mark.parametrize("number", range(len(CONFIGS)))
@pytest.mark.parametrize("preset", ["modelscope", "mavin"])
def test_equals_diffusers_unet_3d(preset, number):
    from helpers_torch import diffusers, torch

    fields, theirs, a = config(number, 4)
    size, attends = (8, 16, 32)[number], fields["attention_levels"]
    width = fields["channels"][0] if preset == "mavin" else None
    theirs |= dict(attention_head_dim=size, time_cond_proj_dim=width, **blocks("3D", attends))
    module = randomised(diffusers.UNet3DConditionModel(sample_size=8, **theirs), number)
    fields |= dict(heads=tuple(c // size for c in fields["channels"]), stem=dict(head_dim=size))
    time, lengths = np.array([5.0, 731.0]), jnp.array([12.0, 3.0])
    condition = Condition(tokens=tokens(text=a["context"]))
    options = {}
    if preset == "mavin":
        fields["attention"] = dict(tokens=("text",))
        condition = condition.replace(scalars={"length": lengths})
        embedded = np.array(sinusoid(lengths, width, "sin cos"))
        options = dict(timestep_cond=torch.from_numpy(embedded))
    call = lambda x: module(
        first(x), torch.tensor(time), encoder_hidden_states=torch.from_numpy(a["context"]), **options
    ).sample.permute(0, 2, 3, 4, 1)
    model = dict(channels=4, tokens=dict(text=24), scalars=inputs(preset)["scalars"])
    check_parity(preset, tiny(preset, **fields), model, module, call, a["x"], time, condition)


@pytest.mark.full
@pytest.mark.parametrize("embedded", [False, True])
def test_mavin_equals_diffusers_unet_3d_with_joined_tokens(embedded):
    """And where no length is embedded, its own begins at zero, and its images are masked out: the network of the text alone."""
    from helpers_torch import diffusers, torch

    fields, theirs, a = config(0, 4)
    width = fields["channels"][0]
    theirs |= dict(attention_head_dim=8, time_cond_proj_dim=width if embedded else None, **blocks("3D", fields["attention_levels"]))
    module = randomised(diffusers.UNet3DConditionModel(sample_size=8, **theirs), 0)
    preset = "mavin" if embedded else "modelscope"
    fields |= dict(heads=tuple(c // 8 for c in fields["channels"]), stem=dict(head_dim=8))
    given = dict(channels=4, tokens=dict(text=24, image=24), scalars=("length",))
    state = {name: p.detach().numpy() for name, p in module.named_parameters()}
    ours = convert_unet.convert(preset, state, convert_unet.shapes(preset, tiny(preset, **fields), given))
    text, image = a["context"][:, :3], a["context"][:, 3:]
    condition = Condition(tokens=tokens(text=text, image=image), scalars=dict(length=jnp.array([12.0, 3.0])))
    options, read = {}, text
    if embedded:
        waves = sinusoid(condition.scalars["length"], width, "sin cos")
        options, read = dict(timestep_cond=torch.from_numpy(np.array(waves))), a["context"]
    else:
        ours["time_embedding/cond_proj/kernel"] = np.zeros((width, width), np.float32)
        condition = condition.replace(masks={"image": jnp.zeros((2, 2), bool)})
    times = np.array([5.0, 731.0])
    with torch.no_grad():
        x, context = first(torch.from_numpy(a["x"])), torch.from_numpy(read)
        y = module(x, torch.tensor(times), encoder_hidden_states=context, **options).sample.permute(0, 2, 3, 4, 1)
    assert relative_error(run(tiny("mavin", **fields), nest(ours), a["x"], times, condition), y.numpy()) < 1e-5


@pytest.mark.full
@pytest.mark.parametrize("number", range(len(CONFIGS)))
def test_equals_diffusers_svd(number):
    from helpers_torch import diffusers, torch

    fields, theirs, a = config(number, 8)
    attends, channels = fields["attention_levels"], fields["channels"]
    heads = tuple(c // (8, 16, 32)[number] for c in channels)
    theirs |= dict(num_attention_heads=heads, **blocks("SpatioTemporal", attends))
    theirs |= dict(addition_time_embed_dim=16, projection_class_embeddings_input_dim=48)
    module = randomised(diffusers.UNetSpatioTemporalConditionModel(sample_size=8, **theirs), number)
    epsilon = (*(1e-6 if on else 1e-5 for on in attends), 1e-5, *(1e-6,) * len(channels))
    fields |= dict(heads=heads, epsilon=epsilon, time_embedding=dict(after_width=16))
    time, ids = np.array([0.7, -0.9]), np.float32([(6, 127, 0.02), (9, 60, 0.1)])
    condition = Condition(tokens=tokens(image=a["context"]), scalars=svd_scalars(ids))
    call = lambda x: module(
        x.permute(0, 1, 4, 2, 3), torch.tensor(time), torch.from_numpy(a["context"]), torch.from_numpy(ids)
    ).sample.permute(0, 1, 3, 4, 2)
    check_parity("svd", tiny("svd", **fields), inputs("svd", 24), module, call, a["x"], time, condition)


@pytest.mark.full
def test_the_torch_form_of_magdiff_is_the_released_one():
    import helpers_magdiff
    from helpers_torch import torch

    module = helpers_magdiff.unet((32, 64), 1, (True, False), (2, 4), 32).eval()
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(torch.from_numpy(golden_weight(name, tuple(p.shape))))
        x, context = last(golden_input("mg_u", (2, 8, 4, 8, 8))), torch.from_numpy(golden_input("mg_uctx", (2, 89, 32)))
        y = helpers_magdiff.run(module, torch.from_numpy(x), torch.tensor([5.0, 731.0]), context[:, :77], context[:, 77:])
    assert relative_error(y.numpy(), last(GOLDEN["magdiff"])) < 1e-5


@pytest.mark.full
@pytest.mark.parametrize("number, frames", [(0, 5), (1, 3), (2, 7), (0, 1)])
def test_equals_magdiff(number, frames):
    import helpers_magdiff
    from helpers_torch import torch

    fields, _, _ = config(number, 8)
    heads = tuple(c // (8, 16, 32)[number] for c in fields["channels"])
    _, h, w, n = CONFIGS[number]["size"].values()
    a = arrays(number, x=(2, frames, h, w, 8), text=(2, n, 24), image=(2, n + 2, 24))
    module = randomised(helpers_magdiff.unet(fields["channels"], fields["layers"], fields["attention_levels"], heads, 24), number)
    time, text, image = np.array([5.0, 731.0]), *(torch.from_numpy(a[k]) for k in ("text", "image"))
    call = lambda x: helpers_magdiff.run(module, x, torch.tensor(time), text, image)
    condition = Condition(tokens=tokens(text=a["text"], image=a["image"]))
    unet = tiny("magdiff", heads=heads, **fields)
    check_parity("magdiff", unet, inputs("magdiff", 24), module, call, a["x"], time, condition)


# Golden files of the shared folder ----------------------------------------------------------------------------------


@pytest.mark.full
def test_golden_mavin_without_frames(shared):
    golden, a = Golden("mavin_unet_tiny", shared / "golden" / "diffusion"), mavin()
    x, text = a["x"], tokens(text=a["text"])
    unet = tiny("mavin", attention=dict(tokens=("text",)))
    both = tokens(text=a["text"], image=a["image"])
    check("mavin", unet, x, (5, 731), Condition(tokens=both, scalars=length(12)), last(golden["out_len12"]))
    np.testing.assert_array_equal(golden["out_released_cfg_img_ignored"], golden["out_len12"])
    plain = tiny("modelscope")
    check("modelscope", plain, x, (5, 731), Condition(tokens=text), last(golden["out_plain"]))
    np.testing.assert_allclose(sinusoid(jnp.full(1, 12.0), 32, "sin cos"), golden["motion_proj_12"], atol=1e-6)
    np.testing.assert_allclose(sinusoid(jnp.full(1, 5.0), 32), golden["time_proj_5"], atol=1e-6)


@pytest.mark.full
def test_golden_mavin_rope(shared, monkeypatch):
    """The frequencies are a fixed parameter in MAVIN's code, and were filled like any other for the golden file."""

    def frequencies(layer: temporal.RotaryAttention, width: int) -> np.ndarray:
        beside = "/".join([*layer.path[:-2], "norm/bias"])
        (name,) = source_shapes("modelscope", {beside: (width,)})
        return golden_weight(name.replace("norm.bias", "rope.freqs"), (width // 2,))

    monkeypatch.setattr(temporal.RotaryAttention, "frequencies", frequencies)
    golden = Golden("mavin_unet_tiny", shared / "golden" / "diffusion")
    check_variant(variant("rope", tokens=("text",)), golden["out_rope"])


@pytest.mark.full
def test_golden_svd_with_three_tokens(shared):
    golden = Golden("diffusers_tiny", shared / "golden" / "diffusion")
    expected = np.moveaxis(golden["svd_unet_out_ctx3"], 2, -1)
    check("svd", tiny("svd", **SVD_TINY), *svd_input("svd_ctx3", 3), expected)


@pytest.mark.full
def test_golden_magdiff_layers(shared):
    golden = Golden("magdiff", shared / "golden" / "diffusion")
    np.testing.assert_allclose(temporal.interleaved_sinusoid(jnp.arange(6.0), 16), golden["sinpos_6_16"], atol=1e-6)
    params = {}
    for i in range(4):
        kernel = golden_weight(f"convs.{4 * i + 3}.weight", (32, 32, 3, 1, 1)).transpose(2, 3, 4, 1, 0)
        params[f"norm{i + 1}"] = {"scale": golden_weight(f"convs.{4 * i}.weight", (32,))}
        params[f"norm{i + 1}"]["bias"] = golden_weight(f"convs.{4 * i}.bias", (32,))
        params[f"conv{i + 1}"] = {"kernel": kernel, "bias": golden_weight(f"convs.{4 * i + 3}.bias", (32,))}
    y = temporal.Stack().apply({"params": params}, last(golden_input("mg_tc", (2, 32, 5, 4, 4))))
    assert relative_error(y, last(golden["tempconv_out"])) < 1e-5


@pytest.mark.full
@pytest.mark.parametrize("frames", [5, 1])
def test_golden_magdiff_block(frames, shared):
    """Ten pictures of 3x3 as two clips of five frames, or as ten of one, which the position changes all the same."""
    golden = Golden("magdiff", shared / "golden" / "diffusion")
    clips = 10 // frames
    x = golden_input("mg_bt", (10, 9, 32)).reshape(clips, frames, 3, 3, 32)
    context = golden_input("mg_ctx", (2, 109, 24)).repeat(clips // 2, axis=0)
    position = temporal.interleaved_sinusoid(jnp.arange(float(frames)), 32)
    args = x, Condition(tokens=tokens(text=context[:, :77], image=context[:, 77:])), position
    block = temporal.InlineBlock(4, ("text", "image"), cross_attention=EPAF)
    here, there = "mid_block/attentions_0/transformer_blocks_0/", "mid_block.attentions.0.transformer_blocks.0."
    ours = flatten_dict(jax.eval_shape(block.init, jax.random.key(0), *args)["params"], sep="/")
    names = source_shapes("magdiff", {here + name: x.shape for name, x in ours.items()})
    weights = {name: golden_weight(name.removeprefix(there), shape) for name, shape in names.items()}
    params = {n.removeprefix(here): a for n, a in rename(weights, convert_unet.rules("magdiff")).items()}
    y = block.apply({"params": nest(params)}, *args)
    assert relative_error(y.reshape(10, 9, 32), golden[f"block_out_f{frames}"]) < 1e-5
