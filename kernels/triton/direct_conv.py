"""Direct convolution as one implicit matrix product, for convolutions of few channels.

For stride 1, zero "same" padding p = (k - 1) / 2 and an odd square kernel,

    y[b, o, h, w] = sum over u, v, c of weight[o, c, u, v] x[b, c, h + u - p, w + v - p],

x and out being strided views ``[B, C, H, W]`` and ``[B, C', H, W]``. A program owns a rectangle of
positions and a block of output channels: ``acc [positions, C'] += x [positions, K] @ w [K, C']``
with K running over taps and channels. Positions are on the M side, since there are always many:
wgmma takes 64 rows at a time but is content with 8 columns. Where C < 16, taps and channels are one
index, or most of a block of K would be padding.

LayerNorm may be applied on load, to what lies inside the image, and an epilogue before the store.

Bytes moved, of E bytes an element: E (B H W (C + C') + k^2 C C'), as far as caches hold the overlap
of windows.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from dnd_fast.kernels.lora_scatter import LoraScatterTable
from dnd_fast.kernels.triton import tuning
from dnd_fast.kernels.triton.arguments import ImageStrides
from dnd_fast.kernels.triton.checks import (
    EpilogueName,
    LayerNorm,
    epilogue_arguments,
    image_strides,
    output_shape,
    require_gpu,
    require_operands,
)
from dnd_fast.kernels.triton.layer_norm import merge_chunks
from dnd_fast.kernels.triton.primitives import (
    epilogue_store,
    layer_norm_on_load,
    lora_offsets,
    moments,
)


@triton.jit
def _direct_conv_kernel(
    x_ptr,
    weight_ptr,
    out_ptr,
    norm,
    epilogue,
    x_strides,
    image_strides,
    channels_in,
    channels_out,
    height,
    width,
    KERNEL: tl.constexpr,
    JOINT: tl.constexpr,
    EPILOGUE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    stride_xb, stride_xc, stride_xh, stride_xw = x_strides
    stride_ob, stride_oc, stride_oh, stride_ow = image_strides
    # Blocks of output channels are neighbours: they read the same windows.
    blocks_n, tiles_w = tl.cdiv(channels_out, BLOCK_N), tl.cdiv(width, BLOCK_W)
    i_n = tl.program_id(0) % blocks_n
    i_tile = tl.program_id(0) // blocks_n
    i_w = i_tile % tiles_w
    i_h = i_tile // tiles_w % tl.cdiv(height, BLOCK_H)
    i_b = (i_tile // (tiles_w * tl.cdiv(height, BLOCK_H))).to(tl.int64)
    # The rectangle's width is a constant, so that the compiler sees runs of neighbours in memory.
    o_m = tl.arange(0, BLOCK_H * BLOCK_W)[:, None]
    o_h = i_h * BLOCK_H + o_m // BLOCK_W
    o_w = i_w * BLOCK_W + o_m % BLOCK_W
    o_n = (i_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]).to(tl.int64)
    o_k = tl.arange(0, BLOCK_K)
    m_n = o_n < channels_out

    blocks_k = tl.cdiv(channels_in, BLOCK_K)
    taps = KERNEL * KERNEL
    # Few channels: a block of K holds several taps, with the channels of each innermost.
    steps = tl.cdiv(taps * channels_in, BLOCK_K) if JOINT else taps * blocks_k
    acc = tl.zeros((BLOCK_H * BLOCK_W, BLOCK_N), tl.float32)
    for step in range(steps):
        # [K] channels, and the tap that they belong to: one for all, or jointly one for each.
        if JOINT:
            o_tap, o_c = (step * BLOCK_K + o_k) // channels_in, (step * BLOCK_K + o_k) % channels_in
            m_k = o_tap < taps
            p_w = weight_ptr + (o_tap[:, None] * channels_out + o_n) * channels_in + o_c[:, None]
            tap = o_tap[None, :]
        else:
            tap, o_c = step // blocks_k, step % blocks_k * BLOCK_K + o_k
            m_k = o_c < channels_in
            p_w = weight_ptr + (tap * channels_out + o_n) * channels_in + o_c[:, None]
        b_w = tl.load(p_w, mask=m_k[:, None] & m_n, other=0.0)  # [K, N]

        o_c = o_c[None, :]
        o_y = o_h + (tap // KERNEL - KERNEL // 2)  # [M, 1], jointly [M, K]
        o_x = o_w + (tap % KERNEL - KERNEL // 2)
        m_x = (o_y >= 0) & (o_y < height) & (o_x >= 0) & (o_x < width) & m_k[None, :]
        p_x = x_ptr + i_b * stride_xb + o_c.to(tl.int64) * stride_xc
        p_x += o_y.to(tl.int64) * stride_xh + o_x.to(tl.int64) * stride_xw
        b_x = tl.load(p_x, mask=m_x, other=0.0)  # [M, K]
        if norm is not None:  # padding stays 0: what is padded is the normalised image
            stride_sb, stride_sh, stride_sw = norm.stats_strides
            stride_gc, stride_gh, stride_gw = norm.affine_strides
            o_stats = o_y * stride_sh + o_x * stride_sw
            b_x = layer_norm_on_load(
                b_x,
                m_x,
                norm.mean_ptr + i_b * stride_sb,
                norm.rstd_ptr + i_b * stride_sb,
                norm.weight_ptr,
                norm.bias_ptr,
                tl.broadcast_to(o_stats, m_x.shape),
                o_c * stride_gc + o_y * stride_gh + o_x * stride_gw,
            )
        acc = tl.dot(b_x.to(b_w.dtype), b_w, acc, input_precision="ieee")  # [M, N]

    o_h, o_w = o_h.to(tl.int64), o_w.to(tl.int64)  # offsets of a large image need 64 bits
    m_out = (o_h < height) & (o_w < width) & m_n
    o_c = tl.minimum(o_n, channels_out - 1)  # what is loaded by channel needs no mask then
    o_image = i_b * stride_ob + o_n * stride_oc + o_h * stride_oh + o_w * stride_ow
    o_out, o_bias = o_image, o_image
    if epilogue.bias_strides is not None:
        stride_bc, stride_bh, stride_bw = epilogue.bias_strides
        o_bias = o_n * stride_bc + o_h * stride_bh + o_w * stride_bw
    if epilogue.scatter is not None:
        o_out, m_kept = lora_offsets(epilogue.scatter.table_ptr, o_c, o_h, o_w)
        o_out, m_out = o_out + i_b * epilogue.scatter.stride_b, m_out & m_kept
    b_stored = epilogue_store(
        acc,
        m_out,
        out_ptr,
        o_out,
        epilogue,
        o_bias,
        o_image,
        (o_c * height + o_h) * width + o_w,
        o_c,
        EPILOGUE,
    )
    if epilogue.chunks_ptr is not None:
        # Statistics over (H, W): a chunk of a row (sample, channel) is this program's rectangle.
        count, mean, m2 = moments(b_stored, m_out, 0)
        o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
        m_n = o_n < channels_out
        tiles = tl.cdiv(height, BLOCK_H) * tiles_w
        rows = tl.num_programs(0) // (blocks_n * tiles) * channels_out
        p_chunk = epilogue.chunks_ptr + i_tile % tiles * rows + i_b * channels_out + o_n
        tl.store(p_chunk, count, mask=m_n)
        tl.store(p_chunk + tiles * rows, mean, mask=m_n)
        tl.store(p_chunk + 2 * tiles * rows, m2, mask=m_n)


@dataclass(frozen=True)
class DirectConvConfig:
    """Blocks of the matrix product, powers of two, and how its kernel is compiled.

    Attributes:
        positions: Positions of a program's rectangle.
        columns: Width of the rectangle where the image is large enough.
        outputs: Output channels of a program, at most; 16 or more.
        inputs: Input channels, or (tap, channel) pairs, at a time, at most; 16 or more.
        num_warps: Warps of a program.
        num_stages: Stages of the pipeline that loads.
    """

    positions: int
    columns: int
    outputs: int
    inputs: int
    num_warps: int
    num_stages: int


# Configs that tuning tries, the default first.
HALF = (
    DirectConvConfig(128, columns=32, outputs=64, inputs=32, num_warps=8, num_stages=3),
    DirectConvConfig(128, columns=16, outputs=64, inputs=32, num_warps=8, num_stages=2),
    DirectConvConfig(64, columns=32, outputs=64, inputs=32, num_warps=4, num_stages=3),
)
SINGLE = (DirectConvConfig(64, columns=16, outputs=32, inputs=16, num_warps=8, num_stages=2),)


def pack_weight(weight: Tensor) -> Tensor:
    """``[C', C, k, k]`` -> ``[k k, C', C]``, contiguous: what :func:`direct_conv2d` takes.

    The gradient with respect to x is the same convolution of out's gradient, with
    ``weight.transpose(0, 1).flip(2, 3)``.
    """
    return weight.permute(2, 3, 0, 1).flatten(0, 1).contiguous()


def direct_conv2d(
    x: Tensor,
    packed: Tensor,
    out: Tensor,
    kernel: int,
    *,
    norm: LayerNorm | None = None,
    epilogue: EpilogueName = "store",
    bias: Tensor | None = None,
    other: Tensor | None = None,
    amax: Tensor | None = None,
    stats: tuple[Tensor, Tensor] | None = None,
    scatter: LoraScatterTable | None = None,
    config: DirectConvConfig | None = None,
) -> None:
    """Convolve with stride 1 and "same" padding.

    With y the convolution, what is stored is, by name of the epilogue:

    * ``"store"``: y;
    * ``"tanh_bias"``: tanh(y) + bias;
    * ``"mix"``: (y + other) / 3;
    * ``"bias_residual"``: y + bias + other, the latter where given.

    Args:
        x: Image ``[B, C, H, W]``, any strides, any float dtype up to float32.
        packed: Weight ``[k k, C', C]`` by :func:`pack_weight`; float16, bfloat16 or float32.
            Products are taken in its dtype and summed in float32.
        out: Receives ``[B, C', H, W]``, any strides, any float dtype up to float32; not x; with
            scatter ``[B, E]``, contiguous.
        kernel: Kernel size k, odd.
        norm: LayerNorm that is applied to x first.
        epilogue: Name of the epilogue; see above.
        bias: A view ``[C', H, W]``, any strides, for ``"tanh_bias"``; ``[C']``, contiguous, for
            ``"bias_residual"``.
        other: Image ``[B, C', H, W]``, of the strides of ``out``; any with scatter; may be ``out``.
        amax: A number ``[]`` or ``[1]``, float32, raised to the largest magnitude stored.
        stats: Receive mean and reciprocal standard deviation of what is stored, over (H, W);
            ``[B, C']`` float32, contiguous.
        scatter: The image is tokens ``[B, Nw, r, chunk]``, to be scaled and written into LoRA
            tensors as :func:`.detokenize.detokenize` does it.
        config: How the kernel runs; by default what :mod:`.tuning` has for the device.

    Raises:
        ValueError: There is no GPU, or the operands do not fit together.
    """
    require_gpu(x, packed, out)
    if kernel % 2 == 0:
        raise ValueError(f"kernel={kernel}: it must be odd.")
    (batch, channels_in, height, width), channels_out = x.shape, packed.shape[1]
    shape = (batch, channels_out, height, width)
    for name, actual, expected in (
        ("packed", tuple(packed.shape), (kernel * kernel, channels_out, channels_in)),
        ("out", output_shape(out, scatter), shape),
    ):
        if actual != expected:
            raise ValueError(
                f"{name} has shape {actual}; an input of shape {tuple(x.shape)} expects {expected}."
            )
    require_operands(epilogue, shape, bias, other)
    if config is None:
        candidates = SINGLE if packed.dtype == torch.float32 else HALF
        layout = "last" if x.stride(1) == 1 else "first"
        normed, written = "normed" if norm else "plain", "tokens" if scatter else epilogue
        kinds = packed.dtype, normed, layout, written
        sizes = batch * height * width, channels_out, channels_in, kernel
        config = tuning.config(candidates, x.device, "direct_conv", *kinds, *sizes)
    block_h, block_w = _rectangle(height, width, config)
    block_n = min(config.outputs, max(16, triton.next_power_of_2(channels_out)))
    joint = channels_in < 16
    block_k = config.inputs if joint else min(config.inputs, triton.next_power_of_2(channels_in))
    tiles = triton.cdiv(height, block_h) * triton.cdiv(width, block_w)
    blocks = batch * tiles * triton.cdiv(channels_out, block_n)
    if blocks == 0:
        return
    chunks = None
    if stats is not None:
        chunks = x.new_empty(3, tiles, batch * channels_out, dtype=torch.float32)
    _direct_conv_kernel[(blocks,)](
        x_ptr=x,
        weight_ptr=packed,
        out_ptr=out,
        norm=norm.arguments() if norm else None,
        epilogue=epilogue_arguments(bias, other, amax, chunks, scatter, out),
        x_strides=ImageStrides(*x.stride()),
        image_strides=image_strides(out, scatter, other),
        channels_in=channels_in,
        channels_out=channels_out,
        height=height,
        width=width,
        KERNEL=kernel,
        JOINT=joint,
        EPILOGUE=epilogue,
        BLOCK_H=block_h,
        BLOCK_W=block_w,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if chunks is not None and stats is not None:
        merge_chunks(chunks, *stats)


def _rectangle(height: int, width: int, config: DirectConvConfig) -> tuple[int, int]:
    """Height and width of a program's rectangle: not much taller or, if possible, wider than x."""
    block_w = min(config.columns, triton.next_power_of_2(width))
    block_h = min(config.positions // block_w, triton.next_power_of_2(height))
    return block_h, config.positions // block_h
