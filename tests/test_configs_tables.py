"""The rows of tables 5 to 7, and the ablation on sprites: they build at full size, say what they are named for, and
every distinct program takes two steps.
"""

import importlib
import pathlib

import jax
import numpy as np
import pytest

from configs import ablation
from magvid import optim
from magvid.build import build
from magvid.job import check_config
from magvid.masked.commit import Conditioning, LossWeights
from magvid.train import train
from test_configs import COUNTS, get

ROOT = pathlib.Path(__file__).parent.parent
TABLES = sorted(p.stem for p in (ROOT / "configs").glob("table?_*.py"))
BAIR = COUNTS["transformer_bair_FP_B"]["params"]
WIDTH = 768  # of size B


def shapes(name: str, arg: str):
    """(objective, its shapes) of a row at full size, the tokenizer's spec in place of its run; nothing is read."""
    config = get(name, arg)
    planar = "vq2d" in config.objective.tokenizer.run
    size = config.objective.tokenizer.run[-1]
    spec = check_config(config)["objective"]
    spec["tokenizer"] = get("vq2d_bair" if planar else "vq3d_bair", f"size={size}").objective.tokenizer.to_dict()
    for part in ("encoder", "decoder"):  # a shallow tokenizer makes the same grid of tokens
        spec["tokenizer"][part] |= dict(filters=32, blocks=1)
    objective = build(spec)
    video = np.zeros((1, 16, 64, 64, 3), np.uint8)
    return objective, jax.eval_shape(objective.init, jax.random.key(0), {"video": video})


# of a transformer, in parameters more than BAIR FP's
MORE = {
    "table5_latent": 0,
    "table5_prefix": 257 * WIDTH,  # 256 condition tokens and SEP
    "table5_commit_mask": 0,
    "table5_commit_mask_recons": 0,
    "table5_commit": 0,
    "table6_maskgit_2d": 3 * 1024 * WIDTH,  # 4096 tokens
    "table6_maskgit_3d": 0,
    "table6_magvit": 0,
}
TOKENIZERS = {"table7_vq2d": ("vq2d", "L"), "table7_vq3d_b": ("vq3d", "B"), "table7_vq3d_l": ("vq3d", "L")}
WEIGHTS = {
    "latent": (1, 0, 0),
    "prefix": (1, 0, 1),
    "commit_mask": (1, 0, 0),
    "commit_mask_recons": (1, 0, 1),
    "commit": (1, 1, 1),
}


def test_every_row_has_a_config():
    assert set(TABLES) == {*MORE, "table6_ar", *TOKENIZERS}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_rows_of_table_7_are_tokenizers_by_where_they_begin(name):
    kind, size = TOKENIZERS[name]
    published, place = get(f"{kind}_ucf101", f"size={size}"), "inflate" if kind == "vq3d" else "begin"
    assert get(name, "").to_dict() == published.to_dict() and published.init
    assert "init" not in get(name, f"{place}=0")
    if kind == "vq3d":
        assert get(name, "inflate=average").init[0]["map"].endswith(":inflate_average")
    assert get(name, "smoke=1").steps == 2
    with pytest.raises(ValueError, match=f"in size {size}: leave out size"):
        get(name, "size=H")


@pytest.mark.parametrize("name", MORE)
def test_rows_have_the_papers_sizes(name):
    objective, params = shapes(name, "size=B")
    assert sum(x.size for x in jax.tree.leaves(params["transformer"])) == BAIR + MORE[name]
    assert tuple(objective.tasks) == ("FP",) and get(name, "size=B").steps == 67_600


def test_eight_tasks_are_trained_for_as_long_as_the_official_model():
    objective, params = shapes("table5_commit", "size=B,tasks=MT8")
    assert sum(x.size for x in jax.tree.leaves(params["transformer"])) == COUNTS["transformer_bair_MT8_B"]["params"]
    assert len(objective.tasks) == 8 and get("table5_commit", "tasks=MT8").steps == 202_800
    with pytest.raises(ValueError, match="has the length of one task's: use tasks=FP"):
        get("table5_prefix", "tasks=MT8")
    with pytest.raises(ValueError, match='tasks="FP2" is unknown; choose of FP, MT8'):
        get("table5_commit", "tasks=FP2")


