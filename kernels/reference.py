"""The hyper-convolutional block in plain PyTorch, the reference of every other implementation.

Runs on any device and float dtype, is differentiable, and is what ``torch.compile`` compiles.
Source: Drag-and-Drop LLMs, appendix A.3, equation 5, and the behaviour of its published code, which
adds a tanh on the second path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import conv2d, layer_norm

LAYER_NORM_EPS = 1e-5
EpilogueName = Literal["store", "tanh_bias", "mix", "bias_residual"]


@dataclass(frozen=True)
class Convolution:
    """One of the block's five convolutions.

    Attributes:
        name: Name of its weight among the arguments of :func:`hyper_conv_block`.
        source: Tensor that it reads, a key of :data:`TENSORS`.
        target: Tensor that it contributes to, a key of :data:`TENSORS`.
        channel_dim: Dimension of ``[B, N, L, C]`` that it treats as channels, C -> C', L -> L' or
            N -> N'. It slides over the other two.
        epilogue: What becomes of its output y: ``"store"``, y itself; ``"tanh_bias"``,
            tanh(y) + bias; ``"mix"``, (y + what is in the target) / 3; ``"bias_residual"``,
            y + bias, and x where the block's two shapes are equal.
    """

    name: str
    source: str
    target: str
    channel_dim: int
    epilogue: EpilogueName

    @property
    def order(self) -> tuple[int, int, int, int]:
        """Permutation of ``[B, N, L, C]`` that gives ``[B, C, H, W]``, and back: it is its own
        inverse."""
        order = [0, 1, 2, 3]
        order[1], order[self.channel_dim] = self.channel_dim, 1
        return order[0], order[1], order[2], order[3]

    def sizes(self, before: Sequence[int], after: Sequence[int]) -> tuple[int, int, int, int]:
        """(height, width, input channels, output channels) in a block (N, L, C) -> (N', L', C')."""
        sizes = tensor_sizes(self.source, before, after)
        channels_in, height, width = (sizes[dim - 1] for dim in self.order[1:])
        return height, width, channels_in, after[self.channel_dim - 1]


# The tensors [B, N, L, C] between convolutions: the dimensions that have their final size already.
TENSORS = {"x": (), "a": (3,), "b": (2,), "mixed": (2, 3), "out": (1, 2, 3)}
# By name; the input of those that read x is normalised first.
CONVOLUTIONS = {
    convolution.name: convolution
    for convolution in (
        Convolution("a_width", "x", "a", channel_dim=3, epilogue="store"),
        Convolution("a_height", "a", "mixed", channel_dim=2, epilogue="mix"),
        Convolution("b_height", "x", "b", channel_dim=2, epilogue="store"),
        Convolution("b_width", "b", "mixed", channel_dim=3, epilogue="tanh_bias"),
        Convolution("layerwise", "mixed", "out", channel_dim=1, epilogue="bias_residual"),
    )
}


def tensor_sizes(name: str, before: Sequence[int], after: Sequence[int]) -> tuple[int, ...]:
    """(N, L, C) of one of :data:`TENSORS` in a block (N, L, C) -> (N', L', C')."""
    return tuple(
        new if dim in TENSORS[name] else old
        for dim, (old, new) in enumerate(zip(before, after, strict=True), start=1)
    )


# (name of the convolution, input [B, C, H, W], weight [C', C, k, k]) -> [B, C', H, W].
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
        x: Input ``[B, N, L, C]``.
        norm_weight: Weight ``[L, C]`` of the LayerNorm over (L, C) together, eps 1e-5.
        norm_bias: Bias ``[L, C]`` of the LayerNorm.
        a_width: Weight ``[C', C, k, k]``.
        a_height: Weight ``[L', L, k, k]``.
        b_height: Weight ``[L', L, k, k]``.
        b_width: Weight ``[C', C, k, k]``.
        bias: Bias ``[L', C']``.
        layerwise: Weight ``[N', N, k, k]``.
        layerwise_bias: Bias ``[N']``.
        convolve: Runs each convolution; given its name in :data:`CONVOLUTIONS`.

    Returns:
        ``[B, N', L', C']``, with ``x`` added when the two shapes are equal.
    """
    normed = layer_norm(x, norm_weight.shape, norm_weight, norm_bias, LAYER_NORM_EPS)

    def run(name: str, x: Tensor, weight: Tensor) -> Tensor:
        order = CONVOLUTIONS[name].order
        return convolve(name, x.permute(order), weight).permute(order)

    a = run("a_height", run("a_width", normed, a_width), a_height)  # [B, N, L', C']
    b = run("b_width", run("b_height", normed, b_height), b_width)
    mixed = (a + b.tanh() + bias) / 3
    out = run("layerwise", mixed, layerwise) + layerwise_bias[:, None, None]  # [B, N', L', C']
    return x + out if out.shape == x.shape else out
