"""The guided demo: prompts of a task the generator never saw, an adapter, and whether it works."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dnd_fast.demo.exam import EXAM_SIZE, exam
from dnd_fast.demo.tasks import EXAMPLES, SHIPPED_SEED, Example, Task, split_tasks
from dnd_fast.generator import Generator
from dnd_fast.generator_config import DEMO_MODELS
from dnd_fast.lora.adapter import Adapter
from dnd_fast.lora.batched import encode, exact_match, generate_responses
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.lora.weight_layout import WeightLayout
from dnd_fast.recipe import Recipe
from dnd_fast.train.adapters.collect import collect

SHOWN = 0  # which of the held-out tasks


def show(console: Console, out: Path) -> dict[str, Any]:
    """Run the demo on the shipped files, explain it on ``console``, leave the adapter at ``out``.

    Returns:
        ``base``, ``generated``, ``control``, ``oracle``: exact match on the shown task's test set;
        ``seconds``: time of the generation, text encoder included and already loaded;
        ``stages``: its parts; ``held_out``: the same over all held-out tasks.
    """
    start = time.perf_counter()
    split = split_tasks(SHIPPED_SEED)
    tasks, combinations = split["test"], sum(map(len, split.values()))
    task, other = tasks[SHOWN], tasks[SHOWN + 1]
    generator = Generator.from_pretrained("demo")
    _ = generator.encoder
    base = AutoModelForCausalLM.from_pretrained(DEMO_MODELS / "base", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODELS / "tokenizer")
    loading = time.perf_counter() - start

    def prompts_of(which: Task) -> list[str]:
        count = generator.config.condition.prompts
        return [example.prompt for example in which.examples(count, "train", 9)]

    console.rule("A task that the generator never saw")
    console.print(
        f"Skill, answer format and words: [bold]{task}[/bold]. Of {combinations} combinations of "
        f"skill and format, this one and {len(tasks) - 1} others were kept for testing.\n"
        "All that the generator gets are these prompts, without any answers:\n"
    )
    for prompt in prompts_of(task):
        console.print(f"  {prompt}", highlight=False, markup=False)

    generator.generate(prompts_of(other))  # warms up; not part of the time shown
    begin = time.perf_counter()
    adapter = generator.generate(prompts_of(task))
    seconds = time.perf_counter() - begin
    stages = dict(generator.timings)
    begin = time.perf_counter()
    adapter.save(out)
    stages["save"] = time.perf_counter() - begin

    console.rule("One forward pass later: a LoRA adapter")
    table = Table("stage", "milliseconds", box=None)
    table.add_row("load models (once)", f"{1e3 * loading:.0f}")
    for name, value in stages.items():
        table.add_row(name, f"{1e3 * value:.1f}")
    console.print(table)

    adapters = generator.generate(list(map(prompts_of, tasks)))
    with console.status(f"training {len(tasks)} adapters on the tasks' answers, to compare with"):
        begin = time.perf_counter()
        oracle = _trained_adapters(base, tokenizer, generator.layout, tasks)
        training = (time.perf_counter() - begin) / len(tasks)
    batch = exam(tokenizer, tasks)
    scores = {
        name: exact_match(base, batch, tensors, adapter.scaling).tolist()
        for name, tensors in (
            ("base", None),
            ("generated", _stacked(adapters)),
            ("control", _stacked([*adapters[1:], adapters[0]])),
            ("oracle", oracle),
        )
    }

    console.rule("Does it work? Exact match on unseen words")
    table = Table("", "this task", f"all {len(tasks)} test tasks", box=None)
    for name, label in (
        ("base", "base model alone"),
        ("generated", "with the generated adapter"),
        ("control", "adapter from another task's prompts"),
        ("oracle", "LoRA trained on the answers, just now"),
    ):
        table.add_row(label, f"{scores[name][SHOWN]:.0%}", f"{mean(scores[name]):.0%}")
    console.print(table)
    console.print(
        f"Generating one adapter took {seconds:.2f} s. Training took {training:.1f} s each, "
        f"{len(tasks)} in one batch, and needed {EXAMPLES} answers for each."
    )
    by_word = {example.word: example for example in task.examples(EXAM_SIZE, "test", 1)}
    _print_examples(console, base, tokenizer, list(by_word.values())[:3], adapter)

    console.rule("Take it home")
    console.print(f"The adapter is in [bold]{out}[/bold]. Load it with PEFT:\n")
    for line in (
        "from peft import PeftModel; from transformers import AutoModelForCausalLM",
        f'base = AutoModelForCausalLM.from_pretrained("{DEMO_MODELS / "base"}")',
        f'model = PeftModel.from_pretrained(base, "{out}")',
    ):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    return {
        "task": str(task),
        **{name: values[SHOWN] for name, values in scores.items()},
        "seconds": seconds,
        "stages": stages,
        "held_out": {name: mean(values) for name, values in scores.items()},
    }


def _trained_adapters(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    layout: WeightLayout,
    tasks: list[Task],
) -> dict[str, torch.Tensor]:
    """Train the oracle: one adapter per task, as the collection was trained."""
    datasets = [
        encode(tokenizer, (e.turn for e in task.examples(EXAMPLES, "train", 0))) for task in tasks
    ]
    unfitted = TokenLayout.from_dict(layout.to_dict())
    spec = dataclasses.replace(Recipe.load("demo").collection, checkpoints=1)
    return unfitted.detokenize(collect(base, unfitted, datasets, spec, seed=SHIPPED_SEED)[:, -1])


def _stacked(adapters: list[Adapter]) -> dict[str, torch.Tensor]:
    return {
        key: torch.stack([adapter.tensors[key] for adapter in adapters])
        for key in adapters[0].tensors
    }


def _print_examples(
    console: Console,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    adapter: Adapter,
) -> None:
    prompts = [[example.prompt for example in examples]]
    before = generate_responses(base, tokenizer, prompts)[0]
    after = generate_responses(base, tokenizer, prompts, _stacked([adapter]), adapter.scaling)[0]
    table = Table("prompt", "base", "with the adapter", "right answer", box=None)
    for example, plain, adapted in zip(examples, before, after, strict=True):
        table.add_row(
            *(
                value.replace("[", r"\[")
                for value in (example.prompt, plain, adapted, example.answer)
            )
        )
    console.print()
    console.print(table)
