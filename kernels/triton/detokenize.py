"""Detokenisation: weight tokens, scaled, written where the LoRA matrices have them; one launch.

    out[offset + i row_stride + j column_stride] = token[i, j] std + mean

for the r rows i and the first ``columns`` columns j of every token. A table holds the four integers
of each token, so that one flat buffer receives all matrices: A ``[r, in]`` row by row, B
``[out, r]`` transposed.

``tokens [B, Nw, Lw, Cw]`` -> ``out [B, E]``, E elements of all LoRA tensors. Mean and std are

* absent: the tokens are the weights;
* static: mean ``[Nw, r, chunk]`` and std ``[Nw]``, float32;
* in the tokens' border: two extra rows and columns of (mean, std) pairs, where Lw = r + 2 and
  Cw = chunk + 2. Source: the published code of Drag-and-Drop LLMs.

Bytes moved: every token once, the static mean once per sample, every LoRA element once.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def"

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from dnd_fast.kernels.lora_scatter import LoraScatterTable
from dnd_fast.kernels.triton import tuning
from dnd_fast.kernels.triton.arguments import ScatterArguments
from dnd_fast.kernels.triton.checks import require_gpu, require_shape


@triton.jit
def _border_scale(
    p_token,
    stride_tl,
    stride_tc,
    RANK: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Mean and std that a token's border encodes.

    Even and odd rows are two groups: each averages one of the extra rows with its half of the extra
    columns (the corner belongs to both) and decodes; the results of the two are averaged.
    """
    o_l = tl.arange(0, BLOCK_L)
    o_c = tl.arange(0, BLOCK_C)
    mean = 0.0
    std = 0.0
    for group in tl.static_range(2):
        p_row = p_token + (RANK + group) * stride_tl
        m_row = o_c < CHUNK + 2
        b_row = tl.load(p_row + o_c * stride_tc, mask=m_row, other=0.0).to(tl.float32)  # [C]
        p_side = p_token + o_l * stride_tl + CHUNK * stride_tc
        m_side = (o_l < RANK + 2) & (o_l % 2 == group)
        b_mean = tl.load(p_side, mask=m_side, other=0.0).to(tl.float32)  # [L]
        b_std = tl.load(p_side + stride_tc, mask=m_side, other=0.0).to(tl.float32)  # [L]
        # In a row, codes of mean and std alternate.
        pairs = (CHUNK + 2) // 2
        rows = (RANK + 3 - group) // 2
        mean_code = tl.sum(tl.where(o_c % 2 == 0, b_row, 0.0)) / pairs + tl.sum(b_mean) / rows
        std_code = tl.sum(tl.where(o_c % 2 == 1, b_row, 0.0)) / pairs + tl.sum(b_std) / rows
        # A code is the mean of two averages, decoded as the published code does it, mean = code / 8
        # and std = (exp(code - 1.6) - 0.1) / 0.9; the results of two groups are averaged.
        mean += mean_code / 2 / 8 / 2
        std += (tl.exp(std_code / 2 - 1.6) - 0.1) / 0.9 / 2
    return mean, std


