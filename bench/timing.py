"""Timing several variants side by side, what they agree on, and memory."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

console = Console()


def interleaved(
    variants: Mapping[str, Callable[[], Tensor]], rounds: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Call every variant once a round, so that a machine that slows down slows all of them.

    Args:
        variants: by name.
        rounds: timed ones, after one that warms up.
        device: synchronised around every call.

    Returns:
        Sorted seconds of every variant, and its last result.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    results: dict[str, Tensor] = {}
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("timing", total=(rounds + 1) * len(variants))
        for turn in range(rounds + 1):
            for name, run in variants.items():
                progress.update(bar, description=name)
                start = _now(device)
                results[name] = run()
                elapsed = _now(device) - start
                if turn:
                    seconds[name].append(elapsed)
                progress.advance(bar)
    return {name: sorted(values) for name, values in seconds.items()}, results


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def speedup(seconds: Mapping[str, list[float]], baseline: str, variant: str) -> float:
    """Ratio of the medians."""
    return median(seconds[baseline]) / median(seconds[variant])


def difference(found: Tensor, expected: Tensor) -> float:
    """Relative, in the Euclidean norm, computed in float64."""
    exact = expected.double()
    return ((found.double() - exact).norm() / exact.norm()).item()


def spread(values: list[float]) -> float:
    """Largest minus smallest, relative to the median."""
    return (max(values) - min(values)) / median(values)


def peak_memory(device: torch.device) -> int:
    """Bytes at most in use so far: of the device, or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not getrusage's maximum, which a child process takes over from its parent.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
