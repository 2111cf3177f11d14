"""The hyper-convolutional block on the Triton kernels.

The truth is :mod:`dnd_fast.kernels.reference`.

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
from dnd_fast.kernels.planner.cost_model import CONVOLUTIONS
from dnd_fast.kernels.triton.checks import LayerNorm
from dnd_fast.kernels.triton.direct_conv import direct_conv2d, pack_weight
from dnd_fast.kernels.triton.fft_conv import PackedWeight, Workspace, compute_dtype, convolve
from dnd_fast.kernels.triton.layer_norm import layer_norm_stats


@dataclass(frozen=True)
class PackedBlock:
    """A block's parameters as the kernels take them.

    Attributes:
        shape_out: (N', L', C').
        kernel: k.
        tiles: of the convolutions in the transform domain.
        weights: by name of the convolution, packed for its algorithm.
        norm_weight, norm_bias: ``[L, C]``.
        norm_bound: ``[]`` float32: no normalised element exceeds it.
        bias: ``[L', C']``.
        layerwise_bias: ``[N']``.
    """

    shape_out: tuple[int, int, int]
    kernel: int
    tiles: Mapping[str, FFTConvPlan]
    weights: Mapping[str, PackedWeight | Tensor]
    norm_weight: Tensor
    norm_bias: Tensor
    norm_bound: Tensor
    bias: Tensor
    layerwise_bias: Tensor

    @classmethod
    def of(
        cls,
        tiles: Mapping[str, FFTConvPlan],
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
            if name in tiles:
                packed[name] = PackedWeight.of(weight, dtype)
            else:
                assert isinstance(weight, Tensor)
                packed[name] = pack_weight(weight)
        bound = largest(norm_weight) * math.sqrt(norm_weight.numel()) + largest(norm_bias)
        return cls(
            (len(layerwise_bias), *bias.shape),
            kernel,
            tiles,
            packed,
            norm_weight,
            norm_bias,
            bound,
            bias,
            layerwise_bias,
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
        x: on the GPU.
        block: the parameters.
        workspace: for what lies between; shared by all blocks.
        stats: LayerNorm's mean and reciprocal standard deviation of x, ``[B, N]`` float32, where
            they are known already.
        out_stats: those of the result, ``[B, N']``, to be written.
        scatter: where the result, as tokens, goes in LoRA tensors; ``[B, E]`` float32 is then what
            is returned.

    Raises:
        ValueError: no GPU, or float64.
    """
    (batch, n, length, c), (n_out, length_out, c_out) = x.shape, block.shape_out
    dtype = compute_dtype(x.dtype)
    ranged = dtype == torch.float16
    a_max, b_max, mixed_max = x.new_zeros(3, dtype=torch.float32) if ranged else (None,) * 3
    norm_bound = block.norm_bound if ranged else None
    stats = layer_norm_stats(x) if stats is None else stats

    def normed(*order: int) -> LayerNorm:
        return LayerNorm(*stats, block.norm_weight, block.norm_bias, (0, *order))

    def run(name: str, source: Tensor, out: Tensor, bound: Tensor | None, **options: Any) -> None:
        weight = block.weights[name]
        if isinstance(weight, PackedWeight):
            tiles = block.tiles[name]
            convolve(source, weight, tiles, out, workspace, dtype, bound=bound, **options)
        else:
            direct_conv2d(source, weight, out, block.kernel, **options)

    a = workspace.take("a", (batch, length, n, c_out), x, x.dtype)
    b = workspace.take("b", (batch, length_out, n, c), x, x.dtype)
    mixed = workspace.take("mixed", (batch, n, length_out, c_out), x, x.dtype)
    if scatter is None:
        out = x.new_empty(batch, n_out, length_out, c_out)
    else:
        out = x.new_empty(batch, scatter.elements, dtype=torch.float32)

    run(
        "b_height",
        x.permute(0, 2, 1, 3),
        b,
        norm_bound,
        norm=normed(2, 1, 3),
        amax=b_max,
    )
    run(
        "b_width",
        b.permute(0, 3, 1, 2),
        mixed.permute(0, 3, 2, 1),
        b_max,
        epilogue="tanh_bias",
        bias=block.bias.T[:, :, None].expand(-1, -1, n),
    )
    run(
        "a_width",
        x.permute(0, 3, 2, 1),
        a.permute(0, 3, 1, 2),
        norm_bound,
        norm=normed(3, 2, 1),
        amax=a_max,
    )
    in_rows = mixed.permute(0, 2, 1, 3)
    run("a_height", a, in_rows, a_max, epilogue="mix", other=in_rows, amax=mixed_max)
    run(
        "layerwise",
        mixed,
        out,
        mixed_max,
        epilogue="bias_residual",
        bias=block.layerwise_bias,
        other=x if block.shape_out == x.shape[1:] else None,
        stats=out_stats,
        scatter=scatter,
    )
    return out
