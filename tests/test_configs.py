"""Every config is built by its shapes; every distinct smoke program takes two steps; arguments are checked."""

import functools
import importlib
import inspect
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from configs import latent, unets
from helpers import GOLDEN, Golden, flatten
from make_tfds import Pictures
from PIL import Image

from magvid import optim, runs
from magvid.__main__ import open_config
from magvid.build import build, resolve
from magvid.checkpoints import merge
from magvid.flags import load_config
from magvid.job import Job, check_config
from magvid.models.vq3d import inflate_average, inflate_central
from magvid.train import train
from magvid.types import Condition

ROOT = pathlib.Path(__file__).parent.parent
COUNTS = json.loads((GOLDEN / "param_counts.json").read_text())
SHARED = ("__init__", "aid", "clips", "defaults", "latent", "magdiff", "magvit", "mavin", "tables", "unets", "vaes")
EVERY = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in SHARED)
EVERY = [name for name in EVERY if not name.startswith(("table", "ablation"))]  # test_configs_tables.py
CONFIGS = [name for name in EVERY if name.endswith("_sprites")]
MASKGIT = ["maskgit_imagenet", "vqgan_imagenet"]  # in test_maskgit.py
PIPELINES = ["modelscope", "sd", "svd"]
MAVIN = ["mavin_horse", "mavin_tiger"]
AID = ["aid_bridge", "aid_epic", "aid_ssv2", "aid_ucf101", "aid_videos"]
MAGDIFF = ["magdiff_davis", "magdiff_msrvtt", "magdiff_pexels", "magdiff_ucf101"]
PUBLISHED = [name for name in EVERY if name not in (*CONFIGS, *MASKGIT, *PIPELINES, *MAVIN, *AID, *MAGDIFF)]
BUDGETS = ("quick", "long")
READ = ("video", "label", "task", "ratio", "text_ids", "null_ids", "state_ids", "loss_mask", "entities", "entity_valid")


def get(name: str, arg: str):
    return importlib.import_module(f"configs.{name}").get_config(arg)


def with_own_tokenizer(name: str, arg: str):
    """A config that refers to other runs, with their specs in the references' places."""
    config = get(name, arg)
    config.objective = runs.planned(config.objective.to_dict(), lambda spec: load_config(str(ROOT / spec)))
    return config


def without_spec(field):
    """A reference without the `spec` of the network it leads to."""
    return {k: v for k, v in field.items() if k != "spec"} if isinstance(field, dict) else field


def test_a_reference_to_public_weights_says_what_they_are():
    of = lambda name, arg: get(name, arg).objective.to_dict()
    assert of("svd", "tune=lora")["network"]["spec"] == latent.published("unet", "svd")
    assert of("magdiff_pexels", "")["conditioners"][0]["text"]["spec"] == latent.published("text", "sd21")
    assert "spec" not in of("svd", "tune=lora,weights=mine")["network"]  # somebody's own


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_plain_data_and_builds_at_full_size(name, budget):
    config = with_own_tokenizer(name, f"budget={budget}")
    checked = check_config(config)
    assert json.loads(json.dumps(checked)) == checked
    objective, source = build(checked["objective"]), build(checked["data"]["train"]["source"])
    transforms = build(tuple(checked["data"]["train"]["transforms"]))
    record = source[0] | {"index": 0}
    for transform in transforms:
        record = transform(record, np.random.default_rng(0))
    batch = {k: np.asarray(v)[None] for k, v in record.items() if k in READ}
    shapes = jax.eval_shape(objective.init, jax.random.key(0), batch)
    assert set(checked["optim"]) <= set(shapes)
    if hasattr(objective, "vocab"):
        assert objective.vocab.classes == source.num_classes and len(objective.tasks) == transforms[0].tasks
    extra = objective.init_extra() if hasattr(objective, "init_extra") else {}
    losses, _ = jax.eval_shape(lambda p: objective.loss(p, extra, batch, jax.random.key(0), 0, True), shapes)
    assert set(losses) <= set(shapes)


def test_smoke_runs_take_two_steps(tmp_path):
    one = jax.devices()[:1]
    state, metrics = train(get("vq3d_sprites", "smoke=1"), tmp_path / "tokenizer", devices=one)
    assert int(state.step) == 2 and all(v == v for v in metrics.values())
    config = get("commit_sprites", "smoke=1")
    config.objective.tokenizer.run = str(tmp_path / "tokenizer")
    state, metrics = train(config, tmp_path / "transformer", devices=one)
    assert int(state.step) == 2 and all(v == v for v in metrics.values())


def begins_as(config, init, run, flat) -> bool:
    """Whether by `init` the first convolution of a 3D-VQ is that of the 2D-VQ in `run`, in the middle of its time axis."""
    shapes = {"tokenizer": params(config, "tokenizer", config.data.train.source.frames)}
    init = [dict(init[0], run=str(run))]
    kernel = lambda tree: np.asarray(tree["encoder"]["Conv_0"]["kernel"])
    before, after, middle = (kernel(runs.initial(init, shapes)["tokenizer"])[k] for k in (0, 2, 1))
    return not before.any() and not after.any() and np.array_equal(middle, kernel(flat))


@pytest.mark.full
def test_the_sprites_2d_vq_trains_and_the_3d_vq_begins_as_it(tmp_path):
    state, metrics = train(get("vq2d_sprites", "smoke=1"), tmp_path / "tokenizer2d", devices=jax.devices()[:1])
    assert int(state.step) == 2 and all(v == v for v in metrics.values())
    init = get("vq3d_sprites", "inflate=central").init  # smoke=1 has none: there need be no 2D-VQ to try it
    config = get("vq3d_sprites", "smoke=1,inflate=central")
    assert begins_as(config, init, tmp_path / "tokenizer2d", state.params["tokenizer"])


def test_a_wrong_argument_is_named():
    with pytest.raises(ValueError, match='takes no argument "budgt"; it takes budget=quick, smoke=False, inflate='):
        get("vq3d_sprites", "budgt=long")
    with pytest.raises(ValueError, match='budget="huge" is unknown; choose of quick, long'):
        get("vq3d_sprites", "budget=huge")
    with pytest.raises(ValueError, match='smoke="x" is not of type bool'):
        get("vq3d_sprites", "smoke=x")


