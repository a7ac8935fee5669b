"""What README and docs show works: the library example, the commands, and the files that they name."""

import pathlib
import re
import shlex

import pytest
import tiny_runs
from test_flags import NEEDS

from magvid.__main__ import open_config
from magvid.commands import COMMANDS
from magvid.flags import parse
from magvid.job import DEFAULTS, REQUIRED
from magvid.video import read_video

ROOT = pathlib.Path(__file__).parent.parent
NAMES = ("README.md", *(f"docs/{name}.md" for name in ("magvit", "diffusion", "mavin", "aid", "magdiff", "metrics", "scale")))
README, *PAGES = ((ROOT / name).read_text() for name in NAMES)
PUBLISHED = "".join(PAGES)
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README + PUBLISHED, re.M | re.S)
SHELL = [line for kind, text in BLOCKS if kind == "bash" for line in text.replace("\\\n", "").splitlines()]
MAGVID = [line for line in SHELL if line.startswith("magvid ")]


def test_the_library_example_writes_videos(tmp_path, monkeypatch):
    (example,) = (text for kind, text in BLOCKS if kind == "python")
    (shown,) = re.findall(r'open_run\("(.*?)"\)', example)
    monkeypatch.chdir(tmp_path)
    exec(compile(example.replace(shown, str(tiny_runs.masked_run())), "README.md", "exec"), {})
    written = sorted(tmp_path.glob("*.mp4"))
    assert len(written) == 8 and all(read_video(path)[0].shape == (8, 16, 16, 3) for path in written)


@pytest.mark.parametrize("name", ["main", "test"])
def test_a_block_to_run_stands_right_under_its_comment(name):
    assert len(re.findall(rf"^<!-- run: {name} -->\n```bash\n[^`]+^```$", README, re.M)) == 1


def test_there_are_commands_of_each_kind():
    assert {line.split()[1] for line in MAGVID} == set(COMMANDS)


@pytest.mark.parametrize("line", MAGVID)
def test_a_command_names_flags_configs_and_fields_that_exist(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, command, *argv = shlex.split(line, comments=True)
    values = parse(COMMANDS[command], argv, NEEDS.get(command, "run"))
    if getattr(values, "config", None):
        open_config(command, values.config, argv)


@pytest.mark.parametrize("page", [*NAMES, "docs/design.md", "benchmarks/README.md"])
def test_links_lead_to_files(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text())
    assert not [link for link in links if not ((ROOT / page).parent / link).exists()]


def test_fields_of_mavin_in_the_text_exist():
    """Whole ones, also inside of a sentence."""
    named = re.findall(r"`(--config\.[^`]*=[^`]*)`", (ROOT / "docs/mavin.md").read_text())
    assert len(named) >= 4
    for argv in named:
        tune = ":tune=lora" if "network.run" in argv else ""
        open_config("train", f"{ROOT}/configs/mavin_horse.py{tune}", [argv])


def test_fields_of_aid_in_the_text_exist():
    """Those that change a run, and so stand beside no config."""
    named = re.findall(r"(--config\.\S*=\S*)", (ROOT / "docs/aid.md").read_text() + COMMANDS["predict"].field)
    assert len([argv for argv in named if "FIELD" not in argv]) >= 2
    for argv in named:
        if "FIELD" not in argv:
            open_config("predict", f"{ROOT}/configs/aid_bridge.py", [argv])


def test_fields_and_files_in_the_text_exist():
    fields = re.findall(r"`--config\.(\w+)", README + PUBLISHED)
    assert fields and set(fields) <= {*REQUIRED, *DEFAULTS}
    words = [word.removeprefix("--config=") for line in SHELL for word in line.split()]
    scripts = [word for word in words if word.endswith(".py")]
    paths = re.findall(r"`((?:magvid|configs|docs|experiments|benchmarks|tests)/[\w/.]*)`", README + PUBLISHED)
    assert scripts and paths and not [p for p in {*scripts, *paths} if not (ROOT / p).exists()]
