"""The official parameter tree, by its own list of names and shapes, becomes ours and comes back; a wrong one is named."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import serialization
from flax.traverse_util import unflatten_dict

from helpers import GOLDEN, Golden, flatten
from tools import convert_magvit
from tools.rules import invert, rename

ROOT = Path(__file__).parent.parent
TREES = {
    "tokenizer": ("vq3d_ucf101_B/generator", "configs/vq3d_ucf101.py:size=B"),
    "discriminator": ("vq3d_ucf101_B/discriminator", "configs/vq3d_ucf101.py:size=B"),
    "transformer": ("transformer_ucf101_CG_B", "configs/commit_ucf101.py:size=B"),
}


def official_shapes(group: str) -> dict[str, tuple[int, ...]]:
    section = (GOLDEN / "param_trees.txt").read_text().split(f"## {TREES[group][0]}\n")[1].split("\n## ")[0]
    rows = (line.split("\t") for line in section.strip().splitlines() if "\t" in line)
    return {name: tuple(int(n) for n in shape.strip("()").split(",") if n.strip()) for name, shape in rows}


def official_arrays(group: str) -> dict[str, np.ndarray]:
    """All equal in an array, and different in each: names are compared, and no memory is needed."""
    return {n: np.broadcast_to(np.float32(i), s) for i, (n, s) in enumerate(sorted(official_shapes(group).items()))}


@pytest.mark.parametrize("group", TREES)
def test_full_size_there_and_back(group):
    shapes, official = convert_magvit.shapes_of(TREES[group][1], group), official_arrays(group)
    ours = convert_magvit.to_ours(group, official, shapes)
    assert {n: a.shape for n, a in ours.items()} == shapes
    back = convert_magvit.to_official(group, ours, shapes)
    assert {n: (a.shape, a.flat[0]) for n, a in back.items()} == {n: (a.shape, a.flat[0]) for n, a in official.items()}


@pytest.mark.parametrize("group", TREES)
def test_a_deleted_an_extra_and_a_misshapen_parameter_fail_by_name(group):
    shapes, official = convert_magvit.shapes_of(TREES[group][1], group), official_arrays(group)
    victim = sorted(official)[len(official) // 2]
    (ours,) = rename({victim: official[victim]}, convert_magvit.GROUPS[group][0])
    for change, message in (
        ({victim: None}, f"{ours} is missing"),
        ({"surplus/kernel": np.zeros(3)}, "surplus/kernel"),
        ({victim: np.zeros((3, 5, 7))}, rf"{ours} is \(3, 5, 7\)"),
    ):
        changed = {n: a for n, a in {**official, **change}.items() if a is not None}
        with pytest.raises(ValueError, match=message):
            convert_magvit.to_ours(group, changed, shapes)


def test_rules_are_inverted():
    golden = Golden("bert_a").flat()
    there = rename(golden, convert_magvit.TRANSFORMER)
    assert rename(there, invert(convert_magvit.TRANSFORMER)).keys() == golden.keys()
    causal = Golden("lm_a").flat()
    assert rename(rename(causal, convert_magvit.CAUSAL), invert(convert_magvit.CAUSAL)).keys() == causal.keys()
    with pytest.raises(ValueError, match="cannot be inverted"):
        invert([(r"(a)/(b)", r"\2/\1")])


def test_the_command(tmp_path):
    """From the folder of the smoke config's sizes: msgpack -> npz -> msgpack, and what it says of a wrong file."""
    shapes = convert_magvit.shapes_of(f"{ROOT}/configs/vq3d_ucf101.py:smoke=1", "tokenizer")
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    state = {"ema_params": unflatten_dict(arrays, sep="/"), "g_params": {}, "global_step": 3}
    (tmp_path / "checkpoint_3").write_bytes(serialization.msgpack_serialize(state))
    command = [sys.executable, str(ROOT / "tools" / "convert_magvit.py"), "--group=tokenizer"]
    command.append(f"--config={ROOT}/configs/vq3d_ucf101.py:smoke=1")
    run = lambda *more: subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True)
    done = run("--checkpoint=checkpoint_3", "--out=vq.npz")
    assert done.returncode == 0, done.stderr
    assert run("--back", "--checkpoint=vq.npz", "--out=again").returncode == 0
    again = flatten(serialization.msgpack_restore((tmp_path / "again").read_bytes())["ema_params"])
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)
    wrong = run("--checkpoint=checkpoint_3", "--out=x.npz", "--tree=params")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1
    assert "has no entry params: it has ema_params, g_params, global_step" in wrong.stderr
    (tmp_path / "text").write_text("hello")
    assert "is not a flax checkpoint" in run("--checkpoint=text", "--out=x.npz").stderr