@pytest.mark.parametrize(
    "arg, message",
    [
        ("motion=9999", "motion=9999 lies outside of 1 to 255"),
        ("aug=-3", "aug=-3.0 lies outside of 0 to 100"),
        ("aug=nan", "aug=nan lies outside"),
        ("fps=0", "fps=0 lies outside of 1 to"),
        ("frames=0", "frames=0 lies outside"),
        ("height=-32", "height=-32 lies outside"),
        ("dtype=float99", 'dtype="float99" is unknown; choose of bfloat16, float32'),
        ("tune=all", 'tune="all" is unknown; choose of full, lora, temporal'),
    ],
)
def test_arguments_of_public_models_out_of_range_are_named(arg, message):
    with pytest.raises(ValueError, match=message):
        get("svd", arg)


def test_batches_divide_over_meshes():
    """The same config runs on one device and on several."""
    for name in CONFIGS:
        config = check_config(with_own_tokenizer(name, "budget=quick"))
        for devices in (1, 2, 4):
            if "tokenizer" not in config["optim"]:
                config["optim"]["tokenizer"] = {"optimizer": {"name": "adam"}, "rules": [[".*", None]]}
            assert Job.from_config(config, jax.devices()[:devices]).microbatches() == 1


@functools.cache  # the tokenizers of most data sets are the same
def shapes_of(objective: str, video: tuple[int, ...]):
    """Of the parameters of an objective's spec (JSON), for a clip of this shape (t h w 3)."""
    batch = {"video": np.zeros((1, *video), np.uint8)}
    return jax.eval_shape(build(json.loads(objective)).init, jax.random.key(0), batch)


@pytest.mark.parametrize("size", ["B", pytest.param("L", marks=pytest.mark.full)])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_build_at_full_size(name, size):
    """Plain data, parts that fit each other, and the sizes of the paper; nothing is read from disk."""
    checked = check_config(with_own_tokenizer(name, f"size={size}"))
    assert json.loads(json.dumps(checked)) == checked
    for spec in checked["objective"].values():
        if isinstance(spec, dict):
            spec.pop("weights_file", None)
    if name.startswith("commit"):  # a shallow tokenizer makes the same grid of tokens
        for part in ("encoder", "decoder"):
            checked["objective"]["tokenizer"][part] |= dict(filters=32, blocks=1)
    source = checked["data"]["train"]["source"]
    record = {"video": np.zeros((source["frames"], source["height"], source["width"], 3), np.uint8), "index": 0}
    for transform in build(tuple(checked["data"]["train"]["transforms"])):
        record = transform(record, np.random.default_rng(0))
    shapes = shapes_of(json.dumps(checked["objective"]), record["video"].shape)
    assert set(checked["optim"]) <= set(shapes)
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    kind, data = name.split("_")[:2]
    key = f"{kind}_{data if data == 'bair' else 'ucf101'}_{size}".replace("vq2d_bair", "vq2d_64")
    if kind != "commit":
        assert count(shapes["tokenizer"]) == COUNTS[key]["generator"]
        assert count(shapes["discriminator"]) == COUNTS[key]["discriminator"]
    task = {"commit_ucf101": "ucf101_CG", "commit_bair": "bair_FP", "commit_bair_mt8": "bair_MT8"}.get(name)
    if task:
        assert count(shapes["transformer"]) == COUNTS[f"transformer_{task}_{size}"]["params"]


PARAMETERS = dict(sd=865_910_724, modelscope=1_411_233_860, svd=1_524_623_082)
TRAINED = {"": set(), "full": {"network"}, "temporal": {"network"}, "lora": {"lora"}}


@functools.cache  # ways of training and data sets share objectives
def told_words(objective: str):
    """(what a spec (JSON) builds, a batch for it, shapes of its parameters)."""
    objective, ids = build(json.loads(objective)), np.zeros((1, 77), np.int32)
    batch = {"video": np.zeros((1, *objective.clip, 3), np.uint8), "text_ids": ids, "null_ids": ids}
    return objective, batch, jax.eval_shape(objective.init, jax.random.key(0), batch)


@functools.cache
def losses_of(objective: str) -> set[str]:
    """The groups that learn by it."""
    objective, batch, shapes = told_words(objective)
    return set(jax.eval_shape(lambda p: objective.loss(p, {}, batch, jax.random.key(0), 0, True), shapes)[0])


@pytest.mark.full
@pytest.mark.parametrize("how", TRAINED)
@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_of_public_weights_build_at_full_size(name, how):
    """The published networks, sampled, and trained as `tune` says; nothing is read from disk."""
    if (name, how) == ("sd", "temporal"):
        with pytest.raises(ValueError, match='tune="temporal" is unknown; choose of full, lora'):
            get(name, f"tune={how}")
        return
    checked = check_config(with_own_tokenizer(name, f"tune={how}"))
    assert json.loads(json.dumps(checked)) == checked and set(checked["optim"]) == TRAINED[how]
    spec = json.dumps(checked["objective"])
    objective, batch, shapes = told_words(spec)
    assert sum(x.size for x in jax.tree.leaves(shapes["network"])) == PARAMETERS[name]
    if how:
        optimiser = {g: optim.make(how, shapes[g], 10**5, g) for g, how in checked["optim"].items()}
        assert losses_of(spec) == TRAINED[how] == set(optimiser)
        trained = optimiser[next(iter(TRAINED[how]))].trained
        time = [n for n in trained if re.search("temp|time_mixer|time_pos|transformer_in", n)]
        assert how != "temporal" or 0 < len(time) == len(trained)
    elif objective.clip[0] == 1:  # decoding 576x1024 pixels is checked at tiny size
        assert jax.eval_shape(objective.sample, shapes, batch, jax.random.key(0)).shape == (1, *objective.clip, 3)


@pytest.mark.full
@pytest.mark.parametrize("name", MAVIN)
@pytest.mark.parametrize("part", ["transition", "action"])
def test_mavin_trains_the_released_subset_at_full_size(name, part):
    checked = check_config(with_own_tokenizer(name, f"part={part}"))
    assert json.loads(json.dumps(checked)) == checked
    spec = json.dumps(checked["objective"])
    shapes = told_words(spec)[2]
    flat = flatten(shapes["network"])
    optimiser = optim.make(checked["optim"]["network"], shapes["network"], 10, "network")
    assert sum(x.size for x in flat.values()) == 1_411_336_260
    assert sum(flat[n].size for n in optimiser.trained) == 496_042_176
    assert losses_of(spec) == {"network"}


