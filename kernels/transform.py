"""Transforms of 2-D tiles as single matrix products, gathered from and scattered to strided views.

A linear transform of a small window, such as a 2-D DFT, is one dense matrix. Both ways it is the
operand of a matrix product whose other operand, or result, is a strided image:

    analyze:     X[R, (t, c)] = M[R, (i, j)] @ window[(i, j), (t, c)]
    synthesize:  tile[(i, j), (t, c)] = E[(i, j), K] @ Y[K, (t, c)]

for positions (i, j) of a tile t and channels c, innermost. Tiles are ordered (t1, t2, b) along
height, width and batch. What the rows mean (planes of bins, units, positions in a DFT's window)
is the matrix's business alone.

On load, LayerNorm may be applied; before the store, an epilogue. In float16 a power of two keeps
everything in range: s = 2^floor(log2(2^14 / (bound sqrt_points))) multiplies x, whose magnitude is
at most ``bound``, in analyze, and 1 / s the result of synthesize; ``bound`` stays on the device.

Bytes moved, of E bytes an element: E (image + R T C); overlapping windows and the matrix, which is
read by every block of columns, come from the caches.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def"

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

EpilogueName = Literal["store", "tanh_bias", "mix", "bias_residual"]


@triton.jit
def tanh(x):
    """Of float32: Lambert's continued fraction near 0, where 1 - tanh would cancel."""
    square = x * x
    small = x * (945.0 + square * (105.0 + square)) / (945.0 + square * (420.0 + square * 15.0))
    large = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0)  # exactly 1 once exp overflows
    return tl.where(tl.abs(x) < 0.6, small, tl.where(x < 0.0, -large, large))


@triton.jit
def range_scale(bound_ptr, sqrt_points):
    """The power of two s of the module's docstring; 1 without a bound or for a bound of 0."""
    scale = 1.0
    if bound_ptr is not None:
        largest = tl.load(bound_ptr) * sqrt_points
        # Within 2^-100 .. 2^100, so that its inverse and products with it stay finite.
        ratio = tl.minimum(tl.maximum(16384.0 / largest, 2.0**-100), 2.0**100)
        power = (ratio.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        scale = tl.where(largest > 0.0, power, 1.0)
    return scale


@triton.jit
def layer_norm_on_load(b_x, m_x, mean_ptr, rstd_ptr, gamma_ptr, beta_ptr, o_stats, o_affine):
    """A loaded block, normalised, in float32; where the mask hides padding every factor is 0."""
    b_mean = tl.load(mean_ptr + o_stats, mask=m_x, other=0.0)
    b_rstd = tl.load(rstd_ptr + o_stats, mask=m_x, other=0.0)
    b_gamma = tl.load(gamma_ptr + o_affine, mask=m_x, other=0.0).to(tl.float32)
    b_beta = tl.load(beta_ptr + o_affine, mask=m_x, other=0.0).to(tl.float32)
    return (b_x.to(tl.float32) - b_mean) * b_rstd * b_gamma + b_beta


@triton.jit
def epilogue_store(
    y,
    m_y,
    out_ptr,
    o_out,
    bias_ptr,
    o_bias,
    other_ptr,
    o_other,
    amax_ptr,
    EPILOGUE: tl.constexpr,
):
    """Apply an epilogue to a float32 block, store it and note its largest magnitude."""
    if EPILOGUE == "tanh_bias":
        y = tanh(y) + tl.load(bias_ptr + o_bias, mask=m_y, other=0.0).to(tl.float32)
    elif EPILOGUE == "mix":
        y = (y + tl.load(other_ptr + o_other, mask=m_y, other=0.0).to(tl.float32)) / 3.0
    elif EPILOGUE == "bias_residual":
        y += tl.load(bias_ptr + o_bias, mask=m_y, other=0.0).to(tl.float32)
        if other_ptr is not None:
            y += tl.load(other_ptr + o_other, mask=m_y, other=0.0).to(tl.float32)
    b_out = y.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + o_out, b_out, mask=m_y)
    if amax_ptr is not None:
        largest = tl.max(tl.where(m_y, tl.abs(b_out.to(tl.float32)), 0.0))
        tl.atomic_max(amax_ptr, largest, sem="relaxed")


