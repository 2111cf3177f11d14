"""Convolution in a transform domain: tiled DFT, overlap-save, one real GEMM over the bins.

For ``conv2d(x, w)`` with stride 1, "same" zero padding p = (k - 1) / 2 and an odd square kernel:

1. windows of n1 x n2 positions are cut from x [B, C, H, W] and transformed by two dense DFT
   matrices, keeping one of each conjugate pair of bins: X [F, 2, T, C], real and imaginary part of
   T tiles;
2. per bin, as a real product, [Yr; Yi] = [Xr; Xi] Wr' + [-Xi; Xr] Wi', all [2T, C] x [C, C'] and
   batched over the bins;
3. Y is transformed back at the m1 x m2 positions of each tile that no wrap-around has touched.

Every step is a matrix product whose result lies in memory as the next one reads it, with channels
innermost; data is copied only where windows overlap.

A tile covers a whole axis when n >= length + p (the padding at both ends shares the wrap-around);
otherwise tiles overlap and m = n - k + 1 outputs of each are kept. DFT matrices are orthonormal.

Bytes moved in step 2, float32: 8 F (C' C + 2 C T + C' T); the direct form's weights are 4 k^2 C' C.
Multiplications: k^2 m1 m2 / (4 F) times fewer.

Exact in exact arithmetic: forward, dX and dW agree with autograd through ``conv2d`` to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from dnd_fast.kernels.dft import (
    columns,
    height_matrices,
    inverse_height_matrices,
    inverse_width_matrix,
    width_matrix,
)

WORKSPACE_BYTES = 1 << 30
Positions = tuple[tuple[int, ...], tuple[int, ...]]  # along width and height


@dataclass(frozen=True)
class Axis:
    """How one spatial axis is cut into tiles.

    Attributes:
        length: positions of the axis.
        kernel: k, odd.
        dft: n, points of the DFT; more than half a kernel longer than the axis, or at least k.
    """

    length: int
    kernel: int
    dft: int

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel}: it must be odd and positive.")
        if self.length < 1:
            raise ValueError(f"length={self.length}: it must be positive.")
        if self.dft < self.kernel and not self.whole:
            raise ValueError(
                f"a DFT of {self.dft} points is shorter than the kernel of {self.kernel}."
            )

    @property
    def whole(self) -> bool:
        """Whether one tile covers the axis."""
        return self.dft >= self.length + self.kernel // 2

    @property
    def outputs(self) -> int:
        """m, outputs per tile."""
        return self.length if self.whole else self.dft - self.kernel + 1

    @property
    def tiles(self) -> int:
        """Tiles along the axis."""
        return math.ceil(self.length / self.outputs)

    @property
    def offset(self) -> int:
        """Where in its window a tile's first output lies."""
        return 0 if self.whole else self.kernel // 2


