"""Adapters and layouts that cannot be used: a clear error, and a base model left as it was."""

import copy

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import (
    BertConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from dnd_fast import InvalidInput, TokenLayout
from dnd_fast.lora.adapter import Adapter
from dnd_fast.lora.layout import LoraModule

from ..bad_input import GONE, INF, NAN, A, Q, damaged, entries, extra_tensor, fails, tensors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank=0: it must be a positive integer"),
        ({"chunk": "8"}, "chunk='8': it must be a positive integer"),
        ({"lora_alpha": NAN}, "lora_alpha=nan: it must be a positive number"),
        ({"scale": "log"}, "scale='log' is unknown; choose one of"),
        ({"scale": "border", "chunk": 5}, "even chunk, not 5. Pass another chunk or scale="),
        ({"target_modules": ["qkv"]}, r"\['qkv'\] does not fit Qwen2ForCausalLM.* q_proj, k_proj"),
        ({"target_modules": []}, r"target_modules=\[\] does not fit"),
        ({"target_modules": "q_proj"}, "target_modules='q_proj' does not fit"),
        ({"config": BertConfig()}, "BertLMHeadModel has no list 'layers'"),
        ({"config": {"model_type": "qwen2"}}, "dict belongs to no causal or vision-language model"),
        ({"config": Qwen2Config(num_attention_heads=0)}, "this Qwen2Config describes no model"),
    ],
)
def test_layouts(good, options, message):
    TokenLayout.for_model(good.config, 2, chunk=8, lora_alpha=1.5, target_modules=["q_proj"])
    fails(message, TokenLayout.for_model, **{"config": good.config, "rank": 2} | options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": ...}, "malformed: .*'rank'"),
        ({"modules": ...}, "malformed: .*'modules'"),
        ({"rnk": 2}, "malformed: .*'rnk'"),
        ({"modules": {}}, "no modules to adapt"),
        ({"modules": [1]}, "malformed"),
        ({"modules": {"q": [4]}}, "malformed: .*'size_out'"),
        ({"modules": {"q": [4, -4]}}, "module 'q' has a size of -4; it must be a positive integer"),
        ({"modules": {"q": [4, "4"]}}, "module 'q' has a size of '4'; it must be a positive int"),
        ({"rank": "2"}, "rank='2': it must be a positive integer"),
        ({"lora_alpha": "4"}, "lora_alpha='4': it must be a positive number"),
        ({"target_modules": [3]}, r"target_modules=\[3\]: it must be a list of names or one regex"),
        ({"base_model": 3}, "base_model=3: it must be a path or hub id"),
        ({"scale": "border", "chunk": 5}, "needs an even chunk, not 5"),
    ],
)
def test_descriptions_of_layouts(good, changes, message):
    fields = good.layout.to_dict()
    TokenLayout.from_dict(fields)
    fields = {key: value for key, value in (fields | changes).items() if value is not ...}
    fails(message, TokenLayout.from_dict, fields)


def test_a_layout_with_a_module_twice():
    modules = [LoraModule("q", 4, 4)] * 2
    with pytest.raises(InvalidInput, match="has module 'q' more than once"):
        TokenLayout(modules, 2, lora_alpha=4, target_modules=["q"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {}, r"28 missing \(base_model.*, …\), 0 unexpected"),
        (lambda x: {k: v for k, v in x.items() if k != A}, rf"1 missing \({A}\), 0 unexpected"),
        (lambda x: x | {"head.weight": x[A]}, r"0 missing, 1 unexpected \(head.weight\)"),
        (lambda x: x | {A: x[A][:, 1:]}, rf"{A} has shape \[2, 31\], this layout needs \[2, 32\]"),
        (lambda x: x | {A: x[A][0]}, rf"{A} has shape \[32\], this layout needs"),
        (lambda x: x | {A: x[A] * NAN}, f"{A} holds NaN or infinity"),
        (lambda x: x | {A: x[A] / 0}, f"{A} holds NaN or infinity"),
        (lambda x: x | {A: x[A].int()}, f"{A} is torch.int32, expected a tensor of floating-point"),
        (lambda x: x | {A: x[A].tolist()}, f"{A} is a list, expected a tensor"),
        (list, "tensors of an adapter are needed, by name; got a list"),
    ],
)
def test_tokenize(good, change, message):
    good.layout.tokenize(good.adapter.tensors)
    fails(message, good.layout.tokenize, change(good.adapter.tensors))