def test_mavin_settings_are_the_released_ones():
    horse, tiger = (check_config(with_own_tokenizer(name, "")) for name in MAVIN)
    for config, text in ((horse, "horse movement"), (tiger, "tiger movement")):
        assert (config["steps"], config["batch"], config["seed"], config["ema"]) == (40000, 1, 64, 0)
        (regex, schedule), rest = config["optim"]["network"]["rules"]
        assert schedule == dict(peak=5e-6, warmup=0, decay="constant") and rest == [".*", None]
        assert config["data"]["train"]["transforms"][1]["template"] == text
        assert config["init"][0]["skip"] == ["cond_proj"] and config["init"][0]["run"] == "weights/modelscope/unet"
        objective = config["objective"]
        gaps = dict(start=[5, 15], end=[17, 27], sample=[10, 22], per_batch=False)
        assert objective["noising"] == dict(target="magvid.diffusion.mavin:Consecutive", **gaps)
        assert objective["sampling"]["mixer"]["target"].endswith("FrameMixer") and objective["sampling"]["guidance"] == [[["text", "image"], 9.0]]
        assert objective["drop"] == [[["text", "image"], 0.1]] and objective["clip"] == [32, 256, 256]
    action = get("mavin_horse", "part=action").to_dict()
    assert (action["objective"]["clip"], action["steps"]) == ([16, 384, 384], 30000)
    assert action["objective"]["sampling"]["mixer"] == dict(target="magvid.diffusion.mavin:FreeInit", space=0.25, time=0.25, level=850)
    assert action["objective"]["conditioners"][1]["ends"] == ("before",)


@pytest.mark.parametrize(
    "arg, path, value",
    [
        ("bfg=0", "network.attention.tokens", ("text",)),
        ("gfm=none", "sampling.mixer", None),
        ("gfm=official3d,f0=0.4,decay=0.05", "sampling.mixer", dict(target="magvid.diffusion.mavin:ReleasedMixer", cutoff=0.4, decay=0.05, level=999)),
        ("gfm=freeinit3d", "sampling.mixer.target", "magvid.diffusion.mavin:FreeInit"),
        ("noising=bert", "noising.target", "magvid.diffusion.mavin:Scattered"),
        ("variable=0", "noising.start", [10, 10]),
        ("release=1", "drop", []),
        ("release=1", "network.attention.tokens", ("text",)),
        ("variant=sparse_causal", "conditioners.2.values", dict(length=12, start=10, end=22)),
        ("tune=lora", "lora.rank", 16),
        ("tune=,variant=rope", "network.fields.attention.frames.cross_attention.factory", "magvid.models.temporal:RotaryAttention"),
        ("tune=lora,variant=sparse_causal", "network.fields.attention.self_attention.factory", "magvid.models.temporal:SparseCausalAttention"),
        ("tune=,release=1", "network.fields.attention.tokens", ("text",)),
        ("tune=", "network", dict(run="weights/mavin/unet", weights="params", fields=dict(dtype="bfloat16"))),
        ("variant=centred", "network.attention.frames.self_attention.factory", "magvid.models.temporal:CentredAttention"),
    ],
)
def test_ablations_of_mavin_are_arguments(arg, path, value):
    found = get("mavin_tiger", arg).objective.to_dict()
    for part in path.split("."):
        found = found[int(part) if part.isdigit() else part]
    assert without_spec(found) == value


def test_wrong_arguments_of_mavin_are_named():
    for arg, message in {
        "gfm=gauss": 'gfm="gauss" is unknown; choose of frame2d, official3d, freeinit3d, none',
        "noising=x": 'noising="x" is unknown; choose of consecutive, bert',
        "part=x": "choose of transition, action",
        "variant=x": "choose of rope, centred, sparse_causal",
        "tune=temporal": "choose of subset, full, lora",
        "drop=2": "drop=2.0 lies outside of 0 to 1",
        "least_flow=2": "least_flow is measured over a gap of one place: give variable=0 as well",
    }.items():
        with pytest.raises(ValueError, match=message):
            get("mavin_horse", arg)


def test_data_of_mavin_fit_their_sources():
    for name in MAVIN:
        for arg in ("", "folder=1", "part=action,folder=1", "motion=0"):
            for split, part in get(name, arg).data.to_dict().items():
                source = dict(part["source"])
                inspect.signature(resolve(source.pop("target"))).bind(**source)
                assert ("motion" in source) == (arg != "motion=0") and source["keep_aspect"] is False
        motion = get(name, "variable=0,least_flow=2").data.train.source.motion.to_dict()
        assert motion.pop("target") == "magvid.data.motion:Motion" and (motion["least_flow"], motion["gap"]) == (2, [10, 22])
        inspect.signature(resolve("magvid.data.motion:Motion")).bind(**motion)
        tower = get(name, "").metrics[1]["vision"]
        assert without_spec(tower) == dict(run="weights/mavin/vision", weights="params", fields={})  # in float32


STEPS = {
    "vq_ucf_B": ("vq3d_ucf101", "B"),
    "vq_ucf_L": ("vq3d_ucf101", "L"),
    "vq_bair_B": ("vq3d_bair", "B"),
    "gvt_ucf_B": ("commit_ucf101", "B"),
    "gvt_bair_B": ("commit_bair", "B"),
}


@pytest.mark.parametrize("official", STEPS)
def test_published_schedules_are_the_official_ones(official):
    config = get(STEPS[official][0], f"size={STEPS[official][1]}")
    total, warmup = map(int, Golden("lr")[f"{official}:total_warmup"])
    rules = config.optim["transformer" if official.startswith("gvt") else "tokenizer"].rules
    assert (config.steps, rules[0][1]["warmup"]) == (total, warmup)


@pytest.mark.parametrize(
    "arg, padding, lecam, task", [("", "reflect", 0.1, "OPD"), ("official=1", "zero", 0, "official:OPD")]
)
def test_the_paper_by_default_and_the_release_by_name(arg, padding, lecam, task):
    tokenizer, transformer = get("vq3d_ssv2", arg), get("commit_ssv2", arg)
    assert tokenizer.objective.tokenizer.encoder.padding == padding and tokenizer.objective.lecam_weight == lecam
    assert task in transformer.objective.tasks


