"""The transform-domain convolution on the Triton kernels: forward, dX and dW.

The same steps and layouts as :mod:`dnd_fast.kernels.fft.torch_conv`, with every 2-D DFT as one
matrix product with folded windows (:mod:`.dft_forward`, :mod:`.dft_inverse`), which are loaded from
the image as it lies in memory; results are written back with an epilogue:

    x --dft_forward--> X [F, 3, T, C] --bin_gemm--> Y [F, 2, T, C'] --dft_inverse--> out

Bytes moved, of E bytes an element: E (image in + F (2 C' C + 6 T C + 4 T C') + image out). In 16
bits, powers of two keep all of it in the range of float16: |X| is at most sqrt(n1 n2) max |x|, and
|Y| at most that times the largest sum of |w| over an output channel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dnd_fast.kernels.fft.dft import folded_forward_matrix, folded_inverse_matrix
from dnd_fast.kernels.fft.tiling import FFTConvPlan, TileSpan, Tiling
from dnd_fast.kernels.fft.weight import (
    FP16_LIMIT,
    TransformedWeight,
    chunks,
    largest,
    power_of_two_below,
)
from dnd_fast.kernels.triton.bin_gemm import bin_gemm, bin_gemm_weight_gradient
from dnd_fast.kernels.triton.checks import LayerNorm
from dnd_fast.kernels.triton.dft_forward import dft_forward_triton
from dnd_fast.kernels.triton.dft_inverse import dft_inverse_triton


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of transformed data: float16 for 16-bit tensors, float32 for float32.

    Raises:
        ValueError: The dtype is float64, which the kernels do not compute in.
    """
    if dtype.itemsize > 4:
        raise ValueError(f"found {dtype}; Triton kernels compute in float32 and float16.")
    return torch.float16 if dtype.itemsize == 2 else torch.float32


