"""A prepared decoder on the Triton kernels: packed weights, one workspace, CUDA graphs."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor

from dnd_fast.decoder.torch_pass import PlannedBlock, TorchPass
from dnd_fast.kernels.lora_scatter import LoraScatterTable
from dnd_fast.kernels.reference import CONVOLUTIONS
from dnd_fast.kernels.triton.block import PackedBlock, hyper_conv_block_triton
from dnd_fast.kernels.triton.fft_conv import Workspace


class TritonPass:
    """Passes of a planned decoder on an NVIDIA GPU.

    The first call with a batch size compiles kernels, takes memory and captures a CUDA graph; later
    calls replay it, so that about a hundred launches cost as much as one. Calls from several
    threads, on whichever streams, wait for one another.

    Args:
        module: the planned decoder, with parameters up to float32.
        scatter: what tokens are scaled by and where they go in LoRA tensors, for :meth:`lora`; on
            the decoder's device.
    """

    def __init__(self, module: TorchPass, scatter: LoraScatterTable | None = None) -> None:
        self._scatter = scatter
        self._projection = module.projection
        self._blocks = [pack(cast(PlannedBlock, block)) for block in module.blocks]
        self._workspace = Workspace()
        self._graphs: dict[tuple[int, bool], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._replayed: torch.cuda.Event | None = None
        self._lock = threading.Lock()

    def tokens(self, condition: Tensor) -> Tensor:
        """``[B, N, L, C]`` -> tokens ``[B, Nw, Lw, Cw]``, both of the parameters' dtype."""
        return self._replay(condition, None)

    def lora(self, condition: Tensor) -> Tensor:
        """``[B, N, L, C]`` -> ``[B, E]`` float32, all LoRA tensors, which the last convolution
        writes; there must be a table."""
        assert self._scatter is not None
        return self._replay(condition, self._scatter)

    @torch.no_grad()
    def _replay(self, condition: Tensor, scatter: LoraScatterTable | None) -> Tensor:
        # Kernels and graphs run on the current device, whichever that is.
        on_device = torch.cuda.device(condition.device) if condition.is_cuda else nullcontext()
        with self._lock, on_device:
            if not condition.is_cuda or len(condition) == 0:
                return self.run(condition, scatter)
            key = len(condition), scatter is not None
            if self._replayed is not None:  # perhaps on another stream, and not yet done
                torch.cuda.current_stream().wait_event(self._replayed)
            if key not in self._graphs:
                self._graphs[key] = self._capture(condition, scatter)
            graph, given, result = self._graphs[key]
            given.copy_(condition)
            graph.replay()
            result = result.clone()
            self._replayed = torch.cuda.current_stream().record_event()
            return result

    def run(self, x: Tensor, scatter: LoraScatterTable | None) -> Tensor:
        """One pass without a graph; not for several threads at once."""
        if self._projection is not None:
            x = self._projection(x)
        x, stats = x.contiguous(), None
        for block in self._blocks[:-1]:
            rows = len(x), block.shape_out[0]
            mean, rstd = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
            x = hyper_conv_block_triton(x, block, self._workspace, stats, out_stats=(mean, rstd))
            stats = mean, rstd
        return hyper_conv_block_triton(x, self._blocks[-1], self._workspace, stats, scatter=scatter)

    def _capture(
        self, condition: Tensor, scatter: LoraScatterTable | None
    ) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        given, generation = condition.clone(), self._workspace.generation
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles kernels and takes the workspace
            self.run(given, scatter)
        torch.cuda.current_stream().wait_stream(stream)
        if self._workspace.generation != generation:  # other graphs hold memory given back
            self._graphs.clear()
        graph = torch.cuda.CUDAGraph()
        # Other threads may call CUDA meanwhile, which must not spoil the capture.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = self.run(given, scatter)
        return graph, given, result


def pack(block: PlannedBlock) -> PackedBlock:
    """A planned block's tensors as the kernels take them; waits for the device."""
    tensors = block.tensors
    return PackedBlock.of(
        block.convolutions.fft_plans,
        {name: tensors[name] for name in CONVOLUTIONS},
        cast(Tensor, tensors["norm_weight"]),
        cast(Tensor, tensors["norm_bias"]),
        cast(Tensor, tensors["bias"]),
        cast(Tensor, tensors["layerwise_bias"]),
        block.kernel_size,
    )
