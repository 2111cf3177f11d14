"""Which algorithm runs each convolution of a decoder: direct or transform-domain, and its tiles.

Every choice is the cheapest by predicted time: for each step the larger of arithmetic over the
device's rate and bytes over its bandwidth. Where a committed table has measured the device, its
times count instead.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from dnd_fast.kernels.conv2d import WORKSPACE_BYTES
from dnd_fast.kernels.device import DeviceProfile
from dnd_fast.kernels.fft.tiling import FFTConvPlan
from dnd_fast.kernels.reference import CONVOLUTIONS, Convolution

MAX_DFT = 64
Weights = Literal["cached", "streamed", "int8"]
# Of one convolution: the seconds of "direct" and of "N1xN2", the lengths of a DFT.
MeasuredTimes = Mapping[str, Mapping[str, float]]


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
    def convolution(self) -> Convolution:
        """Which of a block's convolutions it is."""
        return CONVOLUTIONS[self.name.partition(".")[2]]

    @property
    def direct_flops(self) -> float:
        """Operations of the direct form for one sample, a multiplication and an addition being
        two."""
        return 2.0 * self.height * self.width * self.weights

    @property
    def weights(self) -> int:
        """Number of elements of the raw weight."""
        return self.channels_in * self.channels_out * self.kernel**2

    @property
    def transposed(self) -> ConvShape:
        """The convolution that gives the gradient of the input."""
        sizes = self.height, self.width, self.channels_out, self.channels_in
        return ConvShape(self.name, *sizes, self.kernel)

    def key(self, batch: int, weights: Weights) -> str:
        """What a table of measured times calls it."""
        return (
            f"{self.height}x{self.width} {self.channels_in}->{self.channels_out} k{self.kernel} "
            f"batch {batch} {weights}"
        )


@dataclass(frozen=True)
class ConvPlan:
    """The choice for one convolution.

    Attributes:
        shape: The convolution.
        fft_plan: Tiles and transforms, or None for the direct form.
        seconds: Time predicted, or measured.
        flops: Operations actually done.
        bytes_moved: Bytes moved to and from memory.
        weight_bytes: Bytes that the weights take, as they are kept.
    """

    shape: ConvShape
    fft_plan: FFTConvPlan | None
    seconds: float
    flops: float
    bytes_moved: float
    weight_bytes: float

    @property
    def algorithm(self) -> str:
        """ "direct", or the lengths of the DFT."""
        if self.fft_plan is None:
            return "direct"
        return f"{self.fft_plan.height.dft}x{self.fft_plan.width.dft}"


