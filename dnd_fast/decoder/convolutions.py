"""How the convolutions of a planned block run: directly, or in the transform domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dnd_fast.kernels.conv2d import Impl, fft_conv2d
from dnd_fast.kernels.fft.tiling import FFTConvPlan
from dnd_fast.kernels.fft.weight import TransformedWeight
from dnd_fast.kernels.planner.cost_model import DecoderPlan
from dnd_fast.kernels.reference import direct


@dataclass(frozen=True)
class PlannedConvolutions:
    """Runs the convolutions of one block, as :func:`dnd_fast.kernels.reference.hyper_conv_block`
    calls for them.

    Attributes:
        fft_plans: tiles of the convolutions in the transform domain, by name; the others are
            direct.
        workspace_bytes: that the transformed data of one convolution may take.
        impl: of the transform domain; see :func:`dnd_fast.kernels.conv2d.fft_conv2d`.
    """

    fft_plans: Mapping[str, FFTConvPlan]
    workspace_bytes: int
    impl: Impl

    def __call__(self, name: str, x: Tensor, weight: Tensor | TransformedWeight) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C', H, W]``, with "same" padding, in x's dtype."""
        if name not in self.fft_plans:
            assert isinstance(weight, Tensor)
            return direct(name, x, weight)
        device = x.device.type
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return self._fft(name, x, weight)
        assert isinstance(weight, Tensor)
        dtype = torch.get_autocast_dtype(device)  # as a direct convolution would have it
        with torch.autocast(device, enabled=False):  # it would narrow what transforms add up
            return self._fft(name, x.to(dtype), weight.to(dtype)).to(x.dtype)

    def _fft(self, name: str, x: Tensor, weight: Tensor | TransformedWeight) -> Tensor:
        plan, workspace = self.fft_plans[name], self.workspace_bytes
        return fft_conv2d(x, weight, plan, workspace_bytes=workspace, impl=self.impl)


def convolutions_of(plan: DecoderPlan, impl: Impl) -> list[PlannedConvolutions]:
    """What runs the convolutions of each block of a decoder."""
    return [
        PlannedConvolutions(
            {
                name: choice.fft_plan
                for name, choice in plan.block(block).items()
                if choice.fft_plan is not None
            },
            plan.workspace_bytes,
            impl,
        )
        for block in range(plan.blocks)
    ]
