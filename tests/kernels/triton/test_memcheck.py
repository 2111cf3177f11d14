"""Every kernel at awkward sizes under compute-sanitizer, which sees accesses outside of tensors.

As a script: the launches themselves, on a GPU.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dnd_fast import HyperConvDecoder
from dnd_fast.decoder.torch_pass import TorchPass
from dnd_fast.decoder.triton_pass import TritonPass
from dnd_fast.kernels.conv2d import fft_conv2d
from dnd_fast.kernels.fft.tiling import FFTConvPlan
from dnd_fast.kernels.lora_scatter import LoraScatterTable
from dnd_fast.kernels.triton.detokenize import detokenize

SHAPES = {"x.lora_A.weight": (3, 13), "x.lora_B.weight": (7, 3)}


def run_every_kernel(features, device, dtype):
    """Direct and transformed convolutions, a gradient, detokenisation; all results are finite."""
    torch.manual_seed(0)
    for plan, weights in (("direct", "streamed"), ("fft", "int8")):
        decoder = HyperConvDecoder(features, 3).requires_grad_(False).to(device, dtype)
        planned = TritonPass(TorchPass(decoder, decoder.checked_plan(plan, weights)))
        # Without a graph, whose memory would come from torch's cache.
        assert planned.run(torch.randn(1, *features[0]).to(device, dtype), None).isfinite().all()
    n, length, c = features[0]
    x, weight = torch.randn(1, n, length, c), torch.randn(2, n, 3, 3)
    x, weight = (each.to(device, dtype).requires_grad_() for each in (x, weight))
    plan = FFTConvPlan.make(length, c, 3, length + 1, c + 1)
    fft_conv2d(x, weight, plan, dtype=torch.float16, impl="triton").sum().backward()
    assert weight.grad.isfinite().all()
    scatter = replace(LoraScatterTable.make(SHAPES, 6, device), border=True)
    tokens = torch.randn(2, len(scatter.table), 5, 8).to(device, dtype)
    out = torch.full((2, scatter.elements), torch.nan, device=device)
    detokenize(tokens, scatter, out)
    assert out.isfinite().all()


@pytest.mark.interpret
def test_in_the_interpreter():
    run_every_kernel([(1, 2, 1), (1, 2, 2)], "cpu", torch.float16)


@pytest.mark.gpu
@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="needs compute-sanitizer")
def test_no_access_outside_of_tensors():
    command = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "1"]
    # Without torch's cache every tensor is an allocation of its own, whose end is known.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    result = subprocess.run(
        [*command, sys.executable, str(Path(__file__))],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]


if __name__ == "__main__":
    run_every_kernel([(3, 37, 25), (5, 19, 41)], "cuda", torch.bfloat16)
