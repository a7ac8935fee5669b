"""An autoencoder's file becomes a folder that a config can name, and comes back bit by bit; a wrong file fails by name.

Names and shapes of the file are diffusers' own list.
"""

import functools
import json
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from helpers import flatten
from helpers_diffusion import FOLDER, golden_weight
from magvid import __main__ as magvid
from magvid import runs
from magvid.build import build
from magvid.flags import guarded
from magvid.types import UserError
from tools import convert, convert_vae, weights
from tools.convert import BATCH, batches, convert_back, convert_file, main
from tools.weights import Stored, read_safetensors, write_safetensors

TINY = dict(target="magvid.models.vae:AutoencoderKL", channels=[32, 64], layers=1, latent=4, groups=32, scaling=0.5)
TEMPORAL = dict(target="magvid.models.vae:TemporalAutoencoderKL", channels=[32], layers=2, latent=4, groups=32, scaling=0.5)
TOOL = convert_vae.TOOL.__class__(**{**vars(convert_vae.TOOL), "presets": dict(sd=TINY, svd=TEMPORAL)})


@functools.cache
def published() -> dict[str, np.ndarray]:
    lines = (FOLDER / "vae_keys.txt").read_text().strip().splitlines()
    shapes = {n: tuple(int(k) for k in re.findall(r"\d+", s)) for n, s in (line.split(" ", 1) for line in lines)}
    return {n: golden_weight(n, s) for n, s in shapes.items()}


def write(path, arrays):
    write_safetensors(path, {n: Stored.of(np.asarray(a)) for n, a in arrays.items()})
    return path


def arrays_in(path) -> dict[str, np.ndarray]:
    return {n: np.asarray(x) for n, x in read_safetensors(path).items()}


def equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, a in wanted.items():
        assert found[name].dtype == a.dtype and found[name].tobytes() == np.asarray(a).tobytes(), name


def test_there_in_a_config_and_back(tmp_path, capsys):
    file = write(tmp_path / "model.safetensors", published())
    folder = convert_file(TOOL, "sd", str(file), str(tmp_path / "weights" / "vae"))
    count = sum(a.size for a in published().values())
    assert f"vae, {len(published())} arrays, {count:,} parameters" in capsys.readouterr().out

    origin = json.loads((folder / "config.json").read_text())["origin"]
    files = [dict(name="model.safetensors", sha256=weights.sha256(file))]
    assert origin == dict(tool="convert_vae", preset="sd", dtype="float32", files=files)
    config = dict(objective=dict(vae=dict(run=str(folder), weights="params")))
    resolved, frozen, hashes = runs.resolve(config)
    module = build(resolved["objective"]["vae"])
    assert module == build(TINY) and len(hashes["vae"]) == 12
    video = jax.ShapeDtypeStruct((2, 3, 8, 12, 3), jnp.float32)
    reconstruction, _ = jax.eval_shape(module.apply, {"params": frozen["vae"]}, video)
    assert reconstruction.shape == video.shape
    kernel = flatten(frozen["vae"])["encoder/conv_in/kernel"]
    np.testing.assert_array_equal(kernel, published()["encoder.conv_in.weight"].transpose(2, 3, 1, 0))

    equal(arrays_in(convert_back(TOOL, str(folder), str(tmp_path / "back.safetensors"))), published())
    assert magvid.main(["sample", f"--run={folder}"]) == 2
    assert "does not hold a run of `magvid train`" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("kept", [True, False])
def test_half_precision(tmp_path, dtype, kept):
    half = {n: a.astype(dtype) for n, a in published().items()}
    file = write(tmp_path / "model.fp16.safetensors", half)
    folder = convert_file(TOOL, "sd", str(file), str(tmp_path / "vae"), dtype="keep" if kept else "float32")
    stored = runs.open_run(folder).weights("vae")
    assert {a.dtype for a in flatten(stored).values()} == {np.dtype(dtype if kept else np.float32)}
    out = convert_back(TOOL, str(folder), str(tmp_path / "back.safetensors"), dtype="keep" if kept else np.dtype(dtype).name)
    equal(arrays_in(out), half)


def test_a_batch_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "BATCH", 50_000)
    file = write(tmp_path / "model.safetensors", published())
    folder = convert_file(TOOL, "sd", str(file), str(tmp_path / "vae"))
    equal(arrays_in(convert_back(TOOL, str(folder), str(tmp_path / "back.safetensors"))), published())


