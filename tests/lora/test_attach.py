"""Adapters on live models: what PEFT itself makes of them, or a refusal that changes nothing."""

import copy
import sys
import warnings

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM

from dnd_fast.lora import attach
from dnd_fast.lora.adapter import Adapter

from ..bad_input import fails
from .conftest import logits, off, small_base

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


def test_what_peft_writes_is_what_peft_answers(trained):
    """Applied and merged, every configuration on a head of its own."""
    base = small_base()
    for what, config in CONFIGS.items():
        adapter, live = trained(base, **config)
        assert off(adapter.apply(copy.deepcopy(base)), live) == 0, what
        assert off(adapter.merge_into(copy.deepcopy(base)), live) < 3e-5, what


@examples
@given(st.lists(names, min_size=2, max_size=4), st.booleans(), st.booleans())
def test_one_after_the_other_is_as_on_a_fresh_base(trained, order, tied, low):
    """Nothing of an earlier adapter stays, in the layers or in the base below them."""
    base = small_base(tie_word_embeddings=tied).to(torch.bfloat16 if low else torch.float32)
    model = None
    for seed, name in enumerate(order):
        adapter, _ = trained(base, seed, **CONFIGS[name])
        fresh = adapter.apply(copy.deepcopy(base))
        if model is None:
            model = adapter.apply(copy.deepcopy(base))
        else:
            assert adapter.apply(model) is model
        assert off(model, fresh) == 0
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        with model.disable_adapter(), fresh.disable_adapter():
            assert off(model, fresh) == 0
            assert "bias" in name or off(model, base) == 0


class Interruption(Exception):
    pass


PLACES = (peft.__path__[0], attach.__file__)


def run_traced(call, at=None):
    """Run lines of PEFT's and of those that call it, and raise at one; return their number."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if not frame.f_code.co_filename.startswith(PLACES):
            return None
        if event == "line":
            count += 1
            if count == at:
                raise Interruption
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return count


def structure(model):
    """All that a model is but values: modules, parameters and flags, and attributes' names."""
    return (
        [(name, id(module), sorted(vars(module))) for name, module in model.named_modules()],
        [(name, id(p), p.requires_grad) for name, p in model.named_parameters()],
        getattr(model, "peft_config", None),
    )


@examples
@given(st.none() | names, names, st.booleans(), st.floats(0, 1, exclude_max=True))
def test_an_exception_anywhere_in_peft_changes_nothing(trained, first, second, tied, where):
    """Raised at any line of PEFT's code, on a base or on a model with another adapter."""
    base = small_base(tie_word_embeddings=tied)
    own = copy.deepcopy(base)
    adapter, _ = trained(base, 2, **CONFIGS[second])
    model = base if first is None else trained(base, 1, **CONFIGS[first])[0].apply(base)
    before, was = logits(model), structure(model)
    lines = run_traced(lambda: adapter.apply(copy.deepcopy(model)))
    with warnings.catch_warnings(), pytest.raises(Interruption):
        run_traced(lambda: adapter.apply(model), 1 + int(where * lines * 0.98))
    assert structure(model) == was
    assert off(model, before) == 0
    if first is not None and "bias" not in first:
        with model.disable_adapter():
            assert off(model, own) == 0
    assert off(adapter.apply(model), adapter.apply(own)) == 0


@pytest.mark.parametrize("config", ["plain", "magnitudes", "biases", "whole head", "tokens"])
@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_an_exception_while_merging_changes_nothing_but_rounding(trained, config, where):
    base = small_base()
    adapter, _ = trained(base, **CONFIGS[config])
    lines = run_traced(lambda: adapter.merge_into(copy.deepcopy(base)))
    before, was = logits(base), structure(base)
    with pytest.raises(Interruption):
        run_traced(lambda: adapter.merge_into(base), int(where * lines))
    assert structure(base) == was
    assert off(base, before) < 1e-5


# Refused by name --------------------------------------------------------------------------------


def refuses(adapter, model, message, method="apply"):
    """The adapter is refused, and the model answers as before."""
    before, was = logits(model), structure(model)
    fails(message, getattr(adapter, method), model)
    assert structure(model) == was
    assert off(model, before) == 0


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


# Where models come from -------------------------------------------------------------------------


def test_a_model_made_in_inference_mode(trained):
    """As in a request's handler: its parameters could never be written to outside."""
    adapters = [trained(small_base(), seed, **c)[0] for seed, c in enumerate(CONFIGS.values())]
    base = small_base()
    with torch.inference_mode():
        model = adapters[0].apply(base)
    for adapter in adapters:
        assert off(adapter.apply(model), adapter.apply(small_base())) == 0


def test_a_base_made_in_inference_mode(trained):
    adapter, live = trained(small_base())
    biased, _ = trained(small_base(), 2, bias="all")
    with torch.inference_mode():
        base = small_base()
    model = adapter.apply(base)
    assert off(model, live) == 0
    refuses(biased, model, "bias='all'.*made in torch.inference_mode.*torch.no_grad")
    key = "base_model.model.lm_head.weight"
    headed = Adapter(adapter.tensors | {key: torch.ones(64, 32)}, adapter.config)
    refuses(headed, model, "lm_head.weight cannot be .*made in torch.inference_mode")


def test_a_live_model_that_peft_has_made(trained):
    """In inference mode, too, and with another adapter's name."""
    adapter, live = trained(small_base(), 1)
    config = LoraConfig(r=2, target_modules=[Q, V])
    with torch.inference_mode():
        frozen = get_peft_model(small_base(), config, adapter_name="mine").eval()
    for model in (get_peft_model(small_base(), config, adapter_name="mine"), frozen):
        assert off(adapter.apply(model), live) == 0
        assert list(model.peft_config) == ["mine"]


def test_the_config_of_a_live_model(trained, tmp_path):
    """It has sets, which JSON has not."""
    _, live = trained(small_base())
    config = live.peft_config["default"].to_dict()
    assert isinstance(config["target_modules"], set)
    adapter = Adapter(get_peft_model_state_dict(live), config)
    assert off(adapter.apply(small_base()), live) == 0
    adapter.save(tmp_path / "again")
    again = Adapter.load(tmp_path / "again")
    assert again.config["target_modules"] == [Q, V]
    assert off(again.apply(small_base()), live) == 0


def test_a_config_is_not_written_to(trained):
    """PEFT changes its own in place."""
    adapter, _ = trained(small_base())
    before = copy.deepcopy(adapter.config)
    adapter.apply(small_base())
    assert adapter.config == before


def test_layers_are_unwrapped_for_another_configuration(trained):
    base = small_base()
    wide, _ = trained(base, 1, target_modules="all-linear", modules_to_save=["embed_tokens"])
    narrow, _ = trained(base, 2, target_modules=[Q])
    model = wide.apply(base)
    narrow.apply(model)
    wrapped = [name for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)]
    assert len(wrapped) == 2
    assert all(name.endswith(Q) for name in wrapped)


def test_merging_into_a_live_model_takes_it_off(trained):
    adapter, live = trained(small_base())
    other, _ = trained(small_base(), 2, modules_to_save=["lm_head"])
    merged = adapter.merge_into(other.apply(small_base()))
    assert off(merged, live) < 1e-5
    assert not any(isinstance(module, BaseTunerLayer) for module in merged.modules())
