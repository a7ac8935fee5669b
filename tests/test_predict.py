"""Prediction from a picture and an instruction, and adapters as files: saved, swapped, combined."""

import dataclasses
import hashlib
import re

import jax
import numpy as np
import pytest
import tiny_pipeline
from PIL import Image

from magvid import adapter_files, predict, runs
from magvid.data.states import Predicted, StateFile, state_key
from magvid.predict import Options
from magvid.train import train
from magvid.types import UserError
from magvid.video import read_video, write_video

CLIP = (4, 16, 24)
PARTS = tiny_pipeline.PARTS | dict(vision=dict(target="tiny_diffusion:Vision"))
WORDS = tiny_pipeline.WORDS
STATES = dict(target="magvid.data.text:Also", tokenizer=WORDS)


def objective(parts):
    """AID in its smallest form: the network's `adapt` layers are trained beside a frozen one."""
    seen = dict(vision=parts["vision"], prepare=dict(factory="tiny_diffusion:prepare"))
    dqformer = dict(target="magvid.adapters.dqformer:DQFormer", width=4, frames=CLIP[0], queries=2, heads=2, states=2)
    return dict(
        network=parts["network"],
        conditioners=[
            dict(target="magvid.models.conditioners:GivenLatents", vae=parts["vae"], frames=CLIP[0], given=1, grey=False, aug=0.0, tell=False),
            dict(target="magvid.adapters.dqformer:MCondition", text=parts["text"], dqformer=dqformer, **seen),
        ],
        adapters=dict(target="magvid.grafts:Grafts", new="^mcondition/", changed="^mix/kernel"),
        trained=["adapters", "dqformer"],
        drop=[[["text"], 0.2], [["text", "image"], 0.1]],
        tasks=dict(TI2V=[]),
        sampling=dict(target="magvid.objectives.denoise:Sampling", steps=2, guidance=[[["text", "image"], [1.0, 2.0]], [["text"], 3.0]]),
        clip=list(CLIP),
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Of a run whose frozen networks lie in folders; it trains on sprites."""
    folder = tmp_path_factory.mktemp("aid")
    parts = PARTS | dict(network=dict(target="tiny_diffusion:Network"))
    made = tiny_pipeline.networks(folder, parts, objective)
    clip = dict(target="magvid.data.sprites:Sprites", world="small", frames=4, height=16, width=24, keys=["video", "label", "instruction"])
    adamw = dict(optimizer=dict(name="adamw", b1=0.9, b2=0.99), rules=[[".*", dict(peak=0.01)]])
    text = [dict(target="magvid.data.text:Template", template="red disc"), dict(target="magvid.data.states:Repeated", count=2), WORDS, STATES]
    data = dict(train=dict(source=dict(clip, split="train"), transforms=text), eval=dict(source=dict(clip, split="test"), transforms=text, limit=4))
    return dict(steps=3, batch=2, objective=made, data=data, optim=dict(adapters=adamw, dqformer=adamw), ema=0.5, save_every=0, log_every=1)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "aid"
    train(config, folder, devices=jax.devices()[:1], trust=True)
    return runs.open_run(folder, trust=True)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.uint8)).save(path)
    return str(path)


def made(run, picture, out, **fields):
    options = Options(**(dict(file=[picture], instruction="a red disc", out=str(out), states="a disc|red disc") | fields))
    return [read_video(path)[0] for path in predict.predict(run, options, trust=True)]


def test_only_what_is_trained_is_in_the_checkpoint(run, config):
    assert run.groups == ["adapters", "dqformer"] and sorted(run.frozen) == ["network", "text", "vae", "vision"]
    weights = run.weights("adapters", "params")
    assert sorted(weights) == ["mcondition", "mix"] and np.abs(weights["mix"]["kernel"]).max() > 0


def test_a_picture_and_an_instruction(run, picture, tmp_path, capsys):
    (one,) = made(run, picture, tmp_path / "1.gif")
    assert one.shape == (4, 16, 24, 3) and "24x20 pixels centre-cropped and resized to 24x16" in capsys.readouterr().out
    np.testing.assert_array_equal(made(run, picture, tmp_path / "2.gif")[0], one)
    for other in (dict(instruction="blue disc"), dict(states="a|a disc"), dict(seed=1), dict(guidance=0.0), dict(image_guidance=9.0), dict(negative="blue")):
        assert np.any(made(run, picture, tmp_path / "3.gif", **other)[0] != one), other
    assert [v.shape for v in made(run, picture, tmp_path / "n.gif", number=2, frames=8, scale=2)] == [(8, 32, 48, 3)] * 2
    assert sorted(p.name for p in tmp_path.glob("n_*")) == ["n_00.gif", "n_01.gif"]


def test_a_videos_beginning(run, picture, tmp_path):
    clip = np.random.default_rng(1).integers(0, 256, (6, 16, 24, 3)).astype(np.uint8)
    write_video(tmp_path / "a.gif", clip, 10)
    shown = predict._shown(runs.ClipFormat(*CLIP), Options([str(tmp_path / "a.gif")], "a", "x.mp4", start=0.2), 1)
    np.testing.assert_array_equal(shown.rows["video"][0, 0], read_video(tmp_path / "a.gif")[0][2])
    assert made(run, str(tmp_path / "a.gif"), tmp_path / "b.webm", start=0.2)[0].shape == (4, 16, 24, 3)


def test_states_of_a_file(run, picture, tmp_path):
    file = tmp_path / "states.json"
    key = state_key(hashlib.sha256(open(picture, "rb").read()).hexdigest(), "a  red disc")
    StateFile(dict(model="m", count=2, prompt="p"), {key: Predicted("a.png", "a red disc", ("a disc", "red disc"), "model", 1)}).save(file)
    one = made(run, picture, tmp_path / "1.gif")[0]
    np.testing.assert_array_equal(made(run, picture, tmp_path / "2.gif", states=str(file))[0], one)
    with pytest.raises(UserError, match=r"has no states of .*a.png with this instruction: run tools/predict_states.py --image="):
        made(run, picture, tmp_path / "2.gif", states=str(file), instruction="blue disc")


def test_a_run_that_is_given_more_than_one_frame(run, picture, tmp_path):
    first, *others = run.config["objective"]["conditioners"]
    two = dataclasses.replace(run, config=run.config | dict(objective=run.config["objective"] | dict(conditioners=[first | dict(given=2), *others])))
    with pytest.raises(UserError, match="a.png is one frame, this run needs 2: give the beginning of a video in its place"):
        made(two, picture, tmp_path / "1.gif")
    options = Options([str(tmp_path / "a.gif")], "a", "x.mp4")
    spread = runs.ClipFormat(*CLIP, spread=True)
    with pytest.raises(UserError, match=r"trained on 4 that lie evenly over a whole video, .*: say with --fps .*; 4 over four seconds are --fps=1"):
        predict._enough(options, spread, 2)
    predict._enough(options, spread, 1)
    predict._enough(dataclasses.replace(options, fps=3.0), spread, 2)


BAD = {
    "no states": (dict(states=None), 'is told 2 predicted states .* give --states="first'),
    "one state": (dict(states="a"), "there are 1 states; give"),
    "an empty one": (dict(states="a|"), "there are 2 states, and one is empty"),
    "a file of another kind": (dict(states="{file}"), "is a file that is not named"),
    "a foreign word": (dict(states="a|green disc"), '--states: .* lacks "green"'),
    "a foreign instruction": (dict(instruction="move it"), '--instruction: .* lacks "move" and "it"'),
    "no file": (dict(file=["gone.png"]), "there is no picture or video gone.png"),
    "no states file": (dict(states="gone.json"), "there is no file .*gone.json"),
    "a folder": (dict(file=["."]), "is a folder"),
    "size": (dict(size="17x24"), "17x24 pixels: the autoencoder takes multiples of 2"),
    "adapters": (dict(adapters="gone.safetensors"), "there is no file gone.safetensors"),
    "out": (dict(out="{file}/x.mp4"), "cannot write to"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_anything_is_made(case, run, picture, tmp_path):
    changes, message = BAD[case]
    changes = {k: v.format(file=picture) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises((UserError, ValueError), match=message):
        made(run, picture, changes.pop("out", tmp_path / "out" / "x.mp4"), **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(file=[]), "one picture or video is given to go on from, and 0 are named"),
        (dict(instruction=" "), "--instruction is missing"),
        (dict(out="x.txt"), r"name it \*.mp4 or \*.webm or \*.gif"),
        (dict(out="a.mp4", file=["a.mp4"]), "which is shown"),
        (dict(start=1.0), "--start=1 skips the beginning of a video"),
        (dict(size="3"), "give height and width"),
        (dict(guidance=float("nan")), "guidance must lie between"),
        (dict(number=0), "number must lie between"),
    ],
)
def test_what_cannot_be_meant_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Options(**(dict(file=["a.png"], instruction="a", out="x.mp4") | fields))


def test_a_run_of_something_else_is_refused(run, picture, tmp_path):
    other = dataclasses.replace(run, config=run.config | dict(objective=dict(target="magvid.objectives.contrastive:Contrastive")))
    with pytest.raises(UserError, match="does not go on from a first frame as a text says"):
        made(other, picture, tmp_path / "x.mp4")


def test_a_run_without_texts_is_refused(tmp_path, picture):
    plain = tiny_pipeline.recipe(tmp_path / "plain")
    plain.config["data"]["train"]["transforms"] = []
    with pytest.raises(UserError, match="is told no text"):
        made(plain, picture, tmp_path / "x.mp4")


# Files of adapters ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(run, config, tmp_path_factory):
    """Of two runs beside the same networks."""
    folder = tmp_path_factory.mktemp("files")
    train(config | dict(seed=1), folder / "other", devices=jax.devices()[:1], trust=True)
    a, b = str(folder / "a.safetensors"), str(folder / "b.safetensors")
    assert adapter_files.export(run, a) == sum(x.size for g in run.groups for x in jax.tree.leaves(run.weights(g)))
    adapter_files.export(runs.open_run(folder / "other", trust=True), b, "params")
    return a, b


def test_saved_loaded_and_swapped(run, config, files, picture, tmp_path):
    loaded = adapter_files.load(files[0])
    for group in run.groups:
        jax.tree.map(np.testing.assert_array_equal, loaded.groups[group], run.weights(group))
    assert loaded.step == 3 and loaded.frozen["network"] == run.frozen["network"]["hash"]
    recipe = runs.Recipe(tmp_path / "aid.py", run.config)  # no run: the config and the file
    own = made(run, picture, tmp_path / "1.gif")[0]
    np.testing.assert_array_equal(made(recipe, picture, tmp_path / "2.gif", adapters=files[0])[0], own)
    other = made(run, picture, tmp_path / "3.gif", adapters=files[1])[0]
    assert np.any(other != own)


def test_combined_by_weights(run, files, picture, tmp_path, capsys):
    groups = adapter_files.combine(f"{files[0]}:3,{files[1]}").groups
    a, b = (adapter_files.load(f).groups for f in files)
    jax.tree.map(lambda x, y, z: np.testing.assert_allclose(z, 0.75 * x + 0.25 * y, atol=1e-6), a, b, groups)
    both = made(run, picture, tmp_path / "1.gif", adapters=f"{files[0]},{files[1]}")[0]
    assert both.shape == (4, 16, 24, 3)
    assert "began with other random numbers (seed=0 and 1)" in capsys.readouterr().out
    adapter_files.combine(f"{files[0]},{files[0]}")
    assert not capsys.readouterr().out


def test_other_conditions_than_in_training_are_said(run, files, picture, tmp_path, capsys):
    assert adapter_files.load(files[0]).told["given"] == 1
    made(run, picture, tmp_path / "1.gif", adapters=files[0])
    assert "were trained with" not in capsys.readouterr().out
    conditioners = [spec | (dict(grey=not spec["grey"]) if "grey" in spec else {}) for spec in run.config["objective"]["conditioners"]]
    assert conditioners != run.config["objective"]["conditioners"]
    grey = dataclasses.replace(run, config=run.config | dict(objective=run.config["objective"] | dict(conditioners=conditioners)))
    made(grey, picture, tmp_path / "2.gif", adapters=files[0])
    assert re.search(r"were trained with grey=\w+ \(here \w+\): what they make may be worse", capsys.readouterr().out)


def test_no_adapters_by_scale(run, picture, tmp_path):
    """0 is the base: what the DQFormer says is not read."""
    config = dict(run.config, objective=dict(run.config["objective"], adapters=run.config["objective"]["adapters"] | dict(scale=0.0, last="^mcondition/")))
    base = dataclasses.replace(run, config=config)
    one, two = (made(base, picture, tmp_path / "1.gif", instruction=text)[0] for text in ("red disc", "blue disc"))
    np.testing.assert_array_equal(one, two)


def test_files_of_another_network_or_kind(run, config, files, picture, tmp_path):
    other = tiny_pipeline.networks(tmp_path / "else", PARTS | dict(network=dict(target="tiny_diffusion:Network")), objective, seed=7)
    stranger = runs.Recipe(tmp_path / "aid.py", run.config | dict(objective=other))
    with pytest.raises(UserError, match='were trained with "network" at .*: they belong to another network'):
        made(stranger, picture, tmp_path / "1.gif", adapters=files[0])
    (tmp_path / "bad.safetensors").write_bytes(open(files[0], "rb").read()[:300])
    with pytest.raises(UserError, match="bad.safetensors cannot be read"):
        adapter_files.load(tmp_path / "bad.safetensors")
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="holds other weights than adapters"):
        adapter_files.load(tmp_path / "foreign.safetensors")
    for weight in ("0", "-1", "nan", "x", ""):
        with pytest.raises(UserError, match=f'the weight of .*a.safetensors is "{weight}": give a number above 0'):
            adapter_files.combine(f"{files[0]}:{weight}")
    with pytest.raises(UserError, match="a name is empty"):
        adapter_files.combine(f"{files[0]},")
    whole = dataclasses.replace(run, config=run.config | dict(objective=run.config["objective"] | dict(adapters=None)))
    with pytest.raises(UserError, match="what it trained is no addition to one"):
        adapter_files.export(whole, tmp_path / "whole.safetensors")
    with pytest.raises(UserError, match="should end in .safetensors"):
        adapter_files.export(run, tmp_path / "a.npz")
