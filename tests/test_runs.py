"""Runs that refer to each other: specs, weights, hashes, trust, and errors that name the remedy."""

import concurrent.futures
import json
import shutil

import chex
import helpers_objective as helpers
import jax
import numpy as np
import pytest
import tiny_runs

from magvid import runs, state, train
from magvid.types import UserError


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """home/first trains all three groups; home/second takes `features` from it, frozen, and begins its generator
    there.
    """
    home = tmp_path_factory.mktemp("runs")
    base = helpers.config(total=20, steps=3, batch=2, eval_every=0, save_every=2, mesh={"data": 1})
    first, _ = train.train(base, home / "first", devices=jax.devices()[:1])
    config = base | dict(
        objective=base["objective"] | dict(features=dict(run=str(home / "first"))),
        optim={"generator": base["optim"]["generator"], "discriminator": base["optim"]["discriminator"]},
        init=[dict(run=str(home / "first"), groups=["generator"], weights="params")],
    )
    spec = json.loads((home / "first/config.json").read_text())
    spec["objective"]["features"] = dict(target="helpers_objective:Part", inputs=96, outputs=8)
    (home / "first/config.json").write_text(json.dumps(spec))
    second, _ = train.train(config | dict(steps=1), home / "second", devices=jax.devices()[:1], trust=True)
    return home, first, second


def test_a_run_describes_itself(home):
    folder, first, _ = home
    run = runs.open_run(folder / "first", trust=True)
    assert run.config["steps"] == 3 and run.step == 3 and run.groups == ["discriminator", "features", "generator"]
    averaged = jax.device_get(state.weights(first))
    chex.assert_trees_all_equal(run.weights("generator"), averaged["generator"])
    chex.assert_trees_all_equal(run.weights("generator", "params"), jax.device_get(first.params["generator"]))
    chex.assert_trees_all_equal(run.weights("features"), averaged["features"])
    assert not np.array_equal(
        run.weights("generator", step=2)["enter"]["kernel"], averaged["generator"]["enter"]["kernel"]
    )
    hashes = {run.read("generator", w)[1] for w in (None, "params")} | {run.read("generator", step=2)[1], run.hash}
    assert len(hashes) == 4 and all(len(h) == 12 for h in hashes)


def test_references_are_replaced_by_spec_weights_and_hash(home):
    folder, first, second = home
    run = runs.open_run(folder / "second", trust=True)
    assert json.loads((folder / "second/config.json").read_text())["objective"]["features"] == {"run": "../first"}
    config, params = runs.load(run, trust=True)
    assert config["objective"]["features"] == dict(target="helpers_objective:Part", inputs=96, outputs=8)
    chex.assert_trees_all_equal(params["features"], jax.device_get(first.params["features"]))
    chex.assert_trees_all_equal(params["features"], jax.device_get(second.frozen["features"]))
    assert run.frozen["features"]["hash"] == runs.open_run(folder / "first", trust=True).read("features")[1]
    assert run.groups == ["discriminator", "generator"] and set(params) == {"discriminator", "features", "generator"}


def test_trained_groups_begin_where_init_says(home):
    """The first update has learning rate 0 (warm-up), so after one step the generator is still that of the first
    run.
    """
    _, first, second = home
    chex.assert_trees_all_equal(*(jax.device_get(s.params["generator"]["enter"]) for s in (first, second)))
    assert not np.array_equal(
        first.params["discriminator"]["enter"]["kernel"], second.params["discriminator"]["enter"]["kernel"]
    )


def test_moved_together_they_still_find_each_other_and_a_changed_source_is_noticed(home, tmp_path):
    moved = shutil.copytree(home[0], tmp_path / "moved")
    run = runs.open_run(moved / "second", trust=True)
    assert run.config["objective"]["features"]["run"] == str(moved / "first")
    runs.load(run, trust=True)
    shutil.rmtree(moved / "first/checkpoints/3")
    with pytest.raises(UserError, match='was trained with "features" of .*first at .*restore that run'):
        runs.load(runs.open_run(moved / "second", trust=True), trust=True)


def test_init_maps_skips_and_is_strict(home):
    shapes = {
        "generator": {
            "only": {"kernel": jax.ShapeDtypeStruct((96, 48), np.float32)},
            "new": jax.ShapeDtypeStruct((2,), np.float32),
        }
    }
    spec = dict(run=str(home[0] / "first"), map="test_runs:only_enter", skip=["new"])
    found = runs.initial([spec], shapes, trust=True)
    expected = runs.open_run(home[0] / "first", trust=True).weights("generator")["enter"]["kernel"]
    np.testing.assert_array_equal(found["generator"]["only"]["kernel"], expected)
    assert isinstance(found["generator"]["new"], jax.ShapeDtypeStruct)
    with pytest.raises(UserError, match="missing: new"):
        runs.initial([spec | dict(skip=[])], shapes, trust=True)
    with pytest.raises(UserError, match="nothing in common"):
        runs.initial([spec], {"other": shapes["generator"]}, trust=True)
    with pytest.raises(UserError, match="maps"):
        runs.initial([dict(run="x", maps="y")], shapes)
    with pytest.raises(UserError, match="init: there is no folder .*; train that run first, or begin without it"):
        runs.initial([dict(run=str(home[0] / "nowhere"))], shapes)


