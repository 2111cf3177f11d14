"""The hyper-convolutional block in plain PyTorch: the truth every other implementation is held to.

Runs on any device and float dtype, is differentiable, and is what ``torch.compile`` compiles.
Source: Drag-and-Drop LLMs, appendix A.3, equation 5, and the behaviour of its published code, which
adds a tanh on the second path.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import conv2d, layer_norm

LAYER_NORM_EPS = 1e-5
# Name of the convolution, input [B, C, H, W], weight [C', C, k, k] -> [B, C', H, W].
Convolve = Callable[[str, Tensor, Tensor], Tensor]


def direct(name: str, x: Tensor, weight: Tensor) -> Tensor:
    """``conv2d`` with "same" padding, whatever the convolution's name."""
    return conv2d(x, weight, padding=weight.shape[-1] // 2)


def hyper_conv_block(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    a_width: Tensor,
    a_height: Tensor,
    b_height: Tensor,
    b_width: Tensor,
    bias: Tensor,
    layerwise: Tensor,
    layerwise_bias: Tensor,
    convolve: Convolve = direct,
) -> Tensor:
    """Map ``[B, N, L, C]`` to ``[B, N', L', C']``; all tensors share one float dtype and device.

    Five stride-1, zero-padded ("same") cross-correlations with square odd kernels k x k, each
    treating one dimension as channels and sliding over two others:

    * path A: width (C -> C', over L and N), then height (L -> L', over N and C');
    * path B: height (L -> L', over N and C), then width (C -> C', over L' and N), then tanh;
    * layer-wise: N -> N', over L' and C', applied to (A + tanh(B) + bias) / 3.

    Args:
        x: ``[B, N, L, C]``.
        norm_weight, norm_bias: ``[L, C]``, of the LayerNorm over (L, C) together, eps 1e-5.
        a_width, b_width: ``[C', C, k, k]``.
        a_height, b_height: ``[L', L, k, k]``.
        bias: ``[L', C']``.
        layerwise: ``[N', N, k, k]``.
        layerwise_bias: ``[N']``.
        convolve: runs each convolution; given the name of its weight among these arguments.

    Returns:
        ``[B, N', L', C']``, with ``x`` added when the two shapes are equal.
    """
    normed = layer_norm(x, norm_weight.shape, norm_weight, norm_bias, LAYER_NORM_EPS)

    a = convolve("a_width", normed.permute(0, 3, 2, 1), a_width)  # [B, C', L, N]
    a = convolve("a_height", a.permute(0, 2, 3, 1), a_height)  # [B, L', N, C']
    b = convolve("b_height", normed.permute(0, 2, 1, 3), b_height)  # [B, L', N, C]
    b = convolve("b_width", b.permute(0, 3, 1, 2), b_width)  # [B, C', L', N]

    mixed = (a.permute(0, 2, 1, 3) + b.permute(0, 3, 2, 1).tanh() + bias) / 3  # [B, N, L', C']
    out = convolve("layerwise", mixed, layerwise)  # [B, N', L', C']
    out = out + layerwise_bias[:, None, None]
    return x + out if out.shape == x.shape else out
