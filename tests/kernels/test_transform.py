"""The transform kernels against dense products in float64, and whole convolutions made of them."""

import math

import pytest
import torch
from torch.nn.functional import conv2d, layer_norm, pad

from dnd_fast.kernels import transform
from dnd_fast.kernels.bin_gemm import BinGemmConfig, bin_gemm, bin_gemm_weight_gradient
from dnd_fast.kernels.codegen import SHARED_LIMIT, compile_launch
from dnd_fast.kernels.layer_norm_stats import layer_norm_stats
from dnd_fast.kernels.transform import Config, LayerNorm, Tiling, analyze, synthesize

SMALL = Config(16, 16, 16, num_warps=1, num_stages=1)
SMALL_GEMM = BinGemmConfig(16, 16, 16, num_warps=1, num_stages=1)
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


# B, C, H, W and a tiling: primes, ones, tiles that overlap, that jut out, and a window larger than
# a block.
ANALYSES = [
    ((1, 1, 1, 1), Tiling(1, 1, 0, 1, 1, 1, 0, 1)),
    ((2, 5, 7, 11), Tiling(2, 4, 1, 6, 3, 5, 2, 7)),
    ((1, 17, 5, 3), Tiling(1, 5, 0, 5, 2, 2, 1, 4)),
    ((1, 12, 6, 4), Tiling(2, 3, 1, 5, 1, 4, 0, 4)),
    ((3, 3, 13, 2), Tiling(3, 5, 2, 9, 1, 2, 0, 2)),
]


@pytest.mark.interpret
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", [FIRST, LAST, (3, 1, 0, 2)])
@pytest.mark.parametrize(("shape", "tiling"), ANALYSES)
def test_analyze(shape, tiling, order, dtype):
    torch.manual_seed(0)
    x = torch.randn(shape).to(dtype)
    matrix = torch.randn(19, tiling.size_h * tiling.size_w + 3).to(dtype)  # three columns too many
    out = poisoned(19, tiling.columns(x), dtype=dtype)
    analyze(laid_out(x, order), matrix, tiling, out, config=SMALL)
    expected = matrix[:, :-3].double() @ windows(x.double(), tiling)
    assert error(out, expected) <= budget(dtype)


@pytest.mark.interpret
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", [(0, 3, 2, 1), (0, 2, 1, 3)])
def test_analyze_normalises_inside_alone(order, dtype):
    torch.manual_seed(0)
    x = (3 + 2 * torch.randn(2, 5, 7, 3)).to(dtype)  # [B, N, L, C]
    affine = [torch.randn(7, 3).to(dtype) for _ in range(2)]
    mean, rstd = layer_norm_stats(x)
    tiling = Tiling(2, 3, 1, 6, 2, 2, 2, 5)
    matrix = torch.randn(8, 30).to(dtype)
    view = x.permute(order)
    out = poisoned(8, tiling.columns(view), dtype=dtype)
    norm = LayerNorm(mean, rstd, *affine, order)
    analyze(view, matrix, tiling, out, norm=norm, config=SMALL)
    normed = layer_norm(x.double(), (7, 3), *(part.double() for part in affine)).permute(order)
    expected = matrix.double() @ windows(normed, tiling)
    operands = (matrix.double() @ windows(normed, tiling).to(dtype).double()).to(dtype)
    assert error(out, expected) <= max(1e-6, 2 * error(operands, expected))


@pytest.mark.interpret
@pytest.mark.parametrize("bound", [0.0, 1e-42, 1e-20, 0.03, 1.0, 1.5, 3.99, 4.0, 6e4, 1e20])
def test_the_scale_is_a_power_of_two_that_prevents_overflow(bound):
    sqrt_points = 16.5
    x, one = torch.tensor([[[[1.0]]]]), torch.ones(1, 1)
    tiling, out = Tiling(1, 1, 0, 1, 1, 1, 0, 1), poisoned(1, 1)
    limit = torch.tensor(bound)
    options = {"bound": limit, "sqrt_points": sqrt_points, "config": SMALL}
    analyze(x, one, tiling, out, **options)
    expected = 2.0 ** math.floor(math.log2(2**14 / (bound * sqrt_points))) if bound else 1.0
    assert out.item() == min(max(expected, 2.0**-100), 2.0**100)
    back = poisoned(1, 1, 1, 1)
    synthesize(out, one, tiling, back, gain=3.0, **options)
    assert back.item() == 3.0


