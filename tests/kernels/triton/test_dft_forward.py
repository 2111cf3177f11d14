"""The forward DFT kernel against folds and dense products in float64."""

import math

import pytest
import torch
from torch.nn.functional import layer_norm, pad

from dnd_fast.kernels.fft.tiling import FFTConvPlan, Tiling
from dnd_fast.kernels.reference import CONVOLUTIONS
from dnd_fast.kernels.triton import dft_forward as module
from dnd_fast.kernels.triton.checks import Config, LayerNorm
from dnd_fast.kernels.triton.codegen import SHARED_LIMIT
from dnd_fast.kernels.triton.dft_forward import dft_forward_triton
from dnd_fast.kernels.triton.fft_conv import input_matrix, input_tiling
from dnd_fast.kernels.triton.layer_norm import layer_norm_stats

SMALL = Config(16, 16, 16, num_warps=1, num_stages=1)
DTYPES = [torch.float32, torch.float16]
FIRST, LAST = (0, 1, 2, 3), (0, 2, 3, 1)


def error(found, expected):
    return ((found.double() - expected).norm() / (expected.norm() + 1e-300)).item()


def laid_out(x, order):
    """x with its dimensions in memory in another order."""
    return x.permute(order).contiguous().permute(torch.tensor(order).argsort().tolist())


def poisoned(*shape, dtype=torch.float32):
    return torch.full(shape, torch.nan, dtype=dtype)


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


def forward_dft(matrix, values, planes, operand=torch.float64):
    """``[F, planes, T C]`` in float64; folded windows are rounded to a dtype first."""
    mirrored, half = values.flip(0), (len(values) + 1) // 2
    folded = torch.stack([values + mirrored, values - mirrored])[:, :half].to(operand)
    real, imaginary = matrix[:, :, :half].double() @ folded.double()
    return torch.stack([-imaginary, real, imaginary][3 - planes :], dim=1)


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
def test_equals_float64(shape, tiling, order, planes, dtype):
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    matrix = torch.randn(2, 19, tiling.folded + 3).to(dtype)  # three columns too many
    out = poisoned(19, planes, tiling.columns(x), dtype=dtype)
    dft_forward_triton(laid_out(x, order), matrix, tiling, out, planes=planes, config=SMALL)
    values = windows(x.double(), tiling)
    expected = forward_dft(matrix, values, planes)
    rounded = forward_dft(matrix, values, planes, dtype).to(dtype)
    assert error(out, expected) <= max(1e-6, 2 * error(rounded, expected))


@pytest.mark.interpret
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", [(0, 3, 2, 1), (0, 2, 1, 3)])
def test_normalises_inside_alone(order, dtype):
    torch.manual_seed(0)
    x = (3 + 2 * torch.randn(2, 5, 7, 3)).to(dtype)  # [B, N, L, C]
    affine = [torch.randn(7, 3).to(dtype) for _ in range(2)]
    mean, rstd = layer_norm_stats(x)
    tiling = Tiling(2, 3, 1, 6, 2, 2, 2, 5)
    matrix = torch.randn(2, 8, 15).to(dtype)
    view = x.permute(order)
    out = poisoned(8, 2, tiling.columns(view), dtype=dtype)
    norm = LayerNorm(mean, rstd, *affine, order)
    dft_forward_triton(view, matrix, tiling, out, norm=norm, config=SMALL)
    normed = layer_norm(x.double(), (7, 3), *(part.double() for part in affine)).permute(order)
    expected = forward_dft(matrix, windows(normed, tiling), 2)
    rounded = forward_dft(matrix, windows(normed, tiling), 2, dtype).to(dtype)
    assert error(out, expected) <= max(1e-6, 2 * error(rounded, expected))


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
def test_refuses_what_does_not_fit(options, message):
    whole = {"matrix": torch.ones(2, 4, 9), "out": torch.ones(4, 2, 6)} | options
    with pytest.raises(ValueError, match=message):
        dft_forward_triton(torch.ones(2, 3, 3, 3), tiling=Tiling(1, 3, 0, 3, 1, 3, 0, 3), **whole)


# B, N, L, C of a block's input, the order that makes it [B, C, H, W], C', DFT and kernel: those of
# the recipes, aligned and not.
LAUNCHES = {
    "layer-wise, 7B": ((1, 2048, 16, 512), (0, 1, 2, 3), 4928, (21, 18), 11),
    "path A, 7B": ((1, 2048, 32, 400), (0, 3, 2, 1), 512, (37, 26), 11),
    "path B, 7B": ((1, 2048, 32, 400), (0, 2, 1, 3), 16, (26, 26), 11),
    "path A, odd": ((2, 37, 125, 300), (0, 3, 2, 1), 25, (26, 26), 9),
    "path B, odd": ((2, 37, 125, 300), (0, 2, 1, 3), 50, (26, 26), 9),
}


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def folded_matrix(rows, columns, dtype):
    return meta(2, rows, -(-columns // 16) * 16, dtype=dtype)


def launch(name, dtype, normalised, config=None):
    """The forward DFT as a convolution does it, on tensors that need not exist."""
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
    dft_forward_triton(x, matrix, tiling, out, planes=3, norm=norm, bound=meta(1), config=config)


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
def test_compiles_without_spills(name, dtype, normalised, capability, compiled):
    compiled(
        f"{name}, {dtype}{', normalised' * normalised}",
        module,
        "_dft_forward_kernel",
        capability,
        lambda: launch(name, dtype, normalised),
        dtype,
    )


@pytest.mark.codegen
@pytest.mark.parametrize("capability", list(SHARED_LIMIT))
@pytest.mark.parametrize("normalised", [False, True])
def test_candidates_compile_without_spills(normalised, capability, compiled):
    """Where addresses take the most registers."""
    for config in (module.NORMED if normalised else module.HALF)[1:]:
        compiled(
            f"path B, odd{', normalised' * normalised}, {config}",
            module,
            "_dft_forward_kernel",
            capability,
            lambda c=config: launch("path B, odd", torch.float16, normalised, c),
            torch.float16,
        )


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_largest_convolutions(sized, name):
    """Some columns of it; all must be written."""
    x, norm, normed = sized.image(name)
    plan = sized.plans[name].fft_plan
    tiling, matrix = input_tiling(plan), input_matrix(plan, torch.float16, sized.device)
    out = poisoned(plan.bins, 3, tiling.columns(x), dtype=torch.float16).to(sized.device)
    bound, root = normed.abs().max().float(), math.sqrt(plan.window_size)
    dft_forward_triton(
        x, matrix, tiling, out, planes=3, norm=norm, bound=bound, sqrt_window_size=root
    )
    assert out.isfinite().all()
    columns = torch.randint(out.shape[2], (64,), device=sized.device)
    index, inside = sized.positions(tiling, x.shape, columns)
    scale = 2.0 ** math.floor(math.log2(2**14 / (bound.item() * root)))
    values = torch.where(inside, scale * normed[index], 0.0)
    expected = forward_dft(matrix, values, 3)
    rounded = forward_dft(matrix, values, 3, torch.float16).half()
    assert error(out[:, :, columns], expected) <= 2 * error(rounded, expected) + 1e-6
