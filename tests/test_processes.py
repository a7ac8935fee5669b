"""Several processes train, save and resume like one, by the command line; one that dies is named, and the run goes on as if nothing had happened."""

import contextlib
import os
import pathlib
import random
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
    config = ml_collections.ConfigDict(helpers.config(**helpers.SPREAD, total=20, mesh=mesh))
    if arg == "evaluation":
        config.data.eval = dict(source=dict(target="helpers_objective:Clips", size=2000), limit=2000)
    return config
"""


JOB_PORT = 65536 - 2**12  # jax makes of the number n of a job the port n % 2**12 beyond it
CLUSTERS = {  # what these tell a process, by which --distributed finds the others
    "SLURM": lambda i, count, job: dict(SLURM_JOB_ID=str(job), SLURM_STEP_NODELIST="localhost", SLURM_NTASKS=str(count), SLURM_PROCID=str(i), SLURM_LOCALID=str(i)),
    "Open MPI": lambda i, count, job: dict(
        OMPI_MCA_orte_hnp_uri=f"{job * 2**12}.0;tcp://127.0.0.1:1", OMPI_COMM_WORLD_SIZE=str(count), OMPI_COMM_WORLD_RANK=str(i), OMPI_COMM_WORLD_LOCAL_RANK=str(i)
    ),
}


def free_port():
    """Of those that are made of a job's number."""
    for port in random.sample(range(JOB_PORT, 2**16), 2**12):
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


def start(folder, count, steps, devices=1, pause=0.0, arg="", cluster=None):
    """`count` processes of `magvid train`, which train in `folder`/run; on a mesh of data and, with `arg`, an axis that lies across processes."""
    port = free_port()
    (folder / "toy.py").write_text(CONFIG)
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(TESTS), str(TESTS.parent)]), JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES=str(devices))
    env |= dict(TEST_PAUSE=str(pause), JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir or "")
    flags = [f"--config={folder / 'toy.py'}:{arg}", f"--workdir={folder / 'run'}", f"--config.steps={steps}"]
    told = lambda i: ["--distributed"] if cluster else [f"--coordinator=127.0.0.1:{port}", f"--processes={count}", f"--process={i}"]
    command = lambda i: [sys.executable, "-m", "magvid", "train", *flags, *told(i)]
    env_of = lambda i: env | (CLUSTERS[cluster](i, count, port - JOB_PORT) if cluster else {})
    return [subprocess.Popen(command(i), env=env_of(i), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for i in range(count)]


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


def test_the_cluster_says_which_processes_there_are(tmp_path, alone):
    """One after the other, as its launcher would."""
    for steps, cluster in ((10, "SLURM"), (20, "Open MPI")):
        finish(tmp_path, 2, steps, cluster=cluster)
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


def test_the_first_process_dies_and_the_run_goes_on(tmp_path, alone):
    """It keeps the signs of life: jax ends the others (docs/scale.md: 134), and says that the leader is gone."""
    processes = start(tmp_path, 4, 20, pause=0.05)
    after_the_first_save(processes, tmp_path)
    processes[0].kill()
    begin = time.monotonic()
    found = ends(processes[1:])
    assert time.monotonic() - begin < 120 and all(code in (-signal.SIGABRT, RESTART) for code, _ in found), found
    assert all("process 0 of 4" in text or "leader task" in text for _, text in found), found
    train.train(helpers.config(**helpers.SPREAD, total=20), tmp_path / "run", devices=jax.devices()[:4])
    check_same(tmp_path / "run", alone)


def test_sigterm_to_one_ends_an_evaluation_of_all(tmp_path):
    """One of 2,000 clips, which would take a minute; it is made when the run goes on."""
    file = tmp_path / "run" / "metrics.jsonl"
    processes = start(tmp_path, 2, 6, pause=0.05, arg="evaluation")
    while not (file.exists() and any(line["step"] == 5 for line in logs.read(file))):
        assert all(p.poll() is None for p in processes), "\n".join(text for _, text in ends(processes, 10))
        time.sleep(0.01)
    processes[1].terminate()
    found = ends(processes)
    assert [code for code, _ in found] == [143, 143] and "stopped at step 5 of 6 and saved" in found[0][1], found
    evaluated = lambda: [line["step"] for line in logs.read(file) if any(k.startswith("eval/") for k in line)]
    assert evaluated() == []
    finish(tmp_path, 2, 6, arg="evaluation")
    assert evaluated() == [5, 6]


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
