"""The direct convolution kernel against conv2d in float64."""

import itertools

import pytest
import torch
import triton
from torch.nn.functional import conv2d, layer_norm

from dnd_fast.kernels.lora_scatter import LoraScatterTable
from dnd_fast.kernels.reference import CONVOLUTIONS
from dnd_fast.kernels.triton import direct_conv as module
from dnd_fast.kernels.triton.checks import LayerNorm
from dnd_fast.kernels.triton.codegen import SHARED_LIMIT
from dnd_fast.kernels.triton.detokenize import detokenize
from dnd_fast.kernels.triton.direct_conv import DirectConvConfig, direct_conv2d, pack_weight

SMALL = DirectConvConfig(16, columns=8, outputs=16, inputs=16, num_warps=1, num_stages=1)
ROUNDING = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}
LAYOUTS = {"channels first": (0, 1, 2, 3), "channels last": (0, 2, 3, 1), "odd": (3, 2, 0, 1)}


def error(found, expected):
    return ((found.double() - expected).norm() / (expected.norm() + 1e-300)).item()


def laid_out(x, order):
    """x with its dimensions in memory in another order."""
    return x.permute(order).contiguous().permute(torch.tensor(order).argsort().tolist())


def poisoned(x, channels, order=(0, 1, 2, 3)):
    shape = (x.shape[0], channels, *x.shape[2:])
    return laid_out(torch.full(shape, torch.nan, dtype=x.dtype, device=x.device), order)


def make(shape, channels_out, kernel, dtype, device="cpu"):
    torch.manual_seed(0)
    x = torch.randn(shape, device=device).to(dtype)
    weight = torch.randn(channels_out, shape[1], kernel, kernel, device=device) / kernel
    return x, weight.to(dtype)


def exact(x, weight):
    return conv2d(x.double(), weight.double(), padding=weight.shape[-1] // 2)


# B, C, H, W, C', k: primes, ones, channels counted with the taps and not, several blocks of each.
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 1, 5, 7, 1, 3),
    (1, 3, 3, 11, 2, 5),
    (1, 15, 2, 3, 17, 3),
    (2, 16, 3, 5, 16, 1),
    (1, 17, 7, 2, 5, 3),
    (1, 37, 1, 13, 33, 3),
]


@pytest.mark.interpret
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("b", "c", "h", "w", "c_out", "k"), SHAPES)
def test_equals_conv2d(b, c, h, w, c_out, k, dtype):
    x, weight = make((b, c, h, w), c_out, k, dtype)
    out = poisoned(x, c_out)
    direct_conv2d(x, pack_weight(weight), out, k, config=SMALL)
    assert error(out, exact(x, weight)) <= ROUNDING[dtype]


@pytest.mark.interpret
@pytest.mark.parametrize(("before", "after"), list(itertools.product(LAYOUTS.values(), repeat=2)))
@pytest.mark.parametrize("channels", [3, 18])
def test_any_strides(before, after, channels):
    x, weight = make((2, channels, 3, 5), 3, 3, torch.float32)
    out = poisoned(x, 3, after)
    direct_conv2d(laid_out(x, before), pack_weight(weight), out, 3, config=SMALL)
    assert error(out, exact(x, weight)) <= 1e-6


@pytest.mark.interpret
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_default_blocks(dtype):
    x, weight = make((1, 5, 9, 6), 7, 3, dtype)
    out = poisoned(x, 7)
    direct_conv2d(x, pack_weight(weight), out, 3)
    assert error(out, exact(x, weight)) <= ROUNDING[dtype]


@pytest.mark.interpret
def test_the_rotated_kernel_gives_the_input_gradient():
    x, weight = make((2, 3, 5, 7), 4, 3, torch.float32)
    leaf = x.double().requires_grad_()
    y = conv2d(leaf, weight.double(), padding=1)
    dy = torch.randn(y.shape)
    (expected,) = torch.autograd.grad(y, leaf, dy.double())
    dx = torch.full_like(x, torch.nan)
    direct_conv2d(dy, pack_weight(weight.transpose(0, 1).flip(2, 3)), dx, 3, config=SMALL)
    assert error(dx, expected) <= 1e-6


