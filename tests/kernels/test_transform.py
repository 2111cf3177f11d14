"""The transform kernels against folds and dense products in float64, and in a convolution."""

import math

import pytest
import torch
from torch.nn.functional import conv2d, layer_norm, pad

from dnd_fast.kernels import transform
from dnd_fast.kernels.codegen import SHARED_LIMIT, compile_launch
from dnd_fast.kernels.layer_norm_stats import layer_norm_stats
from dnd_fast.kernels.tiles import FFTConvPlan
from dnd_fast.kernels.transform import Config, LayerNorm, Tiling, analyze, synthesize
from dnd_fast.kernels.triton_conv import (
    PackedWeight,
    Workspace,
    convolve,
    input_tiling,
    output_tiling,
)

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


def windows(x, tiling):
    """``[P, T C]`` of ``[B, C, H, W]``."""
    far = 64
    padded = pad(x, (far, far, far, far))
    tiles = []
    for t1 in range(tiling.tiles_h):
        for t2 in range(tiling.tiles_w):
            top = far + t1 * tiling.step_h - tiling.before_h
            left = far + t2 * tiling.step_w - tiling.before_w
            tiles.append(padded[:, :, top : top + tiling.size_h, left : left + tiling.size_w])
    return torch.stack(tiles).flatten(3).permute(3, 0, 1, 2).flatten(1)


def joined(tiles, tiling, like):
    """``[B, C, H, W]`` of ``[P, T C]``."""
    batch, channels, height, width = like.shape
    parts = tiles.view(
        tiling.size_h, tiling.size_w, tiling.tiles_h, tiling.tiles_w, batch, channels
    )
    whole = parts.permute(4, 5, 2, 0, 3, 1)
    return whole.flatten(4, 5).flatten(2, 3)[:, :, :height, :width]


def analysis(matrix, values, planes, operand=torch.float64):
    """``[F, planes, T C]`` in float64; folded windows are rounded to a dtype first."""
    mirrored, half = values.flip(0), (len(values) + 1) // 2
    folded = torch.stack([values + mirrored, values - mirrored])[:, :half].to(operand)
    real, imaginary = matrix[:, :, :half].double() @ folded.double()
    return torch.stack([-imaginary, real, imaginary][3 - planes :], dim=1)


def synthesis(matrix, y, tiling, like):
    """``[B, C, H, W]`` in float64; the centre of an odd number of positions is even + odd."""
    even, odd = matrix[:, :, : len(y)].double() @ y.double().transpose(0, 1)
    mirrored = (even - odd)[: tiling.size_h * tiling.size_w // 2].flip(0)
    return joined(torch.cat([even + odd, mirrored]), tiling, like)


# B, C, H, W and a tiling: primes, ones, tiles that overlap, that jut out, a window larger than a
# block; even and odd numbers of positions.
ANALYSES = [
    ((1, 1, 1, 1), Tiling(1, 1, 0, 1, 1, 1, 0, 1)),
    ((2, 5, 7, 11), Tiling(2, 4, 1, 6, 3, 5, 2, 7)),
    ((1, 17, 5, 3), Tiling(1, 5, 0, 5, 2, 2, 1, 4)),
    ((1, 12, 6, 4), Tiling(2, 3, 1, 5, 1, 4, 0, 5)),
    ((3, 3, 13, 2), Tiling(3, 5, 2, 9, 1, 2, 0, 2)),
]


@pytest.mark.interpret
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("order", "planes"), [(FIRST, 3), (LAST, 3), ((3, 1, 0, 2), 2)])
@pytest.mark.parametrize(("shape", "tiling"), ANALYSES)
def test_analyze(shape, tiling, order, planes, dtype):
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    matrix = torch.randn(2, 19, tiling.folded + 3).to(dtype)  # three columns too many
    out = poisoned(19, planes, tiling.columns(x), dtype=dtype)
    analyze(laid_out(x, order), matrix, tiling, out, planes=planes, config=SMALL)
    values = windows(x.double(), tiling)
    expected = analysis(matrix, values, planes)
    rounded = analysis(matrix, values, planes, dtype).to(dtype)
    assert error(out, expected) <= max(1e-6, 2 * error(rounded, expected))