@pytest.mark.interpret
def test_float16_overflows_without_a_bound_and_not_with_it():
    x = torch.full((1, 1, 16, 16), 6e4)
    matrix = torch.full((2, 256), 1 / 16)
    tiling = Tiling(1, 16, 0, 16, 1, 16, 0, 16)
    for dtype in (torch.float32, torch.float16):
        out = poisoned(2, 1, dtype=torch.float16)
        back = poisoned(1, 1, 16, 16)
        options = {"bound": torch.tensor([6e4]), "sqrt_points": 16.0, "config": SMALL}
        analyze(x.to(dtype), matrix.half(), tiling, out, **options)
        synthesize(out, matrix.half().T.contiguous() / 2, tiling, back, **options)
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
    positions = tiling.size_h * tiling.size_w
    matrix = (torch.randn(positions, 24) / 4).to(dtype)
    y = torch.randn(19, tiling.columns(out)).to(dtype)
    bias, other = torch.randn(shape[1:]).to(dtype), torch.randn(shape).to(dtype)
    product = 1.5 * joined(matrix[:, :19].double() @ y.double(), tiling, out)
    operands, _ = epilogues(product, laid_out(bias[None], order)[0], laid_out(other, order))[name]
    _, expected = epilogues(product, bias.double(), other.double())[name]
    amax = torch.zeros(1)
    synthesize(y, matrix, tiling, out, gain=1.5, epilogue=name, amax=amax, config=SMALL, **operands)
    assert error(out, expected) <= budget(dtype)
    assert amax.item() == out.abs().max().item()


@pytest.mark.interpret
def test_other_may_be_the_output_or_be_left_out():
    torch.manual_seed(0)
    tiling = Tiling(1, 3, 0, 3, 2, 2, 0, 2)
    matrix, y = torch.randn(6, 5), torch.randn(5, 2 * 2 * 4)
    out = torch.randn(2, 4, 3, 3)
    product = joined(matrix.double() @ y.double(), tiling, out)
    expected = (product + out.double()) / 3
    synthesize(y, matrix, tiling, out, epilogue="mix", other=out, config=SMALL)
    assert error(out, expected) <= 1e-6
    bias = torch.randn(4)
    synthesize(y, matrix, tiling, out, epilogue="bias_residual", bias=bias, config=SMALL)
    assert error(out, product + bias.double()[:, None, None]) <= 1e-6


@pytest.mark.interpret
def test_tanh_is_accurate_everywhere():
    size = torch.logspace(-30, 30, 200, base=2)
    y = torch.cat([-size, size, torch.linspace(-2, 2, 99), torch.zeros(1)])[None]
    out, bias = poisoned(1, y.shape[1], 1, 1), torch.zeros(y.shape[1], 1, 1)
    wide = Config(16, 512, 16, num_warps=1, num_stages=1)
    tiling = Tiling(1, 1, 0, 1, 1, 1, 0, 1)
    synthesize(y, torch.ones(1, 1), tiling, out, epilogue="tanh_bias", bias=bias, config=wide)
    expected = y[0].double().tanh()
    assert ((out.flatten() - expected).abs() <= 4e-7 * expected.abs()).all()


def kept(n1, n2):
    """Indices of one of each conjugate pair of bins."""
    every = [(a, b) for a in range(n1) for b in range(n2)]
    return [a * n2 + b for a, b in every if (a, b) <= (-a % n1, -b % n2)]


