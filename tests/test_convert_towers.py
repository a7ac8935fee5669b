"""The command lines of convert_unet.py and convert_clip.py: files become folders that a config can name, and come back."""

import dataclasses
import functools
import json
import re

import jax
import numpy as np
import pytest

from configs import clips
from helpers import flatten, nest
from helpers_diffusion import golden_weight
from magvid import lora, runs
from magvid.build import build
from magvid.checkpoints import Checkpoints
from magvid.flags import guarded
from magvid.state import TrainState
from magvid.types import UserError
from tools import convert_clip, convert_unet, convert_vae
from tools.convert import convert_back, convert_file, main, save
from tools.rules import invert, rename_shapes
from tools.weights import Stored, read_safetensors, write_safetensors

UNET = {
    **convert_unet.SPECS["modelscope"],
    **dict(channels=[32, 64], layers=1, attention_levels=[True, False], heads=[2, 4], groups=8),
    "stem": {**convert_unet.SPECS["modelscope"]["stem"], "heads": 2, "head_dim": 8},
}
TEXT = dict(convert_clip.PRESETS["clip_l_text"], vocab=50, length=9, width=16, depth=2, heads=2, mlp=32)
TOOLS = {
    "modelscope": dataclasses.replace(convert_unet.TOOL, presets=dict(modelscope=UNET)),
    "clip_l_text": dataclasses.replace(convert_clip.TOOL, presets=dict(clip_l_text=TEXT)),
}


@functools.cache
def published(preset):
    """{name of the file: array}; the names themselves are held to torch's in the tests of the rules."""
    tool = TOOLS[preset]
    shapes = rename_shapes(tool.shapes(preset, build(tool.presets[preset])), invert(tool.rules(preset)))
    return {name: golden_weight(name, shape) for name, shape in shapes.items()}


def run(preset, *argv) -> int:
    tool = TOOLS[preset]
    return guarded(tool.name, list(argv), lambda argv: main(tool, argv))


@pytest.mark.parametrize("preset, group, folder", [("modelscope", "network", "unet"), ("clip_l_text", "text", "text_encoder")])
def test_a_pipelines_folder_there_in_a_config_and_back(tmp_path, capsys, preset, group, folder):
    arrays = dict(published(preset))
    (tmp_path / "pipeline" / folder).mkdir(parents=True)
    (tmp_path / "pipeline" / "tokenizer").mkdir()
    (tmp_path / "pipeline" / "tokenizer" / "vocab.json").write_text("{}")
    write_safetensors(tmp_path / "pipeline" / folder / "model.safetensors", {n: Stored.of(a) for n, a in arrays.items()})
    out, back = tmp_path / "weights", tmp_path / "back.safetensors"
    assert run(preset, f"--preset={preset}", f"--weights={tmp_path}/pipeline", f"--out={out}") == 0
    assert (out / "tokenizer" / "vocab.json").exists() == (group == "text")

    reference = dict(run=str(out), weights="params")
    objective = dict(network=reference) if group == "network" else dict(conditioners=[dict(text=reference)])
    resolved, frozen, _ = runs.resolve(dict(objective=objective))
    assert json.loads(json.dumps(resolved)) and set(frozen) == {group}
    shapes = TOOLS[preset].shapes(preset, build(TOOLS[preset].presets[preset]))
    assert {n: a.shape for n, a in flatten(frozen[group]).items()} == shapes

    assert run(preset, "--back", f"--weights={out}", f"--out={back}") == 0
    found = read_safetensors(back)
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(np.asarray(found[n]), a) for n, a in arrays.items())

    del arrays[next(iter(arrays))]
    write_safetensors(tmp_path / "less.safetensors", {n: Stored.of(a) for n, a in arrays.items()})
    capsys.readouterr()
    assert run(preset, f"--preset={preset}", f"--weights={tmp_path}/less.safetensors", f"--out={tmp_path}/b") == 2
    assert "is missing" in capsys.readouterr().err


