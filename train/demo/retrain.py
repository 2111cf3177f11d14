"""The whole demo from nothing: pretrain a base, collect adapters, train a generator.

Every schedule is in steps, every draw is seeded: the same seed gives the same files on the same
machine. About eighteen minutes on one CPU core.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dnd_fast.demo.tasks import EXAMPLES, Split, Task, split_tasks
from dnd_fast.demo.tokenizer import build_tokenizer
from dnd_fast.files import atomic_folder
from dnd_fast.generator import Generator
from dnd_fast.generator_config import GeneratorConfig
from dnd_fast.lora.batched import TokenizedExample, encode
from dnd_fast.recipe import Recipe
from dnd_fast.text.prompt_encoder import PromptEncoder
from dnd_fast.train.adapters.collect import collect
from dnd_fast.train.demo.pretrain import pretrain
from dnd_fast.train.generator.data import TaskData
from dnd_fast.train.generator.pairs import Pairing
from dnd_fast.train.generator.trainer import StepMetrics, Trainer

POOL = 96  # of a task's training examples, so many lend their prompts as conditions

Progress = Callable[[str, int, int], None]  # stage, steps done, steps in all


@dataclass(frozen=True)
class Trained:
    """All that one run has made.

    Attributes:
        base, tokenizer: The pretrained base model and its tokenizer.
        tasks: Training, validation and test tasks.
        tokens: Every task's checkpoints ``[tasks, checkpoints, Nw, Lw, Cw]``, not normalised, in
            the order train, validation, test.
        conditions: Embedded training prompts ``[tasks, POOL, L, C]``, in the same order.
        generators: ``"mse"`` (the paper's objective) and ``"mse+sft"`` (continued end to end).
    """

    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tasks: dict[Split, list[Task]]
    tokens: Tensor
    conditions: Tensor
    generators: dict[str, Generator]

    @property
    def all_tasks(self) -> list[Task]:
        """Training, validation and test tasks, in the order of ``tokens``."""
        return [*self.tasks["train"], *self.tasks["validation"], *self.tasks["test"]]


def retrain(seed: int, progress: Progress = lambda stage, done, total: None) -> Trained:
    """Run the pipeline; the callback ``progress`` gets every step.

    Raises:
        InvalidInput: the text encoder cannot be loaded.
    """
    tokenizer = build_tokenizer()
    generator = new_generator(seed)
    encoder = generator.encoder  # fails early where it cannot be had
    base = pretrain(tokenizer, seed, progress=_named(progress, "pretrain the base model"))
    base.requires_grad_(False)

    tasks = split_tasks(seed)
    all_tasks = [*tasks["train"], *tasks["validation"], *tasks["test"]]
    datasets = [
        encode(tokenizer, (example.turn for example in task.examples(EXAMPLES, "train", 0)))
        for task in all_tasks
    ]
    tokens = collect(
        base,
        generator.layout,
        datasets,
        Recipe.load("demo").collection,
        seed=seed,
        progress=_named(progress, "collect an adapter per task"),
    )
    conditions = embed_prompts(
        encoder, all_tasks, generator.config.condition.length, _named(progress, "embed prompts")
    )
    count = len(tasks["train"])
    generators = train_generator(
        generator,
        base,
        conditions[:count],
        tokens[:count],
        datasets[:count],
        seed=seed,
        progress=progress,
    )
    return Trained(base, tokenizer, tasks, tokens, conditions, generators)


def new_generator(seed: int) -> Generator:
    """Make an untrained generator by the demo's recipe."""
    torch.manual_seed(seed)
    return Generator(GeneratorConfig.from_recipe(Recipe.load("demo")))


def embed_prompts(
    encoder: PromptEncoder,
    tasks: Sequence[Task],
    length: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Embed prompts to ``[tasks, POOL, L, C]`` in float16: each task's first training prompts."""
    embedded = []
    for done, task in enumerate(tasks, 1):
        prompts = [example.prompt for example in task.examples(POOL, "train", 0)]
        embedded.append(encoder.encode(prompts, length).half())
        progress(done, len(tasks))
    return torch.stack(embedded)


def train_generator(
    generator: Generator,
    base: PreTrainedModel,
    conditions: Tensor,
    tokens: Tensor,
    datasets: Sequence[Sequence[TokenizedExample]],
    *,
    seed: int,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Generator]:
    """Fit the statistics and train; returns the generator after each phase, by objectives."""
    generator.layout.fit(tokens.flatten(0, 1))
    targets = generator.layout.normalize(tokens)
    tasks = [
        TaskData(str(index), (conditions[index],), targets[index], examples)
        for index, examples in enumerate(datasets)
    ]
    pairing = Pairing(
        seed,
        generator.config.condition.prompts,
        candidates=(conditions.shape[1],) * len(datasets),
        checkpoints=(tokens.shape[1],) * len(datasets),
        examples=tuple(map(len, datasets)),
    )
    phases = Recipe.load("demo").phases
    finished = {}

    def keep(index: int) -> None:
        name = "+".join(phase.objective for phase in phases[: index + 1])
        finished[name] = copy.deepcopy(generator).eval()

    def report(metrics: StepMetrics) -> None:
        stage = f"train the generator ({metrics.objective})"
        progress(stage, metrics.done, metrics.steps)

    Trainer(
        generator.decoder,
        generator.layout,
        tasks,
        pairing,
        phases,
        base=base,
        on_step_end=report,
        on_phase_end=keep,
    ).fit()
    return finished


def save(trained: Trained, folder: Path) -> None:
    """Write ``base``, ``tokenizer``, ``generator`` (MSE, then end to end) and ``generator-mse``.

    Each of the four is old or new at any time.

    Weights are in bfloat16. The tokenizer has a folder of its own: beside a Qwen2 config,
    ``AutoTokenizer`` would take it for Qwen2's and replace its rules.
    """
    base: Any = copy.deepcopy(trained.base)
    with atomic_folder(folder / "base") as staged:
        base.to(torch.bfloat16).save_pretrained(staged)
    with atomic_folder(folder / "tokenizer") as staged:
        trained.tokenizer.save_pretrained(staged)
    for name, directory in (("mse", "generator-mse"), ("mse+sft", "generator")):
        generator = copy.deepcopy(trained.generators[name]).to(torch.bfloat16)
        generator.save_pretrained(folder / directory)


def _named(progress: Progress, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(stage, done, total)