@pytest.mark.parametrize("row", WEIGHTS)
def test_rows_of_table_5_have_their_conditioning_and_losses(row):
    objective, _ = shapes(f"table5_{row}", "")
    ways = {"latent": Conditioning(fixed="condition"), "prefix": Conditioning(prefix=True)}
    assert objective.conditioning == ways.get(row, Conditioning(refine=True))
    assert objective.weights == LossWeights(*WEIGHTS[row])


def test_the_autoregressive_row_has_the_size_of_the_others():
    objective, params = shapes("table6_ar", "size=B")
    assert type(objective).__name__ == "Autoregressive" and objective.transformer.length == 1024 + 1 + 256 + 1
    assert abs(sum(x.size for x in jax.tree.leaves(params["transformer"])) / BAIR - 1) < 0.01
    assert get("table6_ar", "").optim.transformer.optimizer.decay_regex == ".*"


@pytest.mark.full  # six programs to compile
def test_smoke_of_the_rows(tmp_path):
    one, arg = jax.devices()[:1], "smoke=1"
    for name in ("vq2d_bair", "vq3d_bair"):
        train(get(name, arg), tmp_path / name, devices=one)
    for name in ("table5_latent", "table5_prefix", "table6_ar", "table6_maskgit_2d"):
        config = get(name, arg)
        planar = "vq2d" in config.objective.tokenizer.run
        config.objective.tokenizer.run = str(tmp_path / ("vq2d_bair" if planar else "vq3d_bair"))
        state, metrics = train(config, tmp_path / name, devices=one)
        assert int(state.step) == 2 and all(v == v for v in metrics.values())


# --- the ablation on sprites


def test_every_arm_of_the_ablation_builds_and_fits_its_tokenizer():
    experiment = importlib.import_module("experiments.commit_ablation")
    stages = experiment.runs_of(3, False, "runs/ablation")
    assert [len(stage) for stage in stages] == [1, 3, 8, 5]
    tokenizers = {}
    for name, arg in (stages[0] | stages[1]).items():
        config = check_config(experiment.config_of(arg))
        assert config["seed"] == 3
        tokenizers[name] = config["objective"]["tokenizer"]
    batch = {"video": np.zeros((2, 8, 32, 32, 3), np.uint8)}
    for name, arg in (stages[2] | stages[3]).items():
        config = check_config(experiment.config_of(arg))
        spec, run = config["objective"], config["objective"]["tokenizer"]["run"]
        spec["tokenizer"] = tokenizers[pathlib.Path(run).name]
        found = jax.eval_shape(build(spec).init, jax.random.key(0), batch)
        assert set(found) == {"tokenizer", "transformer"}, name
        if "untrained" in name:
            assert config["steps"] == 1 and config["optim"]["transformer"]["rules"][0][1]["warmup"] == 1


def test_wrong_arguments_of_the_ablation_are_named():
    with pytest.raises(ValueError, match='row="comit" is unknown; choose of latent'):
        ablation.get_config("row=comit")
    with pytest.raises(ValueError, match="row=ar has one task's condition in its prefix: use tasks=CFP"):
        ablation.get_config("row=ar,tasks=MT8")


def test_intervals_are_students():
    """Of 1, 2, 3: mean 2, standard deviation 1, t(0.975, 2) = 4.3027."""
    arms = importlib.import_module("experiments.arms")
    mean, half = arms.interval([1.0, 2.0, 3.0])
    np.testing.assert_allclose([mean, half], [2.0, 4.302653 / np.sqrt(3)], rtol=1e-6)
    assert arms.cell([1.0, 2.0, 3.0]) == "2.00 ± 2.48" and arms.cell([0.5]) == "0.50"
    assert arms.cell(None) == arms.cell([None]) == "–"


@pytest.mark.parametrize("given", [dict(warmup=50, decay="cosine"), dict(warmup=3, decay="cosine", total=40), dict(decay="constant")])
def test_the_untrained_row_has_the_trained_rows_step_at_a_rate_of_0(given):
    """The same rates at every step, so that the programs are equal; without a warm-up there is one of a step, whose rate is 0."""
    arms, given = importlib.import_module("experiments.arms"), dict(given, peak=1.0)
    config = arms.untrained(dict(steps=100, optim=dict(network=dict(rules=[[".*", dict(given)]]))))
    found = optim.schedule(config["optim"]["network"]["rules"][0][1], config["steps"])
    assert config["steps"] == 1 and found(0) == 0
    trained = optim.schedule(given, 100)
    assert all(found(s) == trained(s) for s in range(1, 100, 7))