def test_size_h_and_what_can_be_left_out():
    config = get("vq3d_ucf101", "size=H,perceptual=0,inflate=0")
    assert "perceptual" not in config.objective and "init" not in config
    tokenizer = build(config.objective.to_dict()["tokenizer"])
    video = np.zeros((1, 16, 128, 128, 3), np.float32)
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    found = jax.eval_shape(tokenizer.init, jax.random.key(0), video)
    assert count(found) == COUNTS["vq3d_ucf101_H"]["generator"]
    config = get("commit_ucf101", "size=H")
    assert config.objective.tokenizer.run == "runs/vq3d_ucf101-L"
    transformer = build(config.objective.to_dict()["transformer"])
    found = jax.eval_shape(transformer.init, jax.random.key(0), np.zeros((1, 8), np.int32))
    assert count(found) == COUNTS["transformer_ucf101_CG_H"]["params"]


def params(config, group, frames):
    """Shapes of the parameters of a part of a tokenizer's config."""
    source = config.data.train.source
    video = np.zeros((1, frames, source.height, source.width, 3), np.float32)
    return jax.eval_shape(build(config.objective.to_dict()[group]).init, jax.random.key(0), video)["params"]


def ones(shapes):
    return jax.tree.map(lambda x: np.broadcast_to(np.float32(1), x.shape), shapes)


@pytest.mark.parametrize("inflate", [inflate_central, inflate_average])
@pytest.mark.parametrize(
    "name, pixels, size",
    [("ucf101", 128, "B")] + [pytest.param(*row, marks=pytest.mark.full) for row in (("k600", 128, "L"), ("bair", 64, "B"))],
)
def test_video_tokenizers_can_begin_as_the_2d_vq_of_imagenet(name, pixels, size, inflate):
    """Every leaf of tokenizer and discriminator fits, as officially; so do those of the 2D-VQ on frames in between."""
    images = get("vq2d_imagenet", f"size={size},pixels={pixels},perceptual=0")
    frames, videos = (get(f"{kind}_{name}", f"size={size},perceptual=0") for kind in ("vq2d", "vq3d"))
    for group in ("tokenizer", "discriminator"):
        flat, target = ones(params(images, group, 1)), params(videos, group, 16)
        merge(inflate(flat, target), target, say=pytest.fail)
        merge(flat, params(frames, group, 4), say=pytest.fail)


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_sprites_3d_vq_can_begin_as_their_2d_vq(budget):
    """Every leaf fits, for as many tokens as the sizes that cannot be inflated have."""
    flat, target = (
        params(get(name, f"budget={budget}{more}"), "tokenizer", frames)
        for name, more, frames in (("vq2d_sprites", "", 4), ("vq3d_sprites", ",inflate=central", 16))
    )
    merge(inflate_central(ones(flat), target), target, say=pytest.fail)
    module = importlib.import_module("configs.vq3d_sprites")
    assert module.latent(budget) == module.latent(budget, module.INFLATED)


IMAGENET = "runs/vq2d_imagenet"
BEGINNINGS = {  # (config, argument) -> (run, kind of inflation)
    ("vq3d_ucf101", "size=L"): (f"{IMAGENET}-L", "central"),
    ("vq3d_bair", ""): (f"{IMAGENET}_64-B", "central"),
    ("vq3d_bair", "inflate=average"): (f"{IMAGENET}_64-B", "average"),
    ("vq3d_ssv2", "begin=frames"): ("runs/vq2d_ssv2-B", "central"),
    ("vq3d_ssv2", "inflate=0"): None,
    ("vq2d_ucf101", "size=L"): (f"{IMAGENET}-L", None),
    ("vq2d_bair", "begin=0"): None,
    ("vq2d_imagenet", "pixels=64"): None,
    ("vq3d_ucf101", "smoke=1"): None,
    ("vq3d_sprites", "inflate=average"): ("runs/sprites/tokenizer2d", "average"),
    ("vq3d_sprites", "inflate=0"): None,
    ("vq3d_sprites", ""): None,
}


@pytest.mark.parametrize("name, arg", BEGINNINGS)
def test_where_tokenizers_begin(name, arg):
    found, expected = get(name, arg).get("init", ()), BEGINNINGS[name, arg]
    if expected is None:
        assert not found
        return
    run, kind = expected
    maps = {"map": f"magvid.models.vq3d:inflate_{kind}"} if kind else {}
    assert [dict(entry) for entry in found] == [dict(run=run, weights="params", **maps)]


def test_a_beginning_that_there_is_not_is_named():
    for arg, message in {"begin=k600": 'begin="k600" is unknown.* imagenet, frames', "inflate=1": "central, average, 0"}.items():
        with pytest.raises(ValueError, match=message):
            get("vq3d_ucf101", arg)
    with pytest.raises(ValueError, match='pixels="32" is unknown; choose of 128, 64'):
        get("vq2d_imagenet", "pixels=32")


