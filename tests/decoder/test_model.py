"""The decoder as a module; its numbers are held to the published code in test_released.py."""

import copy

import pytest
import torch

from dnd_fast import HyperConvDecoder, InvalidInput
from dnd_fast.decoder.length_projection import LengthProjection
from dnd_fast.decoder.torch_pass import TorchPass
from dnd_fast.kernels.device import PROFILES
from dnd_fast.kernels.planner.cost_model import plan_decoder

FEATURES = [(3, 5, 4), (3, 4, 6), (5, 4, 6), (5, 4, 6)]


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return HyperConvDecoder(FEATURES, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_shapes_and_dtypes(decoder, dtype, batch):
    out = decoder.to(dtype)(torch.randn(batch, 3, 5, 4, dtype=dtype))
    assert out.shape == (batch, 5, 4, 6)
    assert out.dtype == dtype


def test_samples_of_a_batch_are_independent(decoder):
    """Guards against a LayerNorm or convolution that reaches across the batch."""
    x = torch.randn(4, 3, 5, 4)
    torch.testing.assert_close(decoder(x)[2:3], decoder(x[2:3]), rtol=1e-5, atol=1e-6)


def test_every_parameter_gets_a_gradient(decoder):
    decoder(torch.randn(2, 3, 5, 4)).square().sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_bfloat16_autocast_stays_close(decoder):
    """The published way to run it; a float32 condition is fine under autocast."""
    x = torch.randn(2, 3, 5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = decoder(x)
    expected = decoder(x)
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_compiled_equals_eager(decoder):
    x = torch.randn(2, 3, 5, 4)
    expected = decoder(x).detach()
    prepared = decoder.prepare("direct", impl="torch", compile=True)
    assert prepared.compiled
    torch.testing.assert_close(prepared.tokens(x), expected, rtol=1e-4, atol=1e-5)
    assert not any("_orig_mod" in key for key in decoder.state_dict())


def test_projection_comes_first(decoder):
    """Long prompts: [B, N, L, C] is projected along L before the first block."""
    projection = LengthProjection(9, 5)
    projected = HyperConvDecoder(FEATURES, 3, projection=projection)
    projected.blocks.load_state_dict(decoder.blocks.state_dict())
    x = torch.randn(2, 3, 9, 4)
    assert projected.condition_shape == (3, 9, 4)
    torch.testing.assert_close(projected(x), decoder(projection(x)))


@pytest.mark.parametrize("weights", ["streamed", "cached"])
def test_golden_decoders_in_the_transform_domain(golden_decoder, weights):
    """The DFT forced for every convolution must give the published numbers too."""
    decoder, tensors = golden_decoder
    exact = copy.deepcopy(decoder).double()
    for each, x, expected, bound in (
        (decoder, tensors["input"], tensors["output"], 1e-5),
        (exact, tensors["input"].double(), tensors["output_fp64"], 1e-12),
    ):
        prepared = each.prepare("fft", weights=weights)
        assert not prepared.plan.direct
        assert (prepared.tokens(x) - expected).norm() <= bound * expected.norm()


def test_training_gradients_in_the_transform_domain(decoder):
    decoder.double()
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    gradients = []
    for plan in ("direct", "fft"):
        decoder.set_plan(plan)
        decoder.zero_grad()
        decoder(x).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in decoder.parameters()])
    for expected, found in zip(*gradients, strict=True):
        # The next LayerNorm cancels a layer-wise bias: its gradient is nothing but rounding.
        assert (found - expected).norm() <= 1e-9 * max(expected.norm(), 1e-3)


@pytest.mark.parametrize("weights", ["streamed", "cached", "int8"])
def test_planned_decoders_are_exported_and_compiled_whole(decoder, weights):
    """Convolutions in the transform domain are operators that tracing does not look into."""
    planned = TorchPass(decoder, decoder.checked_plan("fft", weights))
    x = torch.randn(2, *decoder.condition_shape)
    with torch.no_grad():
        expected = planned(x)
        exported = torch.export.export(planned, (x,))
        compiled = torch.compile(planned, fullgraph=True, backend="aot_eager")
        assert torch.equal(exported.module()(x), expected)
        assert torch.equal(compiled(x), expected)
    names = [str(node.target) for node in exported.graph.nodes]
    assert sum("fft_conv2d" in name for name in names) == 5 * len(decoder.blocks)


def test_preparing_leaves_the_decoder_as_it_was(decoder):
    """Once transforms replaced its weights: it could be neither trained nor saved nor planned."""
    before = {key: value.clone() for key, value in decoder.state_dict().items()}
    prepared = decoder.prepare("fft", weights="cached")
    x = torch.randn(1, 3, 5, 4, requires_grad=True)
    with pytest.raises(InvalidInput, match=r"gives no gradients: use torch.no_grad"):
        prepared.tokens(x)
    decoder(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    assert before.keys() == decoder.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in decoder.state_dict().items())


def test_a_plan_for_another_decoder_is_refused(decoder):
    other = plan_decoder([(3, 5, 4), (3, 4, 6)], 3, PROFILES["cpu"])
    with pytest.raises(InvalidInput, match="the plan is for another decoder"):
        decoder.set_plan(other)
    with pytest.raises(InvalidInput, match="give a DecoderPlan, 'direct' or 'fft'"):
        decoder.set_plan("fast")
    with pytest.raises(InvalidInput, match="the plan is for another decoder"):
        decoder.prepare(other)
    with pytest.raises(InvalidInput, match=r"weights='fp8'; choose one of \('cached'"):
        decoder.prepare("fft", weights="fp8")
