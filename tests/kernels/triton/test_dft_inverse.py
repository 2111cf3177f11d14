"""The inverse DFT kernel and its epilogues against dense products in float64."""

import math

import pytest
import torch

from dnd_fast.kernels.fft.tiling import FFTConvPlan, Tiling
from dnd_fast.kernels.lora_scatter import LoraScatterTable
from dnd_fast.kernels.reference import CONVOLUTIONS
from dnd_fast.kernels.triton import dft_inverse as module
from dnd_fast.kernels.triton.checks import Config
from dnd_fast.kernels.triton.codegen import SHARED_LIMIT
from dnd_fast.kernels.triton.detokenize import detokenize
from dnd_fast.kernels.triton.dft_inverse import dft_inverse_triton
from dnd_fast.kernels.triton.fft_conv import output_matrix, output_tiling

SMALL = Config(16, 16, 16, num_warps=1, num_stages=1)
DTYPES = [torch.float32, torch.float16]
FIRST, LAST = (0, 1, 2, 3), (0, 2, 3, 1)


def error(found, expected):
    return ((found.double() - expected).norm() / (expected.norm() + 1e-300)).item()


def budget(dtype):
    """Of a result that is rounded once, from operands that are given in the dtype."""
    return 1e-6 if dtype == torch.float32 else 2 * 2**-11 / math.sqrt(3)


def laid_out(x, order):
    """x with its dimensions in memory in another order."""
    return x.permute(order).contiguous().permute(torch.tensor(order).argsort().tolist())


def poisoned(*shape, dtype=torch.float32, order=None, device="cpu"):
    x = torch.full(shape, torch.nan, dtype=dtype, device=device)
    return x if order is None else laid_out(x, order)


def joined(tiles, tiling, like):
    """``[B, C, H, W]`` of ``[P, T C]``."""
    batch, channels, height, width = like.shape
    parts = tiles.view(
        tiling.size_h, tiling.size_w, tiling.tiles_h, tiling.tiles_w, batch, channels
    )
    whole = parts.permute(4, 5, 2, 0, 3, 1)
    return whole.flatten(4, 5).flatten(2, 3)[:, :, :height, :width]


