"""Adapters as PEFT writes them, and the live models that they are of."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from dnd_fast.lora.adapter import Adapter

IDS = torch.arange(1, 13).view(2, 6)
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def small_base(**settings):
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SIZES | settings)).eval()


@torch.no_grad()
def logits(model):
    return model(IDS).logits.double()


def off(model, other):
    """How far the answers of two models, or their logits, are apart."""
    return float((_logits(model) - _logits(other)).abs().max())


def _logits(model):
    return model if isinstance(model, torch.Tensor) else logits(model)


@pytest.fixture
def trained(tmp_path):
    """Make an adapter with random values by PEFT; return it, read from its folder, and PEFT's."""

    def make(base, seed=1, **settings):
        settings = {"r": 2, "target_modules": ["q_proj", "v_proj"]} | settings
        live = get_peft_model(copy.deepcopy(base), LoraConfig(**settings)).eval()
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, parameter in live.named_parameters():
                bias = settings.get("bias", "none") != "none" and name.endswith("base_layer.bias")
                if bias or any(part in name for part in ("lora_", "to_save.", "tokens_delta")):
                    torch.nn.init.normal_(parameter, std=0.3)
        folder = tmp_path / f"{seed}-{len(list(tmp_path.iterdir()))}"
        live.save_pretrained(folder)
        return Adapter.load(folder), live

    return make
