"""The products of every frequency bin against complex products in float64."""

import math

import pytest
import torch

from dnd_fast.kernels.reference import CONVOLUTIONS
from dnd_fast.kernels.triton import bin_gemm as module
from dnd_fast.kernels.triton.bin_gemm import BinGemmConfig, bin_gemm, bin_gemm_weight_gradient
from dnd_fast.kernels.triton.codegen import SHARED_LIMIT

SMALL = BinGemmConfig(16, 16, 16, num_warps=1, num_stages=1)
DTYPES = [torch.float32, torch.float16]
BUDGET = {torch.float32: 1e-6, torch.float16: 2 * 2**-11 / math.sqrt(3)}
# F, T, C, C': primes, ones, several blocks of each dimension.
SHAPES = [(1, 1, 1, 1), (3, 5, 7, 2), (2, 9, 17, 37), (1, 19, 33, 3), (2, 3, 12, 20)]


def error(found, expected):
    return ((found.double() - expected).norm() / (expected.norm() + 1e-300)).item()


def operands(bins, tiles, channels, channels_out, dtype, device="cpu"):
    """Planes of signals, weights, and an output full of NaN."""
    torch.manual_seed(0)
    real, imaginary = torch.randn(2, bins, tiles, channels, device=device)
    x = torch.stack([-imaginary, real, imaginary], dim=1).to(dtype)
    weight = torch.randn(bins, 2, channels_out, channels, device=device).to(dtype)
    out = torch.full((bins, 2, tiles, channels_out), torch.nan, dtype=dtype, device=device)
    return x, weight, out


def exact(x, weight):
    x, weight = x.double(), weight.double()
    signal, kernel = torch.complex(x[:, 1], x[:, 2]), torch.complex(weight[:, 0], weight[:, 1])
    return torch.view_as_real(signal @ kernel.mT).movedim(-1, 1)


@pytest.mark.interpret
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_multiplies_complex_numbers(shape, dtype):
    x, weight, out = operands(*shape, dtype)
    bin_gemm(x, weight, out, scale=0.5, config=SMALL)
    assert error(out, exact(x, weight) / 2) <= BUDGET[dtype]


@pytest.mark.interpret
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (3, 5, 16, 24), (2, 9, 40, 72)])
def test_multiplies_by_copied_blocks(shape, dtype):
    x, weight, out = operands(*shape, dtype)
    bin_gemm(x, weight, out, scale=0.5, config=BinGemmConfig(16, 16, 16, 1, 1, tma=True))
    assert error(out, exact(x, weight) / 2) <= BUDGET[dtype]