@pytest.mark.parametrize("shape", [(58, 3, 16), (58, 2), (57, 2, 16), ()])
def test_detokenize(good, shape):
    good.layout.detokenize(torch.ones(58, 2, 16))
    found = fails("tokens have shape", good.layout.detokenize, torch.ones(shape))
    assert f"{list(shape)}; this layout takes [..., 58, 2, 16]" in found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[0], r"shape \[58, 2, 16\], expected \[adapters, 58, 2, 16\]"),
        (lambda x: x[:0], r"shape \[0, 58, 2, 16\], expected .* at least one adapter"),
        (lambda x: x[..., 1:], r"shape \[3, 58, 2, 15\], expected"),
        (lambda x: x.index_fill(0, torch.tensor(1), NAN), "collection holds NaN or infinity"),
        (lambda x: x.index_fill(3, torch.tensor(1), INF), "collection holds NaN or infinity"),
    ],
)
def test_collections(good, change, message):
    """One diverged adapter must not become a mean of 0."""
    layout, tokens = TokenLayout.from_dict(good.layout.to_dict()), torch.randn(3, 58, 2, 16)
    fails(message, layout.fit, change(tokens))
    assert layout.mean is None
    layout.fit(tokens)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (torch.ones(58, 2, 15), torch.ones(58, 1, 1), r"mean has shape \[58, 2, 15\], expected"),
        (torch.ones(58, 2, 16), torch.ones(58), r"std has shape \[58\], expected \[58, 1, 1\]"),
        (torch.ones(58, 2, 16) * NAN, torch.ones(58, 1, 1), "mean holds NaN or infinity"),
        (torch.ones(58, 2, 16), torch.ones(58, 1, 1) * INF, "std holds NaN or infinity"),
        (torch.ones(58, 2, 16), -torch.ones(58, 1, 1), "std holds negative values"),
    ],
)
def test_statistics(good, mean, std, message):
    layout = TokenLayout.from_dict(good.layout.to_dict())
    fails(message, layout.set_statistics, mean, std)
    assert layout.mean is None
    layout.set_statistics(torch.ones(58, 2, 16), torch.ones(58, 1, 1))


def test_a_border_has_no_statistics(good):
    border = TokenLayout.for_model(good.config, 2, scale="border")
    ones = torch.ones(3, 58, 4, 18)
    fails("only scale='static' has statistics", border.fit, ones)
    fails("only scale='static' has a mean and std", border.set_statistics, ones[0], ones[0, :, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.clear(), "no tensors base_model.model.….lora_A.weight"),
        (lambda x: x.pop(A), "q_proj has only one of lora_A and lora_B"),
        (lambda x: x.update({A: x[A] * NAN}), f"{A} holds NaN or infinity"),
        (lambda x: x.update({A: x[A].bool()}), f"{A} is torch.bool, expected a tensor of floating"),
        (lambda x: x.update({A: x[A].T}), r"q_proj: lora_A has shape \[32, 2\] and lora_B \[32, 2"),
        (lambda x: x.update({A: 1.0}), f"{A} is a float, expected a tensor"),
    ],
)
def test_adapters(good, change, message):
    tensors = dict(good.adapter.tensors)
    Adapter(tensors, good.adapter.config)
    change(tensors)
    fails(message, Adapter, tensors, good.adapter.config)


def test_calls_of_an_adapter(good):
    tensors, config = good.adapter.tensors, good.adapter.config
    fails("type 'IA3'; only LORA is supported", Adapter, tensors, {"peft_type": "IA3"})
    fails("entry 'r' is None, not a positive", Adapter, tensors, {"peft_type": "LORA"})
    foreign = {key.removeprefix("base_model."): value for key, value in tensors.items()}
    fails("no tensors base_model.model", Adapter, foreign, config)
    fails("is torch.int8, expected a tensor of floating", good.adapter.to, torch.int8)
    fewer = Adapter({k: v for k, v in tensors.items() if "q_proj" not in k}, config)
    fails("different modules: 2 are in one only, .*q_proj for one", good.adapter.compare, fewer)
    narrow = Adapter(tensors | {A: tensors[A][:, :8]}, config)
    fails(r"of shape \[32, 32\], the other \[32, 8\]", good.adapter.compare, narrow)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "type 'IA3'; only LORA"),
        ({"peft_type": ...}, "type None; only LORA"),
        ({"r": ...}, "entry 'r' is None, not a positive integer"),
        ({"r": "2"}, "entry 'r' is '2', not a positive integer"),
        ({"r": 0}, "entry 'r' is 0, not a positive integer"),
        ({"r": True}, "entry 'r' is True, not a positive integer"),
        ({"lora_alpha": None}, "entry 'lora_alpha' is None, not a number"),
        ({"lora_alpha": NAN}, "entry 'lora_alpha' is nan, not a number"),
    ],
)
def test_an_adapters_config(good, tmp_path, changes, message):
    source = good.folder / "adapter"
    folder = damaged(source, tmp_path / "a", "adapter_config.json", entries(**changes))
    assert str(folder) in fails(message, Adapter.load, folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tensors("0.self_attn.q_proj.lora_A", GONE), f"{Q} has only one of lora_A and lora_B"),
        (tensors("0.self_attn.q_proj.lora_B", GONE), f"{Q} has only one of lora_A and lora_B"),
        (tensors("lora", GONE), "has no tensors"),
        (tensors("q_proj.lora_A", lambda x: x / 0), "q_proj.lora_A.weight holds NaN or infinity"),
        (tensors("q_proj.lora_B", lambda x: x * NAN), "q_proj.lora_B.weight holds NaN or infinity"),
        (tensors("q_proj.lora_A", lambda x: x.int()), "q_proj.lora_A.weight is torch.int32"),
        (
            tensors("q_proj.lora_A", lambda x: x.to(torch.float8_e4m3fn)),
            "is torch.float8_e4m3fn, expected a tensor of floating-point numbers in 16, 32",
        ),
        (
            tensors("q_proj.lora_A", lambda x: torch.cat([x, x])),
            r"q_proj: lora_A has shape \[4, 32\] and lora_B \[32, 2\], expected",
        ),
        (tensors("q_proj.lora_A", lambda x: x[0].clone()), r"q_proj: lora_A has shape \[32\]"),
        (tensors("q_proj.lora_B", torch.sum), r"q_proj: .* and lora_B \[\]"),
    ],
)
def test_an_adapters_weights(good, tmp_path, change, message):
    source = good.folder / "adapter"
    if message == "has no tensors":
        whole, change = change, lambda data: extra_tensor(whole(data))
    folder = damaged(source, tmp_path / "a", "adapter_model.safetensors", change)
    assert str(folder) in fails(message, Adapter.load, folder)


