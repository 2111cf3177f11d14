"""The engine on the Triton kernels against the plain decoder, and when it must end."""

import copy

import pytest
import torch

from dnd_fast import Generator, HyperConvDecoder, InvalidInput
from dnd_fast.decoder.length_projection import LengthProjection
from dnd_fast.decoder.planning import plan_for
from dnd_fast.generator import GeneratorConfig
from dnd_fast.kernels.device import PROFILES
from dnd_fast.kernels.lora_scatter import LoraScatterTable
from dnd_fast.kernels.planner.cost_model import plan_decoder
from dnd_fast.recipe import ConditionSpec, DecoderSpec, Recipe

FEATURES = [(3, 5, 4), (2, 6, 7), (2, 6, 7)]


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return HyperConvDecoder(FEATURES, 3).requires_grad_(False)


def error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.interpret
@pytest.mark.parametrize(
    ("algorithm", "weights", "dtype", "bound"),
    [
        ("direct", "cached", torch.float32, 1e-5),
        ("direct", "cached", torch.float16, 5e-3),
        ("fft", "cached", torch.float32, 1e-5),
        ("fft", "streamed", torch.float16, 5e-3),
        ("fft", "int8", torch.float16, 0.04),
    ],
)
def test_engine(decoder, algorithm, weights, dtype, bound):
    exact = copy.deepcopy(decoder).double()
    plan = plan_decoder(FEATURES, 3, PROFILES["cpu"], weights=weights, algorithm=algorithm)
    decoder.to(dtype).set_impl("triton")
    decoder.set_plan(plan)
    assert decoder.make_engine()
    for batch in (2, 1):
        x = torch.randn(batch, *FEATURES[0]).to(dtype)
        with torch.no_grad():
            found = decoder(x)
        assert found.dtype == dtype
        assert error(found, exact(x.double())) <= bound


@pytest.mark.interpret
@pytest.mark.parametrize(("algorithm", "residual"), [("fft", False), ("direct", True)])
def test_generated_adapters_are_written_by_the_last_convolution(
    fitted_layout, algorithm, residual, monkeypatch
):
    """The same adapters as by plain PyTorch."""
    tokens = [fitted_layout.num_tokens, *fitted_layout.token_shape]
    features = [list(FEATURES[0]), tokens if residual else [2, 6, 7], tokens]
    condition = ConditionSpec("none", prompts=3, length=5)
    config = GeneratorConfig(condition, DecoderSpec(features, 3), fitted_layout.to_dict())
    generator = Generator(config).requires_grad_(False)
    generator.layout.set_statistics(fitted_layout.mean, fitted_layout.std)
    embedded = torch.randn(2, *features[0])
    monkeypatch.setattr(generator, "encode", lambda tasks: embedded)
    tasks = [["a", "b", "c"], ["d", "e", "f"]]
    expected = generator.generate(tasks)
    generator.decoder.set_impl("triton")
    generator.decoder.set_plan(algorithm)
    generator.decoder.make_engine(generator.layout.scatter_table(torch.device("cpu")))
    monkeypatch.setattr(generator.layout, "detokenize_to_cpu", None)
    for mine, theirs in zip(generator.generate(tasks), expected, strict=True):
        assert list(mine.tensors) == list(theirs.tensors)
        for name, tensor in theirs.tensors.items():
            assert error(mine.tensors[name], tensor.double()) <= 1e-5


@pytest.mark.interpret
def test_engine_with_a_projection():
    torch.manual_seed(0)
    projection = LengthProjection(9, 5)
    decoder = HyperConvDecoder(FEATURES, 3, projection=projection, impl="triton")
    decoder.requires_grad_(False)
    x = torch.randn(1, 3, 9, 4)
    expected = copy.deepcopy(decoder).double()(x.double())
    decoder.make_engine()
    with torch.no_grad():
        assert error(decoder(x), expected) <= 1e-5


@pytest.mark.interpret
def test_training_on_the_kernels(decoder):
    """No engine: operators one by one, with gradients."""
    decoder.requires_grad_()
    exact = copy.deepcopy(decoder).double()
    x = torch.randn(1, *FEATURES[0])
    decoder.set_impl("triton")
    decoder.set_plan("fft")
    decoder(x).square().sum().backward()
    exact(x.double()).square().sum().backward()
    for parameter, other in zip(decoder.parameters(), exact.parameters(), strict=True):
        # The next LayerNorm cancels a layer-wise bias: its gradient is nothing but rounding.
        distance = (parameter.grad.double() - other.grad).norm()
        assert distance <= 1e-4 * max(other.grad.norm(), 1.0)


@pytest.mark.interpret
def test_engine_ends_with_what_it_was_made_for(decoder):
    decoder.set_impl("triton")
    for change in (
        lambda: decoder.set_plan("direct"),
        lambda: decoder.set_impl("triton"),
        lambda: decoder.to(torch.float16),
    ):
        decoder.make_engine()
        assert decoder.engine is not None
        change()
        assert decoder.engine is None
    with torch.no_grad():
        assert decoder(torch.randn(0, *FEATURES[0]).half()).shape == (0, *FEATURES[-1])


@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["cached", "streamed", "int8"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.03)])
def test_graphs_of_several_batch_sizes(weights, dtype, bound):
    """A graph must not outlive memory that a larger batch replaced."""
    torch.manual_seed(0)
    features = [(32, 48, 64), (64, 40, 96), (64, 40, 96)]
    decoder = HyperConvDecoder(features, 9).requires_grad_(False).cuda()
    exact = copy.deepcopy(decoder).double()
    decoder.to(dtype).set_plan("fft", weights=weights)
    targets = LoraScatterTable.make({"x.lora_A.weight": (40, 64 * 96)}, 96, torch.device("cuda"))
    assert decoder.make_engine(targets)
    conditions = [torch.randn(batch, *features[0], device="cuda") for batch in (1, 3, 2, 1, 3)]
    for x in conditions:
        with torch.no_grad():
            found = decoder(x.to(dtype))
        expected = exact(x.to(dtype).double())
        assert error(found, expected) <= (0.05 if weights == "int8" else bound)
        written = decoder.engine.weights(x.to(dtype)).view(len(x), 40, 64, 96).transpose(1, 2)
        assert error(written, expected) <= (0.05 if weights == "int8" else bound)


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", ["common-sense-0.5b", "coding-7b"])
def test_a_recipe_within_its_memory(recipe):
    """At full size, in bfloat16, against the direct form in float32."""
    spec = Recipe.load(recipe).decoder
    torch.manual_seed(0)
    decoder = HyperConvDecoder(spec.features, spec.kernel_size, impl="triton")
    decoder.requires_grad_(False).cuda()
    x = torch.randn(1, *spec.features[0], device="cuda")
    with torch.no_grad():
        expected = decoder(x).double()
        decoder.bfloat16()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        decoder.set_plan(plan_for(decoder, memory=30e9))
        decoder.make_engine()
        found = decoder(x.bfloat16())
        assert torch.equal(found, decoder(x.bfloat16()))
    assert error(found, expected) <= 0.05
    raw = 2 * sum(parameter.numel() for parameter in decoder.parameters())
    assert torch.cuda.max_memory_allocated() - before <= 30e9 + raw


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_none_without_a_gpu(decoder):
    assert not decoder.make_engine()
    assert decoder.engine is None
    with pytest.raises(InvalidInput, match="need an NVIDIA GPU, and torch sees none"):
        decoder.set_impl("triton")