@pytest.mark.interpret
@pytest.mark.parametrize("tma", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_weights_have_a_scale_per_output_channel(dtype, tma):
    x, _, out = operands(2, 5, 32, 24, dtype)
    weight = torch.randint(-127, 128, (2, 2, 24, 32), dtype=torch.int8)
    scale = torch.rand(2, 24) / 100
    bin_gemm(x, weight, out, weight_scale=scale, config=BinGemmConfig(16, 16, 16, 1, 1, tma=tma))
    expected = exact(x, weight) * scale.double()[:, None, None, :]
    assert error(out, expected) <= BUDGET[dtype]


@pytest.mark.interpret
@pytest.mark.parametrize("tma", [False, True])
def test_some_output_channels_of_a_weight(tma):
    x, weight, out = operands(2, 3, 16, 20, torch.float32)
    part = out[..., 4:12].clone()
    config = BinGemmConfig(16, 16, 16, 1, 1, tma=tma)
    bin_gemm(x, weight[:, :, 4:12], part, config=config)
    assert error(part, exact(x, weight)[..., 4:12]) <= 1e-6


@pytest.mark.interpret
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_weight_gradient(shape, dtype):
    x, weight, dy = operands(*shape, dtype)
    dy = torch.randn(dy.shape).to(dtype)
    out = torch.full(weight.shape, torch.nan)
    bin_gemm_weight_gradient(dy, x, out, config=SMALL)
    weight = weight.double().requires_grad_()
    (expected,) = torch.autograd.grad(exact(x, weight), weight, dy.double())
    assert error(out, expected) <= 1e-6


@pytest.mark.interpret
@pytest.mark.parametrize("shape", [(2, 0, 3, 4), (0, 2, 3, 4), (2, 2, 3, 0)])
def test_nothing_to_multiply(shape):
    x, weight, out = operands(*shape, torch.float32)
    bin_gemm(x, weight, out, config=SMALL)
    gradient = torch.full(weight.shape, torch.nan)
    bin_gemm_weight_gradient(out, x, gradient, config=SMALL)
    assert gradient.eq(0).all()


@pytest.mark.interpret
@pytest.mark.parametrize("name", ["x", "weight", "out", "weight_scale"])
def test_refuses_what_does_not_fit(name):
    x, weight, out = operands(2, 3, 4, 5, torch.float32)
    whole = {"x": x, "weight": weight, "out": out, "weight_scale": torch.ones(2, 5)}
    whole[name] = whole[name].mT.contiguous().mT
    with pytest.raises(ValueError, match=f"{name} has shape"):
        bin_gemm(**whole)


# T, C, C', what the weights are stored in.
LAUNCHES = {
    "layer-wise, 7B": (64, 2048, 4928, torch.float16),
    "layer-wise, 7B, int8": (64, 2048, 4928, torch.int8),
    "one tile": (1, 512, 400, torch.float16),
    "many tiles": (512, 384, 200, torch.float16),
    "multiples of four": (64, 500, 125, torch.float16),
    "odd channels": (64, 125, 25, torch.float16),
    "float32": (64, 512, 400, torch.float32),
}


def launch(name, capability):
    """Operands that need not exist, and the candidates for them."""
    tiles, channels, channels_out, stored = LAUNCHES[name]
    dtype = torch.float32 if stored == torch.float32 else torch.float16
    x = torch.empty(200, 3, tiles, channels, dtype=dtype, device="meta")
    weight = torch.empty(200, 2, channels_out, channels, dtype=stored, device="meta")
    out = torch.empty(200, 2, tiles, channels_out, dtype=dtype, device="meta")
    scale = torch.empty(200, channels_out, device="meta") if stored == torch.int8 else None
    candidates = module.candidates(x, weight, capability)
    return candidates, lambda config: bin_gemm(x, weight, out, weight_scale=scale, config=config)


@pytest.mark.codegen
@pytest.mark.parametrize("capability", list(SHARED_LIMIT))
@pytest.mark.parametrize("name", list(LAUNCHES))
def test_compiles_without_spills(name, capability, compiled, monkeypatch):
    """Every candidate for the largest weights and for narrow rows, elsewhere the default."""
    monkeypatch.setattr(module, "_multiprocessors", lambda x: 132)
    _, channels, _, stored = LAUNCHES[name]
    copied = capability >= 90 and stored != torch.float32 and channels % 8 == 0
    candidates, run = launch(name, capability)
    assert candidates[0].tma == copied
    for config in candidates if name in ("layer-wise, 7B", "odd channels") else candidates[:1]:
        kernel = "_bin_gemm_tma_kernel" if config.tma else "_bin_gemm_kernel"
        title = f"{name}, {config}"
        multiplied = None if stored == torch.float32 else torch.float16
        found = compiled(title, module, kernel, capability, lambda c=config: run(c), multiplied)
        assert (found["tma"] > 0) == config.tma
        assert config.tma or channels % 2 or found["async_copies"] > 0


@pytest.mark.codegen
@pytest.mark.parametrize("capability", list(SHARED_LIMIT))
@pytest.mark.parametrize(
    ("channels", "channels_out", "dtype", "candidates"),
    [
        (512, 400, torch.float16, module.GRADIENT),
        (500, 125, torch.float16, module.GRADIENT[:1]),
        (125, 25, torch.float16, module.GRADIENT[:1]),
        (512, 400, torch.float32, module.SINGLE),
        (125, 25, torch.float32, module.SINGLE),
    ],
)
def test_weight_gradient_compiles_without_spills(
    channels, channels_out, dtype, candidates, capability, compiled
):
    x = torch.empty(200, 3, 64, channels, dtype=dtype, device="meta")
    dy = torch.empty(200, 2, 64, channels_out, dtype=dtype, device="meta")
    out = torch.empty(200, 2, channels_out, channels, device="meta")
    for config in candidates:
        compiled(
            f"{channels} to {channels_out}, {config}",
            module,
            "_weight_gradient_kernel",
            capability,
            lambda c=config: bin_gemm_weight_gradient(dy, x, out, config=c),
            dtype,
        )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 64, 512, 400), (7, 1, 2048, 512), (5, 61, 125, 67)])