@dataclass(frozen=True)
class FFTConvPlan:
    """Tiles and transforms of one convolution over (height, width)."""

    height: Axis
    width: Axis

    @classmethod
    def make(
        cls, height: int, width: int, kernel: int, dft_height: int, dft_width: int
    ) -> FFTConvPlan:
        """Plan for a spatial size, a kernel size and DFT lengths.

        Raises:
            ValueError: an even kernel, or a DFT shorter than the kernel.
        """
        return cls(Axis(height, kernel, dft_height), Axis(width, kernel, dft_width))

    @property
    def kernel(self) -> int:
        """k."""
        return self.height.kernel

    @property
    def tiles(self) -> int:
        """Tiles per sample."""
        return self.height.tiles * self.width.tiles

    @property
    def bins(self) -> int:
        """F: frequency bins kept, one per conjugate pair."""
        own, pairs = columns(self.width.dft)
        return len(own) * (self.height.dft // 2 + 1) + len(pairs) * self.height.dft


def fft_conv2d(
    x: Tensor, weight: Tensor, plan: FFTConvPlan, *, workspace_bytes: int = WORKSPACE_BYTES
) -> Tensor:
    """``conv2d(x, weight, padding="same")`` in the transform domain; differentiable once.

    Args:
        x: ``[B, C, H, W]``, float32 or float64, any strides.
        weight: ``[C', C, k, k]``, or what :func:`transform_weight` made of it,
            ``[F, 2, C', C]``, which gets no gradient.
        plan: made for H, W and k.
        workspace_bytes: batch and output channels are cut so that transformed data stays below
            this, as far as one sample and one output channel allow.

    Returns:
        ``[B, C', H, W]`` in x's dtype, a view of ``[H, W, B, C']``.

    Raises:
        ValueError: x or weight does not fit the plan.
    """
    if tuple(x.shape[2:]) != (plan.height.length, plan.width.length):
        raise ValueError(
            f"x has spatial size {list(x.shape[2:])}, the plan is for "
            f"{[plan.height.length, plan.width.length]}."
        )
    raw = (x.shape[1], plan.kernel, plan.kernel)
    if tuple(weight.shape[1:]) == raw:
        out: Tensor = _FFTConv2d.apply(x, weight, plan, workspace_bytes)
        return out
    if weight.ndim == 4 and (*weight.shape[:2], weight.shape[3]) == (plan.bins, 2, x.shape[1]):
        return _convolve(x, weight, plan, workspace_bytes)
    raise ValueError(
        f"the weight has shape {list(weight.shape)}; expected [C', {', '.join(map(str, raw))}], "
        f"or transformed [{plan.bins}, 2, C', {x.shape[1]}]."
    )


def transform_weight(
    weight: Tensor, plan: FFTConvPlan, *, workspace_bytes: int = WORKSPACE_BYTES // 8
) -> Tensor:
    """``[C', C, k, k]`` -> ``[F, 2, C', C]``: real and imaginary part of each kept bin.

    Beside the result it takes ``workspace_bytes``, as far as one output channel allows.
    """
    taps = _taps(plan)
    channels_out, channels_in = weight.shape[:2]
    out = weight.new_empty(plan.bins, 2, channels_out, channels_in)
    each = channels_in * (2 * plan.bins + plan.kernel * plan.width.dft) * weight.element_size()
    for channels in _chunks(channels_out, each, workspace_bytes):
        part = weight[channels].permute(3, 2, 0, 1)
        out[:, :, channels] = _analyze(part, plan, (taps, taps), unit=False)
    return out


class _FFTConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, plan: FFTConvPlan, workspace: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.plan, ctx.workspace = plan, workspace
        return _convolve(x, weight, plan, workspace)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "fft_conv2d has no second derivatives: use create_graph=False, or conv2d."
            )
        x, weight = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:  # the convolution with the kernel turned around
            dx = _convolve(dy, weight.transpose(0, 1).flip(2, 3), ctx.plan, ctx.workspace)
        if ctx.needs_input_grad[1]:
            dw = _weight_gradient(x, dy, ctx.plan, ctx.workspace)
        return dx, dw, None, None


