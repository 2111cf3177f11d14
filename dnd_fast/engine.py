"""The decoder's inference on the Triton kernels: packed weights, one workspace, CUDA graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from dnd_fast.kernels.plan import CONVOLUTIONS
from dnd_fast.kernels.triton_block import PackedBlock, hyper_conv_block
from dnd_fast.kernels.triton_conv import Workspace

if TYPE_CHECKING:
    from dnd_fast.decoder import HyperConvBlock


class Engine:
    """A decoder as it was when the engine was made: later changes of its parameters do not show.

    On a GPU the first call with a batch size compiles kernels, takes memory and captures a CUDA
    graph; later calls replay it, so that about a hundred launches cost as much as one. Calls from
    several threads wait for one another.

    Args:
        blocks: of the decoder, planned, on an NVIDIA GPU.
        projection: applied to the condition first, if any.

    Raises:
        ValueError: float64 parameters.
    """

    def __init__(
        self, blocks: Sequence[HyperConvBlock], projection: Callable[[Tensor], Tensor] | None
    ) -> None:
        self._blocks = [_pack(block) for block in blocks]
        self._projection = projection
        self._workspace = Workspace()
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._lock = threading.Lock()

    @torch.no_grad()
    def __call__(self, condition: Tensor) -> Tensor:
        """``[B, N, L, C]`` -> ``[B, Nw, Lw, Cw]``, both of the parameters' dtype."""
        with self._lock:
            if not condition.is_cuda or len(condition) == 0:
                return self._run(condition)
            if len(condition) not in self._graphs:
                self._graphs[len(condition)] = self._capture(condition)
            graph, given, result = self._graphs[len(condition)]
            given.copy_(condition)
            graph.replay()
            return result.clone()

    def _run(self, x: Tensor) -> Tensor:
        if self._projection is not None:
            x = self._projection(x)
        x = x.contiguous()
        for block in self._blocks:
            x = hyper_conv_block(x, block, self._workspace)
        return x

    def _capture(self, condition: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        given, generation = condition.clone(), self._workspace.generation
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles kernels and takes the workspace
            self._run(given)
        torch.cuda.current_stream().wait_stream(stream)
        if self._workspace.generation != generation:  # other graphs hold memory given back
            self._graphs.clear()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = self._run(given)
        return graph, given, result


def _pack(block: HyperConvBlock) -> PackedBlock:
    weights: Mapping[str, Tensor] = {
        name: block.transformed.get(name, cast(nn.Conv2d, getattr(block, name)).weight)
        for name in CONVOLUTIONS
    }
    assert block.layerwise.bias is not None
    with torch.no_grad():
        return PackedBlock.of(
            block.tiles,
            weights,
            block.norm.weight,
            block.norm.bias,
            block.bias,
            block.layerwise.bias,
            block.kernel_size,
        )
