"""A run goes on with another number of devices: the same clips in the same order, and the same losses."""

import helpers_objective as helpers
import jax
import numpy as np
import pytest

from magvid import logs, sharding
from magvid.train import train

STEPS = 20


def run(folder, monkeypatch, parts):
    """Trains in pieces, {last step: devices}: (positions of the stream in each step, losses of each step)."""
    seen = []
    whole = sharding.global_batch

    def noted(batch, mesh):
        seen.append(batch["index"].tolist())
        return whole(batch, mesh)

    monkeypatch.setattr(sharding, "global_batch", noted)
    for steps, devices in parts.items():
        train(helpers.config(**helpers.SPREAD, total=STEPS) | dict(steps=steps, eval_every=0), folder, devices=jax.devices()[:devices])
    monkeypatch.undo()
    lines = logs.read(folder / "metrics.jsonl")
    return seen, {(line["step"], k): v for line in lines for k, v in line.items() if k.startswith("train/loss/")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return run(tmp_path_factory.mktemp("alone"), patch, {STEPS: 1})


@pytest.mark.parametrize("devices", [(1, 2, 4, 8), *(pytest.param(d, marks=pytest.mark.full) for d in ((8, 4, 2, 1), (2, 8, 1, 4)))], ids=str)
def test_a_run_goes_on_with_other_devices(alone, tmp_path, monkeypatch, devices):
    ids, losses = run(tmp_path, monkeypatch, dict(zip((5, 10, 15, STEPS), devices, strict=True)))
    assert ids == alone[0] and len(ids) == STEPS and sorted(sum(ids, [])) == list(range(len(sum(ids, []))))
    assert losses.keys() == alone[1].keys() and len(losses) >= 2 * STEPS
    np.testing.assert_allclose([losses[k] for k in losses], [alone[1][k] for k in losses], rtol=1e-5)
