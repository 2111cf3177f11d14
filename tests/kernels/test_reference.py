"""The reference block against an independent, slow implementation of its formula."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnd_fast.kernels.reference import CONVOLUTIONS, TENSORS, direct, hyper_conv_block


def naive_block(x, norm_w, norm_b, a_w, a_h, b_h, b_w, bias, layer, layer_b):
    """Equation 5 with explicit sums over kernel offsets; no convolution, no permutation."""
    k = a_w.shape[-1]
    half = k // 2

    def slide(tensor, dims, amount):  # tensor shifted along two dims, zeros moved in
        out = torch.zeros_like(tensor)
        take, put = [slice(None)] * 4, [slice(None)] * 4
        for dim, shift in zip(dims, amount, strict=True):
            size = tensor.shape[dim]
            if abs(shift) >= size:
                return out
            take[dim] = slice(max(0, shift), size + min(0, shift))
            put[dim] = slice(max(0, -shift), size + min(0, -shift))
        out[tuple(put)] = tensor[tuple(take)]
        return out

    def convolve(tensor, weight, channel, dims):
        total = 0
        for i in range(k):
            for j in range(k):
                moved = slide(tensor, dims, (i - half, j - half))
                total = total + torch.tensordot(
                    moved, weight[:, :, i, j], dims=([channel], [1])
                ).movedim(-1, channel)
        return total

    mean = x.mean((2, 3), keepdim=True)
    variance = x.var((2, 3), unbiased=False, keepdim=True)
    normed = (x - mean) / (variance + 1e-5).sqrt() * norm_w + norm_b
    # Axes are (B, N, L, C) throughout. The first spatial axis of a kernel is the one that comes
    # first in the tensor handed to the published convolution.
    a = convolve(normed, a_w, 3, (2, 1))
    a = convolve(a, a_h, 2, (1, 3))
    b = convolve(normed, b_h, 2, (1, 3))
    b = convolve(b, b_w, 3, (2, 1))
    y = (a + torch.tanh(b) + bias) / 3
    z = convolve(y, layer, 1, (2, 3)) + layer_b[:, None, None]
    return x + z if z.shape == x.shape else z


def random_block(shape_in, shape_out, k, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    (n, length, c), (n2, length2, c2) = shape_in, shape_out

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return (
        randn(batch, n, length, c),
        1 + 0.1 * randn(length, c),
        0.1 * randn(length, c),
        randn(c2, c, k, k) / k,
        randn(length2, length, k, k) / k,
        randn(length2, length, k, k) / k,
        randn(c2, c, k, k) / k,
        randn(length2, c2),
        randn(n2, n, k, k) / k,
        randn(n2),
    )


sizes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, st.sampled_from([1, 3, 5, 7]), st.integers(0, 2), st.booleans())
def test_equals_the_formula(shape_in, shape_out, k, batch, residual):
    """Guards against swapped axes, flipped kernels, a missing tanh, ÷3 or residual."""
    arguments = random_block(shape_in, shape_in if residual else shape_out, k, batch)
    expected = naive_block(*arguments)
    found = hyper_conv_block(*arguments)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_non_contiguous_input_makes_no_difference():
    arguments = list(random_block((3, 4, 5), (2, 3, 6), 3, 2))
    expected = hyper_conv_block(*arguments)
    arguments[0] = arguments[0].permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    torch.testing.assert_close(hyper_conv_block(*arguments), expected)


def test_gradients():
    arguments = [tensor.requires_grad_() for tensor in random_block((2, 3, 2), (2, 2, 3), 3, 1)]
    assert torch.autograd.gradcheck(hyper_conv_block, arguments)


@pytest.mark.parametrize("module", ["dnd_fast.kernels.reference", "dnd_fast.decoder.model"])
def test_runs_without_triton(module):
    """The fallback must not need what it falls back from."""
    code = (
        "import sys; sys.modules['triton'] = None\n"
        f"import {module}, torch\n"
        "from dnd_fast.decoder.model import HyperConvDecoder\n"
        "print(HyperConvDecoder([(2, 3, 4), (3, 2, 2)], 3)(torch.randn(1, 2, 3, 4)).shape)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "[1, 3, 2, 2]" in result.stdout


def test_the_table_of_convolutions_is_what_the_block_does():
    """Order of the dimensions, sizes and channels, against the tensors that the block hands out."""
    before, after = (2, 3, 5), (7, 11, 13)
    seen = {}

    def spy(name, x, weight):
        seen[name] = (*x.shape[2:], x.shape[1], weight.shape[0])
        return direct(name, x, weight)

    arguments = random_block(before, after, 3, 1)
    hyper_conv_block(*arguments, convolve=spy)
    assert seen == {
        name: convolution.sizes(before, after) for name, convolution in CONVOLUTIONS.items()
    }


def test_the_table_of_convolutions_is_consistent():
    """Every convolution gives its channels their final size, and leaves the other sizes alone."""
    for convolution in CONVOLUTIONS.values():
        mapped = {*TENSORS[convolution.source], convolution.channel_dim}
        assert set(TENSORS[convolution.target]) == mapped
        x = torch.randn(2, 3, 4, 5)
        assert torch.equal(x.permute(convolution.order).permute(convolution.order), x)
