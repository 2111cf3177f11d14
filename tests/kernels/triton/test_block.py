"""The Triton block against the reference block: every mixture of algorithms, dtypes and weights."""

import copy

import pytest
import torch

from dnd_fast.decoder.convolutions import PlannedConvolutions
from dnd_fast.decoder.model import HyperConvBlock
from dnd_fast.decoder.torch_pass import PlannedBlock
from dnd_fast.decoder.triton_pass import pack
from dnd_fast.kernels.fft.tiling import FFTConvPlan
from dnd_fast.kernels.reference import CONVOLUTIONS
from dnd_fast.kernels.triton.block import hyper_conv_block_triton
from dnd_fast.kernels.triton.fft_conv import Workspace

pytestmark = pytest.mark.interpret
SHAPES = {
    "to another shape": ((3, 5, 4), (2, 6, 7)),
    "residual": ((3, 5, 4), (3, 5, 4)),
}


def block(shapes, tiled):
    """With every parameter random, the LayerNorm's too."""
    torch.manual_seed(0)
    shape_in, shape_out = SHAPES[shapes]
    made = HyperConvBlock(shape_in, shape_out, 3).requires_grad_(False)
    for parameter in made.parameters():
        parameter.copy_(torch.randn(parameter.shape) / parameter[0].numel() ** 0.5)
    exact = copy.deepcopy(made).double()
    (n, length, c), (_, length2, c2) = shape_in, shape_out
    sizes = ((length, n), (n, c2), (n, c), (length2, n), (length2, c2))
    fft_plans = {
        name: FFTConvPlan.make(*size, 3, 5, size[1] + 1)
        for name, size in zip(CONVOLUTIONS, sizes, strict=True)
        if name in tiled
    }
    return made, exact, fft_plans


def packed(made, fft_plans, dtype, kept):
    weights = {None: "streamed", torch.int8: "int8"}.get(kept, "cached")
    convolutions = PlannedConvolutions(fft_plans, 1 << 30, "torch")
    planned = PlannedBlock(made.to(dtype), convolutions, weights)
    if weights == "cached":
        assert all(planned.tensors[name].values.dtype == kept for name in fft_plans)
    return pack(planned)


@pytest.mark.parametrize(
    ("shapes", "tiled", "dtype", "kept", "bound"),
    [
        ("to another shape", (), torch.float32, None, 1e-5),
        ("residual", (), torch.float16, None, 4e-3),
        ("to another shape", CONVOLUTIONS, torch.float32, torch.float32, 1e-5),
        ("residual", CONVOLUTIONS, torch.float32, None, 1e-5),
        ("to another shape", CONVOLUTIONS, torch.float16, torch.float16, 4e-3),
        ("to another shape", CONVOLUTIONS, torch.float16, None, 4e-3),
        ("residual", CONVOLUTIONS, torch.float16, torch.int8, 3e-2),
        ("to another shape", ("a_width", "layerwise"), torch.float16, torch.float16, 4e-3),
        ("residual", ("b_height", "b_width", "a_height"), torch.float16, None, 4e-3),
    ],
)
def test_block(shapes, tiled, dtype, kept, bound):
    made, exact, fft_plans = block(shapes, tiled)
    x = torch.randn(2, *SHAPES[shapes][0])
    expected = exact(x.double())
    found = hyper_conv_block_triton(x.to(dtype), packed(made, fft_plans, dtype, kept), Workspace())
    assert found.shape == expected.shape
    assert found.dtype == dtype
    assert (found.double() - expected).norm() <= bound * expected.norm()
