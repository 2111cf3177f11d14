"""The products of a transform-domain convolution: one complex matrix product per frequency bin.

In real arithmetic, with signals as planes (-Xi, Xr, Xi) of T rows, S = [Xr; Xi] are the rows from T
on, and S rotated by a right angle, R = [-Xi; Xr], the rows up to 2T of one contiguous block:

    Y[f] = scale (S[f] Wr[f]' + R[f] Wi[f]'),             X [F, 3, T, C], W [F, 2, C', C],
    G[f] = (dY[f]' S[f], dY[f]' R[f]),                    Y, dY [F, 2, T, C'], G [F, 2, C', C].

Weights are on the M side of every product: wgmma takes 64 of its rows at a time, while 2T may be
small. Both parts of a bin share one float32 accumulator.

Bytes moved, of E bytes an element of X and V of W: F (2 V C' C + E T (3 C + 2 C')). Weights are
read once and leave the cache first; a bin's signals stay there until all its weights have passed.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def"

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from dnd_fast.kernels.triton import tuning
from dnd_fast.kernels.triton.checks import Config, require_gpu, require_shape
from dnd_fast.kernels.triton.primitives import known_multiple


@triton.jit
def _block_of(i_program, channels_out, rows, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Bin and first output channel and row of a program: blocks that share weights are neighbours,
    then come the others of the same bin."""
    blocks_m, blocks_n = tl.cdiv(channels_out, BLOCK_M), tl.cdiv(rows, BLOCK_N)
    i_f = i_program // (blocks_m * blocks_n)
    i_m = i_program // blocks_n % blocks_m
    return i_f, i_m * BLOCK_M, i_program % blocks_n * BLOCK_N


