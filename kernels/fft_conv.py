"""Convolution in a transform domain: tiled DFT, overlap-save, one real GEMM over the bins.

For ``conv2d(x, w)`` with stride 1, "same" zero padding p = (k - 1) / 2 and an odd square kernel:

1. windows of n1 x n2 positions are cut from x [B, C, H, W] and transformed by two dense DFT
   matrices, keeping one of each conjugate pair of bins: X [F, C, T] complex, T tiles;
2. per bin, as a real product, Y' = W' X' with W' = [Wr | Wi] [C', 2C] and
   X' = [[Xr, Xi], [-Xi, Xr]] [2C, 2T], giving Y' = [Yr | Yi] [C', 2T]: one batched GEMM;
3. Y is transformed back at the m1 x m2 positions of each tile that no wrap-around has touched.

A tile covers a whole axis when n >= length + p (the padding at both ends shares the wrap-around);
otherwise tiles overlap and m = n - k + 1 outputs of each are kept. DFT matrices are orthonormal.

Bytes moved: 4 F (C' 2C + 2C 2T + C' 2T) in float32 for step 2, against 4 k^2 C' C for the direct
form's weights; multiplications k^2 m1 m2 / (2 F) times fewer.

Exact in exact arithmetic: forward, dX and dW agree with autograd through ``conv2d`` to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

WORKSPACE_BYTES = 1 << 30


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
        own, pairs = _columns(self.width.dft)
        return len(own) * (self.height.dft // 2 + 1) + len(pairs) * self.height.dft


def fft_conv2d(
    x: Tensor, weight: Tensor, plan: FFTConvPlan, *, workspace_bytes: int = WORKSPACE_BYTES
) -> Tensor:
    """``conv2d(x, weight, padding="same")`` in the transform domain; differentiable once.

    Args:
        x: ``[B, C, H, W]``, float32 or float64, any strides.
        weight: ``[C', C, k, k]``, or what :func:`transform_weight` made of it,
            ``[F, C', 2, C]``, which gets no gradient.
        plan: made for H, W and k.
        workspace_bytes: batch and output channels are cut so that transformed data stays below
            this, as far as one sample and one output channel allow.

    Returns:
        ``[B, C', H, W]``, contiguous, in x's dtype.

    Raises:
        ValueError: x or weight does not fit the plan.
    """
    if tuple(x.shape[2:]) != (plan.height.length, plan.width.length):
        raise ValueError(
            f"x has spatial size {list(x.shape[2:])}, the plan is for "
            f"{[plan.height.length, plan.width.length]}."
        )
    raw, transformed = (x.shape[1], plan.kernel, plan.kernel), (plan.bins, 2, x.shape[1])
    if tuple(weight.shape[1:]) == raw:
        out: Tensor = _FFTConv2d.apply(x, weight, plan, workspace_bytes)
        return out
    if weight.ndim == 4 and (len(weight), *weight.shape[2:]) == transformed:
        return _convolve(x, weight, plan, workspace_bytes)
    raise ValueError(
        f"the weight has shape {list(weight.shape)}; expected [C', {', '.join(map(str, raw))}], "
        f"or transformed [{plan.bins}, C', 2, {x.shape[1]}]."
    )


def transform_weight(weight: Tensor, plan: FFTConvPlan) -> Tensor:
    """``[C', C, k, k]`` -> ``[F, C', 2, C]``: real and imaginary part of each kept bin."""
    taps = _taps(plan)
    columns = _analyze_width(weight, plan.width.dft, taps, unit=False)  # [C', C, k, nb, 2]
    bins = _analyze_height(columns.permute(3, 2, 4, 0, 1), plan, taps, unit=False)
    return bins.transpose(1, 2).contiguous()


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
    channels_in, channels_out = x.shape[1], weight.shape[1 if transformed else 0]
    out = x.new_empty(x.shape[0], channels_out, *x.shape[2:])
    for samples, signal in _signals(x, plan, workspace):
        per_channel = 4 * plan.bins * (channels_in + signal.shape[2]) * x.element_size()
        for channels in _chunks(channels_out, per_channel, workspace):
            bins = weight[:, channels] if transformed else transform_weight(weight[channels], plan)
            product = torch.bmm(bins.flatten(2), signal)  # [F, C', 2T]
            tiles = _synthesize(
                product.unflatten(2, (2, signal.shape[2] // 2)), plan, *_kept(plan), unit=True
            )
            out[samples, channels] = _joined(tiles, plan)
    return out


def _weight_gradient(x: Tensor, dy: Tensor, plan: FFTConvPlan, workspace: int) -> Tensor:
    channels_in, channels_out = x.shape[1], dy.shape[1]
    taps = _taps(plan)
    gradient = x.new_zeros(channels_out, channels_in, plan.kernel, plan.kernel)
    for samples, signal in _signals(x, plan, workspace):
        per_channel = 4 * plan.bins * (channels_in + signal.shape[2]) * x.element_size()
        for channels in _chunks(channels_out, per_channel, workspace):
            outer = _transform_tiles(dy[samples, channels], plan, outputs=True)  # [F, 2, C', T]
            product = torch.bmm(outer.transpose(1, 2).flatten(2), signal.mT)  # [F, C', 2C]
            gradient[channels] += _synthesize(
                product.unflatten(2, (2, -1)), plan, taps, taps, unit=False
            )
    return gradient


def _signals(x: Tensor, plan: FFTConvPlan, workspace: int) -> Iterator[tuple[slice, Tensor]]:
    """The GEMM's right operand X' ``[F, 2C, 2T]``, a chunk of samples at a time."""
    per_sample = 8 * plan.bins * plan.tiles * x.shape[1] * x.element_size()
    for samples in _chunks(x.shape[0], per_sample, workspace):
        bins = _transform_tiles(x[samples], plan, outputs=False)  # [F, 2, C, T]
        real, imaginary = bins.unbind(1)
        signal = bins.new_empty(len(bins), 2, x.shape[1], 2, bins.shape[3])
        signal[:, 0, :, 0] = real
        signal[:, 0, :, 1] = imaginary
        torch.neg(imaginary, out=signal[:, 1, :, 0])
        signal[:, 1, :, 1] = real
        yield samples, signal.flatten(3).flatten(1, 2)


def _chunks(count: int, bytes_each: int, workspace: int) -> Iterator[slice]:
    """Slices of up to half a workspace."""
    step = max(1, workspace // (2 * max(1, bytes_each)))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _transform_tiles(x: Tensor, plan: FFTConvPlan, *, outputs: bool) -> Tensor:
    """``[B, C, H, W]`` -> ``[F, 2, C, T]``, T = (B, tiles), from input windows or output tiles."""
    windows, across = _cut(x.transpose(0, 1), 3, plan.width, outputs)  # [C, B, H, t2, P2]
    columns = _analyze_width(windows, plan.width.dft, across, unit=True)
    windows, down = _cut(columns, 2, plan.height, outputs)  # [C, B, t1, t2, nb, 2, P1]
    stacked = windows.permute(4, 6, 5, 0, 1, 2, 3).flatten(4)  # [nb, P1, 2, C, T]
    return _analyze_height(stacked, plan, down, unit=True)


def _cut(x: Tensor, dim: int, axis: Axis, outputs: bool) -> tuple[Tensor, tuple[int, ...]]:
    """Cut tiles along ``dim``: tile index stays there, the positions within come last.

    Returns:
        the tiles, and the positions that they have in their DFT window.
    """
    if axis.whole or outputs:
        size = step = axis.outputs
        before, first = 0, axis.offset
    else:
        size, step, before, first = axis.dft, axis.outputs, axis.offset, 0
    after = (axis.tiles - 1) * step + size - before - axis.length
    if before or after:
        x = pad(x, (0, 0) * (x.ndim - 1 - dim) + (before, after))
    return x.unfold(dim, size, step), tuple(range(first, first + size))


def _joined(tiles: Tensor, plan: FFTConvPlan) -> Tensor:
    """``[C', T, m1, m2]`` -> ``[B, C', H, W]``."""
    samples = tiles.shape[1] // plan.tiles
    grid = tiles.unflatten(1, (samples, plan.height.tiles, plan.width.tiles))
    whole = grid.permute(1, 0, 2, 4, 3, 5).flatten(4).flatten(2, 3)
    return whole[:, :, : plan.height.length, : plan.width.length]


def _kept(plan: FFTConvPlan) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Positions within a window that are kept as outputs, along both axes."""
    height, width = plan.height, plan.width
    return (
        tuple(range(height.offset, height.offset + height.outputs)),
        tuple(range(width.offset, width.offset + width.outputs)),
    )


def _taps(plan: FFTConvPlan) -> tuple[int, ...]:
    """Positions of the kernel's taps: correlation puts tap t at p - t."""
    return tuple(plan.kernel // 2 - t for t in range(plan.kernel))


def _columns(n: int) -> tuple[list[int], list[int]]:
    """Column frequencies: those that are their own conjugates, and one of each other pair."""
    own = [0, n // 2] if n % 2 == 0 else [0]
    return own, [b for b in range(n // 2 + 1) if b not in own]


def _analyze_width(x: Tensor, n: int, positions: tuple[int, ...], *, unit: bool) -> Tensor:
    """``[..., P2]`` -> ``[..., nb, 2]``: DFT of real data along the last axis."""
    matrix = _width_matrix(n, positions, unit, x.dtype, x.device)
    return torch.matmul(x, matrix).unflatten(-1, (-1, 2))


def _analyze_height(
    columns: Tensor, plan: FFTConvPlan, positions: tuple[int, ...], *, unit: bool
) -> Tensor:
    """``[nb, P1, 2, R, S]`` -> ``[F, 2, R, S]``: complex DFT along the other axis."""
    shape = columns.shape[3:]
    columns = columns.flatten(3).flatten(1, 2)  # [nb, P1 2, R S]
    n, own = plan.height.dft, len(_columns(plan.width.dft)[0])
    matrix = _height_matrix(n, positions, unit, columns.dtype, columns.device)  # [n 2, P1 2]
    half = 2 * (n // 2 + 1)
    out = columns.new_empty(plan.bins, 2, *shape)
    split = own * half // 2
    for part, rows, found in (
        (columns[:own], matrix[:half], out[:split]),
        (columns[own:], matrix, out[split:]),
    ):
        target = found.view(len(part), len(rows), columns.shape[2])
        torch.bmm(rows.expand(len(part), -1, -1), part, out=target)
    return out


def _synthesize(
    bins: Tensor,
    plan: FFTConvPlan,
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    *,
    unit: bool,
) -> Tensor:
    """``[F, R, 2, S]`` -> ``[R, S, P1, P2]``: inverse DFT at some positions of a window."""
    _, many, _, each = bins.shape
    n, (own, pairs) = plan.height.dft, _columns(plan.width.dft)
    half = n // 2 + 1
    split = len(own) * half
    parts = bins.new_empty(many, each, len(rows), len(own) + 2 * len(pairs))
    for chosen, count, points, first in (
        (bins[:split], len(own), half, 0),
        (bins[split:], len(pairs), n, len(own)),
    ):
        matrix = _inverse_height_matrix(n, points, rows, unit, bins.dtype, bins.device)
        wave = torch.matmul(matrix, chosen.reshape(count, points, many * 2 * each))
        wave = wave.view(count, len(rows), 2, many, 2, each)
        cosine, sine = wave.permute(2, 4, 3, 5, 1, 0).unbind(0)  # [2, R, S, P1, b] each
        torch.sub(cosine[0], sine[1], out=parts[..., first : first + count])
        if first:  # of the others only the real part counts
            torch.add(cosine[1], sine[0], out=parts[..., first + count :])
    return torch.matmul(
        parts, _inverse_width_matrix(plan.width.dft, columns, unit, bins.dtype, bins.device)
    )


def _phases(frequencies: list[int], positions: tuple[int, ...], n: int) -> Tensor:
    """``[frequencies, positions]`` angles 2 pi f q / n in float64, reduced modulo n first."""
    f, q = torch.tensor(frequencies), torch.tensor(positions)
    return (f[:, None] * q % n).double() * (2 * math.pi / n)


@lru_cache(maxsize=256)
def _width_matrix(
    n: int, positions: tuple[int, ...], unit: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """``[P2, nb 2]``: cosine and minus sine, the self-conjugate columns first."""
    own, pairs = _columns(n)
    angle = _phases(own + pairs, positions, n).T
    matrix = torch.stack([angle.cos(), -angle.sin()], dim=-1).flatten(1)
    return (matrix / (math.sqrt(n) if unit else 1)).to(device, dtype)


@lru_cache(maxsize=256)
def _height_matrix(
    n: int, positions: tuple[int, ...], unit: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """``[n 2, P1 2]``: (re, im) of each frequency from (re, im) of each position."""
    angle = _phases(list(range(n)), positions, n)
    cosine, sine = angle.cos(), angle.sin()
    matrix = torch.stack(
        [torch.stack([cosine, sine], dim=-1), torch.stack([-sine, cosine], dim=-1)], dim=1
    )
    return (matrix.flatten(2).flatten(0, 1) / (math.sqrt(n) if unit else 1)).to(device, dtype)


@lru_cache(maxsize=256)
def _inverse_height_matrix(
    n: int,
    points: int,
    positions: tuple[int, ...],
    unit: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """``[P1 2, points]``: cosine and sine; half the points stand for their conjugates too."""
    angle = _phases(list(range(points)), positions, n).T
    weight = torch.ones(points, dtype=torch.float64)
    if points < n:
        weight = torch.tensor([1.0 if 2 * a % n == 0 else 2.0 for a in range(points)]).double()
    matrix = torch.stack([angle.cos(), angle.sin()], dim=1).flatten(0, 1) * weight
    return (matrix / (math.sqrt(n) if unit else 1)).to(device, dtype)


@lru_cache(maxsize=256)
def _inverse_width_matrix(
    n: int, positions: tuple[int, ...], unit: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """``[own + 2 pairs, P2]``: real parts of own columns, then real and imaginary of the pairs."""
    own, pairs = _columns(n)
    alone, angle = _phases(own, positions, n), _phases(pairs, positions, n)
    matrix = torch.cat([alone.cos(), 2 * angle.cos(), -2 * angle.sin()])
    return (matrix / (math.sqrt(n) if unit else 1)).to(device, dtype)
