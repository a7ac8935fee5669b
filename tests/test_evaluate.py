import dataclasses
import functools
import json
import math

import numpy as np
import pytest
import tiny_runs

from configs import diffusion_sprites
from magvid import runs
from magvid.__main__ import main
from magvid.build import build
from magvid.evaluate import Scores, described, evaluate_run, table
from magvid.generator import Clips
from magvid.metrics.frames import GivenRegion, SkillScore
from magvid.runs import open_run
from magvid.types import UserError


def echo(**options):
    return evaluate_run(tiny_runs.echo_run(), clips=12, trust=True, **options)


def test_skill_and_given_region_of_a_known_generator():
    """Half way from the condition to the real video leaves a quarter of the squared error: skill 3/4."""
    numbers = echo().numbers
    assert numbers["tasks"]["FP"]["skill"] == pytest.approx(0.75, abs=0.01)
    assert numbers["tasks"]["FP"]["given_psnr"] == pytest.approx(100) and numbers["tasks"]["FP"][
        "given_gap"
    ] == pytest.approx(0)
    assert not {"given_psnr", "skill"} & set(numbers["tasks"]["CG"])  # nothing is given: any picture beats black
    assert numbers["reconstruction"]["psnr"] == pytest.approx(100) and "skill" not in numbers["reconstruction"]
    assert (numbers["clips"], numbers["world"], numbers["step"]) == (12, "small", 1)
    json.dumps(numbers, allow_nan=False)


def test_a_perfect_generator_is_judged_right():
    judge = dict(target="magvid.metrics.sprites:SpriteJudge", world="small")
    run = tiny_runs.echo_run(1.0)
    run = dataclasses.replace(run, config={**run.config, "metrics": [judge]})
    numbers = evaluate_run(run, ["CG"], clips=4, trust=True).numbers
    assert list(numbers["tasks"]) == ["CG"] and numbers["tasks"]["CG"]["psnr"] == 100
    assert (
        numbers["tasks"]["CG"]["accuracy"] == numbers["reconstruction"]["accuracy"] > 0.4
    )  # clips of 16x16 are small for the judge
    assert numbers["tasks"]["CG"]["chance"] == pytest.approx(1 / 18)


def test_best_of_is_better_and_reported_beside_the_first():
    run = tiny_runs.echo_run(0.5, 0.2)
    result = evaluate_run(run, clips=3, best_of={"FP": 4}, seed=1, trust=True)
    fp, cg = result.numbers["tasks"]["FP"], result.numbers["tasks"]["CG"]
    assert fp["best_skill"] > fp["skill"] and "best_skill" not in cg
    assert result.numbers["best_of"] == {"FP": 4, "CG": 1}


def test_examples_show_what_was_measured():
    examples = echo(examples=3).examples
    assert list(examples) == ["FP", "CG"] and [e.index for e in examples["CG"]] == [0, 1, 2]
    example = examples["FP"][2]
    np.testing.assert_array_equal(example.condition, np.repeat(example.real[:1], 8, axis=0))
    np.testing.assert_allclose(example.generated, (example.condition.astype(float) + example.real) / 2, atol=1)
    assert example.label in Clips.of(tiny_runs.echo_run().config).classes and example.real.shape == (8, 16, 16, 3)


def test_progress_counts_every_generated_batch():
    said = []
    echo(best_of={"FP": 2}, on_progress=lambda *a: said.append(a))
    assert [d for d, _, _ in said] == [2, 3, 5, 6] and said[-1][1] == 6  # two batches; FP twice, CG once


def test_masked_run_untrained_is_at_chance():
    run = open_run(tiny_runs.masked_run())
    numbers = evaluate_run(run, ["CG", "FP", "FP5"], clips=16).numbers
    assert numbers["tasks"]["CG"]["accuracy"] <= 0.4 and numbers["tasks"]["CG"]["chance"] == pytest.approx(1 / 18)
    for task in ("FP", "FP5"):
        assert numbers["tasks"][task]["skill"] is None or numbers["tasks"][task]["skill"] < 0.5
        assert abs(numbers["tasks"][task]["given_gap"]) < 3
    assert evaluate_run(run, ["CG"], clips=16).numbers["tasks"]["CG"] == numbers["tasks"]["CG"]


