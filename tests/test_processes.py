"""Several processes train, save and resume like one, by the command line; one that dies is named, and the run goes on as if nothing had happened."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import helpers_objective as helpers
import jax
import numpy as np
import pytest

from benchmarks.faults import newest
from magvid import logs, train
from magvid.watchdog import RESTART

pytestmark = pytest.mark.full
TESTS = pathlib.Path(__file__).parent
CONFIG = """
import ml_collections
import helpers_objective as helpers

def get_config(arg=None):
    mesh = dict(data=2, model=2) if arg == "model" else dict(data=-1)
    return ml_collections.ConfigDict(helpers.config(**helpers.SPREAD, total=20, mesh=mesh))
"""


def start(folder, count, steps, devices=1, pause=0.0, arg=""):
    """`count` processes of `magvid train`, which train in `folder`/run; on a mesh of data and, with `arg`, an axis that lies across processes."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    (folder / "toy.py").write_text(CONFIG)
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(TESTS), str(TESTS.parent)]), JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES=str(devices))
    env |= dict(TEST_PAUSE=str(pause), JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir or "")
    flags = [f"--config={folder / 'toy.py'}:{arg}", f"--workdir={folder / 'run'}", f"--config.steps={steps}", f"--coordinator={address}", f"--processes={count}"]
    command = lambda i: [sys.executable, "-m", "magvid", "train", *flags, f"--process={i}"]
    return [subprocess.Popen(command(i), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for i in range(count)]


def ends(processes, seconds=180):
    """[(exit code, what was said)] of each."""
    try:
        said = [p.communicate(timeout=seconds)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [(p.returncode, text) for p, text in zip(processes, said, strict=True)]


def finish(folder, count, steps, **options):
    step = newest(folder)
    found = ends(start(folder, count, steps, **options))
    assert [code for code, _ in found] == [0] * count, "\n".join(text for _, text in found)
    assert "trained: " in found[0][1] and not any("step " in text or "trained" in text for _, text in found[1:])  # one speaks
    assert (f"going on from step {step}\n" in found[0][1]) == bool(step), found[0][1]  # a run that begins anew would end with the same numbers


def after_the_first_save(processes, folder):
    while not (folder / "run" / "checkpoints" / "2").is_dir():
        assert all(p.poll() is None for p in processes), "\n".join(text for _, text in ends(processes, 10))
        time.sleep(0.01)


def numbers(folder):
    lines = logs.read(folder / "metrics.jsonl")
    return {(line["step"], k): v for line in lines for k, v in line.items() if "loss" in k or "mse" in k or k == "train/order"}


def check_same(folder, reference):
    """Of all twenty steps: the losses, and which clips a batch has in which order."""
    ours, theirs = numbers(folder), numbers(reference)
    assert ours.keys() == theirs.keys() and [step for step, k in ours if k == "train/order"] == list(range(1, 21))
    assert all(ours[key] == theirs[key] for key in ours if key[1] == "train/order")
    np.testing.assert_allclose([ours[k] for k in theirs], [theirs[k] for k in theirs], rtol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Twenty steps in one process on one device."""
    folder = tmp_path_factory.mktemp("alone")
    train.train(helpers.config(**helpers.SPREAD, total=20), folder, devices=jax.devices()[:1])
    return folder


def test_a_run_goes_on_in_other_numbers_of_processes(tmp_path, alone):
    """Each way for five steps. Where two processes hold the same rows, both read them."""
    finish(tmp_path, 2, 5, devices=2)
    finish(tmp_path, 4, 10)
    finish(tmp_path, 4, 15, arg="model")
    train.train(helpers.config(**helpers.SPREAD, total=20), tmp_path / "run", devices=jax.devices()[:4])
    check_same(tmp_path / "run", alone)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_hangs_is_named_and_the_run_goes_on(tmp_path, alone, number):
    processes = start(tmp_path, 4, 20, pause=0.05)
    after_the_first_save(processes, tmp_path)
    processes[2].send_signal(number)
    begin = time.monotonic()
    found = ends([p for i, p in enumerate(processes) if i != 2])
    processes[2].kill()
    assert time.monotonic() - begin < 120 and [code for code, _ in found] == [RESTART] * 3, found
    assert all("process 2 of 4 on" in text and "Start the same command on all processes again" in text for _, text in found)
    if number == signal.SIGKILL:
        finish(tmp_path, 4, 20)
    else:
        train.train(helpers.config(**helpers.SPREAD, total=20), tmp_path / "run", devices=jax.devices()[:4])
    check_same(tmp_path / "run", alone)


def test_sigterm_to_one_saves_and_ends_all(tmp_path, alone):
    processes = start(tmp_path, 2, 20, pause=0.05)
    after_the_first_save(processes, tmp_path)
    processes[1].terminate()
    begin = time.monotonic()
    found = ends(processes)
    assert time.monotonic() - begin < 30 and [code for code, _ in found] == [143, 143], found
    assert "and saved; the same command goes on from there" in found[0][1]
    train.train(helpers.config(**helpers.SPREAD, total=20), tmp_path / "run", devices=jax.devices()[:2])
    check_same(tmp_path / "run", alone)