@triton.jit
def _detokenize_kernel(
    tokens_ptr,
    scatter,
    out_ptr,
    token_strides,
    SCALE: tl.constexpr,
    RANK: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_BORDER_L: tl.constexpr,
    BLOCK_BORDER_C: tl.constexpr,
):
    i_n = tl.program_id(0).to(tl.int64)
    i_b = tl.program_id(1).to(tl.int64)
    stride_tb, stride_tn, stride_tl, stride_tc = token_strides
    p_row = scatter.table_ptr + i_n * 4
    offset = tl.load(p_row)
    columns = tl.load(p_row + 1)
    row_stride = tl.load(p_row + 2)
    column_stride = tl.load(p_row + 3)
    p_token = tokens_ptr + i_b * stride_tb + i_n * stride_tn
    p_out = out_ptr + i_b * scatter.stride_b + offset
    if SCALE == "border":
        mean, std = _border_scale(
            p_token, stride_tl, stride_tc, RANK, CHUNK, BLOCK_BORDER_L, BLOCK_BORDER_C
        )
    elif SCALE == "static":
        std = tl.load(scatter.std_ptr + i_n)

    o_r = tl.arange(0, BLOCK_R)
    for i_c in range(0, CHUNK, BLOCK_C):
        o_c = i_c + tl.arange(0, BLOCK_C)
        m_x = (o_r[:, None] < RANK) & (o_c[None, :] < columns)
        p_x = p_token + o_r[:, None] * stride_tl + o_c[None, :] * stride_tc
        b_x = tl.load(p_x, mask=m_x, other=0.0).to(tl.float32)  # [R, C]
        if SCALE == "border":
            b_x = b_x * std + mean
        elif SCALE == "static":
            p_mean = scatter.mean_ptr + (i_n * RANK + o_r[:, None]) * CHUNK + o_c[None, :]
            b_x = b_x * std + tl.load(p_mean, mask=m_x, other=0.0)  # [R, C]
        # Tokens of A are rows in memory, those of B columns. Either way neighbouring lanes write
        # neighbouring addresses.
        if column_stride == 1:
            tl.store(p_out + o_r[:, None] * row_stride + o_c[None, :], b_x, mask=m_x)
        else:
            p_transposed = p_out + o_c[:, None] * column_stride + o_r[None, :]
            tl.store(p_transposed, tl.trans(b_x), mask=tl.trans(m_x))


@dataclass(frozen=True)
class DetokenizeConfig:
    """How tokens are handled.

    Attributes:
        columns: Columns that a program handles at a time, a power of two.
        num_warps: Warps of a program.
    """

    columns: int
    num_warps: int


# Configs that tuning tries, the default first.
CANDIDATES = (
    DetokenizeConfig(columns=256, num_warps=4),
    DetokenizeConfig(columns=512, num_warps=8),
)


def detokenize(
    tokens: Tensor,
    scatter: LoraScatterTable,
    out: Tensor,
    *,
    config: DetokenizeConfig | None = None,
) -> None:
    """Scale tokens and write them into the LoRA tensors.

    Args:
        tokens: Tokens ``[B, Nw, Lw, Cw]``, any float dtype up to 32 bits and any strides; computed
            in float32. Lw = r and Cw = chunk, or two more each with a border.
        scatter: Where tokens go, and static means and stds; on the tokens' device.
        out: Receives ``[B, E]``, contiguous, any float dtype up to 32 bits; ``scatter.views(out)``
            are the LoRA tensors.
        config: How the kernel runs; by default what :mod:`.tuning` has for the device.

    Raises:
        ValueError: A shape does not fit the table, or a tensor is not on an NVIDIA GPU.
    """
    require_gpu(tokens, out)
    border_size = 2 if scatter.border else 0
    rows, columns = scatter.rank + border_size, scatter.chunk + border_size
    samples, count = tokens.shape[0], len(scatter.table)
    if tuple(tokens.shape) != (samples, count, rows, columns):
        raise ValueError(
            f"tokens has shape {list(tokens.shape)}; expected {[samples, count, rows, columns]}."
        )
    require_shape("out", out, (samples, scatter.elements))
    if samples == 0:
        return
    scale = "border" if scatter.border else "none" if scatter.mean is None else "static"
    if config is None:
        problem = tokens.dtype, out.dtype, scale, samples * count, scatter.rank, scatter.chunk
        config = tuning.config(CANDIDATES, tokens.device, "detokenize", *problem)
    _detokenize_kernel[(count, samples)](
        tokens_ptr=tokens,
        scatter=ScatterArguments.of(scatter, out),
        out_ptr=out,
        token_strides=tokens.stride(),
        SCALE=scale,
        RANK=scatter.rank,
        CHUNK=scatter.chunk,
        BLOCK_R=triton.next_power_of_2(scatter.rank),
        BLOCK_C=min(config.columns, triton.next_power_of_2(scatter.chunk)),
        BLOCK_BORDER_L=triton.next_power_of_2(rows),
        BLOCK_BORDER_C=triton.next_power_of_2(columns),
        num_warps=config.num_warps,
    )