def converted(path, preset, config=None):
    """The folder of a preset's file, with a config.json beside it."""
    path.mkdir(parents=True, exist_ok=True)
    write_safetensors(path / "model.safetensors", {n: Stored.of(a) for n, a in published(preset).items()})
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return convert_file(TOOLS[preset], preset, str(path / "model.safetensors"), str(path / "weights"))


def test_a_unet_of_other_heads_is_refused(tmp_path):
    converted(tmp_path / "a", "modelscope", dict(attention_head_dim=16, norm_num_groups=8))
    with pytest.raises(UserError, match=f"{tmp_path}/b/config.json: attention_head_dim is 8, where --preset=modelscope has 16: "):
        converted(tmp_path / "b", "modelscope", dict(attention_head_dim=8))


# CLIP's settings ----------------------------------------------------------------------------------------------------

TOWER = dict(num_attention_heads=2, hidden_act="gelu", layer_norm_eps=1e-5, eos_token_id=2, model_type="clip_text_model")


@pytest.mark.parametrize(
    "config, changes",
    [
        (TOWER, dict(activation=clips.GELU)),
        (dict(TOWER, hidden_act="quick_gelu", eos_token_id=49), {}),
        (dict(TOWER, eos_token_id=7), dict(activation=clips.GELU, eos=7)),
        (dict(model_type="clip", text_config=TOWER, vision_config=dict(hidden_act="relu")), dict(activation=clips.GELU)),
        # what transformers leaves out is its default
        (dict(model_type="clip", text_config=dict(num_attention_heads=2)), {}),
        (dict(model_type="clip", text_config=dict(TOWER, hidden_act="relu"), text_config_dict=TOWER), dict(activation=clips.GELU)),
        ({}, {}),
    ],
)
def test_the_activation_and_the_pooled_token_are_taken_over(tmp_path, config, changes):
    folder = converted(tmp_path, "clip_l_text", config)
    assert runs.open_run(folder).config["objective"]["text"] == {**TEXT, **changes}


@pytest.mark.parametrize(
    "config, message",
    [
        (dict(TOWER, num_attention_heads=4), "num_attention_heads is 4, where --preset=clip_l_text has 2"),
        (dict(TOWER, layer_norm_eps=1e-6), "layer_norm_eps is 1e-06, where --preset=clip_l_text has 1e-05"),
        (dict(TOWER, hidden_act="relu"), 'hidden_act is "relu", and the towers here have gelu and quick_gelu'),
        (dict(model_type="clip", text_config={}), "num_attention_heads is 8, where --preset=clip_l_text has 2"),
        (dict(text_config=[1]), r"text_config is \[1\], not an object"),
    ],
)
def test_a_tower_that_is_not_computed_here_is_refused(tmp_path, config, message):
    with pytest.raises(UserError, match=f"{tmp_path}/config.json: {message}"):
        converted(tmp_path, "clip_l_text", config)


def test_both_towers_are_told_their_own_settings():
    spec = convert_clip.PRESETS["clip_b32"]
    own = dict(text_config=dict(hidden_act="gelu"), vision_config=dict(num_attention_heads=12))
    found = convert_clip.configure("clip_b32", spec, own)
    assert found == {**spec, "text": {**spec["text"], "activation": clips.GELU}}
    with pytest.raises(ValueError, match="num_attention_heads is 16, where --preset=clip_b32 has 12"):
        convert_clip.configure("clip_b32", spec, dict(vision_config=dict(num_attention_heads=16)))


