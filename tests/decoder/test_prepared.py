"""Prepared decoders against the plain one: on the kernels, compiled, shared, out of date."""

import copy
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from dnd_fast import Generator, HyperConvDecoder, InvalidInput
from dnd_fast.decoder.length_projection import LengthProjection
from dnd_fast.generator_config import GeneratorConfig
from dnd_fast.kernels import conv2d
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
def test_on_the_kernels(decoder, algorithm, weights, dtype, bound):
    exact = copy.deepcopy(decoder).double()
    plan = plan_decoder(FEATURES, 3, PROFILES["cpu"], weights=weights, algorithm=algorithm)
    prepared = decoder.to(dtype).prepare(plan, impl="triton")
    assert prepared.impl == "triton"
    for batch in (2, 1):
        x = torch.randn(batch, *FEATURES[0]).to(dtype)
        found = prepared.tokens(x)
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
    assert generator.prepare(algorithm, impl="triton").impl == "triton"
    monkeypatch.setattr(generator.layout, "scatter", None)
    for mine, theirs in zip(generator.generate(tasks), expected, strict=True):
        assert list(mine.tensors) == list(theirs.tensors)
        for name, tensor in theirs.tensors.items():
            assert error(mine.tensors[name], tensor.double()) <= 1e-5


@pytest.mark.interpret
def test_a_projection_on_the_kernels():
    torch.manual_seed(0)
    projection = LengthProjection(9, 5)
    decoder = HyperConvDecoder(FEATURES, 3, projection=projection).requires_grad_(False)
    x = torch.randn(1, 3, 9, 4)
    expected = copy.deepcopy(decoder).double()(x.double())
    assert error(decoder.prepare(impl="triton").tokens(x), expected) <= 1e-5


@pytest.mark.interpret
def test_training_on_the_kernels(decoder, monkeypatch):
    """Nothing is prepared: operators run one by one, with gradients."""
    monkeypatch.setattr(conv2d, "can_run_triton", lambda device, dtype: dtype.itemsize <= 4)
    decoder.requires_grad_()
    exact = copy.deepcopy(decoder).double()
    x = torch.randn(1, *FEATURES[0])
    decoder.set_plan("fft")
    decoder(x).square().sum().backward()
    exact(x.double()).square().sum().backward()
    for parameter, other in zip(decoder.parameters(), exact.parameters(), strict=True):
        # The next LayerNorm cancels a layer-wise bias: its gradient is nothing but rounding.
        distance = (parameter.grad.double() - other.grad).norm()
        assert distance <= 1e-4 * max(other.grad.norm(), 1.0)


@pytest.mark.interpret
def test_an_empty_batch_on_the_kernels(decoder):
    prepared = decoder.half().prepare("direct", impl="triton")
    assert prepared.tokens(torch.randn(0, *FEATURES[0]).half()).shape == (0, *FEATURES[-1])


@pytest.mark.parametrize("change", ["in place", "loaded", "moved", "forgotten"])
@pytest.mark.parametrize("plan", ["direct", "fft"])
def test_a_prepared_decoder_never_mixes_old_and_new_weights(decoder, plan, change):
    """It shares what need not be transformed: after a change of that it must refuse to run."""
    prepared = decoder.prepare(plan, weights="cached")
    x = torch.randn(2, *FEATURES[0])
    expected = prepared.tokens(x)
    with torch.no_grad():
        if change == "in place":
            decoder.blocks[1].bias.add_(1.0)
        elif change == "loaded":
            decoder.load_state_dict(HyperConvDecoder(FEATURES, 3).state_dict())
        elif change == "moved":
            decoder.double()
        else:
            del decoder
    if change in ("in place", "loaded"):
        with pytest.raises(InvalidInput, match="have changed since it was prepared: prepare it"):
            prepared.tokens(x)
    else:
        assert torch.equal(prepared.tokens(x), expected)