def analysis(n, places, planes, norm):
    """``[F planes, P]``: the DFT of data at some places (along height, along width)."""
    grid = torch.cartesian_prod(*(torch.tensor(along) for along in places)).reshape(-1, 2)
    images = torch.zeros(len(grid), *n, dtype=torch.float64)
    images[torch.arange(len(grid)), grid[:, 0] % n[0], grid[:, 1] % n[1]] = 1
    bins = torch.fft.fft2(images, norm=norm).flatten(1)[:, kept(*n)].T
    parts = (-bins.imag, bins.real, bins.imag) if planes == 3 else (bins.real, bins.imag)
    return torch.stack(parts, dim=1).flatten(0, 1)


def synthesis(n, places, norm):
    """``[P, 2 F]``: the inverse DFT at some places; dropped bins are kept ones' conjugates."""
    bins = torch.zeros(2 * len(kept(*n)), n[0] * n[1], dtype=torch.complex128)
    for f, where in enumerate(kept(*n)):
        a, b = divmod(where, n[1])
        twice = 1 if (a, b) == (-a % n[0], -b % n[1]) else 2
        bins[2 * f, where], bins[2 * f + 1, where] = twice, 1j * twice
    images = torch.fft.ifft2(bins.unflatten(1, n), norm=norm).real
    rows, columns = (torch.tensor(along) % size for along, size in zip(places, n, strict=True))
    return images[:, rows][:, :, columns].flatten(1).T.contiguous()


