"""What the demo's generator can do and what it cannot: exact match, with baselines and controls."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dnd_fast.demo.exam import exam
from dnd_fast.demo.tasks import EXAMPLES
from dnd_fast.generator import Generator
from dnd_fast.lora.batched import Batch, encode, exact_match, generate_responses
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.train.demo.retrain import (
    Progress,
    Trained,
    new_generator,
    train_generator,
)
from dnd_fast.train.evaluation.evaluate import most_similar, pooled

PROMPT_BATCHES = 3  # conditions drawn per task
TRAINED_TASKS = 12  # trained tasks looked at
UNSEEN_SKILLS = ("upper", "last")
PARTIAL_CREDIT_SIZE = 40

Adapters = Mapping[str, Tensor]


def draw_conditions(conditions: Tensor, prompts: int, seed: int) -> Tensor:
    """Some of each task's embedded prompts: ``[K, pool, L, C]`` -> ``[K, prompts, L, C]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(
        [pool[torch.randperm(len(pool), generator=generator)[:prompts]] for pool in conditions]
    ).float()


@torch.no_grad()
def generated(generator: Generator, conditions: Tensor, seed: int) -> dict[str, Tensor]:
    """Adapters for K tasks from prompts drawn by ``seed``."""
    drawn = draw_conditions(conditions, generator.decoder.features[0][0], seed)
    return generator.layout.detokenize(generator(drawn))


def score(model: PreTrainedModel, batch: Batch, adapters: Adapters, scaling: float) -> list[float]:
    """Exact match of each of K adapters on its own exam."""
    return exact_match(model, batch, adapters, scaling).tolist()


def evaluate(
    trained: Trained, seed: int, progress: Progress = lambda stage, done, total: None
) -> dict[str, Any]:
    """Every row of the demo's table, each a mean over tasks.

    Returns:
        ``zero_shot`` and ``trained``: exact match by row; ``partial_credit``: exact, skill and
        format by row; ``per_task``: exact match of each test task.
    """
    base, tokenizer, tasks = trained.base, trained.tokenizer, trained.tasks
    layout = cast(TokenLayout, trained.generators["mse"].layout)
    scaling = layout.lora_alpha / layout.rank
    first_test = len(tasks["train"]) + len(tasks["validation"])
    conditions = trained.conditions[first_test:]
    raw_layout = new_generator(seed).layout  # not fitted: for collected tokens
    collected = trained.tokens[: len(tasks["train"]), -1]
    own = raw_layout.detokenize(trained.tokens[first_test:, -1])
    batch = exam(tokenizer, tasks["test"])
    count = len(tasks["test"])

    cross = []
    for index, tokens in enumerate(collected):
        adapters = raw_layout.detokenize(tokens.expand(count, *tokens.shape))
        cross.append(torch.tensor(score(base, batch, adapters, scaling)))
        progress("test every training adapter", index + 1, len(collected))
    every = torch.stack(cross)  # [training adapters, test tasks]
    nearest = _nearest(conditions, trained.conditions[: len(collected)])
    average = raw_layout.detokenize(collected.mean(0).expand(count, *collected.shape[1:]))

    rows: dict[str, list[float]] = {
        "base": exact_match(base, batch).tolist(),
        "training adapters, mean": every.mean(0).tolist(),
        "training adapters, best on the test data": every.amax(0).tolist(),
        "training adapters, nearest by embedding": every[nearest, range(count)].tolist(),
        "training adapters, mean of weights": score(base, batch, average, scaling),
        "oracle": score(base, batch, own, scaling),
    }
    batches = {}
    for name, generator in trained.generators.items():
        runs = [
            score(base, batch, generated(generator, conditions, run), scaling)
            for run in range(PROMPT_BATCHES)
        ]
        batches[name] = [mean(run) for run in runs]
        rows[f"generated, {name}"] = [mean(values) for values in zip(*runs, strict=True)]
        wrong = generated(generator, conditions.roll(1, 0), 0)
        rows[f"wrong prompts, {name}"] = score(base, batch, wrong, scaling)
    return {
        "zero_shot": {name: mean(values) for name, values in rows.items()},
        "prompt_batches": batches,
        "trained": _on_trained_tasks(trained, scaling),
        "unseen_skill": _on_unseen_skill(trained, seed, progress),
        "partial_credit": _partial_credit(trained, seed),
        "per_task": {
            str(task): {name: values[i] for name, values in rows.items()}
            for i, task in enumerate(tasks["test"])
        },
    }


def _nearest(conditions: Tensor, others: Tensor) -> list[int]:
    """For each task the one among ``others`` whose mean prompt embedding is most similar."""

    signatures, other_signatures = (
        torch.stack([pooled(pool).mean(0) for pool in each]) for each in (conditions, others)
    )
    return most_similar(signatures, other_signatures)


