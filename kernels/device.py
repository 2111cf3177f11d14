"""What a device reaches: assumed profiles, and a calibration that takes two seconds."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
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
        name: Name for tables.
        direct_flops: Floating-point operations per second of a direct convolution.
        gemm_flops: Floating-point operations per second of a batched matrix product.
        transform_flops: Floating-point operations per second of the small matrix products that
            transform tiles.
        bandwidth: Bytes per second of a copy, reads and writes added up.
        element_size: Bytes per element of activations and weights.
        fused_2d_dft: Whether a tile's 2-D transform is a single product that gathers and scatters,
            as in the Triton kernels, or one product along each axis with results in memory between.
    """

    name: str
    direct_flops: float
    gemm_flops: float
    transform_flops: float
    bandwidth: float
    element_size: int
    fused_2d_dft: bool = False


# GPUs: fractions of 790 and 280 TFLOP/s in 16 bits (70 % direct, 60 % GEMM, 40 % transforms) and
# 85 % of 4.3 and 1.75 TB/s. CPU: two cores in float32. Assumed, not measured; see calibrate().
PROFILES = {
    "h200": DeviceProfile("H200 (assumed)", 553e12, 474e12, 316e12, 3.65e12, 2, fused_2d_dft=True),
    "a100": DeviceProfile("A100 (assumed)", 196e12, 168e12, 112e12, 1.49e12, 2, fused_2d_dft=True),
    "cpu": DeviceProfile("CPU (assumed)", 170e9, 170e9, 60e9, 12e9, 4),
}


def can_run_triton(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the Triton kernels can run: on an NVIDIA GPU from sm_80 on, in 32 or 16 bits."""
    if device.type != "cuda" or torch.version.hip is not None or not torch.cuda.is_available():
        return False
    recent = torch.cuda.get_device_capability(device) >= (8, 0)
    return recent and dtype.itemsize <= 4 and importlib.util.find_spec("triton") is not None


def device_name(device: torch.device | str = "cpu") -> str:
    """The GPU's name, or the processor's and the number of threads."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def table_name(device: torch.device | str = "cpu") -> str:
    """Name of the file that holds what was measured on a device."""
    return re.sub(r"[^A-Za-z0-9]+", "-", device_name(device)).strip("-") + ".json"


def time_fn(run: Callable[[], object], device: torch.device, budget: float) -> float:
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
def calibrate(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seconds: float = 2.0,
    fused_2d_dft: bool = False,
) -> DeviceProfile:
    """Measure this machine's rates, in about ``seconds``.

    Args:
        device: Device to measure on.
        dtype: Dtype of the decoder; products of 16 bits are measured in float16, on a CPU in
            float32.
        seconds: Time in all.
        fused_2d_dft: How transforms will run; see :class:`DeviceProfile`.
    """
    device = torch.device(device)
    size = dtype.itemsize
    if size == 2:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
    many = 8 if device.type == "cuda" else 1  # enough work for a GPU

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    x, weight = random(many, 96, 64, 64), random(96, 96, 9, 9)
    a, b = random(64, 256, 512 * many), random(64, 512 * many, 128)
    matrix, tiles = random(32, 32), random(200_000 * many, 32)
    if fused_2d_dft:
        matrix, tiles = random(384, 384), random(384, 20_000 * many).T
    source = random(16_000_000 * many)
    target = torch.empty_like(source)

    def rate(run: Callable[[], object], work: float) -> float:
        return work / time_fn(run, device, seconds / 4)

    direct_work = 2.0 * many * 64 * 64 * weight.numel()
    return DeviceProfile(
        name=f"{device_name(device)} (measured)",
        direct_flops=rate(lambda: conv2d(x, weight, padding=4), direct_work),
        gemm_flops=rate(lambda: torch.bmm(a, b), 2.0 * a.numel() * b.shape[2]),
        transform_flops=rate(lambda: tiles @ matrix, 2.0 * tiles.numel() * len(matrix)),
        bandwidth=rate(lambda: target.copy_(source), 2.0 * source.nbytes),
        element_size=size,
        fused_2d_dft=fused_2d_dft,
    )
