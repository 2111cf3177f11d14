"""Adapters on models whose layers are not plain linear ones, or bear earlier names."""

import copy

import pytest
import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MixtralConfig,
    MixtralForCausalLM,
    MllamaConfig,
    MllamaForConditionalGeneration,
)

from dnd_fast.lora.adapter import Adapter
from dnd_fast.lora.layout import TokenLayout

from .conftest import IDS, SIZES, logits, off


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


def llama4():
    """The text part: a dense block, and one of experts beside a shared one."""
    torch.manual_seed(0)
    config = Llama4TextConfig(
        **SIZES, head_dim=8, intermediate_size_mlp=40, num_local_experts=4, moe_layers=[1]
    )
    return Llama4ForCausalLM(config).eval()


def mllama():
    """The second block attends to pictures, once its gates are open."""
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_global_layers": 1}
    vision |= {"attention_heads": 2, "intermediate_size": 24, "intermediate_layers_indices": [0]}
    vision |= {"vision_output_dim": 32, "image_size": 8, "patch_size": 4, "max_num_tiles": 1}
    text = SIZES | {"num_hidden_layers": 3, "cross_attention_layers": [1], "pad_token_id": 0}
    config = MllamaConfig(
        vision_config=vision | {"supported_aspect_ratios": [[1, 1]]},
        text_config=text | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    )
    model = MllamaForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if "gate" in name and parameter.numel() == 1:
            parameter.data.fill_(1)
    return model


@torch.no_grad()
def logits_of_a_picture(model):
    pixels = torch.randn(2, 1, 1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    ones = torch.ones(2, 1, 1, dtype=torch.long)
    return model(
        IDS,
        pixel_values=pixels,
        aspect_ratio_ids=ones[:, 0],
        aspect_ratio_mask=ones,
        cross_attention_mask=ones.view(2, 1, 1, 1).expand(2, IDS.shape[1], 1, 1),
    ).logits.double()


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
        (llama4, {"target_modules": ["q_proj", "o_proj"]}),
        (mllama, {"target_modules": ["q_proj", "v_proj"]}),
    ],
)
def test_what_peft_writes_is_what_peft_answers(trained, make, settings):
    base = make()
    adapter, live = trained(base, **settings)
    assert off(adapter.apply(copy.deepcopy(base)), live) == 0
    assert off(live, base) > 1e-3


@pytest.mark.parametrize("rename", [False, True])
def test_a_model_that_attends_to_pictures(trained, rename):
    """Blocks that a text alone skips are adapted, too, also under the names of earlier versions."""
    base = mllama()
    adapter, live = trained(base, target_modules=r".*language_model\..*\.(q|v)_proj")
    if rename:
        earlier, today = "base_model.model.language_model.model.", "model.language_model."
        tensors = {
            key.replace(f"base_model.model.{today}", earlier): value
            for key, value in adapter.tensors.items()
        }
        assert tensors.keys().isdisjoint(adapter.tensors)
        adapter = Adapter(tensors, adapter.config)
    applied, picture = adapter.apply(copy.deepcopy(base)), logits_of_a_picture
    assert off(applied, live) == 0
    assert off(picture(applied), picture(live)) == 0
    crossing = [key for key in adapter.tensors if "layers.1.cross_attn" in key and "_B" in key]
    assert len(crossing) == 2
    for key in crossing:
        adapter.tensors[key].zero_()
    without = adapter.apply(copy.deepcopy(base))
    assert off(without, live) == 0
    assert off(picture(without), picture(live)) > 1e-4


@pytest.mark.parametrize("make", [mixtral, deepseek, llama4])
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