class Workspace:
    """Memory for signals and products, reused from one convolution to the next."""

    def __init__(self) -> None:
        self.generation = 0  # of the memory: what was taken before a change of it is void
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor; the one taken before under this name is gone."""
        size = math.prod(shape) * dtype.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size or buffer.device != like.device:
            buffer = torch.empty(size, dtype=torch.uint8, device=like.device)
            self._buffers[name] = buffer
            self.generation += 1
        return buffer[:size].view(dtype).view(shape)


@dataclass(frozen=True)
class PackedWeight:
    """A weight, transformed for good or raw, and what the host must know of it.

    Attributes:
        weight: Transform ``[F, 2, C', C]``, float32, float16 or int8, or the raw weight
            ``[C', C, k, k]``, which is transformed at every use.
        scale: Factor of products, so that they stay in range.
        inverse_scale: Factor of results, in turn.
        bound: Power of two for a raw weight, as :func:`transform_weight_triton` takes it.
    """

    weight: TransformedWeight | Tensor
    scale: float = 1.0
    inverse_scale: float = 1.0
    bound: Tensor | None = None

    @classmethod
    def of(cls, weight: TransformedWeight | Tensor, dtype: torch.dtype) -> PackedWeight:
        """Pack a weight for signals of a dtype; waits for the device once."""
        if isinstance(weight, TransformedWeight):
            fixed = weight.scale is not None and not weight.scale.ndim
            scale, sums, bound = weight.scale if fixed else None, weight.bound, None
        else:
            magnitude = weight.detach().abs().sum((2, 3), dtype=torch.float32)  # [C', C]
            sums = largest(magnitude.sum(1))
            scale = 1 / power_of_two_below(FP16_LIMIT, largest(magnitude))  # no bin exceeds it
            bound = FP16_LIMIT * scale
        if dtype != torch.float16:  # raw weights are then transformed as they are
            return cls(weight, 1.0 if scale is None or bound is not None else scale.item())
        assert sums is not None
        fit = power_of_two_below(FP16_LIMIT, sums * FP16_LIMIT).item()
        return cls(weight, fit if scale is None else fit * scale.item(), 1 / fit, bound)

    @property
    def channels_out(self) -> int:
        """Output channels C'."""
        if isinstance(self.weight, Tensor):
            return self.weight.shape[0]
        return self.weight.values.shape[2]


def input_tiling(plan: FFTConvPlan) -> Tiling:
    """The windows that outputs are computed from."""
    return _tiling(plan.height.inputs, plan.width.inputs, plan)


def output_tiling(plan: FFTConvPlan) -> Tiling:
    """The outputs of each tile."""
    return _tiling(plan.height.kept, plan.width.kept, plan)


def convolve(
    x: Tensor,
    packed: PackedWeight,
    plan: FFTConvPlan,
    out: Tensor,
    workspace: Workspace,
    dtype: torch.dtype,
    *,
    norm: LayerNorm | None = None,
    bound: Tensor | None = None,
    **epilogue: Any,
) -> None:
    """Convolve an image.

    Args:
        x: Image ``[B, C, H, W]``, any strides.
        packed: The weight.
        plan: Plan made for H, W and the kernel.
        out: Receives ``[B, C', H, W]``, any strides, or what
            :func:`.dft_inverse.dft_inverse_triton` else writes to.
        workspace: Memory for what lies between.
        dtype: Dtype of transformed data, float16 or float32.
        norm: LayerNorm that is applied to x on load.
        bound: A number ``[]``, float32, at least max |x|; needed for float16.
        epilogue: Options of the epilogue, as :func:`.dft_inverse.dft_inverse_triton` takes them.
    """
    tiles = plan.tiles * x.shape[0]
    weight = packed.weight
    if isinstance(weight, Tensor):
        shape = plan.bins, 2, weight.shape[0], weight.shape[1]
        values = workspace.take("weight", shape, x, dtype)
        weight = transform_weight_triton(weight, plan, values, packed.bound)
    signal = workspace.take("signal", (plan.bins, 3, tiles, x.shape[1]), x, dtype)
    product = workspace.take("product", (plan.bins, 2, tiles, packed.channels_out), x, dtype)
    into, back = input_matrix(plan, dtype, x.device), output_matrix(plan, dtype, x.device)
    scaling = {"bound": bound, "sqrt_window_size": math.sqrt(plan.window_size)}
    dft_forward_triton(x, into, input_tiling(plan), signal, planes=3, norm=norm, **scaling)
    scale = None if weight.values.dtype != torch.int8 else weight.scale
    scale = None if scale is None else scale[:, 0]
    bin_gemm(signal, weight.values, product, weight_scale=scale, scale=packed.scale)
    dft_inverse_triton(
        product, back, output_tiling(plan), out, scale=packed.inverse_scale, **scaling, **epilogue
    )


def fft_conv2d_triton(
    x: Tensor,
    weight: Tensor | TransformedWeight,
    plan: FFTConvPlan,
    dtype: torch.dtype,
    workspace_bytes: int,
) -> Tensor:
    """Run :func:`dnd_fast.kernels.conv2d.fft_conv2d`; raw weights are transformed first."""
    packed, workspace = PackedWeight.of(weight, dtype), Workspace()
    out = x.new_empty(*x.shape[2:], x.shape[0], packed.channels_out).permute(2, 3, 0, 1)
    for samples in _samples(x, packed.channels_out, plan, workspace_bytes):
        bound = largest(x[samples]) if dtype == torch.float16 else None
        convolve(x[samples], packed, plan, out[samples], workspace, dtype, bound=bound)
    return out


def transform_weight_triton(
    weight: Tensor, plan: FFTConvPlan, out: Tensor, bound: Tensor | None
) -> TransformedWeight:
    """Transform ``[C', C, k, k]``, any strides -> ``[F, 2, C', C]``, times FP16_LIMIT / bound.

    ``bound``, if any, must be a power of two, so that kernel and host agree on the factor.
    """
    kernel = plan.kernel
    matrix = folded_forward_matrix(plan, plan.taps, "backward", out.dtype, weight.device)
    dft_forward_triton(weight, matrix, Tiling(1, 0, 0, kernel, 1, 0, 0, kernel), out, bound=bound)
    return TransformedWeight(out)


def weight_gradient_triton(
    x: Tensor, dy: Tensor, plan: FFTConvPlan, dtype: torch.dtype, workspace_bytes: int
) -> Tensor:
    """Gradient ``[C', C, k, k]``, float32, from ``x [B, C, H, W]`` and ``dy [B, C', H, W]``."""
    device, kernel = x.device, plan.kernel
    gradient = x.new_zeros(dy.shape[1], x.shape[1], kernel, kernel, dtype=torch.float32)
    part = torch.empty_like(gradient)
    bins = x.new_empty(plan.bins, 2, dy.shape[1], x.shape[1], dtype=torch.float32)
    positions = plan.width.kept.positions, plan.height.kept.positions
    into_dy = folded_forward_matrix(plan, positions, "ortho", dtype, device)
    into_x = input_matrix(plan, dtype, device)
    taps = folded_inverse_matrix(plan, plan.taps, "forward", torch.float32, device)
    workspace = Workspace()

    def signal(
        name: str, image: Tensor, matrix: Tensor, tiling: Tiling, planes: int
    ) -> tuple[Tensor, Any]:
        """Planes, and what they were multiplied by."""
        tiles = plan.tiles * image.shape[0]
        out = workspace.take(name, (plan.bins, planes, tiles, image.shape[1]), image, dtype)
        if dtype != torch.float16:
            dft_forward_triton(image, matrix, tiling, out, planes=planes)
            return out, 1.0
        scale = power_of_two_below(FP16_LIMIT, largest(image) * math.sqrt(plan.window_size))
        dft_forward_triton(image, matrix, tiling, out, planes=planes, bound=FP16_LIMIT / scale)
        return out, scale

    for samples in _samples(x, dy.shape[1], plan, workspace_bytes):
        signal_dy, scale_dy = signal("dy", dy[samples], into_dy, output_tiling(plan), 2)
        signal_x, scale_x = signal("x", x[samples], into_x, input_tiling(plan), 3)
        bin_gemm_weight_gradient(signal_dy, signal_x, bins)
        dft_inverse_triton(bins, taps, Tiling(1, 0, 0, kernel, 1, 0, 0, kernel), part)
        gradient += part / (scale_dy * scale_x)
    return gradient


def _samples(x: Tensor, channels_out: int, plan: FFTConvPlan, workspace: int) -> Iterator[slice]:
    sample_bytes = plan.bins * plan.tiles * (3 * x.shape[1] + 2 * channels_out) * 4
    return chunks(x.shape[0], sample_bytes, workspace)


def _tiling(height: TileSpan, width: TileSpan, plan: FFTConvPlan) -> Tiling:
    return Tiling(
        tiles_h=plan.height.tiles,
        step_h=height.step,
        before_h=height.before,
        size_h=height.size,
        tiles_w=plan.width.tiles,
        step_w=width.step,
        before_w=width.before,
        size_w=width.size,
    )


def input_matrix(plan: FFTConvPlan, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Matrices from the windows of :func:`input_tiling` to bins."""
    positions = plan.width.inputs.positions, plan.height.inputs.positions
    return folded_forward_matrix(plan, positions, "ortho", dtype, device)


def output_matrix(plan: FFTConvPlan, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Matrices from bins to the outputs of :func:`output_tiling`."""
    positions = plan.width.kept.positions, plan.height.kept.positions
    return folded_inverse_matrix(plan, positions, "ortho", dtype, device)
