"""Flags, configs and help; what the commands say of wrong ones is in test_main.py."""

import os
import pathlib
import shlex
import subprocess
import sys

import pytest
import tiny_runs

from magvid.__main__ import open_config
from magvid.commands import COMMANDS, overview
from magvid.flags import load_config, parse, program_help, use_huge_pages

NEEDS = {"train": "config workdir", "explain": "config", "compile": "config", "encode": "config out", "sample": "run|config", "connect": "run|config", "predict": "run|config", "export": "run out", "import": "file out"}
ROOT = pathlib.Path(__file__).parent.parent


def test_help_names_every_command_flag_and_example():
    assert all(f"magvid {name} " in overview() for name in COMMANDS)
    for program in COMMANDS.values():
        text = program_help(program)
        assert all((flag.shown if flag.kind == "files" else f"--{flag.name}") in text for flag in program.flags)
        assert all(example in text for example in program.examples)


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_in_the_help_are_right(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    for example in COMMANDS[command].examples:
        argv = shlex.split(example)
        values = parse(COMMANDS[command], argv, NEEDS.get(command, "run"))
        if getattr(values, "config", None):
            open_config(command, values.config, argv)


def test_values_and_defaults():
    values = parse(COMMANDS["sample"], ["--run=a", "--task", "FP,FI", "--fps=12.5", "--trust", "--config.any.thing=1"])
    assert (values.run, values.task, values.fps, values.trust, values.seed) == ("a", "FP,FI", 12.5, True, 0)
    config = load_config(str(tiny_runs.TINY))
    argv = ["--config=x.py", "--workdir", "w", "--config.steps=7", "--config.optim.tokenizer.rules[0][0]=a"]
    values = parse(COMMANDS["train"], argv, config=config)
    assert (values.config.steps, values.config.optim.tokenizer.rules[0][0], values.workdir) == (7, "a", "w")
    for where in ("[9][0]", "[0][7]"):
        with pytest.raises(ValueError, match=r"optim.tokenizer.rules.* has \d+ entries, \[0\] to \[\d+\], and no \[[79]\]"):
            parse(COMMANDS["train"], [*argv[:3], f"--config.optim.tokenizer.rules{where}=a"], config=config)


@pytest.mark.parametrize(
    "told, field, value",
    [
        ('sharding=[["kernel$", "fsdp"], [".*", null]]', "sharding", [["kernel$", "fsdp"], [".*", None]]),
        ("sharding=[['kernel$', 'fsdp'], ['.*', None]]", "sharding", [["kernel$", "fsdp"], [".*", None]]),
        ('mesh={"fsdp": 2, "data": -1}', "mesh", {"fsdp": 2, "data": -1}),
        ('init=[{"run": "runs/a"}]', "init", [{"run": "runs/a"}]),
        ("objective.tokenizer.quantizer=null", "objective.tokenizer.quantizer", None),
        ("remat_policy=None", "remat_policy", None),
        ("ema_groups=('tokenizer',)", "ema_groups", ("tokenizer",)),
        ("ema_groups=tokenizer", "ema_groups", ("tokenizer",)),
        ('ema_groups=["tokenizer"]', "ema_groups", ("tokenizer",)),
        ("sharding[0][1]=fsdp", "sharding", [[".*", "fsdp"]]),
        ('sharding[0][1]=[null, "fsdp"]', "sharding", [[".*", [None, "fsdp"]]]),
        ("optim.tokenizer.rules[0][1].warmup=null", "optim.tokenizer.rules", [[".*", {"peak": 1e-3, "warmup": None, "decay": "constant"}]]),
        ("optim.tokenizer.rules[0][1].warmup=7", "optim.tokenizer.rules", [[".*", {"peak": 1e-3, "warmup": 7, "decay": "constant"}]]),
        ("remat_policy=nothing_saveable", "remat_policy", "nothing_saveable"),
        ("optim.tokenizer.rules[0]=[\"a\", {}]", "optim.tokenizer.rules", [["a", {}]]),
    ],
)
def test_whole_lists_dicts_and_nothing_are_given_in_json_or_python(told, field, value):
    found = open_config("train", str(tiny_runs.TINY), ["--config=x.py", "--workdir=w", "--config.steps=7", f"--config.{told}"])
    assert found["steps"] == 7
    for part in field.split("."):
        found = found[part]
    assert found == value


@pytest.mark.parametrize(
    "told, said",
    [
        ("mesh={fsdp:2}", """--config.mesh={fsdp:2}: config.mesh takes a dict in JSON, such as '{"data": -1}'"""),
        ("sharding={}", """config.sharding takes a list in JSON, such as '[[".*", null]]'"""),
        ("mesh=3", "config.mesh takes a dict in JSON"),
        ("mesh.fsdp=2", 'mesh has no field "fsdp" (in --config.mesh.fsdp=2); it has data; give all of it by --config.mesh='),
        ("sharding={[1]: 2}", "config.sharding takes a list in JSON"),
        ("metrics=3", "config.metrics takes a list in JSON"),
        (".=3", "--config..=3: --config.FIELD=VALUE names a field"),
        ("steps=[]", '--config.steps must be a whole number, got "[]"'),
    ],
)
def test_what_is_no_list_or_dict_is_named(told, said):
    with pytest.raises(ValueError) as error:
        open_config("train", str(tiny_runs.TINY), ["--config=x.py", "--workdir=w", f"--config.{told}"])
    assert said in str(error.value)


def test_a_field_of_what_was_replaced_is_named():
    argv = ["--config=x.py", "--workdir=w", "--config.mesh.data=2", '--config.mesh={"fsdp": 2}']
    with pytest.raises(ValueError, match=r'mesh has no field "data" \(in --config.mesh.data=2\)'):
        open_config("train", str(tiny_runs.TINY), argv)
    found = open_config("train", str(tiny_runs.TINY), ["--config=x.py", "--workdir=w", '--config.mesh={"fsdp": 2}', "--config.mesh.fsdp=4"])
    assert found["mesh"] == {"fsdp": 4}


def test_help_imports_nothing_heavy(tmp_path):
    program = "import sys; from magvid.__main__ import main; main(['train', '--help'])\n"
    program += "print(sorted({'jax', 'numpy', 'flax', 'absl'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert result.stdout.splitlines()[-1] == "[]" and result.stderr == ""


def test_a_config_may_be_a_plain_dict_and_takes_its_argument():
    config = load_config(f"{tiny_runs.TINY}:masked,")
    assert config.objective.target.endswith("Masked") and load_config(str(tiny_runs.TINY)).objective.target.endswith(
        "VQGAN"
    )


@pytest.mark.parametrize("offered, again", [("always [madvise] never", True), ("[always] madvise never", False)])
def test_a_program_starts_anew_where_huge_pages_are_given_on_request(offered, again, monkeypatch):
    begun = []
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(pathlib.Path, "is_file", lambda path: True)
    monkeypatch.setattr(pathlib.Path, "read_text", lambda path: offered)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "magvid", "train"])
    monkeypatch.setattr(os, "execv", lambda program, argv: begun.append((program, argv)))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for _ in range(2):  # the second time the variable is there
        use_huge_pages()
    assert begun == [(sys.executable, [sys.executable, "-m", "magvid", "train"])] * again
    assert ("GLIBC_TUNABLES" in os.environ) == again
