"""How fast a run is, and what its time goes into."""

import contextlib
import functools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# FLOP/s of dense matrix products in bfloat16, by how a device's kind begins (the makers' data sheets)
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
}


class Meter:
    """Speeds since the last reading, and since the run first began what share of its time training took.

    The first step, which compiles, and evaluations are not counted among the speeds. `before`: the last line that the run has logged, where it
    goes on; what it did after that line is done again, and counts as lost.
    """

    def __init__(self, devices: Sequence[jax.Device], dtype: str, before: Mapping[str, float] | None = None):
        self.devices, self.dtype = devices, dtype
        lasted = (before or {}).get("perf/seconds", 0.0)
        self.begun = before["time"] - lasted if lasted else time.time()
        self.trained = lasted * before["perf/goodput"] if lasted else 0.0  # seconds
        self.kept = self.trained  # at the last save
        self.start: float | None = None
        self.steps = self.examples = 0
        self.flops = 0.0
        self.waits = dict(data=0.0, save=0.0)

    def step(self, examples: int, flops: float) -> None:
        """One more is done."""
        if self.start is None:
            self._reset()
        else:
            self.steps, self.examples, self.flops = self.steps + 1, self.examples + examples, self.flops + flops

    @contextlib.contextmanager
    def waiting(self, why: str) -> Iterator[None]:
        """Training waits: for "data", or until a "save" has been begun."""
        begin = time.monotonic()
        yield
        if self.start is not None:
            self.waits[why] += time.monotonic() - begin

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """What happens within is no training."""
        begin = time.monotonic()
        yield
        if self.start is not None:
            self.start += time.monotonic() - begin

    def saved(self) -> None:
        """What was trained until now counts, whatever comes."""
        self.kept = self.trained + self._in_steps()

    def back(self) -> None:
        """What was trained since the last save is lost, and so is the time that going back took."""
        self.trained = self.kept
        self._reset()

    def _in_steps(self) -> float:
        """Seconds since the last reading that went into steps."""
        return 0.0 if self.start is None else time.monotonic() - self.start - sum(self.waits.values())

    def read(self) -> dict[str, float]:
        """Numbers since the last reading, under "perf/": steps and examples per second, TFLOP/s of a device (what `remat` computes again does not count) and their share of its data
        sheet's peak and of that which it reached in a large product here (`mfu`, `mfu_measured`), shares of the time that went into waiting for data and
        saves; the most memory that was held (GB, of a device; on CPU of this process); seconds since the run first began, and the
        share of them that went into steps that count (`goodput`). What is not known is left out.
        """
        seconds, trained = time.monotonic() - self.start, self._in_steps()
        if not self.steps or not seconds:
            return {}
        rate = self.flops / seconds / len(self.devices)
        device = next(d for d in self.devices if d.process_index == jax.process_index())
        sheet, here = data_sheet(device.device_kind), measured_peak(device, self.dtype)
        self.trained += trained
        since = time.time() - self.begun
        found = dict(
            steps_per_sec=self.steps / seconds,
            examples_per_sec=self.examples / seconds,
            tflops_per_device=rate / 1e12,
            mfu=rate / sheet if sheet else None,
            mfu_measured=rate / here,
            data_wait_frac=self.waits["data"] / seconds,
            save_wait_frac=self.waits["save"] / seconds,
            peak_memory_gb=peak_memory(self.devices) / 1e9,
            seconds=since,
            goodput=self.trained / max(since, self.trained),
        )
        self._reset()
        return {f"perf/{name}": value for name, value in found.items() if value is not None}

    def _reset(self) -> None:
        self.start, self.steps, self.examples, self.flops = time.monotonic(), 0, 0, 0.0
        self.waits = dict.fromkeys(self.waits, 0.0)


def data_sheet(kind: str, sheets: Mapping[str, Any] = PEAKS) -> Any:
    """Of a device's kind, that of the longest beginning; in PEAKS its FLOP/s in bfloat16. None where it is not in the table."""
    return next((sheets[name] for name in sorted(sheets, key=len, reverse=True) if kind.startswith(name)), None)


@functools.cache
def measured_peak(device: jax.Device, dtype: str) -> float:
    """FLOP/s of the best of several large square matrix products on a device."""
    side, repeats = (512, 4) if device.platform == "cpu" else (8192, 8)
    with jax.default_device(device):
        x = jnp.ones((side, side), jnp.dtype(dtype)) / side

        @jax.jit
        def products(x):
            return jax.lax.fori_loop(0, repeats, lambda _, y: y @ x, x)

        jax.block_until_ready(products(x))
        seconds = []
        for _ in range(3):
            begin = time.perf_counter()
            jax.block_until_ready(products(x))
            seconds.append(time.perf_counter() - begin)
    return 2.0 * side**3 * repeats / min(seconds)


def peak_memory(devices: Sequence[jax.Device]) -> float:
    """Most bytes that any of this process's `devices` held; where they do not say, what this process held."""
    local = [d for d in devices if d.process_index == jax.process_index()]
    held = [(d.memory_stats() or {}).get("peak_bytes_in_use", 0) for d in local]
    if any(held):
        return max(held)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
