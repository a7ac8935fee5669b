"""The main job as a person starts it, in its smallest form."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.full
def test_the_main_job_writes_its_report_and_goes_on(tmp_path):
    command = [sys.executable, str(ROOT / "experiments" / "magvit_sprites.py"), "--smoke", "--clips=4"]
    for _ in range(2):  # the second call finds everything done and writes the same numbers
        subprocess.run([*command, f"--workdir={tmp_path}"], cwd=tmp_path, check=True, timeout=600)
        result = json.loads((tmp_path / "report.json").read_text())
        assert result["world"] == "small" and result["clips"] == 4 and len(result["tasks"]) == 11
        assert result["reconstruction"]["psnr"] > 0 and 0 <= result["tasks"]["CG"]["accuracy"] <= 1
        assert set(result["config"]) == {"tokenizer", "transformer"} and "<video" in (tmp_path / "report.html").read_text()
