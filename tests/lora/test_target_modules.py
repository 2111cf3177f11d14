"""Which layers are adapted, against what PEFT finds."""

import json

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2_5_VLForConditionalGeneration

from dnd_fast import InvalidInput, TokenLayout

from .test_layout import TINY, assert_peft_agrees, vl_config


@pytest.mark.parametrize("layers", [(0, 1), (1, 10), (2, 2)])
def test_a_choice_of_layers_is_pefts(layers):
    """Layer 1 is not taken for layer 10, whose names begin alike."""
    config = AutoConfig.for_model("llama", **TINY | {"num_hidden_layers": 12})
    model = AutoModelForCausalLM.from_config(config)
    layout = TokenLayout.for_model(config, 2, layers=layers)
    assert_peft_agrees(layout, model)
    first, last = layers
    numbers = {int(module.name.split(".")[2]) for module in layout.adapted_modules}
    assert numbers == set(range(first, last + 1))
    everything = TokenLayout.for_model(config, 2).adapted_modules
    assert layout.adapted_modules == everything[7 * first : 7 * (last + 1)]
    again = TokenLayout.from_dict(json.loads(json.dumps(layout.to_dict())))
    assert again.to_dict() == layout.to_dict()


def test_layers_of_a_vision_language_model():
    config = vl_config()
    layout = TokenLayout.for_model(config, 2, layers=[1, 1])
    theirs = assert_peft_agrees(layout, Qwen2_5_VLForConditionalGeneration(config))
    assert theirs
    assert all("language_model.layers.1." in key for key in theirs)


@pytest.mark.parametrize("layers", [2**31, 10**400])
def test_layers_without_end(layers):
    """They were built for hours."""
    config = AutoConfig.for_model("llama", **TINY | {"num_hidden_layers": layers})
    with pytest.raises(InvalidInput, match=r"this LlamaConfig: num_hidden_layers=.* 1000 at most"):
        TokenLayout.for_model(config, 2)


@pytest.mark.parametrize("layers", [(1, 0), (0, 2), (-1, 1)])
def test_layers_that_the_model_does_not_have(layers):
    config = AutoConfig.for_model("qwen2", **TINY)
    with pytest.raises(InvalidInput, match=r"layers=\[.*with layers 0 to 1 must be two of these"):
        TokenLayout.for_model(config, 2, layers=layers)