@pytest.mark.interpret
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", [(0, 3, 2, 1), (0, 2, 1, 3)])
def test_analyze_normalises_inside_alone(order, dtype):
    torch.manual_seed(0)
    x = (3 + 2 * torch.randn(2, 5, 7, 3)).to(dtype)  # [B, N, L, C]
    affine = [torch.randn(7, 3).to(dtype) for _ in range(2)]
    mean, rstd = layer_norm_stats(x)
    tiling = Tiling(2, 3, 1, 6, 2, 2, 2, 5)
    matrix = torch.randn(2, 8, 15).to(dtype)
    view = x.permute(order)
    out = poisoned(8, 2, tiling.columns(view), dtype=dtype)
    norm = LayerNorm(mean, rstd, *affine, order)
    analyze(view, matrix, tiling, out, norm=norm, config=SMALL)
    normed = layer_norm(x.double(), (7, 3), *(part.double() for part in affine)).permute(order)
    expected = analysis(matrix, windows(normed, tiling), 2)
    rounded = analysis(matrix, windows(normed, tiling), 2, dtype).to(dtype)
    assert error(out, expected) <= max(1e-6, 2 * error(rounded, expected))


@pytest.mark.interpret
@pytest.mark.parametrize("bound", [0.0, 1e-42, 1e-20, 0.03, 1.0, 1.5, 3.99, 4.0, 6e4, 1e20])
def test_the_scale_is_a_power_of_two_that_prevents_overflow(bound):
    sqrt_points = 16.5
    x, half = torch.tensor([[[[1.0]]]]), torch.full((2, 1, 1), 0.5)
    tiling, out = Tiling(1, 1, 0, 1, 1, 1, 0, 1), poisoned(1, 2, 1)
    options = {"bound": torch.tensor(bound), "sqrt_points": sqrt_points, "config": SMALL}
    analyze(x, half, tiling, out, **options)
    expected = 2.0 ** math.floor(math.log2(2**14 / (bound * sqrt_points))) if bound else 1.0
    assert out.flatten().tolist() == [min(max(expected, 2.0**-100), 2.0**100), 0.0]
    back = poisoned(1, 1, 1, 1)
    synthesize(out, half, tiling, back, gain=6.0, **options)
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
    options = {"bound": torch.tensor([6e4]), "sqrt_points": float(size), "config": SMALL}
    analyze(x, into, tiling, out, **options)
    onto = torch.full((2, tiling.folded, 2), 1 / size / 2).half()
    synthesize(out, onto, tiling, back, **options)
    assert error(back, x.double()) <= 2**-10


