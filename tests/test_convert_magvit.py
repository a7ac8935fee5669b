"""The official parameter trees, by their own lists of names and shapes, become ours and come back; a wrong one is named.
A converted checkpoint is a run: it generates what the official code does, and training begins with it.
"""

import copy
import functools
import importlib
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from helpers import GOLDEN, Golden, flatten, nest
from magvid import runs
from magvid.build import build
from magvid.conditions import blank
from magvid.generator import Generator
from magvid.job import check_config
from magvid.models.causal import CausalTransformer
from magvid.sample import Options, sample_run
from magvid.types import UserError
from magvid.video import read_video
from test_masked_decode import recorded
from test_maskgit import tree as maskgit_tree
from tools import convert_magvit, official
from tools.rules import invert, rename

ROOT = pathlib.Path(__file__).parent.parent

# golden list: (format, config, its tokenizer's, group)
TREES = {
    "vq3d_ucf101_B/generator": ("magvit", "vq3d_ucf101", None, "tokenizer"),
    "vq3d_ucf101_B/discriminator": ("magvit", "vq3d_ucf101", None, "discriminator"),
    "vq3d_bair_B/generator": ("magvit", "vq3d_bair", None, "tokenizer"),
    "vq3d_bair_B/discriminator": ("magvit", "vq3d_bair", None, "discriminator"),
    "vq2d_ucf101_B/generator": ("magvit", "vq2d_ucf101", None, "tokenizer"),
    "vq2d_ucf101_B/discriminator": ("magvit", "vq2d_ucf101", None, "discriminator"),
    "transformer_ucf101_CG_B": ("magvit", "commit_ucf101", "vq3d_ucf101", "transformer"),
    "causal": ("magvit", None, None, "transformer"),
    "imagenet256/tokenizer": ("maskgit", "vqgan_imagenet", None, "tokenizer"),
    "imagenet256/transformer": ("maskgit", "maskgit_imagenet", "vqgan_imagenet", "transformer"),
}


def official_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """From the original code's own list."""
    if name == "causal":
        return {n: a.shape for n, a in Golden("lm_a").flat().items()}
    if TREES[name][0] == "maskgit":
        return maskgit_tree(name)
    section = (GOLDEN / "param_trees.txt").read_text().split(f"## {name}\n")[1].split("\n## ")[0]
    rows = (line.split("\t") for line in section.strip().splitlines() if "\t" in line)
    return {name: tuple(int(n) for n in shape.strip("()").split(",") if n.strip()) for name, shape in rows}


def official_arrays(name: str) -> dict[str, np.ndarray]:
    """All equal in an array, and different in each: names are compared, and no memory is needed."""
    return {n: np.broadcast_to(np.float32(i), s) for i, (n, s) in enumerate(sorted(official_shapes(name).items()))}


@functools.cache
def ours(config: str | None, tokenizer: str | None):
    """(shapes of all groups, objective) of a config without references."""
    if config is None:
        c = Golden("lm_a").config
        sizes = c["vocab_size"], c["max_len"], c["emb_dim"], c["num_layers"], c["num_heads"], c["mlp_dim"]
        tree = jax.eval_shape(CausalTransformer(*sizes).init, jax.random.key(0), jnp.zeros((1, 3), jnp.int32))["params"]
        spec = {"target": "magvid.models.causal:CausalTransformer"}
        return {"transformer": convert_magvit.shapes(tree)}, {"transformer": spec}
    load = lambda name: importlib.import_module(f"configs.{name}").get_config("perceptual=0" if "vq" in name else None)
    checked = check_config(load(config))
    if tokenizer:
        checked["objective"]["tokenizer"] = load(tokenizer).objective.tokenizer.to_dict()
    return convert_magvit.model(checked)[0], checked["objective"]


def case(name: str):
    """(official arrays, our shapes, rules)."""
    format, config, tokenizer, group = TREES[name]
    shapes, objective = ours(config, tokenizer)
    return official_arrays(name), shapes[group], convert_magvit.rules_of(format, group, objective[group])


@pytest.mark.parametrize("name", TREES)
def test_full_size_there_and_back(name):
    theirs, shapes, rules = case(name)
    found = convert_magvit.to_ours(theirs, shapes, rules)
    assert {n: a.shape for n, a in found.items()} == shapes
    back = convert_magvit.to_official(found, shapes, rules)
    assert {n: (a.shape, a.flat[0]) for n, a in back.items()} == {n: (a.shape, a.flat[0]) for n, a in theirs.items()}


