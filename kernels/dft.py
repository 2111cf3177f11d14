"""Dense matrices of the 2-D DFT of real data, one of each conjugate pair of bins kept.

The width is transformed first, from real data; of its frequencies ("columns") those that are their
own conjugates (0, and n / 2 for an even n) stay real until the height is transformed, and keep half
of the height's frequencies; the others keep all. Inverse matrices count the dropped halves twice.
All are computed in float64 and cached by length, positions, dtype and device.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


def columns(n: int) -> tuple[list[int], list[int]]:
    """Column frequencies: those that are their own conjugates, and one of each other pair."""
    own = [0, n // 2] if n % 2 == 0 else [0]
    return own, [b for b in range(n // 2 + 1) if b not in own]


def _phases(frequencies: list[int], positions: tuple[int, ...], n: int) -> Tensor:
    """``[frequencies, positions]`` angles 2 pi f q / n in float64, reduced modulo n first."""
    f, q = torch.tensor(frequencies), torch.tensor(positions)
    return (f[:, None] * q % n).double() * (2 * math.pi / n)


def _complex_rows(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of exp(-i angle) (re, im) as rows over [re | im]."""
    cosine, sine = angle.cos(), angle.sin()
    return torch.cat([cosine, sine], dim=1), torch.cat([-sine, cosine], dim=1)


@lru_cache(maxsize=256)
def width_matrix(
    n: int, positions: tuple[int, ...], unit: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """``[R, P2]``: cosine of the self-conjugate columns, then (cosine, -sine) of the pairs."""
    own, pairs = columns(n)
    angle = _phases(pairs, positions, n)
    waves = torch.stack([angle.cos(), -angle.sin()], dim=1).flatten(0, 1)
    matrix = torch.cat([_phases(own, positions, n).cos(), waves])
    return (matrix / (math.sqrt(n) if unit else 1)).to(device, dtype)


@lru_cache(maxsize=256)
def height_matrices(
    n: int, positions: tuple[int, ...], unit: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(re, im) of half the frequencies from real data, ``[(n / 2 + 1) 2, P1]``, and (re, im) of all
    from [re | im], ``[n 2, 2 P1]``."""
    angle = _phases(list(range(n)), positions, n)
    full = torch.stack(_complex_rows(angle), dim=1).flatten(0, 1)
    half = full[: 2 * (n // 2 + 1), : len(positions)]
    scale = math.sqrt(n) if unit else 1
    return (half / scale).to(device, dtype).contiguous(), (full / scale).to(device, dtype)


@lru_cache(maxsize=256)
def inverse_height_matrices(
    n: int, positions: tuple[int, ...], unit: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Real part from (re, im) of half the frequencies, ``[P1, (n / 2 + 1) 2]``, which stand for
    their conjugates too, and [re | im] from (re, im) of all, ``[2 P1, n 2]``."""
    angle = _phases(list(range(n)), positions, n).T
    real = torch.stack([angle.cos(), -angle.sin()], dim=2).flatten(1)
    imaginary = torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)
    twice = [1.0 if 2 * a % n == 0 else 2.0 for a in range(n // 2 + 1) for _ in range(2)]
    half = real[:, : len(twice)] * torch.tensor(twice, dtype=torch.float64)
    scale = math.sqrt(n) if unit else 1
    full = torch.cat([real, imaginary])
    return (half / scale).to(device, dtype), (full / scale).to(device, dtype)


@lru_cache(maxsize=256)
def inverse_width_matrix(
    n: int, positions: tuple[int, ...], unit: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """``[P2, own + 2 pairs]``: from real parts of own columns, then (re, im) of each pair's."""
    own, pairs = columns(n)
    angle = _phases(pairs, positions, n)
    waves = torch.stack([2 * angle.cos(), -2 * angle.sin()], dim=1).flatten(0, 1)
    matrix = torch.cat([_phases(own, positions, n).cos(), waves]).T
    return (matrix / (math.sqrt(n) if unit else 1)).to(device, dtype).contiguous()