# The two views of [B, N, L, C] that a block normalises: with C, or L, as channels.
@pytest.mark.interpret
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("order", [(0, 3, 2, 1), (0, 2, 1, 3)])
@pytest.mark.parametrize("size", [(5, 3, 7), (3, 17, 18)])
def test_layer_norm_on_load(size, order, dtype):
    torch.manual_seed(0)
    x = (torch.randn(2, *size) * 3 + 1).to(dtype)
    norm_weight, norm_bias = torch.randn(2, *size[1:]).to(dtype)
    normed = layer_norm(x.double(), size[1:], norm_weight.double(), norm_bias.double())
    mean, rstd = x.float().mean((2, 3)), (x.float().var((2, 3), correction=0) + 1e-5).rsqrt()
    view = x.permute(order)
    weight = torch.randn(4, view.shape[1], 3, 3).to(dtype)
    out = poisoned(view, 4)
    norm = LayerNorm(mean, rstd, norm_weight, norm_bias, order)
    direct_conv2d(view, pack_weight(weight), out, 3, norm=norm, config=SMALL)
    expected = exact(normed.permute(order), weight)
    rounded = exact(normed.permute(order).to(dtype), weight).to(dtype)
    assert error(out, expected) <= 2 * error(rounded, expected) + 1e-6


def compare_epilogues(x, weight, bound, **options):
    """Every epilogue on strided operands; amax; "mix" in place."""
    k, channels = weight.shape[-1], weight.shape[0]
    y = exact(x, weight)
    other = torch.randn(y.permute(0, 2, 3, 1).shape, device=x.device).to(x.dtype)
    other = other.permute(0, 3, 1, 2)
    # [L', C'] for a view of height L' and width N.
    bias = torch.randn(y.shape[2], channels, device=x.device).T[:, :, None].expand(y.shape[1:])
    each = torch.randn(channels, device=x.device)
    for name, operands, expected in (
        ("store", {}, y),
        ("tanh_bias", {"bias": bias}, y.tanh() + bias.double()),
        ("mix", {"other": other}, (y + other.double()) / 3),
        ("bias_residual", {"bias": each}, y + each.double()[:, None, None]),
        (
            "bias_residual",
            {"bias": each, "other": other},
            y + each.double()[:, None, None] + other.double(),
        ),
    ):
        out = poisoned(x, channels, (0, 2, 3, 1))
        amax = torch.zeros(1, device=x.device)
        direct_conv2d(
            x, pack_weight(weight), out, k, epilogue=name, amax=amax, **operands, **options
        )
        assert error(out, expected) <= bound, name
        assert amax.item() == out.float().abs().max().item(), name
    expected = (y + other.double()) / 3
    direct_conv2d(x, pack_weight(weight), other, k, epilogue="mix", other=other, **options)
    assert error(other, expected) <= bound


@pytest.mark.interpret
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_epilogues(dtype):
    compare_epilogues(*make((2, 3, 5, 7), 5, 3, dtype), ROUNDING[dtype], config=SMALL)


@pytest.mark.interpret
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("order", list(LAYOUTS.values()))
def test_statistics_of_what_is_stored(order, dtype, check_stats):
    """Over rectangles that jut out and two blocks of channels; the mean is far from zero."""
    x, weight = make((2, 3, 5, 11), 19, 3, dtype)
    out, stats = poisoned(x, 19, order), torch.full((2, 2, 19), torch.nan).unbind()
    options = {"epilogue": "bias_residual", "bias": torch.full((19,), 300.0), "config": SMALL}
    direct_conv2d(x, pack_weight(weight), out, 3, stats=stats, **options)
    check_stats(stats, out)


