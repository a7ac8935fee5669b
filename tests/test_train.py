"""The loop as a person meets it: it trains, evaluates, goes on, stops on request, and names what went wrong."""

import json
import os
import re
import shutil
import signal
import threading

import chex
import helpers_objective as helpers
import jax
import numpy as np
import pytest
import tiny_config
from flax.traverse_util import flatten_dict
from test_resume import numbers

from magvid import job, logs, train
from magvid.build import build
from magvid.checkpoints import CheckpointError, Checkpoints
from magvid.models import vgg
from magvid.types import UserError

ONE = dict(devices=jax.devices()[:1])
TOY = "helpers_objective:ToyGan"


def config(**changes):
    return helpers.config(**{"steps": 6, "save_every": 2, "log_every": 2, "eval_every": 3, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    calls = []

    def evaluate(objective, params, step):
        calls.append((step, sorted(params)))
        return {"number": step, "clips": np.zeros((1, 2, 4, 4, 3), np.uint8)}

    return workdir, train.train(config(), workdir, evaluate=evaluate, **ONE), calls


def test_it_trains_saves_logs_and_evaluates(finished):
    workdir, (state, metrics), calls = finished
    assert state.step == 6 and Checkpoints(workdir / "checkpoints").steps() == [2, 4, 6]
    assert json.loads((workdir / "config.json").read_text())["steps"] == 6
    lines = logs.read(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines if "train/loss/generator" in line] == [2, 4, 6]
    evaluated = [line for line in lines if "eval/loss/generator" in line]
    assert [(line["step"], line["eval/number"]) for line in evaluated] == [(3, 3), (6, 6)]
    assert calls == [(s, ["discriminator", "features", "generator"]) for s in (3, 6)]
    assert {"train/mse", "eval/mse", "opt/lr/generator", "opt/grad_norm/discriminator", "perf/steps_per_sec"} <= set(
        metrics
    )
    assert metrics["eval/mse"] == evaluated[-1]["eval/mse"] and list((workdir / "tb").iterdir())


def test_evaluation_is_the_mean_over_full_held_out_batches_with_averaged_weights(finished):
    _, (state, metrics), _ = finished
    averaged = {g: {**state.params[g]} for g in state.params}
    averaged["generator"] = state.ema["generator"]
    objective, clips = helpers.ToyGan(noise=0.1), helpers.Clips(20)
    values = []
    for i in range(2):  # 20 clips are two batches of 8 and a rest
        batch = {"video": np.stack([clips[i * 8 + k]["video"] for k in range(8)])}
        key = jax.random.fold_in(jax.random.key(0), i)
        values.append(objective.loss(averaged, state.extra, batch, key, state.step, train=False)[1][0]["mse"])
    np.testing.assert_allclose(metrics["eval/mse"], np.mean(values), rtol=1e-5)


def test_going_on_with_more_steps_equals_one_run(finished, tmp_path):
    train.train(config(total=20, steps=4), tmp_path / "a", **ONE)
    a, _ = train.train(config(total=20, log_every=1, keep=1), tmp_path / "a", **ONE)
    b, _ = train.train(config(total=20), tmp_path / "b", **ONE)
    for item in ("params", "ema", "opt", "extra"):
        chex.assert_trees_all_equal(*(jax.device_get(getattr(s, item)) for s in (a, b)))
    steps = [line["step"] for line in logs.read(tmp_path / "a/metrics.jsonl") if "train/mse" in line]
    assert steps == [2, 4, 5, 6]


def test_a_finished_run_is_not_trained_again(finished):
    workdir, (state, _), _ = finished
    before = (workdir / "metrics.jsonl").read_text()
    again, metrics = train.train(config(), workdir, **ONE)
    chex.assert_trees_all_equal(jax.device_get(state.params), jax.device_get(again.params))
    assert metrics == {} and (workdir / "metrics.jsonl").read_text() == before


def test_a_log_is_not_overwritten_where_its_checkpoints_are_gone(finished, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path / "run")
    log = (tmp_path / "run/metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "run/checkpoints")
    train.train(config(steps=3), tmp_path / "run", **ONE)
    assert (tmp_path / "run/metrics-until-6.jsonl").read_bytes() == log
    assert logs.read(tmp_path / "run/metrics.jsonl")[-1]["step"] == 3
    assert f"metrics.jsonl goes to step 6, but {tmp_path}/run/checkpoints holds no checkpoint: beginning anew" in capsys.readouterr().out


def test_another_config_is_refused_by_name(finished):
    workdir = finished[0]
    changed = config(batch=4, seed=1, objective=dict(target=TOY, noise=0.2))
    with pytest.raises(UserError, match=r"batch \(8 -> 4\), objective.noise \(0.1 -> 0.2\), seed \(0 -> 1\)"):
        train.train(changed, workdir, **ONE)


def test_a_folder_with_a_damaged_config_is_named(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run/config.json").write_text("{")
    with pytest.raises(UserError, match="run/config.json is not valid JSON"):
        train.train(config(), tmp_path / "run", **ONE)


def test_nan_stops_with_its_name_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(
        train.Diverged, match=r'step 4: not finite: loss "generator", gradient .*the last checkpoint is step 2'
    ):
        train.train(config(objective=dict(target=TOY, nan_at=3)), tmp_path, **ONE)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.steps() == [2]
    assert np.isfinite(checkpoints.group(2, "params", "generator")["enter"]["kernel"]).all()


def test_a_trace_of_some_steps_is_written(tmp_path, capsys):
    train.train(config(steps=4), tmp_path, profile=(2, 3), **ONE)
    assert list((tmp_path / "profile").rglob("*.xplane.pb")) and "trace of the steps 2 to 3" in capsys.readouterr().out
    with pytest.raises(UserError, match="--profile=3-9: this run makes the steps 1 to 6"):
        train.train(config(steps=6), tmp_path, profile=(3, 9), **ONE)


def test_the_command_of_a_run_that_was_interrupted_can_be_given_again(tmp_path, capsys):
    """Although the steps whose trace it asks for are past."""
    train.train(config(steps=4), tmp_path, profile=(2, 3), **ONE)
    capsys.readouterr()
    reached, _ = train.train(config(steps=6), tmp_path, profile=(2, 3), **ONE)
    assert int(reached.step) == 6 and "--profile=2-3: this run is at step 4 already, and no trace is written" in capsys.readouterr().out


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_leave(tmp_path, capsys, number, code):
    def evaluate(objective, params, step):
        os.kill(os.getpid(), number)
        return {}

    before = signal.getsignal(number)
    with pytest.raises(train.Interrupted) as stop:
        train.train(config(eval_every=1, save_every=0), tmp_path, evaluate=evaluate, **ONE)
    assert stop.value.code == code and signal.getsignal(number) is before
    assert "stopped at step 1 of 6 and saved" in capsys.readouterr().out
    assert Checkpoints(tmp_path / "checkpoints").steps() == [1]


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    def evaluate(objective, params, step):
        if step == 1:
            with pytest.raises(UserError, match=rf"being trained by another process \(process {os.getpid()} on"):
                train.train(config(), tmp_path, **ONE)
        return {}

    train.train(config(eval_every=1), tmp_path, evaluate=evaluate, **ONE)
    train.train(config(steps=7), tmp_path, **ONE)  # the first has let go of it


def test_a_finished_run_says_so(tmp_path, capsys):
    train.train(config(), tmp_path, **ONE)
    train.train(config(), tmp_path, **ONE)
    assert "this run is at step 6 already" in capsys.readouterr().out


def test_second_interrupt_stops_at_once(tmp_path, monkeypatch):
    def held_out(self):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        yield

    monkeypatch.setattr(job.Job, "held_out", held_out)
    with pytest.raises(KeyboardInterrupt):
        train.train(config(eval_every=1), tmp_path, **ONE)
    assert Checkpoints(tmp_path / "checkpoints").steps() == []


def test_asked_to_stop_in_an_evaluation_it_leaves_and_makes_up_for_it(tmp_path, monkeypatch, capsys):
    train.train(config(), tmp_path / "whole", **ONE)
    batches, read = job.Job.held_out, []

    def stops(self):
        for batch in batches(self):
            os.kill(os.getpid(), signal.SIGTERM)
            yield read.append(0) or batch

    with monkeypatch.context() as patch, pytest.raises(train.Interrupted):
        patch.setattr(job.Job, "held_out", stops)
        train.train(config(), tmp_path / "stopped", **ONE)
    assert len(read) == 1 and Checkpoints(tmp_path / "stopped/checkpoints").steps() == [2, 3]
    train.train(config(), tmp_path / "stopped", **ONE)
    assert numbers(tmp_path / "stopped") == numbers(tmp_path / "whole")


def test_asked_to_stop_while_videos_are_made_it_leaves_at_once(tmp_path):
    """What waits for a device notices no signal."""
    begun, over, ended = threading.Event(), threading.Event(), []

    def evaluate(objective, params, step):
        begun.set()
        over.wait(600)
        ended.append(step)
        return {"late": 1.0}

    def ask():
        begun.wait()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(train.Interrupted):
        train.train(config(eval_every=2), tmp_path, evaluate=evaluate, **ONE)
    assert not ended and Checkpoints(tmp_path / "checkpoints").steps() == [2]
    over.set()
    train.train(config(eval_every=2), tmp_path, evaluate=lambda *a: {"late": float(a[2])}, **ONE)
    found = {line["step"]: line["eval/late"] for line in logs.read(tmp_path / "metrics.jsonl") if "eval/late" in line}
    assert found == {2: 2.0, 4: 4.0, 6: 6.0}  # that of the second step is made up for


def test_what_an_evaluation_raises_is_raised(tmp_path):
    def evaluate(objective, params, step):
        raise UserError("no such clip")

    with pytest.raises(UserError, match="no such clip"):
        train.train(config(eval_every=2), tmp_path, evaluate=evaluate, **ONE)


def test_a_failed_save_does_not_stop_training(tmp_path, capsys):
    folder = tmp_path / "checkpoints"

    def evaluate(objective, params, step):
        if step == 1:
            folder.rename(tmp_path / "away")
            folder.write_text("in the way")
        elif step == 3:
            folder.unlink()
            (tmp_path / "away").rename(folder)
        return {}

    state, _ = train.train(config(eval_every=1, steps=4), tmp_path, evaluate=evaluate, **ONE)
    assert state.step == 4 and Checkpoints(folder).steps() == [4]
    out = capsys.readouterr().out
    assert f"could not be written to {folder}" in out and "Training goes on" in out


def test_a_save_that_failed_in_the_background_is_tried_again_before_it_leaves(tmp_path, monkeypatch, capsys):
    """Asked to stop at the step whose save has been begun, and fails."""
    save, wait, asked, failed = Checkpoints.save, Checkpoints.wait, [], []

    def saves(self, step, *rest):
        save(self, step, *rest)
        if not asked:
            asked.append(step)
            os.kill(os.getpid(), signal.SIGTERM)

    def waits(self):
        wait(self)
        if asked and not failed:
            failed.append(asked[0])
            shutil.rmtree(self.folder / str(asked[0]))
            self._begin_again()
            raise CheckpointError("the last checkpoint could not be written.")

    monkeypatch.setattr(Checkpoints, "save", saves)
    monkeypatch.setattr(Checkpoints, "wait", waits)
    with pytest.raises(train.Interrupted):
        train.train(config(), tmp_path, **ONE)
    assert failed == [2] and Checkpoints(tmp_path / "checkpoints").steps() == [2]
    assert "could not be written. It is tried once more." in capsys.readouterr().out


def test_some_steps_are_kept_for_good(tmp_path):
    fields = dict(save_every=1, keep=2, eval_every=0)
    train.train(config(steps=7, keep_every=3, **fields), tmp_path, **ONE)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [3, 6, 7]
    train.train(config(steps=9, keep_every=0, **fields), tmp_path, **ONE)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [8, 9]
    with pytest.raises(UserError, match="config.keep_every is 3: a multiple of save_every, which is 2"):
        train.train(config(keep_every=3, save_every=2), tmp_path, **ONE)


def test_groups_and_fields_that_do_not_fit_are_named(tmp_path):
    optim = config()["optim"]
    for changes, message in [
        (dict(optim={k: optim[k] for k in ("generator", "features")}), 'group "discriminator" has neither'),
        (dict(optim=optim | {"encoder": optim["features"]}), r"optim names \['encoder'\]"),
        (dict(optim={}), r"trains nothing \(config.optim is empty\): a public model is trained with tune=lora"),
        (dict(ema_groups=["encoder"]), r"ema_groups names \['encoder'\]"),
        (dict(lerning_rate=1), "no field lerning_rate"),
        (dict(save_evry=1), "did you mean save_every"),
        (dict(batch=6, mesh={"data": 8}), "use a multiple of 8"),
        (dict(mesh={"date": -1}), 'config.mesh has an axis "date", over which nothing is spread, did you mean data'),
        (dict(sharding=[(".*", ["modle", None])]), 'config.sharding names a mesh axis "modle", which there is not, did you mean model'),
        (dict(sharding=[[".*"]]), re.escape('config.sharding[0] is [".*"]: give [regex, axes], such as ["kernel", [null, "model"]]')),
        (dict(sharding=[["(", None]]), re.escape('config.sharding[0] is ["(", null]: its first part is no regular expression')),
        (dict(sharding=[[".*", None], [".*", "fsdq"]]), re.escape('config.sharding[1] is [".*", "fsdq"]: its second part is a list of mesh axes (or null)')),
        (dict(mesh={"data": 1.0}), re.escape('config.mesh is {"data": 1.0}: data is to be a whole number of devices, or -1')),
        (dict(mesh={"data": True}), "data is to be a whole number of devices, or -1"),
        (dict(mesh={"data": "2"}), "data is to be a whole number of devices, or -1"),
        (dict(activations={"tokens": ["data", "sek", None]}), 'config.activations names a mesh axis "sek", which there is not, did you mean seq'),
        (dict(data=config()["data"] | dict(eval=config()["data"]["eval"] | dict(batch=6)), mesh={"data": 8}), "config.data.eval.batch is 6, .* use a multiple of 8"),
        (dict(objective=dict(target=TOY, nosie=0.1)), "ToyGan.*nosie"),
        (dict(data=dict(train=dict(source=dict(target="helpers_objective:Clips", siez=1)))), "Clips.*siez"),
    ]:
        with pytest.raises((UserError, ValueError), match=message):
            train.train(config(**changes), tmp_path / "new", **({} if "mesh" in changes else ONE))
    assert list(tmp_path.iterdir()) == []  # nothing was begun
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to .*file"):
        train.train(config(), tmp_path / "file", **ONE)


def test_a_metric_that_stays_low_is_said_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "ALARM", 2)
    monkeypatch.setattr(helpers.ToyGan, "alarms", {"mse": (1e9, "do this")}, raising=False)
    train.train(config(log_every=1), tmp_path, **ONE)
    said = [line for line in capsys.readouterr().out.splitlines() if "stays below" in line]
    assert len(said) == 1 and said[0].startswith("step 2: mse stays below 1e+09") and said[0].endswith("do this")


def test_a_gan_trains_resumes_and_reads_its_perceptual_weights_from_a_file(tmp_path, monkeypatch):
    """3D discriminator, LeCam, a narrow perceptual network of random weights, dead codes restarted: 4 steps = 2 and 2."""
    monkeypatch.setattr(vgg, "STAGES", [(4, convolutions) for _, convolutions in vgg.STAGES])
    norm = dict(factory="magvid.models.layers:Identity")
    perceptual = dict(target="magvid.models.vgg:VGG16")
    shapes = jax.eval_shape(build(perceptual).init, jax.random.key(0), np.zeros((1, 8, 16, 16, 3), np.float32))
    rng, names = np.random.default_rng(0), flatten_dict(shapes["params"], sep="/")
    arrays = {n: 0.05 * rng.standard_normal(x.shape, np.float32) for n, x in names.items()}
    np.savez(tmp_path / "vgg.npz", **arrays)

    def gan(steps):
        c = tiny_config.get_config("tokenizer")
        discriminator = dict(
            target="magvid.models.discriminator:Discriminator", filters=4, multipliers=(1, 2), norm=norm
        )
        c["objective"] |= dict(discriminator=discriminator, lecam_weight=0.1, restart=True)
        c["objective"]["perceptual"] = dict(perceptual, weights_file=str(tmp_path / "vgg.npz"))
        rule = dict(optimizer=dict(name="adamw", b1=0.0, b2=0.99), rules=[[".*", dict(peak=1e-3, decay="constant")]])
        c["optim"] = dict(tokenizer=rule, discriminator=rule)
        return c | dict(steps=steps, batch=2, save_every=2, ema=0.999, ema_groups=("tokenizer",), metrics=[])

    whole, _ = train.train(gan(4), tmp_path / "whole", **ONE)
    train.train(gan(2), tmp_path / "parts", **ONE)
    parts, newest = train.train(gan(4), tmp_path / "parts", **ONE)
    jax.tree.map(np.testing.assert_array_equal, whole.params, parts.params)
    jax.tree.map(np.testing.assert_array_equal, whole.extra, parts.extra)
    assert set(whole.ema) == {"tokenizer"} and set(whole.frozen) == {"perceptual"}
    assert abs(whole.extra["lecam"]).min() > 0 and newest["train/perceptual"] > 0
    np.testing.assert_array_equal(whole.frozen["perceptual"]["conv1_1"]["conv"]["bias"], arrays["conv1_1/conv/bias"])
    np.savez(tmp_path / "vgg.npz", **{n: a + 1 for n, a in arrays.items()})
    with pytest.raises(UserError, match='"perceptual" of .*vgg.npz at'):
        train.train(gan(6), tmp_path / "parts", **ONE)