def test_batches():
    sizes = [1, 2, BATCH // 4 - 3, BATCH // 4 - 1, 1, 3 * BATCH, 5]
    arrays = {i: Stored((n,), np.dtype(np.float32), lambda: None) for i, n in enumerate(sizes)}
    assert list(batches(arrays)) == [[0, 1, 2], [3, 4], [5], [6]]
    assert list(batches({})) == []


def wrong(kind: str) -> dict[str, np.ndarray]:
    arrays = dict(published())
    if kind == "deleted":
        del arrays["decoder.up_blocks.1.resnets.0.conv_shortcut.bias"]
    if kind == "extra":
        arrays["decoder.up_blocks.1.resnets.2.norm1.weight"] = np.ones(32, np.float32)
    if kind == "unknown":
        arrays["encoder.surplus"] = np.ones(32, np.float32)
    if kind == "shape":
        arrays["encoder.conv_in.weight"] = np.zeros((32, 3, 1, 1), np.float32)
    if kind == "transposed":
        arrays["encoder.conv_in.weight"] = arrays["encoder.conv_in.weight"].transpose(2, 3, 1, 0)
    if kind == "temporal":
        arrays["decoder.time_conv_out.bias"] = np.zeros(3, np.float32)
    if kind == "nan":
        arrays["quant_conv.bias"] = np.full(8, np.nan, np.float32)
    if kind == "integers":
        arrays["quant_conv.bias"] = np.zeros(8, np.int32)
    return arrays


WRONG = {
    "deleted": "decoder.up_blocks.1.resnets.0.conv_shortcut.bias is missing$",
    "extra": "decoder.up_blocks.1.resnets.2.norm1.weight is not part of the model$",
    "unknown": "encoder.surplus is not part of the model$",
    "shape": r"encoder.conv_in.weight is \(32, 3, 1, 1\) and should be \(32, 3, 3, 3\)$",
    "transposed": r"encoder.conv_in.weight is \(3, 3, 3, 32\) and should be \(32, 3, 3, 3\)$",
    "temporal": "decoder.time_conv_out.bias is not part of the model$",
    "nan": "/model.safetensors: quant_conv.bias has values that are not finite",
    "integers": "quant_conv.bias has numbers of type int32",
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_array_fails_by_name(tmp_path, kind):
    file = write(tmp_path / "model.safetensors", wrong(kind))
    with pytest.raises(UserError) as error:
        convert_file(TOOL, "sd", str(file), str(tmp_path / "vae"))
    assert re.search(WRONG[kind], str(error.value).removesuffix("."))
    with pytest.raises(UserError):
        runs.open_run(tmp_path / "vae")


def test_a_file_for_another_tool_is_told(tmp_path):
    unet = {"conv_in.weight": np.zeros((8, 4, 3, 3)), "time_embedding.linear_1.weight": np.zeros((8, 8))}
    unet["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"] = np.zeros((8, 768))
    file = write(tmp_path / "unet.safetensors", {n: a.astype(np.float32) for n, a in unet.items()})
    with pytest.raises(UserError, match="It looks like a U-Net of diffusers, which tools/convert_unet.py --preset=sd15 takes"):
        convert_file(TOOL, "sd", str(file), str(tmp_path / "out"))
    with pytest.raises(UserError, match="an autoencoder of diffusers, which tools/convert_vae.py --preset=sd takes"):
        convert_file(TOOL, "svd", str(write(tmp_path / "vae.safetensors", published())), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_old_names_and_several_networks_in_a_file(tmp_path):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {re.sub("|".join(old), lambda m: old[m[0]], n): a for n, a in published().items()}
    assert renamed.keys() != published().keys()
    whole = {f"vae.{n}": a for n, a in renamed.items()} | {"unet.conv_in.bias": np.zeros(3, np.float32)}
    folder = convert_file(TOOL, "sd", str(write(tmp_path / "all.safetensors", whole)), str(tmp_path / "vae"))
    equal(arrays_in(convert_back(TOOL, str(folder), str(tmp_path / "back.safetensors"))), published())
    stray = write(tmp_path / "stray.safetensors", whole | {"stray.bias": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match="1 names begin with none of unet., vae., .*, such as stray.bias"):
        convert_file(TOOL, "sd", str(stray), str(tmp_path / "other"))


def test_the_folder_of_a_pipeline_says_the_scaling(tmp_path):
    (tmp_path / "pipeline" / "vae").mkdir(parents=True)
    write(tmp_path / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors", published())
    (tmp_path / "pipeline" / "vae" / "config.json").write_text('{"scaling_factor": 0.13025}')
    folder = convert_file(TOOL, "sd", str(tmp_path / "pipeline"), str(tmp_path / "vae"))
    assert runs.open_run(folder).config["objective"]["vae"]["scaling"] == 0.13025


SETTINGS = {
    '{"shift_factor": 0.1159}': 'shift_factor is 0.1159, where --preset=sd has 0: .*choose the preset of this model, if there is one$',
    '{"latents_mean": [0.1, 0.2]}': r"latents_mean is \[0.1, 0.2\], where --preset=sd has null",
    '{"norm_num_groups": 16}': "norm_num_groups is 16, where --preset=sd has 32",
    '{"scaling_factor": "0.5"}': 'scaling_factor is "0.5", not a number above 0: download it again$',
    '{"scaling_factor": NaN}': "scaling_factor is NaN, not a number",
    '{"scaling_factor": true}': "scaling_factor is true, not a number",
    '{"scaling_factor": 0}': "scaling_factor is 0, not a number above 0",
    "scaling": "is not valid JSON",
    "3": r"holds 3, not an object \{...\}",
}


@pytest.mark.parametrize("text", SETTINGS)
def test_settings_that_the_network_cannot_have_are_refused(tmp_path, text):
    file = write(tmp_path / "model.safetensors", published())
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=f"{tmp_path}/config.json:? .*{SETTINGS[text]}"):
        convert_file(TOOL, "sd", str(file), str(tmp_path / "vae"))
    assert not (tmp_path / "vae").exists()


def test_settings_that_say_nothing_new(tmp_path):
    file = write(tmp_path / "model.safetensors", published())
    (tmp_path / "config.json").write_text('{"shift_factor": null, "latents_mean": null, "norm_num_groups": 32, "act_fn": "silu"}')
    folder = convert_file(TOOL, "sd", str(file), str(tmp_path / "vae"))
    assert build(runs.open_run(folder).config["objective"]["vae"]) == build(TINY)
    (tmp_path / "config.json").write_text('{"shift_factor": 0.0, "scaling_factor": 2}')
    folder = convert_file(TOOL, "sd", str(file), str(tmp_path / "other"))
    assert runs.open_run(folder).config["objective"]["vae"]["scaling"] == 2.0


def run(*argv) -> int:
    return guarded("convert_vae", list(argv), lambda argv: main(TOOL, argv))


def test_the_command_line(tmp_path, capsys):
    file = write(tmp_path / "model.safetensors", published())
    vae, back = tmp_path / "vae", tmp_path / "back.safetensors"
    assert run("--help") == 0 and "--preset=NAME" in capsys.readouterr().out
    assert run("--preset=sd", f"--weights={file}", f"--out={vae}") == 0
    assert run("--back", f"--weights={vae}", f"--out={back}") == 0
    equal(arrays_in(back), published())
    capsys.readouterr()
    (tmp_path / "file").write_text("")
    cases = {
        ("--preset=sd", f"--out={vae}"): "--weights is missing",
        ("--preset=vq", f"--weights={file}", f"--out={tmp_path}/x"): "--preset=vq is none of sd, svd",
        ("--preset=sd", f"--weights={file}", f"--out={vae}"): "holds a run already: choose another --out",
        ("--preset=sd", f"--weights={file}", f"--out={tmp_path}/file/x"): "cannot write to",
        ("--preset=sd", f"--weights={file}", f"--out={tmp_path}/x", "--dtype=int8"): "--dtype=int8 is none of float32",
        ("--preset=sd", f"--weights={file}", f"--out={tmp_path}/x", "--last"): "--last is not used without --back",
        ("--preset=sd", f"--weights={file}", f"--out={tmp_path}/x", f"--tokenizer={tmp_path}"): "for towers of CLIP",
        ("--preset=sd", f"--weights={tmp_path}/gone.bin", f"--out={tmp_path}/x"): "there is no file",
        ("--back", f"--weights={vae}", f"--out={back}"): "exists already: choose another --out",
        ("--back", f"--weights={vae}", f"--out={tmp_path}/x.bin"): "should end in .safetensors",
        ("--back", f"--weights={vae}", f"--out={tmp_path}/file/x.safetensors"): "cannot write to",
        ("--back", f"--weights={tmp_path}", f"--out={tmp_path}/x.safetensors"): "is not a run folder",
        ("--back", "--preset=svd", f"--weights={vae}", f"--out={tmp_path}/x.safetensors"): (
            f"--preset=svd: {vae} was converted with --preset=sd; leave the flag out"
        ),
    }
    for argv, message in cases.items():
        assert run(*argv) == 2, argv
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


@pytest.mark.full
@pytest.mark.parametrize("preset", ["sd", "svd"])
def test_files_of_diffusers(tmp_path, preset):
    """A folder by `save_pretrained` there and back to diffusers, and torch's own format."""
    from helpers_torch import diffusers, torch
    from test_models_vae import torch_module

    theirs = torch_module(build(TOOL.presets[preset]), scaling_factor=0.25)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.copy_(torch.from_numpy(golden_weight(name, tuple(p.shape))))
    theirs.save_pretrained(tmp_path / "pipeline" / "vae")
    folder = convert_file(TOOL, preset, str(tmp_path / "pipeline"), str(tmp_path / "a"))
    assert runs.open_run(folder).config["objective"]["vae"]["scaling"] == 0.25
    out = convert_back(TOOL, str(folder), str(tmp_path / "back.safetensors"))
    from safetensors.torch import load_file

    back = load_file(out)
    again = torch_module(build(TOOL.presets[preset]))
    again.load_state_dict(back, strict=True)
    assert all(torch.equal(back[n], t) for n, t in theirs.state_dict().items())
    theirs.half().save_pretrained(tmp_path / "half", safe_serialization=False)
    assert list((tmp_path / "half").glob("*.bin"))
    folder = convert_file(TOOL, preset, str(tmp_path / "half"), str(tmp_path / "b"), dtype="keep")
    halves = load_file(convert_back(TOOL, str(folder), str(tmp_path / "half.safetensors")))
    assert all(torch.equal(halves[n], t) for n, t in theirs.state_dict().items())
    theirs.float().save_pretrained(tmp_path / "shards", max_shard_size="300KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    convert_file(TOOL, preset, str(tmp_path / "shards"), str(tmp_path / "c"))
    assert isinstance(theirs, diffusers.ModelMixin)