@pytest.mark.full
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_tower_by_transformers_computes_what_it_does_there(tmp_path, activation, whole):
    from helpers_torch import torch, transformers
    from helpers_unet import randomised

    sizes = dict(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, max_position_embeddings=9)
    options = dict(num_attention_heads=2, hidden_act=activation, bos_token_id=0, pad_token_id=1, eos_token_id=7)
    text = transformers.CLIPTextConfig(**sizes, **options)
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32)
    both = transformers.CLIPConfig(text_config={**sizes, **options}, vision_config=small)
    theirs = randomised(transformers.CLIPModel(both) if whole else transformers.CLIPTextModel(text), 0)
    theirs.save_pretrained(tmp_path / "theirs")
    folder = runs.open_run(convert_file(TOOLS["clip_l_text"], "clip_l_text", str(tmp_path / "theirs"), str(tmp_path / "ours")))
    ids = np.array([[3, 9, 7, 49, 4], [5, 49, 2, 7, 7]])
    with torch.no_grad():
        wanted = (theirs.text_model if whole else theirs)(torch.from_numpy(ids))
    with jax.default_matmul_precision("highest"):
        found = build(folder.config["objective"]["text"]).apply({"params": folder.weights("text")}, ids)
    np.testing.assert_allclose(found.tokens, wanted.last_hidden_state, atol=1e-5)
    np.testing.assert_allclose(found.pooled, wanted.pooler_output, atol=1e-5)


# Runs, back to a file -----------------------------------------------------------------------------------------------


def trained(path, objective, params, ema=None, frozen=None):
    """A run folder as `train` leaves it."""
    state = TrainState(np.int32(3), params, {}, {}, ema or {}, {}, jax.random.key(0))
    checkpoints = Checkpoints(path / "checkpoints", write=True)
    checkpoints.save(3, state, {}, frozen)
    checkpoints.close()
    runs.write_json(path / "config.json", {"objective": objective, "steps": 3})
    return path


def a_lora(base, seed):
    drawn = lora.init(base, "attn[12]/to_(q|k|v|out)", 2, jax.random.key(seed))
    return jax.tree.map(lambda x: np.random.default_rng(seed).normal(size=x.shape).astype(np.float32), drawn)


SPEC = dict(target="magvid.lora:LoRA", regex="attn[12]/to_(q|k|v|out)", rank=2, alpha=3)


@pytest.mark.parametrize("frozen_in_the_run", [False, True])
def test_of_a_lora_run_the_merged_network_is_written(tmp_path, frozen_in_the_run):
    """The averaged LoRA, and with --last the trained one; its base from another run, or fixed in its own."""
    folder = converted(tmp_path, "modelscope")
    reference = dict(run=str(folder), weights="params", fields=dict(remat=True))
    _, frozen, hashes = runs.resolve(dict(objective=dict(network=reference)))
    base, last, average = frozen["network"], a_lora(frozen["network"], 1), a_lora(frozen["network"], 2)
    objective = dict(network=UNET if frozen_in_the_run else reference, lora=SPEC)
    params = {"lora": last} | ({"network": base} if frozen_in_the_run else {})
    origin = {} if frozen_in_the_run else {"network": dict(run=str(folder), weights="params", hash=hashes["network"])}
    run = str(trained(tmp_path / "run", objective, params, {"lora": average}, origin))
    for flag, weights in (({}, average), (dict(last=True), last)):
        out = convert_back(TOOLS["modelscope"], run, str(tmp_path / f"{len(flag)}.safetensors"), preset="modelscope", **flag)
        merged = {n: np.asarray(x) for n, x in flatten(lora.merge(base, weights, 3 / 2)).items()}
        shapes = {n: x.shape for n, x in merged.items()}
        wanted = convert_unet.restore("modelscope", merged, shapes)
        found = {n: np.asarray(x) for n, x in read_safetensors(out).items()}
        assert found.keys() == wanted.keys() == published("modelscope").keys()
        assert all(np.array_equal(found[n], wanted[n]) for n in wanted)
        changed = {n for n, a in published("modelscope").items() if not np.array_equal(a, found[n])}
        assert changed and all(re.search(r"attn[12]\.to_(q|k|v|out)", n) for n in changed)
    if not frozen_in_the_run:
        altered = nest({n: x + 1 for n, x in flatten(base).items()})
        arrays = {n: Stored.of(x) for n, x in flatten(altered).items()}
        (folder / "config.json").unlink()
        save(folder, "network", UNET, arrays, {})
        with pytest.raises(UserError, match='was trained with "network" of .* restore that run, or train anew'):
            convert_back(TOOLS["modelscope"], run, str(tmp_path / "x.safetensors"), preset="modelscope")


