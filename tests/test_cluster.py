"""Processes that wait for each other say so, and end with a reason where one never comes."""

import os
import socket
import subprocess
import sys
import threading

import pytest

from magvid import cluster
from magvid.watchdog import RESTART

CODE = "import sys; from magvid import cluster; cluster.WAIT, cluster.TELL = 10.0, 0.1; cluster.join(False, sys.argv[1], 2, int(sys.argv[2]))"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize(
    "host, process, seen",
    [
        ("127.0.0.1", 0, "where process 0 is: are all the others started with this --coordinator, each with a --process of its own?"),
        ("127.0.0.1", 1, "where nothing answers (Connection refused): is process 0 running there?"),
        ("no.such.host.invalid", 1, "no.such.host.invalid has no address ("),
    ],
)
def test_who_never_comes_is_told_and_not_waited_for_without_end(host, process, seen):
    address = f"{host}:{free_port()}"
    done = subprocess.run([sys.executable, "-c", CODE, address, str(process)], capture_output=True, text=True, timeout=100, env=os.environ | dict(JAX_PLATFORMS="cpu"))
    first, last = done.stderr.splitlines()
    assert done.returncode == RESTART
    assert first.startswith(f"process {process} of 2: waiting for the others at {address}")  # what is there so soon is not sure
    assert last.startswith(f"process {process} of 2: after 10 s not all processes are there at {address}") and seen in last
    assert last.endswith("Start the same command on all processes again.")


def test_who_has_come_meanwhile_is_not_ended(capsys, monkeypatch):
    """While it is found out what is to be said."""
    there = threading.Event()
    monkeypatch.setattr(cluster, "_where", lambda address: there.set())
    cluster._tell("process 0 of 2", None, there)
    there.clear()
    cluster._end("process 0 of 2", None, there)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("coordinator", ["here", "here:0", "here:65536", "here:x", ":1", "here:-1"])
def test_a_place_that_is_none_is_named(coordinator):
    with pytest.raises(ValueError, match=f"--coordinator={coordinator}: HOST:PORT of the first process"):
        cluster.join(False, coordinator, 2, 0)