def test_the_command_writes_json_and_prints_a_table(tmp_path, capsys):
    out = tmp_path / "new" / "numbers.json"
    assert main(["evaluate", f"--run={tiny_runs.tokenizer_run()}", "--clips=9", f"--out={out}"]) == 0
    numbers = json.loads(out.read_text())
    assert numbers["tasks"] == {} and 5 < numbers["reconstruction"]["psnr"] < 40 and numbers["clips"] == 9
    printed = capsys.readouterr().out
    assert "9 clips of small" in printed and "psnr" in printed and str(out) in printed
    assert [p.name for p in out.parent.iterdir()] == ["numbers.json"]


def test_table_has_a_column_per_task_and_a_dash_for_what_is_missing():
    numbers = dict(
        clips=3,
        world="w",
        step=1,
        seed=0,
        reconstruction={"psnr": 20.0},
        tasks={"FP": {"psnr": 19.0, "skill": None, "skill_low": 0.1}},
    )
    assert [line.split() for line in table(numbers).splitlines()[1:]] == [
        ["reconstruction", "FP"],
        ["psnr", "20.00", "19.00"],
        ["skill", "-", "-"],
    ]


def test_scores_pool_batches_and_turn_nan_into_none():
    target = np.zeros((2, 1, 1, 1, 3))
    batch = dict(video=target + 0.1, target=target, condition=target, reconstruction=target)
    scores = Scores([SkillScore(resamples=10), GivenRegion()])
    scores.add(batch)
    scores.add(batch)
    assert scores.result() == {"skill": None, "skill_low": None, "skill_high": None}


def test_a_metric_may_say_nothing_of_a_batch():
    target = np.zeros((2, 1, 1, 1, 3))
    batch = dict(video=target + 0.1, target=target, reconstruction=target, given=np.ones((2, 1, 1, 1, 1), bool))
    scores = Scores([GivenRegion()])
    for some in (batch, {k: v for k, v in batch.items() if k != "given"}, batch):
        scores.add(some)
    assert scores.result()["given_psnr"] == pytest.approx(20)


@pytest.fixture(scope="module")
def clip_run(tmp_path_factory):
    """A run with both towers of a tiny CLIP, as tools/convert_clip.py writes it."""
    from tools import convert_clip
    from tools.convert import save
    from tools.weights import Stored

    sizes = dict(width=8, depth=1, heads=2, mlp=8, projection=4)
    towers = dict(
        target="magvid.models.clip:CLIP",
        text=dict(target="magvid.models.clip:TextTower", vocab=9, length=4, **sizes),
        vision=dict(target="magvid.models.clip:VisionTower", patch=8, image=[16, 16], **sizes),
    )
    rng = np.random.default_rng(0)
    shapes = convert_clip.shapes(build(towers))
    arrays = {n: Stored.of(rng.normal(size=s).astype(np.float32) * 0.3) for n, s in shapes.items()}
    folder = tmp_path_factory.mktemp("clip")
    save(folder, "clip", towers, arrays, {})
    return folder


def measured_by(*metrics):
    run = tiny_runs.echo_run()
    return dataclasses.replace(run, config={**run.config, "metrics": list(metrics)})


def test_a_metric_takes_its_network_from_a_run_and_the_settings_say_which(clip_run):
    vision = dict(run=str(clip_run), part="clip.vision")
    smoothness = dict(target="magvid.metrics.clip:ClipSmoothness", vision=vision, resamples=20)
    numbers = evaluate_run(measured_by(smoothness, dict(target="magvid.metrics.frames:GapFrames")), clips=4, trust=True).numbers
    fp, cg = numbers["tasks"]["FP"], numbers["tasks"]["CG"]
    assert 0 < fp["clip_rs"] < 1 and fp["clip_rs_low"] <= fp["clip_rs"] <= fp["clip_rs_high"]
    assert fp["gap_psnr"] < fp["psnr"]  # without the given frame, which is copied
    assert not {"clip_rs", "gap_psnr"} & (set(cg) | set(numbers["reconstruction"]))
    settings = json.loads(json.dumps(numbers["settings"], allow_nan=False))
    assert settings == numbers["settings"]
    *always, clip, gap = settings["metrics"]
    assert [m["target"].split(":")[1] for m in always] == ["Frames", "SkillScore", "GivenRegion"]
    assert always[1] == dict(target="magvid.metrics.frames:SkillScore", resamples=2000, seed=0)
    assert gap == dict(target="magvid.metrics.frames:GapFrames", resamples=2000, seed=0)
    assert clip["target"] == "magvid.metrics.clip:ClipSmoothness" and clip["resamples"] == 20
    assert clip["prepare"] == "magvid.models.clip:shortest_side" and clip["vision"]["width"] == 8
    assert clip["weights"] == {"vision": runs.open_run(clip_run).read("clip")[1]}
    assert settings["clip"] == dict(
        frames=8, height=16, width=16, stride=1, fps=None, most_stride=None, keep_aspect=True, spread=False
    )  # fmt: skip
    assert settings["gaps"] == {"FP": [[1, 8]]}