@dataclass(frozen=True)
class DecoderPlan:
    """A choice for every convolution of a decoder, in the order of :func:`decoder_convolutions`.

    Attributes:
        convolutions: The choices.
        weights: How transformed weights are kept: ``"cached"``, ``"int8"``, or, transformed anew
            at each call, ``"streamed"``.
        workspace_bytes: Bytes that the transformed data of one convolution may take.
    """

    convolutions: tuple[ConvPlan, ...]
    weights: Weights = "cached"
    workspace_bytes: int = WORKSPACE_BYTES

    def block(self, index: int) -> dict[str, ConvPlan]:
        """The choices for one block, by name of the convolution as in
        :data:`dnd_fast.kernels.reference.CONVOLUTIONS`."""
        count = len(CONVOLUTIONS)
        choices = self.convolutions[index * count : (index + 1) * count]
        return dict(zip(CONVOLUTIONS, choices, strict=True))

    @property
    def seconds(self) -> float:
        """Time of one pass, or one training step."""
        return sum(choice.seconds for choice in self.convolutions)

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights as they are kept."""
        return sum(choice.weight_bytes for choice in self.convolutions)

    @property
    def direct(self) -> list[str]:
        """Names of the convolutions in direct form."""
        return [choice.shape.name for choice in self.convolutions if choice.fft_plan is None]


def decoder_convolutions(features: Sequence[Sequence[int]], kernel: int) -> list[ConvShape]:
    """The five convolutions of every block, named ``BLOCK.CONVOLUTION``."""
    shapes = []
    for block, (before, after) in enumerate(itertools.pairwise(features)):
        for name, convolution in CONVOLUTIONS.items():
            height, width, channels_in, channels_out = convolution.sizes(before, after)
            shape = ConvShape(f"{block}.{name}", height, width, channels_in, channels_out, kernel)
            shapes.append(shape)
    return shapes


def plan_decoder(
    features: Sequence[Sequence[int]],
    kernel: int,
    profile: DeviceProfile,
    *,
    batch: int = 1,
    memory: float | None = None,
    weights: Weights = "cached",
    training: bool = False,
    algorithm: Literal["auto", "direct", "fft"] = "auto",
    measured: MeasuredTimes | None = None,
) -> DecoderPlan:
    """Choose for every convolution.

    Args:
        features: Shapes (N, L, C) between the decoder's blocks.
        kernel: Kernel size of the decoder.
        profile: Rates of the device.
        batch: Samples per pass.
        memory: Bytes that the weights may take, transformed ones included: smaller tiles, or the
            direct form, then where a byte costs the fewest seconds.
        weights: How transformed ones are kept; see :class:`DecoderPlan`.
        training: Plan a forward and a backward pass, which need streamed weights.
        algorithm: ``"direct"`` and ``"fft"`` force one everywhere.
        measured: Times of inference by :meth:`ConvShape.key`, which count instead of predictions.

    Raises:
        ValueError: No choice fits into ``memory``, or training with other weights than streamed.
    """
    if training and weights != "streamed":
        raise ValueError(f"weights={weights!r}: training changes them, so it needs 'streamed'.")
    candidates = []
    for shape in decoder_convolutions(features, kernel):
        options = list(conv_plans(shape, profile, batch, weights, training))
        times = {} if training else (measured or {}).get(shape.key(batch, weights), {})
        options = _with_times(options, times)
        if algorithm != "auto":
            options = [
                option for option in options if (option.fft_plan is None) == (algorithm == "direct")
            ]
        candidates.append(options)

    paths = [_trade_offs(options) for options in candidates]
    choices = [path[0] for path in paths]
    steps = sorted(
        (_marginal_cost(before, after), index, place)
        for index, path in enumerate(paths)
        for place, (before, after) in enumerate(itertools.pairwise(path), start=1)
    )
    for _, index, place in steps:
        if memory is None or sum(choice.weight_bytes for choice in choices) <= memory:
            break
        choices[index] = paths[index][place]
    plan = DecoderPlan(tuple(choices), weights)
    if memory is not None and plan.weight_bytes > memory:
        raise ValueError(
            f"memory={memory:.3g} bytes is too little: the weights of this decoder need at least "
            f"{plan.weight_bytes:.3g}."
        )
    return plan


def _trade_offs(options: Sequence[ConvPlan]) -> list[ConvPlan]:
    """The fastest, then ever smaller ones, each for the fewest seconds per byte saved."""
    path = [min(options, key=lambda option: (option.seconds, option.weight_bytes))]
    while smaller := [plan for plan in options if plan.weight_bytes < path[-1].weight_bytes]:
        path.append(min(smaller, key=lambda plan: _marginal_cost(path[-1], plan)))
    return path


def _marginal_cost(before: ConvPlan, after: ConvPlan) -> float:
    """Seconds per byte saved."""
    return (after.seconds - before.seconds) / (before.weight_bytes - after.weight_bytes)


def bandwidth_bound_seconds(
    features: Sequence[Sequence[int]], kernel: int, profile: DeviceProfile, batch: int = 1
) -> float:
    """Time of reading raw weights and condition once and writing tokens once: a lower bound."""
    (n, length, c), (n2, length2, c2) = features[0], features[-1]
    weights = sum(shape.weights for shape in decoder_convolutions(features, kernel))
    elements = weights + batch * (n * length * c + n2 * length2 * c2)
    return elements * profile.element_size / profile.bandwidth


@lru_cache(maxsize=1024)
def conv_plans(
    shape: ConvShape,
    profile: DeviceProfile,
    batch: int = 1,
    weights: Weights = "cached",
    training: bool = False,
) -> tuple[ConvPlan, ...]:
    """Predictions for the direct form, first, and for all tiles worth considering."""
    lengths = itertools.product(
        _dft_lengths(shape.height, shape.kernel), _dft_lengths(shape.width, shape.kernel)
    )
    plans = [
        _tiled(
            shape,
            FFTConvPlan.make(shape.height, shape.width, shape.kernel, *pair),
            profile,
            batch,
            weights,
            training,
        )
        for pair in lengths
    ]
    return _direct(shape, profile, batch, training), *plans


def _with_times(options: list[ConvPlan], times: Mapping[str, float]) -> list[ConvPlan]:
    """The options with measured times; predictions for other tiles are corrected by the median
    ratio of measured to predicted time."""
    ratios = [
        times[option.algorithm] / option.seconds
        for option in options
        if option.fft_plan is not None and option.algorithm in times
    ]
    ratio = statistics.median(ratios) if ratios else 1.0
    return [
        dataclasses.replace(option, seconds=times.get(option.algorithm, ratio * option.seconds))
        for option in options
    ]


class _Steps:
    """Adds up steps, each as slow as the slower of its arithmetic and its memory."""

    def __init__(self, profile: DeviceProfile) -> None:
        self.profile = profile
        self.seconds = self.flops = self.bytes_moved = 0.0

    def add(self, flops: float, elements: float, rate: float) -> None:
        moved = elements * self.profile.element_size
        self.seconds += max(flops / rate, moved / self.profile.bandwidth)
        self.flops += flops
        self.bytes_moved += moved


def _direct(shape: ConvShape, profile: DeviceProfile, batch: int, training: bool) -> ConvPlan:
    positions = batch * shape.height * shape.width
    elements = shape.weights + positions * (shape.channels_in + shape.channels_out)
    steps = _Steps(profile)
    for _ in range(3 if training else 1):  # the output, and the gradients of input and weight
        steps.add(batch * shape.direct_flops, elements, profile.direct_flops)
    weight_bytes = shape.weights * profile.element_size
    return ConvPlan(shape, None, steps.seconds, steps.flops, steps.bytes_moved, weight_bytes)


def _tiled(
    shape: ConvShape,
    plan: FFTConvPlan,
    profile: DeviceProfile,
    batch: int,
    weights: Weights,
    training: bool,
) -> ConvPlan:
    steps = _Steps(profile)
    _add_convolution(steps, shape, plan, batch, weights)
    if training:
        _add_convolution(steps, shape.transposed, plan, batch, weights)
        _add_weight_gradient(steps, shape, plan, batch)
    transformed = 2.0 * plan.bins * shape.channels_in * shape.channels_out
    weight_bytes = {
        "cached": transformed * profile.element_size,
        "streamed": float(shape.weights * profile.element_size),
        "int8": transformed + 4.0 * plan.bins * shape.channels_out,
    }[weights]
    return ConvPlan(shape, plan, steps.seconds, steps.flops, steps.bytes_moved, weight_bytes)


def _add_convolution(
    steps: _Steps, shape: ConvShape, plan: FFTConvPlan, batch: int, weights: Weights
) -> None:
    """Windows in, one product per bin, kept outputs back."""
    height, width, fused_2d_dft = plan.height, plan.width, steps.profile.fused_2d_dft
    c_in, c_out, count = shape.channels_in, shape.channels_out, batch * plan.tiles
    inputs, outputs = ((batch * shape.height * shape.width) * c for c in (c_in, c_out))
    signal, product = 3.0 * plan.bins * c_in * count, 2.0 * plan.bins * c_out * count
    transformed = 2.0 * plan.bins * c_in * c_out
    rows, across = min(height.dft, height.length), min(width.dft, width.length)
    moved = inputs + signal if fused_2d_dft else 3 * inputs + 2.5 * signal
    _add_transforms(steps, plan, rows, across, 3, c_in * count, moved)
    if weights == "streamed":
        moved = shape.weights + transformed if fused_2d_dft else 3 * shape.weights + 2 * transformed
        _add_transforms(steps, plan, plan.kernel, plan.kernel, 2, c_in * c_out, moved)
    kept = transformed
    if weights == "int8":
        kept /= steps.profile.element_size
        if not fused_2d_dft:  # converted before use
            steps.add(0, kept + transformed, steps.profile.gemm_flops)
            kept = transformed
    flops = 8.0 * plan.bins * c_in * c_out * count
    steps.add(flops, kept + signal + (1 if fused_2d_dft else 2) * product, steps.profile.gemm_flops)
    moved = product + outputs if fused_2d_dft else 4 * product + 3 * outputs
    _add_transforms(steps, plan, height.outputs, width.outputs, 2, c_out * count, moved)


def _add_weight_gradient(steps: _Steps, shape: ConvShape, plan: FFTConvPlan, batch: int) -> None:
    """Both signals in, an outer product per bin, the kernel's taps back."""
    height, width = plan.height, plan.width
    c_in, c_out, count = shape.channels_in, shape.channels_out, batch * plan.tiles
    signals = 3.0 * plan.bins * count * (c_in + c_out)
    transformed = 2.0 * plan.bins * c_in * c_out
    rows, across = min(height.dft, height.length), min(width.dft, width.length)
    _add_transforms(steps, plan, rows, across, 3, (c_in + c_out) * count, 3 * signals)
    flops = 8.0 * plan.bins * c_in * c_out * count
    steps.add(flops, 3 * transformed + signals, steps.profile.gemm_flops)
    moved = 2 * transformed + 3 * shape.weights
    _add_transforms(steps, plan, plan.kernel, plan.kernel, 2, c_in * c_out, moved)


def _add_transforms(
    steps: _Steps,
    plan: FFTConvPlan,
    rows: int,
    across: int,
    planes: int,
    count: float,
    moved: float,
) -> None:
    """Add transforms of ``count`` windows, between ``rows`` x ``across`` positions and the planes
    of all bins."""
    if steps.profile.fused_2d_dft:  # folded about the window's centre
        flops = 2.0 * rows * across * plan.bins
    else:
        columns = 2 * (plan.width.dft // 2 + 1)
        flops = 2.0 * columns * rows * (across + planes * plan.height.dft)
    steps.add(flops * count, moved, steps.profile.transform_flops)


def _dft_lengths(length: int, kernel: int) -> list[int]:
    """One tile for the whole axis where that is short, and lengths for several tiles."""
    whole = length + kernel // 2
    several = [n for n in range(kernel + 1, MAX_DFT + 1) if n < whole]
    # Of all lengths with as many tiles only the shortest is worth trying.
    fewest: dict[int, int] = {}
    for n in several:
        fewest.setdefault(-(-length // (n - kernel + 1)), n)
    return [*fewest.values(), *([whole] if whole <= 2 * MAX_DFT else [])] or [whole]
