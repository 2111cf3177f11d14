"""What a user would do instead of generating an adapter: how long it takes, how well it works.

    python -m bench.alternatives          # the demo's unseen tasks: two minutes
    python -m bench.alternatives --large  # also the time alone for a base of 0.5 B parameters

The alternatives: LoRA on all of a task's training answers, LoRA on a few labelled examples, and the
same few examples in the context of every question. The generator sees the same few without answers.
The demo's adapters are trained on one thread of the CPU, whatever else there is: its models are too
small for more.

The last line printed is JSON, the run's provenance and these fields:

* ``seed``; ``prompts_sha256`` of what the generator is given; ``tasks``, by name; ``questions``,
  ``training_examples`` and ``shots`` per task;
  ``shots_in_context`` of each task, as many as the base's context holds;
* ``demo``: ``device``, ``threads``, and by alternative the ``seconds`` and ``accuracy`` (exact
  match) of each task, ``first_seconds`` of the first task again and again, and ``ratio``, the
  median of its seconds over that of generation's;
* ``large``: null, or ``recipe``, ``device``, ``dtype``, ``batch``, ``length``, ``answer_length``
  (tokens), ``encoder``, ``step_seconds`` and ``generation_seconds`` of every timed round,
  ``stage_seconds`` of the last generation, and by number of LoRA steps ``scaled_seconds``, the
  median step times their number, and ``ratio``;
* ``spread`` of the times that were repeated: the demo's first task, large's rounds.

Source of the comparison: Drag-and-Drop LLMs, which sets generation against full-shot and few-shot
tuning and examples in the context, and claims to be 2,500 to 12,000 times as fast as full-shot.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from statistics import mean, median
from typing import Annotated, Any, NamedTuple, TypeVar, cast

import torch
import typer
from rich.table import Table
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dnd_fast.base_model import load_base
from dnd_fast.bench.experiments.demo_evaluation import Adapters, score
from dnd_fast.bench.experiments.large import compare_large
from dnd_fast.bench.harness.markdown import NO_RESULTS, table, times
from dnd_fast.bench.harness.results import append, latest, prompts_hash, provenance
from dnd_fast.bench.harness.timing import console, percentiles, require_steady, speedup
from dnd_fast.console import progress_bars
from dnd_fast.demo.exam import EXAM_SIZE, exam
from dnd_fast.demo.tasks import EXAMPLES, SHIPPED_SEED, Example, Task, split_tasks
from dnd_fast.generator import Generator
from dnd_fast.generator_config import DEMO_MODELS
from dnd_fast.kernels.device import device_name
from dnd_fast.lora.batched import IGNORE_INDEX, Batch, TokenizedExample, encode
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.recipe import Recipe
from dnd_fast.train.adapters.collect import collect
from dnd_fast.train.demo.retrain import Progress

STEPS = (75, 300)  # of LoRA; tuning on a few examples takes the first
REPEATS = 5  # of the first task, to see whether times are steady
SHOTS = 8  # labelled examples, as many as the demo's generator takes prompts
GENERATED, IN_CONTEXT, BASE = "generated", "examples in context", "base model alone"

T = TypeVar("T")


def main(
    tasks: Annotated[int, typer.Option(help="How many of the demo's.", min=1, max=12)] = 12,
    large: Annotated[
        bool | None,
        typer.Option(help="Also 0.5 B parameters: minutes, 12 GB.", show_default="if on a GPU"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of examples, prompts and LoRA's start.")] = 0,
    noisy: Annotated[bool, typer.Option(help="Report whatever the spread.")] = False,
    save: Annotated[
        bool, typer.Option(help="Add them to bench/results/alternatives.jsonl.")
    ] = False,
) -> None:
    """Generation against LoRA, few-shot LoRA and examples in the context."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with progress_bars() as progress:
        figures = compare(split_tasks(SHIPPED_SEED)["test"][:tasks], seed, progress)
    figures["large"] = None
    if device.type == "cuda" if large is None else large:
        figures["large"] = compare_large(device, seed, STEPS)
    figures["spread"] = require_steady(_repeated(figures), noisy)
    _print(figures)
    if save:
        console.print(f"Wrote {append('alternatives', figures)}.")
    print(json.dumps(provenance() | figures))


def _repeated(figures: Mapping[str, Any]) -> dict[str, Sequence[float]]:
    """Times of the same work; of the demo's short ones p20, p50 and p80."""
    repeated: dict[str, Sequence[float]] = {
        name: percentiles(values)
        for name, values in figures["demo"]["first_seconds"].items()
        if name not in (IN_CONTEXT, BASE)  # a difference of times, and none
    }
    if large := figures["large"]:
        repeated["large, step"] = large["step_seconds"]
        repeated["large, generation"] = large["generation_seconds"]
    return repeated


