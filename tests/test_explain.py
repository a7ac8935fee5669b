"""What is planned from a config alone is what a run of it holds and computes."""

import importlib
import json
import pathlib
import re

import jax
import numpy as np
import pytest
import tiny_config
import tiny_runs
from make_videos import encode, numbered

from benchmarks import pods
from magvid import cost, explain, runs, sharding
from magvid.__main__ import main
from magvid.build import build
from magvid.data import blank
from magvid.flags import load_config
from magvid.job import Job, check_config
from magvid.types import UserError

ROOT = pathlib.Path(__file__).parent.parent
SHARED = ("__init__", "aid", "clips", "defaults", "latent", "magdiff", "magvit", "mavin", "tables", "unets", "vaes")
ARGS = {"ablation": ("part=vq2d", "part=vq3d", "part=transformer", "part=transformer,row=maskgit_2d"), "modelscope": ("tune=full", "tune=lora")}
ARGS |= {"svd": ("tune=full", "tune=lora"), "sd": ("tune=full",), "magdiff_sprites": ("", "base=1")}
EVERY = [(p.stem, arg) for p in sorted((ROOT / "configs").glob("*.py")) if p.stem not in SHARED for arg in ARGS.get(p.stem, ("",))]
FULL = {"mesh": {"fsdp": -1}, "sharding": [[".*", "fsdp"]]}


def load(spec):
    return load_config(str(ROOT / spec))


def plan(config, devices=1):
    config = check_config(config)
    return explain.Plan.of(config, sharding.abstract_mesh(config["mesh"], devices), load)


@pytest.mark.parametrize("name, arg", EVERY)
def test_every_config_is_planned_without_its_runs_weights_and_data(name, arg):
    """All that the objective reads of a clip is there, and every reference says what stands in its place."""
    config = check_config(importlib.import_module(f"configs.{name}").get_config(arg))
    spec = runs.planned(config["objective"], load)
    assert not list(runs.references(spec))
    build(spec)
    batch = blank.example(config["data"]["train"], spec)
    source = config["data"]["train"]["source"]
    drawn = source | next((t for t in config["data"]["train"]["transforms"] if t["target"].endswith(":Resize")), {})
    clip = spec["clip"] if isinstance(spec.get("clip"), list) else [drawn.get(k, 1) for k in ("frames", "height", "width")]
    assert batch["video"].shape[2:] == (*clip[1:], 3) or "entities" in batch
    assert ("text_ids" in batch) == any("text" in str(c) for c in spec.get("conditioners", [])) or "clip" in name
    assert ("state_ids" in batch) == (":MCondition'" in str(spec) and "'repeat': 0" in str(spec))
    assert ({"task", "ratio"} <= set(batch)) == spec["target"].endswith((":Masked", ":Autoregressive"))


@pytest.mark.parametrize("name", ["aid_sprites", "magdiff_sprites", "mavin_sprites", "commit_sprites", "vq2d_sprites", "clip_sprites"])
def test_sprites_have_the_entries_of_their_first_batch(name):
    config = check_config(importlib.import_module(f"configs.{name}").get_config("smoke=1"))
    spec = runs.planned(config["objective"], load)
    job = Job.plan(config | {"batch": 4}, sharding.make_mesh({"data": 1}, jax.devices()[:1]), load)
    real = sharding.numeric(next(job.loader()))
    of = lambda batch: {k: (x.shape[1:], jax.dtypes.canonicalize_dtype(x.dtype)) for k, x in batch.items()}
    assert of(blank.example(config["data"]["train"], spec)) == of(real)


