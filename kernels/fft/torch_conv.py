"""Convolution in a transform domain: tiled DFT, overlap-save, one real GEMM over the bins.

For ``conv2d(x, w)`` with stride 1, "same" zero padding p = (k - 1) / 2 and an odd square kernel:

1. windows of n1 x n2 positions are cut from x [B, C, H, W] and transformed by two dense DFT
   matrices, keeping one of each conjugate pair of bins: X [F, 3, T, C], the planes -Xi, Xr, Xi of
   T tiles;
2. per bin, as a real product, [Yr; Yi] = [Xr; Xi] Wr' + [-Xi; Xr] Wi', all [2T, C] x [C, C'] and
   batched over the bins; both left operands are rows of X as it lies in memory;
3. Y is transformed back at the m1 x m2 positions of each tile that no wrap-around has touched.

Every step is a matrix product whose result lies in memory as the next one reads it, with channels
innermost; data is copied only where windows overlap.

A tile covers a whole axis when n >= length + p (the padding at both ends shares the wrap-around);
otherwise tiles overlap and m = n - k + 1 outputs of each are kept. DFT matrices are orthonormal.

Bytes moved in step 2, float32: 8 F (C' C + 2 C T + C' T); the direct form's weights are 4 k^2 C' C.
Multiplications: k^2 m1 m2 / (4 F) times fewer.

Exact in exact arithmetic: forward, dX and dW agree with autograd through ``conv2d`` to rounding.

In float16, powers of two scale x and the product so that nothing can overflow: |X| is at most
sqrt(n1 n2) max |x|, and |Y| at most that times the largest sum of |w| over an output channel. So
bfloat16, whose error is five times as large, is not needed as a way out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dnd_fast.kernels.fft.dft import dft_forward, dft_inverse
from dnd_fast.kernels.fft.tiling import FFTConvPlan, TileSpan
from dnd_fast.kernels.fft.weight import (
    FP16_LIMIT,
    TransformedWeight,
    chunks,
    largest,
    power_of_two_below,
    transform_weight,
)


def fft_conv2d_torch(
    x: Tensor,
    weight: Tensor | TransformedWeight,
    plan: FFTConvPlan,
    dtype: torch.dtype,
    workspace: int,
) -> Tensor:
    """Run :func:`dnd_fast.kernels.conv2d.fft_conv2d` in plain PyTorch.

    Args:
        x: Image ``[B, C, H, W]``.
        weight: Raw weight ``[C', C, k, k]``, or transformed.
        plan: Plan made for H, W and k.
        dtype: Dtype of transformed data.
        workspace: Bytes that transformed data may take.

    Returns:
        ``[B, C', H, W]`` in x's dtype, a view of ``[H, W, B, C']``.
    """
    channels_out = weight.shape[0] if isinstance(weight, Tensor) else weight.values.shape[2]
    out = x.new_empty(*x.shape[2:], x.shape[0], channels_out)
    kept = plan.width.kept.positions, plan.height.kept.positions
    for samples, signal, scale in _signals(x, plan, dtype, workspace):
        for channels in _output_chunks(signal, channels_out, workspace):
            if isinstance(weight, Tensor):
                part = transform_weight(weight[channels], plan, dtype=dtype)
            else:
                part = weight.of(channels)
            product, factor = _multiply(signal, part, scale)
            tiles = dft_inverse(product, plan, kept, norm="ortho")  # [m2, m1, T, C']
            if factor is not None:
                tiles = tiles * factor
            _join(tiles, out[:, :, samples, channels], plan)
    return out.permute(2, 3, 0, 1)


def _multiply(
    signal: Tensor, weight: TransformedWeight, scale: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """``[F, 3, T, C]`` times ``[F, 2, C', C]`` -> ``[F, 2, T, C']``, and a factor for its inverse.

    ``scale`` is what the signal has been multiplied by.
    """
    tiles = signal.shape[2]
    planes, bins = signal.flatten(1, 2), weight.values.to(signal.dtype)
    product = _bmm(planes[:, tiles:], bins[:, 0].mT)  # [F, 2T, C']
    product = _bmm(planes[:, : 2 * tiles], bins[:, 1].mT, product)
    factor, multiplier = None, weight.scale
    if scale is not None:  # into the range of float16
        assert weight.bound is not None
        assert weight.scale is not None
        fit = power_of_two_below(FP16_LIMIT, weight.bound * (FP16_LIMIT / scale))
        factor, multiplier = 1 / fit, weight.scale * (fit / scale)
    if multiplier is not None:
        product *= multiplier.to(product.dtype)
    return product.to(signal.dtype).unflatten(1, (2, tiles)), factor


def weight_gradient_torch(
    x: Tensor, dy: Tensor, plan: FFTConvPlan, dtype: torch.dtype, workspace: int
) -> Tensor:
    """Gradient ``[C', C, k, k]`` of the weight, float32 at least.

    ``dy [B, C', H, W]`` is the gradient of the output; the other arguments are those of
    :func:`fft_conv2d_torch`.
    """
    shape = plan.kernel, plan.kernel, dy.shape[1], x.shape[1]
    gradient = x.new_zeros(shape, dtype=torch.promote_types(dtype, torch.float32))
    spans = plan.width.kept, plan.height.kept
    for samples, signal, scale in _signals(x, plan, dtype, workspace):
        tiles, planes = signal.shape[2], signal.flatten(1, 2)
        for channels in _output_chunks(signal, dy.shape[1], workspace):
            outer, scale_dy = _transform(dy[samples, channels], plan, dtype, spans, planes=2)
            rows = outer.flatten(1, 2).mT  # [F, C', 2T]
            bins = torch.stack(
                [_bmm(rows, planes[:, tiles:]), _bmm(rows, planes[:, : 2 * tiles])], dim=1
            )  # [F, 2, C', C]
            part = dft_inverse(bins, plan, plan.taps, norm="forward")
            if scale is not None and scale_dy is not None:
                part /= scale * scale_dy
            gradient[:, :, channels] += part
    return gradient.permute(2, 3, 1, 0).contiguous()


def _signals(
    x: Tensor, plan: FFTConvPlan, dtype: torch.dtype, workspace: int
) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Samples, their planes ``[F, 3, T, C]`` and the scale of these, a chunk at a time."""
    spans = plan.width.inputs, plan.height.inputs
    per_sample = 3 * plan.bins * plan.tiles * x.shape[1] * dtype.itemsize
    for samples in chunks(x.shape[0], per_sample, workspace):
        yield samples, *_transform(x[samples], plan, dtype, spans, planes=3)


def _transform(
    x: Tensor, plan: FFTConvPlan, dtype: torch.dtype, spans: tuple[TileSpan, TileSpan], planes: int
) -> tuple[Tensor, Tensor | None]:
    """``[B, C, H, W]`` -> ``[F, planes, T, C]``, T = (tiles, B), and what it was multiplied by."""
    scale = None
    if dtype == torch.float16:
        scale = power_of_two_below(FP16_LIMIT, largest(x) * math.sqrt(plan.window_size))
        x = x * scale
    x = x.permute(3, 2, 0, 1).to(dtype)
    positions = spans[0].positions, spans[1].positions
    bins = dft_forward(x, plan, positions, norm="ortho", spans=spans, planes=planes)
    return bins.flatten(2, -2), scale


def _bmm(a: Tensor, b: Tensor, to: Tensor | None = None) -> Tensor:
    """Batched product, added to another in place; of float16 in float32."""
    if a.dtype == torch.float16:
        if a.is_cuda:
            product = torch.bmm(a, b, out_dtype=torch.float32)
            return product if to is None else to.add_(product)
        a, b = a.float(), b.float()
    return torch.bmm(a, b) if to is None else to.baddbmm_(a, b)


def _output_chunks(signal: Tensor, channels: int, workspace: int) -> Iterator[slice]:
    bins, _, tiles, channels_in = signal.shape
    return chunks(channels, 4 * bins * (tiles + channels_in) * signal.element_size(), workspace)


def _join(tiles: Tensor, out: Tensor, plan: FFTConvPlan) -> None:
    """``[m2, m1, T, C']`` into ``[H, W, B, C']``."""
    rows, columns = plan.height.tiles, plan.width.tiles
    grid = tiles.unflatten(2, (rows, columns, out.shape[2]))  # [m2, m1, t1, t2, B, C']
    whole = grid.permute(2, 1, 3, 0, 4, 5).flatten(2, 3).flatten(0, 1)
    out.copy_(whole[: plan.height.length, : plan.width.length])
