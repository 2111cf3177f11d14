"""The frozen base made for training, against transformers' own model under hooks."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dnd_fast import InvalidInput, TokenLayout
from dnd_fast.lora import frozen_base
from dnd_fast.lora.batched import IGNORE_INDEX, TokenizedExample, collate, summed_losses
from dnd_fast.lora.frozen_base import FrozenBase
from dnd_fast.lora.layout import LoraModule

SIZES = {
    "vocab_size": 64,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
COUNT, EXAMPLES = 3, 4


def new_model(model_type="llama", **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SIZES | changes)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # biases and norms that matter
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def new_batch(seed=0):
    """Sequences of many lengths, one of which has no answer."""
    rng = torch.Generator().manual_seed(seed)
    sequences = []
    for index in range(COUNT * EXAMPLES):
        ids = torch.randint(64, (3 + 2 * index % 11,), generator=rng).tolist()
        sequences.append(TokenizedExample(ids, len(ids) - 1 - index % 2))
    batch = collate(sequences).view(COUNT, EXAMPLES)
    batch.labels[1, 2] = IGNORE_INDEX
    return batch


def new_adapters(layout, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return {
        key: (0.3 * torch.randn(COUNT, *shape, generator=rng)).requires_grad_()
        for key, shape in layout.tensor_shapes().items()
    }


def assert_like_the_model(base, model, layout, batch):
    adapters = new_adapters(layout)
    found = base.summed_losses(batch, adapters)
    actual = torch.autograd.grad(found.square().sum(), adapters.values())
    with layout.applied(model, adapters):
        expected = summed_losses(model, batch)
    gradients = torch.autograd.grad(expected.square().sum(), adapters.values())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for key, one, other in zip(adapters, actual, gradients, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm(), key


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@pytest.mark.parametrize("layers", [None, (2, 3), (1, 2)])
@pytest.mark.parametrize("attention", ["eager", "sdpa", None])
def test_losses_and_gradients_are_the_models(model_type, layers, attention):
    """Twice: the second time from what was kept; then with sequences that are new in part."""
    model = new_model(model_type)
    layout = TokenLayout.for_model(model.config, 2, layers=layers)
    base = FrozenBase(model, layout, attention=attention)
    batch, other = new_batch(), new_batch(1)
    assert_like_the_model(base, model, layout, batch)
    assert_like_the_model(base, model, layout, batch)
    other.input_ids[0], other.labels[0] = batch.input_ids[0], batch.labels[0]
    assert_like_the_model(base, model, layout, other)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["o_proj", "up_proj"], ["k_proj"]])
def test_some_modules(targets):
    """Products that share an input are adapted in part, or not at all."""
    model = new_model(tie_word_embeddings=True, attention_bias=True, mlp_bias=True, head_dim=8)
    layout = TokenLayout.for_model(model.config, 2, target_modules=targets, layers=(2, 3))
    assert_like_the_model(FrozenBase(model, layout), model, layout, new_batch())


def test_recomputing_changes_nothing():
    model = new_model()
    layout = TokenLayout.for_model(model.config, 2, layers=(1, 3))
    assert_like_the_model(FrozenBase(model, layout, recompute=True), model, layout, new_batch())


def test_lower_layers_run_once(monkeypatch):
    """Also in chunks, and anew where there is no room to keep what they put out."""
    model = new_model()
    layout = TokenLayout.for_model(model.config, 2, layers=(2, 3))
    batch = new_batch()
    monkeypatch.setattr(frozen_base, "CHUNK", 5)
    runs = []
    plain = FrozenBase._run

    def counted(self, *arguments):
        runs.append(arguments[0])
        return plain(self, *arguments)

    monkeypatch.setattr(FrozenBase, "_run", counted)
    for room, expected in ((1 << 30, 2), (0, 2 * 3 + 2)):
        monkeypatch.setattr(frozen_base, "KEPT_BYTES", room)
        base = FrozenBase(model, layout)
        first = base.summed_losses(batch, new_adapters(layout))
        assert len(runs) == 2 * 3 + 2  # three chunks of at most five of eleven sequences
        runs.clear()
        again = base.summed_losses(batch, new_adapters(layout))
        assert len(runs) == expected
        runs.clear()
        assert torch.equal(first, again)


def test_bfloat16_is_close():
    """The losses are in float32; autocast around them changes nothing."""
    model = new_model()
    layout = TokenLayout.for_model(model.config, 2, layers=(2, 3))
    adapters, batch = new_adapters(layout), new_batch()
    exact = FrozenBase(model, layout).summed_losses(batch, adapters)
    base = FrozenBase(model, layout, dtype=torch.bfloat16)
    found = base.summed_losses(batch, adapters)
    assert found.dtype == torch.float32
    assert (found - exact).norm() < 0.03 * exact.norm()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(base.summed_losses(batch, adapters), found)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("gemma", {"head_dim": 4}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
        ("llama", {"hidden_act": "gelu"}),
    ],
)
def test_other_models_are_refused(model_type, changes):
    model = new_model(model_type, **changes)
    layout = TokenLayout.for_model(model.config, 2)
    assert not FrozenBase.supports(model, layout)
    with pytest.raises(InvalidInput, match="FrozenBase runs adapters of the layers of llama and"):
        FrozenBase(model, layout)


def test_a_module_outside_the_layers_is_refused():
    model = new_model()
    layout = TokenLayout(
        [LoraModule("lm_head", 24, 64)], 2, lora_alpha=4, target_modules=["lm_head"]
    )
    assert not FrozenBase.supports(model, layout)
