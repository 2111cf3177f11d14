"""The range of float16 and tanh, as the kernels compute them."""

import math

import pytest
import torch

from dnd_fast.kernels.fft.tiling import Tiling
from dnd_fast.kernels.triton.checks import Config
from dnd_fast.kernels.triton.dft_forward import dft_forward_triton
from dnd_fast.kernels.triton.dft_inverse import dft_inverse_triton

SMALL = Config(16, 16, 16, num_warps=1, num_stages=1)
DTYPES = [torch.float32, torch.float16]


def error(found, expected):
    return ((found.double() - expected).norm() / (expected.norm() + 1e-300)).item()


def poisoned(*shape, dtype=torch.float32):
    return torch.full(shape, torch.nan, dtype=dtype)


@pytest.mark.interpret
@pytest.mark.parametrize("bound", [0.0, 1e-42, 1e-20, 0.03, 1.0, 1.5, 3.99, 4.0, 6e4, 1e20])
def test_the_scale_is_a_power_of_two_that_prevents_overflow(bound):
    sqrt_window_size = 16.5
    x, half = torch.tensor([[[[1.0]]]]), torch.full((2, 1, 1), 0.5)
    tiling, out = Tiling(1, 1, 0, 1, 1, 1, 0, 1), poisoned(1, 2, 1)
    options = {"bound": torch.tensor(bound), "sqrt_window_size": sqrt_window_size, "config": SMALL}
    dft_forward_triton(x, half, tiling, out, **options)
    expected = 2.0 ** math.floor(math.log2(2**14 / (bound * sqrt_window_size))) if bound else 1.0
    assert out.flatten().tolist() == [min(max(expected, 2.0**-100), 2.0**100), 0.0]
    back = poisoned(1, 1, 1, 1)
    dft_inverse_triton(out, half, tiling, back, scale=6.0, **options)
    assert back.item() == 3.0


@pytest.mark.interpret
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 16])
def test_a_bound_prevents_overflow_in_float16(size, dtype):
    """Of the folded window, where nothing is left to spare for one position, and of its sum."""
    x = torch.full((1, 1, size, size), 6e4).to(dtype)
    tiling = Tiling(1, size, 0, size, 1, size, 0, size)
    into = torch.full((2, 2, tiling.folded), 1 / size).half()
    into /= 1 + size % 2  # the centre is counted twice
    out, back = poisoned(2, 2, 1, dtype=torch.float16), poisoned(1, 1, size, size)
    options = {"bound": torch.tensor([6e4]), "sqrt_window_size": float(size), "config": SMALL}
    dft_forward_triton(x, into, tiling, out, **options)
    onto = torch.full((2, tiling.folded, 2), 1 / size / 2).half()
    dft_inverse_triton(out, onto, tiling, back, **options)
    assert error(back, x.double()) <= 2**-10


@pytest.mark.interpret
def test_tanh_is_accurate_everywhere():
    size = torch.logspace(-30, 30, 200, base=2)
    y = torch.cat([-size, size, torch.linspace(-2, 2, 99), torch.zeros(1)])
    y = torch.stack([y, torch.zeros_like(y)])[None]
    out, bias = poisoned(1, y.shape[2], 1, 1), torch.zeros(y.shape[2], 1, 1)
    wide = Config(16, 512, 16, num_warps=1, num_stages=1)
    tiling, one = Tiling(1, 1, 0, 1, 1, 1, 0, 1), torch.ones(2, 1, 1)
    dft_inverse_triton(y, one, tiling, out, epilogue="tanh_bias", bias=bias, config=wide)
    expected = y[0, 0].double().tanh()
    assert ((out.flatten() - expected).abs() <= 4e-7 * expected.abs()).all()
