"""Mean and reciprocal standard deviation of long rows, for a LayerNorm that is applied elsewhere.

``x [B, N, L, C]`` -> mean and 1 / sqrt(variance + eps), both ``[B, N]``, over (L, C).

Rows are cut into chunks, each with a count, a mean and a sum of squared deviations M2, which are
found in registers: by the kernel here, or by the epilogue of the convolution that makes x. Another
kernel merges the chunks (Chan, Golub and LeVeque, 1979):

    mean = sum n_i mean_i / n,    M2 = sum M2_i + n_i (mean_i - mean)^2.

No difference of large sums is taken: with a mean of 10^4 standard deviations, rstd is within
10^-5 of its value, which is what rounding the chunks' means to float32 leaves.

Bytes moved: x once, unless an epilogue had it at hand; 12 for every chunk, twice.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dnd_fast.kernels.reference import LAYER_NORM_EPS
from dnd_fast.kernels.triton import tuning
from dnd_fast.kernels.triton.checks import require_gpu, require_shape
from dnd_fast.kernels.triton.primitives import merge_moments, moments


@triton.jit
def _chunk_moments_kernel(x_ptr, chunks_ptr, rows, length, chunks, BLOCK: tl.constexpr):
    i_row, i_chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    o_x = i_chunk * BLOCK + tl.arange(0, BLOCK)
    m_x = o_x < length
    b_x = tl.load(x_ptr + i_row.to(tl.int64) * length + o_x, mask=m_x, other=0.0)  # [BLOCK]
    count, mean, m2 = moments(b_x.to(tl.float32), m_x, 0)
    p_chunk = chunks_ptr + i_chunk * rows + i_row
    tl.store(p_chunk, count)
    tl.store(p_chunk + chunks * rows, mean)
    tl.store(p_chunk + 2 * chunks * rows, m2)


@triton.jit
def _merge_kernel(
    chunks_ptr,
    mean_ptr,
    rstd_ptr,
    rows,
    chunks,
    eps,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
):
    o_row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    m_row = o_row < rows
    plane = chunks * rows
    count = tl.zeros((BLOCK_ROWS,), tl.float32)
    # The first chunk's mean, which is near the others; with a count of 0 it has no weight.
    mean = tl.load(chunks_ptr + plane + o_row, mask=m_row, other=0.0)  # [ROWS]
    m2 = tl.zeros((BLOCK_ROWS,), tl.float32)
    for i_chunk in range(0, chunks, BLOCK_CHUNKS):
        o_chunk = i_chunk + tl.arange(0, BLOCK_CHUNKS)
        m_chunk = (o_chunk < chunks)[:, None] & m_row[None, :]
        p_chunk = chunks_ptr + o_chunk[:, None] * rows + o_row[None, :]
        b_count = tl.load(p_chunk, mask=m_chunk, other=0.0)  # [CHUNKS, ROWS]
        b_mean = tl.load(p_chunk + plane, mask=m_chunk, other=0.0)  # [CHUNKS, ROWS]
        b_m2 = tl.load(p_chunk + 2 * plane, mask=m_chunk, other=0.0)  # [CHUNKS, ROWS]
        # Means are averaged relative to one of them: their own sum would lose small differences.
        b_difference = b_mean - mean[None, :]
        count2 = tl.sum(b_count, 0)
        shift = tl.sum(b_count * b_difference, 0) / tl.maximum(count2, 1.0)
        spread = b_difference - shift[None, :]
        m22 = tl.sum(b_m2 + b_count * spread * spread, 0)
        count, mean, m2 = merge_moments(count, mean, m2, count2, mean + shift, m22)
    tl.store(mean_ptr + o_row, mean, mask=m_row)
    tl.store(rstd_ptr + o_row, 1.0 / tl.sqrt(m2 / tl.maximum(count, 1.0) + eps), mask=m_row)


@dataclass(frozen=True)
class Config:
    """How rows are cut.

    Attributes:
        block: Elements of a chunk.
        num_warps: Warps of a program.
    """

    block: int
    num_warps: int


# Configs that tuning tries, the default first.
CANDIDATES = (
    Config(block=8192, num_warps=8),
    Config(block=4096, num_warps=4),
    Config(block=2048, num_warps=4),
)


def layer_norm_stats(x: Tensor, *, config: Config | None = None) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal standard deviation over (L, C).

    Args:
        x: Tensor ``[B, N, L, C]``, contiguous, any float dtype up to float32.
        config: How the rows are cut; by default what :mod:`.tuning` has for the device.

    Returns:
        Mean and rstd, ``[B, N]`` float32.

    Raises:
        ValueError: There is no GPU, or x is not contiguous.
    """
    require_gpu(x)
    if not x.is_contiguous():
        raise ValueError(f"x has strides {list(x.stride())}; expected a contiguous tensor.")
    rows, length = x.shape[0] * x.shape[1], x.shape[2] * x.shape[3]
    if config is None:
        config = tuning.config(CANDIDATES, x.device, "layer_norm_stats", x.dtype, rows, length)
    chunks = triton.cdiv(length, config.block)
    mean, rstd = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    if rows == 0 or length == 0:
        return mean.fill_(torch.nan), rstd.fill_(torch.nan)
    partial = x.new_empty(3, chunks, rows, dtype=torch.float32)
    _chunk_moments_kernel[(rows * chunks,)](
        x_ptr=x,
        chunks_ptr=partial,
        rows=rows,
        length=length,
        chunks=chunks,
        BLOCK=config.block,
        num_warps=config.num_warps,
    )
    merge_chunks(partial, mean, rstd)
    return mean, rstd


def merge_chunks(chunks: Tensor, mean: Tensor, rstd: Tensor) -> None:
    """Merge the statistics of a row's chunks into the row's.

    Args:
        chunks: Counts, means and sums of squared deviations ``[3, chunks, rows]``, float32,
            contiguous; zeros for an empty chunk. Each row's first chunk has elements.
        mean: Receives the means; float32, contiguous, of as many elements as there are rows.
        rstd: Receives the reciprocal standard deviations; of mean's shape.

    Raises:
        ValueError: The tensors do not fit together.
    """
    _, count, rows = chunks.shape
    require_shape("rstd", rstd, tuple(mean.shape))
    require_shape("mean", mean.view(-1), (rows,))
    if rows == 0:
        return
    _merge_kernel[(triton.cdiv(rows, 8),)](  # memory gives eight floats at a time
        chunks_ptr=chunks,
        mean_ptr=mean,
        rstd_ptr=rstd,
        rows=rows,
        chunks=count,
        eps=LAYER_NORM_EPS,
        BLOCK_ROWS=8,
        BLOCK_CHUNKS=min(128, triton.next_power_of_2(count)),
        num_warps=4,
    )
