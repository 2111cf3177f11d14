"""The transform-domain convolution against conv2d and autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import conv2d

from dnd_fast.kernels.conv2d import fft_conv2d
from dnd_fast.kernels.fft.tiling import FFTConvPlan
from dnd_fast.kernels.fft.weight import transform_weight
from dnd_fast.recipe import Recipe, recipe_names


def error(found, expected):
    return ((found.double() - expected).norm() / (expected.norm() + 1e-300)).item()


def compare(x, weight, plan, bound, **options):
    """Forward, dX and dW against conv2d in float64."""
    x, weight = x.requires_grad_(), weight.requires_grad_()
    exact = [x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()]
    expected = conv2d(*exact, padding=plan.kernel // 2)
    found = fft_conv2d(x, weight, plan, **options)
    assert found.shape == expected.shape
    assert found.dtype == x.dtype
    assert error(found, expected) <= bound
    dy = torch.randn(expected.shape, dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad(found, [x, weight], dy.to(x.dtype)),
        torch.autograd.grad(expected, exact, dy),
        strict=True,
    ):
        assert error(mine, theirs) <= bound


def recipe_convolutions():
    """(H, W, k) of every convolution of the recipes, each once."""
    shapes = set()
    for name in recipe_names():
        spec = Recipe.load(name).decoder
        for (n, length, c), (_, length2, c2) in zip(spec.features, spec.features[1:], strict=False):
            for size in ((length, n), (n, c2), (n, c), (length2, n), (length2, c2)):
                shapes.add((*size, spec.kernel_size))
    return sorted(shapes)


def likely_dft(length, kernel):
    """One tile where that is cheap, overlap-save otherwise."""
    return length + kernel // 2 if length + kernel // 2 <= 48 else kernel + 15


@pytest.mark.parametrize(("height", "width", "kernel"), recipe_convolutions())
def test_every_shape_of_the_recipes(height, width, kernel):
    """With few channels; the tiling depends on the spatial sizes alone."""
    torch.manual_seed(0)
    plan = FFTConvPlan.make(
        height, width, kernel, likely_dft(height, kernel), likely_dft(width, kernel)
    )
    x, weight = torch.randn(1, 2, height, width), torch.randn(3, 2, kernel, kernel)
    expected = conv2d(x.double(), weight.double(), padding=kernel // 2)
    assert error(fft_conv2d(x.double(), weight.double(), plan), expected) <= 1e-12
    assert error(fft_conv2d(x, weight, plan), expected) <= 1e-5


@st.composite
def problems(draw):
    kernel = draw(st.sampled_from([1, 3, 5, 9, 11]))
    sizes = [draw(st.sampled_from([1, 2, 3, 7, 11, 13, 24])) for _ in range(2)]
    lengths = [
        draw(
            st.one_of(
                st.integers(size + kernel // 2, size + kernel // 2 + 5),  # one tile
                st.integers(kernel, kernel + 12),  # several
            )
        )
        for size in sizes
    ]
    channels = [draw(st.sampled_from([1, 2, 3, 5])) for _ in range(2)]
    return draw(st.integers(0, 3)), *channels, *sizes, kernel, *lengths


@settings(max_examples=80, deadline=None)
@given(problems(), st.sampled_from([1, 5000, 1 << 30]))
def test_any_shape(problem, workspace):
    """Primes, axes of 1, kernels larger than an axis, batch 0, any cut of batch and channels."""
    batch, c_in, c_out, height, width, kernel, n1, n2 = problem
    torch.manual_seed(0)
    plan = FFTConvPlan.make(height, width, kernel, n1, n2)
    compare(
        torch.randn(batch, c_in, height, width, dtype=torch.float64),
        torch.randn(c_out, c_in, kernel, kernel, dtype=torch.float64),
        plan,
        1e-12,
        workspace_bytes=workspace,
    )


def test_float32():
    torch.manual_seed(0)
    plan = FFTConvPlan.make(20, 33, 9, 24, 24)
    compare(torch.randn(2, 16, 20, 33), torch.randn(12, 16, 9, 9), plan, 1e-5)


def test_transformed_weight_and_strided_input():
    """As the decoder hands them over: a permuted view, the weight transformed beforehand."""
    torch.manual_seed(0)
    plan = FFTConvPlan.make(7, 10, 5, 9, 8)
    x = torch.randn(2, 10, 7, 3, dtype=torch.float64).permute(0, 3, 2, 1)
    weight = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    transformed = transform_weight(weight, plan)
    assert transformed.values.shape == (plan.bins, 2, 4, 3)
    expected = conv2d(x, weight, padding=2)
    assert error(fft_conv2d(x, transformed, plan), expected) <= 1e-12
    assert error(fft_conv2d(x, transformed, plan, workspace_bytes=1), expected) <= 1e-12


def smooth(shape):
    """A large constant plus slow waves: what reaches the layer-wise convolutions of a decoder."""
    height, width = shape[2:]
    waves = torch.randn(*shape[:2], 3, 3) / torch.tensor([1.0, 4.0, 16.0])
    rows = torch.stack([torch.linspace(0, 3 * i, height).cos() for i in range(3)])
    columns = torch.stack([torch.linspace(0, 3 * i, width).cos() for i in range(3)])
    return 2 + torch.einsum("bcij,ih,jw->bchw", waves, rows, columns)


@pytest.mark.parametrize("make", [torch.randn, smooth])
@pytest.mark.parametrize("magnitude", [1.0, 1e-9, 1e9])
@pytest.mark.parametrize("cached", [True, False])
def test_float16_is_as_good_as_direct_bfloat16(make, magnitude, cached):
    """Also for values far out of float16's range, which the scales bring back."""
    torch.manual_seed(0)
    plan = FFTConvPlan.make(16, 40, 11, 21, 18)
    x, weight = make((2, 64, 16, 40)) * magnitude, torch.randn(24, 64, 11, 11) / magnitude
    exact = conv2d(x.double(), weight.double(), padding=5)
    direct = conv2d(x.bfloat16().float(), weight.bfloat16().float(), padding=5)
    used = transform_weight(weight, plan, dtype=torch.float16) if cached else weight
    found = fft_conv2d(x, used, plan, dtype=torch.float16)
    assert found.isfinite().all()
    assert error(found, exact) <= 2 * error(direct, exact)
    without_mean = [each - each.mean((2, 3), keepdim=True) for each in (found, direct, exact)]
    assert error(without_mean[0], without_mean[2]) <= 2 * error(without_mean[1], without_mean[2])


