"""The guided demo: prompts of a task the generator never saw, an adapter, and whether it works."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dnd_fast.console import console, progress_bars
from dnd_fast.files import require_no_file
from dnd_fast.generator import Generator
from dnd_fast.lora.adapter import Adapter
from dnd_fast.lora.batched import collate, encode, exact_match, generate_responses
from dnd_fast.text.datasets import Example

EXAMPLES = 5  # questions whose responses are shown
COLUMNS = {
    "base": "base model\nalone",
    "generated": "generated\nadapter",
    "control": "adapter of\nother prompts",
    "oracle": "LoRA trained\non the answers",
}

Progress = Callable[[int, int], None]  # steps done, steps in all


@dataclass(frozen=True)
class DemoTask:
    """A task that the generator never saw.

    Attributes:
        title: What is asked for.
        prompts: What its adapter is generated from.
        questions: Test questions with their only right responses, by level; of each level equally
            many in all tasks.
    """

    title: str
    prompts: list[str]
    questions: dict[str, list[Example]]


@dataclass(frozen=True)
class Demo:
    """What is shown.

    Attributes:
        name: Name of the demo, for its figures.
        about: What the first task is, with markup.
        limits: What the scores do not say.
        levels: What questions of each level say, for people.
        generator, base, tokenizer: The models.
        tasks: Tasks, of which the first is shown at length.
        usage: Returns the lines that load the adapter in a folder.
        train: Trains an adapter for each task on its answers, to compare with, and returns their
            tensors with a leading dimension.
    """

    name: str
    about: str
    limits: str
    levels: dict[str, str]
    generator: Generator
    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tasks: Sequence[DemoTask]
    usage: Callable[[Path], list[str]]
    train: Callable[[Progress], dict[str, Tensor]] | None = None


def show(load: Callable[[Progress], Demo], out: Path) -> dict[str, Any]:
    """Explain a demo on the terminal, and leave the first task's adapter at ``out``.

    Args:
        load: Loads the demo.
        out: Folder for the adapter.

    Returns:
        ``demo`` and ``task``; ``seconds``: time of the generation, text encoder included and
        already loaded; ``stages``: its parts; ``base``, ``generated``, ``control`` and, if any,
        ``oracle``: exact match of the first task by level; ``held_out``: the same over all tasks.

    Raises:
        InvalidInput: a shipped file is damaged, or the text encoder cannot be had.
        OSError: a shipped file is missing, or ``out`` cannot be written.
    """
    require_no_file(out)  # before anything is shown
    begin = time.perf_counter()
    with progress_bars(transient=True) as progress:
        demo = load(partial(progress, "load the models"))
    stages = {"load models (once)": time.perf_counter() - begin}
    task = demo.tasks[0]

    console.rule("A task that the generator never saw")
    console.print(
        f"{demo.about}\nAll that the generator gets are these prompts, without any answers:\n"
    )
    for prompt in task.prompts:
        _print_indented(Text(prompt))

    demo.generator.generate(demo.tasks[1].prompts)  # warms up; not part of the time shown
    begin = time.perf_counter()
    adapter = demo.generator.generate(task.prompts)
    seconds = time.perf_counter() - begin
    stages |= demo.generator.timings
    begin = time.perf_counter()
    adapter.save(out)
    stages["save"] = time.perf_counter() - begin

    console.rule("One forward pass later: a LoRA adapter")
    table = Table("stage", "milliseconds", box=None)
    for name, value in stages.items():
        table.add_row(name, f"{1e3 * value:.1f}")
    console.print(table)

    with progress_bars(transient=True) as progress:
        scores, training = _scores(demo, progress)
    console.rule("Does it work? Exact match of the whole response to unseen questions")
    console.print(_score_table(demo, scores))
    console.print(f"Generating one adapter took {seconds:.2f} s.")
    if training:
        console.print(f"Training took {training:.1f} s each, {len(demo.tasks)} in one batch.")
    console.print(demo.limits)
    _print_responses(demo, task, adapter)

    console.rule("Take it home")
    console.print(f"The adapter is in [bold]{escape(str(out))}[/bold]. Load it with PEFT:\n")
    for line in demo.usage(out):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    return {
        "demo": demo.name,
        "task": task.title,
        "seconds": seconds,
        "stages": stages,
        **{row: {level: values[0] for level, values in scores[row].items()} for row in scores},
        "held_out": {
            row: {level: mean(values) for level, values in scores[row].items()} for row in scores
        },
    }


def peft_lines(base: str | Path, adapter: Path) -> list[str]:
    """Return what loads an adapter onto its base, a folder."""
    return [
        "from peft import PeftModel; from transformers import AutoModelForCausalLM",
        f'base = AutoModelForCausalLM.from_pretrained("{base}")',
        f'model = PeftModel.from_pretrained(base, "{adapter}")',
    ]


def _scores(
    demo: Demo, progress: Callable[[str, int, int], None]
) -> tuple[dict[str, dict[str, list[float]]], float]:
    """Return exact match by row, level and task, and the seconds that training an adapter took."""
    adapters = demo.generator.generate([task.prompts for task in demo.tasks])
    rows: dict[str, Mapping[str, Tensor] | None] = {
        "base": None,
        "generated": _stacked(adapters),
        "control": _stacked([*adapters[1:], adapters[0]]),
    }
    training = 0.0
    if demo.train is not None:
        begin = time.perf_counter()
        rows["oracle"] = demo.train(partial(progress, "train adapters, to compare with"))
        training = (time.perf_counter() - begin) / len(demo.tasks)
    scores: dict[str, dict[str, list[float]]] = {row: {} for row in rows}
    done, total = 0, len(rows) * len(demo.levels)
    for level in demo.levels:
        questions = chain.from_iterable(task.questions[level] for task in demo.tasks)
        batch = collate(encode(demo.tokenizer, questions)).view(len(demo.tasks), -1)
        for row, tensors in rows.items():
            progress("ask and compare", done, total)
            found = exact_match(demo.base, batch, tensors, adapters[0].scaling)
            scores[row][level] = found.tolist()
            done += 1
    progress("ask and compare", done, total)
    return scores, training


def _stacked(adapters: list[Adapter]) -> dict[str, Tensor]:
    return {
        key: torch.stack([adapter.tensors[key] for adapter in adapters])
        for key in adapters[0].tensors
    }


def _score_table(demo: Demo, scores: dict[str, dict[str, list[float]]]) -> Table:
    table = Table("", "", *(COLUMNS[row] for row in scores), box=None)
    for scope, summary in (("this task", lambda v: v[0]), (f"all {len(demo.tasks)} tasks", mean)):
        for index, (level, said) in enumerate(demo.levels.items()):
            shares = (f"{summary(scores[row][level]):.0%}" for row in scores)
            table.add_row("" if index else scope, said, *shares)
    return table


def _print_responses(demo: Demo, task: DemoTask, adapter: Adapter) -> None:
    """Show what the base and the adapted one respond to some questions of each level."""
    mixed = chain.from_iterable(zip(*task.questions.values(), strict=True))
    examples = list(islice(dict.fromkeys(mixed), EXAMPLES))
    ask = partial(
        generate_responses,
        demo.base,
        demo.tokenizer,
        [[example.prompt for example in examples]],
        system=examples[0].system,
    )
    before, after = ask()[0], ask(_stacked([adapter]), adapter.scaling)[0]
    for example, plain, adapted in zip(examples, before, after, strict=True):
        right = adapted == example.response
        verdict = ("right", "green") if right else (f"not {example.response}", "red")
        console.print()
        _print_indented(Text(example.prompt, "bold"))
        _print_indented(_one_line("base model  ", plain))
        _print_indented(_one_line("adapted     ", adapted).append("   ").append(*verdict))


def _one_line(name: str, response: str) -> Text:
    shortened = textwrap.shorten(response, 50, placeholder=" …")
    return Text(f"{name}{shortened}")


def _print_indented(text: Text) -> None:
    console.print(Padding(text, (0, 0, 0, 2)))
