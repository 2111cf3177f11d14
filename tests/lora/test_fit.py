"""Adapters that are refused by name, and leave the model and the base below it as they were."""

import copy

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from dnd_fast import InvalidInput
from dnd_fast.lora.adapter import Adapter

from ..bad_input import fails
from .conftest import CONFIGS, Q, V, examples, names, off, refuses, small_base

SPOILS = {
    "missing": lambda tensors, key: tensors.pop(key),
    "longer": lambda tensors, key: tensors.update({key: torch.cat([tensors[key]] * 2)}),
    "empty": lambda tensors, key: tensors.update({key: tensors[key][:0]}),
    "flat": lambda tensors, key: tensors.update({key: tensors[key].flatten()[:1]}),
    "renamed": lambda tensors, key: tensors.update({f"{key}x": tensors.pop(key)}),
    "added": lambda tensors, key: tensors.update({f"{key}x": tensors[key]}),
}


@examples
@given(
    st.none() | names,
    names,
    st.sampled_from(sorted(SPOILS)),
    st.integers(0, 99),
    st.sampled_from(["apply", "merge_into"]),
)
def test_a_spoilt_adapter_changes_nothing(trained, first, second, spoil, which, method):
    """One of its tensors, of whatever kind, is missing, of another shape or under another name."""
    base = small_base()
    adapter, _ = trained(base, 2, **CONFIGS[second])
    tensors = dict(adapter.tensors)
    key = sorted(tensors)[which % len(tensors)]
    SPOILS[spoil](tensors, key)
    try:
        spoilt = Adapter(tensors, adapter.config)
    except InvalidInput:
        return  # seen without any model
    model = base if first is None else trained(base, 1, **CONFIGS[first])[0].apply(base)
    # PEFT saves the base's own embedding along, which is not needed.
    if spoil == "missing" and key.endswith("base_layer.weight"):
        whole = getattr(adapter, method)(small_base())
        assert off(getattr(spoilt, method)(model), whole) == 0
    else:
        refuses(spoilt, model, "", method)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "loftq", "corda", "lora_ga"])
@pytest.mark.parametrize("method", ["apply", "merge_into"])
def test_initialisations_that_change_the_base(trained, init, method):
    base = small_base()
    adapter, _ = trained(base)
    config = {"init_lora_weights": init, "loftq_config": {"loftq_bits": 4}}
    odd = Adapter(adapter.tensors, adapter.config | config)
    refuses(odd, base, f"init_lora_weights='{init}'.* Convert it to a plain one", method)
    refuses(odd, adapter.apply(base), f"init_lora_weights='{init}'")


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "eva", "mica"])
def test_initialisations_that_do_not(trained, init):
    """All values are loaded, so that it makes no difference, nor does an odd rank."""
    base = small_base()
    adapter, live = trained(base, r=3)
    odd = Adapter(adapter.tensors, adapter.config | {"init_lora_weights": init})
    assert off(odd.apply(base), live) == 0


def test_a_base_that_peft_has_changed(trained):
    """By PiSSA, or by biases: the base's own values are lost."""
    adapter, _ = trained(small_base())
    changed = get_peft_model(
        small_base(), LoraConfig(r=2, target_modules=[Q, V], init_lora_weights="pissa")
    )
    refuses(adapter, changed.eval(), "the model's adapter 'default' has init_lora_weights='pissa'")
    _, biased = trained(small_base(), 2, bias="all")
    refuses(adapter, biased, "bias='all', and was not put on by apply.* loaded again")


@pytest.mark.parametrize(
    ("entry", "value"),
    [("layer_replication", [[0, 2], [1, 2]]), ("alora_invocation_tokens", [1, 2])],
)
def test_settings_that_change_more_than_layers(trained, entry, value):
    base = small_base()
    adapter, _ = trained(base)
    odd = Adapter(adapter.tensors, adapter.config | {entry: value})
    refuses(odd, base, f"has {entry}=.*cannot be taken back")


def test_several_adapters(trained, tmp_path):
    """As those have who switch between them; none is lost."""
    base = small_base()
    third, _ = trained(base, 3)
    for seed, name in enumerate(("one", "two")):
        trained(base, seed)[0].save(tmp_path / name)
    model = PeftModel.from_pretrained(base, tmp_path / "one", adapter_name="one")
    model.load_adapter(tmp_path / "two", "two")
    model.set_adapter("two")
    refuses(third, model, r"holds 2 adapters \(one, two\).*delete_adapter")
    model.delete_adapter("one")
    assert off(third.apply(model), third.apply(small_base())) == 0


def test_an_adapter_of_another_kind(trained):
    adapter, _ = trained(small_base())
    config = peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    refuses(adapter, get_peft_model(small_base(), config).eval(), "is of type .*IA3")


