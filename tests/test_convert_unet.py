"""The U-Nets' rules: every published name once, there and back; torch's own classes and lists of keys are the judge."""

import json
import re

import numpy as np
import pytest

from helpers_diffusion import golden_weight
from helpers_unet import ONE_LEVEL, inputs, source_shapes, tiny
from tools.convert_unet import RULES, SPECS, configure, convert, restore, rules, shapes
from tools.rules import check

PRESETS = ("sd15", "sd21", "modelscope", "mavin", "svd", "magdiff")


@pytest.mark.parametrize("preset", PRESETS)
def test_there_and_back_is_bit_equal_and_strict(preset):
    model = shapes(preset, tiny(preset, **ONE_LEVEL), inputs(preset))
    state = {name: golden_weight(name, shape) for name, shape in source_shapes(preset, model).items()}
    ours = convert(preset, state, model)
    assert len(ours) == len(state)
    back = restore(preset, ours, model)
    assert back.keys() == state.keys() and all(np.array_equal(back[n], state[n]) for n in state)
    name = "mid_block.attentions.0.proj_in.weight"
    with pytest.raises(ValueError, match=f"{name} is missing"):
        convert(preset, {n: a for n, a in state.items() if n != name}, model)
    with pytest.raises(ValueError, match="mid_block.extra.weight is not part of the model"):
        convert(preset, state | {"mid_block.extra.weight": state[name]}, model)
    with pytest.raises(ValueError, match=rf"{name} is \(3, 32\) and should be \(32, 32"):
        convert(preset, state | {name: np.zeros((3, 32), np.float32)}, model)


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match='no U-Net preset "sd3"; choose of sd15, sd21'):
        rules("sd3")
    assert RULES.keys() == {*PRESETS, "svd_xt"}


FOUR = [5, 10, 20, 20]


@pytest.mark.parametrize(
    "preset, config",
    [
        ("sd15", dict(attention_head_dim=8, act_fn="silu", norm_num_groups=32, norm_eps=1e-05, flip_sin_to_cos=True, freq_shift=0)),
        ("sd15", dict(attention_head_dim=[8, 8, 8, 8], num_attention_heads=None, class_embed_type=None)),
        ("sd21", dict(attention_head_dim=FOUR, only_cross_attention=False, mid_block_scale_factor=1, upcast_attention=True)),
        ("modelscope", dict(attention_head_dim=64, downsample_padding=1)),
        ("svd", dict(num_attention_heads=FOUR)),
        ("magdiff", dict(attention_head_dim=FOUR)),
        ("mavin", {}),
    ],
)
def test_the_settings_of_published_files_are_those_of_the_presets(preset, config):
    assert configure(preset, SPECS[preset], config) == SPECS[preset]


@pytest.mark.parametrize(
    "preset, config, message",
    [
        ("sd15", dict(attention_head_dim=4), "attention_head_dim is 4, where --preset=sd15 has 8: .*; choose the preset"),
        ("sd15", dict(attention_head_dim=[8, 8, 8, 16]), r"attention_head_dim is \[8, 8, 8, 16\], where --preset=sd15 has 8"),
        ("sd21", dict(attention_head_dim=8), r"attention_head_dim is 8, where --preset=sd21 has \[5, 10, 20, 20\]"),
        ("sd21", dict(attention_head_dim=FOUR, num_attention_heads=[5, 5, 5, 5]), r"num_attention_heads is \[5, 5, 5, 5\]"),
        ("modelscope", dict(attention_head_dim=32), "attention_head_dim is 32, where --preset=modelscope has 64"),
        ("mavin", dict(attention_head_dim=FOUR), r"attention_head_dim is \[5, 10, 20, 20\], where --preset=mavin has 64"),
        ("svd", dict(num_attention_heads=[5, 10, 10, 20]), r"num_attention_heads is \[5, 10, 10, 20\], where --preset=svd has \[5, 10"),
        ("sd15", dict(norm_eps=1e-6), "norm_eps is 1e-06, where --preset=sd15 has 1e-05"),
        ("sd15", dict(norm_num_groups=16), "norm_num_groups is 16, where --preset=sd15 has 32"),
        ("sd15", dict(act_fn="gelu"), 'act_fn is "gelu", where --preset=sd15 has "silu"'),
        ("sd15", dict(flip_sin_to_cos=False), "flip_sin_to_cos is false, where --preset=sd15 has true"),
        ("sd15", dict(freq_shift=1), "freq_shift is 1, where --preset=sd15 has 0"),
        ("sd15", dict(class_embed_type="identity"), 'class_embed_type is "identity", where --preset=sd15 has null'),
        ("sd15", dict(only_cross_attention=[True, False, False, False]), "only_cross_attention is .*, where --preset=sd15 has false"),
    ],
)
def test_settings_that_arrays_do_not_show_are_compared(preset, config, message):
    with pytest.raises(ValueError, match=message):
        configure(preset, SPECS[preset], config)


