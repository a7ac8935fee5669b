"""A run as one file, and back: the same weights, hashes, samples; wrong files are named."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tiny_runs
from flax.traverse_util import flatten_dict
from safetensors import safe_open
from safetensors.numpy import save_file

from magvid import checkpoints, run_files, runs
from magvid.__main__ import main
from magvid.job import check_config
from magvid.types import UserError

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A transformer and its tokenizer, exported."""
    folder = tmp_path_factory.mktemp("files")
    for name, run in (("vq", tiny_runs.tokenizer_run()), ("masked", tiny_runs.masked_run())):
        assert main(["export", f"--run={run}", f"--out={folder}/{name}.safetensors"]) == 0
    return folder


def test_what_is_imported_is_the_run(files, tmp_path, capsys):
    for name, run in (("vq", tiny_runs.tokenizer_run()), ("masked", tiny_runs.masked_run())):
        assert main(["import", f"{files}/{name}.safetensors", f"--out={tmp_path}/{run.name}"]) == 0
        old, new = runs.open_run(run), runs.open_run(tmp_path / run.name)
        for group in old.groups:
            jax.tree.map(np.testing.assert_array_equal, old.weights(group), new.weights(group))
            assert old.read(group)[1] == new.read(group)[1]
        assert (old.step, old.groups, old.averaged, old.frozen, old.trained_clip) == (new.step, new.groups, new.averaged, new.frozen, new.trained_clip)
    said = capsys.readouterr().out
    assert "transformer of step 2" in said and "put it there" not in said  # the tokenizer is where the transformer looks for it
    config, params = runs.load(runs.open_run(tmp_path / tiny_runs.masked_run().name))
    assert set(params) == {"tokenizer", "transformer"}
    command = ["--task=FP", "--number=1", "--format=gif", "--scale=1"]
    made = []
    for run in (tiny_runs.masked_run(), tmp_path / tiny_runs.masked_run().name):
        assert main(["sample", f"--run={run}", f"--out={tmp_path}/samples-{len(made)}", *command]) == 0
        made.append([p.read_bytes() for p in sorted((tmp_path / f"samples-{len(made)}").glob("*.gif"))])
    assert made[0] == made[1] and made[0]


