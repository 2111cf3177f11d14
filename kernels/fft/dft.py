"""The 2-D DFT of real data as dense matrix products, one of each conjugate pair of bins kept.

The width is transformed first, from real data; of its frequencies ("columns") those that are
self-conjugate (0, and n / 2 for an even n) stay real until the height is transformed, and keep half
of the height's frequencies; the others keep all. Inverse matrices count the dropped halves twice.
All are computed in float64 and cached by length, positions, dtype and device.

``norm`` is as in torch.fft: ``"ortho"`` for an orthonormal transform; ``"backward"`` of a forward
and ``"forward"`` of an inverse transform leave this one without a factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, wraps
from threading import Lock
from typing import Literal, ParamSpec, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from dnd_fast.kernels.fft.tiling import FFTConvPlan, Positions, TileSpan, columns

ForwardNorm = Literal["ortho", "backward"]
InverseNorm = Literal["ortho", "forward"]
P = ParamSpec("P")


def dft_forward(
    x: Tensor,
    plan: FFTConvPlan,
    positions: Positions,
    *,
    norm: ForwardNorm,
    spans: Sequence[TileSpan] | None = None,
    planes: int = 2,
) -> Tensor:
    """DFT of real data, ``[W, H, ...]`` -> ``[F, planes, ...]``, or ``[F, planes, t1, t2, ...]``.

    Args:
        x: Data at some positions of a window, or to be cut into such.
        plan: Lengths of the DFT.
        positions: Where the data lies in the window, along width and height.
        norm: Normalisation; see the module's docstring.
        spans: Tiles t2 and t1 along width and height.
        planes: 2 for (re, im); 3 for (-im, re, im), whose first two are the signal rotated by a
            right angle.
    """
    n, self_conjugate = plan.height.dft, len(columns(plan.width.dft)[0])
    across = _width_matrix(plan.width.dft, positions[0], norm, x.dtype, x.device)
    down_half, down = _height_matrices(n, positions[1], norm, planes, x.dtype, x.device)
    rest: tuple[int, ...] = x.shape[2:]
    x = x.contiguous()
    if spans is None:
        spectrum = (across @ x.flatten(1)).view(len(across), x.shape[1], -1)  # [R, P1, M]
    else:
        windows = spans[0](x, 0)  # [t2, P2, H, ...]
        spectrum = torch.matmul(across, windows.flatten(2)).unflatten(2, x.shape[1:])
        tiles = spans[1](spectrum, 2)  # [t2, R, t1, P1, ...]
        rest = (tiles.shape[2], tiles.shape[0], *rest)
        order = (1, 3, 2, 0, *range(4, tiles.ndim))
        spectrum = tiles.permute(order).flatten(2)  # [R, P1, (t1, t2, ...)]
    size, rows = math.prod(rest), len(positions[1])
    spectrum = spectrum.reshape(len(across), rows, size)
    out = x.new_empty(plan.bins, planes, *rest)
    split = self_conjugate * (n // 2 + 1)
    for matrix, part, bins in (
        (down_half, spectrum[:self_conjugate], out[:split]),
        (down, spectrum[self_conjugate:].reshape(-1, 2 * rows, size), out[split:]),
    ):
        target = bins.view(len(part), len(matrix), size)
        torch.bmm(matrix.expand(len(part), -1, -1), part, out=target)
    return out


def dft_inverse(
    bins: Tensor, plan: FFTConvPlan, positions: Positions, *, norm: InverseNorm
) -> Tensor:
    """Inverse DFT at some positions of a window: ``[F, 2, ...]`` -> ``[P2, P1, ...]``, real."""
    n, (self_conjugate, conjugate_pairs) = plan.height.dft, columns(plan.width.dft)
    rest, rows = bins.shape[2:], len(positions[1])
    size, split = math.prod(rest), len(self_conjugate) * (n // 2 + 1)
    up_half, up = _inverse_height_matrices(n, positions[1], norm, bins.dtype, bins.device)
    across = _inverse_width_matrix(plan.width.dft, positions[0], norm, bins.dtype, bins.device)
    spectrum = bins.new_empty(len(self_conjugate) + 2 * len(conjugate_pairs), rows, size)
    for matrix, part, count, out in (
        (up_half, bins[:split], len(self_conjugate), spectrum[: len(self_conjugate)]),
        (up, bins[split:], len(conjugate_pairs), spectrum[len(self_conjugate) :]),
    ):
        target = out.view(count, len(matrix), size)
        source = part.reshape(count, matrix.shape[1], size)
        torch.bmm(matrix.expand(count, -1, -1), source, out=target)
    return (across @ spectrum.flatten(1)).view(-1, rows, *rest)


def _phases(frequencies: list[int], positions: tuple[int, ...], n: int) -> Tensor:
    """``[frequencies, positions]`` angles 2 pi f q / n in float64, reduced modulo n first."""
    f, q = torch.tensor(frequencies), torch.tensor(positions)
    return (f[:, None] * q % n).double() * (2 * math.pi / n)


def _divisor(n: int, norm: ForwardNorm | InverseNorm) -> float:
    """What a transform of n points is divided by."""
    return math.sqrt(n) if norm == "ortho" else 1.0


@lru_cache(maxsize=256)
def _width_matrix(
    n: int, positions: tuple[int, ...], norm: ForwardNorm, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """``[R, P2]``: cosine of the self-conjugate columns, then (cosine, -sine) of the pairs."""
    self_conjugate, conjugate_pairs = columns(n)
    angle = _phases(conjugate_pairs, positions, n)
    waves = torch.stack([angle.cos(), -angle.sin()], dim=1).flatten(0, 1)
    matrix = torch.cat([_phases(self_conjugate, positions, n).cos(), waves])
    return (matrix / _divisor(n, norm)).to(device, dtype)


@lru_cache(maxsize=256)
def _height_matrices(
    n: int,
    positions: tuple[int, ...],
    norm: ForwardNorm,
    planes: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """The planes of half the frequencies from real data, ``[(n / 2 + 1) planes, P1]``, and of all
    from [re | im], ``[n planes, 2 P1]``."""
    angle = _phases(list(range(n)), positions, n)
    cosine, sine = angle.cos(), angle.sin()  # exp(-i angle) (re + i im)
    real, imaginary = torch.cat([cosine, sine], dim=1), torch.cat([-sine, cosine], dim=1)
    rows = (-imaginary, real, imaginary)[3 - planes :]
    full = torch.stack(rows, dim=1).flatten(0, 1) / _divisor(n, norm)
    half = full[: planes * (n // 2 + 1), : len(positions)]
    return half.to(device, dtype).contiguous(), full.to(device, dtype)


@lru_cache(maxsize=256)
def _inverse_height_matrices(
    n: int, positions: tuple[int, ...], norm: InverseNorm, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Real part from (re, im) of half the frequencies, ``[P1, (n / 2 + 1) 2]``, which stand for
    their conjugates too, and [re | im] from (re, im) of all, ``[2 P1, n 2]``."""
    angle = _phases(list(range(n)), positions, n).T
    real = torch.stack([angle.cos(), -angle.sin()], dim=2).flatten(1)
    imaginary = torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)
    twice = [1.0 if 2 * a % n == 0 else 2.0 for a in range(n // 2 + 1) for _ in range(2)]
    half = real[:, : len(twice)] * torch.tensor(twice, dtype=torch.float64)
    full = torch.cat([real, imaginary])
    divisor = _divisor(n, norm)
    return (half / divisor).to(device, dtype), (full / divisor).to(device, dtype)


@lru_cache(maxsize=256)
def _inverse_width_matrix(
    n: int, positions: tuple[int, ...], norm: InverseNorm, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """``[P2, R]``: from real parts of self-conjugate columns, then (re, im) of each pair's."""
    self_conjugate, conjugate_pairs = columns(n)
    angle = _phases(conjugate_pairs, positions, n)
    waves = torch.stack([2 * angle.cos(), -2 * angle.sin()], dim=1).flatten(0, 1)
    matrix = torch.cat([_phases(self_conjugate, positions, n).cos(), waves]).T
    return (matrix / _divisor(n, norm)).to(device, dtype).contiguous()


def _computed_once(compute: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Keep every result: CUDA graphs hold its address. Of two threads that ask first, one waits:
    by :func:`functools.cache` alone each would get its own, and only one would be kept."""
    kept, lock = cast("Callable[P, Tensor]", cache(compute)), Lock()

    @wraps(compute)
    def asked(*arguments: P.args, **options: P.kwargs) -> Tensor:
        with lock:
            return kept(*arguments, **options)

    return asked


@_computed_once
def folded_forward_matrix(
    plan: FFTConvPlan,
    positions: Positions,
    norm: ForwardNorm,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """:func:`dft_forward` as two matrices for a window folded about its centre, ``[2, F, K]``.

    With x at position p of P in all (along the width first) and x' at P - 1 - p, real parts are the
    first matrix times x + x', imaginary parts the second times x - x', for the first K = P / 2
    (rounded up) positions: half the work. Phases are those of an origin in the window's centre; a
    convolution does not notice. K is filled up to a multiple of 16 with zeros.
    """
    angle, _ = _centred(plan, positions)
    half = angle[:, : -(-angle.shape[1] // 2)]
    matrix = torch.stack([half.cos(), -half.sin()])
    if angle.shape[1] % 2:
        matrix[0, :, -1] /= 2  # the centre meets itself
    return _wide_rows(matrix / _divisor(plan.window_size, norm)).to(device, dtype)


@_computed_once
def folded_inverse_matrix(
    plan: FFTConvPlan,
    positions: Positions,
    norm: InverseNorm,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """:func:`dft_inverse` as two matrices for a window folded about its centre, ``[2, K, F]``.

    The first times real parts, c, and the second times imaginary parts, s, give position p = c + s
    and P - 1 - p = c - s. F is filled up to a multiple of 16 with zeros.
    """
    angle, times = _centred(plan, positions)
    half = angle[:, : -(-angle.shape[1] // 2)]
    matrix = torch.stack([(half.cos() * times).mT, (-half.sin() * times).mT])
    return _wide_rows(matrix / _divisor(plan.window_size, norm)).to(device, dtype)


def _centred(plan: FFTConvPlan, positions: Positions) -> tuple[Tensor, Tensor]:
    """Angles ``[F, P]`` from the centre of the positions, and ``[F, 1]`` how often a bin counts."""
    n1, (self_conjugate, conjugate_pairs) = plan.height.dft, columns(plan.width.dft)
    bins = [(a, b) for b in self_conjugate for a in range(n1 // 2 + 1)]
    times = [1.0 if 2 * a % n1 == 0 else 2.0 for a, _ in bins]
    bins += [(a, b) for b in conjugate_pairs for a in range(n1)]
    times += [2.0] * (len(bins) - len(times))
    frequencies = torch.tensor(bins, dtype=torch.float64)
    across, down = (torch.tensor(places, dtype=torch.float64) for places in positions)
    rows = frequencies[:, :1] * (down - down.mean()) / n1
    along = frequencies[:, 1:] * (across - across.mean()) / plan.width.dft
    angle = 2 * math.pi * (rows[:, :, None] + along[:, None, :]).flatten(1)
    return angle, torch.tensor(times, dtype=torch.float64)[:, None]


def _wide_rows(matrix: Tensor) -> Tensor:
    """Zeros to the right, so that every row begins at a multiple of 16 elements."""
    return pad(matrix, (0, -matrix.shape[-1] % 16))
