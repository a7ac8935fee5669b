"""Two processes with two devices each train, save and resume like one."""

import os
import pathlib
import socket
import subprocess
import sys

import helpers_objective as helpers
import jax
import numpy as np
import pytest

from magvid import logs, train

TESTS = pathlib.Path(__file__).parent
SCRIPT = """
import sys, jax
address, process, steps, workdir = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
jax.distributed.initialize(address, 2, process, heartbeat_timeout_seconds=10, shutdown_timeout_seconds=10)
import helpers_objective as helpers
from magvid.train import train
train(helpers.config(**helpers.SPREAD, steps=steps, total=20), workdir)
"""


def two_processes(workdir, steps):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    env = os.environ | dict(PYTHONPATH=path, JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="2")
    command = lambda i: [sys.executable, "-c", SCRIPT, address, str(i), str(steps), str(workdir)]
    processes = [
        subprocess.Popen(command(i), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for i in range(2)
    ]
    try:
        out = [p.communicate(timeout=180)[0].decode() for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert [p.returncode for p in processes] == [0, 0], "\n".join(out)
    assert "step" in out[0] and "step " not in out[1]


@pytest.mark.full
def test_two_processes_equal_one_and_resume_on_one(tmp_path):
    two_processes(tmp_path / "two", 4)
    two_processes(tmp_path / "two", 6)
    train.train(helpers.config(**helpers.SPREAD, steps=8, total=20), tmp_path / "two", devices=jax.devices()[:4])
    state, _ = train.train(
        helpers.config(**helpers.SPREAD, steps=8, total=20), tmp_path / "one", devices=jax.devices()[:1]
    )
    numbers = lambda name: {
        (line["step"], k): v
        for line in logs.read(tmp_path / name / "metrics.jsonl")
        for k, v in line.items()
        if "loss" in k or "mse" in k
    }
    one, two = numbers("one"), numbers("two")
    assert one.keys() == two.keys() and {s for s, _ in one} == {2, 4, 6, 8}
    np.testing.assert_allclose([one[k] for k in one], [two[k] for k in one], rtol=1e-4)
    assert state.step == 8
