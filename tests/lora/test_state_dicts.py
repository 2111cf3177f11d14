"""What tokens are made of and what describes a layout: other spellings, damage, round trips."""

import json

import pytest
import torch
from transformers import AutoConfig

from dnd_fast import InvalidInput, TokenLayout

from .test_layout import TINY, make_layout, random_state, vl_config


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("base_model.model.", ""),
        (".weight", ".default.weight"),
        (".weight", ".my-adapter.weight"),
        ("language_model.", ""),
        ("model.language_model.", "language_model.model."),
    ],
)
def test_other_spellings_of_the_keys(old, new):
    """Files of PEFT, live models and the published code name the same tensors differently."""
    layout = TokenLayout.for_model(vl_config(), 2)
    state = random_state(layout)
    renamed = {key.replace(old, new): value for key, value in reversed(state.items())}
    assert renamed.keys().isdisjoint(state)
    assert torch.equal(layout.tokenize(renamed), layout.tokenize(state))


@pytest.mark.parametrize("scale", ["static", "border"])
def test_description_round_trip(scale):
    """Guards against a field that a saved generator loses."""
    for config in (AutoConfig.for_model("qwen2", **TINY), vl_config()):
        config._name_or_path = "some/base"
        layout = TokenLayout.for_model(config, 2, scale=scale, lora_alpha=7, chunk=6)
        again = TokenLayout.from_dict(json.loads(json.dumps(layout.to_dict())))
        assert again.to_dict() == layout.to_dict()
        assert (again.base_model, again.lora_alpha, again.chunk) == ("some/base", 7, 6)
        state = random_state(layout)
        torch.testing.assert_close(
            again.tokenize(state), layout.tokenize(state), rtol=0, atol=0, equal_nan=True
        )


def test_sizes_beyond_floating_point():
    """Chunks are counted in integers; sizes of 400 digits were an OverflowError."""
    exact = TokenLayout.from_dict(
        make_layout([(6, 4)], rank=2).to_dict() | {"modules": {"q": [2**60 + 1, 2]}, "chunk": 2}
    )
    assert exact.num_tokens == 2**59 + 2
    fields = make_layout([(6, 4)], rank=2).to_dict() | {"modules": {"q": [10**400, 1]}, "chunk": 1}
    assert TokenLayout.from_dict(fields).num_tokens == 10**400 + 1


@pytest.mark.parametrize(
    "change",
    [{"rank": 0}, {"rank": 2.0}, {"scale": "both"}, {"chunk": 0}, {"modules": {}}, {"typo": 1}],
)
def test_malformed_descriptions(change):
    fields = make_layout([(6, 4)], rank=2).to_dict()
    with pytest.raises(InvalidInput):
        TokenLayout.from_dict(fields | change)
    for key in ("rank", "modules", "lora_alpha"):
        with pytest.raises(InvalidInput, match=key):
            TokenLayout.from_dict({k: v for k, v in fields.items() if k != key})


def test_unusable_adapters_are_named():
    """Differing batch dimensions were torch's own error; a tensor given twice was "0 missing"."""
    layout = make_layout([(6, 4), (6, 4)], rank=2)
    state = random_state(layout)
    key, other = list(state)[:2]
    bad = {
        f"1 missing .{key}": {k: v for k, v in state.items() if k != key},
        "1 unexpected .lm_head": state | {"lm_head.lora_A.weight": state[key]},
        f"1 repeated .{key}": {key: state[key], key.replace(".weight", ".default.weight"): 0}
        | state,
        f"{key} has shape": state | {key: state[key].T},
        f"{other} has shape": state | {other: state[other].expand(3, -1, -1)},
        f"{other} holds NaN": state | {other: state[other] / 0},
    }
    for message, tensors in bad.items():
        with pytest.raises(InvalidInput, match=message):
            layout.tokenize(tensors)
    with pytest.raises(InvalidInput, match="tokens have shape"):
        layout.detokenize(torch.zeros(3, 2, 2))
