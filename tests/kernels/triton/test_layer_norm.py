"""Mean and reciprocal standard deviation of rows against float64."""

import pytest
import torch

from dnd_fast.kernels.triton import layer_norm as module
from dnd_fast.kernels.triton.codegen import SHARED_LIMIT
from dnd_fast.kernels.triton.layer_norm import Config, layer_norm_stats

SMALL = Config(block=16, num_warps=1)


def exact(x):
    rows = x.double().flatten(2)
    return rows.mean(2), (rows.var(2, unbiased=False) + 1e-5).rsqrt()


def compare(x, bound=1e-6, **options):
    found = layer_norm_stats(x, **options)
    for mine, theirs in zip(found, exact(x), strict=True):
        assert mine.dtype == torch.float32
        assert mine.shape == x.shape[:2]
        scale = theirs.abs().clamp_min(1)
        assert ((mine - theirs).abs() / scale).max().item() <= bound


@pytest.mark.interpret
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 3, 5, 7), (1, 2, 16, 16), (1, 1, 11, 13), (2, 1, 17, 1)]
)
def test_equals_float64(shape, dtype):
    torch.manual_seed(0)
    compare((3 * torch.randn(shape) + 1).to(dtype), config=SMALL)


@pytest.mark.interpret
def test_a_mean_far_from_zero():
    torch.manual_seed(0)
    x = 1e4 + torch.randn(2, 2, 37, 41)
    mean, rstd = layer_norm_stats(x, config=SMALL)
    expected_mean, expected = exact(x)
    assert ((rstd - expected) / expected).abs().max().item() <= 1e-5
    assert (mean - expected_mean).abs().max().item() <= 1e-3  # half a unit in the last place


@pytest.mark.interpret
def test_constant_rows():
    mean, rstd = layer_norm_stats(torch.full((1, 2, 5, 7), 1e4), config=SMALL)
    assert (mean == 1e4).all()
    torch.testing.assert_close(rstd, torch.full((1, 2), 1e-5).rsqrt())


@pytest.mark.interpret
def test_refuses_strided_rows():
    with pytest.raises(ValueError, match="contiguous"):
        layer_norm_stats(torch.ones(1, 2, 3, 4).mT)


@pytest.mark.codegen
@pytest.mark.parametrize("capability", list(SHARED_LIMIT))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_compiles_without_spills(dtype, capability, compiled):
    x = torch.empty(1, 128, 64, 400, dtype=dtype, device="meta")
    for config in module.CANDIDATES if dtype == torch.bfloat16 else module.CANDIDATES[:1]:
        for kernel in ("_chunk_moments_kernel", "_merge_kernel"):
            title = f"{dtype}, {config}"
            compiled(
                title, module, kernel, capability, lambda c=config: layer_norm_stats(x, config=c)
            )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 128, 64, 400), (1, 16, 1000, 384), (3, 5, 7, 11)])
def test_on_a_gpu(shape, dtype):
    torch.manual_seed(0)
    compare((10 + torch.randn(shape, device="cuda")).to(dtype))


def test_the_inputs_of_all_blocks(sized):
    for shape in sized.features[:-1]:
        compare((10 + torch.randn(1, *shape, device=sized.device)).to(sized.dtype))