class Plan:
    """Tilings and matrices of a convolution: one tile where it covers the axis, or overlap-save."""

    def __init__(self, size, kernel, n, dtype):
        cuts = [self.cut(length, kernel, points) for length, points in zip(size, n, strict=True)]
        (inputs_h, at_h, outputs_h, kept_h), (inputs_w, at_w, outputs_w, kept_w) = cuts
        taps = [kernel // 2 - tap for tap in range(kernel)]
        self.inputs = Tiling(*inputs_h, *inputs_w)
        self.outputs = Tiling(*outputs_h, *outputs_w)
        self.taps = Tiling(1, 1, 0, kernel, 1, 1, 0, kernel)
        self.kernel, self.bins, self.dtype = kernel, len(kept(*n)), dtype
        self.sqrt_points = math.sqrt(math.prod(n))
        self.signal = analysis(n, (at_h, at_w), 3, "ortho").to(dtype)
        self.gradient = analysis(n, (kept_h, kept_w), 2, "ortho").to(dtype)
        self.weight = analysis(n, (taps, taps), 2, "backward").to(dtype)
        self.back = synthesis(n, (kept_h, kept_w), "ortho").to(dtype)
        self.weight_back = synthesis(n, (taps, taps), "forward").float()

    def to(self, device):
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.to(device))
        return self

    @staticmethod
    def cut(length, kernel, n):
        before = kernel // 2
        if n >= length + before:
            whole = (1, length, 0, length)
            return whole, range(length), whole, range(length)
        m = n - kernel + 1
        tiles = -(-length // m)
        return (tiles, m, before, n), range(n), (tiles, m, 0, m), range(before, before + m)

    def transform_weight(self, weight, config):
        out = poisoned(self.bins, 2, *weight.shape[:2], dtype=self.dtype, device=weight.device)
        analyze(weight, self.weight, self.taps, out, config=config)
        return out

    def transform_signal(self, x, config, **options):
        tiles = self.inputs.tiles_h * self.inputs.tiles_w * x.shape[0]
        out = poisoned(self.bins, 3, tiles, x.shape[1], dtype=self.dtype, device=x.device)
        options["sqrt_points"] = self.sqrt_points
        analyze(x, self.signal, self.inputs, out, config=config, **options)
        return out

    def multiply(self, signal, weight, config, **options):
        shape = (self.bins, 2, signal.shape[2], weight.shape[2])
        out = poisoned(*shape, dtype=self.dtype, device=signal.device)
        bin_gemm(signal, weight, out, config=config, **options)
        return out

    def convolve(
        self, x, weight, out, *, norm=None, bound=None, configs=(SMALL, SMALL_GEMM), **end
    ):
        signal = self.transform_signal(x, configs[0], norm=norm, bound=bound)
        product = self.multiply(signal, self.transform_weight(weight, configs[0]), configs[1])
        end["sqrt_points"] = self.sqrt_points
        synthesize(product, self.back, self.outputs, out, bound=bound, config=configs[0], **end)


# H, W, k, n1, n2: a tile for a whole axis or both, overlap-save, DFTs of odd and even length.
CONVOLUTIONS = [
    (5, 7, 3, 6, 8),
    (3, 7, 5, 5, 7),
    (7, 5, 3, 4, 5),
    (1, 2, 1, 1, 2),
]


@pytest.mark.interpret
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", [FIRST, LAST])
@pytest.mark.parametrize(("height", "width", "kernel", "n1", "n2"), CONVOLUTIONS)
def test_convolution(height, width, kernel, n1, n2, order, dtype):
    torch.manual_seed(0)
    plan = Plan((height, width), kernel, (n1, n2), dtype)
    x = torch.randn(2, 3, height, width).to(dtype)
    weight = (torch.randn(5, 3, kernel, kernel) / kernel).to(dtype)
    out = poisoned(2, 5, height, width, dtype=dtype, order=order)
    plan.convolve(laid_out(x, order), weight, out, bound=x.abs().max().float())
    expected = conv2d(x.double(), weight.double(), padding=kernel // 2)
    # Operands and result of every step are rounded: three products of rounded operands.
    assert error(out, expected) <= (2e-6 if dtype == torch.float32 else 1.5e-3)


@pytest.mark.interpret
@pytest.mark.parametrize("epilogue", ["store", "tanh_bias", "mix", "bias_residual"])
@pytest.mark.parametrize("order", [(0, 3, 2, 1), (0, 2, 1, 3)])
def test_convolution_of_a_block(order, epilogue):
    """LayerNorm on load, an epilogue, and dimensions as the hyper-convolutional block has them."""
    torch.manual_seed(0)
    x = 5 + torch.randn(2, 3, 5, 7)  # [B, N, L, C]
    affine = torch.randn(5, 7), torch.randn(5, 7)
    view = x.permute(order)
    plan = Plan(view.shape[2:], 3, (4, 5), torch.float32)
    weight = torch.randn(2, view.shape[1], 3, 3)
    out = poisoned(2, 2, *view.shape[2:], order=FIRST if order[3] == 3 else LAST)
    normed = layer_norm(x.double(), (5, 7), *(part.double() for part in affine)).permute(order)
    bias, other = torch.randn(out.shape[1:]), torch.randn(out.shape)
    operands, _ = epilogues(other, bias, other)[epilogue]
    y = conv2d(normed, weight.double(), padding=1)
    _, expected = epilogues(y, bias.double(), other.double())[epilogue]
    plan.convolve(
        view,
        weight,
        out,
        norm=LayerNorm(*layer_norm_stats(x), *affine, order),
        bound=normed.abs().max().float(),
        epilogue=epilogue,
        **operands,
    )
    assert error(out, expected) <= 3e-6


@pytest.mark.interpret
@pytest.mark.parametrize(("height", "width", "kernel", "n1", "n2"), CONVOLUTIONS)
def test_gradients(height, width, kernel, n1, n2):
    torch.manual_seed(0)
    plan = Plan((height, width), kernel, (n1, n2), torch.float32)
    x = torch.randn(2, 3, height, width, requires_grad=True)
    weight = torch.randn(5, 3, kernel, kernel, requires_grad=True)
    dy = torch.randn(2, 5, height, width)
    y = conv2d(x.double(), weight.double(), padding=kernel // 2)
    dx, dw = torch.autograd.grad(y, [x, weight], dy.double())
    found = poisoned(*x.shape)
    plan.convolve(dy, weight.detach().transpose(0, 1).flip(2, 3), found)
    assert error(found, dx.double()) <= 2e-6
    signal = plan.transform_signal(x.detach(), SMALL)
    received = poisoned(plan.bins, 2, signal.shape[2], 5)
    analyze(dy, plan.gradient, plan.outputs, received, config=SMALL)
    total = poisoned(plan.bins, 2, 5, 3)
    bin_gemm_weight_gradient(received, signal, total, config=SMALL)
    found = poisoned(*weight.shape)
    synthesize(total, plan.weight_back, plan.taps, found, config=SMALL)
    assert error(found, dw.double()) <= 2e-6


@pytest.mark.interpret
def test_int8_weights():
    torch.manual_seed(0)
    plan = Plan((5, 7), 3, (6, 8), torch.float32)
    x, weight = torch.randn(1, 3, 5, 7), torch.randn(4, 3, 3, 3)
    bins = plan.transform_weight(weight, SMALL)
    scale = bins.abs().amax((1, 3)) / 127
    rounded = (bins / scale[:, None, :, None]).round()
    signal = plan.transform_signal(x, SMALL)
    found, expected = poisoned(1, 4, 5, 7), poisoned(1, 4, 5, 7)
    for values, options, out in (
        (rounded.to(torch.int8), {"scale": scale}, found),
        (rounded * scale[:, None, :, None], {}, expected),
    ):
        product = plan.multiply(signal, values, SMALL_GEMM, **options)
        synthesize(product, plan.back, plan.outputs, out, config=SMALL)
    assert error(found, expected.double()) <= 1e-6
    assert error(found, conv2d(x.double(), weight.double(), padding=1)) <= 2e-2


@pytest.mark.interpret
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matrix": torch.ones(4, 8)}, "9 columns"),
        ({"matrix": torch.ones(9, 4).T}, "last stride"),
        ({"out": torch.ones(4, 5)}, "24 elements"),
    ],
)
def test_analyze_refuses_what_does_not_fit(options, message):
    whole = {"matrix": torch.ones(4, 9), "out": torch.ones(4, 6)} | options
    with pytest.raises(ValueError, match=message):
        analyze(torch.ones(2, 3, 3, 3), tiling=Tiling(1, 3, 0, 3, 1, 3, 0, 3), **whole)


@pytest.mark.interpret
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matrix": torch.ones(8, 4)}, "9 rows"),
        ({"y": torch.ones(4, 6).half()}, "same dtype"),
        ({"y": torch.ones(5, 6)}, "5 rows"),
        ({"y": torch.ones(6, 4).T}, "contiguous"),
        ({"epilogue": "tanh_bias"}, "bias has shape None"),
        ({"epilogue": "mix", "other": torch.ones(2, 3, 3, 1)}, "other has shape"),
        ({"bias": torch.ones(3)}, "bias has shape"),
    ],
)
def test_synthesize_refuses_what_does_not_fit(options, message):
    whole = {"y": torch.ones(4, 6), "matrix": torch.ones(9, 4), "out": torch.ones(2, 3, 3, 3)}
    with pytest.raises(ValueError, match=message):
        synthesize(tiling=Tiling(1, 3, 0, 3, 1, 3, 0, 3), **(whole | options))