def only_enter(loaded, init):
    assert set(init) == {"only", "new"}
    return {"only": loaded["enter"]}


def test_code_outside_of_magvid_needs_trust(home):
    with pytest.raises(UserError, match='names "helpers_objective:.*--trust'):
        runs.open_run(home[0] / "first")


def test_errors_name_the_remedy(home, tmp_path):
    folder = home[0]
    run = runs.open_run(folder / "first", trust=True)
    (folder / "bad").mkdir(exist_ok=True)
    (folder / "bad/config.json").write_text("{")
    (folder / "list").mkdir(exist_ok=True)
    (folder / "list/config.json").write_text("[1]")
    (folder / "new/checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "new/config.json").write_text("{}")
    for act, message in [
        (lambda: runs.open_run(folder / "frist"), "did you mean .*first"),
        (lambda: runs.open_run(folder), "the runs inside it are .*first"),
        (lambda: runs.open_run(folder / "bad"), "bad/config.json is not valid JSON"),
        (lambda: runs.open_run(folder / "list"), r"list/config.json holds \[1\], not an object"),
        (lambda: runs.ClipFormat.read(folder / "new/config.json"), r"config.json does not describe clips \('clip'\)"),
        (lambda: runs.open_run(folder / "new").step, "no checkpoint yet"),
        (lambda: run.weights("tokenizer"), "it has discriminator, features, generator"),
        (lambda: run.weights("features", "ema"), 'use weights="params"'),
        (lambda: run.weights("features", "best"), 'use "ema" or "params"'),
        (
            lambda: runs.resolve(dict(objective=dict(tokenizer=dict(run=str(folder / "first")))), True),
            'has no "tokenizer"',
        ),
        (lambda: runs.resolve(dict(objective=dict(features=dict(run="x", wieghts="ema")))), "wieghts"),
    ]:
        with pytest.raises(UserError, match=message):
            act()


def test_paths_are_saved_relative_and_read_absolute(tmp_path):
    config = {
        "objective": {"a": {"run": "x/y"}, "b": {"target": "t", "run": "kept"}},
        "init": [{"run": "/z"}],
        "run": "w",
        "data": [{"target": runs.TOKENIZER, "folder": "text"}, {"target": "t", "folder": "kept"}],
    }
    found = runs.anchored(config, tmp_path)
    assert found == {
        "objective": {"a": {"run": f"{tmp_path}/x/y"}, "b": {"target": "t", "run": "kept"}},
        "init": [{"run": "/z"}],
        "run": f"{tmp_path}/w",
        "data": [{"target": runs.TOKENIZER, "folder": f"{tmp_path}/text"}, {"target": "t", "folder": "kept"}],
    }
    assert runs.relative(found, tmp_path / "x")["objective"]["a"] == {"run": "y"}
    assert runs.anchored(runs.relative(found, tmp_path / "q"), tmp_path / "q") == found


def test_a_run_folder_says_what_its_clips_are(home, tmp_path):
    """Once, at the start; where the config's data is changed, it says nothing of it."""
    path = home[0] / "first"
    run = runs.open_run(path, trust=True)
    assert run.clip == runs.ClipFormat(frames=2, height=4, width=4)
    assert json.loads((path / "data.json").read_text())["clip"] == dict(
        frames=2, height=4, width=4, stride=1, fps=None, most_stride=None, keep_aspect=True, spread=False
    )  # fmt: skip
    assert runs.Run(run.path, run.config | dict(data={})).clip is None
    clip = runs.ClipFormat(16, 64, 48, stride=2, fps=12.5, classes=("cat", "dog"))
    clip.write(tmp_path / "data.json")
    assert runs.ClipFormat.read(tmp_path / "data.json") == clip
    runs.write_json(tmp_path / "data.json", {"clip": dict(frames=2, height=4, width=4, stride=1, fps=None), "classes": []})
    assert runs.ClipFormat.read(tmp_path / "data.json") == runs.ClipFormat(2, 4, 4)  # of before there was more to say


def test_how_files_of_any_rate_are_read():
    assert runs.ClipFormat(2, 4, 4, stride=2, fps=12.5).reading(30) == (12.5, 2)
    assert runs.ClipFormat(2, 4, 4, stride=3).reading(30) == (None, 3) and runs.ClipFormat(2, 4, 4, stride=3).shown_rate(30) == 10
    mavin = runs.ClipFormat(2, 4, 4, fps=8, most_stride=2)
    assert [mavin.reading(rate)[1] for rate in (5, 8, 11, 13, 25, 60)] == [1, 1, 1, 2, 2, 2] and mavin.shown_rate(60) == 30


def test_json_files_appear_whole_or_not_at_all(tmp_path):
    runs.write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError):
        runs.write_json(tmp_path / "a.json", {"a": float("nan")})
    assert runs.read_json(tmp_path / "a.json") == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / "b.json").mkdir()
    with pytest.raises(UserError, match="b.json cannot be written .Is a directory.: make room, or choose another folder"):
        runs.write_json(tmp_path / "b.json", {"a": 1})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_an_unfinished_tokenizer_is_told(tmp_path, caplog):
    shutil.copytree(tiny_runs.tokenizer_run(), tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "steps": config["steps"] + 3}))
    runs.resolve(dict(objective=dict(tokenizer=dict(run=str(tmp_path / "run")))), trust=True)
    assert f"stopped at step {config['steps']} of {config['steps'] + 3}" in caplog.text


