"""What a device reaches: assumed profiles, and a calibration that takes two seconds."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import conv2d


@dataclass(frozen=True)
class DeviceProfile:
    """Rates that a device reaches, not peaks.

    Attributes:
        name: for tables.
        direct_flops: floating-point operations per second of a direct convolution.
        gemm_flops: of a batched matrix product.
        transform_flops: of the small matrix products that transform tiles.
        bandwidth: bytes per second of a copy, reads and writes added up.
        element_size: bytes per element of activations and weights.
    """

    name: str
    direct_flops: float
    gemm_flops: float
    transform_flops: float
    bandwidth: float
    element_size: int


# GPUs: fractions of 790 and 280 TFLOP/s in 16 bits (70 % direct, 60 % GEMM, 15 % transforms) and
# 85 % of 4.3 and 1.75 TB/s. CPU: two cores in float32. Assumed, not measured; see calibrate().
PROFILES = {
    "h200": DeviceProfile("H200 (assumed)", 553e12, 474e12, 118e12, 3.65e12, 2),
    "a100": DeviceProfile("A100 (assumed)", 196e12, 168e12, 42e12, 1.49e12, 2),
    "cpu": DeviceProfile("CPU (assumed)", 170e9, 170e9, 60e9, 12e9, 4),
}


def device_name(device: torch.device | str = "cpu") -> str:
    """The GPU's name, or the processor's and the number of threads."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def seconds_of(run: Callable[[], object], device: torch.device, budget: float) -> float:
    """The fastest of several calls after one that warms up, within about ``budget`` seconds."""

    def finish() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    run()
    best, deadline = float("inf"), finish() + budget
    while best == float("inf") or time.perf_counter() < deadline:
        start = finish()
        run()
        best = min(best, finish() - start)
    return best


@torch.no_grad()
def calibrate(device: torch.device | str = "cpu", seconds: float = 2.0) -> DeviceProfile:
    """Measure this machine's rates in float32, in about ``seconds``."""
    device = torch.device(device)
    x = torch.randn(1, 96, 64, 64, device=device)
    weight = torch.randn(96, 96, 9, 9, device=device)
    a, b = torch.randn(64, 256, 512, device=device), torch.randn(64, 512, 128, device=device)
    matrix = torch.randn(32, 32, device=device)
    tiles = torch.randn(200_000, 32, device=device)
    source = torch.randn(16_000_000, device=device)
    target = torch.empty_like(source)

    def rate(run: Callable[[], object], work: float) -> float:
        return work / seconds_of(run, device, seconds / 4)

    return DeviceProfile(
        name=f"{device_name(device)} (measured)",
        direct_flops=rate(lambda: conv2d(x, weight, padding=4), 2.0 * 64 * 64 * weight.numel()),
        gemm_flops=rate(lambda: torch.bmm(a, b), 2.0 * a.numel() * b.shape[2]),
        transform_flops=rate(lambda: tiles @ matrix, 2.0 * tiles.numel() * 32),
        bandwidth=rate(lambda: target.copy_(source), 8.0 * source.numel()),
        element_size=4,
    )
