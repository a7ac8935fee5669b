"""A training run that stands still says so: where every thread is, and which other process is gone."""

import collections
import contextlib
import faulthandler
import os
import pathlib
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from magvid.types import UserError

FACTOR, LEAST = 10, 30.0  # a step that takes so many times the usual, and so many seconds, stands still
BEAT, SILENT = 5.0, 20.0  # seconds between the signs of life of a process, and after which it is taken for gone
STUCK = 600.0  # seconds that all processes live, and none steps, until a run with several is given up
RESTART = 75  # exit code (EX_TEMPFAIL): start the same command on all processes again


class Watchdog:
    """Told of every step by `beat`, it watches in a thread of its own. `folder` gets stacks-PROCESS.txt, the stacks of all threads, once for each
    time that a step takes too long. With several processes it ends this one with RESTART where another is gone, or all are stuck: what would come next is
    waiting without end. What hangs while it is paused, a save that waits for a process that is gone, jax's own heartbeat ends after 100 seconds.
    """

    def __init__(self, folder: pathlib.Path, say: Callable[[str], None], peers: "Peers | None" = None):
        self.folder, self.say, self.peers = folder, say, peers
        self.times: collections.deque[float] = collections.deque(maxlen=64)  # of the newest steps
        self.step, self.since, self.told, self.pauses = 0, None, False, 0
        self.lock, self.over = threading.Lock(), threading.Event()
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.over.set()
        self.thread.join()

    def beat(self, step: int) -> None:
        """That step is done."""
        with self.lock:
            now = time.monotonic()
            if self.since is not None:
                self.times.append(now - self.since)
            self.step, self.since, self.told = step, None if self.pauses else now, False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens within may take as long as it likes, also where a step is done on the way; so may the first step, which compiles."""
        with self.lock:
            self.since, self.pauses = None, self.pauses + 1
        try:
            yield
        finally:
            with self.lock:
                self.since, self.pauses = time.monotonic(), self.pauses - 1

    def explain(self, error: Exception) -> None:
        """After an error of a step: ends this process where another is gone, which a failed exchange between them says within a moment, but not
        who. Returns where none is, or this error is of this process alone.
        """
        deadline = time.monotonic() + SILENT + 2 * BEAT
        while self.peers and not isinstance(error, UserError) and time.monotonic() < deadline:
            if gone := self.peers.gone():
                give_up(f"{gone} ({(str(error).splitlines() or [type(error).__name__])[0][:200]})")
            time.sleep(1.0)

    def _watch(self) -> None:
        while not self.over.wait(1.0):
            if self.peers:
                with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 is gone: jax is about to say so
                    self.peers.beat(self.step)
            with self.lock:
                still = 0.0 if self.since is None or not self.times else time.monotonic() - self.since
                usual = statistics.median(self.times) if self.times else 0.0
                late = still > max(LEAST, FACTOR * usual) and not self.told
                self.told |= late
            if late:
                self._tell(usual)
            if self.peers and still > SILENT and (gone := self.peers.gone()):
                give_up(f"{gone}: no step since {still:.0f} s")
            if self.peers and still > max(STUCK, FACTOR * FACTOR * usual):
                give_up(f"no step since {still:.0f} s, though all processes live; {self.peers.behind()}")

    def _tell(self, usual: float) -> None:
        file = self.folder / f"stacks-{jax.process_index()}.txt"
        with contextlib.suppress(OSError), file.open("a") as f:
            f.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}, after step {self.step}\n")
            f.flush()
            faulthandler.dump_traceback(f)
        with contextlib.suppress(OSError):  # whoever read it may be gone; the others are still watched
            self.say(f"step {self.step + 1} takes more than {FACTOR} times as long as usual ({usual:.3g} s); {file} says where all threads are")


def give_up(why: str) -> None:
    """Ends this process, without waiting for the others as an orderly end does; process 0 last, since the signs of life end with it."""
    print(f"process {jax.process_index()} of {jax.process_count()}: {why}. Start the same command on all processes again.", file=sys.stderr, flush=True)
    if jax.process_index() == 0:
        time.sleep(2 * BEAT)
    os._exit(RESTART)


class Peers:
    """The processes of a run, by the signs of life that each leaves with jax's coordination service, which process 0 keeps. That 0 itself is
    gone jax notices at once, and ends the others."""

    def __init__(self, client: Any, process: int, count: int):
        self.client, self.process, self.count = client, process, count
        self.number, self.last = 0, 0.0
        self.seen: dict[int, tuple[str, float]] = {}  # {process: (its newest sign, when that was first seen)}

    @classmethod
    def here(cls) -> "Peers | None":
        """None where this process is alone."""
        if jax.process_count() == 1:
            return None
        from jax._src import distributed  # the client has no public name

        return cls(distributed.global_state.client, jax.process_index(), jax.process_count())

    def beat(self, step: int) -> None:
        """Leave a sign, and look at those of the others, at most every BEAT seconds."""
        now = time.monotonic()
        if now - self.last < BEAT:
            return
        self.last, self.number = now, self.number + 1
        self.client.key_value_set(f"magvid/alive/{self.process}", f"{self.number} {step} {socket.gethostname()}", allow_overwrite=True)
        for key, sign in self.client.key_value_dir_get("magvid/alive/"):
            process = int(key.rpartition("/")[2])
            if self.seen.get(process, ("", 0.0))[0] != sign:
                self.seen[process] = sign, now

    def gone(self) -> str:
        """Which have left no new sign for SILENT seconds, in words; nothing where none has."""
        now = time.monotonic()
        silent = {p: now - at for p, (_, at) in self.seen.items() if now - at > SILENT and p != self.process}
        return ", ".join(f"process {p} of {self.count} on {self._sign(p)[2]} has been silent for {s:.0f} s" for p, s in sorted(silent.items()))

    def behind(self) -> str:
        """Which has done the fewest steps, in words."""
        p = min(self.seen, key=lambda p: int(self._sign(p)[1]))
        return f"process {p} on {self._sign(p)[2]} is behind, at step {self._sign(p)[1]}"

    def _sign(self, process: int) -> list[str]:
        return self.seen[process][0].split(" ", 2)
