"""Speeds and shares of time, by a clock of the test's own."""

import jax
import pytest

from magvid import meter
from magvid.meter import Meter


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when it is told to."""
    now = [1000.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(meter.time, "time", lambda: 5e8 + now[0])
    monkeypatch.setattr(meter, "measured_peak", lambda device, dtype: 8e12)

    def wait(seconds):
        now[0] += seconds

    return wait


def train(of: Meter, clock, steps: int) -> None:
    """Steps of 2 s, of which a quarter waits for data; after them a save of 1 s and an evaluation of 100."""
    for _ in range(steps):
        with of.waiting("data"):
            clock(0.5)
        clock(1.5)
        of.step(4, 6e12)
    with of.waiting("save"):
        clock(1.0)
    with of.stopped():
        clock(100.0)


def test_speeds_and_shares(clock, monkeypatch):
    monkeypatch.setattr(meter, "data_sheet", lambda kind: 16e12)
    found = Meter(jax.devices()[:2], "float32")
    clock(50.0)  # compiles
    found.step(4, 6e12)
    train(found, clock, 5)
    line = found.read()
    assert line.pop("perf/peak_memory_gb") > 0.01
    seconds, since = 11.0, 50 + 11 + 100
    assert line == pytest.approx(
        {
            "perf/steps_per_sec": 5 / seconds,
            "perf/examples_per_sec": 20 / seconds,
            "perf/tflops_per_device": 15 / seconds,
            "perf/mfu": 15 / seconds / 16,
            "perf/mfu_measured": 15 / seconds / 8,
            "perf/data_wait_frac": 2.5 / seconds,
            "perf/save_wait_frac": 1 / seconds,
            "perf/seconds": since,
            "perf/goodput": 7.5 / since,
        }
    )
    assert found.read() == {}  # nothing was done since


def test_goodput_counts_what_was_lost_between_two_starts(clock):
    first = Meter(jax.devices()[:1], "float32")
    first.step(1, 0)
    train(first, clock, 4)
    line = first.read() | {"time": 5e8 + 1000 + 109}
    train(first, clock, 4)  # is not logged: killed
    clock(83.0)
    second = Meter(jax.devices()[:1], "float32", line)
    second.step(1, 0)
    train(second, clock, 4)
    later = second.read()
    assert later["perf/seconds"] == pytest.approx(109 + 109 + 83 + 109) and later["perf/goodput"] == pytest.approx(12 / 410)


def test_what_a_run_went_back_behind_does_not_count(clock):
    """Four steps of 3 seconds that are saved, four that are lost with the time that going back takes, four more."""
    found = Meter(jax.devices()[:1], "float32")
    found.step(1, 0)
    quick = lambda: [(clock(3.0), found.step(1, 0)) for _ in range(4)]
    quick()
    found.saved()
    quick()
    clock(10.0)
    found.back()
    quick()
    line = found.read()
    assert line["perf/goodput"] == pytest.approx(24 / 46) and line["perf/steps_per_sec"] == pytest.approx(1 / 3)


def test_data_sheets_go_by_the_longest_name():
    assert meter.data_sheet("TPU v5 lite") == 197e12 and meter.data_sheet("TPU v5p") == meter.data_sheet("TPU v5") == 459e12
    assert meter.data_sheet("NVIDIA H100 80GB HBM3") == 989e12 and meter.data_sheet("NVIDIA H100 PCIe") == 756e12
    assert meter.data_sheet("NVIDIA L40S") == 362e12 and meter.data_sheet("NVIDIA L40") == 181e12 and meter.data_sheet("NVIDIA H100 NVL") == 835e12
    assert meter.data_sheet("NVIDIA L4") == 121e12 and meter.data_sheet("cpu") is None


def test_a_peak_is_measured():
    assert 1e8 < meter.measured_peak(jax.devices()[0], "float32") < 1e15