@pytest.mark.parametrize("kind", ["folder", "tfds"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_data_fit_their_sources(name, kind):
    """The constructors take what the configs give them; official: BAIR's second camera, 15 windows in evaluation."""
    if kind == "tfds" and name.split("_")[1] not in ("imagenet", "ucf101", "bair"):
        with pytest.raises(ValueError, match='source="tfds" is unknown; choose of folder'):
            get(name, f"source={kind}")
        return
    data = get(name, f"source={kind}").data.to_dict()
    for part in (data["train"]["source"], data["eval"]["source"]):
        target = part.pop("target")
        inspect.signature(resolve(target)).bind(**part)
        assert target == {"tfds": "magvid.data.tfds:TFDS"}.get(kind, target)
    train_part, eval_part = data["train"]["source"], data["eval"]["source"]
    assert (train_part["crop"], eval_part["crop"]) == ("random", "centre")
    assert eval_part.get("windows") == (15 if "bair" in name else None) and "windows" not in train_part
    if kind == "tfds" and "bair" in name:
        assert (train_part["name"], train_part["picture"]) == ("bair_robot_pushing_small", "image_aux1")
        assert (train_part["split"], eval_part["split"]) == ("train", "test")


def test_default_sources_are_the_official_ones():
    of = lambda name: get(name, "").data.train.source.target
    assert of("vq2d_imagenet") == of("commit_bair") == "magvid.data.tfds:TFDS"
    assert of("vq3d_ucf101") == "magvid.data.folder:VideoFolder"


@pytest.mark.full
@pytest.mark.parametrize("kind", ["folder", "tfds"])
def test_a_tokenizer_trains_on_images(tmp_path, kind):
    """The published program on images that lie on a disk, and then from it, inflated, on videos."""
    if kind == "tfds":
        Pictures(data_dir=tmp_path, file_format="array_record").download_and_prepare()
        source = dict(target="magvid.data.tfds:TFDS", name="pictures", split="train", frames=1, data_dir=str(tmp_path))
    else:
        for k in range(5):
            Image.fromarray(Pictures.picture(k)).save(tmp_path / f"{k}.png")
        source = dict(target="magvid.data.images:ImageFolder", path=str(tmp_path))
    one, config = jax.devices()[:1], get("vq2d_imagenet", "smoke=1")
    config.data = dict(train=dict(source=source | dict(height=16, width=16), transforms=[]))
    state, metrics = train(config, tmp_path / "run", devices=one)
    assert int(state.step) == 2 and all(v == v for v in metrics.values())
    video = get("vq3d_ucf101", "smoke=1")
    init = get("vq3d_ucf101", "").init
    assert begins_as(video, init, tmp_path / "run", state.params["tokenizer"])


def test_views_that_can_be_kept_are_an_argument():
    """The augmentation goes into the views, and the rest of the config stays."""
    plain, kept = (check_config(get("commit_ucf101", arg))["data"]["train"] for arg in ("", "views=8"))
    source = kept.pop("source")
    assert source["source"] == plain.pop("source") and source["views"] == 8
    assert source["transforms"] + kept.pop("transforms") == plain.pop("transforms") and kept == plain
    first = build(get("commit_sprites", "clips=50").to_dict()["data"]["train"]["source"])
    assert len(first) == 50 and first.num_classes == 18


@pytest.mark.parametrize(
    "name, fields",
    [
        ("commit_ucf101", "guidance=2.0 condition_drop=0.1 decoding.schedule=exponential decoding.temperature=400"),
        ("commit_sprites", "guidance=2.0 condition_drop=0.1 decoding.schedule=uniform"),
        ("vq3d_ucf101", "restart=true adversarial_start=1000"),
        ("vq3d_sprites", "restart=true"),
    ],
)
def test_what_the_help_and_the_alarms_name_can_be_set_by_a_flag(name, fields):
    flags = [f"--config.objective.{field}" for field in fields.split()]
    config = open_config("train", str(ROOT / "configs" / f"{name}.py"), flags)
    for field in fields.split():
        path, value = field.split("=")
        found = config["objective"]
        for part in path.split("."):
            found = found[part]
        assert str(found).lower() in (value, f"{value}.0")


@pytest.mark.full
def test_smoke_of_the_published_settings(tmp_path):
    """The three programs, and what distinguishes the others: class alone, eight tasks, ten tasks with classes."""
    one, arg = jax.devices()[:1], "smoke=1"
    for name in ("vq2d_imagenet", "vq2d_bair", "vq3d_bair", "vq3d_ssv2"):
        state, metrics = train(get(name, arg), tmp_path / name, devices=one)
        assert int(state.step) == 2 and all(v == v for v in metrics.values())
    tokenizers = {"commit_ucf101": "vq3d_ssv2", "commit_bair_mt8": "vq3d_bair", "commit_ssv2": "vq3d_ssv2"}
    for name, tokenizer in tokenizers.items():
        config = get(name, arg)
        config.objective.tokenizer.run = str(tmp_path / tokenizer)
        state, metrics = train(config, tmp_path / name, devices=one)
        assert int(state.step) == 2 and all(v == v for v in metrics.values())


# AID ----------------------------------------------------------------------------------------------------------------


def aid_objective(name: str, arg: str):
    """(config as checked, objective at full size, a batch of 2 clips)."""
    checked = check_config(with_own_tokenizer(name, arg))
    assert json.loads(json.dumps(checked)) == checked
    objective, ids = build(checked["objective"]), np.zeros((1, 77), np.int32)
    batch = {"video": np.zeros((1, *objective.clip, 3), np.uint8), "text_ids": ids, "null_ids": ids}
    return checked, objective, batch | {"state_ids": np.zeros((1, 4, 77), np.int32)}


@pytest.mark.full
@pytest.mark.parametrize(
    "name, arg, adapters, groups",
    [
        ("aid_ssv2", "", 77_030_400, {"adapters", "dqformer"}),
        ("aid_bridge", "mcond=decoupled", 52_237_136, {"adapters", "dqformer"}),
        ("aid_epic", "mcond=none", 26_678_080, {"adapters"}),
        ("aid_ucf101", "mask=1,spatial=0,short=0,long=0,learned=after", 50_352_320 + 9 * 320, {"adapters", "dqformer"}),
    ],
)
def test_aid_trains_its_adapters_at_full_size(name, arg, adapters, groups):
    """All of Stable Video Diffusion is frozen; what is trained gets a loss and an optimiser."""
    checked, objective, batch = aid_objective(name, arg)
    key = jax.random.key(0)
    shapes = jax.eval_shape(objective.init, key, batch)
    count = lambda group: sum(x.size for x in jax.tree.leaves(shapes[group]))
    assert count("network") == PARAMETERS["svd"] and count("adapters") == adapters
    if "dqformer" in groups:
        attentions, forwards = 8_914_944 + 8_390_656, 2 * (1024 * 8192 + 8192 + 4096 * 1024 + 1024)
        norms = 2 * (3 * 1024 + 1280) + 2 * 5 * 1024 + 2 * 1024  # of the upper branch, the lower one, what they say
        assert count("dqformer") == attentions + forwards + norms + 4 * 1024 + objective.clip[0] * 77 * 1024  # of 12 or 16 frames
    losses, _ = jax.eval_shape(lambda p: objective.loss(p, {}, batch, key, 0, True), shapes)
    assert set(losses) == set(checked["optim"]) == groups
    for group, spec in checked["optim"].items():
        assert optim.make(spec, shapes[group], 10**5, group).trained == set(flatten(shapes[group]))


def test_settings_of_aid():
    found = {name: get(name, "").to_dict() for name in AID}
    clips = {name: (config["objective"]["clip"], config["steps"], config["objective"]["conditioners"][1]["given"]) for name, config in found.items()}
    assert clips == dict(
        aid_ssv2=([12, 256, 256], 100_000, 2),
        aid_bridge=([16, 256, 256], 50_000, 1),
        aid_epic=([16, 256, 256], 50_000, 1),
        aid_ucf101=([16, 256, 256], 50_000, 1),
        aid_videos=([16, 256, 256], 50_000, 1),
    )
    states, words, _ = found["aid_videos"]["data"]["train"]["transforms"]
    assert states["path"] == "videos/states.json" and states["key"] == words["key"] == "caption"
    config = found["aid_bridge"]
    objective = config["objective"]
    assert objective["drop"] == [[["text"], 0.05], [["image"], 0.05], [["text", "image"], 0.05]]
    assert objective["sampling"]["guidance"] == [[["text", "image"], [1.0, 3.0]], [["text"], 7.5]]
    rates = [schedule["peak"] for _, schedule in config["optim"]["adapters"]["rules"]]
    assert rates == [1e-5, 1e-4] and config["optim"]["dqformer"]["rules"][0][1]["peak"] == 1e-4
    states, words, also = config["data"]["train"]["transforms"]
    assert states == dict(target="magvid.data.states:States", path="data/bridge/states.json", key="text")
    assert words["folder"] == "weights/sd21/text/tokenizer" and also["target"].endswith("Also")


@pytest.mark.parametrize(
    "arg, path, value",
    [
        ("mcond=none", "tasks", dict(I2V=())),
        ("mcond=none", "trained", ("adapters",)),
        ("mcond=none", "network.fields.attention.tokens", ("image",)),
        ("", "network.fields.attention.tokens", ("image", "mcondition")),
        ("mcond=decoupled", "network.fields.attention.cross_attention.added", ("mcondition",)),
        ("mcond=decoupled", "adapters.changed", ""),
        ("branches=upper", "conditioners.3.dqformer.branches", ("upper",)),
        ("branches=lower", "conditioners.3.dqformer.branches", ("lower",)),
        ("states=instruction", "conditioners.3.repeat", 4),
        ("queries=16", "conditioners.3.dqformer.queries", 16),
        ("given=2", "conditioners.3.given", 2),
        ("mask=1", "adapters.widened", "^conv_in/kernel"),
        ("short=0", "network.fields.res", dict(factory="magvid.models.temporal:BlendRes")),
    ],
)
def test_ablations_of_aid_are_arguments(arg, path, value):
    found = get("aid_bridge", arg).objective.to_dict()
    for part in path.split("."):
        found = found[int(part) if part.isdigit() else part]
    assert found == value


def test_adapters_of_aid_are_left_out_one_by_one():
    sites = {"spatial": "beside_spatial", "long": "beside_temporal", "short": "after_res"}
    for left_out in ("", *sites):
        fields = get("aid_epic", f"{left_out}=0" if left_out else "").objective.network.fields.to_dict()
        has = {site for layer in ("attention", "res") for site in fields[layer].get("adapters", {})}
        assert has == set(sites.values()) - {sites.get(left_out)}


def test_wrong_arguments_of_aid_are_named():
    for arg, message in {
        "mcond=x": 'mcond="x" is unknown; choose of replace, decoupled, none',
        "branches=x": "choose of both, upper, lower",
        "learned=x": "choose of all, after",
        "mcond=none,spatial=0,short=0,long=0": "leaves nothing to train",
        "ratio=0": "ratio=0.0 lies outside",
        "motion=256": "motion=256 lies outside of 1 to 255",
    }.items():
        with pytest.raises(ValueError, match=message):
            get("aid_ssv2", arg)


def test_data_of_aid_fit_their_sources():
    for name in AID:
        config = get(name, "data=somewhere,learned=after").data.to_dict()
        for part in config.values():
            source = dict(part["source"])
            assert source["path"] == "somewhere" and source["crop"] == "centre"  # instructions speak of left and right
            inspect.signature(resolve(source.pop("target"))).bind(**source)
        assert config["train"]["transforms"][-1]["target"].endswith("LearnAfter") and len(config["eval"]["transforms"]) == 3


def test_the_sprites_of_aid_change_a_frozen_base():
    """Base as it was trained, with the same layers; or with tune=full all of it, from there."""
    base = get("i2v_sprites", "").objective.network.to_dict()
    frozen, full = (get("aid_sprites", f"tune={how}") for how in ("adapters", "full"))
    assert frozen.objective.network.run == full.init[0]["run"] == "runs/sprites/i2v"
    own = full.objective.network.to_dict()
    assert own["attention"].pop("tokens") == ("image", "mcondition") and own["attention"].pop("frame_tokens") == ("image",)
    assert base["attention"].pop("tokens") == ("image",) and own == base
    assert full.objective.adapters is None and set(full.optim) == {"network", "dqformer"}


def test_wrong_arguments_of_aid_on_sprites_are_named():
    for arg, message in {
        "states=states.json": 'states="states.json" is unknown; choose of instruction',
        "tune=lora": "choose of adapters, full",
        "queries=0": "queries=0 lies outside of 1 to 1000",
        "given=0": "given=0 lies outside of 1 to 7",
        "ratio=-1": "ratio=-1.0 lies outside",
    }.items():
        with pytest.raises(ValueError, match=message):
            get("aid_sprites", arg)


# MagDiff ------------------------------------------------------------------------------------------------------------


def magdiff_objective(arg: str):
    """(config as checked, objective at full size, a batch of one clip)."""
    checked = check_config(with_own_tokenizer("magdiff_pexels", arg))
    assert json.loads(json.dumps(checked)) == checked
    objective, ids = build(checked["objective"]), np.zeros((1, 77), np.int32)
    t, h, w = objective.clip
    largest = max((level for c in checked["objective"]["conditioners"] for level in c.get("levels", ())), default=1)
    pictures = np.zeros((1, t, round(h * largest), round(w * largest), 3), np.uint8)
    batch = {"video": np.zeros((1, t, h, w, 3), np.uint8), "text_ids": ids, "null_ids": ids}
    return checked, objective, batch | {"entities": pictures, "entity_valid": np.ones((1, t), bool)}


@pytest.mark.full
@pytest.mark.parametrize(
    "arg, network, groups",
    [
        ("", 1_207_971_876, {"network", "resampler", "pyramid"}),
        ("release=1", 1_207_971_876, {"network", "resampler"}),
        ("apa=none,rep=320+256", 1_207_971_876 - 25_559_040 - 32, {"network", "pyramid"}),
        ("apa=joint,rep=none", 1_207_971_876 - 25_559_040 - 32 - 11_520, {"network", "resampler"}),
    ],
)
def test_magdiff_trains_the_released_subset_at_full_size(arg, network, groups):
    """And begins with Stable Diffusion, of which nothing is left over, or with the released weights."""
    checked, objective, batch = magdiff_objective(arg)
    key = jax.random.key(0)
    shapes = jax.eval_shape(objective.init, key, batch)
    count = lambda names: sum(flatten(shapes["network"])[name].size for name in names)
    assert count(flatten(shapes["network"])) == network and set(checked["optim"]) == groups == set(objective.trained)
    optimisers = {g: optim.make(spec, shapes[g], 10**5, g) for g, spec in checked["optim"].items()}
    if arg in ("", "release=1"):
        assert count(optimisers["network"].trained) == 590_871_392
        assert sum(x.size for x in jax.tree.leaves(shapes["resampler"])) == 48_541_696
    if "pyramid" in groups:
        assert sum(x.size for x in jax.tree.leaves(shapes["pyramid"])) == (296 if arg == "" else 148)
    losses, _ = jax.eval_shape(lambda p: objective.loss(p, {}, batch, key, 0, True), shapes)
    assert set(losses) == groups


def test_magdiff_begins_as_stable_diffusion():
    """At a small size: all of the base is taken, and what reads the entity's latents, or moves, counts for nothing at first."""
    sizes = dict(channels=(32, 64), layers=1, attention_levels=(True, False), heads=(2, 4))
    ours = build(get("magdiff_pexels", "dtype=float32").objective.network.to_dict() | sizes)
    base = build(dict(target="magvid.models.unet:UNet", **unets.sd21) | sizes)
    told = Condition(tokens={name: np.ones((1, 1, 3, 24), np.float32) for name in ("text", "image")})
    shapes = lambda unet, c: jax.eval_shape(lambda: unet.init(jax.random.key(0), np.zeros((1, 2, 8, 8, c)), np.zeros(1), told))["params"]
    mine, theirs = shapes(ours, 8), shapes(base, 4)
    rng = np.random.default_rng(0)
    loaded = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), theirs)
    (init,) = get("magdiff_pexels", "").init
    assert (init["run"], init["map"], init["groups"]) == ("weights/sd21v/unet", "magvid.adapters.magdiff:begun", ["network"])
    merged = merge(resolve(init["map"])(loaded, mine), mine, init["skip"], say=lambda text: None)
    taken = {name: x for name, x in flatten(merged).items() if isinstance(x, np.ndarray)}
    reading = {name for name in flatten(mine) if "_ip/" in name}
    assert set(taken) == set(flatten(theirs)) | reading and reading  # with equal widths of text and picture
    assert all(np.array_equal(taken[name], taken[name.replace("_ip", "")]) for name in reading)
    assert not merged["conv_in"]["kernel"][:, :, 4:].any() and merged["conv_in"]["kernel"][:, :, :4].all()


