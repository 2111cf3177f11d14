"""Timers must time the work, and unsteady times must not be reported."""

import inspect
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dnd_fast.bench import alternatives, decoder, kernels, latency, training
from dnd_fast.bench.harness.timing import (
    CPU,
    difference,
    interleaved,
    percentiles,
    require_steady,
    seconds_text,
    speedup,
    spread,
)


def test_a_planted_sleep_shows_up():
    def work(seconds):
        time.sleep(seconds)
        return torch.tensor(seconds)

    variants = {"slow": lambda: work(0.06), "fast": lambda: work(0.01)}
    seconds, last = interleaved(variants, 3, CPU)
    assert [len(values) for values in seconds.values()] == [3, 3]
    assert all(value >= 0.06 for value in seconds["slow"])
    assert 0.04 <= seconds["slow"][1] - seconds["fast"][1] <= 0.2
    assert speedup(seconds, "slow", "fast") > 3
    assert last["slow"] == torch.tensor(0.06)


def test_the_first_round_warms_up_and_is_not_counted():
    calls = []

    def run():
        calls.append(None)
        time.sleep(0.1 if len(calls) == 1 else 0)
        return torch.zeros(1)

    seconds, _ = interleaved({"it": run}, 2, CPU)
    assert len(calls) == 3
    assert max(seconds["it"]) < 0.09


def test_spread_and_difference():
    assert spread([1.0, 2.0, 4.0]) == 1.5
    assert difference(torch.tensor([3.0, 4.1]), torch.tensor([3.0, 4.0])) == pytest.approx(0.02)


def test_percentiles():
    assert percentiles([float(value) for value in range(11)]) == [2.0, 5.0, 8.0]


def test_unsteady_times_are_refused_unless_asked_for():
    seconds = {"steady": [1.0, 1.1, 1.2], "jumpy": [1.0, 1.0, 1.3]}
    with pytest.raises(SystemExit, match=r"reported \(jumpy 30%; at most 25%\)"):
        require_steady(seconds, noisy=False)
    assert require_steady(seconds, noisy=True)["jumpy"] == pytest.approx(0.3)
    assert list(require_steady({"steady": seconds["steady"]}, noisy=False)) == ["steady"]


@pytest.mark.parametrize("module", [decoder, kernels, latency, training, alternatives])
def test_every_benchmark_with_times_can_refuse(module):
    source = inspect.getsource(module.main)
    assert "require_steady(" in source
    assert "noisy" in inspect.signature(module.main).parameters


PEAKS = """
import gc
import torch
from dnd_fast.bench.harness.timing import CPU, peak_memory, reset_peak_memory

def peak_of(size):
    gc.collect()
    reset_peak_memory(CPU)
    before = peak_memory(CPU)
    torch.ones(size)
    return peak_memory(CPU) - before

peak_of(1000)
print(peak_of(50_000_000), peak_of(1000))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts peaks")
def test_peak_memory_counts_from_a_reset():
    """In a process of its own: what others free meanwhile would count against it."""
    command = [sys.executable, "-c", PEAKS]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    big, small = map(int, result.stdout.split())
    assert 1.9e8 < big < 2.3e8
    assert small < 2e7


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.3, "12.30 s"), (0.0123, "12.3 ms"), (1.23e-5, "12.3 us")]
)
def test_seconds_text(seconds, text):
    assert seconds_text(seconds) == text
