"""The Triton convolution, its gradients and its ranges, against conv2d in float64."""

import pytest
import torch
from torch.nn.functional import conv2d

from dnd_fast.kernels import triton_conv
from dnd_fast.kernels.fft_conv import fft_conv2d
from dnd_fast.kernels.tiles import FFTConvPlan
from dnd_fast.kernels.transformed_weight import transform_weight

pytestmark = pytest.mark.interpret
SHAPES = [  # batch, C, C', and what FFTConvPlan.make takes
    (2, 3, 5, 5, 7, 3, 6, 8),  # one tile
    (1, 5, 3, 7, 9, 5, 6, 7),  # several along both axes
    (2, 1, 2, 1, 11, 3, 2, 7),  # an axis of one position
    (1, 2, 7, 5, 3, 7, 8, 6),  # a kernel larger than the image
]


def error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


def problem(shape, magnitude=1.0):
    torch.manual_seed(0)
    batch, c_in, c_out, height, width, kernel, n1, n2 = shape
    plan = FFTConvPlan.make(height, width, kernel, n1, n2)
    x = magnitude * torch.randn(batch, width, height, c_in).permute(0, 3, 2, 1)
    weight = torch.randn(c_out, c_in, kernel, kernel) / magnitude
    dy = torch.randn(batch, c_out, height, width)
    exact = [x.double().requires_grad_(), weight.double().requires_grad_()]
    expected = conv2d(*exact, padding=kernel // 2)
    return plan, x, weight, dy, expected, torch.autograd.grad(expected, exact, dy.double())


@pytest.mark.parametrize(
    ("shape", "limit"), list(zip(SHAPES, (1, 1 << 30, 1 << 30, 1), strict=True))
)
def test_float32(shape, limit):
    plan, x, weight, dy, expected, (dx, dw) = problem(shape)
    assert error(triton_conv.conv2d(x, weight, plan, torch.float32, limit), expected) <= 1e-5
    cached = transform_weight(weight, plan)
    assert error(triton_conv.conv2d(x, cached, plan, torch.float32, limit), expected) <= 1e-5
    turned = weight.transpose(0, 1).flip(2, 3)
    assert error(triton_conv.conv2d(dy, turned, plan, torch.float32, limit), dx) <= 1e-5
    assert error(triton_conv.weight_gradient(x, dy, plan, torch.float32, limit), dw) <= 1e-5


@pytest.mark.parametrize(
    ("shape", "magnitude"), list(zip(SHAPES, (1e-3, 300.0, 1.0, 1.0), strict=True))
)
def test_float16(shape, magnitude):
    """Within twice the error of the plain form in float16, also where values are large or small."""
    plan, x, weight, dy, expected, (_, dw) = problem(shape, magnitude)
    x, weight, dy = x.half(), weight.half(), dy.half()
    for used in (
        weight,
        transform_weight(weight, plan),
        transform_weight(weight, plan, dtype=torch.int8),
    ):
        plain = fft_conv2d(x, used, plan, dtype=torch.float16)
        found = triton_conv.conv2d(x, used, plan, torch.float16, 1 << 30)
        assert found.dtype == torch.float16
        assert error(found, expected) <= 2 * error(plain, expected) + 2**-11
    assert error(triton_conv.weight_gradient(x, dy, plan, torch.float16, 1 << 30), dw) <= 4e-3
