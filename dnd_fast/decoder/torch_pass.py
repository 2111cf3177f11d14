"""A planned decoder in plain PyTorch: weights transformed, everything else shared."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from dnd_fast.decoder.convolutions import PlannedConvolutions, convolutions_of
from dnd_fast.kernels.fft.weight import TransformedWeight, transform_weight
from dnd_fast.kernels.planner.cost_model import DecoderPlan
from dnd_fast.kernels.reference import CONVOLUTIONS, Convolve, hyper_conv_block

if TYPE_CHECKING:
    from dnd_fast.decoder.model import HyperConvBlock, HyperConvDecoder

KEPT_DTYPES = {"cached": None, "int8": torch.int8}  # of transformed weights; None: as is best


class TorchPass(nn.Module):
    """A planned decoder in plain PyTorch, for torch.compile and torch.export to take whole.

    Args:
        decoder: what is not transformed is shared with it.
        plan: for its shapes.
    """

    def __init__(self, decoder: HyperConvDecoder, plan: DecoderPlan) -> None:
        super().__init__()
        self.projection = copy.deepcopy(decoder.projection)
        self.blocks = nn.ModuleList(
            PlannedBlock(cast("HyperConvBlock", block), convolutions, plan.weights)
            for block, convolutions in zip(
                decoder.blocks, convolutions_of(plan, impl="torch"), strict=True
            )
        )

    def forward(self, condition: Tensor) -> Tensor:
        """``[B, N, L, C]`` -> ``[B, Nw, Lw, Cw]``."""
        x = condition if self.projection is None else self.projection(condition)
        for block in self.blocks:
            x = block(x)
        return x

    def shared(self) -> list[Tensor]:
        """Tensors whose memory is the decoder's."""
        tensors = (
            tensor for block in self.blocks for tensor in cast(PlannedBlock, block).tensors.values()
        )
        return [tensor for tensor in tensors if isinstance(tensor, Tensor)]


class PlannedBlock(nn.Module):
    """A block's tensors by the names of :func:`dnd_fast.kernels.reference.hyper_conv_block`."""

    @torch.no_grad()
    def __init__(
        self, block: HyperConvBlock, convolutions: PlannedConvolutions, weights: str
    ) -> None:
        super().__init__()
        self.convolutions = convolutions
        self.convolve: Convolve = convolutions  # an export puts plain functions here
        self.kernel_size = block.a_width.kernel_size[0]
        assert block.layerwise.bias is not None
        self.tensors: dict[str, Tensor | TransformedWeight] = {
            "norm_weight": block.norm.weight.detach(),
            "norm_bias": block.norm.bias.detach(),
            "bias": block.bias.detach(),
            "layerwise_bias": block.layerwise.bias.detach(),
        }
        for name in CONVOLUTIONS:
            weight = getattr(block, name).weight.detach()
            if name in convolutions.fft_plans and weights in KEPT_DTYPES:
                fft_plan = convolutions.fft_plans[name]
                weight = transform_weight(weight, fft_plan, dtype=KEPT_DTYPES[weights])
            self.tensors[name] = weight

    def forward(self, x: Tensor) -> Tensor:
        return hyper_conv_block(x, **self.tensors, convolve=self.convolve)
