"""Files of weights: read one array at a time, whole or refused in one sentence, and told apart."""

import json
import pickle
import re

import ml_dtypes
import numpy as np
import pytest

from magvid.types import UserError
from tools import weights
from tools.weights import Stored, describe, open_weights, parts, read_safetensors, write_safetensors

RNG = np.random.default_rng(0)
ARRAYS = {
    "a.weight": RNG.standard_normal((4, 3, 2)).astype(np.float32),
    "b": RNG.standard_normal((5, 1)).astype(np.float16),
    "c.half": RNG.standard_normal(7).astype(ml_dtypes.bfloat16),
    "scalar": np.array(3, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "whole": np.arange(6),
}


def stored(arrays) -> dict[str, Stored]:
    return {name: Stored.of(a) for name, a in arrays.items()}


def same(found, arrays):
    assert found.keys() == arrays.keys()
    for name, a in arrays.items():
        x = np.asarray(found[name])
        assert found[name].shape == x.shape == a.shape and found[name].dtype == x.dtype == a.dtype
        assert x.tobytes() == a.tobytes(), name


@pytest.fixture
def file(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", stored(ARRAYS))
    return tmp_path / "model.safetensors"


# safetensors --------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(file):
    source = open_weights(file)
    same(source.weights, ARRAYS)
    assert source.files == [file] and source.config == {}
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_nothing_is_read_before_it_is_asked_for(file, monkeypatch):
    read = []
    original = np.fromfile
    monkeypatch.setattr(np, "fromfile", lambda *a, **k: read.append(k["offset"]) or original(*a, **k))
    found = read_safetensors(file)
    assert found["a.weight"].nbytes == 96 and not read
    np.asarray(found["b"])
    assert len(read) == 1


@pytest.mark.full
def test_the_format_is_that_of_its_library(file, tmp_path):
    from helpers_torch import torch  # noqa: F401
    from safetensors.numpy import save_file
    from safetensors.torch import load_file

    theirs = load_file(file)
    assert theirs.keys() == ARRAYS.keys() and theirs["c.half"].dtype == torch.bfloat16
    np.testing.assert_array_equal(theirs["c.half"].float().numpy(), ARRAYS["c.half"].astype(np.float32))
    plain = {n: a for n, a in ARRAYS.items() if a.dtype != ml_dtypes.bfloat16}
    save_file(plain, tmp_path / "theirs.safetensors", {"format": "pt"})
    same(read_safetensors(tmp_path / "theirs.safetensors"), plain)


def damaged(data: bytes, kind: str) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if kind == "type":
        header["b"]["dtype"] = "F4"
    if kind == "place":
        header["b"]["shape"] = [5, 2]
    text = json.dumps(header).encode()
    return {
        "empty": b"",
        "short header": data[:100],
        "short data": data[:-9],
        "long": data + b"x",
        "text": b"<html>404 not found</html>",
    }.get(kind, len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    "kind, message",
    [
        ("empty", "is not a whole .safetensors file"),
        ("short header", "is not a whole .safetensors file .its header would have"),
        ("short data", r"is cut short: it has [\d,]+ of [\d,]+ bytes; download it again"),
        ("long", "is cut short|bytes"),
        ("text", "is not a whole .safetensors file"),
        ("type", "b is of the unknown type F4"),
        ("place", r"the place of b does not fit its shape \(5, 2\)"),
    ],
)
def test_a_damaged_file_is_refused(file, kind, message):
    file.write_bytes(damaged(file.read_bytes(), kind))
    with pytest.raises(UserError, match=message):
        open_weights(file)


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    def fail():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_safetensors(tmp_path / "x.safetensors", {"a": Stored((1,), np.dtype(np.float32), fail)})
    assert not list(tmp_path.iterdir())


# Several files, folders ---------------------------------------------------------------------------------------------


def shards(folder) -> dict[str, str]:
    """Two files and their index, as diffusers writes them; returns {name: file}."""
    names = sorted(ARRAYS)
    places = {n: f"model-0000{1 + (i > 2)}-of-00002.safetensors" for i, n in enumerate(names)}
    for place in set(places.values()):
        write_safetensors(folder / place, stored({n: ARRAYS[n] for n in names if places[n] == place}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


def test_an_index_joins_its_files(tmp_path):
    shards(tmp_path)
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        source = open_weights(path)
        same(source.weights, {n: ARRAYS[n] for n in source.weights})
        assert source.weights.keys() == ARRAYS.keys() and len(source.files) == 2


@pytest.mark.parametrize("names", [
    ("model.safetensors.index.json", "model.safetensors.index.fp16.json"),
    ("pytorch_model.bin", "model.fp16.safetensors"),
    ("model.non_ema.safetensors", "model.non_ema.bin"),
    ("diffusion_pytorch_model.safetensors.index.fp16.json", "diffusion_pytorch_model.bin.index.fp16.json"),
])  # fmt: skip
def test_the_plain_file_or_else_the_one_variant(tmp_path, names, monkeypatch):
    """The first of `names` is taken, of each name with the others there or not."""
    opened = []
    monkeypatch.setattr(weights, "_one_file", lambda path: opened.append(path.name) or {"a": 1})
    monkeypatch.setattr(weights, "_indexed", lambda path: (weights._one_file(path), [path]))
    for name in reversed(names):
        (tmp_path / name).touch()
        (tmp_path / "model.fp16-00001-of-00002.safetensors").touch()
        open_weights(tmp_path)
        assert opened[-1] == name


def test_an_index_of_a_variant_joins_its_files_and_of_two_variants_neither_is_chosen(tmp_path):
    shards(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    variant = index.rename(tmp_path / "model.safetensors.index.fp16.json")
    for path in (tmp_path, variant):
        assert open_weights(path).weights.keys() == ARRAYS.keys()
    (tmp_path / "model.bf16.safetensors").touch()
    with pytest.raises(UserError, match="has several: .*model.bf16.safetensors.*model.safetensors.index.fp16.json: name the file"):
        open_weights(tmp_path)


@pytest.mark.parametrize("text, message", [("{", "config.json is not valid JSON"), ("[1]", r"config.json holds \[1\], not an object")])
def test_a_damaged_config_is_named_when_it_is_asked_for(file, text, message):
    (file.parent / "config.json").write_text(text)
    source = open_weights(file)
    with pytest.raises(UserError, match=f"{file.parent}/{message}.*: download it again"):
        source.config


def test_what_an_index_lacks_is_named(tmp_path):
    places = shards(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    second = tmp_path / "model-00002-of-00002.safetensors"
    index.write_text(json.dumps({"weight_map": {**places, "extra": second.name}}))
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors and .* extra is only in the index"):
        open_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": {n: p for n, p in places.items() if n != "whole"}}))
    with pytest.raises(UserError, match="whole is not in the index"):
        open_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": places}))
    second.unlink()
    with pytest.raises(UserError, match="names model-00002-of-00002.safetensors, which is missing beside it"):
        open_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(UserError, match="names ../secret.safetensors, which is not a file beside it"):
        open_weights(tmp_path)
    for text in ("[]", "{", '{"weight_map": 3}'):
        index.write_text(text)
        with pytest.raises(UserError, match="is not an index of weights"):
            open_weights(tmp_path)


def test_the_folder_of_a_pipeline(tmp_path):
    for name in ("unet", "vae"):
        (tmp_path / name).mkdir()
    write_safetensors(tmp_path / "vae" / "diffusion_pytorch_model.fp16.safetensors", stored(ARRAYS))
    (tmp_path / "vae" / "config.json").write_text('{"scaling_factor": 0.5}')
    source = open_weights(tmp_path, ("vae",))
    assert source.files == [tmp_path / "vae" / "diffusion_pytorch_model.fp16.safetensors"]
    assert source.config == {"scaling_factor": 0.5}
    write_safetensors(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", stored(ARRAYS))
    assert open_weights(tmp_path / "vae").files[0].name == "diffusion_pytorch_model.safetensors"  # rather than of half precision
    with pytest.raises(UserError, match="should hold one file of weights, and has none; it holds nothing"):
        open_weights(tmp_path, ("unet",))
    with pytest.raises(UserError, match="one file of weights or a folder text_encoder, and has none; it holds unet, vae"):
        open_weights(tmp_path, ("text_encoder",))
    for name in ("one", "two"):
        write_safetensors(tmp_path / "unet" / f"{name}.safetensors", stored(ARRAYS))
    with pytest.raises(UserError, match="has several: one.safetensors, two.safetensors: name the file"):
        open_weights(tmp_path, ("unet",))


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no file .*gone.safetensors"):
        open_weights(tmp_path / "gone.safetensors")
    (tmp_path / "a.onnx").write_text("x")
    with pytest.raises(UserError, match="is not a file of weights that is known here: .safetensors, .bin"):
        open_weights(tmp_path / "a.onnx")
    write_safetensors(tmp_path / "none.safetensors", {})
    with pytest.raises(UserError, match="holds no arrays"):
        open_weights(tmp_path / "none.safetensors")


# PyTorch's files ----------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("zipped", [True, False])
def test_state_dicts_of_torch(tmp_path, zipped):
    from helpers_torch import torch

    tensors = {n: torch.from_numpy(a.astype(np.float32) if n == "c.half" else a) for n, a in ARRAYS.items()}
    tensors["c.half"] = tensors["c.half"].bfloat16()
    tensors["a.weight"] = tensors["a.weight"].transpose(0, 2).contiguous().transpose(0, 2)  # not contiguous
    lightning = {"state_dict": tensors, "epoch": 3, "callbacks": {}}
    for name, state in (("a.bin", tensors), ("b.ckpt", lightning)):
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=zipped)
        same(open_weights(tmp_path / name).weights, ARRAYS)
    data = (tmp_path / "a.bin").read_bytes()
    (tmp_path / "a.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="a.bin is not a whole state dict by torch.save"):
        open_weights(tmp_path / "a.bin")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list, not arrays by name"):
        open_weights(tmp_path / "list.pt")


class Hostile:
    def __reduce__(self):
        import os

        return os.system, ("touch hostile_was_here",)


@pytest.mark.full
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch):
    from helpers_torch import torch

    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(2), "b": Hostile()}, tmp_path / "zipped.bin")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps({"b": Hostile()}))
    with pytest.raises(UserError, match=r"would run code when it is read \(\w+.system\).*nothing was read"):
        open_weights(tmp_path / "zipped.bin")
    with pytest.raises(UserError):
        open_weights(tmp_path / "plain.ckpt")
    assert not (tmp_path / "hostile_was_here").exists()


# Telling what it is -------------------------------------------------------------------------------------------------

CROSS = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
TIME = {"conv_in.weight": (320, 4, 3, 3), "time_embedding.linear_1.weight": (1280, 320)}
LOOKS = {
    "tools/convert_unet.py --preset=sd15 takes": {**TIME, CROSS: (320, 768)},
    "tools/convert_unet.py --preset=sd21 takes": {**TIME, CROSS: (320, 1024)},
    "tools/convert_unet.py takes": {**TIME, CROSS: (320, 2048)},
    "tools/convert_unet.py --preset=modelscope takes": {**TIME, "transformer_in.norm.weight": (320,)},
    "tools/convert_clip.py --preset=openclip_h_text takes": {"text_model.embeddings.token_embedding.weight": (49408, 1024)},
    "tools/convert_clip.py --preset=clip_l_vision takes": {"vision_model.embeddings.class_embedding": (1024,)},
    "get the same model in the layout of diffusers": {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)},
    "a LoRA, which is only an addition": {"unet.down_blocks.0.attn.to_q.lora_A.weight": (4, 320)},
    "Its first names are x, y": {"x": (1,), "y": (2,)},
}


@pytest.mark.parametrize("text", LOOKS)
def test_files_are_told_apart(text):
    assert text in describe(LOOKS[text])


def test_what_is_of_none_of_a_tools_presets_is_not_sent_back_to_it():
    shapes = {**TIME, CROSS: (320, 2048)}
    assert describe(shapes, "convert_unet", ["sd15", "svd"]) == (
        "It looks like a U-Net of diffusers, but not clearly one of --preset=sd15, svd."
    )
    assert "which tools/convert_unet.py takes" in describe(shapes, "convert_vae", ["sd"])
    assert "tools/convert_unet.py --preset=sd15 takes" in describe({**TIME, CROSS: (320, 768)}, "convert_unet", ["sd15"])


def test_several_networks_in_a_file():
    both = {f"module.unet.{n}": s for n, s in TIME.items()} | {"module.vae.quant_conv.bias": (8,)}
    assert parts(both) == {"unet.": TIME, "vae.": {"quant_conv.bias": (8,)}}
    assert "a U-Net of diffusers under unet.*, which tools/convert_unet.py takes" in describe(both)
    assert parts(TIME) == {"": TIME}


@pytest.mark.full
def test_the_golden_lists_are_told_apart(shared):
    looks = {
        "diffusers_vae_tiny": "convert_vae.py --preset=sd ",
        "diffusers_tvae_tiny": "convert_vae.py --preset=svd ",
        "diffusers_svd_unet_tiny": "convert_unet.py --preset=svd ",
        "diffusers_unet3d_tiny": "convert_unet.py --preset=mavin ",  # the same network
        "mavin_unet_tiny": "convert_unet.py --preset=mavin ",
        "magdiff_unet_tiny": "convert_unet.py --preset=magdiff ",
        "magdiff_resampler": "convert_resampler.py --preset=magdiff ",
        "diffusers_unet2d_tiny": "convert_unet.py ",
        "diffusers_clip_text_tiny": "convert_clip.py ",
        "diffusers_clip_vision_tiny": "convert_clip.py ",
    }
    for name, text in looks.items():
        lines = (shared / "golden" / "diffusion" / f"{name}_keys.txt").read_text().strip().splitlines()
        shapes = {n: tuple(int(k) for k in re.findall(r"\d+", s)) for n, s in (line.split(" ", 1) for line in lines)}
        assert text in describe(shapes), name


def test_a_hash_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert weights.sha256(tmp_path / "a").startswith("ba7816bf8f01cfea")