@triton.jit
def _bin_gemm_kernel(
    x_ptr,
    weight_ptr,
    weight_scale_ptr,
    out_ptr,
    weight_strides,
    stride_sf,
    tiles,
    channels,
    channels_out,
    scale,
    ALIGN_IN: tl.constexpr,
    ALIGN_OUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows = 2 * tiles
    channels = known_multiple(channels, ALIGN_IN)
    channels_out = known_multiple(channels_out, ALIGN_OUT)
    stride_wf, stride_wq, stride_wm = weight_strides
    stride_wf = known_multiple(stride_wf, ALIGN_IN)
    stride_wq = known_multiple(stride_wq, ALIGN_IN)
    stride_wm = known_multiple(stride_wm, ALIGN_IN)
    i_f, i_m, i_n = _block_of(tl.program_id(0), channels_out, rows, BLOCK_M, BLOCK_N)
    i_f = i_f.to(tl.int64)
    o_m, o_n = i_m + tl.arange(0, BLOCK_M), i_n + tl.arange(0, BLOCK_N)
    m_m, m_n = o_m < channels_out, o_n < rows
    blocks_k = tl.cdiv(channels, BLOCK_K)
    p_w = weight_ptr + i_f * stride_wf + o_m[:, None] * stride_wm
    p_x = x_ptr + (i_f * 3 * tiles + o_n[None, :]) * channels

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    # Wr with S, then Wi with R, which begins a plane earlier: one loop, so that the pipeline of
    # loads does not run dry between them.
    for i_step in range(2 * blocks_k):
        i_part = i_step // blocks_k
        o_k = i_step % blocks_k * BLOCK_K + tl.arange(0, BLOCK_K)
        m_k = o_k < channels
        b_w = tl.load(
            p_w + i_part * stride_wq + o_k[None, :],
            mask=m_m[:, None] & m_k[None, :],
            other=0.0,
            eviction_policy="evict_first",
        )  # [M, K]
        b_x = tl.load(
            p_x + (1 - i_part) * tiles * channels + o_k[:, None],
            mask=m_k[:, None] & m_n[None, :],
            other=0.0,
            eviction_policy="evict_last",
        )  # [K, N]
        acc = tl.dot(b_w.to(b_x.dtype), b_x, acc, input_precision="ieee")  # [M, N]

    # Of int8 weights: a scale per output channel can wait for the sum over input channels.
    if weight_scale_ptr is not None:
        acc *= tl.load(weight_scale_ptr + i_f * stride_sf + o_m, mask=m_m, other=0.0)[:, None]
    p_out = out_ptr + (i_f * rows + o_n[:, None]) * channels_out + o_m[None, :]
    # Rows of Y are contiguous, not those of the accumulator, whose M side are the weights.
    b_out = tl.trans(acc * scale).to(out_ptr.dtype.element_ty)  # [N, M]
    tl.store(p_out, b_out, mask=m_n[:, None] & m_m[None, :])


@triton.jit
def _bin_gemm_tma_kernel(
    x_desc,
    weight_desc,
    weight_scale_ptr,
    out_desc,
    stride_sf,
    bins,
    tiles,
    channels,
    channels_out,
    scale,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows = 2 * tiles
    blocks = bins * tl.cdiv(channels_out, BLOCK_M) * tl.cdiv(rows, BLOCK_N)
    blocks_k = tl.cdiv(channels, BLOCK_K)
    # As many programs as processors, each with several blocks. Flat: the next block's first loads
    # are under way while a block is stored.
    for i_program in tl.range(tl.program_id(0), blocks, tl.num_programs(0), flatten=True):
        i_f, i_m, i_n = _block_of(i_program, channels_out, rows, BLOCK_M, BLOCK_N)
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for i_step in range(2 * blocks_k):
            i_part = i_step // blocks_k
            i_k = i_step % blocks_k * BLOCK_K
            b_w = weight_desc.load([i_f, i_part, i_m, i_k]).reshape(BLOCK_M, BLOCK_K)  # [M, K]
            b_x = x_desc.load([i_f, (1 - i_part) * tiles + i_n, i_k])
            b_x = b_x.reshape(BLOCK_N, BLOCK_K)  # [N, K]
            acc = tl.dot(b_w.to(b_x.dtype), b_x.T, acc, input_precision="ieee")  # [M, N]
        if weight_scale_ptr is not None:
            o_m = i_m + tl.arange(0, BLOCK_M)
            p_s = weight_scale_ptr + i_f.to(tl.int64) * stride_sf + o_m
            acc *= tl.load(p_s, mask=o_m < channels_out, other=0.0)[:, None]
        b_out = tl.trans(acc * scale).to(out_desc.dtype)  # [N, M]
        out_desc.store([i_f, i_n, i_m], b_out.reshape(1, BLOCK_N, BLOCK_M))


@triton.jit
def _weight_gradient_kernel(
    dy_ptr,
    x_ptr,
    out_ptr,
    tiles,
    channels,
    channels_out,
    ALIGN_IN: tl.constexpr,
    ALIGN_OUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows = 2 * tiles
    channels = known_multiple(channels, ALIGN_IN)
    channels_out = known_multiple(channels_out, ALIGN_OUT)
    # Both parts of a block are neighbours: they read the same dY, and S and R share a plane.
    i_part = tl.program_id(0) % 2
    i_f, i_m, i_n = _block_of(tl.program_id(0) // 2, channels_out, channels, BLOCK_M, BLOCK_N)
    i_f = i_f.to(tl.int64)
    o_m, o_n = i_m + tl.arange(0, BLOCK_M), i_n + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    m_m, m_n = o_m < channels_out, o_n < channels
    p_dy = dy_ptr + (i_f * rows + o_k[None, :]) * channels_out + o_m[:, None]
    p_x = x_ptr + (i_f * 3 * tiles + (1 - i_part) * tiles + o_k[:, None]) * channels + o_n[None, :]

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i_k in range(0, rows, BLOCK_K):
        m_k = i_k + o_k < rows
        b_dy = tl.load(p_dy, mask=m_m[:, None] & m_k[None, :], other=0.0)  # [M, K]
        b_x = tl.load(p_x, mask=m_k[:, None] & m_n[None, :], other=0.0)  # [K, N]
        acc = tl.dot(b_dy, b_x, acc, input_precision="ieee")  # [M, N]
        p_dy += BLOCK_K * channels_out
        p_x += BLOCK_K * channels

    p_out = out_ptr + ((i_f * 2 + i_part) * channels_out + o_m[:, None]) * channels + o_n[None, :]
    tl.store(p_out, acc, mask=m_m[:, None] & m_n[None, :])


@dataclass(frozen=True)
class BinGemmConfig(Config):
    """How :func:`bin_gemm` runs.

    Attributes:
        tma: Whether a persistent kernel runs, whose blocks the tensor memory accelerator copies;
            for compute capability 9 or more and rows that are multiples of 16 bytes.
    """

    tma: bool = False


SINGLE = (BinGemmConfig(block_m=64, block_n=64, block_k=16, num_warps=8, num_stages=2),)
# Configs that tuning tries for the weight gradient, the default first.
GRADIENT = (
    Config(block_m=64, block_n=128, block_k=64, num_warps=8, num_stages=3),
    Config(block_m=64, block_n=64, block_k=64, num_warps=4, num_stages=3),
    Config(block_m=64, block_n=128, block_k=32, num_warps=8, num_stages=4),
    Config(block_m=128, block_n=64, block_k=64, num_warps=8, num_stages=3),
)


def candidates(x: Tensor, weight: Tensor, capability: int) -> tuple[BinGemmConfig, ...]:
    """Configs that tuning tries, the default first: narrow blocks for few rows, and TMA where
    hardware and strides allow.

    Args:
        x: Signals as given to :func:`bin_gemm`.
        weight: Weights as given to :func:`bin_gemm`.
        capability: Compute capability times ten, 80 or more.
    """
    if x.dtype == torch.float32:
        return SINGLE
    n = min(128, max(16, triton.next_power_of_2(2 * x.shape[2])))
    if not _wide(x, weight):  # narrow loads take more registers
        return (
            BinGemmConfig(64, n, 32, num_warps=8, num_stages=4),
            BinGemmConfig(64, min(n, 64), 64, num_warps=8, num_stages=3),
            BinGemmConfig(128, min(n, 64), 32, num_warps=8, num_stages=3),
        )
    copied = (
        BinGemmConfig(128, n, 64, num_warps=8, num_stages=4, tma=True),
        BinGemmConfig(128, n, 64, num_warps=4, num_stages=4, tma=True),
        BinGemmConfig(128, n, 128, num_warps=8, num_stages=3, tma=True),
        BinGemmConfig(64, n, 64, num_warps=4, num_stages=4, tma=True),
    )
    loaded = (
        BinGemmConfig(128, n, 64, num_warps=8, num_stages=4),
        BinGemmConfig(128, n, 32, num_warps=8, num_stages=4),
        BinGemmConfig(64, n, 64, num_warps=8, num_stages=4),
    )
    return (*copied, *loaded) if capability >= 90 else loaded


def _wide(x: Tensor, weight: Tensor) -> bool:
    """Whether all rows are multiples of 16 bytes."""
    strides = (stride * weight.itemsize for stride in weight.stride()[:3])
    signals = x.shape[3] * x.itemsize, weight.shape[2] * x.itemsize
    return math.gcd(*signals, *strides, weight.data_ptr()) % 16 == 0


def bin_gemm(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    weight_scale: Tensor | None = None,
    scale: float = 1.0,
    config: BinGemmConfig | None = None,
) -> None:
    """Multiply signals by weights in every bin.

    Args:
        x: Planes -Xi, Xr, Xi as ``[F, 3, T, C]``, contiguous; float16 or float32.
        weight: Wr and Wi as ``[F, 2, C', C]``, last stride 1; of x's dtype, or int8.
        out: Receives Yr and Yi as ``[F, 2, T, C']``, contiguous, of x's dtype.
        weight_scale: Scale of int8 weights, ``[F, C']`` float32, last stride 1.
        scale: A factor, applied before the product is rounded to x's dtype.
        config: How the kernel runs; by default what :mod:`.tuning` has for the device.

    Raises:
        ValueError: There is no GPU, or the operands do not fit together.
    """
    require_gpu(x, weight, out)
    (bins, _, tiles, channels), channels_out = x.shape, weight.shape[2]
    require_shape("x", x, (bins, 3, tiles, channels))
    require_shape("out", out, (bins, 2, tiles, channels_out))
    if weight.shape != (bins, 2, channels_out, channels) or weight.stride(3) != 1:
        raise ValueError(
            f"the weight has shape {list(weight.shape)} and strides {list(weight.stride())}; "
            f"expected {[bins, 2, channels_out, channels]} and a last stride of 1."
        )
    if weight_scale is not None and (
        weight_scale.shape != (bins, channels_out) or weight_scale.stride(1) != 1
    ):
        raise ValueError(
            f"weight_scale has shape {list(weight_scale.shape)} and strides "
            f"{list(weight_scale.stride())}; "
            f"expected {[bins, channels_out]} and a last stride of 1."
        )
    if config is None:
        kinds = x.dtype, weight.dtype, "wide" if _wide(x, weight) else "narrow"
        sizes = channels_out, 2 * tiles, channels
        configs = candidates(x, weight, _capability(x))
        config = tuning.config(configs, x.device, "bin_gemm", *kinds, *sizes)
    block_m, block_n, block_k = config.block_m, config.block_n, config.block_k
    blocks = bins * triton.cdiv(channels_out, block_m) * triton.cdiv(2 * tiles, block_n)
    if blocks == 0:
        return
    if config.tma:
        planes, product = x.flatten(1, 2), out.flatten(1, 2)
        _bin_gemm_tma_kernel[(min(blocks, _multiprocessors(x)),)](
            x_desc=TensorDescriptor.from_tensor(planes, [1, block_n, block_k]),
            weight_desc=TensorDescriptor.from_tensor(weight, [1, 1, block_m, block_k]),
            weight_scale_ptr=weight_scale,
            out_desc=TensorDescriptor.from_tensor(product, [1, block_n, block_m]),
            stride_sf=0 if weight_scale is None else weight_scale.stride(0),
            bins=bins,
            tiles=tiles,
            channels=channels,
            channels_out=channels_out,
            scale=scale,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        return
    _bin_gemm_kernel[(blocks,)](
        x_ptr=x,
        weight_ptr=weight,
        weight_scale_ptr=weight_scale,
        out_ptr=out,
        weight_strides=weight.stride()[:3],
        stride_sf=0 if weight_scale is None else weight_scale.stride(0),
        tiles=tiles,
        channels=channels,
        channels_out=channels_out,
        scale=scale,
        ALIGN_IN=math.gcd(16, channels, *weight.stride()[:3]),
        ALIGN_OUT=math.gcd(16, channels_out),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def bin_gemm_weight_gradient(
    dy: Tensor, x: Tensor, out: Tensor, *, config: Config | None = None
) -> None:
    """Sum over tiles what every bin of the weight receives.

    Args:
        dy: Gradient ``[F, 2, T, C']``, contiguous; float16 or float32.
        x: Planes -Xi, Xr, Xi as ``[F, 3, T, C]``, contiguous, of dy's dtype.
        out: Receives ``[F, 2, C', C]`` float32, contiguous.
        config: How the kernel runs; by default what :mod:`.tuning` has for the device.

    Raises:
        ValueError: There is no GPU, or the operands do not fit together.
    """
    require_gpu(dy, x, out)
    (bins, _, tiles, channels), channels_out = x.shape, dy.shape[3]
    require_shape("x", x, (bins, 3, tiles, channels))
    require_shape("dy", dy, (bins, 2, tiles, channels_out))
    require_shape("out", out, (bins, 2, channels_out, channels))
    if config is None:
        configs: tuple[Config, ...] = SINGLE if x.dtype == torch.float32 else GRADIENT
        problem = x.dtype, channels_out, channels, 2 * tiles
        config = tuning.config(configs, x.device, "weight_gradient", *problem)
    blocks = triton.cdiv(channels_out, config.block_m) * triton.cdiv(channels, config.block_n)
    if out.numel() == 0:
        return
    _weight_gradient_kernel[(2 * bins * blocks,)](
        dy_ptr=dy,
        x_ptr=x,
        out_ptr=out,
        tiles=tiles,
        channels=channels,
        channels_out=channels_out,
        ALIGN_IN=math.gcd(16, channels),
        ALIGN_OUT=math.gcd(16, channels_out),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _capability(x: Tensor) -> int:
    major, minor = torch.cuda.get_device_capability(x.device) if x.is_cuda else (8, 0)
    return 10 * major + minor


def _multiprocessors(x: Tensor) -> int:
    if x.is_cuda:
        return torch.cuda.get_device_properties(x.device).multi_processor_count
    return 2  # in the interpreter: enough for a program to own several blocks
