"""Regression gates on the shipped demo: it must go on working, the controls on failing."""

from statistics import mean

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from dnd_fast import Generator
from dnd_fast.demo.exam import exam
from dnd_fast.demo.tasks import SHIPPED_SEED, split_tasks
from dnd_fast.demo.tokenizer import build_tokenizer
from dnd_fast.generator_config import DEMO_MODELS
from dnd_fast.lora.batched import encode, exact_match, generate_responses

TASKS = split_tasks(SHIPPED_SEED)["test"]
PROMPTS = [[example.prompt for example in task.examples(8, "train", 5)] for task in TASKS]


@pytest.fixture(scope="module")
def base():
    return AutoModelForCausalLM.from_pretrained(DEMO_MODELS / "base", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DEMO_MODELS / "tokenizer")


@pytest.fixture(scope="module")
def batch(tokenizer):
    return exam(tokenizer, TASKS)


def scores(base, batch, adapters):
    stacked = {
        key: torch.stack([adapter.tensors[key] for adapter in adapters])
        for key in adapters[0].tensors
    }
    return mean(exact_match(base, batch, stacked, adapters[0].scaling).tolist())


@pytest.mark.parametrize(("folder", "gate"), [("generator", 0.65), ("generator-mse", 0.40)])
def test_unseen_tasks(base, batch, folder, gate):
    generator = Generator.from_pretrained(DEMO_MODELS / folder)
    adapters = generator.generate(PROMPTS)
    assert scores(base, batch, adapters) >= gate
    assert scores(base, batch, [*adapters[1:], adapters[0]]) <= 0.05  # another task's prompts


def test_the_base_alone_cannot_do_it(base, batch):
    assert exact_match(base, batch).mean() <= 0.05


def test_the_shipped_tokenizer_is_the_codes(tokenizer):
    examples = [example.turn for task in TASKS for example in task.examples(4, "test", 0)]
    assert encode(tokenizer, examples) == encode(build_tokenizer(), examples)


def test_an_adapter_works_in_peft(base, tokenizer, tmp_path):
    """What the demo tells people to do must give what the demo showed."""
    adapter = Generator.from_pretrained("demo").generate(PROMPTS[0])
    adapter.save(tmp_path / "adapter")
    stacked = {key: value[None] for key, value in adapter.tensors.items()}
    questions = [[example.prompt for example in TASKS[0].examples(4, "test", 1)]]
    expected = generate_responses(base, tokenizer, questions, stacked, adapter.scaling)
    fresh = AutoModelForCausalLM.from_pretrained(DEMO_MODELS / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    assert generate_responses(model, tokenizer, questions) == expected


def test_size():
    """The package must stay small."""
    total = sum(file.stat().st_size for file in DEMO_MODELS.rglob("*") if file.is_file())
    assert total <= 12_000_000
