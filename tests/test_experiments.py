"""What a person starts by hand, in its smallest form."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
import tiny_runs

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


@pytest.mark.full
def test_diffusion_on_sprites_writes_its_report_and_goes_on(tmp_path):
    command = [sys.executable, str(ROOT / "experiments" / "diffusion_sprites.py"), "--smoke", "--clips=4"]
    for _ in range(2):
        subprocess.run([*command, f"--workdir={tmp_path}"], cwd=tmp_path, check=True, timeout=600)
        result = json.loads((tmp_path / "report.json").read_text())
        assert result["world"] == "small" and set(result["tasks"]) == {"T2V", "I2V", "TI2V"}
        assert all(0 <= values["accuracy"] <= 1 for values in result["tasks"].values())
        assert set(result["config"]) == {"vae", "clip", "diffusion"} and "<video" in (tmp_path / "report.html").read_text()


def here(stages, work, arguments, jobs, say):
    """As `arms.run_stages`, in this process: where all is done, nothing is left to compute."""
    for stage in stages:
        for name, arm in stage.items():
            yield work(name, arm, *arguments)


def test_a_part_is_taken_from_a_file_where_that_was_trained_so(tmp_path):
    from experiments import arms
    from magvid import run_files, runs

    run, file = runs.open_run(tiny_runs.masked_run()), tmp_path / "masked.safetensors"
    run_files.export(run, file)
    config, folders = run.config, [run.path.parent / f"{tmp_path.name}-{name}" for name in ("same", "seed", "steps", "there")]
    for folder, wanted in zip(folders[:3], (config, config | dict(seed=1), config | dict(steps=config["steps"] + 1)), strict=True):
        arms.take(file, wanted, folder)
    arms.take(tmp_path / "none.safetensors", config, folders[3])
    assert [folder.exists() for folder in folders] == [True, False, False, False]
    folders[3].mkdir()
    arms.take(file, config, folders[3])
    assert not list(folders[3].iterdir())  # what is there is left alone
    taken = runs.open_run(folders[0])
    assert taken.step == run.step and taken.read("transformer")[1] == run.read("transformer")[1]
    arms.train_once(config, folders[0])
    assert not (folders[0] / "metrics.jsonl").exists()  # nothing is left to train


@pytest.mark.full
def test_the_ablation_runs_and_goes_on(tmp_path, monkeypatch, capsys):
    """Few arms of tiny models, in two processes: trained, scored, in tables and pictures; a second call trains nothing."""
    from experiments import commit_ablation

    kept = ("autoregressive", "COMMIT, L_mask + L_recons + L_refine", "the same, MTM decoding", "untrained")
    monkeypatch.setattr(commit_ablation, "ARMS", {title: commit_ablation.ARMS[title] for title in kept})
    argv = ["--smoke", "--seeds=1", "--clips=4", "--jobs=2", f"--workdir={tmp_path}"]
    commit_ablation.main(argv)
    table = (tmp_path / "table.md").read_text()
    assert all(f"| {title} |" in table for title in [*kept, *commit_ablation.TOKENIZERS, commit_ablation.COPY])
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["copy"]["CFP"]["CFP"]["skill"] in (0, None)  # None: after two steps the tokenizer is worse than the copy
    assert set(scores["scores"]["commit-MT8-0"]) == {"", "latent"}
    assert all((tmp_path / name).stat().st_size for name in ("cfp.png", "mt8_opc.png", "tokenizers.png"))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/metrics.jsonl")}
    monkeypatch.setattr(commit_ablation, "run_stages", here)
    commit_ablation.main(argv)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/metrics.jsonl")}
    assert (tmp_path / "table.md").read_text() == table


@pytest.mark.full
def test_transitions_on_sprites_are_trained_scored_and_reported(tmp_path, monkeypatch):
    """Two rows of the table, in two processes; a second call trains nothing and writes the same."""
    from experiments import mavin_sprites

    kept = ("MAVIN", "untrained")
    monkeypatch.setattr(mavin_sprites, "ROWS", {row: mavin_sprites.ROWS[row] for row in kept})
    monkeypatch.setattr(mavin_sprites, "SWEPT", "full")
    argv = ["--smoke", "--seeds=1", "--clips=4", "--jobs=2", f"--workdir={tmp_path}"]
    mavin_sprites.main(argv)
    table = (tmp_path / "table.md").read_text()
    assert all(f"| {row} |" in table for row in (*kept, *mavin_sprites.BASELINES, mavin_sprites.LIMIT))
    result = json.loads((tmp_path / "scores.json").read_text())
    assert set(result["scores"]) == {"full-0", "untrained-0"} and set(result["metric"]) == set(mavin_sprites.DAMAGES)
    assert "clip_rs" in result["scores"]["full-0"]["MAVIN"] and "<video" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "transitions.png").stat().st_size
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/metrics.jsonl")}
    monkeypatch.setattr(mavin_sprites, "run_stages", here)
    mavin_sprites.main(argv)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/metrics.jsonl")}
    assert (tmp_path / "table.md").read_text() == table


@pytest.mark.full
def test_predictions_on_sprites_are_trained_scored_and_reported(tmp_path, monkeypatch):
    """Three rows of the table, one after the other, so that equal programs are compiled once; a second call trains nothing and writes the same."""
    from experiments import aid_sprites

    kept = ("AID", "whole network", "untrained")
    monkeypatch.setattr(aid_sprites, "ROWS", {row: aid_sprites.ROWS[row] for row in kept})
    argv = ["--smoke", "--seeds=1", "--clips=4", "--jobs=1", f"--workdir={tmp_path}"]
    aid_sprites.main(argv)
    table = (tmp_path / "table.md").read_text()
    assert all(f"| {row} |" in table for row in (*kept, aid_sprites.BASE, aid_sprites.HELD, aid_sprites.LIMIT))
    result = json.loads((tmp_path / "scores.json").read_text())
    ours, whole = (result["scores"][f"{aid_sprites.slug(row)}-0"] for row in ("AID", "whole network"))
    assert 0 < ours["trained"] != whole["trained"] and 0 <= ours["told_accuracy"] <= 1
    assert result["fixed"][aid_sprites.HELD]["given_psnr"] >= 90  # the first frame itself
    assert (tmp_path / "predictions.png").stat().st_size and "<video" in (tmp_path / "report.html").read_text()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/metrics.jsonl")}
    monkeypatch.setattr(aid_sprites, "run_stages", here)
    aid_sprites.main(argv)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/metrics.jsonl")}
    assert (tmp_path / "table.md").read_text() == table


@pytest.mark.full
def test_compositions_on_sprites_are_trained_scored_and_reported(tmp_path, monkeypatch):
    """Three rows of the table, as above; a second call trains nothing and writes the same, out of the numbers alone."""
    from experiments import magdiff_sprites

    kept = (magdiff_sprites.OURS, magdiff_sprites.NEVER, "untrained")
    monkeypatch.setattr(magdiff_sprites, "ROWS", {row: magdiff_sprites.ROWS[row] for row in kept})
    monkeypatch.setattr(magdiff_sprites, "PICTURES", {"2 pictures": "shown=2"})
    argv = ["--smoke", "--seeds=1", "--clips=4", "--jobs=1", f"--workdir={tmp_path}"]
    magdiff_sprites.main(argv)
    table = (tmp_path / "table.md").read_text()
    more = (*magdiff_sprites.PICTURES, *magdiff_sprites.SEEN, *magdiff_sprites.EDITS)
    assert all(f"| {row} |" in table for row in (*kept, *more, magdiff_sprites.HELD, magdiff_sprites.LIMIT))
    result = json.loads((tmp_path / "scores.json").read_text())
    ours = result["scores"]["magdiff-0"]
    assert ours["as it was"]["given_gap"] < 0.01  # what stays is the autoencoder's copy
    assert result["fixed"][magdiff_sprites.HELD]["colour_accuracy"] > 0.5  # the pictures show the sprite
    assert all((tmp_path / f"{name}.png").stat().st_size for name in ("compositions", "edits"))
    assert "<video" in (tmp_path / "report.html").read_text()
    for arm in ("magdiff-0", "no-edits-in-training-0", "untrained-0"):
        shutil.rmtree(tmp_path / arm)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/metrics.jsonl")}
    monkeypatch.setattr(magdiff_sprites, "run_stages", here)
    magdiff_sprites.main(argv)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/metrics.jsonl")}
    assert (tmp_path / "table.md").read_text() == table
