"""Adapters on models whose layers are not plain linear ones, or bear earlier names."""

import copy

import pytest
import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
)

from dnd_fast.lora.layout import TokenLayout

from .conftest import SIZES, logits, off


def mixtral():
    torch.manual_seed(0)
    sizes = SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}
    return MixtralForCausalLM(MixtralConfig(**sizes)).eval()


def deepseek():
    """Dense and shared layers beside routed experts."""
    torch.manual_seed(0)
    config = DeepseekV3Config(
        **(SIZES | {"num_key_value_heads": 4}),
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    )
    return DeepseekV3ForCausalLM(config).eval()


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (gpt2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
        (mixtral, {"target_modules": ["q_proj", "o_proj"]}),
        (mixtral, {"target_modules": "all-linear"}),
        (mixtral, {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj"]}),
        (deepseek, {"target_modules": ["q_a_proj", "o_proj"]}),
    ],
)
def test_what_peft_writes_is_what_peft_answers(trained, make, settings):
    base = make()
    adapter, live = trained(base, **settings)
    assert off(adapter.apply(copy.deepcopy(base)), live) == 0
    assert off(live, base) > 1e-3


@pytest.mark.parametrize("make", [mixtral, deepseek])
def test_layouts_of_mixtures_of_experts(make):
    """By short names PEFT may mean the routed experts: what a layout makes fits its model."""
    base = make()
    layout = TokenLayout.for_model(base.config, 2)
    torch.manual_seed(1)
    tokens = 0.3 * torch.randn(layout.num_tokens, *layout.token_shape)
    adapter = layout.to_adapter(layout.detokenize(tokens))
    truth = copy.deepcopy(base)
    for name in adapter.modules:
        update = adapter.update(name)
        change = update.scaling * update.b @ update.a
        truth.get_submodule(name).weight.data += change.float()
    before = logits(base)
    assert off(adapter.apply(base), truth) < 1e-4
    assert off(before, truth) > 1e-3