SYNTHESES = [
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
@pytest.mark.parametrize(("shape", "tiling"), SYNTHESES)
def test_synthesize(shape, tiling, order, dtype, name):
    torch.manual_seed(0)
    out = poisoned(*shape, dtype=dtype, order=order)
    matrix = (torch.randn(2, tiling.folded, 24) / 4).to(dtype)
    y = torch.randn(19, 2, tiling.columns(out)).to(dtype)
    bias, other = torch.randn(shape[1:]).to(dtype), torch.randn(shape).to(dtype)
    product = 1.5 * synthesis(matrix, y, tiling, out)
    operands, _ = epilogues(product, laid_out(bias[None], order)[0], laid_out(other, order))[name]
    _, expected = epilogues(product, bias.double(), other.double())[name]
    amax = torch.zeros(1)
    synthesize(y, matrix, tiling, out, gain=1.5, epilogue=name, amax=amax, config=SMALL, **operands)
    assert error(out, expected) <= budget(dtype)
    assert amax.item() == out.abs().max().item()


@pytest.mark.interpret
def test_other_may_be_the_output_or_be_left_out():
    torch.manual_seed(0)
    tiling = Tiling(1, 3, 0, 3, 2, 3, 0, 3)  # whose centre must not be mixed twice
    matrix, y = torch.randn(2, 5, 5), torch.randn(5, 2, 2 * 2 * 4)
    out = torch.randn(2, 4, 3, 5)
    product = synthesis(matrix, y, tiling, out)
    expected = (product + out.double()) / 3
    synthesize(y, matrix, tiling, out, epilogue="mix", other=out, config=SMALL)
    assert error(out, expected) <= 1e-6
    bias = torch.randn(4)
    synthesize(y, matrix, tiling, out, epilogue="bias_residual", bias=bias, config=SMALL)
    assert error(out, product + bias.double()[:, None, None]) <= 1e-6


@pytest.mark.interpret
def test_tanh_is_accurate_everywhere():
    size = torch.logspace(-30, 30, 200, base=2)
    y = torch.cat([-size, size, torch.linspace(-2, 2, 99), torch.zeros(1)])
    y = torch.stack([y, torch.zeros_like(y)])[None]
    out, bias = poisoned(1, y.shape[2], 1, 1), torch.zeros(y.shape[2], 1, 1)
    wide = Config(16, 512, 16, num_warps=1, num_stages=1)
    tiling, one = Tiling(1, 1, 0, 1, 1, 1, 0, 1), torch.ones(2, 1, 1)
    synthesize(y, one, tiling, out, epilogue="tanh_bias", bias=bias, config=wide)
    expected = y[0, 0].double().tanh()
    assert ((out.flatten() - expected).abs() <= 4e-7 * expected.abs()).all()


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
    bias, other = (torch.randn(out.shape, device=device).to(dtype) for _ in range(2))
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


@pytest.mark.interpret
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matrix": torch.ones(2, 4, 4)}, "5 or more"),
        ({"matrix": torch.ones(1, 4, 9)}, "5 or more"),
        ({"matrix": torch.ones(2, 9, 4).mT}, "contiguous"),
        ({"out": torch.ones(4, 2, 5)}, "48 elements"),
        ({"planes": 3}, "72 elements"),
    ],
)
def test_analyze_refuses_what_does_not_fit(options, message):
    whole = {"matrix": torch.ones(2, 4, 9), "out": torch.ones(4, 2, 6)} | options
    with pytest.raises(ValueError, match=message):
        analyze(torch.ones(2, 3, 3, 3), tiling=Tiling(1, 3, 0, 3, 1, 3, 0, 3), **whole)


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
        ({"bias": torch.ones(3)}, "bias has shape"),
    ],
)
def test_synthesize_refuses_what_does_not_fit(options, message):
    whole = {"y": torch.ones(4, 2, 6), "matrix": torch.ones(2, 5, 4), "out": torch.ones(2, 3, 3, 3)}
    with pytest.raises(ValueError, match=message):
        synthesize(tiling=Tiling(1, 3, 0, 3, 1, 3, 0, 3), **(whole | options))


def test_says_that_it_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(transform.triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match="NVIDIA GPU"):
        analyze(
            torch.ones(1, 1, 1, 1),
            torch.ones(2, 1, 1),
            Tiling(1, 1, 0, 1, 1, 1, 0, 1),
            torch.ones(1, 2, 1),
        )


# B, N, L, C of a block's input, the order that makes it [B, C, H, W], C', DFT and kernel: those of
# the recipes, aligned and not.
LAUNCHES = {
    "layer-wise, 7B": ((1, 2048, 16, 512), (0, 1, 2, 3), 4928, (21, 18), 11),
    "path A, 7B": ((1, 2048, 32, 400), (0, 3, 2, 1), 512, (37, 26), 11),
    "path B, 7B": ((1, 2048, 32, 400), (0, 2, 1, 3), 16, (26, 26), 11),
    "path A, odd": ((2, 37, 125, 300), (0, 3, 2, 1), 25, (26, 26), 9),
    "path B, odd": ((2, 37, 125, 300), (0, 2, 1, 3), 50, (26, 26), 9),
}


