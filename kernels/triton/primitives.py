"""What several kernels do on the GPU: ranges, LayerNorm, epilogues, offsets.

In float16 a power of two keeps values in range: s = 2^floor(log2(2^14 / (bound sqrt_points))), for
values of at most ``bound`` whose sums grow at most sqrt_points times as large. ``bound`` stays on
the device.
"""

# mypy: disable-error-code="import-untyped, no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


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
    token_mean_ptr,
    o_token,
    token_std_ptr,
    o_c,
    EPILOGUE: tl.constexpr,
):
    """Apply an epilogue to a float32 block, scale it as tokens are if there is a mean, store it and
    note its largest magnitude; what was stored is returned, in float32. Channels o_c must exist."""
    if EPILOGUE == "tanh_bias":
        y = tanh(y) + tl.load(bias_ptr + o_bias, mask=m_y, other=0.0).to(tl.float32)
    elif EPILOGUE == "mix":
        y = (y + tl.load(other_ptr + o_other, mask=m_y, other=0.0).to(tl.float32)) / 3.0
    elif EPILOGUE == "bias_residual":
        y += tl.load(bias_ptr + o_c).to(tl.float32)
        if other_ptr is not None:
            y += tl.load(other_ptr + o_other, mask=m_y, other=0.0).to(tl.float32)
    if token_mean_ptr is not None:
        y = y * tl.load(token_std_ptr + o_c) + tl.load(
            token_mean_ptr + o_token, mask=m_y, other=0.0
        )
    b_out = y.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + o_out, b_out, mask=m_y)
    y = b_out.to(tl.float32)
    if amax_ptr is not None:
        largest = tl.max(tl.where(m_y, tl.abs(y), 0.0))
        tl.atomic_max(amax_ptr, largest, sem="relaxed")
    return y


@triton.jit
def lora_offsets(targets_ptr, o_c, o_h, o_w):
    """Where elements (h, w) of tokens c go in the LoRA tensors, and which columns w are kept."""
    p_target = targets_ptr + o_c * 4
    o_out = tl.load(p_target) + o_h * tl.load(p_target + 2) + o_w * tl.load(p_target + 3)
    return o_out, o_w < tl.load(p_target + 1)


@triton.jit
def moments(x, m_x, AXIS: tl.constexpr):
    """Count, mean and sum of squared deviations along an axis of a float32 block, where the mask
    is; all 0 where it nowhere is. A mean far from zero does no harm."""
    count = tl.sum(m_x.to(tl.float32), AXIS)
    divisor = tl.maximum(count, 1.0)
    mean = tl.sum(tl.where(m_x, x, 0.0), AXIS) / divisor
    deviation = tl.where(m_x, x - tl.expand_dims(mean, AXIS), 0.0)
    correction = tl.sum(deviation, AXIS) / divisor  # of what the first sum has lost
    m2 = tl.sum(deviation * deviation, AXIS) - count * correction * correction
    return count, mean + correction, m2


@triton.jit
def merge_moments(count, mean, m2, count2, mean2, m22):
    """Of two disjoint sets (Chan, Golub and LeVeque, 1979)."""
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
def offsets(o_b, o_c, o_h, o_w, o_i, o_j, stride_b, stride_c, stride_h, stride_w):
    """Of positions (i, j) of tiles that begin at (h, w), in 64 bits: one sum of two vectors."""
    o_tile = o_b.to(tl.int64) * stride_b + o_c.to(tl.int64) * stride_c
    o_tile += o_h.to(tl.int64) * stride_h + o_w.to(tl.int64) * stride_w
    return o_tile + (o_i * stride_h + o_j * stride_w)