def test_says_that_it_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(transform.triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match="NVIDIA GPU"):
        analyze(
            torch.ones(1, 1, 1, 1),
            torch.ones(1, 1),
            Tiling(1, 1, 0, 1, 1, 1, 0, 1),
            torch.ones(1, 1),
        )


# B, N, L, C of a block's input, the order that makes it [B, C, H, W], C', tile sizes and kernel.
LAUNCHES = {
    "layer-wise, 7B": ((1, 2048, 16, 512), (0, 1, 2, 3), 4928, (21, 18), 11),
    "path A, 7B": ((1, 2048, 32, 400), (0, 3, 2, 1), 512, (37, 26), 11),
    "path B, 7B": ((1, 2048, 32, 400), (0, 2, 1, 3), 16, (26, 26), 11),
    "odd channels": ((2, 37, 125, 300), (0, 3, 2, 1), 25, (26, 26), 9),
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


def padded_matrix(rows, columns, dtype):
    return meta(rows, -(-columns // 16) * 16, dtype=dtype)


@pytest.mark.codegen
@pytest.mark.parametrize("capability", list(SHARED_LIMIT))
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
@pytest.mark.parametrize("name", list(LAUNCHES))
def test_analyze_compiles_without_spills(name, dtype, normalised, capability, monkeypatch):
    size, order, _, n, kernel = LAUNCHES[name]
    x = meta(*size, dtype=dtype).permute(order)
    h, w = Plan.cut(x.shape[2], kernel, n[0])[0], Plan.cut(x.shape[3], kernel, n[1])[0]
    tiling, bins = Tiling(*h, *w), len(kept(*n))
    wide = torch.float32 if dtype == torch.float32 else torch.float16
    norm = None
    if normalised:
        affine = meta(*size[2:], dtype=dtype)
        norm = LayerNorm(meta(*size[:2]), meta(*size[:2]), affine, affine, order)
    matrix = padded_matrix(3 * bins, tiling.size_h * tiling.size_w, wide)
    out = meta(3 * bins, tiling.columns(x), dtype=wide)

    def call():
        analyze(x, matrix, tiling, out, norm=norm, bound=meta(1))

    title = f"{name}, {dtype}{', normalised' * normalised}"
    compile_and_check(monkeypatch, title, "_analyze_kernel", capability, call)


@pytest.mark.codegen
@pytest.mark.parametrize("capability", list(SHARED_LIMIT))
@pytest.mark.parametrize("epilogue", ["store", "tanh_bias", "mix", "bias_residual"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(LAUNCHES))
def test_synthesize_compiles_without_spills(name, dtype, epilogue, capability, monkeypatch):
    size, order, channels_out, n, kernel = LAUNCHES[name]
    shape = meta(*size).permute(order).shape
    channels_last = order[3] == 1
    memory = (shape[0], shape[2], shape[3], channels_out)
    out = meta(*memory, dtype=dtype).permute(0, 3, 1, 2)
    if not channels_last:
        out = meta(*out.shape, dtype=dtype)
    h, w = Plan.cut(shape[2], kernel, n[0])[2], Plan.cut(shape[3], kernel, n[1])[2]
    tiling, bins = Tiling(*h, *w), len(kept(*n))
    wide = torch.float32 if dtype == torch.float32 else torch.float16
    matrix = padded_matrix(tiling.size_h * tiling.size_w, 2 * bins, wide)
    y = meta(2 * bins, tiling.columns(out), dtype=wide)
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
    torch.manual_seed(0)
    x = (5 + torch.randn(size, device="cuda")).to(dtype)
    affine = [torch.randn(size[2:], device="cuda").to(dtype) for _ in range(2)]
    view = x.permute(order)
    plan = Plan(view.shape[2:], 11, n, torch.float16).to("cuda")
    weight = (torch.randn(48, view.shape[1], 11, 11, device="cuda") / 100).to(dtype)
    laid = {"order": FIRST if order[3] == 3 else LAST, "dtype": dtype, "device": "cuda"}
    out = poisoned(size[0], 48, *view.shape[2:], **laid)
    normed = layer_norm(x.double(), size[2:], *(part.double() for part in affine)).permute(order)
    bias, other = (torch.randn(out.shape, device="cuda").to(dtype) for _ in range(2))
    operands, _ = epilogues(other, bias[0], other)[epilogue]
    y = conv2d(normed, weight.double(), padding=5)
    _, expected = epilogues(y, bias[0].double(), other.double())[epilogue]
    plain = conv2d(normed.to(dtype).double(), weight.double(), padding=5).to(dtype)
    _, rounded = epilogues(plain.double(), bias[0].double(), other.double())[epilogue]
    plan.convolve(
        view,
        weight,
        out,
        norm=LayerNorm(*layer_norm_stats(x), *affine, order),
        bound=normed.abs().max().float(),
        epilogue=epilogue,
        small=False,
        **operands,
    )
    # As good as the direct form with operands of the dtype, and the result's own rounding.
    assert error(out, expected) <= 2 * error(rounded.to(dtype), expected)