def test_a_folder_of_videos_has_the_entries_of_its_first_batch(tmp_path):
    encode(tmp_path / "run" / "a.mp4", numbered(12))
    (tmp_path / "captions.jsonl").write_text(json.dumps({"file": "run/a.mp4", "caption": "it runs"}))
    source = dict(target="magvid.data.folder:VideoFolder", path=str(tmp_path), frames=5, height=16, width=24)
    views = dict(target="magvid.data.views:Views", source=source, views=2, clips=1, transforms=[dict(target="magvid.data.pipeline:Augment", flip=True)])
    words = dict(target="magvid.data.text:WordTokenizer", words=["it", "runs"], length=7)
    told = [dict(target="magvid.data.text:Captions", path=str(tmp_path / "captions.jsonl")), words, dict(target="magvid.data.pipeline:LearnAfter", given=2)]
    data = dict(source=views, transforms=told)
    config = tiny_config.get_config() | dict(batch=1, data=dict(train=data))
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    real = sharding.numeric(next(Job.plan(check_config(config), mesh, load).loader()))
    planned = blank.example(data, {})
    assert {k: x.shape for k, x in planned.items()} == {k: x.shape for k, x in real.items()}
    assert planned["loss_mask"].tolist() == [[0.0] * 5] and real["text_ids"].shape == (1, 7)


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("spread", [{}, FULL], ids=["data", "fsdp"])
def test_what_a_device_holds_is_what_is_planned(devices, spread):
    config = check_config(tiny_config.get_config() | dict(ema=0.5) | spread)
    job = Job.from_config(config, jax.devices()[:devices])
    batch = sharding.global_batch(next(job.loader()), job.mesh)
    state = job.prepare(next(job.loader())).init()
    of = lambda tree: sum(s.data.nbytes for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == jax.devices()[0])
    held = plan(config, devices).held()
    assert held["parameters"] == of(state.params) and held["optimiser"] == of(state.opt) and held["average"] == of(state.ema)
    assert held["batch"] == of(batch) and held["frozen"] == 0
    whole = plan(config, 1).held()
    assert held["batch"] * devices == whole["batch"]
    assert spread == {} or devices == 1 or held["parameters"] < whole["parameters"]


def test_the_step_is_the_one_that_is_trained():
    """FLOPs of all devices, of a batch that is spread and cut, are those of the job's own step."""
    config = check_config(tiny_config.get_config())
    job = Job.from_config(config, jax.devices()[:1])
    first = next(job.loader())
    prepared = job.prepare(first)
    traced = job.step(prepared).trace(prepared.init(), sharding.global_batch(first, job.mesh))
    assert cost.flops(plan(config, 4).trace()) * 4 == pytest.approx(cost.flops(traced.jaxpr), rel=1e-6)
    cut = plan(config | dict(microbatch=1), 2)
    assert cut.job.microbatches() == 4 and cost.flops(cut.trace()) * 2 == pytest.approx(cost.flops(traced.jaxpr), rel=1e-6)