class Outcome(NamedTuple):
    """Seconds that a task costs, and exact match on its exam."""

    seconds: float
    accuracy: float


class Material(NamedTuple):
    """What there is for a task: its exam ``[1, questions, T]``, all training examples, a few."""

    exam: Batch
    examples: list[Example]
    shots: list[Example]


@dataclass(frozen=True)
class Demo:
    """The shipped models, the base frozen and in float32."""

    generator: Generator
    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls) -> Demo:
        """Load them, the text encoder too."""
        generator = Generator.from_pretrained("demo")
        _ = generator.encoder
        return cls(generator, *load_base(str(DEMO_MODELS / "base"), str(DEMO_MODELS / "tokenizer")))

    def material(self, task: Task, seed: int) -> Material:
        """Few examples are drawn by ``seed``, among those that LoRA trains on."""
        examples = task.examples(EXAMPLES, "train", 0)
        shots = random.Random(seed).sample(examples, SHOTS)
        return Material(exam(self.tokenizer, [task]), examples, shots)

    def generate(self, shots: Sequence[Example]) -> Adapters:
        """One pass of the generator, text encoder included; it does not see the answers."""
        adapter = self.generator.generate([example.prompt for example in shots])
        return {key: value[None] for key, value in adapter.tensors.items()}

    def tune(self, examples: Sequence[Example], steps: int, seed: int) -> Adapters:
        """LoRA as the demo's collection was trained, tokenisation included; two steps or more."""
        layout = TokenLayout.from_dict(self.generator.layout.to_dict())  # without statistics
        data = encode(self.tokenizer, (example.turn for example in examples))
        spec = replace(Recipe.load("demo").collection, steps=steps - 1, checkpoints=1)
        return layout.detokenize(collect(self.base, layout, [data], spec, seed=seed)[:, -1])

    def accuracy(self, questions: Batch, adapters: Adapters | None = None) -> float:
        """Exact match of greedy decoding on ``[1, questions, T]``, under one adapter or none."""
        layout = cast(TokenLayout, self.generator.layout)
        return score(self.base, questions, adapters or {}, layout.lora_alpha / layout.rank)[0]

    def shown(self, task: Material) -> list[TokenizedExample]:
        """As many of the shots as the base's context holds beside the longest question."""
        turns = encode(self.tokenizer, (example.turn for example in task.shots))
        room = self.base.config.max_position_embeddings - task.exam.input_ids.shape[-1]
        return turns[: sum(end <= room for end in accumulate(len(turn.ids) for turn in turns))]

    def ask_in_context(self, task: Material) -> Outcome:
        """Nothing to prepare; the seconds are what the examples add to a pass over the exam."""
        without, _ = timed(lambda: self.accuracy(task.exam))
        seconds, accuracy = timed(lambda: self.accuracy(after(self.shown(task), task.exam)))
        return Outcome(seconds - without, accuracy)


