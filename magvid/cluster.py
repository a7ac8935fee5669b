"""Several processes as one run: who they are, before any of them looks for devices."""


def join(detect: bool, coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Wait for the other processes of a run, as a cluster says where `detect` (Cloud TPU, SLURM, Open MPI, Kubernetes: what
    `jax.distributed.initialize` finds), or as HOST:PORT of process 0, how many there are, and which one this is. Nothing of it: this process is
    alone. ValueError for a part of these, or where no cluster is found.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [name for name, value in given.items() if value is None]
    if detect and len(missing) < 3:
        raise ValueError(f"--distributed finds the processes by itself: leave out {', '.join(set(given) - set(missing))}")
    if 0 < len(missing) < 3:
        raise ValueError(f"{', '.join(missing)} missing: several processes are named by --coordinator=HOST:PORT, --processes=N and --process=I of 0 to N - 1")
    if not detect and missing:
        return
    import jax

    if not detect:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"--coordinator={coordinator}: HOST:PORT of the first process, such as node0:1234")
        if not 0 <= process < processes:
            raise ValueError(f"--process={process}: one of 0 to {processes - 1} (--processes={processes})")
    try:
        # its own way out waits for all processes: not for ever for one that has ended otherwise
        jax.distributed.initialize(coordinator, processes, process, shutdown_timeout_seconds=30)
    except ValueError as e:
        if not detect:
            raise
        raise ValueError(f"--distributed: no cluster was found ({e}): give --coordinator, --processes and --process") from None
