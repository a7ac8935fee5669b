"""Every config is built by its shapes; every distinct smoke program takes two steps; arguments are checked."""

import importlib
import json
import pathlib

import jax
import numpy as np
import pytest

from magvid.build import build
from magvid.job import Job, check_config
from magvid.train import train

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "defaults"))
BUDGETS = ("quick", "long")


def get(name: str, arg: str):
    return importlib.import_module(f"configs.{name}").get_config(arg)


def with_own_tokenizer(name: str, arg: str):
    """A config that refers to a tokenizer's run, with that tokenizer's spec in its place."""
    config = get(name, arg)
    if "run" in config.objective.get("tokenizer", {}):
        config.objective.tokenizer = get(name.replace("commit", "vq3d"), arg).objective.tokenizer.to_dict()
    return config


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
    batch = {k: np.asarray(v)[None] for k, v in record.items() if k in ("video", "label", "task", "ratio")}
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


def test_a_wrong_argument_is_named():
    with pytest.raises(ValueError, match='takes no argument "budgt"; it takes budget=quick, smoke=False'):
        get("vq3d_sprites", "budgt=long")
    with pytest.raises(ValueError, match='there is no budget "huge"; choose of quick, long'):
        get("vq3d_sprites", "budget=huge")
    with pytest.raises(ValueError, match='smoke="x" is not of type bool'):
        get("vq3d_sprites", "smoke=x")


def test_batches_divide_over_meshes():
    """The same config runs on one device and on several."""
    for name in CONFIGS:
        config = check_config(with_own_tokenizer(name, "budget=quick"))
        for devices in (1, 2, 4):
            if "tokenizer" not in config["optim"]:
                config["optim"]["tokenizer"] = {"optimizer": {"name": "adam"}, "rules": [[".*", None]]}
            assert Job.from_config(config, jax.devices()[:devices]).microbatches() == 1
