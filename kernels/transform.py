"""Transforms of 2-D tiles as matrix products, gathered from and scattered to strided views.

A 2-D DFT of a window of P positions is one dense matrix. With the origin in the window's centre its
rows for real parts are even and those for imaginary parts odd, so that windows are folded, position
p onto P - 1 - p, and half the arithmetic is left. With K = P / 2, rounded up, positions k < K and
bins f,

    analyze:     Re X[f, (t, c)] = sum over k of M[0, f, k] (x[k, (t, c)] + x[P - 1 - k, (t, c)])
                 Im X[f, (t, c)] = sum over k of M[1, f, k] (x[k, (t, c)] - x[P - 1 - k, (t, c)])
    synthesize:  x[k, (t, c)] = even + odd and x[P - 1 - k, (t, c)] = even - odd, where
                 even = sum over f of E[0, k, f] Re Y[f, (t, c)], odd = the same of E[1] and Im Y

for tiles t, whose positions are ordered (i, j), and channels c, innermost. Tiles are ordered
(t1, t2, b) along height, width and batch. Which bins there are and in which units is the matrices'
business alone.

On load, LayerNorm may be applied; before the store, an epilogue. In float16 a power of two keeps
everything in range: s = 2^floor(log2(2^14 / (bound sqrt_points))) multiplies x, whose magnitude is
at most ``bound``, in analyze, and 1 / s the result of synthesize; ``bound`` stays on the device. A
folded window is at most twice as large as x, for which there is room.

Bytes moved, of E bytes an element: E (image + F T C planes); overlapping windows and the matrices,
which are read by every block of columns, come from the caches.
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
    """Of positions (i, j) of tiles that begin at (h, w), in 64 bits: one sum of two vectors."""
    o_tile = o_b.to(tl.int64) * stride_b + o_c.to(tl.int64) * stride_c
    o_tile += o_h.to(tl.int64) * stride_h + o_w.to(tl.int64) * stride_w
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
    stride_sb,
    stride_sh,
    stride_sw,
    stride_gc,
    stride_gh,
    stride_gw,
    bins,
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
    channels, columns = known_multiple(channels, ALIGN), known_multiple(columns, ALIGN)
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
    o_tile = tl.expand_dims(o_n // channels, COLUMN)
    o_c = tl.expand_dims(o_n % channels, COLUMN)
    o_b = o_tile % batch
    o_h = o_tile // (batch * tiles_w) * step_h - before_h
    o_w = o_tile // batch % tiles_w * step_w - before_w
    m_n = tl.expand_dims(o_n < columns, COLUMN)
    p_m = matrix_ptr + (i_part * bins + o_f)[:, None] * inner

    scale, sign = range_scale(bound_ptr, sqrt_points), 1.0 - 2.0 * i_part
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i_k in range(0, inner, BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        m_m = (o_f < bins)[:, None] & (o_k < inner)[None, :]
        b_m = tl.load(p_m + o_k[None, :], mask=m_m, other=0.0)  # [M, K]
        b_fold = 0.0
        for MIRRORED in tl.static_range(2):
            o_p = LAST - o_k if MIRRORED else o_k
            o_i = tl.expand_dims(o_p // SIZE_W, POSITION)
            o_j = tl.expand_dims(o_p % SIZE_W, POSITION)
            o_y, o_x = o_h + o_i, o_w + o_j
            m_x = m_n & tl.expand_dims(o_k < FOLDED, POSITION)
            m_x &= (o_y >= 0) & (o_y < height) & (o_x >= 0) & (o_x < width)
            p_x = x_ptr + _offsets(
                o_b, o_c, o_h, o_w, o_i, o_j, stride_xb, stride_xc, stride_xh, stride_xw
            )
            b_x = tl.load(p_x, mask=m_x, other=0.0).to(tl.float32)  # [K, N] or [N, K]
            if mean_ptr is not None:
                o_stats = _offsets(o_b, o_c, o_h, o_w, o_i, o_j, stride_sb, 0, stride_sh, stride_sw)
                o_affine = _offsets(
                    o_b, o_c, o_h, o_w, o_i, o_j, 0, stride_gc, stride_gh, stride_gw
                )
                b_x = layer_norm_on_load(
                    b_x, m_x, mean_ptr, rstd_ptr, gamma_ptr, beta_ptr, o_stats, o_affine
                )
            b_fold += sign * b_x if MIRRORED else b_x
        b_fold = (b_fold * scale).to(b_m.dtype)
        b_fold = b_fold if CHANNELS_LAST else tl.trans(b_fold)  # [K, N]
        acc = tl.dot(b_m, b_fold, acc, input_precision="ieee")  # [M, N]
    o_row = o_f.to(tl.int64) * PLANES + (PLANES - 2 + i_part)
    p_out = out_ptr + o_row[:, None] * columns + o_n[None, :]
    m_out = (o_f < bins)[:, None] & (o_n < columns)[None, :]
    b_out = acc.to(out_ptr.dtype.element_ty)
    tl.store(p_out, b_out, mask=m_out)
    if PLANES == 3:  # the imaginary part once more, negated
        p_out = out_ptr + (o_row - 2)[:, None] * columns + o_n[None, :]
        tl.store(p_out, -b_out, mask=m_out & (i_part == 1))


@triton.jit
def _synthesize_kernel(
    y_ptr,
    matrix_ptr,
    out_ptr,
    bound_ptr,
    bias_ptr,
    other_ptr,
    amax_ptr,
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
    bins,
    inner,
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
    LAST: tl.constexpr = SIZE_H * SIZE_W - 1
    FOLDED: tl.constexpr = LAST // 2 + 1
    channels, columns = known_multiple(channels, ALIGN), known_multiple(columns, ALIGN)
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

    factor = gain / range_scale(bound_ptr, sqrt_points)
    o_tile = tl.expand_dims(o_n // channels, COLUMN)
    o_c = tl.expand_dims(o_n % channels, COLUMN)
    o_b = o_tile % batch
    o_h = o_tile // (batch * tiles_w) * step_h
    o_w = o_tile // batch % tiles_w * step_w
    m_n = tl.expand_dims(o_n < columns, COLUMN)
    for MIRRORED in tl.static_range(2):
        y = (even - odd if MIRRORED else even + odd) * factor
        y = y if CHANNELS_LAST else tl.trans(y)
        # The centre of an odd number of positions is its own mirror image: stored once.
        m_p = o_m < (LAST + 1) // 2 if MIRRORED else o_m < FOLDED
        o_p = LAST - o_m if MIRRORED else o_m
        o_i = tl.expand_dims(o_p // SIZE_W, 1 - COLUMN)
        o_j = tl.expand_dims(o_p % SIZE_W, 1 - COLUMN)
        m_out = m_n & tl.expand_dims(m_p, 1 - COLUMN)
        epilogue_store(
            y,
            m_out & (o_h + o_i < height) & (o_w + o_j < width),
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


HALF = Config(block_m=128, block_n=64, block_k=32, num_warps=8, num_stages=4)
# LayerNorm brings eight more loads an element, which a deep pipeline has no shared memory for.
NORMED = Config(block_m=128, block_n=64, block_k=32, num_warps=8, num_stages=2)
# Two accumulators, and an epilogue that holds addresses of three operands.
SCATTERED = Config(block_m=64, block_n=64, block_k=32, num_warps=8, num_stages=4)
SINGLE = Config(block_m=64, block_n=32, block_k=16, num_warps=4, num_stages=2)


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

    @property
    def folded(self) -> int:
        """Positions of a folded tile: half of them, rounded up."""
        return (self.size_h * self.size_w + 1) // 2


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
    planes: int = 2,
    norm: LayerNorm | None = None,
    bound: Tensor | None = None,
    sqrt_points: float = 1.0,
    config: Config | None = None,
) -> None:
    """Transform the tiles of an image.

    Args:
        x: ``[B, C, H, W]``, any strides; float16, bfloat16 or float32. Zero outside.
        matrix: ``[2, F, K]``, contiguous, M of the module's docstring, as ``dft.folded_analysis``
            makes it; columns beyond half the positions of a tile meet zeros. float16 for 16-bit x,
            else x's dtype. Fastest where K is a multiple of 16.
        tiling: of x.
        out: ``[F, planes, T, C]``, contiguous, or any shape with as many elements; T = tiles
            times B.
        planes: 2 for (re, im); 3 for (-im, re, im).
        norm: applied to x.
        bound: ``[]`` or ``[1]`` float32, at least the largest magnitude of (normalised) x.
        sqrt_points: how many times larger than x's the largest magnitude of ``out`` can be, or
            more; at least 1.
        config: by default one for the matrix's dtype and the norm.

    Raises:
        ValueError: no GPU, or ``out`` or the matrix does not fit.
    """
    require_gpu(x, matrix, out)
    batch, channels, height, width = x.shape
    columns = tiling.columns(x)
    if matrix.ndim != 3 or len(matrix) != 2 or matrix.shape[2] < tiling.folded:
        raise ValueError(
            f"the matrix has shape {list(matrix.shape)}; expected [2, bins, {tiling.folded} or "
            "more]."
        )
    _, bins, inner = matrix.shape
    _check_flat("the matrix", matrix, 2 * bins * inner)
    _check_flat("out", out, bins * planes * columns)
    if config is None:
        config = SINGLE if matrix.dtype == torch.float32 else NORMED if norm else HALF
    stats, affine = (norm.stats_strides, norm.affine_strides) if norm else ((0,) * 4, (0,) * 4)
    blocks = 2 * triton.cdiv(bins, config.block_m) * triton.cdiv(columns, config.block_n)
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
        stride_sb=stats[0],
        stride_sh=stats[2],
        stride_sw=stats[3],
        stride_gc=affine[1],
        stride_gh=affine[2],
        stride_gw=affine[3],
        bins=bins,
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
        PLANES=planes,
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
        y: ``[F, 2, T, C]``, contiguous, or any shape with as many elements; of the matrix's dtype.
        matrix: ``[2, K, F']``, contiguous, E of the module's docstring, as ``dft.folded_synthesis``
            makes it; F' at least F, and columns beyond F meet zeros. Fastest where F' is a multiple
            of 16.
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
    columns = tiling.columns(out)
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
    _check_flat("the matrix", matrix, 2 * tiling.folded * inner)
    _check_flat("y", y, 2 * bins * columns)
    require_operands(epilogue, tuple(out.shape), bias, other)
    config = config or (SINGLE if matrix.dtype == torch.float32 else SCATTERED)
    bias_strides = (0, 0, 0) if bias is None else (*bias.stride(), 0, 0)[:3]
    other_strides = (0, 0, 0, 0) if other is None else other.stride()
    blocks = triton.cdiv(tiling.folded, config.block_m) * triton.cdiv(columns, config.block_n)
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
        bins=bins,
        inner=inner,
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