def test_on_a_gpu(shape, dtype):
    x, weight, out = operands(*shape, dtype, "cuda")
    bin_gemm(x, weight, out, scale=1 / 64)
    assert error(out, exact(x, weight) / 64) <= BUDGET[dtype]
    dy = torch.randn(out.shape, device="cuda").to(dtype)
    gradient = torch.full(weight.shape, torch.nan, device="cuda")
    bin_gemm_weight_gradient(dy, x, gradient)
    weight = weight.double().requires_grad_()
    (expected,) = torch.autograd.grad(exact(x, weight), weight, dy.double())
    assert error(gradient, expected) <= 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("tiles", [1, 7, 64, 200])
def test_int8_on_a_gpu(tiles):
    x, _, out = operands(9, tiles, 256, 208, torch.float16, "cuda")
    weight = torch.randint(-127, 128, (9, 2, 208, 256), dtype=torch.int8, device="cuda")
    scale = torch.rand(9, 208, device="cuda") / 1000
    expected = exact(x, weight) * scale.double()[:, None, None, :]
    for capability in (80, module._capability(x)):
        config = module.candidates(x, weight, capability)[0]
        bin_gemm(x, weight, out.fill_(torch.nan), weight_scale=scale, config=config)
        assert error(out, expected) <= BUDGET[torch.float16]


def large_operands(sized, name, stored):
    """Of the largest convolution of a name: signals, weights with their scale, and an output."""
    plan, shape = sized.plans[name].fft_plan, sized.plans[name].shape
    like = {"dtype": torch.float16, "device": sized.device}
    x = torch.empty(plan.bins, 3, plan.tiles, shape.channels_in, **like).normal_()
    x[:, 0] = -x[:, 2]
    sizes = plan.bins, 2, shape.channels_out, shape.channels_in
    weight = torch.empty(sizes, dtype=stored, device=sized.device)
    weight = weight.random_(-127, 128) if stored == torch.int8 else weight.normal_()
    scale = torch.rand(plan.bins, shape.channels_out, device=sized.device) / 64
    out = torch.full((plan.bins, 2, plan.tiles, shape.channels_out), torch.nan, **like)
    return x, weight, scale if stored == torch.int8 else None, out


@pytest.mark.parametrize("stored", [torch.float16, torch.int8])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_largest_convolutions(sized, name, stored):
    """Some bins of it, by either kernel; all must be written."""
    x, weight, scale, out = large_operands(sized, name, stored)
    some = torch.randint(len(x), (3,), device=sized.device)
    expected = exact(x[some], weight[some]) / 64
    if scale is not None:
        expected *= scale[some].double()[:, None, None, :]
    for capability in {80, module._capability(x)}:
        config = module.candidates(x, weight, capability)[0]
        bin_gemm(x, weight, out.fill_(torch.nan), weight_scale=scale, scale=1 / 64, config=config)
        assert out.isfinite().all()
        assert error(out[some], expected) <= BUDGET[torch.float16]


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_weight_gradients_of_the_largest_convolutions(sized, name):
    """Some bins of it; all must be written."""
    x, weight, _, dy = large_operands(sized, name, torch.float16)
    dy.normal_()
    out = torch.full(weight.shape, torch.nan, device=sized.device)
    bin_gemm_weight_gradient(dy, x, out)
    assert out.isfinite().all()
    some = torch.randint(len(x), (3,), device=sized.device)
    leaf = weight[some].double().requires_grad_()
    (expected,) = torch.autograd.grad(exact(x[some], leaf), leaf, dy[some].double())
    assert error(out[some], expected) <= 1e-5  # float32 sums of up to 10^4 products
