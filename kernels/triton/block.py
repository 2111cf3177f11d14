"""The hyper-convolutional block on the Triton kernels.

What it computes is written in :mod:`dnd_fast.kernels.reference`, which it is held to.

Five convolutions, each a direct kernel or three kernels of the transform domain, and nothing
between them: LayerNorm is applied where path A and path B load x, its statistics and tanh, bias,
sum, division and residual are found where results are stored, and so are the last block's LoRA
tensors; every permutation is a matter of strides.

Values of 16 bits are brought into the range of float16 by powers of two that follow the largest
magnitude stored by the convolution before, on the device: nothing waits for the host.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dnd_fast.kernels.fft.tiling import FFTConvPlan
from dnd_fast.kernels.fft.weight import TransformedWeight, largest
from dnd_fast.kernels.lora_scatter import LoraScatterTable
from dnd_fast.kernels.reference import CONVOLUTIONS, TENSORS, Convolution, tensor_sizes
from dnd_fast.kernels.triton.checks import LayerNorm
from dnd_fast.kernels.triton.direct_conv import direct_conv2d, pack_weight
from dnd_fast.kernels.triton.fft_conv import PackedWeight, Workspace, compute_dtype, convolve
from dnd_fast.kernels.triton.layer_norm import layer_norm_stats

Order = tuple[int, int, int, int]
# Dimensions of [B, N, L, C] in the order in which they lie in memory, outermost first. Between its
# convolutions a path is kept as those over the length see it.
MEMORY_ORDER: dict[str, Order] = dict.fromkeys(TENSORS, (0, 1, 2, 3))
MEMORY_ORDER |= {"a": (0, 2, 1, 3), "b": (0, 2, 1, 3)}


def image_order(convolution: Convolution, tensor: str) -> Order:
    """Permutation that makes contiguous memory the image ``[B, C, H, W]`` that a convolution
    reads or writes.

    Args:
        convolution: One of :data:`dnd_fast.kernels.reference.CONVOLUTIONS`.
        tensor: Its source or target.
    """
    memory = MEMORY_ORDER[tensor]  # swaps two dimensions at most, and is thus its own inverse
    b, c, h, w = (memory[dim] for dim in convolution.order)
    return b, c, h, w


@dataclass(frozen=True)
class PackedBlock:
    """A block's parameters as the kernels take them.

    Attributes:
        shape_out: (N', L', C').
        kernel: Kernel size k.
        fft_plans: Plans of the convolutions in the transform domain, by name.
        weights: Weights by name of the convolution, packed for its algorithm.
        norm_weight: Weight of the LayerNorm, ``[L, C]``.
        norm_bias: Bias of the LayerNorm, ``[L, C]``.
        norm_bound: ``[]`` float32 that no normalised element exceeds.
        bias: Bias of the two paths, ``[L', C']``.
        layerwise_bias: Bias of the layer-wise convolution, ``[N']``.
    """

    shape_out: tuple[int, int, int]
    kernel: int
    fft_plans: Mapping[str, FFTConvPlan]
    weights: Mapping[str, PackedWeight | Tensor]
    norm_weight: Tensor
    norm_bias: Tensor
    norm_bound: Tensor
    bias: Tensor
    layerwise_bias: Tensor

    @classmethod
    def of(
        cls,
        fft_plans: Mapping[str, FFTConvPlan],
        weights: Mapping[str, Tensor | TransformedWeight],
        norm_weight: Tensor,
        norm_bias: Tensor,
        bias: Tensor,
        layerwise_bias: Tensor,
        kernel: int,
    ) -> PackedBlock:
        """Pack weights, raw ``[C', C, k, k]`` or transformed; waits for the device."""
        dtype = compute_dtype(bias.dtype)
        packed: dict[str, PackedWeight | Tensor] = {}
        for name in CONVOLUTIONS:
            weight = weights[name]
            if name in fft_plans:
                packed[name] = PackedWeight.of(weight, dtype)
            else:
                assert isinstance(weight, Tensor)
                packed[name] = pack_weight(weight)
        # A normalised row of n elements has a norm of sqrt(n), which one element may have alone.
        bound = largest(norm_weight) * math.sqrt(norm_weight.numel()) + largest(norm_bias)
        return cls(
            shape_out=(len(layerwise_bias), *bias.shape),
            kernel=kernel,
            fft_plans=fft_plans,
            weights=packed,
            norm_weight=norm_weight,
            norm_bias=norm_bias,
            norm_bound=bound,
            bias=bias,
            layerwise_bias=layerwise_bias,
        )


def hyper_conv_block_triton(
    x: Tensor,
    block: PackedBlock,
    workspace: Workspace,
    stats: tuple[Tensor, Tensor] | None = None,
    *,
    out_stats: tuple[Tensor, Tensor] | None = None,
    scatter: LoraScatterTable | None = None,
) -> Tensor:
    """Map ``[B, N, L, C]`` to ``[B, N', L', C']``; both contiguous, of the parameters' dtype.

    Args:
        x: Input on the GPU.
        block: Parameters.
        workspace: Memory for what lies between; shared by all blocks.
        stats: LayerNorm's mean and reciprocal standard deviation of x, ``[B, N]`` float32, where
            they are known already.
        out_stats: Receives those of the result, ``[B, N']``.
        scatter: Where the result, as tokens, goes in LoRA tensors; ``[B, E]`` float32 is then what
            is returned.

    Raises:
        ValueError: There is no GPU, or x is float64.
    """
    (batch, *before), after = x.shape, block.shape_out
    dtype = compute_dtype(x.dtype)
    stats = layer_norm_stats(x) if stats is None else stats

    def empty(name: str) -> Tensor:
        """Memory for one of the tensors between convolutions, in its order."""
        sizes = batch, *tensor_sizes(name, before, after)
        shape = tuple(sizes[dim] for dim in MEMORY_ORDER[name])
        return workspace.take(name, shape, x, x.dtype)

    memory = {"x": x, **{name: empty(name) for name in ("a", "b", "mixed")}}
    if scatter is None:
        memory["out"] = x.new_empty(batch, *after)
    else:
        memory["out"] = x.new_empty(batch, scatter.elements, dtype=torch.float32)
    # No element of a tensor exceeds these; those of tensors that are still to be written are 0 yet.
    bounds: dict[str, Tensor | None] = dict.fromkeys(memory)
    if dtype == torch.float16:
        a, b, mixed = x.new_zeros(3, dtype=torch.float32)
        bounds |= {"x": block.norm_bound, "a": a, "b": b, "mixed": mixed}

    def image(convolution: Convolution, name: str) -> Tensor:
        tensor = memory[name]
        if tensor.ndim == 2:  # LoRA tensors, which the kernel finds its way into by itself
            return tensor
        return tensor.permute(image_order(convolution, name))

    def run(name: str, **options: Any) -> None:
        convolution, weight = CONVOLUTIONS[name], block.weights[name]
        source, target = (image(convolution, t) for t in (convolution.source, convolution.target))
        options["epilogue"] = convolution.epilogue
        if convolution.source == "x":
            order = image_order(convolution, "x")
            options["norm"] = LayerNorm(*stats, block.norm_weight, block.norm_bias, order)
        if convolution.epilogue == "mix":
            options["other"] = target
        if isinstance(weight, PackedWeight):
            plan, bound = block.fft_plans[name], bounds[convolution.source]
            convolve(source, weight, plan, target, workspace, dtype, bound=bound, **options)
        else:
            direct_conv2d(source, weight, target, block.kernel, **options)

    # Path B first: what the last convolution of path A stores is mixed with what path B has left.
    run("b_height", amax=bounds["b"])
    run("b_width", bias=block.bias.T[:, :, None].expand(-1, -1, before[0]))
    run("a_width", amax=bounds["a"])
    run("a_height", amax=bounds["mixed"])
    run(
        "layerwise",
        bias=block.layerwise_bias,
        other=x if tuple(before) == after else None,
        stats=out_stats,
        scatter=scatter,
    )
    return memory["out"]
