"""The Triton convolution, its gradients and its ranges, against conv2d in float64."""

import pytest
import torch
from torch.nn.functional import conv2d, layer_norm

from dnd_fast.kernels.conv2d import fft_conv2d
from dnd_fast.kernels.fft.tiling import FFTConvPlan
from dnd_fast.kernels.fft.weight import transform_weight
from dnd_fast.kernels.reference import CONVOLUTIONS
from dnd_fast.kernels.triton.checks import LayerNorm
from dnd_fast.kernels.triton.fft_conv import (
    PackedWeight,
    Workspace,
    convolve,
    fft_conv2d_triton,
    weight_gradient_triton,
)
from dnd_fast.kernels.triton.layer_norm import layer_norm_stats

FIRST, LAST = (0, 1, 2, 3), (0, 2, 3, 1)
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


@pytest.mark.interpret
@pytest.mark.parametrize(
    ("shape", "limit"), list(zip(SHAPES, (1, 1 << 30, 1 << 30, 1), strict=True))
)
def test_float32(shape, limit):
    plan, x, weight, dy, expected, (dx, dw) = problem(shape)
    assert error(fft_conv2d_triton(x, weight, plan, torch.float32, limit), expected) <= 1e-5
    cached = transform_weight(weight, plan)
    assert error(fft_conv2d_triton(x, cached, plan, torch.float32, limit), expected) <= 1e-5
    rotated = weight.transpose(0, 1).flip(2, 3)
    assert error(fft_conv2d_triton(dy, rotated, plan, torch.float32, limit), dx) <= 1e-5
    assert error(weight_gradient_triton(x, dy, plan, torch.float32, limit), dw) <= 1e-5


@pytest.mark.interpret
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
        found = fft_conv2d_triton(x, used, plan, torch.float16, 1 << 30)
        assert found.dtype == torch.float16
        assert error(found, expected) <= 2 * error(plain, expected) + 2**-11
    assert error(weight_gradient_triton(x, dy, plan, torch.float16, 1 << 30), dw) <= 4e-3


def laid_out(x, order):
    """x with its dimensions in memory in another order."""
    return x.permute(order).contiguous().permute(torch.tensor(order).argsort().tolist())


def poisoned(*shape, dtype=torch.float32, order=None, device="cpu"):
    x = torch.full(shape, torch.nan, dtype=dtype, device=device)
    return x if order is None else laid_out(x, order)


def epilogues(y, bias, other):
    """Name to operands and expected result."""
    return {
        "store": ({}, y),
        "tanh_bias": ({"bias": bias}, y.tanh() + bias),
        "mix": ({"other": other}, (y + other) / 3),
        "bias_residual": (
            {"bias": bias[:, 0, 0].contiguous(), "other": other},
            y + bias[:, :1, :1] + other,
        ),
    }


def convolve_a_block(size, order, n, kernel, channels_out, epilogue, dtype, device="cpu"):
    """What is found, in float64, and by the direct form with operands of the dtype."""
    torch.manual_seed(0)
    x = (5 + torch.randn(size, device=device)).to(dtype)  # [B, N, L, C]
    affine = [torch.randn(size[2:], device=device).to(dtype) for _ in range(2)]
    view = x.permute(order)
    plan = FFTConvPlan.make(*view.shape[2:], kernel, *n)
    weight = torch.randn(channels_out, view.shape[1], kernel, kernel, device=device)
    weight = (weight / kernel**2).to(dtype)
    laid = {"order": FIRST if order[3] == 3 else LAST, "dtype": dtype, "device": device}
    out = poisoned(size[0], channels_out, *view.shape[2:], **laid)
    bias = torch.randn(out.shape, device=device).to(dtype)
    other = torch.randn_like(out)
    operands, _ = epilogues(other, bias[0], other)[epilogue]
    computed = torch.float32 if dtype == torch.float32 else torch.float16
    normed = layer_norm(x.double(), size[2:], *(part.double() for part in affine)).permute(order)
    convolve(
        view,
        PackedWeight.of(weight, computed),
        plan,
        out,
        Workspace(),
        computed,
        norm=LayerNorm(*layer_norm_stats(x), *affine, order),
        bound=normed.abs().max().float(),
        epilogue=epilogue,
        **operands,
    )

    def finish(y):
        return epilogues(y.double(), bias[0].double(), other.double())[epilogue][1]

    expected = finish(conv2d(normed, weight.double(), padding=kernel // 2))
    rounded = conv2d(normed.to(dtype).double(), weight.double(), padding=kernel // 2).to(dtype)
    return out, expected, finish(rounded).to(dtype)


@pytest.mark.interpret
@pytest.mark.parametrize(
    ("order", "epilogue"),
    [
        ((0, 3, 2, 1), "mix"),
        ((0, 3, 2, 1), "bias_residual"),
        ((0, 2, 1, 3), "store"),
        ((0, 2, 1, 3), "tanh_bias"),
    ],
)
def test_convolution_of_a_block(order, epilogue):
    """LayerNorm on load, an epilogue, and dimensions as the hyper-convolutional block has them."""
    arguments = (2, 3, 5, 7), order, (4, 5), 3, 2, epilogue, torch.float32
    out, expected, _ = convolve_a_block(*arguments)
    assert error(out, expected) <= 3e-6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("epilogue", ["store", "tanh_bias", "mix", "bias_residual"])
@pytest.mark.parametrize("order", [(0, 3, 2, 1), (0, 2, 1, 3)])
@pytest.mark.parametrize(("size", "n"), [((2, 61, 32, 67), (37, 26)), ((1, 128, 16, 64), (24, 18))])
def test_convolution_of_a_block_on_a_gpu(size, n, order, epilogue, dtype):
    arguments = size, order, n, 11, 48, epilogue, dtype, "cuda"
    out, expected, rounded = convolve_a_block(*arguments)
    assert error(out, expected) <= 2 * error(rounded, expected)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_largest_convolutions(sized, name):
    """Traced as one graph, with raw weights; within twice the plain form's error."""
    plan, shape = sized.plans[name].fft_plan, sized.plans[name].shape
    x = sized.image(name)[0]
    weight = torch.randn(shape.channels_out, x.shape[1], *2 * [shape.kernel], device=sized.device)
    weight = (weight / shape.kernel).to(sized.dtype)

    def run(x, weight, impl="triton"):
        return fft_conv2d(x, weight, plan, dtype=torch.float16, impl=impl)

    backend = "inductor" if x.is_cuda else "aot_eager"
    found = torch.compile(run, fullgraph=True, backend=backend)(x, weight)
    assert torch.equal(found, run(x, weight))
    some = torch.randint(len(weight), (4,), device=sized.device)
    expected = conv2d(x.double(), weight[some].double(), padding=shape.kernel // 2)
    plain = run(x, weight[some], impl="torch")
    rounding = torch.finfo(sized.dtype).eps / 2
    assert error(found[:, some], expected) <= 2 * error(plain, expected) + rounding
