"""The two forms of the transform against torch.fft and against each other."""

import pytest
import torch

from dnd_fast.kernels.fft.dft import (
    dft_forward,
    dft_inverse,
    folded_forward_matrix,
    folded_inverse_matrix,
)
from dnd_fast.kernels.fft.tiling import FFTConvPlan

CPU = torch.device("cpu")
PLANS = [  # what FFTConvPlan.make takes: odd and even lengths, whole axes and tiles
    (5, 6, 3, 6, 8),
    (7, 11, 5, 9, 9),
    (13, 5, 3, 6, 7),
    (1, 4, 3, 2, 3),
]


@pytest.mark.parametrize("sizes", PLANS)
def test_forward_is_the_fft(sizes):
    """Every kept bin, by its two frequencies, of data that fills the window."""
    torch.manual_seed(0)
    plan = FFTConvPlan.make(*sizes)
    n1, n2 = plan.height.dft, plan.width.dft
    x = torch.randn(n1, n2, dtype=torch.float64)
    found = dft_forward(x.T[..., None], plan, (tuple(range(n2)), tuple(range(n1))), norm="ortho")
    whole = torch.fft.fft2(x, norm="ortho").flatten()
    kept = torch.complex(found[:, 0, 0], found[:, 1, 0])
    nearest = (whole[:, None] - kept).abs().min(dim=0).values
    assert nearest.max() < 1e-12
    assert len(kept) >= (n1 * n2) // 2


@pytest.mark.parametrize("sizes", PLANS)
def test_folded_matrices_convolve(sizes):
    """Windows folded about the centre: other phases, the same products' results."""
    torch.manual_seed(0)
    plan = FFTConvPlan.make(*sizes)
    inputs = plan.width.inputs.positions, plan.height.inputs.positions
    kept = plan.width.kept.positions, plan.height.kept.positions
    x = torch.randn(len(inputs[1]), len(inputs[0]), dtype=torch.float64)
    weight = torch.randn(plan.kernel, plan.kernel, dtype=torch.float64)

    def fold(values, positions, norm):
        first, second = folded_forward_matrix(plan, positions, norm, torch.float64, CPU)
        flat = values.flatten()
        mirrored, half = flat.flip(0), -(-len(flat) // 2)
        even, odd = (flat + mirrored)[:half], (flat - mirrored)[:half]
        return torch.complex(first[:, :half] @ even, second[:, :half] @ odd)

    plain = dft_forward(x.T[..., None], plan, inputs, norm="ortho")[..., 0]
    response = dft_forward(weight.T[..., None], plan, plan.taps, norm="backward")[..., 0]
    product = torch.complex(*plain.unbind(1)) * torch.complex(*response.unbind(1))
    bins = torch.view_as_real(product)[..., None]
    expected = dft_inverse(bins, plan, kept, norm="ortho")[..., 0].T

    torch.testing.assert_close(
        torch.view_as_real(fold(weight, plan.taps, "backward")), response, rtol=0, atol=1e-12
    )
    product = fold(x, inputs, "ortho") * fold(weight, plan.taps, "backward")
    real, imaginary = folded_inverse_matrix(plan, kept, "ortho", torch.float64, CPU)
    cosines = real[:, : plan.bins] @ product.real
    sines = imaginary[:, : plan.bins] @ product.imag
    count = len(kept[0]) * len(kept[1])
    found = torch.cat([cosines + sines, (cosines - sines).flip(0)[count % 2 :]])
    torch.testing.assert_close(found.view(expected.shape), expected, rtol=0, atol=1e-12)


def test_matrices_are_never_evicted():
    """A CUDA graph replays with their addresses, long after they were made."""
    plan = FFTConvPlan.make(*PLANS[0])
    for make in (folded_forward_matrix, folded_inverse_matrix):

        def made(start, make=make):
            places = tuple(range(start, start + 2)), (0, 1)
            return make(plan, places, "ortho", torch.float64, CPU)

        first = made(0)
        for start in range(1, 300):
            made(start)
        assert made(0) is first
