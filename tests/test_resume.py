"""A killed run goes on as if nothing had happened: 20 steps = 10 steps, SIGKILL, 10 steps, bit for bit."""

import os
import pathlib
import random
import subprocess
import sys
import time

import helpers_objective as helpers
import jax
import pytest

from magvid import logs, train
from magvid.checkpoints import Checkpoints

TESTS = pathlib.Path(__file__).parent
ONE = dict(devices=jax.devices()[:1])
STEP = 0.04  # at least so many seconds per step there: 8 clips, read by at most 4 threads, with a pause of half of it
SCRIPT = "import helpers_objective as h; from magvid.train import train; train(h.frequent(), {!r})"


def start(workdir, before=""):
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    cache = jax.config.jax_compilation_cache_dir or ""
    env = os.environ | dict(
        PYTHONPATH=path, TEST_PAUSE=str(STEP / 2), JAX_PLATFORMS="cpu", JAX_COMPILATION_CACHE_DIR=cache
    )
    env |= dict(JAX_NUM_CPU_DEVICES="1", JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.1")
    command = [sys.executable, "-c", before + SCRIPT.format(str(workdir))]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def kill(workdir):
    """SIGKILL at a random moment after the first checkpoint: between steps, while saving, while logging. Returns what the run is to say as it goes on: where
    from, as one that begins anew would end with the same numbers.
    """
    process = start(workdir)
    try:
        while not (workdir / "checkpoints" / "2").is_dir():
            assert process.poll() is None, process.stdout.read().decode()
            time.sleep(0.005)
        time.sleep(random.uniform(0, 10 * STEP))
        assert process.poll() is None, "it ended before it could be killed"
    finally:
        process.kill()
        process.wait()
    return going_on(workdir)


def going_on(workdir):
    newest = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    return f"going on from step {newest}\n" if newest < 20 else "this run is at step 20 already"


def numbers(workdir):
    """What a run logged, but for what the clock decides."""
    lines = logs.read(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith("perf/") and k != "time"} for line in lines]


def check_same(workdir, reference):
    ours, theirs = Checkpoints(workdir / "checkpoints"), Checkpoints(reference / "checkpoints")
    assert ours.steps()[-1] == theirs.steps()[-1] == 20
    a, b = ours.meta(20), theirs.meta(20)
    assert a["leaves"] == b["leaves"] and len(a["leaves"]) > 20 and a["data"] == b["data"]
    assert numbers(workdir) == numbers(reference)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reference")
    train.train(helpers.frequent(), workdir, **ONE)
    return workdir


def test_killed_at_a_random_moment(tmp_path, reference, capsys):
    said = kill(tmp_path)
    train.train(helpers.frequent(), tmp_path, **ONE)
    assert said in capsys.readouterr().out
    check_same(tmp_path, reference)


@pytest.mark.full
def test_killed_five_times_in_a_row(tmp_path, reference, capsys):
    for i in range(5):
        said = kill(tmp_path / str(i))
        train.train(helpers.frequent(), tmp_path / str(i), **ONE)
        assert said in capsys.readouterr().out
        check_same(tmp_path / str(i), reference)


@pytest.mark.full
def test_sigterm_from_outside_saves_and_leaves_with_143(tmp_path, reference, capsys):
    process = start(tmp_path)
    while not (tmp_path / "checkpoints" / "2").is_dir():
        assert process.poll() is None, process.stdout.read().decode()
        time.sleep(0.005)
    process.terminate()
    out = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 143 and "and saved; the same command goes on" in out and "Traceback" not in out
    said = going_on(tmp_path)
    train.train(helpers.frequent(), tmp_path, **ONE)
    assert said in capsys.readouterr().out
    check_same(tmp_path, reference)


@pytest.mark.full
def test_full_disk_is_said_and_leaves_older_checkpoints(tmp_path):
    """No file may grow beyond 20 kB, as on a full disk: every save fails, and the last failure ends the run."""
    (tmp_path / "run").mkdir()
    limit = "import os, resource; os.environ['JAX_ENABLE_COMPILATION_CACHE'] = '0'; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    out = start(tmp_path / "run", limit).communicate(timeout=120)[0].decode()
    assert f"could not be written to {tmp_path}/run/checkpoints" in out and "Training goes on" in out
    assert any(line.startswith("magvid.checkpoints.CheckpointError") for line in out.splitlines())
    assert "Event loop is closed" not in out and "ERROR:absl" not in out  # Orbax's own words, hundreds of tracebacks
    assert Checkpoints(tmp_path / "run/checkpoints").steps() == []
    state, _ = train.train(helpers.frequent(), tmp_path / "run", **ONE)
    assert state.step == 20
