"""Timing several variants side by side, what they agree on, how steady they are, and memory."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

console = Console()
MAX_SPREAD = 0.25
CPU = torch.device("cpu")


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


def spread(values: Sequence[float]) -> float:
    """Largest minus smallest, relative to the median."""
    return (max(values) - min(values)) / median(values)


def percentiles(values: Sequence[float]) -> list[float]:
    """p20, p50 and p80."""
    cuts = quantiles(values, n=10, method="inclusive")
    return [cuts[1], cuts[4], cuts[7]]


def require_steady(seconds: Mapping[str, Sequence[float]], noisy: bool) -> dict[str, float]:
    """The spread of every variant's times.

    Args:
        seconds: by name.
        noisy: accept whatever it is.

    Raises:
        SystemExit: a spread is above MAX_SPREAD.
    """
    spreads = {name: spread(values) for name, values in seconds.items()}
    unsteady = [f"{name} {value:.0%}" for name, value in spreads.items() if value > MAX_SPREAD]
    if unsteady and not noisy:
        raise SystemExit(
            f"times spread too far to be reported ({', '.join(unsteady)}; at most "
            f"{MAX_SPREAD:.0%}): the machine is busy or its clock unsteady. Try again, or pass "
            "--noisy."
        )
    return spreads


def seconds_text(value: float) -> str:
    """In s, ms or us."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{1e3 * value:.1f} ms" if value >= 1e-3 else f"{1e6 * value:.1f} us"


def reset_peak_memory(device: torch.device) -> None:
    """Let :func:`peak_memory` count from now on.

    Where the kernel does not offer that, a process's own peak stays that since its start.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes at most in use so far: of the device, or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not getrusage's maximum, which a child process takes over from its parent.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
