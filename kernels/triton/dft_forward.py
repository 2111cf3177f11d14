"""The forward DFT: the tiles of an image transformed, as one matrix product with folded windows.

A 2-D DFT of a window of P positions is one dense matrix. With the origin in the window's centre its
rows for real parts are even and those for imaginary parts odd, so that windows are folded, position
p onto P - 1 - p, and half the arithmetic is left. With K = P / 2, rounded up, positions k < K and
bins f,

    Re X[f, (t, c)] = sum over k of M[0, f, k] (x[k, (t, c)] + x[P - 1 - k, (t, c)])
    Im X[f, (t, c)] = sum over k of M[1, f, k] (x[k, (t, c)] - x[P - 1 - k, (t, c)])

for tiles t, whose positions are ordered (i, j), and channels c, innermost. Tiles are ordered
(t1, t2, b) along height, width and batch. Which bins there are and how they are normalised is the
matrix's business alone.

LayerNorm may be applied on load. In float16, x is multiplied by the power of two s of
:mod:`.primitives`; a folded window is at most twice as large as x, for which there is room.

Bytes moved, of E bytes an element: E (image + F T C planes); overlapping windows and the matrix,
which is read by every block of columns, come from the caches.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dnd_fast.kernels.fft.tiling import Tiling
from dnd_fast.kernels.triton import tuning
from dnd_fast.kernels.triton.arguments import ImageSizes, ImageStrides
from dnd_fast.kernels.triton.checks import Config, LayerNorm, alignment, require_flat, require_gpu
from dnd_fast.kernels.triton.primitives import (
    known_multiple,
    layer_norm_on_load,
    offsets,
    range_scale,
)


@triton.jit
def _dft_forward_kernel(
    x_ptr,
    matrix_ptr,
    out_ptr,
    bound_ptr,
    x_strides,
    norm,
    bins,
    inner,
    x_sizes,
    columns,
    tiling,
    sqrt_window_size,
    PLANES: tl.constexpr,
    SIZE_H: tl.constexpr,
    SIZE_W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # What is contiguous in memory is the block's last dimension: columns (channels) or positions.
    COLUMN: tl.constexpr = 0 if CHANNELS_LAST else 1
    POSITION: tl.constexpr = 1 - COLUMN
    LAST: tl.constexpr = SIZE_H * SIZE_W - 1
    FOLDED: tl.constexpr = LAST // 2 + 1
    batch, channels, height, width = x_sizes
    tiles_w, step_h, step_w, before_h, before_w = tiling
    channels, columns = known_multiple(channels, ALIGN), known_multiple(columns, ALIGN)
    stride_xb, stride_xc, stride_xh, stride_xw = x_strides
    if CHANNELS_LAST:
        stride_xb = known_multiple(stride_xb, ALIGN)
        stride_xh = known_multiple(stride_xh, ALIGN)
        stride_xw = known_multiple(stride_xw, ALIGN)
    # Blocks of bins, of the real part and then of the imaginary one, are neighbours: they read the
    # same windows.
    blocks_f = tl.cdiv(bins, BLOCK_M)
    i_part = tl.program_id(0) // blocks_f % 2
    o_f = tl.program_id(0) % blocks_f * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = tl.program_id(0) // (2 * blocks_f) * BLOCK_N + tl.arange(0, BLOCK_N)
    # A column is (tile along height, tile along width, sample, channel), the last one innermost.
    o_tile = tl.expand_dims(o_n // channels, COLUMN)
    o_c = tl.expand_dims(o_n % channels, COLUMN)
    o_b = o_tile % batch
    o_h = o_tile // (batch * tiles_w) * step_h - before_h
    o_w = o_tile // batch % tiles_w * step_w - before_w
    m_n = tl.expand_dims(o_n < columns, COLUMN)
    p_m = matrix_ptr + (i_part * bins + o_f)[:, None] * inner

    # Real parts are even in the position, imaginary ones odd: windows are added to their mirror
    # images, or these are taken from them.
    scale, sign = range_scale(bound_ptr, sqrt_window_size), 1.0 - 2.0 * i_part
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i_k in range(0, inner, BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        m_m = (o_f < bins)[:, None] & (o_k < inner)[None, :]
        b_m = tl.load(p_m + o_k[None, :], mask=m_m, other=0.0)  # [M, K]
        b_fold = 0.0
        for MIRRORED in tl.static_range(2):
            o_p = LAST - o_k if MIRRORED else o_k
            # SIZE_W is a constant: the division becomes a multiplication.
            o_i = tl.expand_dims(o_p // SIZE_W, POSITION)
            o_j = tl.expand_dims(o_p % SIZE_W, POSITION)
            o_y, o_x = o_h + o_i, o_w + o_j
            # The matrix has more columns than half a window has positions, and windows jut out.
            m_x = m_n & tl.expand_dims(o_k < FOLDED, POSITION)
            m_x &= (o_y >= 0) & (o_y < height) & (o_x >= 0) & (o_x < width)
            p_x = x_ptr + offsets(
                o_b, o_c, o_h, o_w, o_i, o_j, (stride_xb, stride_xc, stride_xh, stride_xw)
            )
            b_x = tl.load(p_x, mask=m_x, other=0.0).to(tl.float32)  # [K, N] or [N, K]
            if norm is not None:
                stride_sb, stride_sh, stride_sw = norm.stats_strides
                stride_gc, stride_gh, stride_gw = norm.affine_strides
                b_x = layer_norm_on_load(
                    b_x,
                    m_x,
                    norm.mean_ptr,
                    norm.rstd_ptr,
                    norm.weight_ptr,
                    norm.bias_ptr,
                    offsets(o_b, o_c, o_h, o_w, o_i, o_j, (stride_sb, 0, stride_sh, stride_sw)),
                    offsets(o_b, o_c, o_h, o_w, o_i, o_j, (0, stride_gc, stride_gh, stride_gw)),
                )
            b_fold += sign * b_x if MIRRORED else b_x
        # Scaled before it is rounded to the matrix's dtype, where it might not fit otherwise.
        b_fold = (b_fold * scale).to(b_m.dtype)
        b_fold = b_fold if CHANNELS_LAST else tl.trans(b_fold)  # [K, N]
        acc = tl.dot(b_m, b_fold, acc, input_precision="ieee")  # [M, N]
    o_row = o_f.to(tl.int64) * PLANES + (PLANES - 2 + i_part)
    p_out = out_ptr + o_row[:, None] * columns + o_n[None, :]
    m_out = (o_f < bins)[:, None] & (o_n < columns)[None, :]
    b_out = acc.to(out_ptr.dtype.element_ty)
    tl.store(p_out, b_out, mask=m_out)
    if PLANES == 3:  # the imaginary part once more, negated: bin_gemm reads (-im, re) as one block
        p_out = out_ptr + (o_row - 2)[:, None] * columns + o_n[None, :]
        tl.store(p_out, -b_out, mask=m_out & (i_part == 1))


# Configs that tuning tries, the default first.
HALF = (
    Config(block_m=128, block_n=64, block_k=32, num_warps=8, num_stages=4),
    Config(block_m=64, block_n=64, block_k=32, num_warps=4, num_stages=4),
    Config(block_m=64, block_n=128, block_k=32, num_warps=8, num_stages=4),
    Config(block_m=128, block_n=64, block_k=64, num_warps=8, num_stages=3),
)
# LayerNorm brings eight more loads an element, which a deep pipeline has no shared memory for.
NORMED = (
    Config(block_m=128, block_n=64, block_k=32, num_warps=8, num_stages=2),
    Config(block_m=128, block_n=64, block_k=32, num_warps=8, num_stages=3),
    Config(block_m=128, block_n=32, block_k=32, num_warps=4, num_stages=2),
)
SINGLE = (Config(block_m=64, block_n=32, block_k=16, num_warps=4, num_stages=2),)


def dft_forward_triton(
    x: Tensor,
    matrix: Tensor,
    tiling: Tiling,
    out: Tensor,
    *,
    planes: int = 2,
    norm: LayerNorm | None = None,
    bound: Tensor | None = None,
    sqrt_window_size: float = 1.0,
    config: Config | None = None,
) -> None:
    """Transform the tiles of an image.

    Args:
        x: Image ``[B, C, H, W]``, any strides; float16, bfloat16 or float32. Zero outside.
        matrix: Matrices M ``[2, F, K]``, contiguous, of the module's docstring, as
            ``dft.folded_forward_matrix`` makes it; columns beyond half the positions of a tile
            meet zeros. float16 for 16-bit x, else x's dtype. Fastest where K is a multiple of 16.
        tiling: Tiles of x.
        out: Receives ``[F, planes, T, C]``, contiguous, or any shape with as many elements; T =
            tiles times B.
        planes: 2 for (re, im); 3 for (-im, re, im).
        norm: LayerNorm that is applied to x.
        bound: A number ``[]`` or ``[1]``, float32, at least the largest magnitude of (normalised)
            x.
        sqrt_window_size: Ratio of the largest magnitude of ``out`` to that of x that is not
            exceeded; at least 1.
        config: How the kernel runs; by default what :mod:`.tuning` has for the device.

    Raises:
        ValueError: There is no GPU, or ``out`` or the matrix does not fit.
    """
    require_gpu(x, matrix, out)
    columns = tiling.columns(x)
    if matrix.ndim != 3 or len(matrix) != 2 or matrix.shape[2] < tiling.folded:
        raise ValueError(
            f"the matrix has shape {list(matrix.shape)}; expected [2, bins, {tiling.folded} or "
            "more]."
        )
    _, bins, inner = matrix.shape
    require_flat("the matrix", matrix, 2 * bins * inner)
    require_flat("out", out, bins * planes * columns)
    layout = "last" if x.stride(1) == 1 else "first"
    if config is None:
        single = matrix.dtype == torch.float32
        candidates = SINGLE if single else NORMED if norm else HALF
        kinds = matrix.dtype, "normed" if norm else "plain", layout
        config = tuning.config(candidates, x.device, "dft_forward", *kinds, bins, columns, inner)
    blocks = 2 * triton.cdiv(bins, config.block_m) * triton.cdiv(columns, config.block_n)
    if blocks == 0:
        return
    _dft_forward_kernel[(blocks,)](
        x_ptr=x,
        matrix_ptr=matrix,
        out_ptr=out,
        bound_ptr=bound,
        norm=norm.arguments() if norm else None,
        x_strides=ImageStrides(*x.stride()),
        x_sizes=ImageSizes(*x.shape),
        tiling=tiling.arguments(),
        bins=bins,
        inner=inner,
        columns=columns,
        sqrt_window_size=sqrt_window_size,
        PLANES=planes,
        SIZE_H=tiling.size_h,
        SIZE_W=tiling.size_w,
        CHANNELS_LAST=layout == "last",
        ALIGN=alignment(x),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