@pytest.mark.interpret
def test_tokens_are_written_into_lora_tensors(fitted_layout):
    scatter = fitted_layout.targets(torch.device("cpu"))
    x, weight = make((2, 4, *fitted_layout.token_shape), fitted_layout.num_tokens, 3, torch.float32)
    bias, out = torch.randn(len(weight)), torch.full((2, scatter.elements), torch.nan)
    options = {"epilogue": "bias_residual", "bias": bias, "config": SMALL}
    direct_conv2d(x, pack_weight(weight), out, 3, scatter=scatter, **options)
    expected = fitted_layout.detokenize(exact(x, weight) + bias[:, None, None])
    for name, tensor in expected.items():
        assert error(scatter.views(out)[name], tensor) <= 1e-6
    with pytest.raises(ValueError, match="out has shape"):
        direct_conv2d(x[..., 1:], pack_weight(weight), out, 3, scatter=scatter, **options)


@pytest.mark.interpret
def test_an_empty_batch():
    x, weight = make((0, 3, 5, 7), 5, 3, torch.float32)
    direct_conv2d(x, pack_weight(weight), torch.empty(0, 5, 5, 7), 3)


@pytest.mark.interpret
def test_operands_that_do_not_fit_are_refused():
    x, weight = make((2, 3, 5, 7), 5, 3, torch.float32)
    packed, out = pack_weight(weight), poisoned(x, 5)
    with pytest.raises(ValueError, match="packed has shape"):
        direct_conv2d(x, packed, out, 5)
    with pytest.raises(ValueError, match="must be odd"):
        direct_conv2d(x, packed, out, 2)
    with pytest.raises(ValueError, match="out has shape"):
        direct_conv2d(x, packed, out[:, 1:], 3)
    with pytest.raises(ValueError, match="bias has shape None"):
        direct_conv2d(x, packed, out, 3, epilogue="tanh_bias")
    with pytest.raises(ValueError, match="other has shape"):
        direct_conv2d(x, packed, out, 3, other=out)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.skipif(triton.knobs.runtime.interpret, reason="the interpreter needs none")
def test_without_a_gpu_it_says_so():
    x, weight = make((1, 3, 5, 7), 5, 3, torch.float32)
    with pytest.raises(ValueError, match="need an NVIDIA GPU"):
        direct_conv2d(x, pack_weight(weight), poisoned(x, 5), 3)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("shape", [(2, 16, 129, 257), (2, 128, 18, 67), (2, 1, 64, 64)])
@pytest.mark.parametrize("channels_out", [1, 25, 130])
def test_on_the_gpu(shape, channels_out, dtype):
    x, weight = make(shape, channels_out, 9, dtype, "cuda")
    expected = exact(x, weight)
    for before, after in itertools.product(LAYOUTS.values(), repeat=2):
        out = poisoned(x, channels_out, after)
        direct_conv2d(laid_out(x, before), pack_weight(weight), out, 9)
        assert error(out, expected) <= max(ROUNDING[dtype], 1e-5)  # sums of 10,000


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_epilogues_on_the_gpu(dtype):
    compare_epilogues(*make((2, 13, 31, 65), 40, 5, dtype, "cuda"), ROUNDING[dtype])


# B, N, L, C as a block keeps it, the order that makes it [B, C, H, W], C', epilogue.
LAUNCHES = {
    "path B of block 6, normalised": ((1, 2048, 32, 400), (0, 2, 1, 3), 16, "store"),
    "path A of a small decoder, normalised": ((1, 64, 18, 13), (0, 3, 2, 1), 64, "store"),
    "channels last": ((1, 500, 16, 64), (0, 3, 1, 2), 64, "tanh_bias"),
    "channels first": ((1, 24, 500, 384), (0, 1, 2, 3), 64, "mix"),
    "three channels": ((1, 3, 101, 103), (0, 1, 2, 3), 3, "bias_residual"),
    "statistics": ((1, 24, 32, 400), (0, 1, 2, 3), 24, "bias_residual"),
    "tokens": ((1, 24, 16, 512), (0, 1, 2, 3), 24, "bias_residual"),
}


