"""What several kernels do on the GPU: ranges, LayerNorm, epilogues, offsets.

In float16 a power of two keeps values in range: s = 2^floor(log2(2^14 / (bound sqrt_window_size))),
for values of at most ``bound`` whose sums grow at most sqrt_window_size times as large. ``bound``
stays on the device.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(b_x):
    """Hyperbolic tangent of float32: near 0, where 1 - tanh would cancel, Lambert's continued
    fraction."""
    square = b_x * b_x
    small = b_x * (945.0 + square * (105.0 + square)) / (945.0 + square * (420.0 + square * 15.0))
    large = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(b_x)) + 1.0)  # exactly 1 once exp overflows
    return tl.where(tl.abs(b_x) < 0.6, small, tl.where(b_x < 0.0, -large, large))


@triton.jit
def range_scale(bound_ptr, sqrt_window_size):
    """The power of two s of the module's docstring; 1 without a bound or for a bound of 0."""
    scale = 1.0
    if bound_ptr is not None:
        largest = tl.load(bound_ptr) * sqrt_window_size
        # Within 2^-100 .. 2^100, so that its inverse and products with it stay finite.
        ratio = tl.minimum(tl.maximum(16384.0 / largest, 2.0**-100), 2.0**100)
        # Without its mantissa a float is the power of two below it.
        power = (ratio.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        scale = tl.where(largest > 0.0, power, 1.0)
    return scale


@triton.jit
def layer_norm_on_load(b_x, m_x, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, o_stats, o_affine):
    """A loaded block, normalised, in float32; where the mask hides padding every factor is 0."""
    b_mean = tl.load(mean_ptr + o_stats, mask=m_x, other=0.0)
    b_rstd = tl.load(rstd_ptr + o_stats, mask=m_x, other=0.0)
    b_weight = tl.load(weight_ptr + o_affine, mask=m_x, other=0.0).to(tl.float32)
    b_bias = tl.load(bias_ptr + o_affine, mask=m_x, other=0.0).to(tl.float32)
    return (b_x.to(tl.float32) - b_mean) * b_rstd * b_weight + b_bias


@triton.jit
def epilogue_store(
    b_y, m_y, out_ptr, o_out, epilogue, o_bias, o_other, o_token, o_c, EPILOGUE: tl.constexpr
):
    """Apply an epilogue to a float32 block, scale it as tokens are if there is a mean, store it and
    note its largest magnitude; what was stored is returned, in float32.

    ``epilogue`` is an :class:`.arguments.EpilogueArguments`. Channels o_c must exist: what belongs
    to them is loaded without a mask.
    """
    if EPILOGUE == "tanh_bias":
        b_y = tanh(b_y)
        b_y += tl.load(epilogue.bias_ptr + o_bias, mask=m_y, other=0.0).to(tl.float32)
    elif EPILOGUE == "mix":
        b_other = tl.load(epilogue.other_ptr + o_other, mask=m_y, other=0.0)
        b_y = (b_y + b_other.to(tl.float32)) / 3.0
    elif EPILOGUE == "bias_residual":
        b_y += tl.load(epilogue.bias_ptr + o_c).to(tl.float32)
        if epilogue.other_ptr is not None:
            b_y += tl.load(epilogue.other_ptr + o_other, mask=m_y, other=0.0).to(tl.float32)
    if epilogue.scatter is not None and epilogue.scatter.mean_ptr is not None:
        b_std = tl.load(epilogue.scatter.std_ptr + o_c)
        b_y = b_y * b_std + tl.load(epilogue.scatter.mean_ptr + o_token, mask=m_y, other=0.0)
    b_out = b_y.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + o_out, b_out, mask=m_y)
    b_y = b_out.to(tl.float32)  # as the next convolution will read it: rounded
    if epilogue.amax_ptr is not None:
        largest = tl.max(tl.where(m_y, tl.abs(b_y), 0.0))
        # Programs need no order among themselves: a maximum has none.
        tl.atomic_max(epilogue.amax_ptr, largest, sem="relaxed")
    return b_y


@triton.jit
def lora_offsets(table_ptr, o_c, o_h, o_w):
    """Where elements (h, w) of tokens c go in the LoRA tensors, and which columns w are kept."""
    p_token = table_ptr + o_c * 4
    o_out = tl.load(p_token) + o_h * tl.load(p_token + 2) + o_w * tl.load(p_token + 3)
    return o_out, o_w < tl.load(p_token + 1)


@triton.jit
def moments(b_x, m_x, AXIS: tl.constexpr):
    """Count, mean and sum of squared deviations along an axis of a float32 block, where the mask
    is; all 0 where it nowhere is. A mean far from zero does no harm."""
    count = tl.sum(m_x.to(tl.float32), AXIS)
    divisor = tl.maximum(count, 1.0)
    mean = tl.sum(tl.where(m_x, b_x, 0.0), AXIS) / divisor
    deviation = tl.where(m_x, b_x - tl.expand_dims(mean, AXIS), 0.0)
    correction = tl.sum(deviation, AXIS) / divisor  # of what the first sum has lost
    m2 = tl.sum(deviation * deviation, AXIS) - count * correction * correction
    return count, mean + correction, m2


@triton.jit
def merge_moments(count, mean, m2, count2, mean2, m22):
    """Moments of the union of two disjoint sets (Chan, Golub and LeVeque, 1979)."""
    total = count + count2
    share = count2 / tl.maximum(total, 1.0)
    difference = mean2 - mean
    return (
        total,
        mean + difference * share,
        m2 + m22 + difference * difference * count * share,
    )


@triton.jit
def known_multiple(x, ALIGN: tl.constexpr):
    """x, which the compiler will take for a multiple of ALIGN; of itself it only looks for 16."""
    return x // ALIGN * ALIGN


@triton.jit
def offsets(o_b, o_c, o_h, o_w, o_i, o_j, strides):
    """Offsets of positions (i, j) of tiles that begin at (h, w), in 64 bits.

    ``strides`` are along (b, c, h, w). A matrix of offsets is one sum of two vectors, of which one
    belongs to the columns and the other to the positions.
    """
    stride_b, stride_c, stride_h, stride_w = strides
    o_tile = o_b.to(tl.int64) * stride_b + o_c.to(tl.int64) * stride_c
    o_tile += o_h.to(tl.int64) * stride_h + o_w.to(tl.int64) * stride_w
    return o_tile + (o_i * stride_h + o_j * stride_w)
