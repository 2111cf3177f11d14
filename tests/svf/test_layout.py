"""Experts as tokens, and a generator that makes experts from prompts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnd_fast import Generator, InvalidInput, TokenLayout
from dnd_fast.generator_config import GeneratorConfig
from dnd_fast.recipe import ConditionSpec, DecoderSpec
from dnd_fast.svf.expert import DecomposedModel, Expert
from dnd_fast.svf.layout import SvfLayout, layout_from_dict

TASKS = [
    ["copy cat", "echo dog", "repeat hen", "say eel again"],
    ["how long is cat", "count the letters in dog", "how many letters has hen", "length of eel"],
]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(1, 9) | st.none())
@settings(max_examples=30, deadline=None)
def test_there_and_back(sizes, chunk):
    """Bit by bit, padding included; any leading dimensions."""
    layout = SvfLayout({f"m{i}": size for i, size in enumerate(sizes)}, "f", chunk=chunk)
    vectors = {f"m{i}": torch.randn(2, 3, size) for i, size in enumerate(sizes)}
    tokens = layout.tokenize(vectors)
    assert tokens.shape == (2, 3, layout.num_tokens, *layout.token_shape)
    assert (~tokens.isnan()).sum() == 6 * sum(sizes)
    back = layout.detokenize(tokens)
    assert list(back) == list(vectors)
    assert all(back[name].equal(z) for name, z in vectors.items())


def test_statistics_and_description(tiny_base):
    base = DecomposedModel(tiny_base)
    layout = SvfLayout.for_base(base, "published")
    many = {name: torch.randn(6, size) + 1 for name, size in base.sizes.items()}
    tokens = layout.tokenize(many)
    layout.fit(tokens)
    normal = layout.normalize(tokens)
    assert normal.mean(0).abs().max() < 1e-5
    back = layout.detokenize(normal)
    assert all(torch.allclose(back[name], z, atol=1e-5) for name, z in many.items())
    again = layout_from_dict(layout.to_dict())
    assert isinstance(again, SvfLayout)
    assert again.to_dict() == layout.to_dict()


@pytest.mark.interpret
def test_the_kernel_writes_what_detokenize_gives(monkeypatch):
    torch.manual_seed(0)
    layout = SvfLayout({"m0": 13, "m1": 7}, "f", chunk=6)
    tokens = torch.randn(3, layout.num_tokens, *layout.token_shape)
    layout.fit(tokens)
    expected = layout.detokenize(tokens)
    monkeypatch.setattr("dnd_fast.lora.weight_layout.can_run_triton", lambda device, dtype: True)
    found = layout.unpack(layout.scatter(tokens).cpu())
    assert list(found) == list(expected)
    assert all(torch.allclose(found[name], z, atol=1e-6) for name, z in expected.items())


def test_a_generator_learns_to_make_experts(tiny_base, encoder, tmp_path):
    """Two tasks, two experts: after training, each task's prompts give its expert."""
    base = DecomposedModel(tiny_base)
    layout = SvfLayout.for_base(base)
    torch.manual_seed(0)
    shape = [layout.num_tokens, *layout.token_shape]
    generator = Generator(
        GeneratorConfig(
            ConditionSpec("sentence-transformers/all-MiniLM-L6-v2", prompts=4, length=16),
            DecoderSpec([[4, 16, 384], [8, 4, 16], shape], 3),
            layout.to_dict(),
        ),
        encoder=encoder,
    )
    experts = {name: 1 + 0.2 * torch.randn(2, size) for name, size in base.sizes.items()}
    generator.layout.fit(layout.tokenize(experts))
    target = generator.layout.tokenize(experts)
    condition = generator.encode(TASKS)
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-2)
    for _ in range(120):
        loss = (generator(condition) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    generator.save_pretrained(tmp_path)
    loaded = Generator.from_pretrained(tmp_path, encoder=encoder)
    made = loaded.generate(TASKS)
    for k, expert in enumerate(made):
        assert isinstance(expert, Expert)
        base.check(expert)
        for name, z in expert.vectors.items():
            errors = [(z - experts[name][other]).norm() for other in (k, 1 - k)]
            assert errors[0] < 0.5 * errors[1]
    with base.merged(loaded.generate(TASKS[0])):  # it is one, and fits
        tiny_base(torch.arange(4)[None])


def test_adapters_are_still_adapters(tiny_config):
    layout = TokenLayout.for_model(tiny_config, 2)
    assert type(layout_from_dict(layout.to_dict())) is TokenLayout


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sizes": {}}, "no modules"),
        ({"sizes": {"a": 0}}, "a: a length of 0"),
        ({"sizes": {"a": 4}, "chunk": 0}, "chunk=0"),
        ({"sizes": {"a": 4}, "parametrisation": "cubic"}, "cubic"),
        ({"sizes": {"a": 4}, "colour": "red"}, "malformed"),
        ({"sizes": 3}, "malformed"),
    ],
)
def test_unusable_descriptions(fields, message):
    with pytest.raises(InvalidInput, match=message):
        SvfLayout.from_dict({"fingerprint": "f"} | fields)


def test_vectors_that_do_not_fit():
    layout = SvfLayout({"a": 4, "b": 2}, "f")
    with pytest.raises(InvalidInput, match="1 missing"):
        layout.tokenize({"a": torch.ones(4)})
    with pytest.raises(InvalidInput, match="b has shape"):
        layout.tokenize({"a": torch.ones(4), "b": torch.ones(3)})


def test_descriptions_written_by_earlier_versions():
    """A saved generator's ``config.json`` names no kind of layout; its entries tell."""
    experts = layout_from_dict(
        {
            "base_model": None,
            "fingerprint": "f",
            "parametrisation": "published",
            "chunk": 2,
            "sizes": {"a": 4, "b": 2},
        }
    )
    assert (type(experts), experts.num_tokens, experts.token_shape) == (SvfLayout, 3, (1, 2))
    adapters = layout_from_dict(
        {
            "base_model": None,
            "rank": 2,
            "lora_alpha": 4,
            "target_modules": ["q"],
            "scale": "static",
            "chunk": 4,
            "modules": {"q": [8, 4]},
        }
    )
    assert (type(adapters), adapters.num_tokens, adapters.token_shape) == (TokenLayout, 3, (2, 4))


def test_experts_are_no_lora_layout(tiny_config, tiny_base):
    experts, adapters = SvfLayout({"a": 4}, "f"), TokenLayout.for_model(tiny_config, 2)
    assert not isinstance(experts, TokenLayout)
    assert experts.describe() == {"makes": "SVF experts, plain", "modules": 1}
    assert adapters.describe() == {"adapters": "rank 2, alpha 4", "modules": 14}
    decomposed = DecomposedModel(tiny_base, "attention")
    experts.check_base(decomposed)
    adapters.check_base(tiny_base)
    with pytest.raises(InvalidInput, match="Qwen2ForCausalLM; a layout of experts needs a Decom"):
        experts.check_base(tiny_base)
    with pytest.raises(InvalidInput, match=r"DecomposedModel, .* one of LoRA adapters a plain"):
        adapters.check_base(decomposed)