def wrapped(model):
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


@torch.no_grad()
def logits(model):
    return model(torch.arange(12).view(1, -1)).logits


def apply_with(tensors, config, model):
    return Adapter(tensors, config).apply(model)


@pytest.mark.parametrize("method", ["apply", "merge_into"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 1}, r"adapts model\.layers\.1\.\S+, which the model does not have"),
        ({"hidden_size": 64}, r"needs a weight of shape \[32, 32\], found \[64, 64\]"),
        ({"intermediate_size": 40}, r"needs a weight of shape \[48, 32\], found \[40, 32\]"),
    ],
)
def test_a_wrong_base_model_is_left_alone(good, method, change, message):
    settings = {**good.config.to_dict(), "layer_types": None, **change}
    base = Qwen2ForCausalLM(Qwen2Config(**settings)).eval()
    before = logits(base)
    fails(message, getattr(good.adapter, method), base)
    assert not wrapped(base)
    assert torch.equal(logits(base), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 9}, "contradicts its configuration: .* has rank 2, not 9"),
        ({"rank_pattern": {"q_proj": 4}}, "q_proj has rank 2, not 4"),
        ({"target_modules": ["q_proj"]}, "contradicts its configuration: .*see target_modules"),
        ({"target_modules": ["qkv"]}, "contradicts its configuration: .*see target_modules"),
        ({"target_modules": None}, "contradicts its configuration"),
        ({"target_modules": 3}, "PEFT cannot use the adapter's configuration"),
        ({"target_modules": "((q_proj"}, "PEFT cannot use the adapter's configuration"),
        ({"layers_to_transform": [0]}, "model.layers.1.*in one only"),
        ({"use_dora": True}, "contradicts its configuration: .*lora_magnitude_vector"),
        ({"task_type": "POETRY"}, "PEFT cannot use .*POETRY"),
        ({"lora_dropout": "0.1"}, "PEFT cannot use the adapter's configuration"),
        ({"bias": "some"}, "PEFT cannot use .*bias: some"),
    ],
)
def test_an_adapter_that_contradicts_itself(good, tiny_base, changes, message):
    """PEFT noticed some of it only after it had wrapped half of the base model."""
    before, untouched = logits(tiny_base), copy.deepcopy(tiny_base)
    fails(message, apply_with, good.adapter.tensors, good.adapter.config | changes, tiny_base)
    assert not wrapped(tiny_base)
    assert vars(tiny_base).keys() == vars(untouched).keys()
    assert torch.equal(logits(tiny_base), before)
    applied = logits(good.adapter.apply(tiny_base))  # and a good one still fits
    assert torch.equal(applied, logits(good.adapter.apply(untouched)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 9}, "has rank 2, not 9"),
        ({"target_modules": ["q_proj"]}, "see target_modules"),
        ({"task_type": "POETRY"}, "POETRY"),
    ],
)
def test_a_failed_replacement_keeps_the_first_adapter(good, tiny_base, changes, message):
    applied = good.adapter.apply(tiny_base)
    before = logits(applied)
    other = {key: 2 * value for key, value in good.adapter.tensors.items()}
    fails(message, apply_with, other, good.adapter.config | changes, applied)
    assert torch.equal(logits(applied), before)
    Adapter(other, good.adapter.config).apply(applied)
    assert not torch.equal(logits(applied), before)


def test_a_base_that_carries_an_adapter(good, tiny_base):
    good.adapter.apply(tiny_base)
    for method in (good.adapter.apply, good.adapter.merge_into):
        fails(r"already carries an adapter; call apply\(\) with the PEFT model", method, tiny_base)
