"""Adapters as PEFT writes them, and the live models that they are of."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from dnd_fast.lora.adapter import Adapter

from ..bad_input import fails

IDS = torch.arange(1, 13).view(2, 6)
Q, V = "q_proj", "v_proj"
CONFIGS = {
    "plain": {},
    "another rank": {"r": 3, "lora_alpha": 5},
    "patterns": {
        "target_modules": [Q, V, "down_proj"],
        "lora_alpha": 4,
        "rank_pattern": {"model.layers.0.self_attn.q_proj": 4, "down_proj": 3},
        "alpha_pattern": {r"^model\.layers\.1.*v_proj": 16},
    },
    "rank-stabilised": {"lora_alpha": 4, "use_rslora": True, "rank_pattern": {Q: 5}},
    "all linear": {"target_modules": "all-linear", "exclude_modules": ["o_proj"]},
    "one layer": {"layers_to_transform": [1], "layers_pattern": "layers", "lora_dropout": 0.5},
    "regex": {"target_modules": r".*\.layers\.[01]\.mlp\.(up|down)_proj"},
    "magnitudes": {"use_dora": True},
    "bias of B": {"lora_bias": True},
    "biases": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "whole head": {"modules_to_save": ["lm_head"]},
    "whole embedding": {"modules_to_save": ["embed_tokens"]},
    "head": {"target_modules": [Q, "lm_head"]},
    "embedding": {"target_modules": [Q, "embed_tokens"]},
    "tokens": {"trainable_token_indices": {"embed_tokens": [1, 2, 3]}},
}
names = st.sampled_from(sorted(CONFIGS))
examples = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
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

    # Threads would only wait for one another over products as small as these.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make
    torch.set_num_threads(threads)


def structure(model):
    """All that a model is but values: modules, parameters and flags, and attributes' names."""
    return (
        [(name, id(module), sorted(vars(module))) for name, module in model.named_modules()],
        [(name, id(p), p.requires_grad) for name, p in model.named_parameters()],
        getattr(model, "peft_config", None),
    )


def refuses(adapter, model, message, method="apply"):
    """The adapter is refused, and the model answers as before."""
    before, was = logits(model), structure(model)
    fails(message, getattr(adapter, method), model)
    assert structure(model) == was
    assert off(model, before) == 0