def launched(monkeypatch, kernel, call):
    """What a call launches a kernel with, on tensors that need not exist."""
    found = {}

    class Recorder:
        def __getitem__(self, grid):
            return found.update

    with monkeypatch.context() as patch:
        patch.setattr(transform, "require_gpu", lambda *tensors: None)
        patch.setattr(transform, kernel, Recorder())
        call()
    return found


def compile_and_check(monkeypatch, name, kernel, capability, call):
    arguments = launched(monkeypatch, kernel, call)
    found = compile_launch(getattr(transform, kernel), arguments, capability)
    print(f"\n{kernel}, {name}, sm_{capability}: {found}")
    assert found["spills"] == 0
    assert found["shared"] <= SHARED_LIMIT[capability]
    if arguments["matrix_ptr"].dtype == torch.float16:
        assert found["wgmma" if capability == 90 else "mma"] > 0


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def folded_matrix(rows, columns, dtype):
    return meta(2, rows, -(-columns // 16) * 16, dtype=dtype)


@pytest.mark.codegen
@pytest.mark.parametrize("capability", list(SHARED_LIMIT))
@pytest.mark.parametrize(
    ("name", "dtype", "normalised"),
    [
        ("layer-wise, 7B", torch.float16, False),
        ("path A, 7B", torch.bfloat16, True),
        ("path B, 7B", torch.float32, True),
        ("path A, odd", torch.float16, True),
        ("path B, odd", torch.float16, False),
        ("path B, odd", torch.bfloat16, True),
    ],
)
def test_analyze_compiles_without_spills(name, dtype, normalised, capability, monkeypatch):
    size, order, _, n, kernel = LAUNCHES[name]
    x = meta(*size, dtype=dtype).permute(order)
    plan = FFTConvPlan.make(*x.shape[2:], kernel, *n)
    tiling = input_tiling(plan)
    wide = torch.float32 if dtype == torch.float32 else torch.float16
    norm = None
    if normalised:
        affine = meta(*size[2:], dtype=dtype)
        norm = LayerNorm(meta(*size[:2]), meta(*size[:2]), affine, affine, order)
    matrix = folded_matrix(plan.bins, tiling.folded, wide)
    out = meta(plan.bins, 3, tiling.columns(x), dtype=wide)

    def call():
        analyze(x, matrix, tiling, out, planes=3, norm=norm, bound=meta(1))

    title = f"{name}, {dtype}{', normalised' * normalised}"
    compile_and_check(monkeypatch, title, "_analyze_kernel", capability, call)


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
        ("path B, odd", torch.float32, "bias_residual"),
    ],
)
def test_synthesize_compiles_without_spills(name, dtype, epilogue, capability, monkeypatch):
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
    other = out if epilogue in ("mix", "bias_residual") else None

    def call():
        options = {"epilogue": epilogue, "bias": bias, "other": other}
        synthesize(y, matrix, tiling, out, bound=meta(1), amax=meta(1), **options)

    title = f"{name}, {dtype}, {epilogue}"
    compile_and_check(monkeypatch, title, "_synthesize_kernel", capability, call)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("epilogue", ["store", "tanh_bias", "mix", "bias_residual"])
@pytest.mark.parametrize("order", [(0, 3, 2, 1), (0, 2, 1, 3)])
@pytest.mark.parametrize(("size", "n"), [((2, 61, 32, 67), (37, 26)), ((1, 128, 16, 64), (24, 18))])
def test_convolution_of_a_block_on_a_gpu(size, n, order, epilogue, dtype):
    arguments = size, order, n, 11, 48, epilogue, dtype, "cuda"
    out, expected, rounded = convolve_a_block(*arguments)
    assert error(out, expected) <= 2 * error(rounded, expected)