@pytest.mark.parametrize("name", TREES)
def test_a_deleted_an_extra_and_a_misshapen_parameter_fail_by_name(name):
    theirs, shapes, rules = case(name)
    there = convert_magvit.to_ours, theirs
    back = convert_magvit.to_official, convert_magvit.to_ours(theirs, shapes, rules)
    for function, arrays in (there, back):
        for victim in sorted(arrays)[:: len(arrays) // 2]:
            for change, message in (
                ({victim: None}, f"{victim} is missing"),
                ({"surplus/kernel": np.zeros(3)}, "surplus/kernel is not part of the model"),
                ({victim: np.zeros((3, 5, 7))}, rf"{victim} is \(3, 5, 7\) and should be"),
            ):
                changed = {n: a for n, a in {**arrays, **change}.items() if a is not None}
                with pytest.raises(ValueError, match=message):
                    function(changed, shapes, rules)


def test_rules_that_do_not_lead_back_are_refused():
    with pytest.raises(ValueError, match="cannot be inverted"):
        invert([(r"(a)/(b)", r"\2/\1")])
    with pytest.raises(ValueError, match=r"a leading axis of 1, got the shape \(2, 3\)"):
        rename({"PositionEmbeddings_0/embed_pos": np.zeros((2, 3))}, official.CAUSAL)


# --- files and runs

CONFIG = ROOT / "tests" / "tiny_official.py"


@functools.cache
def train_state() -> dict[str, dict[str, np.ndarray]]:
    """What the official trainer saves of a tokenizer, with all that we do not read."""
    config = check_config(importlib.import_module("tiny_official").get_config())
    del config["objective"]["perceptual"], config["optim"]["discriminator"]
    shapes, rng = convert_magvit.model(config)[0], np.random.default_rng(0)
    draw = lambda group: {n: rng.standard_normal(s, np.float32) / 4 for n, s in shapes[group].items()}
    return {"g_params": draw("tokenizer"), "ema_params": draw("tokenizer"), "d_params": draw("discriminator")}


def save(path: pathlib.Path, state: dict) -> str:
    path.write_bytes(serialization.msgpack_serialize(state))
    return f"--checkpoint={path}"


def nested(entries) -> dict:
    return {name: nest(arrays) for name, arrays in entries.items()}


def same(tree, arrays) -> None:
    found = flatten(tree)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> pathlib.Path:
    """A folder with `vq` and `commit`, the runs of two official checkpoints, and those checkpoints."""
    folder = tmp_path_factory.mktemp("converted")
    state = nested(train_state()) | {"global_step": np.int32(37), "rng": np.zeros(2, np.uint32), "g_optimizer": {"count": 3}}
    source = save(folder / "checkpoint_37", state)
    convert_magvit.main([f"--config={CONFIG}:tokenizer", source, f"--workdir={folder / 'vq'}"])
    golden = Golden("e2e_bert_params").flat()
    source = save(folder / "checkpoint_74", {"params": nest(golden), "global_step": np.int32(74)})
    (folder / "names.txt").write_text("run\njump\nswim\nrow\nski\n")
    options = [f"--workdir={folder / 'commit'}", f"--classes={folder / 'names.txt'}"]
    convert_magvit.main([f"--config={CONFIG}:transformer,{folder / 'vq'}", source, *options])
    return folder


def test_a_converted_checkpoint_is_a_run(converted):
    run, state = runs.open_run(converted / "vq"), train_state()
    assert run.step == 37 and run.groups == ["discriminator", "tokenizer"]
    same(run.weights("tokenizer", "params"), state["g_params"])
    same(run.weights("tokenizer"), state["ema_params"])
    same(run.weights("discriminator"), state["d_params"])
    assert run.clip == runs.ClipFormat(4, 8, 8, 1, 12.0)
    run = runs.open_run(converted / "commit")
    assert run.step == 74 and list(run.frozen) == ["tokenizer"]
    same(run.weights("transformer"), rename(Golden("e2e_bert_params").flat(), official.TRANSFORMER))


def test_it_generates_the_tokens_of_the_official_code(converted):
    golden, run = Golden("e2e_full_generation"), runs.open_run(converted / "commit")
    model = Generator.open(run, ["official:CG"], decoding=recorded(golden), like=blank(run.clip))
    batch = dict(video=np.zeros((2, 4, 8, 8, 3), np.uint8), label=golden["label"][:, 0], task=np.zeros(2, np.int32))
    ids, _ = jax.jit(model.programs.objective.sample_ids)(model.params, batch, jax.random.key(0))
    np.testing.assert_array_equal(ids, golden["out_tokens"])


def test_it_samples_without_its_data(converted, tmp_path):
    options = Options(tasks=("official:CG",), label="swim", number=2, out=str(tmp_path), scale=1)
    paths = sample_run(runs.open_run(converted / "commit"), options)
    assert len(paths) == 3 and read_video(paths[0])[0].shape == (4, 8, 8, 3)


def test_training_begins_with_it(converted):
    config = importlib.import_module("configs.vq3d_ucf101").get_config(f"smoke=1,init={converted / 'vq'}")
    assert config.init == [dict(run=str(converted / "vq"), weights="params")]
    checked = check_config(importlib.import_module("tiny_official").get_config())
    del checked["objective"]["perceptual"]
    objective, example = build(checked["objective"]), convert_magvit.example(checked)
    shapes = jax.eval_shape(objective.init, jax.random.key(0), example)
    begun = runs.initial([dict(run=str(converted / "vq"), weights="params")], shapes)
    for group, entry in (("tokenizer", "g_params"), ("discriminator", "d_params")):
        same(begun[group], train_state()[entry])


def test_back_to_a_file(converted, tmp_path):
    for run, entries in (("vq", train_state()), ("commit", {"params": Golden("e2e_bert_params").flat()})):
        convert_magvit.main(["--back", f"--workdir={converted / run}", f"--checkpoint={tmp_path / run}"])
        state = serialization.msgpack_restore((tmp_path / run).read_bytes())
        assert set(state) == {*entries, "global_step"}
        for name, arrays in entries.items():
            same(state[name], arrays)
    with pytest.raises(UserError, match="exists already"):
        convert_magvit.main(["--back", f"--workdir={converted / 'vq'}", f"--checkpoint={tmp_path / 'vq'}"])
    with pytest.raises(UserError, match="--config is not used with --back"):
        convert_magvit.main(["--back", "--config=x", f"--workdir={converted / 'vq'}", "--checkpoint=y"])


@pytest.mark.parametrize(
    "layout",
    [
        lambda s: s,
        lambda s: {"train_state": s},
        lambda s: {"g_optimizer": {"target": s["g_params"], "state": {}}, "d_params": s["d_params"]},
        lambda s: {"ema_params": {"params": s["g_params"]}},
        lambda s: jax.tree.map(lambda x: np.stack([x] * 3), s),
    ],
    ids=["plain", "wrapped", "old flax", "average alone", "of three devices"],
)
def test_where_a_file_may_have_its_weights(layout, tmp_path):
    state = {name: arrays for name, arrays in train_state().items() if name != "ema_params"}
    source = save(tmp_path / "file", layout(nested(state)))
    convert_magvit.main([f"--config={CONFIG}:tokenizer", source, f"--workdir={tmp_path / 'run'}"])
    run = runs.open_run(tmp_path / "run")
    assert not run.averaged
    same(run.weights("tokenizer"), state["g_params"])
    assert ("discriminator" in run.groups) == ("discriminator" in run.config["objective"])


def test_another_place_by_name(tmp_path):
    source = save(tmp_path / "file", {"model": {"generator": nest(train_state()["g_params"])}})
    options = [f"--config={CONFIG}:tokenizer", source, f"--workdir={tmp_path / 'run'}"]
    with pytest.raises(UserError, match="has no g_params, .* keeps a tokenizer. It looks like a 3D-VQ tokenizer"):
        convert_magvit.main(options)
    convert_magvit.main([*options, "--tree=model/generator"])
    same(runs.open_run(tmp_path / "run").weights("tokenizer"), train_state()["g_params"])


def broken(change) -> dict:
    state = {name: dict(arrays) for name, arrays in train_state().items()}
    change(state)
    return nested(state)


KERNEL = "encoder/ResBlock_0/Conv_1/kernel"
BROKEN = {
    f"{KERNEL} is missing": lambda s: s["ema_params"].pop(KERNEL),
    "encoder/Extra_0/bias is not part of the model": lambda s: s["g_params"].update({"encoder/Extra_0/bias": np.ones(3, "f4")}),
    r"Dense_1/bias is \(2,\) and should be \(1,\)": lambda s: s["d_params"].update({"Dense_1/bias": np.ones(2, "f4")}),
    f"g_params/{KERNEL} holds int32": lambda s: s["g_params"].update({KERNEL: np.ones((3, 3, 3, 4, 4), "i4")}),
    f"{KERNEL} is not finite": lambda s: s["g_params"].update({KERNEL: np.full((3, 3, 3, 4, 4), np.nan, "f4")}),
    "the copies of 2 devices differ": lambda s: s.update(
        g_params={n: np.stack([a, a + (n == KERNEL)]) for n, a in s["g_params"].items()}
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_does_not_fit_is_named_and_nothing_is_written(message, tmp_path):
    source = save(tmp_path / "file", broken(BROKEN[message]))
    with pytest.raises(UserError, match=f"file: .*{message}"):
        convert_magvit.main([f"--config={CONFIG}:tokenizer", source, f"--workdir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


def test_a_run_that_does_not_fit_its_config_does_not_go_back(converted, tmp_path):
    config = copy.deepcopy(runs.open_run(converted / "vq").config)
    config["objective"]["tokenizer"]["quantizer"]["size"] = 25
    runs.write_json(tmp_path / "config.json", config)
    (tmp_path / "checkpoints").symlink_to(converted / "vq" / "checkpoints")
    with pytest.raises(UserError, match=r"quantizer/codebook is \(24, 6\) and should be \(25, 6\)"):
        convert_magvit.main(["--back", f"--workdir={tmp_path}", f"--checkpoint={tmp_path / 'file'}"])
    assert not (tmp_path / "file").exists()


def test_other_files_are_told_apart(converted, tmp_path):
    convert = lambda *options: convert_magvit.main([*options, f"--workdir={tmp_path / 'run'}"])
    tokenizer, transformer = f"--config={CONFIG}:tokenizer", f"--config={CONFIG}:transformer,{converted / 'vq'}"
    maskgit = {n: np.zeros((2, 2), np.float32) for n in maskgit_tree("imagenet256/transformer")}
    causal = nest(Golden("lm_a").flat())
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    (tmp_path / "text").write_text("hello")
    (tmp_path / "cut").write_bytes((converted / "checkpoint_37").read_bytes()[:5000])
    for options, message in (
        ((transformer, f"--checkpoint={converted / 'checkpoint_37'}"), "has no params, .* a 3D-VQ tokenizer, which --conf"),
        ((tokenizer, f"--checkpoint={converted / 'checkpoint_74'}"), "looks like MAGVIT's transformer, which --config="),
        ((transformer, save(tmp_path / "m", {"params": nest(maskgit)})), "is missing.*MaskGIT's transformer, which --format=m"),
        ((transformer, save(tmp_path / "l", {"params": causal})), "looks like MAGVIT's causal transformer"),
        ((tokenizer, save(tmp_path / "o", {"weights": {"a": np.zeros(3)}})), "The file has weights; name the place .* --tree"),
        ((tokenizer, f"--checkpoint={tmp_path / 'a.npz'}"), "is a zip archive"),
        ((tokenizer, f"--checkpoint={tmp_path / 'text'}"), "is not a flax checkpoint"),
        ((tokenizer, f"--checkpoint={tmp_path / 'cut'}"), r"is cut off \(\w+, 5,000 bytes\)"),
        ((tokenizer, f"--checkpoint={converted}"), r"is a folder: give the file in it \(checkpoint_37, checkpoint_74\)"),
        ((tokenizer, "--checkpoint=/nowhere/x"), "there is no file /nowhere/x"),
        ((f"--config={CONFIG}:other", "--checkpoint=x"), "trains denoiser, which --format=magvit"),
        ((tokenizer, "--format=torch", "--checkpoint=x"), "--format=torch is none of magvit, maskgit"),
    ):
        with pytest.raises(UserError, match=message):
            convert(*options)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="holds a run already"):
        convert_magvit.main([tokenizer, "--checkpoint=x", f"--workdir={converted / 'vq'}"])
    (tmp_path / "names").write_text("a\nb\n")
    with pytest.raises(UserError, match="has 2 lines, and the config 5 classes"):
        convert(transformer, f"--checkpoint={converted / 'checkpoint_74'}", f"--classes={tmp_path / 'names'}")


def test_an_error_is_one_line(tmp_path):
    source = save(tmp_path / "file", broken(BROKEN[f"{KERNEL} is missing"]))
    command = [sys.executable, str(ROOT / "tools" / "convert_magvit.py"), f"--config={CONFIG}:tokenizer", source]
    done = subprocess.run([*command, "--workdir=run"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and f"{KERNEL} is missing" in done.stderr
