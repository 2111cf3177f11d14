"""A convolution's weight in the transform domain, as it is stored.

Values are float32 (float64), or float16 times a power of two, or int8 with one scale per bin and
output channel. Bytes: 2 F C' C times 4 (8), 2 or 1; the raw weight has k^2 C' C elements.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dnd_fast.kernels.fft.dft import dft_forward
from dnd_fast.kernels.fft.tiling import FFTConvPlan

# A quarter of float16's range, for rounding; what is below 2^-28 of it is lost.
FP16_LIMIT = 2.0**14


@dataclass(frozen=True)
class TransformedWeight:
    """What :func:`transform_weight` makes of ``[C', C, k, k]``.

    Attributes:
        values: Real and imaginary part of each kept bin, ``[F, 2, C', C]``.
        scale: What to multiply ``values`` by, in float32: a power of two ``[]`` for float16,
            ``[F, 1, C']`` for int8, None for wider ones.
        bound: Ratio ``[]``, float32, of largest output to largest input that is not exceeded; None
            for wider ones.
    """

    values: Tensor
    scale: Tensor | None = None
    bound: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of values and scale."""
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def to(self, device: torch.device) -> TransformedWeight:
        """The same weight on another device."""
        parts = (self.values, self.scale, self.bound)
        return TransformedWeight(*(None if part is None else part.to(device) for part in parts))  # type: ignore[arg-type]

    def of(self, channels: slice) -> TransformedWeight:
        """The weight of some output channels."""
        scale = self.scale
        if scale is not None and scale.ndim:
            scale = scale[:, :, channels]
        return TransformedWeight(self.values[:, :, channels], scale, self.bound)


def transform_weight(
    weight: Tensor,
    plan: FFTConvPlan,
    *,
    dtype: torch.dtype | None = None,
    workspace_bytes: int = 1 << 27,
) -> TransformedWeight:
    """Transform ``[C', C, k, k]``.

    Args:
        weight: Raw weight of any floating-point dtype, on any device; computed in float32 at least.
        plan: Tiles of the convolution.
        dtype: Dtype of the result: float64, float32, float16 or int8; by default the weight's, but
            float16 for bfloat16.
        workspace_bytes: Memory taken beside the result, as far as one output channel allows.
    """
    exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
    if dtype is None:
        dtype = weight.dtype if weight.dtype.itemsize > 2 else torch.float16
    channels_out, channels_in = weight.shape[:2]
    values = weight.new_empty(plan.bins, 2, channels_out, channels_in, dtype=dtype)
    scale = bound = None
    if dtype.itemsize <= 2:
        magnitude = weight.abs().sum((2, 3), dtype=torch.float32)  # [C', C]; no bin exceeds it
        bound = largest(magnitude.sum(1))
        scale = 1 / power_of_two_below(FP16_LIMIT, largest(magnitude))
    if dtype == torch.int8:
        scale = weight.new_empty(plan.bins, 1, channels_out, dtype=torch.float32)
    row_bytes = channels_in * (2 * plan.bins + plan.kernel * plan.width.dft) * exact.itemsize
    for channels in chunks(channels_out, row_bytes, workspace_bytes):
        part = weight[channels].permute(3, 2, 0, 1)
        bins = dft_forward(part.to(exact), plan, plan.taps, norm="backward")
        if dtype == torch.float16:
            bins /= scale
        elif dtype == torch.int8:
            assert scale is not None
            step = bins.abs().amax((1, 3)) / 127  # [F, C']
            scale[:, 0, channels] = step
            bins = (bins / step.clamp_min(torch.finfo(exact).tiny)[:, None, :, None]).round_()
        values[:, :, channels] = bins
    return TransformedWeight(values, scale, bound)


def largest(x: Tensor) -> Tensor:
    """Largest magnitude ``[]``, float32, 0 where there is none; does not wait for the device."""
    return x.detach().abs().amax().float() if x.numel() else x.new_zeros((), dtype=torch.float32)


def power_of_two_below(limit: float, bound: Tensor) -> Tensor:
    """The largest power of two that times ``bound`` is at most ``limit``; 1 for a bound of 0."""
    exponent = torch.frexp(limit / bound)[1] - 1
    return torch.where(bound > 0, torch.exp2(exponent.clamp(-100, 100).float()), 1.0)


def chunks(count: int, bytes_each: int, workspace: int) -> Iterator[slice]:
    """Slices of ``count`` items that take up to half a workspace each."""
    step = max(1, workspace // (2 * max(1, bytes_each)))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