def test_what_cannot_be_written_back_is_said(tmp_path):
    unet, text = converted(tmp_path / "unet", "modelscope"), converted(tmp_path / "text", "clip_l_text")
    svd = {**convert_unet.SPECS["svd"], "channels": [32], "heads": 2}
    presets = dict(modelscope=UNET, svd=svd, sd21=convert_unet.SPECS["sd21"])
    tool = dataclasses.replace(convert_unet.TOOL, presets=presets)
    leaf = {"kernel": np.zeros((2, 2), np.float32)}
    network = trained(tmp_path / "network", dict(network={**UNET, "dtype": "bfloat16"}), {"network": leaf})
    sprites = {**svd, "attention": {**svd["attention"], "tokens": ["text"]}}
    sprites = trained(tmp_path / "sprites", dict(network=sprites), {"network": leaf})
    words = trained(tmp_path / "words", dict(network=dict(run=str(unet), weights="params"), text=TEXT), {"text": leaf})
    other = trained(tmp_path / "other", dict(tokenizer=dict(target="magvid.models.vae:AutoencoderKL")), {"tokenizer": leaf})
    tokens = "attention.factory magvid.models.temporal"
    cases = [
        (unet, "svd", f"--preset=svd: {unet} was converted with --preset=modelscope; leave the flag out"),
        (text, "svd", f"{text} was written by tools/convert_clip.py --preset=clip_l_text: read it with that tool"),
        (network, "svd", f"--preset=svd has {tokens}:BlendTransformer, and the network of {network} has magvid.models.temporal:PostTransformer"
         ": give --preset=modelscope"),
        (sprites, "svd", f"--preset=svd has attention.tokens image, and the network of {sprites} has text: it is of none of modelscope, svd, sd21"),
        (words, "svd", f'has trained text, and took its "network" from {unet} as it is: give that'),
        (other, "svd", 'has trained tokenizer, and has no "network", which tools/convert_unet.py --back writes: give a run that trained a U-Net'),
        (network, "modelscope", "is missing"),
    ]  # fmt: skip
    for path, preset, message in cases:
        with pytest.raises(UserError) as error:
            convert_back(tool, str(path), str(tmp_path / "x.safetensors"), preset=preset)
        assert message in str(error.value), error.value
    with pytest.raises(UserError, match="tools/convert_vae.py --back writes: give a run that trained an autoencoder"):
        convert_back(convert_vae.TOOL, str(network), str(tmp_path / "x.safetensors"), preset="sd")


def test_a_tower_that_is_a_part_of_a_conditioner_is_written_back(tmp_path):
    weights = runs.open_run(converted(tmp_path, "clip_l_text")).weights("text")
    run = trained(tmp_path / "run", dict(conditioners=[dict(target="magvid.models.conditioners:TextTokens", text=TEXT)]), {"text": weights})
    out = convert_back(TOOLS["clip_l_text"], str(run), str(tmp_path / "text.safetensors"), preset="clip_l_text")
    found = read_safetensors(out)
    assert all(np.array_equal(np.asarray(found[n]), a) for n, a in published("clip_l_text").items())


def test_a_wrong_preset_is_known_by_its_arrays_before_its_settings(tmp_path):
    arrays = published("modelscope")
    (tmp_path / "config.json").write_text(json.dumps(dict(attention_head_dim=8)))
    less = {n: Stored.of(a) for n, a in arrays.items() if "transformer_in" not in n}
    write_safetensors(tmp_path / "model.safetensors", less)
    with pytest.raises(UserError, match="transformer_in.norm.bias is missing"):
        convert_file(TOOLS["modelscope"], "modelscope", str(tmp_path), str(tmp_path / "out"))
