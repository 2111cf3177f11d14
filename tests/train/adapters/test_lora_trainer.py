"""Training adapters, several at once, against PEFT and torch's own tools one at a time."""

import copy
import dataclasses
import random

import pytest
import torch
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch.nn.utils.rnn import pad_sequence

from dnd_fast import InvalidInput
from dnd_fast.demo.tasks import Task
from dnd_fast.demo.tokenizer import build_tokenizer
from dnd_fast.lora.batched import TokenizedExample, encode
from dnd_fast.lora.frozen_base import FrozenBase
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.recipe import CollectSpec
from dnd_fast.train.adapters.lora_trainer import LoraTrainer, initial_adapter, rate, shorten, spread

from ...lora.test_batched import new_model

TASKS = [Task("first", "plain", "food"), Task("last", "stars", "food")]
SPEC = CollectSpec(
    steps=6, checkpoints=2, learning_rate=3e-3, final_learning_rate=5e-4, batch=4, parallel=2
)


def new_setting(tasks):
    """A base, a layout of its adapters, and eight examples of each task."""
    base = new_model().requires_grad_(False)
    tokenizer = build_tokenizer()
    datasets = [encode(tokenizer, (e.turn for e in task.examples(8, "train", 0))) for task in tasks]
    return base, TokenLayout.for_model(base.config, 2), datasets


@pytest.fixture(scope="module")
def setting():
    return new_setting(TASKS)


def test_initial_adapter_is_shared_and_harmless(setting):
    _, layout, _ = setting
    adapter = initial_adapter(layout, 5)
    again = initial_adapter(layout, 5)
    for key, value in adapter.items():
        assert torch.equal(value, again[key])
        if ".lora_B." in key:
            assert not value.any()
        else:  # unit variance of A x for x of unit variance
            assert value.square().mean() * value.shape[1] == pytest.approx(1, rel=0.4)


def test_schedule():
    """Warm-up, constant, linear decay to the last steps' rate."""
    spec = CollectSpec(steps=100, learning_rate=1e-2, final_learning_rate=1e-4)
    rates = [spec.learning_rate * rate(step, spec) for step in range(120)]
    assert rates[:10] == pytest.approx([1e-3 * (step + 1) for step in range(10)])
    assert rates[10:61] == pytest.approx([1e-2] * 51)
    assert rates[80] == pytest.approx((1e-2 + 1e-4) / 2)
    assert rates[100:] == pytest.approx([1e-4] * 20)


def test_samples_are_from_everywhere():
    assert spread("abcdef", 3) == ["a", "c", "e"]
    assert spread("abc", 3) == spread("abc", None) == spread("abc", 9) == ["a", "b", "c"]


def test_long_conversations():
    """A response is cut; a prompt that leaves no room for one cannot be used."""
    sequences = [
        TokenizedExample([1, 2, 3], 2),
        TokenizedExample([1, 2, 3, 4, 5], 2),
        TokenizedExample([1, 2, 3, 4, 5], 4),
    ]
    kept, cut, dropped = shorten(sequences, 4)
    assert kept == [TokenizedExample([1, 2, 3], 2), TokenizedExample([1, 2, 3, 4], 2)]
    assert (cut, dropped) == (1, 1)


def trainer(setting, datasets, spec=SPEC, **options):
    base, layout, _ = setting
    names = [f"set {i}" for i in range(len(datasets))]
    shared = initial_adapter(layout, 0)
    initial = {key: value.expand(len(datasets), *value.shape) for key, value in shared.items()}
    return LoraTrainer(base, layout, names, datasets, initial, spec, seed=0, **options)


def test_one_adapter_equals_peft(setting):
    """The ordinary way: PEFT, transformers' own loss, AdamW, clipping, a scheduler."""
    base, layout, datasets = setting
    found = trainer(setting, datasets[:1])
    model = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=2, lora_alpha=4, target_modules="all-linear")
    )
    set_peft_model_state_dict(model, initial_adapter(layout, 0))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=SPEC.learning_rate, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, SPEC))
    rng = random.Random("collect 0")
    clipped = []
    for _ in range(SPEC.steps + SPEC.checkpoints):
        drawn = [datasets[0][int(8 * rng.random())] for _ in range(SPEC.batch)]
        ids = pad_sequence([torch.tensor(each.ids) for each in drawn], batch_first=True)
        labels = pad_sequence(
            [torch.tensor([-100] * start + ids[start:]) for ids, start in drawn],
            batch_first=True,
            padding_value=-100,
        )
        optimizer.zero_grad()
        model(ids, attention_mask=ids != 0, labels=labels).loss.backward()
        clipped.append(torch.nn.utils.clip_grad_norm_(parameters, 1.0) > 1)
        optimizer.step()
        scheduler.step()
        found.advance()
        for key, expected in get_peft_model_state_dict(model).items():
            torch.testing.assert_close(found.adapters[key][0], expected, rtol=0, atol=1e-5)
    assert any(clipped)


@pytest.mark.parametrize("options", [{"micro_batch": 1}, {"micro_batch": 3}, {"recompute": True}])
def test_saving_memory_changes_nothing(setting, options):
    """Sums of losses over parts of a batch, each response token with the same weight."""
    found, expected = (trainer(setting, setting[2][:2], **each) for each in (options, {}))
    for _ in range(4):
        found.advance()
        expected.advance()
    for key, value in expected.adapters.items():
        torch.testing.assert_close(found.adapters[key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"micro_batch": 3}])
@pytest.mark.parametrize("layers", [None, (1, 1)])
def test_a_frozen_base_changes_nothing(setting, layers, options):
    base, _, datasets = setting
    layout = TokenLayout.for_model(base.config, 2, layers=layers)
    found = trainer((FrozenBase(base, layout), layout, None), datasets, **options)
    expected = trainer((base, layout, None), datasets, **options)
    for _ in range(4):
        found.advance()
        expected.advance()
    for key, value in expected.adapters.items():
        torch.testing.assert_close(found.adapters[key], value, rtol=1e-3, atol=1e-5)


def test_a_frozen_base_knows_its_vocabulary(setting):
    base, layout, _ = setting
    with pytest.raises(InvalidInput, match=r"'set 0'.*token 350, the base model has 350"):
        trainer((FrozenBase(base, layout), layout, None), [[TokenizedExample([1, 350], 1)]])


def test_a_restored_trainer_goes_on_to_the_same_bits(setting):
    whole, first, second = (trainer(setting, setting[2][:2]) for _ in range(3))
    for _ in range(6):
        whole.advance()
    for _ in range(3):
        first.advance()
    second.restore({key: value.clone() for key, value in first.state().items()}, first.step)
    for _ in range(3):
        second.advance()
    assert second.step == whole.step
    for key, value in whole.state().items():
        assert torch.equal(value, second.state()[key]), key


def test_a_loss_that_is_not_finite(setting):
    """It is named, and the adapters are as they were: what is saved stays usable."""
    _, _, datasets = setting
    found = trainer(setting, datasets[:2], dataclasses.replace(SPEC, learning_rate=1e38))
    found.advance()
    before = {key: value.clone() for key, value in found.adapters.items()}
    with pytest.raises(InvalidInput, match=r"data set 'set \d', step 2: the loss is (nan|inf)"):
        found.advance()
    assert all(torch.equal(value, before[key]) for key, value in found.adapters.items())


def test_another_models_tokenizer(setting):
    with pytest.raises(InvalidInput, match=r"'set 0'.*token 350, the base model has 350"):
        trainer(setting, [[TokenizedExample([1, 350], 1)]])
