"""Several processes as one run: who they are, before any of them looks for devices."""

import os
import socket
import sys
import threading

WAIT = 300.0  # seconds until all processes are there
TELL = 5.0  # seconds until it is said that one waits


def join(detect: bool, coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Wait for the other processes of a run, as a cluster says where `detect` (Cloud TPU, SLURM, Open MPI, Kubernetes: what
    `jax.distributed.initialize` finds), or as HOST:PORT of process 0, how many there are, and which one this is. Nothing of it: this process is
    alone. ValueError for a part of these, or where no cluster is found; where not all processes come, this one is ended with `watchdog.RESTART`.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [name for name, value in given.items() if value is None]
    if detect and len(missing) < 3:
        raise ValueError(f"--distributed finds the processes by itself: leave out {', '.join(set(given) - set(missing))}")
    if 0 < len(missing) < 3:
        raise ValueError(f"{', '.join(missing)} missing: several processes are named by --coordinator=HOST:PORT, --processes=N and --process=I of 0 to N - 1")
    if not detect and missing:
        return
    address = None if detect else _address(coordinator)
    if not detect and not 0 <= process < processes:
        raise ValueError(f"--process={process}: one of 0 to {processes - 1} (--processes={processes})")
    import jax

    there = threading.Event()
    who = f"process {process} of {processes}" if address else "a process of this cluster"
    waits = [threading.Timer(TELL, _tell, (who, address, there)), threading.Timer(WAIT, _end, (who, address, there))]
    for timer in waits:
        timer.daemon = True
        timer.start()
    try:
        # Its own way out of waiting is the dump of an abort: ours comes first. And its own way out of a run waits for all processes: not for ever for
        # one that has ended otherwise.
        jax.distributed.initialize(coordinator, processes, process, initialization_timeout=int(2 * WAIT), shutdown_timeout_seconds=30)
    except ValueError as e:
        if not detect:
            raise
        raise ValueError(f"--distributed: no cluster was found ({e}): give --coordinator, --processes and --process") from None
    finally:
        there.set()
        for timer in waits:
            timer.cancel()


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"--coordinator={coordinator}: HOST:PORT of the first process, such as node0:1234")
    return host, int(port)


def _tell(who: str, address: tuple[str, int] | None, there: threading.Event) -> None:
    where = _where(address)
    if not there.is_set():
        print(f"{who}: waiting for the others{where}", file=sys.stderr, flush=True)


def _end(who: str, address: tuple[str, int] | None, there: threading.Event) -> None:
    from magvid.watchdog import RESTART

    why = f"{who}: after {WAIT:.0f} s not all processes are there{_where(address)} Start the same command on all processes again."
    if there.is_set():  # meanwhile they came
        return
    print(why, file=sys.stderr, flush=True)
    os._exit(RESTART)  # jax waits in a thread that nothing interrupts


def _where(address: tuple[str, int] | None) -> str:
    """What one sees of process 0 from here."""
    if address is None:
        return "."
    host, port = address
    try:
        socket.create_connection((host.strip("[]"), port), timeout=3).close()
    except socket.gaierror as error:
        return f" at {host}:{port}; {host} has no address ({error.strerror}): --coordinator is that of process 0."
    except OSError as error:
        return f" at {host}:{port}, where nothing answers ({error.strerror or error}): is process 0 running there?"
    return f" at {host}:{port}, where process 0 is: are all the others started with this --coordinator, each with a --process of its own?"
