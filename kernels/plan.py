"""Which algorithm runs each convolution of a decoder: direct or transform-domain, and its tiles.

Every choice is the cheapest by predicted time: for each step the larger of arithmetic over the
device's rate and bytes over its bandwidth. Rates are those that a device reaches, not peaks.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import conv2d

from dnd_fast.kernels.fft_conv import FFTConvPlan

CONVOLUTIONS = ("a_width", "a_height", "b_height", "b_width", "layerwise")
MAX_DFT = 64


@dataclass(frozen=True)
class ConvShape:
    """One convolution: name, spatial size, channels and kernel."""

    name: str
    height: int
    width: int
    channels_in: int
    channels_out: int
    kernel: int

    @property
    def direct_flops(self) -> float:
        """Of the direct form, one sample, a multiplication and an addition being two."""
        positions = self.height * self.width
        return 2.0 * positions * self.channels_in * self.channels_out * self.kernel**2


@dataclass(frozen=True)
class DeviceProfile:
    """What a device reaches.

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


@dataclass(frozen=True)
class ConvPlan:
    """The choice for one convolution.

    Attributes:
        shape: the convolution.
        tiles: the transform's tiles, or None for the direct form.
        seconds: predicted.
        flops: of the arithmetic actually done.
        weight_bytes: of the weights as used.
    """

    shape: ConvShape
    tiles: FFTConvPlan | None
    seconds: float
    flops: float
    weight_bytes: float


@dataclass(frozen=True)
class DecoderPlan:
    """A choice for every convolution of a decoder, in the order of :func:`decoder_convolutions`."""

    convolutions: tuple[ConvPlan, ...]

    @property
    def seconds(self) -> float:
        """Predicted for one pass."""
        return sum(choice.seconds for choice in self.convolutions)

    @property
    def weight_bytes(self) -> float:
        """Of all weights as used."""
        return sum(choice.weight_bytes for choice in self.convolutions)


def decoder_convolutions(features: Sequence[Sequence[int]], kernel: int) -> list[ConvShape]:
    """The five convolutions of every block, named ``BLOCK.CONVOLUTION``."""
    shapes = []
    for block, ((n, length, c), (n2, length2, c2)) in enumerate(itertools.pairwise(features)):
        sizes = (
            (length, n, c, c2),
            (n, c2, length, length2),
            (n, c, length, length2),
            (length2, n, c, c2),
            (length2, c2, n, n2),
        )
        shapes += [
            ConvShape(f"{block}.{name}", *size, kernel)
            for name, size in zip(CONVOLUTIONS, sizes, strict=True)
        ]
    return shapes


def plan_decoder(
    features: Sequence[Sequence[int]],
    kernel: int,
    profile: DeviceProfile,
    *,
    batch: int = 1,
    memory: float | None = None,
    algorithm: Literal["auto", "direct", "fft"] = "auto",
) -> DecoderPlan:
    """Choose for every convolution.

    Args:
        features, kernel: of the decoder.
        profile: of the device.
        batch: samples per pass.
        memory: bytes that the weights may take, transformed ones included: smaller tiles, or the
            direct form, then where they save most per second lost.
        algorithm: ``"direct"`` and ``"fft"`` force one everywhere.

    Raises:
        ValueError: no choice fits into ``memory``.
    """
    candidates = []
    for shape in decoder_convolutions(features, kernel):
        direct, tiled = [direct_plan(shape, profile, batch)], fft_plans(shape, profile, batch)
        candidates.append({"auto": direct + tiled, "direct": direct, "fft": tiled}[algorithm])

    def choose(price: float) -> DecoderPlan:
        """The fastest where a byte of weights costs ``price`` seconds."""
        return DecoderPlan(
            tuple(
                min(c, key=lambda each: each.seconds + price * each.weight_bytes)
                for c in candidates
            )
        )

    prices = [0.0, *(10.0 ** (exponent / 8) for exponent in range(-120, -24))]
    for price in prices:
        plan = choose(price)
        if memory is None or plan.weight_bytes <= memory:
            return plan
    raise ValueError(
        f"memory={memory:.3g} bytes is too little: the weights of this decoder need at least "
        f"{plan.weight_bytes:.3g}."
    )


def direct_plan(shape: ConvShape, profile: DeviceProfile, batch: int) -> ConvPlan:
    """Prediction for the direct form."""
    weights = shape.channels_in * shape.channels_out * shape.kernel**2 * profile.element_size
    activations = _activation_bytes(shape, profile, batch)
    flops = batch * shape.direct_flops
    seconds = max(flops / profile.direct_flops, (weights + activations) / profile.bandwidth)
    return ConvPlan(shape, None, seconds, flops, weights)