def test_parts_of_parts_can_be_of_other_runs(tmp_path, monkeypatch):
    """Below the objective's own fields, in lists as well; one group has one source."""
    run = tiny_runs.tokenizer_run()
    part = dict(target="mylab:Words", tokenizer=dict(run=str(run), weights="params"))
    config = dict(objective=dict(target="mylab:Objective", conditioners=[part, dict(part)]))
    reads, read = [], runs.Run.read
    monkeypatch.setattr(runs.Run, "read", lambda self, group, *rest: reads.append(group) or read(self, group, *rest))
    resolved, frozen, hashes = runs.resolve(config, trust=True)
    assert reads == ["tokenizer"]  # once for both
    spec = runs.open_run(run).config["objective"]["tokenizer"]
    assert [c["tokenizer"] for c in resolved["objective"]["conditioners"]] == [spec, spec]
    assert set(frozen) == set(hashes) == {"tokenizer"}
    config["objective"]["conditioners"][1] = dict(part, tokenizer=dict(run=str(run)))
    with pytest.raises(UserError, match=r"conditioners\[0\].tokenizer is .*, and .*conditioners\[1\].tokenizer is .* give both the same"):
        runs.resolve(config, trust=True)
    config["objective"]["conditioners"] = [dict(part, tokenizer=dict(run=f"{tmp_path}/gone"))]
    with pytest.raises(UserError, match=r"objective.conditioners\[0\].tokenizer.run: there is no folder"):
        runs.resolve(config, trust=True)


def test_a_metrics_network_may_come_from_a_file(tmp_path):
    """Outside of the objective likewise, with groups of its own."""
    np.savez(tmp_path / "i3d.npz", **{"a/kernel": np.ones(2, np.float32)})
    features = dict(target="mylab:I3D", weights_file=str(tmp_path / "i3d.npz"))
    spec, groups, hashes = runs.resolve_spec(dict(target="mylab:FVD", features=features), "metrics[0]")
    assert spec == dict(target="mylab:FVD", features=dict(target="mylab:I3D")) and set(groups) == set(hashes) == {"features"}
    np.testing.assert_array_equal(groups["features"]["a"]["kernel"], [1, 1])
    (tmp_path / "i3d.npz").unlink()
    with pytest.raises(UserError, match=r"metrics\[0\].features.weights_file: there is no file"):
        runs.resolve_spec(dict(target="mylab:FVD", features=features), "metrics[0]")


def test_a_reference_to_a_part_under_another_name_and_with_other_fields(tmp_path):
    """`part` goes into spec and weights alike; `fields` change the spec; both pass through a reference to a reference."""
    from tools.convert import save
    from tools.weights import Stored

    clip = dict(target="helpers_objective:Part", text=dict(target="helpers_objective:Part", inputs=2), vision=dict(inputs=3))
    arrays = {f"{tower}/w": Stored.of(np.full(2, i, np.float32)) for i, tower in enumerate(("text", "vision"))}
    save(tmp_path / "clip", "clip", clip, arrays, {})
    reference = dict(run=str(tmp_path / "clip"), weights="params")
    part = dict(reference, part="clip.vision", fields=dict(dtype="bfloat16"))
    config, frozen, hashes = runs.resolve(dict(objective=dict(image=part)), trust=True)
    assert config["objective"]["image"] == dict(inputs=3, dtype="bfloat16")
    np.testing.assert_array_equal(frozen["image"]["w"], [1, 1])
    runs.write_json(tmp_path / "clip" / "config.json", {"objective": {"clip": clip}})
    (tmp_path / "user").mkdir()
    runs.write_json(tmp_path / "user" / "config.json", {"objective": {"clip": reference}})
    again, _, same = runs.resolve(dict(objective=dict(image=dict(part, run=str(tmp_path / "user")))), trust=True)
    assert again == config and same == hashes
    with pytest.raises(UserError, match='clip of run .* has no part "audio": it has text, vision'):
        runs.resolve(dict(objective=dict(image=dict(part, part="clip.audio"))), trust=True)
    with pytest.raises(UserError, match="unknown entries"):
        runs.resolve(dict(objective=dict(image=dict(part, parts="clip"))), trust=True)


def test_many_may_begin_in_one_folder_at_once(tmp_path):
    """As the processes of pods do, each of which is process 1 of its own machine."""
    folders = [tmp_path / "shared" / "run"] * 200
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda folder: runs.make_folder(folder, "--workdir"), folders))
    assert list((tmp_path / "shared").iterdir()) == [tmp_path / "shared" / "run"] and not list((tmp_path / "shared" / "run").iterdir())