def test_half_the_size_rounded(tmp_path, capsys):
    assert main(["train", f"--config={tiny_runs.TINY}", f"--workdir={tmp_path}/run", "--config.ema=0.9"]) == 0
    run = runs.open_run(tmp_path / "run")
    assert main(["export", f"--run={run.path}", f"--out={tmp_path}/a.safetensors"]) == 0
    assert main(["export", f"--run={run.path}", f"--out={tmp_path}/b.safetensors", "--dtype=float16", "--weights=ema"]) == 0
    said = capsys.readouterr().out
    count = sum(x.size for group in run.groups for x in jax.tree.leaves(run.weights(group, "params")))
    assert said.count(f": {count:,} parameters") == 2  # averages are no parameters more
    whole, half = ((tmp_path / f"{name}.safetensors").stat().st_size for name in "ab")
    assert half < 0.5 * whole  # what a small file says of itself counts as well
    assert main(["import", f"{tmp_path}/b.safetensors", f"--out={tmp_path}/half"]) == 0
    new = runs.open_run(tmp_path / "half")
    for which in ("ema", "params", None):  # whatever it is asked for, it has the averages
        for ours, theirs in zip(jax.tree.leaves(new.weights("tokenizer", which)), jax.tree.leaves(run.weights("tokenizer", "ema")), strict=True):
            np.testing.assert_array_equal(ours, theirs.astype(np.float16).astype(np.float32))
    arrays = {"a": np.array([1e6], np.float32)}
    for dtype, message in (("float16", "a has numbers that it cannot hold"), ("float8", "--dtype=float8: float16, or leave it out")):
        with pytest.raises(UserError, match=message):
            run_files.write(tmp_path / "c.safetensors", arrays, {}, dtype)
    assert not (tmp_path / "c.safetensors").exists()


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_shapes_and_types_come_back(dtype, tmp_path):
    arrays = {"scale": np.array(2.5, np.float32), "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T, "count": np.array(7), "none": np.zeros((0, 4), np.float32)}
    assert run_files.write(tmp_path / "a.safetensors", arrays, {"format": "x"}, dtype) == 8
    about, found = run_files.read(tmp_path / "a.safetensors")
    assert about == {"format": "x"} and found.keys() == arrays.keys()
    for name, x in arrays.items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape
        np.testing.assert_array_equal(found[name], x)


def test_one_kind_of_weights_alone(tmp_path):
    run = runs.open_run(tiny_runs.masked_run())
    for which in ("ema", "params") if run.averaged else ("params",):
        count = run_files.export(run, tmp_path / f"{which}.safetensors", which)
        assert count == sum(x.size for x in jax.tree.leaves(run.weights("transformer", which)))
        run_files.load(tmp_path / f"{which}.safetensors", tmp_path / which)
        jax.tree.map(np.testing.assert_array_equal, run.weights("transformer", which), runs.open_run(tmp_path / which).weights("transformer"))


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A run that trained two groups, with averages, saved twice."""
    folder = tmp_path_factory.mktemp("two") / "run"
    config = pathlib.Path(__file__).parent.parent / "configs" / "clip_sprites.py"
    command = ["train", f"--config={config}:smoke=1", f"--workdir={folder}", "--config.ema=0.5", "--config.steps=4", "--config.save_every=2", "--config.eval_every=0", "--config.batch=8"]
    assert main(command) == 0
    return folder


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("which, item, group", [(None, "params", "clip"), (None, "ema", "temporal"), ("params", "params", "temporal"), ("ema", "ema", "clip")])
def test_of_a_damaged_step_nothing_is_exported(which, item, group, two_steps, tmp_path, capsys):
    """One array is damaged, of one group and item; all of the file is of the step before, which it names, and so is what begins with the run."""
    run = runs.open_run(pathlib.Path(shutil.copytree(two_steps, tmp_path / "run")))
    leaves = run.checkpoints.meta(4)["leaves"]
    name = next(n for n in leaves if n.startswith(f"{item}/{group}/"))
    meta = next((run.path / "checkpoints" / "4" / "meta").rglob("metadata"))
    described = json.loads(meta.read_text())
    described["leaves"][name][2] += 1  # its checksum
    described["crc"] = checkpoints._crc({k: v for k, v in described.items() if k != "crc"})
    meta.write_text(json.dumps(described))
    run = runs.open_run(run.path)
    run_files.export(run, tmp_path / "good.safetensors", which)
    about, arrays = run_files.read(tmp_path / "good.safetensors")
    said = capsys.readouterr().out
    assert about["step"] == run.step == 2 and said.count("using step 2") == 1 and f"the checksum of {name} is wrong" in said
    good = runs.open_run(two_steps)
    for kind in ("params", "ema") if which is None else (which,):
        for other in good.groups:
            for path, value in flatten_dict(good.checkpoints.group(2, kind, other), sep="/").items():
                np.testing.assert_array_equal(arrays[f"{'params' if which else kind}/{other}/{path}"], value)
    both = runs.open_run(run.path).all_weights(which)
    jax.tree.map(np.testing.assert_array_equal, both, {other: good.weights(other, which, step=2) for other in good.groups})


def test_what_is_damaged_through_and_through_is_not_called_untrained(two_steps, tmp_path):
    run = runs.open_run(pathlib.Path(shutil.copytree(two_steps, tmp_path / "run")))
    for step in (2, 4):
        shutil.rmtree(run.path / "checkpoints" / str(step) / "params")
    for ask in (run.all_weights, lambda: run.step):
        with pytest.raises(UserError, match="^no good checkpoint in .*step 4: its arrays cannot be read"):
            ask()


def test_an_import_that_is_interrupted_leaves_nothing(files, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            run_files.load(files / "vq.safetensors", tmp_path / "vq")
    assert not list(tmp_path.iterdir())
    (tmp_path / "vq").mkdir()  # empty, it may be there
    run_files.load(files / "vq.safetensors", tmp_path / "vq")
    assert [p.name for p in tmp_path.iterdir()] == ["vq"] and runs.open_run(tmp_path / "vq").step == 2


def test_a_run_that_it_builds_on_is_named_where_it_is_not(files, tmp_path, capsys):
    assert main(["import", f"{files}/masked.safetensors", f"--out={tmp_path}/deep/masked"]) == 0
    assert f"objective.tokenizer is to be at {tmp_path}/deep/vq: put it there, or say where it is by --config.objective.tokenizer.run=PATH" in capsys.readouterr().out


def test_training_begins_with_it_and_does_not_go_on_with_it(files, tmp_path, capsys):
    assert main(["import", f"{files}/vq.safetensors", f"--out={tmp_path}/vq"]) == 0
    assert main(["train", f"--config={tiny_runs.TINY}:tokenizer", f"--workdir={tmp_path}/vq", "--config.eval_every=2", "--config.steps=4"]) == 2
    assert "is of another model or optimiser" in capsys.readouterr().err


@pytest.fixture
def bad(files, tmp_path):
    """{name: file}"""
    whole = (files / "vq.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors")
    with safe_open(files / "vq.safetensors", "numpy") as stored:
        arrays = {name: stored.get_tensor(name) for name in stored.keys()}
        about = json.loads(stored.metadata()["magvid"])
    about["config"]["objective"]["tokenizer"]["target"] = "os:system"
    save_file(arrays, tmp_path / "code.safetensors", {"magvid": json.dumps(about)})
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(flipped)
    told = bytearray(whole)
    told[whole.index(b'\\"step\\": ') + len(b'\\"step\\": ')] ^= 1
    (tmp_path / "told.safetensors").write_bytes(told)
    del about["checksums"][next(iter(arrays))]
    save_file(arrays, tmp_path / "unknown.safetensors", {"magvid": json.dumps(about)})
    save_file(arrays, tmp_path / "adapters.safetensors", {"magvid": json.dumps({"format": "magvid.adapters/1"})})
    shutil.copy(files / "vq.safetensors", tmp_path / "good.safetensors")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    return tmp_path


BAD = {
    "import {bad}/gone.safetensors --out={bad}/new": "there is no file {bad}/gone.safetensors: `magvid export` writes one",
    "import {bad}/cut.safetensors --out={bad}/new": "cut.safetensors cannot be read",
    "import {bad}/flipped.safetensors --out={bad}/new": "flipped.safetensors is damaged: the checksum of ",
    "import {bad}/told.safetensors --out={bad}/new": "told.safetensors is damaged: the checksum of its description is wrong",
    "import {bad}/unknown.safetensors --out={bad}/new": "unknown.safetensors is damaged: the checksum of ",
    "import {bad}/foreign.safetensors --out={bad}/new": "foreign.safetensors holds no run",
    "import {bad}/adapters.safetensors --out={bad}/new": "holds adapters, which `--adapters` of predict takes",
    "import {bad}/code.safetensors --out={bad}/new": 'names "os:system", which is not part of magvid: give --trust',
    "import {bad}/good.safetensors --out={bad}/full": "--out={bad}/full is there already, and not empty",
    "import {bad}/good.safetensors {bad}/good.safetensors --out={bad}/new": "give one file, got 2",
    "import {bad}/good.safetensors": "--out is missing",
    "import --out={bad}/new": "--file is missing",
    "export --run={bad}/good.safetensors --out={bad}/x.safetensors": "good.safetensors is a file: `magvid import {bad}/good.safetensors --out=FOLDER` makes a run folder of it",
    "export --run={run} --out={bad}/x.bin": "should end in .safetensors",
    "export --run={run} --out={bad}/good.safetensors/x.safetensors": "cannot write to {bad}/good.safetensors",
    "export --run={run} --out={bad}/x.safetensors --weights=average": 'weights="average" is unknown',
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_named_and_leaves_nothing(words, bad, capsys):
    places = dict(bad=bad, run=tiny_runs.tokenizer_run())
    assert main(words.format(**places).split()) == 2
    assert BAD[words].format(**places) in capsys.readouterr().err
    assert not (bad / "new").exists() and not (bad / "x.safetensors").exists()


def test_a_full_disk_leaves_what_was_there(files, tmp_path, monkeypatch):
    out = tmp_path / "a.safetensors"
    out.write_bytes(b"before")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(UserError, match="cannot be written .No space left on device.: make room"):
        run_files.export(runs.open_run(tiny_runs.tokenizer_run()), out)
    assert out.read_bytes() == b"before" and [p.name for p in pathlib.Path(tmp_path).iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("file", sorted((ROOT / "experiments" / "weights").glob("*.safetensors")), ids=lambda file: file.stem)
def test_what_is_shipped_is_a_run(file, tmp_path):
    """As docs/magdiff.md imports it; its config is one of today's."""
    assert main(["import", str(file), f"--out={tmp_path / 'run'}"]) == 0
    run = runs.open_run(tmp_path / "run")
    check_config(run.config)
    assert sum(x.size for group in run.groups for x in jax.tree.leaves(run.weights(group))) > 10**5