def _convolve(x: Tensor, weight: Tensor, plan: FFTConvPlan, workspace: int) -> Tensor:
    transformed = tuple(weight.shape[1:]) != (x.shape[1], plan.kernel, plan.kernel)
    channels_out = weight.shape[2 if transformed else 0]
    out = x.new_empty(*x.shape[2:], x.shape[0], channels_out)
    for samples, real, turned in _signals(x, plan, workspace):
        for channels in _output_chunks(real, channels_out, plan, workspace):
            bins = (
                weight[:, :, channels] if transformed else transform_weight(weight[channels], plan)
            )
            product = torch.bmm(real, bins[:, 0].mT)  # [F, 2T, C']
            product.baddbmm_(turned, bins[:, 1].mT)
            parts = product.unflatten(1, (2, real.shape[1] // 2))
            tiles = _synthesize(parts, plan, _kept(plan), unit=True)  # [m2, m1, T, C']
            _join(tiles, out[:, :, samples, channels], plan)
    return out.permute(2, 3, 0, 1)


def _weight_gradient(x: Tensor, dy: Tensor, plan: FFTConvPlan, workspace: int) -> Tensor:
    channels_out = dy.shape[1]
    gradient = x.new_zeros(plan.kernel, plan.kernel, channels_out, x.shape[1])
    taps = _taps(plan)
    for samples, real, turned in _signals(x, plan, workspace):
        for channels in _output_chunks(real, channels_out, plan, workspace):
            part = dy[samples, channels].permute(3, 2, 0, 1)
            outer = _analyze_tiles(part, plan, outputs=True).flatten(1, 2)  # [F, 2T, C']
            bins = torch.stack(
                [torch.bmm(outer.mT, real), torch.bmm(outer.mT, turned)], dim=1
            )  # [F, 2, C', C]
            gradient[:, :, channels] += _synthesize(bins, plan, (taps, taps), unit=False)
    return gradient.permute(2, 3, 1, 0)


def _signals(
    x: Tensor, plan: FFTConvPlan, workspace: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Samples, and their [Xr; Xi] and [-Xi; Xr], both ``[F, 2T, C]``, a chunk at a time."""
    per_sample = 4 * plan.bins * plan.tiles * x.shape[1] * x.element_size()
    for samples in _chunks(x.shape[0], per_sample, workspace):
        bins = _analyze_tiles(x[samples].permute(3, 2, 0, 1), plan, outputs=False)
        turned = torch.empty_like(bins)
        torch.neg(bins[:, 1], out=turned[:, 0])
        turned[:, 1] = bins[:, 0]
        yield samples, bins.flatten(1, 2), turned.flatten(1, 2)


def _output_chunks(
    signal: Tensor, channels: int, plan: FFTConvPlan, workspace: int
) -> Iterator[slice]:
    per_channel = 4 * plan.bins * (signal.shape[1] + signal.shape[2]) * signal.element_size()
    return _chunks(channels, per_channel, workspace)


def _chunks(count: int, bytes_each: int, workspace: int) -> Iterator[slice]:
    """Slices of up to half a workspace."""
    step = max(1, workspace // (2 * max(1, bytes_each)))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _analyze_tiles(x: Tensor, plan: FFTConvPlan, *, outputs: bool) -> Tensor:
    """``[W, H, B, C]`` -> ``[F, 2, T, C]``, T = (tiles, B): of input windows or output tiles."""
    cuts = [_cut(axis, outputs) for axis in (plan.width, plan.height)]
    return _analyze(x, plan, (cuts[0].positions, cuts[1].positions), cuts=cuts, unit=True).flatten(
        2, -2
    )


@dataclass(frozen=True)
class _Cut:
    """Tiles along an axis: zeros before and after it, size of a tile, step between tiles."""

    before: int
    after: int
    size: int
    step: int
    first: int  # position of a tile's first element in the DFT's window

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(range(self.first, self.first + self.size))

    def __call__(self, x: Tensor, dim: int) -> Tensor:
        """``dim`` becomes (tiles, size)."""
        if self.before or self.after:
            x = pad(x, (0, 0) * (x.ndim - 1 - dim) + (self.before, self.after))
        return x.unfold(dim, self.size, self.step).movedim(-1, dim + 1)


def _cut(axis: Axis, outputs: bool) -> _Cut:
    if axis.whole or outputs:
        size, before, first = axis.outputs, 0, axis.offset
    else:
        size, before, first = axis.dft, axis.offset, 0
    after = (axis.tiles - 1) * axis.outputs + size - before - axis.length
    return _Cut(before, after, size, axis.outputs, first)


def _join(tiles: Tensor, out: Tensor, plan: FFTConvPlan) -> None:
    """``[m2, m1, T, C']`` into ``[H, W, B, C']``."""
    rows, columns = plan.height.tiles, plan.width.tiles
    grid = tiles.unflatten(2, (rows, columns, out.shape[2]))  # [m2, m1, t1, t2, B, C']
    whole = grid.permute(2, 1, 3, 0, 4, 5).flatten(2, 3).flatten(0, 1)
    out.copy_(whole[: plan.height.length, : plan.width.length])


def _kept(plan: FFTConvPlan) -> Positions:
    """Positions within a window that are kept as outputs, along width and height."""
    return _cut(plan.width, True).positions, _cut(plan.height, True).positions


def _taps(plan: FFTConvPlan) -> tuple[int, ...]:
    """Positions of the kernel's taps: correlation puts tap t at p - t."""
    return tuple(plan.kernel // 2 - t for t in range(plan.kernel))


def _analyze(
    x: Tensor,
    plan: FFTConvPlan,
    positions: Positions,
    *,
    unit: bool,
    cuts: Sequence[_Cut] | None = None,
) -> Tensor:
    """DFT of real data: ``[W, H, ...]`` -> ``[F, 2, ...]``, or ``[F, 2, t1, t2, ...]`` if cut.

    Args:
        positions: of the data in the DFT's window, along width and height.
        unit: orthonormal, rather than without a factor.
        cuts: tiles along width and height.
    """
    n, own = plan.height.dft, len(columns(plan.width.dft)[0])
    across = width_matrix(plan.width.dft, positions[0], unit, x.dtype, x.device)
    down_own, down = height_matrices(n, positions[1], unit, x.dtype, x.device)
    rest: tuple[int, ...] = x.shape[2:]
    x = x.contiguous()
    if cuts is None:
        waves = (across @ x.flatten(1)).view(len(across), x.shape[1], -1)  # [R, P1, M]
    else:
        windows = cuts[0](x, 0)  # [t2, P2, H, ...]
        waves = torch.matmul(across, windows.flatten(2)).unflatten(2, x.shape[1:])
        tiles = cuts[1](waves, 2)  # [t2, R, t1, P1, ...]
        rest = (tiles.shape[2], tiles.shape[0], *rest)
        order = (1, 3, 2, 0, *range(4, tiles.ndim))
        waves = tiles.permute(order).flatten(2)  # [R, P1, (t1, t2, ...)]
    each = math.prod(rest)
    waves = waves.reshape(len(across), len(positions[1]), each)
    out = x.new_empty(plan.bins, 2, *rest)
    split = own * (n // 2 + 1)
    for matrix, part, found in (
        (down_own, waves[:own], out[:split]),
        (down, waves[own:].reshape(-1, 2 * len(positions[1]), each), out[split:]),
    ):
        target = found.view(len(part), len(matrix), each)
        torch.bmm(matrix.expand(len(part), -1, -1), part, out=target)
    return out


def _synthesize(bins: Tensor, plan: FFTConvPlan, positions: Positions, *, unit: bool) -> Tensor:
    """Inverse DFT at some positions of a window: ``[F, 2, ...]`` -> ``[P2, P1, ...]``, real."""
    n, (own, pairs) = plan.height.dft, columns(plan.width.dft)
    rest, rows = bins.shape[2:], len(positions[1])
    each, split = math.prod(rest), len(own) * (n // 2 + 1)
    up_own, up = inverse_height_matrices(n, positions[1], unit, bins.dtype, bins.device)
    across = inverse_width_matrix(plan.width.dft, positions[0], unit, bins.dtype, bins.device)
    waves = bins.new_empty(len(own) + 2 * len(pairs), rows, each)
    for matrix, part, count, found in (
        (up_own, bins[:split], len(own), waves[: len(own)]),
        (up, bins[split:], len(pairs), waves[len(own) :]),
    ):
        target = found.view(count, len(matrix), each)
        source = part.reshape(count, matrix.shape[1], each)
        torch.bmm(matrix.expand(count, -1, -1), source, out=target)
    return (across @ waves.flatten(1)).view(-1, rows, *rest)