def test_settings_of_magdiff():
    config = get("magdiff_pexels", "").to_dict()
    objective = config["objective"]
    assert objective["clip"] == [16, 256, 256] and objective["carried"] == 4 and objective["schedule"]["zero_snr"]
    assert objective["drop"] == [[["text"], 0.1], [["image"], 0.1], [["text", "image"], 0.05]]
    assert objective["sampling"]["guidance"] == [[["text", "image"], 1.5], [["text"], 7.5]]
    assert objective["conditioners"][2]["levels"] == [1.5, 1.25, 1.0]
    pictures, captions, words = config["data"]["train"]["transforms"]
    assert pictures["references"] == [1, 8] and pictures["size"] == [256, 256] and words["key"] == "text"
    assert captions["path"] == f"{config['data']['train']['source']['path']}/captions.jsonl"
    assert config["data"]["train"]["source"]["height"] == 384 and config["optim"]["network"]["rules"][1] == [".*", None]
    joint = get("magdiff_pexels", "pictures=4").data.to_dict()["pictures"]
    assert (joint["every"], joint["batch"], joint["source"]["frames"]) == (4, 256, 1)
    (scores,) = get("magdiff_msrvtt", "clip=weights/other").metrics
    assert scores["target"] == "magvid.metrics.clip:ClipText" and scores["clip"]["run"] == "weights/other" and "metrics" not in get("magdiff_pexels", "clip=")
    *_, fidelity = get("magdiff_davis", "dino=d.npz").metrics
    assert fidelity["target"] == "magvid.metrics.dino:SubjectFidelity" and fidelity["net"]["weights_file"] == "d.npz"
    source = lambda arg: get("magdiff_pexels", arg).data.train.source.to_dict()
    assert (source("references=R")["pictures"], source("references=R")["masks"]) == ("R", "data/pexels/masks")
    assert source("references=R,editing=0")["masks"] is None and "pictures" not in source("")
    davis = get("magdiff_davis", "").data.to_dict()
    assert davis["train"] == config["data"]["train"] and len(davis["eval"]["transforms"]) == 2 and davis["eval"]["transforms"][0]["editing"] == 1.0 and davis["eval"]["transforms"][0]["stays"]


