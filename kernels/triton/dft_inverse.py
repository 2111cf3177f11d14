"""The inverse DFT: bins transformed back into the tiles of an image, with an epilogue.

With the folds and the order of :mod:`.dft_forward`, positions k and tiles t, channels c,

    x[k, (t, c)] = even + odd and x[P - 1 - k, (t, c)] = even - odd, where
    even = sum over f of E[0, k, f] Re Y[f, (t, c)] and odd = the same of E[1] and Im Y.

In float16 the result is divided by the power of two s of :mod:`.primitives`.

Bytes moved, of E bytes an element: E (2 F T C + image), and what the epilogue reads; the matrix,
which is read by every block of columns, comes from the caches.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from dnd_fast.kernels.fft.tiling import Tiling
from dnd_fast.kernels.lora_scatter import LoraScatterTable
from dnd_fast.kernels.triton import tuning
from dnd_fast.kernels.triton.arguments import ImageSizes
from dnd_fast.kernels.triton.checks import (
    Config,
    EpilogueName,
    alignment,
    epilogue_arguments,
    image_strides,
    output_shape,
    require_flat,
    require_gpu,
    require_operands,
)
from dnd_fast.kernels.triton.layer_norm import merge_chunks
from dnd_fast.kernels.triton.primitives import (
    epilogue_store,
    known_multiple,
    lora_offsets,
    merge_moments,
    moments,
    offsets,
    range_scale,
)


@triton.jit
def _dft_inverse_kernel(
    y_ptr,
    matrix_ptr,
    out_ptr,
    bound_ptr,
    epilogue,
    image_strides,
    bins,
    inner,
    image_sizes,
    columns,
    tiling,
    sqrt_window_size,
    scale,
    SIZE_H: tl.constexpr,
    SIZE_W: tl.constexpr,
    EPILOGUE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # What is contiguous in memory is the block's last dimension: columns (channels) or positions.
    COLUMN: tl.constexpr = 0 if CHANNELS_LAST else 1
    LAST: tl.constexpr = SIZE_H * SIZE_W - 1
    FOLDED: tl.constexpr = LAST // 2 + 1
    batch, channels, height, width = image_sizes
    tiles_w, step_h, step_w, _, _ = tiling
    channels, columns = known_multiple(channels, ALIGN), known_multiple(columns, ALIGN)
    stride_ob, stride_oc, stride_oh, stride_ow = image_strides
    if CHANNELS_LAST:
        stride_ob = known_multiple(stride_ob, ALIGN)
        stride_oh = known_multiple(stride_oh, ALIGN)
        stride_ow = known_multiple(stride_ow, ALIGN)
    # Blocks of positions are neighbours: they read the same columns.
    blocks_m = tl.cdiv(FOLDED, BLOCK_M)
    o_m = tl.program_id(0) % blocks_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = tl.program_id(0) // blocks_m * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    p_m = matrix_ptr + o_m[:, None] * inner + o_k[None, :]
    m_m, m_n = (o_m < FOLDED)[:, None], (o_n < columns)[None, :]

    even = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    odd = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i_k in range(0, inner, BLOCK_K):
        # Two bounds: the matrix's own, a multiple of 16, leaves its loads wide.
        m_k, m_y = i_k + o_k < inner, i_k + o_k < bins
        m_k, m_y = m_m & m_k[None, :], m_y[:, None] & m_n
        o_row = (i_k + o_k).to(tl.int64)[:, None] * 2
        b_m = tl.load(p_m + i_k, mask=m_k, other=0.0)  # [M, K]
        b_y = tl.load(y_ptr + o_row * columns + o_n[None, :], mask=m_y, other=0.0)  # [K, N]
        even = tl.dot(b_m, b_y, even, input_precision="ieee")  # [M, N]
        b_m = tl.load(p_m + (FOLDED * inner + i_k), mask=m_k, other=0.0)  # [M, K]
        b_y = tl.load(y_ptr + (o_row + 1) * columns + o_n[None, :], mask=m_y, other=0.0)  # [K, N]
        odd = tl.dot(b_m, b_y, odd, input_precision="ieee")  # [M, N]

    factor = scale / range_scale(bound_ptr, sqrt_window_size)
    # A column is (tile along height, tile along width, sample, channel), the last one innermost.
    o_tile = tl.expand_dims(o_n // channels, COLUMN)
    o_c = tl.expand_dims(o_n % channels, COLUMN)
    o_b = o_tile % batch
    o_h = o_tile // (batch * tiles_w) * step_h
    o_w = o_tile // batch % tiles_w * step_w
    m_n = tl.expand_dims(o_n < columns, COLUMN)
    if epilogue.chunks_ptr is not None:
        count = tl.zeros((BLOCK_N,), tl.float32)
        mean = tl.zeros((BLOCK_N,), tl.float32)
        m2 = tl.zeros((BLOCK_N,), tl.float32)
    # Positions p of the first half of a tile, then their mirror images P - 1 - p.
    for MIRRORED in tl.static_range(2):
        b_out = (even - odd if MIRRORED else even + odd) * factor
        b_out = b_out if CHANNELS_LAST else tl.trans(b_out)
        # The centre of an odd number of positions is its own mirror image: stored once.
        m_p = o_m < (LAST + 1) // 2 if MIRRORED else o_m < FOLDED
        o_p = LAST - o_m if MIRRORED else o_m
        o_i = tl.expand_dims(o_p // SIZE_W, 1 - COLUMN)
        o_j = tl.expand_dims(o_p % SIZE_W, 1 - COLUMN)
        m_out = m_n & tl.expand_dims(m_p, 1 - COLUMN)
        m_out = m_out & (o_h + o_i < height) & (o_w + o_j < width)  # the last tiles jut out
        o_image = offsets(
            o_b, o_c, o_h, o_w, o_i, o_j, (stride_ob, stride_oc, stride_oh, stride_ow)
        )
        o_out, o_bias = o_image, o_image
        if epilogue.bias_strides is not None:
            stride_bc, stride_bh, stride_bw = epilogue.bias_strides
            o_bias = offsets(o_b, o_c, o_h, o_w, o_i, o_j, (0, stride_bc, stride_bh, stride_bw))
        if epilogue.scatter is not None:
            o_out, m_kept = lora_offsets(epilogue.scatter.table_ptr, o_c, o_h + o_i, o_w + o_j)
            o_out += o_b.to(tl.int64) * epilogue.scatter.stride_b
            m_out = m_out & m_kept
        b_stored = epilogue_store(
            b_out,
            m_out,
            out_ptr,
            o_out,
            epilogue,
            o_bias,
            o_image,
            (o_c * height + o_h + o_i) * width + o_w + o_j,
            o_c,
            EPILOGUE,
        )
        if epilogue.chunks_ptr is not None:
            count2, mean2, m22 = moments(b_stored, m_out, COLUMN)
            count, mean, m2 = merge_moments(count, mean, m2, count2, mean2, m22)
    if epilogue.chunks_ptr is not None:
        # A chunk of a row (sample, channel) is a tile's block of positions: nothing to add up here.
        rows = batch * channels
        i_block = o_n // rows * blocks_m + tl.program_id(0) % blocks_m
        p_chunk = epilogue.chunks_ptr + i_block * rows + o_n % rows
        plane = columns * blocks_m
        tl.store(p_chunk, count, mask=o_n < columns)
        tl.store(p_chunk + plane, mean, mask=o_n < columns)
        tl.store(p_chunk + 2 * plane, m2, mask=o_n < columns)


# Configs that tuning tries, the default first. There are two accumulators, and an epilogue that
# holds addresses of three operands.
HALF = (
    Config(block_m=64, block_n=64, block_k=32, num_warps=8, num_stages=4),
    Config(block_m=64, block_n=64, block_k=32, num_warps=8, num_stages=2),
    Config(block_m=64, block_n=32, block_k=32, num_warps=4, num_stages=4),
)
SINGLE = (Config(block_m=64, block_n=32, block_k=16, num_warps=8, num_stages=2),)


def dft_inverse_triton(
    y: Tensor,
    matrix: Tensor,
    tiling: Tiling,
    out: Tensor,
    *,
    bound: Tensor | None = None,
    sqrt_window_size: float = 1.0,
    scale: float = 1.0,
    epilogue: EpilogueName = "store",
    bias: Tensor | None = None,
    other: Tensor | None = None,
    amax: Tensor | None = None,
    stats: tuple[Tensor, Tensor] | None = None,
    scatter: LoraScatterTable | None = None,
    config: Config | None = None,
) -> None:
    """Transform back into the tiles of an image, which must not overlap; what juts out is dropped.

    With y the product times scale / s, what is stored is, by name of the epilogue:

    * ``"store"``: y;
    * ``"tanh_bias"``: tanh(y) + bias;
    * ``"mix"``: (y + other) / 3;
    * ``"bias_residual"``: y + bias + other, the latter where given.

    Args:
        y: Planes ``[F, 2, T, C]``, contiguous, or any shape with as many elements; of the matrix's
            dtype.
        matrix: Matrices E ``[2, K, F']``, contiguous, of the module's docstring, as
            ``dft.folded_inverse_matrix`` makes it; F' at least F, and columns beyond F meet zeros.
            Fastest where F' is a multiple of 16.
        tiling: Tiles of ``out``, with ``before`` 0.
        out: Receives ``[B, C, H, W]``, any strides, any float dtype up to float32; with scatter
            ``[B, E]``, contiguous.
        bound: Bound given to :func:`.dft_forward.dft_forward_triton` for the signal that y was
            computed from.
        sqrt_window_size: Ratio given there.
        scale: A factor.
        epilogue: Name of the epilogue; see above.
        bias: A view ``[C, H, W]``, any strides, for ``"tanh_bias"``; ``[C]``, contiguous, for
            ``"bias_residual"``.
        other: Image ``[B, C, H, W]``, of the strides of ``out``; any with scatter; may be ``out``.
        amax: A number ``[]`` or ``[1]``, float32, raised to the largest magnitude stored.
        stats: Receive mean and reciprocal standard deviation of what is stored, over (H, W);
            ``[B, C]`` float32, contiguous.
        scatter: The image is tokens ``[B, Nw, r, chunk]``, to be scaled and written into LoRA
            tensors as :func:`.detokenize.detokenize` does it.
        config: How the kernel runs; by default what :mod:`.tuning` has for the device.

    Raises:
        ValueError: There is no GPU, or the operands do not fit together.
    """
    require_gpu(y, matrix, out)
    shape = output_shape(out, scatter)
    batch, channels, _, _ = shape
    spatial = tiling.tiles_h * tiling.tiles_w
    columns = spatial * batch * channels
    if matrix.ndim != 3 or matrix.shape[:2] != (2, tiling.folded):
        raise ValueError(
            f"the matrix has shape {list(matrix.shape)}; expected [2, {tiling.folded}, bins or "
            "more]."
        )
    if y.dtype != matrix.dtype:
        raise ValueError(f"y is {y.dtype} and the matrix {matrix.dtype}; expected the same dtype.")
    bins, inner = y.numel() // max(1, 2 * columns), matrix.shape[2]
    if bins > inner:
        raise ValueError(f"y has {bins} bins, the matrix only {inner} columns.")
    require_flat("the matrix", matrix, 2 * tiling.folded * inner)
    require_flat("y", y, 2 * bins * columns)
    require_operands(epilogue, shape, bias, other)
    layout = "tokens" if scatter else "last" if out.stride(1) == 1 else "first"
    if config is None:
        candidates = SINGLE if matrix.dtype == torch.float32 else HALF
        problem = matrix.dtype, epilogue, layout, tiling.folded, columns, inner
        config = tuning.config(candidates, out.device, "dft_inverse", *problem)
    blocks_m = triton.cdiv(tiling.folded, config.block_m)
    blocks_n = triton.cdiv(columns, config.block_n)
    if blocks_m * blocks_n == 0:
        return
    chunks = None
    if stats is not None:
        chunks = y.new_empty(3, spatial * blocks_m, batch * channels, dtype=torch.float32)
    _dft_inverse_kernel[(blocks_m * blocks_n,)](
        y_ptr=y,
        matrix_ptr=matrix,
        out_ptr=out,
        bound_ptr=bound,
        epilogue=epilogue_arguments(bias, other, amax, chunks, scatter, out),
        image_strides=image_strides(out, scatter, other),
        image_sizes=ImageSizes(*shape),
        tiling=tiling.arguments(),
        bins=bins,
        inner=inner,
        columns=columns,
        sqrt_window_size=sqrt_window_size,
        scale=scale,
        SIZE_H=tiling.size_h,
        SIZE_W=tiling.size_w,
        EPILOGUE=epilogue,
        CHANNELS_LAST=layout == "last",
        ALIGN=math.gcd(16, channels) if scatter else alignment(out),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if chunks is not None and stats is not None:
        merge_chunks(chunks, *stats)