def _on_trained_tasks(trained: Trained, scaling: float) -> dict[str, float]:
    """Trained tasks with unseen words: seen wordings, then unseen ones in exam and condition."""
    tasks = trained.tasks["train"]
    chosen = list(range(0, len(tasks), -(-len(tasks) // TRAINED_TASKS)))
    picked = [tasks[i] for i in chosen]
    generator = trained.generators["mse"]
    own = new_generator(0).layout.detokenize(trained.tokens[chosen, -1])
    prompts = [
        [example.prompt for example in task.examples(EXAMPLES // 6, "train", 5, "test")]
        for task in picked
    ]
    spec = generator.config.condition
    unseen = torch.stack([generator.encoder.encode(group, spec.length) for group in prompts])
    rows = {}
    for label, wordings, conditions in (
        ("seen wordings", "train", trained.conditions[chosen]),
        ("unseen wordings", "test", unseen),
    ):
        batch = exam(trained.tokenizer, picked, wordings)  # type: ignore[arg-type]
        rows[f"{label}, own adapter"] = mean(score(trained.base, batch, own, scaling))
        for name, each in trained.generators.items():
            runs = [
                mean(score(trained.base, batch, generated(each, conditions, run), scaling))
                for run in range(PROMPT_BATCHES)
            ]
            rows[f"{label}, generated, {name}"] = mean(runs)
    return rows


def _on_unseen_skill(trained: Trained, seed: int, progress: Progress) -> dict[str, float]:
    """Retrain the generator without two skills and test it on them: what it cannot do."""
    everything = trained.all_tasks
    kept = [i for i, task in enumerate(trained.tasks["train"]) if task.skill not in UNSEEN_SKILLS]
    removed = [i for i, task in enumerate(everything) if task.skill in UNSEEN_SKILLS][
        :TRAINED_TASKS
    ]
    generator = new_generator(seed)
    raw_layout = cast(TokenLayout, new_generator(seed).layout)
    datasets = [
        encode(
            trained.tokenizer,
            (example.turn for example in everything[i].examples(EXAMPLES, "train", 0)),
        )
        for i in kept
    ]
    final = train_generator(
        generator,
        trained.base,
        trained.conditions[kept],
        trained.tokens[kept],
        datasets,
        seed=seed,
        progress=lambda stage, done, total: progress(f"{stage}, without two skills", done, total),
    )["mse+sft"]
    scaling = raw_layout.lora_alpha / raw_layout.rank
    batch = exam(trained.tokenizer, [everything[i] for i in removed])
    adapters = generated(final, trained.conditions[removed], 0)
    own = raw_layout.detokenize(trained.tokens[removed, -1])
    return {
        "generated, mse+sft": mean(score(trained.base, batch, adapters, scaling)),
        "oracle": mean(score(trained.base, batch, own, scaling)),
    }


def _partial_credit(trained: Trained, seed: int) -> dict[str, dict[str, float]]:
    """Shares of exact answers, right skills and right formats under greedy decoding."""
    tasks, training = trained.tasks["test"], trained.tasks["train"]
    first_test = len(training) + len(trained.tasks["validation"])
    conditions = trained.conditions[first_test:]
    raw_layout = cast(TokenLayout, new_generator(seed).layout)
    scaling = raw_layout.lora_alpha / raw_layout.rank

    def collected(indices: list[int]) -> dict[str, Tensor]:
        return raw_layout.detokenize(trained.tokens[indices, -1])

    def relative(attribute: str) -> dict[str, Tensor]:
        return collected(
            [
                next(
                    i
                    for i, other in enumerate(training)
                    if getattr(other, attribute) == getattr(task, attribute)
                )
                for task in tasks
            ]
        )

    candidates: dict[str, Adapters | None] = {
        "base": None,
        "a training adapter of the same skill": relative("skill"),
        "a training adapter of the same format": relative("format"),
        "wrong prompts, mse+sft": generated(
            trained.generators["mse+sft"], conditions.roll(1, 0), 0
        ),
        **{
            f"generated, {name}": generated(generator, conditions, 0)
            for name, generator in trained.generators.items()
        },
        "oracle": collected(list(range(first_test, first_test + len(tasks)))),
    }
    examples = [task.examples(PARTIAL_CREDIT_SIZE, "test", 1) for task in tasks]
    prompts = [[example.prompt for example in group] for group in examples]
    table = {}
    for name, adapters in candidates.items():
        responses = generate_responses(trained.base, trained.tokenizer, prompts, adapters, scaling)
        grades = [
            task.grade(response, example.word)
            for task, group, said in zip(tasks, examples, responses, strict=True)
            for example, response in zip(group, said, strict=True)
        ]
        table[name] = {
            kind: mean(getattr(grade, kind) for grade in grades)
            for kind in ("exact", "skill", "format")
        }
    return table