@pytest.mark.parametrize(
    "name, arg, prepare, backbone",
    [
        ("commit_ucf101", "size=L", "stretched", "vgg"),
        ("vq3d_ucf101", "size=B", "stretched", "vgg"),
        ("table6_magvit", "", "stretched", "vgg"),
        ("table7_vq3d_b", "", "stretched", "vgg"),
        ("mavin_horse", "", "short_side", "squeeze"),
        ("aid_bridge", "", "short_side", "alex"),
        ("magdiff_ucf101", "clip=weights/clip-l", "short_side", "alex"),
    ],
)
def test_metrics_by_published_networks_are_measured_where_their_weights_are_named(name, arg, prepare, backbone):
    targets = lambda config: [m["target"].partition(":")[2] for m in config.get("metrics", [])]
    joined = lambda *args: ",".join(filter(None, args))
    before = targets(get(name, arg))
    assert not {"VideoDistance", "InceptionScore", "PerceptualDistance"} & set(before)
    config = get(name, joined(arg, "i3d=a.npz,c3d=b.npz,real=c.npz,folds=4,lpips=d.npz"))
    assert targets(config) == [*before, "VideoDistance", "InceptionScore", "PerceptualDistance"]
    distance, score, lpips = check_config(config.to_dict())["metrics"][-3:]
    assert (distance["net"]["weights_file"], distance["real"]["weights_file"], score["net"]["weights_file"]) == ("a.npz", "c.npz", "b.npz")
    assert (lpips["net"]["weights_file"], lpips["net"]["backbone"]) == ("d.npz", backbone)
    assert distance["folds"] == score["folds"] == 4
    assert distance["prepare"]["factory"] == f"magvid.metrics.frechet:{prepare}"
    for spec in (distance, score, lpips):
        metric = build({k: {n: v for n, v in part.items() if n != "weights_file"} if isinstance(part, dict) else part for k, part in spec.items()})
        assert type(metric).__name__ == spec["target"].partition(":")[2]
    with pytest.raises(ValueError, match="real=c.npz is compared with by FVD: give the weights of I3D as well"):
        get(name, joined(arg, "real=c.npz"))