def test_float16_gradients():
    torch.manual_seed(0)
    plan = FFTConvPlan.make(9, 17, 5, 11, 12)
    x, weight = torch.randn(2, 16, 9, 17), torch.randn(8, 16, 5, 5)
    compare(x, weight, plan, 2e-3, dtype=torch.float16)


def test_bfloat16_tensors_on_a_cpu():
    """Computed in float32: better than conv2d's own bfloat16, out in bfloat16."""
    torch.manual_seed(0)
    plan = FFTConvPlan.make(9, 17, 5, 11, 12)
    x, weight = torch.randn(2, 16, 9, 17).bfloat16(), torch.randn(8, 16, 5, 5).bfloat16()
    exact = conv2d(x.double(), weight.double(), padding=2)
    for used in (weight, transform_weight(weight, plan)):
        found = fft_conv2d(x, used, plan)
        assert found.dtype == torch.bfloat16
        assert error(found, exact) <= 1.1 * error(exact.bfloat16(), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_int8_weights(dtype):
    """One scale per bin and output channel: within a per cent, also where channels differ."""
    torch.manual_seed(0)
    plan = FFTConvPlan.make(16, 40, 9, 20, 18)
    weight = torch.randn(24, 64, 9, 9) * torch.logspace(-2, 2, 24)[:, None, None, None]
    weight[5] = 0
    x = torch.randn(2, 64, 16, 40)
    transformed = transform_weight(weight, plan, dtype=torch.int8)
    assert transformed.nbytes == plan.bins * 24 * (2 * 64 + 4)
    exact = conv2d(x.double(), weight.double(), padding=4)
    found = fft_conv2d(x, transformed, plan, dtype=dtype, workspace_bytes=1 << 20)
    for channel in range(24):
        assert error(found[:, channel], exact[:, channel]) <= (0.012 if channel != 5 else 0)


def test_float16_data_needs_a_bound():
    plan = FFTConvPlan.make(5, 6, 3, 6, 5)
    wide = transform_weight(torch.randn(3, 2, 3, 3), plan)
    with pytest.raises(ValueError, match="needs weights transformed to float16 or int8"):
        fft_conv2d(torch.randn(1, 2, 5, 6), wide, plan, dtype=torch.float16)


def test_bins_are_half_of_the_points():
    """One per conjugate pair: 7B's largest layer has 190 of 21 x 18."""
    assert FFTConvPlan.make(16, 512, 11, 21, 18).bins == 190
    assert FFTConvPlan.make(16, 512, 11, 21, 18).tiles == 64


def test_gradcheck():
    torch.manual_seed(0)
    plan = FFTConvPlan.make(5, 6, 3, 6, 5)
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: fft_conv2d(a, b, plan), (x, weight))


