import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import tiny_runs

import magvid
from magvid import evaluate, runs
from magvid.__main__ import main, open_config
from magvid.commands import COMMANDS, overview
from magvid.flags import program_help

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Names that the commands below may use."""
    there = tmp_path_factory.mktemp("places")
    (there / "empty").mkdir()
    (there / "foreign").mkdir()
    (there / "foreign" / "config.json").write_text("{}")
    (there / "broken").mkdir()
    (there / "broken" / "config.json").write_text("{")
    (there / "file").touch()
    (there / "syntax.py").write_text("def get_config(:\n")
    (there / "other.py").write_text("x = 1\n")
    return dict(there=there, run=tiny_runs.masked_run(), vq=tiny_runs.tokenizer_run(), tiny=tiny_runs.TINY, root=ROOT)


BAD = {
    "": "give a command, one of train, explain, compile, encode, sample, connect, predict, compose, edit, export, import, evaluate",
    "frobnicate": 'no command "frobnicate"; choose of train, explain, compile, encode, sample, connect, predict, compose, edit, export, import, evaluate',
    "tran": "did you mean train?",
    "train": "--config is missing",
    "train --config={tiny}": "--workdir is missing",
    "train --config={there}/syntx.py --workdir={there}/new": "did you mean {there}/syntax.py?",
    "train --config={there}/syntax.py --workdir={there}/new": "syntax.py line 1 is not Python",
    "train --config={there}/other.py --workdir={there}/new": "has no function get_config",
    "train --config={there}/file --workdir={there}/new": "is not a config",
    "train --config={tiny}:nonsense --workdir={there}/new": 'got "nonsense"',
    "train --config={tiny} --workdir={there}/new --config.stepz=3": 'no field "stepz" (in --config.stepz=3)',
    "train --config={tiny} --workdir={there}/new --config.stepz=4": "did you mean steps?",
    "train --config={tiny} --workdir={there}/new --config.data.train.source.splt=x": "did you mean data.train.source",
    "train --config={tiny} --workdir={there}/new --config.steps=abc": '--config.steps must be a whole number, got "abc"',
    "train --config={tiny} --workdir={there}/new --config.metrics=1": "--config.metrics=1: config.metrics takes a list in JSON",
    "train --config={tiny} --workdir={there}/new --stepz=3": "there is no flag --stepz",
    "train --config={tiny} --workdir={there}/new --profile=now": "--profile=now: give the first step and the last, such as 20-24",
    "train --config={tiny} --workdir={there}/new --profile=9-3": "--profile=9-3: the first step comes after the last",
    "train --config={tiny} --workdir={there}/new --config.mesh=null": "config.mesh is null: give a dict",
    "train --config={tiny} --workdir={there}/new --config.init=null": "config.init is null: give a list",
    "train --config={tiny} --workdir={there}/new --config.objective=null": "config.objective is null: give a dict",
    "compile --config={tiny} --topology=cpu:1 --effort=7": "--effort=7: a number from -1 to 1",
    "train --config={tiny} --workdir={there}/new --coordinator=here:1": "--processes, --process missing: several processes are named by",
    "train --config={tiny} --workdir={there}/new --coordinator=here --processes=2 --process=0": "--coordinator=here: HOST:PORT",
    "train --config={tiny} --workdir={there}/new --coordinator=here:1 --processes=2 --process=2": "--process=2: one of 0 to 1",
    "train --config={tiny} --workdir={there}/new --distributed --process=2": "--distributed finds the processes by itself: leave out --process",
    "train --config={tiny} --workdir={there}/file/new": "cannot write to {there}/file/new",
    "train --config={tiny} --workdir={vq} --config.batch=16": "was trained with another batch (8 -> 16)",
    "train --config={tiny}:masked,{there}/gone --workdir={there}/new": "there is no folder {there}/gone",
    "train --config={tiny} --workdir={there}/new --config.keep=0": "config.keep is 0: give a whole number of at least 1",
    "train --config={tiny} --workdir={there}/new --config.batch=0": "config.batch is 0: give a whole number",
    "train --config={tiny} --workdir={there}/new --config.log_every=0": "config.log_every is 0",
    "train --config={tiny} --workdir={there}/new --config.ema=2": "config.ema is 2.0: give a decay",
    "train --config={tiny} --workdir={there}/new --config.dtype=float17": 'config.dtype is "float17": use float32',
    "train --config={tiny} --workdir={there}/new --config.objective.tokenizer.encoder.filters=0": "filters=0",
    "train --config={tiny} --workdir={there}/new --config.objective.tokenizer.quantizer.size=-4": "size=-4",
    "train --config={tiny} --workdir={there}/new --config.optim.tokenizer.rules[0][1].peak=nan": "rules[0][1].peak is nan",
    "train --config={tiny}:masked,{vq} --workdir={there}/new --config.data.train.cache={there}/empty": "no tokens in {there}",
    "train --config={tiny} --workdir={there}/new --config.data.train.cache={there}/empty": "VQGAN learns from videos",
    "encode --config={tiny}:masked,{vq}": "--out is missing",
    "encode --config={tiny} --out={there}/new": "VQGAN learns from videos: there is nothing to keep",
    "encode --config={tiny}:masked --out={there}/new": "tokens can be kept where the tokenizer is frozen",
    "encode --config={tiny}:masked,{vq} --out={there}/file": "cannot write to {there}/file",
    "encode --config={tiny}:masked,{vq} --out={there}/new --rows=0": "--rows=0: 0 is not a positive integer",
    "encode --config={tiny}:masked,{vq} --out={there}/new --split=test": '--split="test" is unknown: use train or eval',
    "sample": "--run or --config is missing",
    "sample --run={run} --config={tiny}": "--run or --config is one too many",
    "sample --config={root}/configs/svd.py --number=1": "give --prompt, --image or --video",
    "sample --config={root}/configs/svd.py --image=a.png": "public weights: convert them, docs/diffusion.md",
    "sample --config={root}/configs/svd.py:tune=some --image=a.png": 'tune="some" is unknown',
    "sample --run={run} --prompt=x": "is told no text; leave it out",
    "sample --run={run} --image=a.png --video=b.mp4": "both say what is shown",
    "sample --run={run} --stpes=3": "there is no flag --stpes, did you mean --steps?",
    "sample --run={run} --intermediates=maybe": '--intermediates must be true or false, got "maybe"',
    "sample --run={run} --number=abc": '--number must be a whole number, got "abc"',
    "sample --run={run} --number=0": "--number=0: 0 is not a positive integer",
    "sample --run={run} extra": 'unexpected argument "extra"',
    "sample --run={run}s": "did you mean {run}?",
    "sample --run={there}/empty": "is not a run folder",
    "sample --run={there}/broken": "is not valid JSON",
    "sample --run={there}/foreign": "does not hold a run of `magvid train`: the config lacks steps",
    "sample --run={run} --task=XX": 'there is no task "XX"',
    "sample --run={run} --task=FP8": "needs a clip of more frames, got 8",
    "sample --run={run} --label=99": "class 99 is out of range: there are 18 classes",
    "sample --run={run} --index=2000000": "the evaluation data has 1048576",
    "sample --run={run} --config.objective.decodin.steps=4": "did you mean objective.decoding?",
    "sample --run={run} --config.objective.transformer.width=32": "are of another model than its config",
    "sample --run={run} --weights=avg": 'weights="avg" is unknown',
    "sample --run={run} --out={there}/file": "cannot write to {there}/file",
    "sample --run={run} --schedule=cosin": 'there is no mask schedule "cosin"; choose of cosine, uniform, power',
    "sample --run={run} --guidance=nan": "--guidance must lie between 0 and 1000",
    "sample --run={run} --guidance=-1": "--guidance=-1",
    "sample --run={run} --frames=0": "--frames=0: 0 is not a positive integer",
    "sample --run={run} --overlap=2": "--overlap is of the windows of a long video: say its length with --frames",
    "sample --run={run} --task=FI --frames=20": "task FI makes clips of one length",
    "sample --run={run} --task=FP --frames=20 --overlap=8": "windows of 8 frames can overlap by 1 to 7",
    "sample --run={run} --task=FP --intermediates --frames=20": "leave out --frames",
    "sample --run={run} --size=8x8": "give one with --video",
    "sample --run={vq} --intermediates": "a tokenizer reconstructs at once, without decoding steps",
    "sample --run={vq} --guidance=2": "which only reconstructs",
    "train --config={tiny}:masked, --workdir={there}/new --config.objective.transformer.dropout=2": "dropout=2.0",
    "connect a.mp4 b.mp4 --run={run}": "--out is missing: say where to write",
    "connect a.mp4 --run={run} --out=x.mp4": "there are two or more clips to join, and 1 is given",
    "connect a.mp4 b.mp4 --run={run} --out=x.avi": "--out=x.avi: name it *.mp4 or *.webm or *.gif",
    "connect --out=x.mp4 {there}/a.mp4 {there}/b.mp4 --run={run}": "there is no video {there}/a.mp4",
    "connect a.mp4 b.mp4 --run={run} --config.seed 3 --out=x.mp4": "--config.seed: beside files a field is written --config.FIELD=VALUE",
    "connect a.mp4 b.mp4 --out=x.mp4": "--run or --config is missing",
    "connect a.mp4 b.mp4 --run={run} --out=x.mp4 --refin=6,6": "there is no flag --refin, did you mean --refine?",
    "predict --run={run} --instruction=a --out=x.mp4": "one picture or video is given to go on from, and 0 are named",
    "predict a.png b.png --run={run} --instruction=a --out=x.mp4": "and 2 are named",
    "predict a.png --run={run} --out=x.mp4": '--instruction is missing: say what shall happen',
    "predict a.png --run={run} --instruction=a": "--out is missing: say where to write",
    "predict a.png --run={run} --instruction=a --out=x.mp4": "there is no picture or video a.png",
    "predict {there}/file --run={run} --instruction=a --out=x.mp4": "{run} does not go on from a first frame as a text says",
    "predict a.png --instruction=a --out=x.mp4": "--run or --config is missing",
    "compose --prompt=a --run={run} --out=x.mp4": "--entity is missing: give a picture of what shall be shown",
    "compose --entity=a.png --run={run} --out=x.mp4": "--prompt is missing: say what shall be seen",
    "compose --entity=a.png --prompt=a --run={run}": "--out is missing: say where to write",
    "compose --entity=a.png --prompt=a --run={run} --out=a.png": "--out=a.png: name it *.mp4",
    "compose --entity=a.png --prompt=a --run={run} --out=x.mp4": "{run} is not told of an entity in pictures and words",
    "compose --entity a.png b.png --prompt=a --run={run} --out=x.mp4": 'unexpected argument "b.png": flags are written --name=value; each entity is given as --entity=FILE[,MASK]',
    "compose b.png --entity=a.png --prompt=a --run={run} --out=x.mp4 --config.objective.sampling.steps 3": 'unexpected argument "b.png"',
    "compose --entity --prompt=a --run={run} --out=x.mp4": "--entity needs a value: --entity=FILE[,MASK]; `magvid compose --help` lists the flags",
    "train --config --workdir={there}/new": "--config needs a value: --config=FILE.py[:ARG]",
    "compose --entity=a.png --prompt=a --run={run} --out=x.mp4 --steps=2000": "--steps must lie between 1 and 1000, got 2000",
    "edit --mask=m.png --prompt=a --run={run} --out=x.mp4": "one video is edited, and 0 are named",
    "edit a.mp4 --prompt=a --run={run} --out=x.mp4": "--mask is missing: say what is made anew",
    "edit a.mp4 --mask=m.png --run={run} --out=x.mp4": "--prompt is missing: say what shall be seen",
    "edit a.mp4 --mask=m.png --prompt=a --run={run} --out=a.mp4": "--out=a.mp4 is a.mp4, which is shown: name another file",
    "edit a.mp4 --mask=m.png --prompt=a --run={run} --out=x.mp4": "{run} is not told of an entity in pictures and words",
    "export --run={run} --out={there}/a.npz": "should end in .safetensors",
    "export --run={run}": "--out is missing",
    "evaluate --run={run} --clips=-1": "-1 is not a positive integer",
    "evaluate --run={run} --tasks=FP,QQ": 'there is no task "QQ"',
    "evaluate --run={run} --out={there}/file/x.json": "cannot write to {there}/file",
    "evaluate --run={run} --out={there}/a.mp4": "--out={there}/a.mp4: numbers are written, name it *.json",
    "evaluate --run={run} --out={there}": "--out={there} is a folder: name a file in it",
    "evaluate --run={run} --data={there}/lost.py": "there is no config {there}/lost.py",
    "evaluate --run={run} --data={root}/configs/sd.py": "--data: that config has no data.eval, and so no held-out clips",
}


@pytest.mark.parametrize("command", BAD)
def test_bad_input_is_one_line_and_code_2(command, places, capsys):
    code = main([part.format(**places) for part in command.split()])
    err = capsys.readouterr().err
    assert code == 2 and BAD[command].format(**places) in err
    assert err.count("\n") == 1 and err.startswith("magvid") and "Traceback" not in err


def test_help_and_version(capsys):
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"magvid {magvid.__version__}\n"
    assert main(["--help"]) == 0 and capsys.readouterr().out == f"{overview()}\n"
    for name in COMMANDS:
        assert main([name, "--help"]) == 0 and capsys.readouterr().out == f"{program_help(COMMANDS[name])}\n"


@pytest.mark.full
@pytest.mark.parametrize(
    "command", ["--workdir={vq} --config.batch=16", "--workdir={there}/new --config.optim.tokenizer.rules[0][0]=x"]
)
def test_a_process_says_one_line_and_no_more(command, places):
    """Nothing that a library logs when the process ends comes after the line."""
    command = ["train", f"--config={tiny_runs.TINY}", *command.format(**places).split()]
    result = subprocess.run([sys.executable, "-m", "magvid", *command], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and result.stdout == ""


def test_train_from_another_folder_with_overrides(tmp_path, monkeypatch, capsys):
    """The path of the config is relative to the current folder; its own folder's parent is importable."""
    (tmp_path / "work" / "mine").mkdir(parents=True)
    (tmp_path / "work" / "mine" / "sizes.py").write_text("STEPS = 7\n")
    text = (
        f"from mine import sizes\nimport sys\nsys.path.insert(0, {str(tiny_runs.TINY.parent)!r})\nimport tiny_config\n"
    )
    text += "def get_config(arg='tokenizer'):\n    return {**tiny_config.get_config(arg), 'steps': sizes.STEPS}\n"
    (tmp_path / "work" / "mine" / "run.py").write_text(text)
    monkeypatch.chdir(tmp_path / "work")
    assert (
        main(
            [
                "train",
                "--config=mine/run.py",
                "--workdir",
                "out",
                "--config.steps",
                "1",
                "--config.ema=0.5",
                "--config.data.train.source.split=test",
            ]
        )
        == 0
    )
    config = runs.open_run("out").config
    assert config["steps"] == 1 and config["ema"] == 0.5 and config["data"]["train"]["source"]["split"] == "test"
    assert "trained: out" in capsys.readouterr().out