def launch(name, dtype, config):
    """As a block does it, on tensors that need not exist."""
    size, order, channels_out, epilogue = LAUNCHES[name]
    whole = torch.empty(size, dtype=dtype, device="meta")
    x = whole.permute(order)
    weight = torch.empty(channels_out, x.shape[1], 11, 11, dtype=dtype, device="meta")
    out = poisoned(x, channels_out, (0, 2, 3, 1) if x.stride(1) == 1 else (0, 1, 2, 3))
    other, norm = out if epilogue in ("mix", "bias_residual") else None, None
    bias = {"tanh_bias": out[0], "bias_residual": out[0, :, 0, 0].contiguous()}.get(epilogue)
    stats = scatter = None
    if "statistics" in name:
        stats = torch.empty(2, *out.shape[:2], device="meta").unbind()
    if "tokens" in name:
        _, count, rank, chunk = out.shape
        scales = (
            torch.empty(count, rank, chunk, device="meta"),
            torch.empty(count, 1, 1, device="meta"),
        )
        table = torch.empty(count, 4, dtype=torch.int32, device="meta")
        scatter = LoraScatterTable(
            {"x.lora_A.weight": (rank, count * chunk)}, rank, chunk, table, *scales
        )
        out = torch.empty(1, scatter.elements, device="meta")
    if "normalised" in name:
        moments = torch.empty(size[:2], device="meta")
        norm = LayerNorm(moments, moments, whole[0, 0], whole[0, 0], order)
    direct_conv2d(
        x,
        pack_weight(weight),
        out,
        11,
        norm=norm,
        epilogue=epilogue,
        bias=bias,
        other=other,
        amax=torch.empty(1, device="meta"),
        stats=stats,
        scatter=scatter,
        config=config,
    )


@pytest.mark.codegen
@pytest.mark.parametrize("capability", list(SHARED_LIMIT))
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", list(LAUNCHES))
def test_compiles_without_spills(name, dtype, capability, compiled):
    """Every candidate where addresses take the most registers, elsewhere the default."""
    candidates = module.SINGLE if dtype == torch.float32 else module.HALF
    for config in candidates if name.startswith("path A") else candidates[:1]:
        compiled(
            f"{name}, {config}",
            module,
            "_direct_conv_kernel",
            capability,
            lambda c=config: launch(name, dtype, c),
            dtype,
        )


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_largest_convolutions(sized, name):
    """Some output channels of it; all must be written."""
    x, norm, normed = sized.image(name)
    out, options = sized.output(name)
    shape = sized.plans[name].shape
    sizes = shape.channels_out, shape.channels_in, shape.kernel, shape.kernel
    weight = (torch.randn(sizes, device=sized.device) / shape.kernel).to(sized.dtype)
    amax = torch.zeros(1, device=sized.device)
    direct_conv2d(x, pack_weight(weight), out, shape.kernel, norm=norm, amax=amax, **options)
    assert amax.item() == out.abs().max().item()  # not so if anything is still NaN
    some = torch.randint(len(weight), (4,), device=sized.device)
    index = torch.meshgrid(
        torch.zeros(1, dtype=torch.int64, device=sized.device),
        some,
        *(torch.arange(size, device=sized.device) for size in out.shape[2:]),
        indexing="ij",
    )
    expected = sized.finish(exact(normed, weight[some]), options, index)
    rounded = sized.finish(exact(normed.to(sized.dtype), weight[some]), options, index)
    plain = rounded.to(sized.dtype)
    assert error(out[:, some], expected) <= 2 * error(plain, expected) + 1e-5


def test_statistics_and_tokens_of_the_largest_convolution(sized, check_stats):
    """The latter as the kernel that reads tokens writes them, but for the tokens' rounding."""
    image, options = sized.output("layerwise")
    scatter = sized.scatter()
    found, expected = torch.full((2, scatter.elements), torch.nan, device=sized.device).split(1)
    stats = torch.full((2, *image.shape[:2]), torch.nan, device=sized.device).unbind()
    x, *_ = sized.image("layerwise")
    kernel = sized.plans["layerwise"].shape.kernel
    sizes = image.shape[1], x.shape[1], kernel, kernel
    packed = pack_weight((torch.randn(sizes, device=sized.device) / kernel).to(sized.dtype))
    direct_conv2d(x, packed, image, kernel, stats=stats, **options)
    direct_conv2d(x, packed, found, kernel, scatter=scatter, **options)
    check_stats(stats, image)
    detokenize(image, scatter, expected)
    assert error(found, expected.double()) <= torch.finfo(sized.dtype).eps