def fft_plans(shape: ConvShape, profile: DeviceProfile, batch: int) -> list[ConvPlan]:
    """Predictions for all tiles worth considering."""
    lengths = itertools.product(
        _dft_lengths(shape.height, shape.kernel), _dft_lengths(shape.width, shape.kernel)
    )
    tiles = [FFTConvPlan.make(shape.height, shape.width, shape.kernel, *pair) for pair in lengths]
    return [_predict(shape, each, profile, batch) for each in tiles]


def calibrate(device: torch.device | str = "cpu", seconds: float = 2.0) -> DeviceProfile:
    """Measure this machine's rates in float32, in about ``seconds``."""
    x = torch.randn(1, 96, 64, 64, device=device)
    weight = torch.randn(96, 96, 9, 9, device=device)
    a, b = torch.randn(64, 256, 512, device=device), torch.randn(64, 512, 128, device=device)
    matrix = torch.randn(32, 32, device=device)
    tiles = torch.randn(200_000, 32, device=device)
    source = torch.randn(16_000_000, device=device)
    target = torch.empty_like(source)

    def rate(run: object, work: float) -> float:
        assert callable(run)
        run()
        best, deadline = 0.0, time.perf_counter() + seconds / 4
        while time.perf_counter() < deadline or not best:
            start = time.perf_counter()
            run()
            if source.is_cuda:
                torch.cuda.synchronize()
            best = max(best, work / (time.perf_counter() - start))
        return best

    with torch.no_grad():
        return DeviceProfile(
            name=f"this machine's {torch.device(device).type} (measured)",
            direct_flops=rate(lambda: conv2d(x, weight, padding=4), 2.0 * 64 * 64 * weight.numel()),
            gemm_flops=rate(lambda: torch.bmm(a, b), 2.0 * a.numel() * b.shape[2]),
            transform_flops=rate(lambda: tiles @ matrix, 2.0 * tiles.numel() * 32),
            bandwidth=rate(lambda: target.copy_(source), 8.0 * source.numel()),
            element_size=4,
        )


def _predict(shape: ConvShape, tiles: FFTConvPlan, profile: DeviceProfile, batch: int) -> ConvPlan:
    height, width, bins = tiles.height, tiles.width, tiles.bins
    count = batch * tiles.tiles
    c_in, c_out, size = shape.channels_in, shape.channels_out, profile.element_size
    columns = 2 * (width.dft // 2 + 1)
    rows = min(height.dft, height.length)
    across = min(width.dft, width.length)
    signal, product = 4.0 * bins * c_in * count, 2.0 * bins * c_out * count
    weights = 2.0 * bins * c_in * c_out * size

    def step(flops: float, moved: float, rate: float) -> float:
        return max(flops / rate, moved * size / profile.bandwidth)

    gemm = 8.0 * bins * c_in * c_out * count
    forward = 2.0 * c_in * count * columns * rows * (across + 2 * height.dft)
    inverse = 2.0 * c_out * count * columns * height.outputs * (2 * height.dft + width.outputs)
    inputs = float(batch * shape.height * shape.width)
    seconds = (
        step(forward, 3 * inputs * c_in + 2.5 * signal, profile.transform_flops)
        + step(gemm, weights / size + signal + product, profile.gemm_flops)
        + step(inverse, 4 * product + 3 * inputs * c_out, profile.transform_flops)
    )
    return ConvPlan(shape, tiles, seconds, gemm + forward + inverse, weights)


def _dft_lengths(length: int, kernel: int) -> list[int]:
    """One tile for the whole axis where that is short, and lengths for several tiles."""
    whole = length + kernel // 2
    several = [n for n in range(kernel + 1, MAX_DFT + 1) if n < whole]
    # Of all lengths with as many tiles only the shortest is worth trying.
    fewest: dict[int, int] = {}
    for n in several:
        fewest.setdefault(-(-length // (n - kernel + 1)), n)
    return [*fewest.values(), *([whole] if whole <= 2 * MAX_DFT else [])] or [whole]


def _activation_bytes(shape: ConvShape, profile: DeviceProfile, batch: int) -> float:
    positions = batch * shape.height * shape.width
    return float(positions * (shape.channels_in + shape.channels_out) * profile.element_size)
