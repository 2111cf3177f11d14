"""Measured times of convolutions: the user's tables, and measured/DEVICE.json in the package."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch.nn.functional import conv2d

from dnd_fast.kernels.conv2d import fft_conv2d
from dnd_fast.kernels.device import DeviceProfile, time_fn
from dnd_fast.kernels.device_tables import DeviceTables
from dnd_fast.kernels.fft.weight import TransformedWeight
from dnd_fast.kernels.planner.cost_model import (
    ConvPlan,
    MeasuredTimes,
    Weights,
    conv_plans,
    decoder_convolutions,
)

PRICES = (0.0, 1e-11, 3e-11, 1e-10, 3e-10)  # seconds per byte of weights
TABLES = DeviceTables(Path(__file__).parent / "measured", "seconds")


def table_path(device: torch.device | str) -> Path:
    """File in the user's cache folder that holds what was measured on a device."""
    return TABLES.path(device)


def load_table(device: torch.device | str) -> MeasuredTimes:
    """Times by :meth:`dnd_fast.kernels.planner.cost_model.ConvShape.key`: the user's, and those
    that the package carries for convolutions that the user has not measured.

    Empty for a device that nobody has measured.

    Raises:
        ValueError: A table is damaged.
    """
    times = TABLES.load(device)
    for key, seconds in times.items():
        if not isinstance(seconds, dict) or not all(map(_is_time, seconds.values())):
            raise ValueError(
                f"{TABLES.path(device)} or the package's table has {seconds!r} for {key!r}, "
                "expected positive numbers of seconds: delete it, and measure again."
            )
    return times


def _is_time(value: object) -> bool:
    return type(value) in (int, float) and 0 < cast(float, value) < math.inf


def save_table(device: torch.device | str, times: MeasuredTimes) -> Path:
    """Add times to the user's table of a device; returns its file.

    Args:
        device: Device that they were measured on.
        times: What :func:`measure` found.

    Raises:
        ValueError: The table that is there is damaged.
    """
    return TABLES.save(device, times)


@torch.no_grad()
def measure(
    features: Sequence[Sequence[int]],
    kernel: int,
    profile: DeviceProfile,
    *,
    batch: int = 1,
    weights: Weights = "cached",
    device: torch.device | str = "cpu",
    seconds: float = 0.3,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, float]]:
    """Time every convolution of a decoder in float32: direct, and with some tiles.

    Those are tried that are predicted to be the fastest at various prices of memory.

    Args:
        features: Shapes (N, L, C) between the decoder's blocks.
        kernel: Kernel size of the decoder.
        profile: Rates that predict which tiles are likely.
        batch: Samples of the passes to plan later.
        weights: How these passes keep transformed weights.
        device: Device to measure on.
        seconds: Time to spend on each algorithm, for two calls at least.
        report: Called with the number of convolutions done, and of all.

    Returns:
        Seconds by :meth:`dnd_fast.kernels.planner.cost_model.ConvShape.key` and algorithm.
    """
    device = torch.device(device)
    times: dict[str, dict[str, float]] = {}
    shapes = decoder_convolutions(features, kernel)
    for done, shape in enumerate(shapes):
        report(done, len(shapes))
        key = shape.key(batch, weights)
        if key in times:
            continue
        direct, *tiled = conv_plans(shape, profile, batch, weights)
        likely = {
            min(tiled, key=lambda plan: plan.seconds + price * plan.weight_bytes)
            for price in PRICES
        }
        times[key] = {
            plan.algorithm: _time(plan, batch, weights, device, seconds)
            for plan in (direct, *likely)
        }
    report(len(shapes), len(shapes))
    return times


def _time(
    plan: ConvPlan, batch: int, weights: Weights, device: torch.device, seconds: float
) -> float:
    shape, fft_plan = plan.shape, plan.fft_plan
    x = torch.randn(batch, shape.height, shape.width, shape.channels_in, device=device)
    x = x.permute(0, 3, 1, 2)
    raw = torch.randn(
        shape.channels_out, shape.channels_in, shape.kernel, shape.kernel, device=device
    )
    if fft_plan is None:
        return time_fn(lambda: conv2d(x, raw, padding=shape.kernel // 2), device, seconds)
    if weights == "streamed":
        return time_fn(lambda: fft_conv2d(x, raw, fft_plan), device, seconds)
    # Values do not matter to the time.
    size = fft_plan.bins, 2, shape.channels_out, shape.channels_in
    dtype = torch.int8 if weights == "int8" else torch.float32
    scale = torch.ones(fft_plan.bins, 1, shape.channels_out, device=device)
    transformed = TransformedWeight(
        torch.ones(size, dtype=dtype, device=device), scale if weights == "int8" else None
    )
    return time_fn(lambda: fft_conv2d(x, transformed, fft_plan), device, seconds)