def test_a_field_without_a_value_may_be_given_one():
    argv = ["--config.compile_cache=a", "--config.data.train.cache=b"]
    config = open_config("train", str(tiny_runs.TINY), argv)
    assert (config["compile_cache"], config["data"]["train"]["cache"], config["data"]["eval"]["cache"]) == ("a", "b", None)


def raising(error):
    def raise_it(*args, **kwargs):
        raise error

    return raise_it


def test_ctrl_c_ends_with_130(monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "evaluate_run", raising(KeyboardInterrupt()))
    assert main(["evaluate", f"--run={tiny_runs.tokenizer_run()}"]) == 130
    assert capsys.readouterr().err == "magvid evaluate: interrupted\n"


@pytest.mark.full
@pytest.mark.parametrize("seconds", [1.0, 2.5, 4.0, 6.0])
def test_ctrl_c_at_any_moment_ends_with_130(seconds):
    """Also while XLA compiles, in whose threads the interpreter's own way out ends with a segmentation fault."""
    command = [sys.executable, "-m", "magvid", "evaluate", f"--run={tiny_runs.masked_run()}", "--clips=100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130 and process.stderr.read().endswith("magvid evaluate: interrupted\n")


@pytest.mark.full
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_while_xla_compiles_training_leaves_with_its_own_code(tmp_path, number, code):
    """The thread that compiles is still at it."""
    script = (
        "import os, jax, magvid.__main__ as m; compile = jax.stages.Lowered.compile; "
        f"jax.stages.Lowered.compile = lambda *a: [os.kill(os.getpid(), {int(number)}), compile(*a)][1]; m.console()"
    )
    command = [sys.executable, "-c", script, "train", "--config=configs/vq3d_sprites.py:budget=quick", f"--workdir={tmp_path}"]
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, env=environment)
    assert done.returncode == code and "stopped before the first step" in done.stdout and not done.stderr.count("Traceback"), done.stderr


def test_a_fault_names_its_type_and_debug_shows_where(monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "evaluate_run", raising(RuntimeError("a\nb")))
    command = ["evaluate", f"--run={tiny_runs.tokenizer_run()}"]
    assert main(command) == 1
    assert capsys.readouterr().err == "magvid evaluate: RuntimeError: a b (run again with --debug for the traceback)\n"
    assert main([*command, "--debug"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("magvid evaluate: RuntimeError: a b\n")


def test_debug_shows_where_bad_input_was_found(capsys):
    assert main(["sample", "--run=nowhere", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