def test_threads_share_a_prepared_decoder(decoder):
    prepared = decoder.prepare("fft")
    inputs = [torch.randn(1 + i % 3, *FEATURES[0]) for i in range(24)]
    expected = [prepared.tokens(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for found, alone in zip(pool.map(prepared.tokens, inputs * 4), expected * 4, strict=True):
            assert torch.equal(found, alone)


def test_what_runs_is_said(decoder):
    line = decoder.prepare("fft", weights="int8").describe()
    assert line.startswith("PyTorch, float32, on ")
    assert "10 of 10 convolutions in the transform domain, weights int8 (" in line
    assert "0 of 10 convolutions in the transform domain, " in decoder.prepare("direct").describe()
    with pytest.raises(InvalidInput, match=r"prepare\(layout=generator.layout\)"):
        decoder.prepare().lora(torch.randn(1, *FEATURES[0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"impl": "gpu"}, r"impl='gpu' is unknown; choose one of \('auto', 'triton', 'torch'\)"),
        ({"impl": "triton", "compile": True}, "compile=True is for impl='torch'"),
        ({"plan": "fast"}, "plan='fast': give a DecoderPlan, 'direct' or 'fft'"),
        ({"plan": "fft", "weights": "fp8"}, "weights='fp8'; choose one of"),
        ({"memory": 1e3}, "memory=1e.03 bytes is too little for this decoder"),
    ],
)
def test_refusals(decoder, options, message):
    with pytest.raises(InvalidInput, match=message):
        decoder.prepare(**options)


@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["cached", "streamed", "int8"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.03)])
def test_graphs_of_several_batch_sizes(weights, dtype, bound):
    """A graph must not outlive memory that a larger batch replaced."""
    torch.manual_seed(0)
    features = [(32, 48, 64), (64, 40, 96), (64, 40, 96)]
    decoder = HyperConvDecoder(features, 9).requires_grad_(False).cuda()
    exact = copy.deepcopy(decoder).double()
    table = LoraScatterTable.make({"x.lora_A.weight": (40, 64 * 96)}, 96, torch.device("cuda"))
    layout = SimpleNamespace(scatter_table=lambda device: table)
    prepared = decoder.to(dtype).prepare("fft", weights=weights, layout=layout)
    assert prepared.impl == "triton"
    conditions = [torch.randn(batch, *features[0], device="cuda") for batch in (1, 3, 2, 1, 3)]
    for x in conditions:
        found = prepared.tokens(x.to(dtype))
        expected = exact(x.to(dtype).double())
        assert error(found, expected) <= (0.05 if weights == "int8" else bound)
        written = prepared.weights(x.to(dtype)).view(len(x), 40, 64, 96).transpose(1, 2)
        assert error(written, expected) <= (0.05 if weights == "int8" else bound)


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", ["common-sense-0.5b", "coding-7b"])
def test_a_recipe_within_its_memory(recipe):
    """At full size, in bfloat16, against the direct form in float32."""
    spec = Recipe.load(recipe).decoder
    torch.manual_seed(0)
    decoder = HyperConvDecoder(spec.features, spec.kernel_size).requires_grad_(False).cuda()
    x = torch.randn(1, *spec.features[0], device="cuda")
    with torch.no_grad():
        expected = decoder(x).double()
        decoder.bfloat16()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        prepared = decoder.prepare(memory=30e9, impl="triton")
        found = prepared.tokens(x.bfloat16())
        assert torch.equal(found, prepared.tokens(x.bfloat16()))
    assert error(found, expected) <= 0.05
    assert torch.cuda.max_memory_allocated() - before <= 30e9


@pytest.mark.gpu
def test_generating_runs_the_kernels_without_being_asked(tiny_generator):
    """The call that people make; and adapters that stay on the GPU are those that leave it."""
    prompts = [f"reverse the word number {i}" for i in range(4)]
    expected = tiny_generator.generate(prompts)
    generator = copy.deepcopy(tiny_generator).cuda()
    adapter, kept = generator.generate(prompts), generator.generate(prompts, device="cuda")
    assert generator.prepared.impl == "triton"
    for name, tensor in expected.tensors.items():
        assert adapter.tensors[name].device.type == "cpu"
        assert kept.tensors[name].is_cuda
        assert torch.equal(kept.tensors[name].cpu(), adapter.tensors[name])
        assert error(adapter.tensors[name], tensor.double()) <= 1e-3


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_none_without_a_gpu(decoder):
    assert decoder.prepare().impl == "torch"
    with pytest.raises(InvalidInput, match=r"need an NVIDIA GPU.*and torch sees no GPU"):
        decoder.prepare(impl="triton")