def unfolded(matrix, y, tiling):
    """``[P, T C]`` in float64; the centre of an odd number of positions is even + odd."""
    even, odd = matrix[:, :, : len(y)].double() @ y.double().transpose(0, 1)
    mirrored = (even - odd)[: tiling.size_h * tiling.size_w // 2].flip(0)
    return torch.cat([even + odd, mirrored])


def inverse_dft(matrix, y, tiling, like):
    """``[B, C, H, W]`` in float64."""
    return joined(unfolded(matrix, y, tiling), tiling, like)


CASES = [
    ((1, 1, 1, 1), Tiling(1, 1, 0, 1, 1, 1, 0, 1)),
    ((2, 5, 7, 11), Tiling(2, 4, 0, 4, 3, 4, 0, 4)),
    ((1, 17, 5, 3), Tiling(1, 5, 0, 5, 2, 2, 0, 2)),
    ((1, 12, 6, 4), Tiling(2, 3, 0, 3, 1, 4, 0, 4)),
]


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


@pytest.mark.interpret
@pytest.mark.parametrize("name", ["store", "tanh_bias", "mix", "bias_residual"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", [FIRST, LAST])
@pytest.mark.parametrize(("shape", "tiling"), CASES)
def test_equals_float64(shape, tiling, order, dtype, name):
    torch.manual_seed(0)
    out = poisoned(*shape, dtype=dtype, order=order)
    matrix = (torch.randn(2, tiling.folded, 24) / 4).to(dtype)
    y = torch.randn(19, 2, tiling.columns(out)).to(dtype)
    bias, other = torch.randn(shape[1:]).to(dtype), torch.randn(shape).to(dtype)
    product = 1.5 * inverse_dft(matrix, y, tiling, out)
    operands, _ = epilogues(product, laid_out(bias[None], order)[0], laid_out(other, order))[name]
    _, expected = epilogues(product, bias.double(), other.double())[name]
    amax = torch.zeros(1)
    dft_inverse_triton(
        y, matrix, tiling, out, scale=1.5, epilogue=name, amax=amax, config=SMALL, **operands
    )
    assert error(out, expected) <= budget(dtype)
    assert amax.item() == out.abs().max().item()


@pytest.mark.interpret
def test_other_may_be_the_output_or_be_left_out():
    torch.manual_seed(0)
    tiling = Tiling(1, 3, 0, 3, 2, 3, 0, 3)  # whose centre must not be mixed twice
    matrix, y = torch.randn(2, 5, 5), torch.randn(5, 2, 2 * 2 * 4)
    out = torch.randn(2, 4, 3, 5)
    product = inverse_dft(matrix, y, tiling, out)
    expected = (product + out.double()) / 3
    dft_inverse_triton(y, matrix, tiling, out, epilogue="mix", other=out, config=SMALL)
    assert error(out, expected) <= 1e-6
    bias = torch.randn(4)
    dft_inverse_triton(y, matrix, tiling, out, epilogue="bias_residual", bias=bias, config=SMALL)
    assert error(out, product + bias.double()[:, None, None]) <= 1e-6


@pytest.mark.interpret
@pytest.mark.parametrize("order", [FIRST, LAST])
@pytest.mark.parametrize(("shape", "tiling"), CASES)
def test_statistics_of_what_is_stored(shape, tiling, order, check_stats):
    """Rounded, over tiles that jut out and blocks of positions; the mean is far from zero."""
    torch.manual_seed(0)
    out = poisoned(*shape, dtype=torch.float16, order=order)
    matrix, y = torch.randn(2, tiling.folded, 16), torch.randn(16, 2, tiling.columns(out))
    stats = poisoned(*shape[:2]), poisoned(*shape[:2])
    options = {"epilogue": "bias_residual", "bias": torch.full(shape[1:2], 300.0)}
    dft_inverse_triton(y.half(), matrix.half(), tiling, out, stats=stats, config=SMALL, **options)
    check_stats(stats, out)


@pytest.mark.interpret
@pytest.mark.parametrize("fitted", [True, False])
def test_tokens_are_written_into_lora_tensors(fitted_layout, fitted):
    torch.manual_seed(0)
    if not fitted:
        fitted_layout.mean = fitted_layout.std = None
    scatter, tiling = fitted_layout.targets(torch.device("cpu")), Tiling(1, 3, 0, 3, 2, 4, 0, 4)
    tokens = torch.randn(2, fitted_layout.num_tokens, *fitted_layout.token_shape)
    matrix, y = torch.randn(2, 6, 16), torch.randn(16, 2, tiling.columns(tokens))
    bias, out = torch.randn(tokens.shape[1]), poisoned(2, scatter.elements)
    options = {"epilogue": "bias_residual", "bias": bias, "other": tokens, "config": SMALL}
    dft_inverse_triton(y, matrix, tiling, out, scatter=scatter, **options)
    exact = inverse_dft(matrix, y, tiling, tokens) + bias[:, None, None] + tokens
    for name, expected in fitted_layout.detokenize(exact).items():
        assert error(scatter.views(out)[name], expected) <= 1e-6


@pytest.mark.interpret
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matrix": torch.ones(2, 4, 4)}, "2, 5, bins"),
        ({"matrix": torch.ones(2, 4, 5).mT}, "contiguous"),
        ({"y": torch.ones(4, 2, 6).half()}, "same dtype"),
        ({"y": torch.ones(5, 2, 6)}, "5 bins"),
        ({"y": torch.ones(6, 2, 4).mT}, "contiguous"),
        ({"epilogue": "tanh_bias"}, "bias has shape None"),
        ({"epilogue": "mix", "other": torch.ones(2, 3, 3, 1)}, "other has shape"),
        ({"epilogue": "mix", "other": torch.ones(2, 3, 3, 3).mT}, "other has strides"),
        ({"bias": torch.ones(3)}, "bias has shape"),
    ],
)
def test_refuses_what_does_not_fit(options, message):
    whole = {"y": torch.ones(4, 2, 6), "matrix": torch.ones(2, 5, 4), "out": torch.ones(2, 3, 3, 3)}
    with pytest.raises(ValueError, match=message):
        dft_inverse_triton(tiling=Tiling(1, 3, 0, 3, 1, 3, 0, 3), **(whole | options))


# B, N, L, C of a block's input, the order that makes it [B, C, H, W], C', DFT and kernel: those of
# the recipes, aligned and not.
LAUNCHES = {
    "layer-wise, 7B": ((1, 2048, 16, 512), (0, 1, 2, 3), 4928, (21, 18), 11),
    "path A, 7B": ((1, 2048, 32, 400), (0, 3, 2, 1), 512, (37, 26), 11),
    "path B, 7B": ((1, 2048, 32, 400), (0, 2, 1, 3), 16, (26, 26), 11),
    "path A, odd": ((2, 37, 125, 300), (0, 3, 2, 1), 25, (26, 26), 9),
    "layer-wise, odd": ((2, 37, 125, 300), (0, 1, 2, 3), 61, (26, 26), 9),
    "path B, odd": ((2, 37, 125, 300), (0, 2, 1, 3), 50, (26, 26), 9),
}


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def folded_matrix(rows, columns, dtype):
    return meta(2, rows, -(-columns // 16) * 16, dtype=dtype)


def launch(name, dtype, epilogue, config=None, written="image"):
    """The inverse DFT as a convolution does it, on tensors that need not exist."""
    size, order, channels_out, n, kernel = LAUNCHES[name]
    shape = meta(*size).permute(order).shape
    memory = (shape[0], shape[2], shape[3], channels_out)
    out = meta(*memory, dtype=dtype).permute(0, 3, 1, 2)
    if order[3] == 3:
        out = meta(*out.shape, dtype=dtype)
    plan = FFTConvPlan.make(*shape[2:], kernel, *n)
    tiling = output_tiling(plan)
    wide = torch.float32 if dtype == torch.float32 else torch.float16
    matrix = folded_matrix(tiling.folded, plan.bins, wide)
    y = meta(plan.bins, 2, tiling.columns(out), dtype=wide)
    bias = {"tanh_bias": out[0], "bias_residual": meta(channels_out)}.get(epilogue)
    other = out if epilogue in ("mix", "bias_residual") and written != "tokens" else None
    options = {"epilogue": epilogue, "bias": bias, "other": other, "config": config}
    if written == "stats":
        options["stats"] = meta(*out.shape[:2]), meta(*out.shape[:2])
    if written == "tokens":
        scales = meta(*out.shape[1:]), meta(out.shape[1], 1, 1)
        table = torch.empty(out.shape[1], 4, dtype=torch.int32, device="meta")
        shapes = {"x.lora_A.weight": (out.shape[2], out.shape[1] * out.shape[3])}
        options["scatter"] = LoraScatterTable(shapes, *out.shape[2:], table, *scales)
        out = meta(1, options["scatter"].elements)
    dft_inverse_triton(y, matrix, tiling, out, bound=meta(1), amax=meta(1), **options)


@pytest.mark.codegen
@pytest.mark.parametrize("capability", list(SHARED_LIMIT))
@pytest.mark.parametrize(
    ("name", "dtype", "epilogue"),
    [
        ("layer-wise, 7B", torch.float16, "bias_residual"),
        ("path A, 7B", torch.bfloat16, "mix"),
        ("path B, 7B", torch.float32, "store"),
        ("path A, odd", torch.float16, "mix"),
        ("path B, odd", torch.float16, "tanh_bias"),
        ("layer-wise, odd", torch.float32, "bias_residual"),
    ],
)
def test_compiles_without_spills(name, dtype, epilogue, capability, compiled):
    compiled(
        f"{name}, {dtype}, {epilogue}",
        module,
        "_dft_inverse_kernel",
        capability,
        lambda: launch(name, dtype, epilogue),
        dtype,
    )


@pytest.mark.codegen
@pytest.mark.parametrize("capability", list(SHARED_LIMIT))
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("written", ["stats", "tokens"])
def test_layer_wise_epilogues_compile_without_spills(written, dtype, capability, compiled):
    candidates = module.SINGLE if dtype == torch.float32 else module.HALF
    for config in candidates:
        compiled(
            f"layer-wise, 7B, {written}, {config}",
            module,
            "_dft_inverse_kernel",
            capability,
            lambda c=config: launch("layer-wise, 7B", dtype, "bias_residual", c, written),
            dtype,
        )


@pytest.mark.codegen
@pytest.mark.parametrize("capability", list(SHARED_LIMIT))
def test_candidates_compile_without_spills(capability, compiled):
    """Where addresses take the most registers."""
    for config in module.HALF[1:]:
        compiled(
            f"path B, odd, {config}",
            module,
            "_dft_inverse_kernel",
            capability,
            lambda c=config: launch("path B, odd", torch.float16, "mix", c),
            torch.float16,
        )


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_largest_convolutions(sized, name):
    """Some columns of it; all must be written."""
    out, options = sized.output(name)
    plan = sized.plans[name].fft_plan
    tiling, matrix = output_tiling(plan), output_matrix(plan, torch.float16, sized.device)
    y = torch.randn(plan.bins, 2, tiling.columns(out), device=sized.device).half()
    amax = torch.zeros(1, device=sized.device)
    dft_inverse_triton(y, matrix, tiling, out, amax=amax, **options)
    assert amax.item() == out.abs().max().item()  # not so if anything is still NaN
    columns = torch.randint(y.shape[2], (64,), device=sized.device)
    index, inside = sized.positions(tiling, out.shape, columns)
    product = unfolded(matrix, y[:, :, columns], tiling)
    expected = sized.finish(product, options, index)[inside]
    rounded = expected.to(out.dtype)
    assert error(out[index][inside], expected) <= 2 * error(rounded, expected) + 1e-6


def test_statistics_and_tokens_of_the_largest_convolution(sized, check_stats):
    """The latter as the kernel that reads tokens writes them, but for the tokens' rounding."""
    image, options = sized.output("layerwise")
    scatter = sized.scatter()
    found, expected = poisoned(2, scatter.elements, device=sized.device).split(1)
    stats = poisoned(2, *image.shape[:2], device=sized.device).unbind()
    plan = sized.plans["layerwise"].fft_plan
    tiling, matrix = output_tiling(plan), output_matrix(plan, torch.float16, sized.device)
    y = torch.randn(plan.bins, 2, tiling.columns(image), device=sized.device).half()
    dft_inverse_triton(y, matrix, tiling, image, stats=stats, **options)
    dft_inverse_triton(y, matrix, tiling, found, scatter=scatter, **options)
    check_stats(stats, image)
    detokenize(image, scatter, expected)
    assert error(found, expected.double()) <= torch.finfo(sized.dtype).eps
