"""The benchmark of training steps through a frozen base, on a tiny one."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dnd_fast import TokenLayout
from dnd_fast.bench import training_base
from dnd_fast.bench.harness import results
from dnd_fast.bench.training_base import AGAIN, FROZEN, MODEL, MODEL_BF16, measure
from dnd_fast.lora.frozen_base import FrozenBase

FEATURES = [[2, 4, 8], [4, 4, 8]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture
def layout(model):
    return TokenLayout.for_model(model.config, 2, layers=(1, 1))


@pytest.mark.parametrize("step", training_base.STEPS)
def test_forms_of_a_step_agree(step, model, layout, tmp_path, monkeypatch):
    """Every form sees the same examples, whatever it has seen before."""
    figures = measure(step, model, layout, FEATURES, 2)
    apart = figures["gradient_difference"]
    assert apart[MODEL] == 0
    assert apart[FROZEN] < 1e-4 < apart[AGAIN] < 0.1
    assert apart[MODEL_BF16] < 0.1
    assert figures["speedup"][MODEL] == 1
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    results.append("training_base", {"base": "tiny", "step": step, "seed": 0} | figures)
    (line,) = (tmp_path / "training_base.jsonl").read_text().splitlines()
    assert json.loads(line)["adapters"] == training_base.STEPS[step][0]
    rows = training_base.markdown().splitlines()
    assert len(rows) == 2 + len(apart) - 1
    assert f"{step}, " in rows[2]


def test_wrong_gradients_are_refused(model, layout, monkeypatch):
    right = FrozenBase.summed_losses
    monkeypatch.setattr(FrozenBase, "summed_losses", lambda *given: 1.01 * right(*given))
    with pytest.raises(SystemExit, match=r"gradients differ by 1\.0e-02"):
        measure("collection", model, layout, FEATURES, 2)
