"""Adapters on live models: what PEFT itself makes of them, or a refusal that changes nothing."""

import copy
import sys
import warnings

import peft
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer

from dnd_fast.lora import attach
from dnd_fast.lora.adapter import Adapter

from .conftest import (
    CONFIGS,
    Q,
    V,
    examples,
    logits,
    names,
    off,
    refuses,
    small_base,
    structure,
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


@examples
@example(first="all biases", second="all biases", tied=False, where=0.9921875)
@given(
    first=st.none() | names,
    second=names,
    tied=st.booleans(),
    where=st.floats(0, 1, exclude_max=True),
)
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