def test_the_page(capsys):
    run, vq = tiny_runs.masked_run(), tiny_runs.tokenizer_run()
    assert main(["explain", f"--config={tiny_runs.TINY}:masked,{vq}", "--devices=4", "--depth=9", "--config.batch=16"]) == 0
    out = capsys.readouterr().out
    for group, tree in (("transformer", runs.open_run(run).weights("transformer")), ("tokenizer", runs.open_run(vq).weights("tokenizer"))):
        sizes = {sharding.path_name(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(tree)}
        assert f"{group}  {sum(np.prod(s) for s in sizes.values()):,.0f}\n" in out
        shown = {re.sub(r"\s*\(.*", "", line).strip(): line for line in out.splitlines()}
        assert all(str(tuple(shape)) in out and name.rpartition("/")[2] in shown for name, shape in sizes.items())
    assert "4 devices (mesh: data 4), batch 16: 4 on each of 4, 4 at a time" in out
    assert re.search(rf"tokenizer +[\d,]+ +0  {vq}", out) and re.search(r"transformer +[\d,]+  all +this run", out)
    assert re.search(r"video +8x16x16x3  uint8 +98.3 kB", out) and re.search(r"a step: [\d.e-]+ TFLOP", out)
    rows = re.search(r"memory of a device.*", out, re.DOTALL)[0].splitlines()
    assert [row.split("  ")[0] for row in rows] == ["memory of a device", "parameters", "frozen", "optimiser", "other", "batch", "within a step, estimate", "all"]


def test_a_config_needs_no_flag_and_as_many_devices_as_its_mesh(capsys):
    assert main(["explain", str(tiny_runs.TINY), '--config.mesh={"data": 2, "fsdp": 2, "model": -1}']) == 0
    assert capsys.readouterr().out.startswith("4 devices (mesh: data 2, fsdp 2, model 1), batch 8: 2 on each of 4")
    assert main(["explain", str(tiny_runs.TINY), "--devices=3"]) == 2 and "does not divide over 3 devices" in capsys.readouterr().err


def test_what_each_sharding_rule_decides():
    """Also that it decides about nothing."""
    rules = [["kernel$", "fsdp"], ["kernle$", "fsdp"], [".*", None]]
    planned = plan(tiny_config.get_config() | dict(mesh={"fsdp": -1}, sharding=rules), 4)
    lines = next(part for part in explain.explain(planned, 0) if part.startswith("sharding ")).splitlines()
    found = {row[0]: row[1:] for row in (re.split(r"  +", line) for line in lines[1:])}
    like = planned.prepared.like
    arrays = {sharding.path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path({**like.params, **like.frozen})}
    kernels = [x.size * 4 for name, x in arrays.items() if name.endswith("kernel")]
    assert found["kernle$"] == ['"fsdp"', "0", "0 B", "0 B"] and found["kernel$"][:3] == ['"fsdp"', str(len(kernels)), explain.size_text(sum(kernels))]
    assert found["kernel$"][3] != found["kernel$"][2] and found[".*"][2] == found[".*"][3] and int(found[".*"][1]) == len(arrays) - len(kernels)


@pytest.mark.parametrize("mesh, told", [({"data": -1}, False), ({"fsdp": -1}, True)])
def test_sharding_is_told_where_there_is_something_to_shard_over(mesh, told):
    planned = plan(tiny_config.get_config() | dict(mesh=mesh, sharding=[[".*", "fsdp" if told else None]]), 4)
    parts = [part for part in explain.explain(planned, 0) if part.startswith("sharding ")]
    assert bool(parts) == told and all(re.search(r'^\.\* +"fsdp"', part, re.MULTILINE) for part in parts)


@pytest.mark.parametrize("groups", [None, ["transformer"]])
def test_what_begins_with_another_run_is_told(groups):
    """The run need not be there yet; nothing of it is read."""
    config = tiny_config.get_config("masked")
    trained = set(plan(config, 1).prepared.like.params)
    spec = dict(run="runs/first") | (dict(groups=groups) if groups else {})
    table = next(part for part in explain.explain(plan(config | dict(init=[spec]), 1), 0) if part.startswith("group "))
    found = {row[0]: row[-1] for row in (re.split(r"  +", line) for line in table.splitlines()[1:])}
    assert {group for group, text in found.items() if "runs/first at first" in text} == (set(groups) if groups else trained)
    assert {text for group, text in found.items() if group in trained - set(groups or trained)} <= {"this run"}


@pytest.mark.full
@pytest.mark.parametrize("name, most", [(f"{config}:size={size}", most) for config, most in (("commit_ucf101", 0.2), ("vq3d_ucf101", 0.35)) for size in "BL"])
def test_memory_of_a_chip_is_near_what_the_compiler_said(name, most):
    """Of TPUs, as benchmarks/pods.py asked theirs; the estimate is made anew."""
    said = json.loads(pods.RESULTS.read_text())[f"programs: {name}"]
    row = next(row for row in pods.rows() if row.name == f"programs: {name}")
    plan = pods.planned(row, lambda axes: sharding.abstract_mesh(axes, said["chips"]))
    assert pods.estimate(plan) == pytest.approx(pods.total(said), rel=most)


def test_what_is_alike_in_a_row_is_one_line():
    shape = lambda *s: jax.ShapeDtypeStruct(s, np.float32)
    layer = {"kernel": shape(3, 5), "bias": shape(5)}
    tree = {"net": {**{f"layer_{i}": layer for i in range(12)}, "layer_12": {"kernel": shape(3, 6)}, "scale": shape(7)}}
    lines = list(explain._tree(tree, 2))
    assert lines == [
        "net  265", "  layer_0 .. layer_11 (12 alike)  20 each", "    bias  (5,)", "    kernel  (3, 5)", "  layer_12  18", "    kernel  (3, 6)", "  scale  (7,)"
    ]  # fmt: skip
    assert list(explain._tree(tree, 0)) == ["net  265"]


def test_a_reference_that_leads_nowhere_is_named():
    spec = dict(target="a:B", vae=dict(run="nowhere/vae"))
    with pytest.raises(UserError, match="objective.vae.run: there is no run nowhere/vae, and the reference has neither `config` nor `spec`"):
        runs.planned(spec, load)


BAD = {
    "--config=configs/svd.py": "this config trains nothing: give it the argument tune=full, temporal or lora",
    "--config=configs/vq3d_sprites.py --devices=0": "--devices=0: 0 is not a positive integer",
    "--config=configs/vq3d_sprites.py --devices=7": "does not divide over 7 devices",
    "--config=configs/vq3d_sprites.py --config.objectiv.x=1": 'no field "objectiv" (in --config.objectiv.x=1); did you mean objective?',
    "--config=configs/vq3d_sprites.py --config.objective.tokenizer.encoder.filtrs=8": "did you mean objective.tokenizer.encoder.filters?",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_named(words, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["explain", *words.split()]) == 2
    assert BAD[words] in " ".join(capsys.readouterr().err.split())