@pytest.mark.parametrize(
    ("spoil", "mend", "what"),
    [
        ("disable_adapter_layers", "enable_adapter_layers", "switched off"),
        ("merge_adapter", "unmerge_adapter", "merged into the weights"),
    ],
)
def test_layers_that_would_swallow_an_adapter(trained, spoil, mend, what):
    """It was put on, and the model went on as before."""
    first, second = (trained(small_base(), seed)[0] for seed in (1, 2))
    model = first.apply(small_base())
    getattr(model.base_model, spoil)()
    refuses(second, model, f"{what} in .*q_proj.*call the model's {mend}")
    getattr(model.base_model, mend)()
    assert off(second.apply(model), second.apply(small_base())) < 1e-6


def test_layers_without_an_active_adapter(trained):
    first, second = (trained(small_base(), seed)[0] for seed in (1, 2))
    model = first.apply(small_base())
    model.get_submodule("base_model.model.model.layers.1.self_attn.q_proj").set_adapter([])
    refuses(second, model, "not active in .*layers.1.self_attn.q_proj.*set_adapter")


@pytest.mark.parametrize("method", ["apply", "merge_into"])
def test_a_base_that_is_offloaded_in_part(trained, tmp_path, method):
    """On a disk's weights an adapter did nothing."""
    adapter, _ = trained(small_base())
    small_base().save_pretrained(tmp_path / "base")
    parts = ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head")
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base",
        device_map=dict.fromkeys(parts, "cpu") | {"model.layers.1": "disk"},
        offload_folder=tmp_path / "offload",
    )
    refuses(adapter, base.eval(), "layers.1.*is on the meta device.*without offloading", method)


@pytest.mark.parametrize("method", ["apply", "merge_into"])
def test_a_resized_vocabulary(trained, method):
    """Its head and embedding do not fit the base as it came."""
    base, larger = small_base(), small_base()
    larger.resize_token_embeddings(70)
    adapter, live = trained(larger, modules_to_save=["lm_head", "embed_tokens"])
    message = r"shape \[70, 32\], needed is \[64, 32\].*resize_token_embeddings"
    refuses(adapter, base, message, method)
    base.resize_token_embeddings(70)
    assert off(adapter.apply(base), live) == 0


def test_embeddings_that_are_saved_along(trained):
    """PEFT writes those of a resized base into the next one; they go with their adapter."""
    base, larger = small_base(), small_base()
    plain, _ = trained(base, 1)
    larger.resize_token_embeddings(64)
    with torch.no_grad():
        larger.get_input_embeddings().weight[:3] = 1
    adapter, live = trained(larger, 2)
    key = "base_model.model.model.embed_tokens.weight"
    whole = adapter.tensors | {key: larger.get_input_embeddings().weight.detach().clone()}
    model = plain.apply(copy.deepcopy(base))
    Adapter(whole, adapter.config).apply(model)
    assert off(model, live) == 0
    plain.apply(model)
    assert off(model, plain.apply(copy.deepcopy(base))) == 0
    other = whole | {"base_model.model.model.norm.weight": torch.ones(32)}
    refuses(Adapter(other, adapter.config), model, "norm.weight is in one only")


def test_a_whole_module_that_is_not_there(trained):
    """It was a KeyError, and the base stayed wrapped."""
    base = small_base()
    adapter, _ = trained(base)
    odd = Adapter(adapter.tensors, adapter.config | {"modules_to_save": ["lm_head"]})
    refuses(odd, base, "contradicts its configuration: .*lm_head.weight")
    refuses(odd, adapter.apply(base), "contradicts its configuration: .*lm_head.weight")


def test_values_too_large_for_the_model(trained):
    adapter, _ = trained(small_base(), modules_to_save=["lm_head"])
    large = {k: 1e6 * v if "lm_head" in k else v for k, v in adapter.tensors.items()}
    base = small_base().half()
    refuses(Adapter(large, adapter.config), base, "too large for the model's torch.float16")


def test_something_else_than_a_model(trained):
    adapter, _ = trained(small_base())
    fails("a model is needed .*got a str", adapter.apply, "some/base")


def test_a_tied_head_is_not_merged(trained):
    """Its update went into the embedding as well."""
    base = small_base(tie_word_embeddings=True)
    adapter, live = trained(base, target_modules=[Q, "lm_head"])
    refuses(adapter, base, "lm_head shares its weight.*Leave the adapter applied", "merge_into")
    assert off(adapter.apply(base), live) == 0


def test_a_bias_with_nothing_to_merge_into(trained):
    base = small_base()
    adapter, live = trained(base, target_modules=["o_proj"], lora_bias=True)
    refuses(adapter, base, "o_proj has no bias.*Leave it applied", "merge_into")
    assert off(adapter.apply(base), live) == 0


def test_an_update_that_overflows_is_not_merged(trained):
    base = small_base().half()
    adapter, _ = trained(base)
    large = Adapter({k: 200 * v for k, v in adapter.tensors.items()}, adapter.config)
    refuses(large, base, "PEFT cannot use .*NaNs detected", "merge_into")
