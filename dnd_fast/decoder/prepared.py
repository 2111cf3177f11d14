"""A generator's inference on the Triton kernels: packed weights, one workspace, CUDA graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dnd_fast.kernels.lora_scatter import LoraScatterTable
from dnd_fast.kernels.triton.block import PackedBlock, hyper_conv_block_triton
from dnd_fast.kernels.triton.fft_conv import Workspace


class Engine:
    """A decoder as it was when its blocks were packed: later changes of parameters do not show.

    On a GPU the first call with a batch size compiles kernels, takes memory and captures a CUDA
    graph; later calls replay it, so that about a hundred launches cost as much as one. Calls from
    several threads wait for one another.

    Args:
        blocks: of the decoder, planned, on an NVIDIA GPU, with parameters up to float32.
        projection: applied to the condition first, if any.
        targets: what tokens are scaled by and where they go in LoRA tensors, for
            :meth:`weights`; on the device of the blocks.
    """

    def __init__(
        self,
        blocks: Sequence[PackedBlock],
        projection: Callable[[Tensor], Tensor] | None,
        targets: LoraScatterTable | None = None,
    ) -> None:
        self.targets = targets
        self._blocks = blocks
        self._projection = projection
        self._workspace = Workspace()
        self._graphs: dict[tuple[int, bool], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._lock = threading.Lock()

    def __call__(self, condition: Tensor) -> Tensor:
        """``[B, N, L, C]`` -> tokens ``[B, Nw, Lw, Cw]``, both of the parameters' dtype."""
        return self._replay(condition, None)

    def weights(self, condition: Tensor) -> Tensor:
        """``[B, N, L, C]`` -> ``[B, E]`` float32, all LoRA tensors, which the last convolution
        writes and ``targets.views`` takes apart. There must be targets."""
        assert self.targets is not None
        return self._replay(condition, self.targets)

    @torch.no_grad()
    def _replay(self, condition: Tensor, targets: LoraScatterTable | None) -> Tensor:
        with self._lock:
            if not condition.is_cuda or len(condition) == 0:
                return self._run(condition, targets)
            key = len(condition), targets is not None
            if key not in self._graphs:
                self._graphs[key] = self._capture(condition, targets)
            graph, given, result = self._graphs[key]
            given.copy_(condition)
            graph.replay()
            return result.clone()

    def _run(self, x: Tensor, targets: LoraScatterTable | None) -> Tensor:
        if self._projection is not None:
            x = self._projection(x)
        x, stats = x.contiguous(), None
        for block in self._blocks[:-1]:
            rows = len(x), block.shape_out[0]
            mean, rstd = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
            x = hyper_conv_block_triton(x, block, self._workspace, stats, out_stats=(mean, rstd))
            stats = mean, rstd
        return hyper_conv_block_triton(x, self._blocks[-1], self._workspace, stats, scatter=targets)

    def _capture(
        self, condition: Tensor, targets: LoraScatterTable | None
    ) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        given, generation = condition.clone(), self._workspace.generation
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles kernels and takes the workspace
            self._run(given, targets)
        torch.cuda.current_stream().wait_stream(stream)
        if self._workspace.generation != generation:  # other graphs hold memory given back
            self._graphs.clear()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = self._run(given, targets)
        return graph, given, result