def test_operators():
    """Schemas, fake tensors, strides and autograd, as torch.compile and export rely on them."""
    torch.manual_seed(0)
    lengths = [5, 6, 3, 7, 5]
    plan = FFTConvPlan.make(*lengths)
    x = torch.randn(2, 2, 6, 5).transpose(2, 3).requires_grad_()
    weight = torch.randn(3, 2, 3, 3, requires_grad=True)
    options = lengths, torch.float32, 1 << 20, False
    ops = torch.ops.dnd_fast
    torch.library.opcheck(ops.fft_conv2d.default, (x, weight, *options))
    kept = transform_weight(weight.detach(), plan, dtype=torch.int8)
    transformed = x.detach(), kept.values, kept.scale, kept.bound, *options
    torch.library.opcheck(ops.fft_conv2d_transformed.default, transformed)
    gradient = x.detach(), torch.randn(2, 3, 5, 6), *options
    torch.library.opcheck(ops.fft_conv2d_weight_gradient.default, gradient)


def test_traced_as_one_graph():
    plan = FFTConvPlan.make(5, 6, 3, 7, 5)
    x, weight = torch.randn(2, 2, 5, 6), torch.randn(3, 2, 3, 3, requires_grad=True)

    def run(x, weight):
        return fft_conv2d(x.relu(), weight, plan).square().sum()

    traced = torch.compile(run, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(run(x, weight), weight)[0]
    found = torch.autograd.grad(traced(x, weight), weight)[0]
    assert error(found, expected) <= 1e-6


def test_second_derivatives_are_refused():
    plan = FFTConvPlan.make(5, 6, 3, 6, 5)
    x = torch.randn(1, 1, 5, 6, requires_grad=True)
    weight = torch.randn(1, 1, 3, 3, requires_grad=True)
    loss = fft_conv2d(x, weight, plan).square().sum()
    with pytest.raises(RuntimeError, match="no second derivatives: use create_graph=False"):
        torch.autograd.grad(loss, x, create_graph=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 8, 4, 12, 12), "kernel=4"),
        ((0, 8, 3, 12, 12), "length=0"),
        ((30, 8, 9, 8, 12), "8 points is shorter than the kernel of 9"),
    ],
)
def test_impossible_plans(arguments, message):
    with pytest.raises(ValueError, match=message):
        FFTConvPlan.make(*arguments)


def test_wrong_shapes():
    plan = FFTConvPlan.make(5, 6, 3, 6, 5)
    with pytest.raises(ValueError, match="spatial size"):
        fft_conv2d(torch.randn(1, 2, 6, 5), torch.randn(3, 2, 3, 3), plan)
    with pytest.raises(ValueError, match="the weight has shape"):
        fft_conv2d(torch.randn(1, 2, 5, 6), torch.randn(3, 4, 3, 3), plan)
