"""Measured times of convolutions, one committed table per device: measured/DEVICE.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn.functional import conv2d

from dnd_fast.kernels.conv2d import fft_conv2d
from dnd_fast.kernels.device import DeviceProfile, table_name, time_fn
from dnd_fast.kernels.fft.weight import TransformedWeight
from dnd_fast.kernels.planner.cost_model import (
    ConvPlan,
    MeasuredTimes,
    Weights,
    conv_plans,
    decoder_convolutions,
)

PRICES = (0.0, 1e-11, 3e-11, 1e-10, 3e-10)  # seconds per byte of weights
TABLES = Path(__file__).parent / "measured"


def table_path(device: torch.device | str) -> Path:
    """Where the table of a device lives."""
    return TABLES / table_name(device)


def load_table(device: torch.device | str) -> MeasuredTimes:
    """Times by :meth:`dnd_fast.kernels.planner.cost_model.ConvShape.key`.

    Empty for a device that has not been measured.
    """
    path = table_path(device)
    if not path.is_file():
        return {}
    times: MeasuredTimes = json.loads(path.read_text(encoding="utf-8"))["seconds"]
    return times


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
        features, kernel: of the decoder.
        profile: predicts which tiles are likely.
        batch, weights: of the passes to plan later.
        device: to measure on.
        seconds: to spend on each algorithm, and at least two calls.
        report: called with the convolutions done and their number.

    Returns:
        Seconds by :meth:`dnd_fast.kernels.planner.cost_model.ConvShape.key` and algorithm.
    """
    device = torch.device(device)
    found: dict[str, dict[str, float]] = {}
    shapes = decoder_convolutions(features, kernel)
    for done, shape in enumerate(shapes):
        report(done, len(shapes))
        key = shape.key(batch, weights)
        if key in found:
            continue
        direct, *tiled = conv_plans(shape, profile, batch, weights)
        likely = {
            min(tiled, key=lambda each: each.seconds + price * each.weight_bytes)
            for price in PRICES
        }
        found[key] = {
            each.algorithm: _time(each, batch, weights, device, seconds)
            for each in (direct, *likely)
        }
    report(len(shapes), len(shapes))
    return found


def _time(
    choice: ConvPlan, batch: int, weights: Weights, device: torch.device, seconds: float
) -> float:
    shape, tiles = choice.shape, choice.fft_plan
    x = torch.randn(batch, shape.height, shape.width, shape.channels_in, device=device)
    x = x.permute(0, 3, 1, 2)
    raw = shape.channels_out, shape.channels_in, shape.kernel, shape.kernel
    if tiles is None:
        weight = torch.randn(raw, device=device)
        return time_fn(lambda: conv2d(x, weight, padding=shape.kernel // 2), device, seconds)
    used: torch.Tensor | TransformedWeight = torch.randn(0)
    if weights == "streamed":
        used = torch.randn(raw, device=device)
    else:  # values do not matter to the time
        size = tiles.bins, 2, shape.channels_out, shape.channels_in
        dtype = torch.int8 if weights == "int8" else torch.float32
        scale = torch.ones(tiles.bins, 1, shape.channels_out, device=device)
        used = TransformedWeight(
            torch.ones(size, dtype=dtype, device=device), scale if weights == "int8" else None
        )
    return time_fn(lambda: fft_conv2d(x, used, tiles), device, seconds)