def timed(run: Callable[[], T]) -> tuple[float, T]:
    """Seconds that ``run`` takes on the CPU, and its result."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def after(turns: Sequence[TokenizedExample], questions: Batch) -> Batch:
    """The same questions, each after ``turns`` of conversation."""
    context = torch.tensor([token for turn in turns for token in turn.ids], dtype=torch.long)
    context = context.expand(*questions.input_ids.shape[:-1], -1)
    return Batch(
        torch.cat([context, questions.input_ids], dim=-1),
        torch.cat([torch.full_like(context, IGNORE_INDEX), questions.labels], dim=-1),
    )


def alternatives(demo: Demo, seed: int) -> dict[str, Callable[[Material], Outcome]]:
    """Every way to handle a task, generation first, by name."""

    def by(adapt: Callable[[Material], Adapters]) -> Callable[[Material], Outcome]:
        def run(task: Material) -> Outcome:
            seconds, adapters = timed(lambda: adapt(task))
            return Outcome(seconds, demo.accuracy(task.exam, adapters))

        return run

    def tuned(steps: int) -> Callable[[Material], Outcome]:
        return by(lambda task: demo.tune(task.examples, steps, seed))

    return {
        GENERATED: by(lambda task: demo.generate(task.shots)),
        **{f"LoRA, {steps} steps": tuned(steps) for steps in STEPS},
        f"LoRA on {SHOTS} examples, {STEPS[0]} steps": by(
            lambda task: demo.tune(task.shots, STEPS[0], seed)
        ),
        IN_CONTEXT: demo.ask_in_context,
        BASE: lambda task: Outcome(0.0, demo.accuracy(task.exam)),
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """More are slower where matrices are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def compare(
    tasks: Sequence[Task], seed: int, progress: Progress = lambda stage, done, total: None
) -> dict[str, Any]:
    """Every alternative on every task of the demo, one at a time, after one that warms up."""
    demo = Demo.load()
    materials = [demo.material(task, seed) for task in tasks]
    outcomes: dict[str, list[Outcome]] = {}
    first_seconds: dict[str, list[float]] = {}
    for name, run in alternatives(demo, seed).items():
        run(materials[0])  # warms up
        first_seconds[name] = [run(materials[0]).seconds for _ in range(REPEATS)]
        outcomes[name] = []
        for material in materials:
            outcomes[name].append(run(material))
            progress(name, len(outcomes[name]), len(tasks))
    seconds = {name: [each.seconds for each in runs] for name, runs in outcomes.items()}
    return {
        "seed": seed,
        "prompts_sha256": prompts_hash(
            [example.prompt for material in materials for example in material.shots]
        ),
        "tasks": [str(task) for task in tasks],
        "questions": EXAM_SIZE,
        "training_examples": EXAMPLES,
        "shots": SHOTS,
        "shots_in_context": [len(demo.shown(material)) for material in materials],
        "demo": {
            "device": device_name("cpu"),
            "threads": torch.get_num_threads(),
            "seconds": seconds,
            "first_seconds": first_seconds,
            "accuracy": {name: [each.accuracy for each in runs] for name, runs in outcomes.items()},
            "ratio": {name: speedup(seconds, name, GENERATED) for name in seconds},
        },
    }


def load() -> list[dict[str, Any]]:
    """The newest committed result of every machine."""
    return latest("alternatives", "device")


def markdown() -> str:
    """The committed results, machine by machine: ratios within one run."""
    return "\n\n".join(text for figures in load() for text in _tables(figures)) or NO_RESULTS


def _tables(figures: Mapping[str, Any]) -> Iterator[str]:
    """What was measured, and what has to be known to read it."""
    demo, large = figures["demo"], figures["large"]
    yield table(
        ("the demo's unseen tasks", "exact match", "time against one generation"),
        [(name, accuracy, ratio) for name, accuracy, _, ratio in _rows(demo)],
    )
    yield (
        f"Measured on {demo['device']}: {len(figures['tasks'])} tasks with {figures['questions']} "
        f"questions each, medians. LoRA trains on {figures['training_examples']} answers where "
        "nothing else is said. Examples in the context need no preparation; their time is what "
        "they add to answering a task's questions. The base is tiny (0.49 M parameters): so it is "
        "cheap to train, and it was never trained to follow examples in its context, which says "
        "nothing about large models. The paper claims 2,500x to 12,000x against full-shot tuning."
    )
    if large:
        yield table(
            (f"{large['recipe']}, time only", "time against one generation"),
            [(name, ratio) for name, _, ratio in _large_rows(large)],
        )
        yield (
            f"Measured on {large['device']}, random weights. {_timed(large)} steps of training "
            f"were timed, of {large['batch']} sequences of {large['length']} tokens in "
            f"{large['dtype']}; the rest was not run."
        )


def _rows(demo: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Name, exact match, seconds, ratio."""
    return [
        (
            name,
            f"{mean(demo['accuracy'][name]):.3f}",
            f"{median(values):.2f}",
            times(demo["ratio"][name]),
        )
        for name, values in demo["seconds"].items()
    ]


def _large_rows(large: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, seconds, ratio."""
    seconds, ratio = large["scaled_seconds"], large["ratio"]
    return [
        (GENERATED, f"{median(large['generation_seconds']):.2f}", times(1.0)),
        *(
            (
                f"LoRA, {_timed(large)} steps timed, scaled to {steps}",
                f"{seconds[steps]:.1f}",
                times(ratio[steps]),
            )
            for steps in ratio
        ),
    ]


def _timed(large: Mapping[str, Any]) -> int:
    return len(large["step_seconds"])


def _print(figures: Mapping[str, Any]) -> None:
    columns = ("demo, unseen tasks", "exact match", "s per task", "against one generation")
    printed = Table(*columns, box=None)
    for row in _rows(figures["demo"]):
        printed.add_row(*row)
    console.print(printed)
    if large := figures["large"]:
        title = f"{large['recipe']}, {large['dtype']}"
        printed = Table(title, "s", "against one generation", box=None)
        for name, *values in _large_rows(large):
            printed.add_row(name, *values)
        console.print(printed)


if __name__ == "__main__":
    typer.run(main)