@pytest.mark.parametrize(
    "arg, path, value",
    [
        ("release=1", "prediction.target", "magvid.diffusion.predictions:Eps"),
        ("release=1", "sampling.guidance", [[["text"], 7.5]]),
        ("release=1", "conditioners.1.bgr", True),
        ("release=1", "conditioners.2.levels", [1.0]),
        ("release=1", "network.clip_norm", True),
        ("release=1,tune=", "network", dict(run="weights/magdiff/unet", weights="params", fields=dict(dtype="bfloat16"))),
        ("", "network.attention.position_stays", False),
        ("", "network.attention.cross_attention.scales", (1.0, 0.0)),
        ("apa=joint", "network.attention.tokens", ("text", "image")),
        ("apa=none", "network.attention.tokens", ("text",)),
        ("rep=512+256", "conditioners.2.levels", [2.0, 1.0]),
        ("prediction=eps", "schedule.clean_end", False),
    ],
)
def test_ablations_of_magdiff_are_arguments(arg, path, value):
    found = get("magdiff_pexels", arg).objective.to_dict()
    for name in path.split("."):
        found = found[int(name)] if name.isdigit() else found[name]
    assert without_spec(found) == value


def test_arguments_of_magdiff_reach_what_they_name():
    objective = lambda arg: get("magdiff_pexels", arg).objective.to_dict()
    assert "cross_attention" in objective("")["network"]["attention"] and "cross_attention" not in objective("apa=joint")["network"]["attention"]
    of = lambda arg: get("magdiff_pexels", arg).to_dict()["data"]["train"]["transforms"][0]
    assert of("release=1")["first"] and not of("").get("first")
    pictures = of("segmented=0,refs=4,least=2,editing=0.5")
    assert {k: pictures[k] for k in ("segmented", "references", "editing")} == dict(segmented=False, references=[2, 4], editing=0.5)


def test_magdiff_on_sprites():
    """Every arm sees the same clips, in one size; what is evaluated is an argument; all begin with the base, which is told texts alone."""
    get_sprites = lambda arg: get("magdiff_sprites", arg).to_dict()
    plain, one, base = get_sprites(""), get_sprites("rep=32"), get_sprites("base=1")
    sources = [config["data"]["train"]["source"] for config in (plain, one, get_sprites("rep=none"), base)]
    assert all(source == sources[0] for source in sources) and sources[0]["height"] == 48
    first = lambda config, part="train": config["data"][part]["transforms"][0]
    assert first(plain)["size"] == [32, 32] and (first(one)["height"], first(one)["width"]) == (32, 32) == (first(base)["height"], first(base)["width"])
    shown = first(get_sprites("shown=2"), "eval")
    assert shown["references"] == [2, 2] and shown["editing"] == 0 and not shown["stays"] and first(plain, "eval")["references"] == [1, 1] and first(plain)["references"] == [1, 8]
    assert not first(plain)["first"] and first(plain)["centre"] and first(get_sprites("centre=0"))["first"] and not first(get_sprites("centre=0"))["centre"]
    assert first(get_sprites("edits=same"), "eval")["editing"] == 1 and "Recolour" in get_sprites("edits=colour")["data"]["eval"]["transforms"][1]["target"]
    assert plain["data"]["eval"]["source"]["world"] == "entities-unseen" != get_sprites("unseen=0")["data"]["eval"]["source"]["world"]
    (init,) = plain["init"]
    assert init["run"] == "runs/sprites/entities-base" and not get_sprites("begin=0").get("init") and not base.get("init")
    stills, without = (config["data"]["pictures"]["transforms"] for config in (plain, base))
    assert stills[0]["still"] and not stills[0]["first"] and stills[0]["references"] == [1, 1] and without[1]["indices"] == [0]
    assert plain["data"]["pictures"]["batch"] == 8 * plain["batch"] and "pictures" not in get_sprites("pictures=0")["data"]
    (scales, fast), (rest, usual) = plain["optim"]["network"]["rules"]
    assert (scales, rest) == ("_scale$", ".*") and fast["peak"] == 10 * usual["peak"]
    for other in (base, get_sprites("apa=joint"), get_sprites("apa=none")):  # these have no scales
        assert other["optim"]["network"]["rules"] == [[".*", usual]] == plain["optim"]["resampler"]["rules"]
    assert base["data"]["train"]["transforms"][-2]["keys"] == ("caption", "motion")
    assert plain["data"]["train"]["transforms"][-2]["keys"] == ("caption", "motion", "motion", "motion")
    assert base["objective"]["trained"] == ("network",) and len(base["objective"]["conditioners"]) == 1
    motion = dict(target="magvid.data.sprites:Sprites", world="entities-moves")
    assert motion.items() <= get("clip_sprites", "world=entities-moves,motion=1").data.train.source.to_dict().items()


def test_wrong_arguments_of_magdiff_are_named():
    for arg, message in {
        "apa=some": 'apa="some" is unknown; choose of epaf, joint, none',
        "rep=big": 'rep="big": sizes in pixels such as 384+320+256, or none',
        "apa=none,rep=none": "tells nothing of an entity",
        "references=R,segmented=0": "segmented=0 tells whole frames, and references pictures of entities alone",
        "pictures=1": "at least 2; 0: none",
        "rep=256+384": "the largest size first, the clip's own last, no size twice",
        "rep=384+384+256": "no size twice",
        "release=1,refs=4,prediction=v": "release=1 says what prediction, refs is: leave them out",
        "editing=2": "editing=2.0 lies outside of 0 to 1",
        "tune=lora": 'tune="lora" is unknown; choose of subset, full',
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            get("magdiff_pexels", arg)


def test_data_of_magdiff_fit_their_sources():
    for name in MAGDIFF:
        for arg in ("data=somewhere,test=elsewhere", "rep=256", "segmented=0,refs=4,least=4"):
            config = get(name, arg).data.to_dict()
            for part in config.values():
                source = dict(part["source"])
                inspect.signature(resolve(source.pop("target"))).bind(**source)
                build(part["transforms"][0])
            assert arg != "rep=256" or config["train"]["source"]["height"] == 256
