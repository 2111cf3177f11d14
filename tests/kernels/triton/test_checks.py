"""What kernels refuse before anything is launched."""

import pytest
import torch

from dnd_fast.kernels.triton import checks as operands


def test_says_that_it_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(operands.triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match="found a tensor on cpu; Triton kernels need an NVIDIA"):
        operands.require_gpu(torch.ones(1))
