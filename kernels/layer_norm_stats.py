"""Mean and reciprocal standard deviation of long rows, for a LayerNorm that is applied elsewhere.

``x [B, N, L, C]`` -> mean and 1 / sqrt(variance + eps), both ``[B, N]``, over (L, C).

Several programs share a row. Each finds the mean and the sum of squared deviations M2 of its chunk
in two passes over registers; a second kernel merges the chunks (Chan, Golub and LeVeque, 1979):

    mean = sum n_i mean_i / n,    M2 = sum M2_i + n_i (mean_i - mean)^2.

All of it is done to differences from the row's first element, and no difference of large sums is
taken, so a mean of 10^4 standard deviations does no harm.

Bytes moved: x once.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dnd_fast.kernels import tuned
from dnd_fast.kernels.operands import require_gpu


@triton.jit
def _chunk_stats_kernel(x_ptr, mean_ptr, m2_ptr, length, chunks, BLOCK: tl.constexpr):
    i_row, i_chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    o_x = i_chunk * BLOCK + tl.arange(0, BLOCK)
    m_x = o_x < length
    p_row = x_ptr + i_row.to(tl.int64) * length
    b_x = tl.load(p_row + o_x, mask=m_x, other=0.0).to(tl.float32)  # [BLOCK]
    b_x = tl.where(m_x, b_x - tl.load(p_row).to(tl.float32), 0.0)
    mean = tl.sum(b_x) / tl.minimum(BLOCK, length - i_chunk * BLOCK).to(tl.float32)
    deviation = tl.where(m_x, b_x - mean, 0.0)
    tl.store(mean_ptr + tl.program_id(0), mean)
    tl.store(m2_ptr + tl.program_id(0), tl.sum(deviation * deviation))


@triton.jit
def _merge_kernel(
    x_ptr,
    chunk_mean_ptr,
    chunk_m2_ptr,
    mean_ptr,
    rstd_ptr,
    length,
    chunks,
    eps,
    BLOCK: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
):
    i_row = tl.program_id(0)
    o_chunk = tl.arange(0, BLOCK_CHUNKS)
    m_chunk = o_chunk < chunks
    b_mean = tl.load(chunk_mean_ptr + i_row * chunks + o_chunk, mask=m_chunk, other=0.0)
    b_m2 = tl.load(chunk_m2_ptr + i_row * chunks + o_chunk, mask=m_chunk, other=0.0)
    share = tl.where(m_chunk, tl.minimum(BLOCK, length - o_chunk * BLOCK), 0).to(tl.float32)
    share /= length
    mean = tl.sum(share * b_mean)
    deviation = tl.where(m_chunk, b_mean - mean, 0.0)
    variance = tl.sum(b_m2) / length + tl.sum(share * deviation * deviation)
    first = tl.load(x_ptr + i_row.to(tl.int64) * length).to(tl.float32)
    tl.store(mean_ptr + i_row, first + mean)
    tl.store(rstd_ptr + i_row, 1.0 / tl.sqrt(variance + eps))


@dataclass(frozen=True)
class Config:
    """``block``: elements of a chunk."""

    block: int
    num_warps: int


# What tuning tries, the default first.
CANDIDATES = (
    Config(block=8192, num_warps=8),
    Config(block=4096, num_warps=4),
    Config(block=2048, num_warps=4),
)


def layer_norm_stats(
    x: Tensor, *, eps: float = 1e-5, config: Config | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal standard deviation over (L, C).

    Args:
        x: ``[B, N, L, C]``, contiguous, any float dtype up to float32.
        eps: added to the variance.
        config: how the rows are cut; by default the device's, see :mod:`.tuned`.

    Returns:
        mean and rstd, ``[B, N]`` float32.

    Raises:
        ValueError: no GPU, or x is not contiguous.
    """
    require_gpu(x)
    if not x.is_contiguous():
        raise ValueError(f"x has strides {list(x.stride())}; expected a contiguous tensor.")
    rows, length = x.shape[0] * x.shape[1], x.shape[2] * x.shape[3]
    if config is None:
        config = tuned.config(CANDIDATES, x.device, "layer_norm_stats", x.dtype, rows, length)
    chunks = triton.cdiv(length, config.block)
    mean, rstd = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    partial_mean, partial_m2 = (x.new_empty(rows * chunks, dtype=torch.float32) for _ in range(2))
    if rows == 0 or length == 0:
        return mean.fill_(torch.nan), rstd.fill_(torch.nan)
    _chunk_stats_kernel[(rows * chunks,)](
        x_ptr=x,
        mean_ptr=partial_mean,
        m2_ptr=partial_m2,
        length=length,
        chunks=chunks,
        BLOCK=config.block,
        num_warps=config.num_warps,
    )
    _merge_kernel[(rows,)](
        x_ptr=x,
        chunk_mean_ptr=partial_mean,
        chunk_m2_ptr=partial_m2,
        mean_ptr=mean,
        rstd_ptr=rstd,
        length=length,
        chunks=chunks,
        eps=eps,
        BLOCK=config.block,
        BLOCK_CHUNKS=triton.next_power_of_2(chunks),
        num_warps=1 if chunks <= 256 else 4,
    )
    return mean, rstd