def listed(path) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a golden list of keys."""
    lines = (line.split(" ", 1) for line in path.read_text().strip().splitlines())
    return {name: tuple(int(n) for n in re.findall(r"\d+", shape)) for name, shape in lines}


@pytest.mark.full
@pytest.mark.parametrize(
    "preset, file, options, channels",
    [
        ("sd21", "diffusers_unet2d_tiny", dict(heads=(2, 4)), 4),
        ("mavin", "mavin_unet_tiny", {}, 4),
        ("svd", "diffusers_svd_unet_tiny", dict(time_embedding=dict(after_width=32)), 8),
        ("magdiff", "magdiff_unet_tiny", dict(heads=(2, 4)), 8),
    ],
)
def test_names_are_those_of_the_golden_lists(preset, file, options, channels, shared):
    ours = shapes(preset, tiny(preset, **options), inputs(preset, channels=channels))
    assert source_shapes(preset, ours) == listed(shared / "golden" / "diffusion" / f"{file}_keys.txt")


def torch_module(preset: str):
    """diffusers' class at its full size, without memory."""
    from helpers_torch import diffusers, torch

    kind = {"modelscope": "3D", "mavin": "3D", "svd": "SpatioTemporal"}.get(preset, "2D")
    name = {"3D": "UNet3DConditionModel", "SpatioTemporal": "UNetSpatioTemporalConditionModel", "2D": "UNet2DConditionModel"}
    options = dict(
        down_block_types=[*(f"CrossAttnDownBlock{kind}",) * 3, f"DownBlock{kind}"],
        up_block_types=[f"UpBlock{kind}", *(f"CrossAttnUpBlock{kind}",) * 3],
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        cross_attention_dim=768 if preset == "sd15" else 1024,
        in_channels=8 if preset == "svd" else 4,
        out_channels=4,
    )
    options |= {
        "sd15": dict(attention_head_dim=8),
        "sd21": dict(attention_head_dim=(5, 10, 20, 20), use_linear_projection=True),
        "modelscope": dict(attention_head_dim=64),
        "mavin": dict(attention_head_dim=64, time_cond_proj_dim=320),
        "svd": dict(num_attention_heads=(5, 10, 20, 20)),
    }[preset]
    with torch.device("meta"):
        return getattr(diffusers, name[kind])(**options)


@pytest.mark.full
@pytest.mark.parametrize("preset", ["sd15", "sd21", "modelscope", "mavin", "svd"])
def test_full_size_fits_torchs_module_name_by_name(preset):
    from configs import unets
    from helpers_torch import torch

    module = torch_module(preset)
    assert configure(preset, SPECS[preset], json.loads(module.to_json_string())) == SPECS[preset]
    theirs = {name: np.broadcast_to(np.float32(0), tuple(p.shape)) for name, p in module.named_parameters()}
    check(theirs, source_shapes(preset, shapes(preset)))
    levels = len(module.config.block_out_channels)
    epsilon = unets.PRESETS[preset].get("epsilon", (1e-5,) * (2 * levels + 1))
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.GroupNorm) and (found := re.match(r"(down|mid|up)_block(?:s\.(\d))?\.resnets", name)):
            way, level = found[1], int(found[2] or 0)
            assert part.eps == epsilon[{"down": level, "mid": levels, "up": levels + 1 + level}[way]], name