@triton.jit
def known_multiple(x, ALIGN: tl.constexpr):
    """x, which the compiler will take for a multiple of ALIGN; of itself it only looks for 16."""
    return x // ALIGN * ALIGN


@triton.jit
def _offsets(o_b, o_c, o_h, o_w, o_i, o_j, stride_b, stride_c, stride_h, stride_w):
    """Of positions (i, j) of tiles that begin at (h, w): one sum of two vectors."""
    o_tile = o_b * stride_b + o_c * stride_c + o_h * stride_h + o_w * stride_w
    return o_tile + (o_i * stride_h + o_j * stride_w)


@triton.jit
def _analyze_kernel(
    x_ptr,
    matrix_ptr,
    out_ptr,
    bound_ptr,
    mean_ptr,
    rstd_ptr,
    gamma_ptr,
    beta_ptr,
    stride_xb,
    stride_xc,
    stride_xh,
    stride_xw,
    stride_mr,
    stride_sb,
    stride_sh,
    stride_sw,
    stride_gc,
    stride_gh,
    stride_gw,
    rows,
    inner,
    batch,
    channels,
    height,
    width,
    columns,
    tiles_w,
    step_h,
    step_w,
    before_h,
    before_w,
    sqrt_points,
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
    CONVERT: tl.constexpr = (
        mean_ptr is not None or x_ptr.dtype.element_ty != matrix_ptr.dtype.element_ty
    )
    channels, columns = known_multiple(channels, ALIGN), known_multiple(columns, ALIGN)
    if CHANNELS_LAST:
        stride_xb = known_multiple(stride_xb, ALIGN)
        stride_xh = known_multiple(stride_xh, ALIGN)
        stride_xw = known_multiple(stride_xw, ALIGN)
    # Blocks of rows are neighbours: they read the same windows.
    blocks_m = tl.cdiv(rows, BLOCK_M)
    o_m = tl.program_id(0) % blocks_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = tl.program_id(0) // blocks_m * BLOCK_N + tl.arange(0, BLOCK_N)
    o_tile = tl.expand_dims(o_n // channels, COLUMN)
    o_c = tl.expand_dims(o_n % channels, COLUMN).to(tl.int64)
    o_b = (o_tile % batch).to(tl.int64)
    o_h = (o_tile // (batch * tiles_w) * step_h - before_h).to(tl.int64)
    o_w = (o_tile // batch % tiles_w * step_w - before_w).to(tl.int64)
    m_n = tl.expand_dims(o_n < columns, COLUMN)
    p_m = matrix_ptr + o_m[:, None] * stride_mr

    scale = range_scale(bound_ptr, sqrt_points)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i_k in range(0, inner, BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        m_m = (o_m < rows)[:, None] & (o_k < inner)[None, :]
        b_m = tl.load(p_m + o_k[None, :], mask=m_m, other=0.0)  # [M, K]
        o_i = tl.expand_dims(o_k // SIZE_W, POSITION)
        o_j = tl.expand_dims(o_k % SIZE_W, POSITION)
        o_y, o_x = o_h + o_i, o_w + o_j
        m_x = m_n & (o_i < SIZE_H) & (o_y >= 0) & (o_y < height) & (o_x >= 0) & (o_x < width)
        p_x = x_ptr + _offsets(
            o_b, o_c, o_h, o_w, o_i, o_j, stride_xb, stride_xc, stride_xh, stride_xw
        )
        b_x = tl.load(p_x, mask=m_x, other=0.0)
        if mean_ptr is not None:
            o_stats = _offsets(o_b, o_c, o_h, o_w, o_i, o_j, stride_sb, 0, stride_sh, stride_sw)
            o_affine = _offsets(o_b, o_c, o_h, o_w, o_i, o_j, 0, stride_gc, stride_gh, stride_gw)
            b_x = layer_norm_on_load(
                b_x, m_x, mean_ptr, rstd_ptr, gamma_ptr, beta_ptr, o_stats, o_affine
            )
        if CONVERT:
            b_x = (b_x.to(tl.float32) * scale).to(b_m.dtype)
        b_x = b_x if CHANNELS_LAST else tl.trans(b_x)  # [K, N]
        acc = tl.dot(b_m, b_x, acc, input_precision="ieee")  # [M, N]
    if not CONVERT:  # x is in range as it is, and goes from memory to the product untouched
        acc *= scale
    p_out = out_ptr + o_m.to(tl.int64)[:, None] * columns + o_n[None, :]
    m_out = (o_m < rows)[:, None] & (o_n < columns)[None, :]
    tl.store(p_out, acc.to(out_ptr.dtype.element_ty), mask=m_out)


@triton.jit
def _synthesize_kernel(
    y_ptr,
    matrix_ptr,
    out_ptr,
    bound_ptr,
    bias_ptr,
    other_ptr,
    amax_ptr,
    stride_mr,
    stride_ob,
    stride_oc,
    stride_oh,
    stride_ow,
    stride_bc,
    stride_bh,
    stride_bw,
    stride_rb,
    stride_rc,
    stride_rh,
    stride_rw,
    inner,
    y_rows,
    batch,
    channels,
    height,
    width,
    columns,
    tiles_w,
    step_h,
    step_w,
    sqrt_points,
    gain,
    SIZE_H: tl.constexpr,
    SIZE_W: tl.constexpr,
    EPILOGUE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    COLUMN: tl.constexpr = 0 if CHANNELS_LAST else 1
    channels, columns = known_multiple(channels, ALIGN), known_multiple(columns, ALIGN)
    if CHANNELS_LAST:
        stride_ob = known_multiple(stride_ob, ALIGN)
        stride_oh = known_multiple(stride_oh, ALIGN)
        stride_ow = known_multiple(stride_ow, ALIGN)
    # Blocks of positions are neighbours: they read the same columns.
    blocks_m = tl.cdiv(SIZE_H * SIZE_W, BLOCK_M)
    o_m = tl.program_id(0) % blocks_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = tl.program_id(0) // blocks_m * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    p_m = matrix_ptr + o_m[:, None] * stride_mr + o_k[None, :]
    p_y = y_ptr + o_k.to(tl.int64)[:, None] * columns + o_n[None, :]
    m_m, m_n = (o_m < SIZE_H * SIZE_W)[:, None], (o_n < columns)[None, :]

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i_k in range(0, inner, BLOCK_K):
        # Two bounds: the matrix's own, a multiple of 16, leaves its loads wide.
        m_k, m_y = i_k + o_k < inner, i_k + o_k < y_rows
        b_m = tl.load(p_m + i_k, mask=m_m & m_k[None, :], other=0.0)  # [M, K]
        b_y = tl.load(p_y, mask=m_y[:, None] & m_n, other=0.0)  # [K, N]
        acc = tl.dot(b_m, b_y, acc, input_precision="ieee")  # [M, N]
        p_y += BLOCK_K * columns.to(tl.int64)

    y = acc * (gain / range_scale(bound_ptr, sqrt_points))
    y = y if CHANNELS_LAST else tl.trans(y)
    o_i = tl.expand_dims(o_m // SIZE_W, 1 - COLUMN)
    o_j = tl.expand_dims(o_m % SIZE_W, 1 - COLUMN)
    o_tile = tl.expand_dims(o_n // channels, COLUMN)
    o_c = tl.expand_dims(o_n % channels, COLUMN).to(tl.int64)
    o_b = (o_tile % batch).to(tl.int64)
    o_h = (o_tile // (batch * tiles_w) * step_h).to(tl.int64)
    o_w = (o_tile // batch % tiles_w * step_w).to(tl.int64)
    m_out = (o_i < SIZE_H) & (o_h + o_i < height) & (o_w + o_j < width)
    epilogue_store(
        y,
        m_out & tl.expand_dims(o_n < columns, COLUMN),
        out_ptr,
        _offsets(o_b, o_c, o_h, o_w, o_i, o_j, stride_ob, stride_oc, stride_oh, stride_ow),
        bias_ptr,
        _offsets(o_b, o_c, o_h, o_w, o_i, o_j, 0, stride_bc, stride_bh, stride_bw),
        other_ptr,
        _offsets(o_b, o_c, o_h, o_w, o_i, o_j, stride_rb, stride_rc, stride_rh, stride_rw),
        amax_ptr,
        EPILOGUE,
    )


@dataclass(frozen=True)
class Config:
    """Blocks of a matrix product [M, K] @ [K, N], and how its kernel is compiled."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


HALF = Config(block_m=128, block_n=128, block_k=32, num_warps=8, num_stages=4)
# An epilogue holds addresses of three operands.
SCATTERED = Config(block_m=128, block_n=64, block_k=32, num_warps=8, num_stages=4)
# LayerNorm brings four more loads an element, which a deep pipeline has no shared memory for.
NORMED = Config(block_m=128, block_n=64, block_k=32, num_warps=8, num_stages=2)
SINGLE = Config(block_m=64, block_n=64, block_k=16, num_warps=8, num_stages=2)


@dataclass(frozen=True)
class Tiling:
    """Tiles of an image: how many, from one to the next, and positions of each.

    The first tile's first position is ``before`` positions outside the image (0 for synthesis).
    """

    tiles_h: int
    step_h: int
    before_h: int
    size_h: int
    tiles_w: int
    step_w: int
    before_w: int
    size_w: int

    def columns(self, image: Tensor) -> int:
        """(t, c) of an image ``[B, C, H, W]``."""
        return self.tiles_h * self.tiles_w * image.shape[0] * image.shape[1]


@dataclass(frozen=True)
class LayerNorm:
    """LayerNorm over (L, C) of ``[B, N, L, C]``, to be applied to a permuted view of that tensor.

    Attributes:
        mean, rstd: ``[B, N]`` float32, contiguous.
        weight, bias: ``[L, C]``, contiguous.
        order: the permutation of (B, N, L, C) that makes the view; B stays first.
    """

    mean: Tensor
    rstd: Tensor
    weight: Tensor
    bias: Tensor
    order: tuple[int, int, int, int]

    @property
    def stats_strides(self) -> tuple[int, ...]:
        """Of mean and rstd along the dimensions of the view."""
        strides = (self.mean.shape[1], 1, 0, 0)
        return tuple(strides[dim] for dim in self.order)

    @property
    def affine_strides(self) -> tuple[int, ...]:
        """Of weight and bias along the dimensions of the view."""
        strides = (0, 0, self.weight.shape[1], 1)
        return tuple(strides[dim] for dim in self.order)


def require_gpu(*tensors: Tensor) -> None:
    """Refuse tensors that no kernel can run on.

    Raises:
        ValueError: one is not on an NVIDIA GPU, and Triton's interpreter is off.
    """
    for tensor in tensors:
        if not tensor.is_cuda and not triton.knobs.runtime.interpret:
            raise ValueError(
                f"found a tensor on {tensor.device}; Triton kernels need an NVIDIA GPU. Move it "
                "there, or use the plain PyTorch form."
            )


def require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a tensor that is not contiguous or not of a shape.

    Raises:
        ValueError: so.
    """
    if tuple(tensor.shape) != shape or not tensor.is_contiguous():
        raise ValueError(
            f"{name} has shape {list(tensor.shape)} and strides {list(tensor.stride())}; expected "
            f"a contiguous tensor of shape {list(shape)}."
        )


def require_operands(
    epilogue: EpilogueName, shape: tuple[int, ...], bias: Tensor | None, other: Tensor | None
) -> None:
    """Refuse operands that an epilogue to an output ``[B, C, H, W]`` does not take, or lacks.

    Raises:
        ValueError: so.
    """
    bias_shape = {"tanh_bias": shape[1:], "bias_residual": shape[1:2]}.get(epilogue)
    takes_other = epilogue == "mix" or (epilogue == "bias_residual" and other is not None)
    other_shape = shape if takes_other else None
    for name, tensor, expected in (("bias", bias, bias_shape), ("other", other, other_shape)):
        found = None if tensor is None else tuple(tensor.shape)
        if found != expected:
            raise ValueError(
                f"{name} has shape {found}; epilogue {epilogue!r} and an output of shape {shape} "
                f"expect {expected}."
            )


def _alignment(image: Tensor) -> int:
    """Largest power of two up to 16 that divides the channels and, where those are innermost, every
    other stride."""
    _, channels, *_ = image.shape
    strides = (image.stride(dim) for dim in (0, 2, 3)) if image.stride(1) == 1 else ()
    return math.gcd(16, channels, *strides)


def _check_flat(name: str, tensor: Tensor, count: int) -> None:
    if tensor.numel() != count or not tensor.is_contiguous():
        raise ValueError(
            f"{name} has shape {list(tensor.shape)} and strides {list(tensor.stride())}; expected "
            f"a contiguous tensor of {count} elements."
        )


def analyze(
    x: Tensor,
    matrix: Tensor,
    tiling: Tiling,
    out: Tensor,
    *,
    norm: LayerNorm | None = None,
    bound: Tensor | None = None,
    sqrt_points: float = 1.0,
    config: Config | None = None,
) -> None:
    """Transform the tiles of an image.

    Args:
        x: ``[B, C, H, W]``, any strides; float16, bfloat16 or float32. Zero outside.
        matrix: ``[R, K]``, last stride 1, K at least the positions of a tile, which are ordered
            (i, j); columns beyond those meet zeros. float16 for 16-bit x, else x's dtype. Fastest
            where its rows are a multiple of 16 elements apart.
        tiling: of x.
        out: ``[R, T C]``, contiguous, or any shape with as many elements; T = tiles times B.
        norm: applied to x.
        bound: ``[]`` or ``[1]`` float32, at least the largest magnitude of (normalised) x.
        sqrt_points: how many times larger than x's the largest magnitude of ``out`` can be.
        config: by default one for the matrix's dtype and the norm.

    Raises:
        ValueError: no GPU, or ``out`` or the matrix does not fit.
    """
    require_gpu(x, matrix, out)
    batch, channels, height, width = x.shape
    (rows, inner), columns = matrix.shape, tiling.columns(x)
    if inner < tiling.size_h * tiling.size_w or matrix.stride(1) != 1:
        raise ValueError(
            f"the matrix has shape {list(matrix.shape)} and strides {list(matrix.stride())}; "
            f"expected a last stride of 1 and {tiling.size_h * tiling.size_w} columns or more."
        )
    _check_flat("out", out, rows * columns)
    if config is None:
        config = SINGLE if matrix.dtype == torch.float32 else NORMED if norm else HALF
    stats, affine = (norm.stats_strides, norm.affine_strides) if norm else ((0,) * 4, (0,) * 4)
    blocks = triton.cdiv(rows, config.block_m) * triton.cdiv(columns, config.block_n)
    if blocks == 0:
        return
    _analyze_kernel[(blocks,)](
        x_ptr=x,
        matrix_ptr=matrix,
        out_ptr=out,
        bound_ptr=bound,
        mean_ptr=norm.mean if norm else None,
        rstd_ptr=norm.rstd if norm else None,
        gamma_ptr=norm.weight if norm else None,
        beta_ptr=norm.bias if norm else None,
        stride_xb=x.stride(0),
        stride_xc=x.stride(1),
        stride_xh=x.stride(2),
        stride_xw=x.stride(3),
        stride_mr=matrix.stride(0),
        stride_sb=stats[0],
        stride_sh=stats[2],
        stride_sw=stats[3],
        stride_gc=affine[1],
        stride_gh=affine[2],
        stride_gw=affine[3],
        rows=rows,
        inner=inner,
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        columns=columns,
        tiles_w=tiling.tiles_w,
        step_h=tiling.step_h,
        step_w=tiling.step_w,
        before_h=tiling.before_h,
        before_w=tiling.before_w,
        sqrt_points=sqrt_points,
        SIZE_H=tiling.size_h,
        SIZE_W=tiling.size_w,
        CHANNELS_LAST=x.stride(1) == 1,
        ALIGN=_alignment(x),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def synthesize(
    y: Tensor,
    matrix: Tensor,
    tiling: Tiling,
    out: Tensor,
    *,
    bound: Tensor | None = None,
    sqrt_points: float = 1.0,
    gain: float = 1.0,
    epilogue: EpilogueName = "store",
    bias: Tensor | None = None,
    other: Tensor | None = None,
    amax: Tensor | None = None,
    config: Config | None = None,
) -> None:
    """Transform back into the tiles of an image, which must not overlap; what juts out is dropped.

    With y the product times gain / s, what is stored is, by name of the epilogue:

    * ``"store"``: y;
    * ``"tanh_bias"``: tanh(y) + bias;
    * ``"mix"``: (y + other) / 3;
    * ``"bias_residual"``: y + bias + other, the latter where given.

    Args:
        y: ``[K, T C]``, contiguous, or any shape with as many elements; of the matrix's dtype.
        matrix: ``[R, K']``, last stride 1, R the positions of a tile, ordered (i, j), K' at least
            K. Fastest where its rows are a multiple of 16 elements apart.
        tiling: of ``out``, with ``before`` 0.
        out: ``[B, C, H, W]``, any strides, any float dtype up to float32.
        bound, sqrt_points: as given to :func:`analyze` for the signal that y was computed from.
        gain: a factor.
        epilogue: see above.
        bias: a view ``[C, H, W]``, any strides, for ``"tanh_bias"``; ``[C]``, contiguous, for
            ``"bias_residual"``.
        other: ``[B, C, H, W]``, any strides; may be ``out`` itself.
        amax: ``[]`` or ``[1]`` float32, raised to the largest magnitude stored.
        config: by default one for the matrix's dtype.

    Raises:
        ValueError: no GPU, or the operands do not fit together.
    """
    require_gpu(y, matrix, out)
    batch, channels, height, width = out.shape
    (rows, inner), columns = matrix.shape, tiling.columns(out)
    if rows != tiling.size_h * tiling.size_w or matrix.stride(1) != 1:
        raise ValueError(
            f"the matrix has shape {list(matrix.shape)} and strides {list(matrix.stride())}; "
            f"expected a last stride of 1 and {tiling.size_h * tiling.size_w} rows."
        )
    if y.dtype != matrix.dtype:
        raise ValueError(f"y is {y.dtype} and the matrix {matrix.dtype}; expected the same dtype.")
    y_rows = y.numel() // max(1, columns)
    if y_rows > inner:
        raise ValueError(f"y has {y_rows} rows, the matrix only {inner} columns.")
    _check_flat("y", y, y_rows * columns)
    require_operands(epilogue, tuple(out.shape), bias, other)
    config = config or (SINGLE if matrix.dtype == torch.float32 else SCATTERED)
    bias_strides = (0, 0, 0) if bias is None else (*bias.stride(), 0, 0)[:3]
    other_strides = (0, 0, 0, 0) if other is None else other.stride()
    blocks = triton.cdiv(rows, config.block_m) * triton.cdiv(columns, config.block_n)
    if blocks == 0:
        return
    _synthesize_kernel[(blocks,)](
        y_ptr=y,
        matrix_ptr=matrix,
        out_ptr=out,
        bound_ptr=bound,
        bias_ptr=bias,
        other_ptr=other,
        amax_ptr=amax,
        stride_mr=matrix.stride(0),
        stride_ob=out.stride(0),
        stride_oc=out.stride(1),
        stride_oh=out.stride(2),
        stride_ow=out.stride(3),
        stride_bc=bias_strides[0],
        stride_bh=bias_strides[1],
        stride_bw=bias_strides[2],
        stride_rb=other_strides[0],
        stride_rc=other_strides[1],
        stride_rh=other_strides[2],
        stride_rw=other_strides[3],
        inner=inner,
        y_rows=y_rows,
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        columns=columns,
        tiles_w=tiling.tiles_w,
        step_h=tiling.step_h,
        step_w=tiling.step_w,
        sqrt_points=sqrt_points,
        gain=gain,
        SIZE_H=tiling.size_h,
        SIZE_W=tiling.size_w,
        EPILOGUE=epilogue,
        CHANNELS_LAST=out.stride(1) == 1,
        ALIGN=_alignment(out),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
