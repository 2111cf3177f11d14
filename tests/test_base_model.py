"""Base models of several families, loaded from disk: losses against transformers' under PEFT."""

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from dnd_fast import Adapter, InvalidInput, Recipe
from dnd_fast.base_model import check_fits, load_base, resolved
from dnd_fast.demo.tokenizer import build_tokenizer
from dnd_fast.generator_config import DEMO_MODELS
from dnd_fast.lora.adapter import lora_config
from dnd_fast.lora.batched import adapter_losses, collate, encode
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.text.datasets import Example

SIZES = {
    "vocab_size": 350,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,  # strong enough for an adapter to matter
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXAMPLES = [Example("copy cord", "cord"), Example("reverse rice now", "ecir")]


def new_base(family):
    torch.manual_seed(0)
    if family == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**SIZES))
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES))
    if family == "gemma2":  # caps its logits after the head
        return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0))
    text = {**SIZES, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config={**vision, "out_hidden_size": 32},
        bos_token_id=1,
        eos_token_id=2,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def save_base(family, folder, dtype=torch.float32):
    """Write an untrained base and the demo's tokenizer; returns both folders' names."""
    new_base(family).to(dtype).save_pretrained(folder / "base")
    build_tokenizer().save_pretrained(folder / "tokenizer")
    return str(folder / "base"), str(folder / "tokenizer")


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma2", "qwen2_5_vl"])
def test_losses_under_an_adapter(family, tmp_path):
    """Guards against logits that a family scales or caps, and against a text part's own names."""
    model, tokenizer = load_base(*save_base(family, tmp_path))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    layout = TokenLayout.for_model(model.config, 2)
    adapters = {key: 0.3 * torch.randn(1, *shape) for key, shape in layout.tensor_shapes().items()}
    batch = collate(encode(tokenizer, EXAMPLES))
    found = adapter_losses(model, adapters, 2.0, batch.view(1, 2))
    config = lora_config(
        rank=2, lora_alpha=4, target_modules=layout.target_modules, base_model=None
    )
    adapted = Adapter({key: value[0] for key, value in adapters.items()}, config).apply(model)
    labels = batch.labels.roll(1, -1)  # transformers shifts them itself
    expected = adapted(batch.input_ids, attention_mask=batch.input_ids != 0, labels=labels).loss
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-5)


def test_dtype(tmp_path):
    model, _ = load_base(*save_base("qwen2", tmp_path), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_no_chat_template(tmp_path):
    base, tokenizer = save_base("qwen2", tmp_path)
    (tmp_path / "tokenizer" / "chat_template.jinja").unlink()
    for tried in (tokenizer, base):  # beside the base there is no tokenizer at all
        with pytest.raises(InvalidInput, match=f"'{tried}' has no chat template.*--tokenizer"):
            load_base(base, tried)


def test_unusable_bases(tmp_path):
    base, tokenizer = save_base("qwen2", tmp_path)
    with pytest.raises(OSError, match="nothing"):
        load_base(str(tmp_path / "nothing"))
    with pytest.raises(InvalidInput, match="'nonsense' cannot be used"):
        load_base(base, tokenizer, device="nonsense")
    (tmp_path / "base" / "config.json").write_text('{"model_type": "abacus"}')
    with pytest.raises(InvalidInput, match="abacus"):
        load_base(base, tokenizer)


def test_a_base_that_is_not_the_recipes(tmp_path):
    base, _ = save_base("qwen2", tmp_path)
    with pytest.raises(InvalidInput, match=r"q_proj are \[32, 32\], expected \[128, 128\]"):
        check_fits(base, Recipe.load("demo"))
    check_fits(str(DEMO_MODELS / "base"), Recipe.load("demo"))


def test_folders_are_found_from_everywhere(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolved("base") == str(tmp_path / "base")
    assert resolved("Qwen/Qwen2.5-0.5B-Instruct") == "Qwen/Qwen2.5-0.5B-Instruct"
