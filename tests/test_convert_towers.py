"""The command lines of convert_unet.py and convert_clip.py: files become folders that a config can name, and come back."""

import dataclasses
import json

import numpy as np
import pytest

from helpers import flatten
from helpers_diffusion import golden_weight
from magvid import runs
from magvid.build import build
from magvid.flags import guarded
from tools import convert_clip, convert_unet
from tools.convert import main
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
    arrays = published(preset)
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