def test_a_run_is_measured_on_the_clips_and_by_the_metrics_of_another_config(tmp_path, capsys):
    """Of which fields may be changed as well; beside the numbers of its own clips."""
    (tmp_path / "other.py").write_text(
        f"import sys\nsys.path.insert(0, {str(tiny_runs.TINY.parent)!r})\nimport tiny_config\n\n"
        "def get_config():\n"
        "    config = tiny_config.get_config()\n"
        "    config['data']['eval']['source'] |= dict(world='full', split='test')\n"
        "    config['metrics'] = [dict(target='magvid.metrics.frames:GapFrames')]\n"
        "    return config\n"
    )  # fmt: skip
    run = tiny_runs.tokenizer_run()
    command = ["evaluate", f"--run={run}", f"--data={tmp_path / 'other.py'}", "--clips=2"]
    assert main(command) == 0 and main([*command, "--config.data.eval.source.world=small-middle", f"--out={tmp_path / 'small.json'}"]) == 0
    assert main(["evaluate", f"--run={run}", "--clips=2", f"--out={tmp_path / 'own.json'}"]) == 0
    other, changed, own = (json.loads(file.read_text()) for file in (run / "evaluation-other.json", tmp_path / "small.json", tmp_path / "own.json"))
    assert (other["world"], changed["world"], own["world"]) == ("full", "small-middle", "small")
    kinds = [[m["target"].split(":")[1] for m in numbers["settings"]["metrics"]][3:] for numbers in (other, own)]
    assert kinds == [["GapFrames"], ["SpriteJudge"]]
    assert other["reconstruction"]["psnr"] != own["reconstruction"]["psnr"]
    assert main(["evaluate", f"--run={tiny_runs.masked_run()}", f"--data={tmp_path / 'other.py'}", "--clips=2", "--tasks=FP,CG"]) == 2
    assert "is told classes such as disc moving left, 18 of them, and the held-out clips have" in capsys.readouterr().err
    assert main(["evaluate", f"--run={tiny_runs.masked_run()}", f"--data={tmp_path / 'other.py'}", "--clips=2", "--tasks=FP"]) == 0


def test_weights_of_a_metric_that_are_not_there_are_told_before_anything_is_generated(tmp_path, clip_run):
    metric = dict(target="magvid.metrics.clip:ClipSmoothness", vision=dict(run=str(tmp_path / "clip")))
    fails = dict(clips=4, trust=True, on_progress=lambda *a: pytest.fail("generated"))
    with pytest.raises(UserError, match=r"metrics\[0\].vision.run: there is no folder"):
        evaluate_run(measured_by(metric), **fails)
    spec = runs.open_run(clip_run).config["objective"]["clip"]["vision"]
    with pytest.raises(UserError, match="needs the weights of its tower"):
        evaluate_run(measured_by({**metric, "vision": spec}), **fails)


def test_what_was_built_is_described_as_it_would_be_configured():
    sampling = diffusion_sprites.get_config("budget=quick").objective.sampling.to_dict()
    found = described(build(sampling))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert {k: found[k] for k in ("target", "steps", "guidance")} == {k: sampling[k] for k in ("target", "steps", "guidance")}
    assert found["sampler"]["target"] == sampling["sampler"]["target"] and build(found) == build({**sampling, "wraps": []})
    assert described(functools.partial(math.pow, y=math.inf)) == dict(factory="math:pow", y="inf")


def test_bad_requests(tmp_path):
    run = tiny_runs.echo_run()
    without = dataclasses.replace(run, config={**run.config, "data": {"train": run.config["data"]["train"]}})
    with pytest.raises(UserError, match="no data.eval"):
        evaluate_run(without, trust=True)
    with pytest.raises(ValueError, match="at least 1"):
        evaluate_run(run, best_of=0, trust=True)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to .*choose another --out"):
        runs.check_writable(tmp_path / "file" / "out", "--out")
