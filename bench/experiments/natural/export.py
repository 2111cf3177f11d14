"""The suite as files, for the commands that people use on their own data sets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from dnd_fast.bench.experiments.natural.suite import (
    LEVELS,
    Level,
    Task,
    broad_tasks,
    other_task,
    random_strings,
    split_tasks,
)
from dnd_fast.errors import InvalidInput
from dnd_fast.files import atomic_folder
from dnd_fast.text.datasets import Example

# Questions with everything in words come first, so that `train --candidates 64` takes conditions
# from these alone.
TRAINING_EXAMPLES: dict[Level, int] = {"full": 64, "ask": 64, "bare": 64}
COLLECTED_TASKS_OF_SKILL = 2  # that train adapters, where a generator learns end to end from all
QUESTIONS = 20  # of each task and level
PROMPTS = 24  # of each task and kind: three conditions of eight


def export(folder: Path, seed: int) -> dict[str, list[Task]]:
    """Write all tasks' examples, questions and prompts, and the names of each split's tasks.

    All or nothing.

    * ``train/NAME.jsonl``: questions at all levels about training items, with their responses.
      Those of held-out tasks are for oracles, adapters trained on a task's own answers.
    * ``broad/NAME.jsonl``: the same for tasks of the broad skills, which only train.
    * ``test/LEVEL/NAME.jsonl``: questions about test items, and in ``test/unseen-wordings`` those
      of the level "full" in wordings that no training example has.
    * ``prompts/KIND/NAME.jsonl``: what adapters are generated from, without responses. The kinds
      are ``own`` and ``unseen-wordings``, questions of the level "full" about training items;
      ``wrong``, another task's; ``random``, random strings. In ``answered`` are ``own`` prompts
      with their responses, for conditions of other forms.
    * ``splits/SPLIT.txt``: names of the tasks, in ``splits/broad.txt`` of those of the broad
      skills, and in ``splits/held-out.txt`` of all that must not train. Two tasks of every known
      skill are in ``splits/collected.txt``, too: enough to collect adapters of.

    Args:
        folder: A new or empty folder.
        seed: Seed of the splits of tasks and items, and of all draws.

    Returns:
        The tasks of each split, and those of the broad skills as ``broad``.

    Raises:
        InvalidInput: there is something in ``folder``, such as the tasks of another seed.
        OSError: ``folder`` cannot be written, or the disk is full.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise InvalidInput(f"{folder} is not empty; remove it, or give another folder.")
    splits, broad = split_tasks(seed), broad_tasks(seed)
    with atomic_folder(folder) as staged:
        _write_all(staged, splits, broad, seed)
    return {**splits, "broad": broad}


def _write_all(
    folder: Path, splits: Mapping[str, list[Task]], broad: Iterable[Task], seed: int
) -> None:
    tasks = [task for split in splits.values() for task in split]
    _write(folder / "train", {task: training_examples(task, seed) for task in tasks})
    _write(folder / "broad", {task: training_examples(task, seed) for task in broad})
    for level in LEVELS:
        questions = {task: task.examples("test", level, QUESTIONS, seed=seed) for task in tasks}
        _write(folder / "test" / level, questions)
    _write(
        folder / "test" / "unseen-wordings",
        {
            task: task.examples("test", "full", QUESTIONS, seed=seed, wordings="unseen")
            for task in tasks
        },
    )
    known = [*splits["train"], *splits["validation"], *splits["test"]]
    own = {task: condition_examples(task, seed) for task in tasks}
    kinds: dict[str, dict[Task, list[str]]] = {
        "own": {task: _prompts(own[task]) for task in tasks},
        "unseen-wordings": {
            task: _prompts(condition_examples(task, seed, unseen=True)) for task in tasks
        },
        "wrong": {task: _prompts(own[other_task(task, known, seed)]) for task in tasks},
        "random": {task: random_strings(task, PROMPTS, seed) for task in tasks},
    }
    _write(folder / "prompts" / "answered", {task: own[task] for task in tasks})
    for kind, prompts in kinds.items():
        _write(folder / "prompts" / kind, prompts)
    (folder / "splits").mkdir()
    held_out = [task for split in splits if split != "train" for task in splits[split]]
    lists = {
        **splits,
        "broad": broad,
        "held-out": held_out,
        "collected": _collected(splits["train"]),
    }
    for split, members in lists.items():
        (folder / "splits" / f"{split}.txt").write_text(
            "".join(f"{task.name}\n" for task in members)
        )


def training_examples(task: Task, seed: int) -> list[Example]:
    """Return the examples that a task's own adapter is trained on, level by level."""
    return [
        example
        for level, count in TRAINING_EXAMPLES.items()
        for example in task.examples("train", level, count, seed=seed)
    ]


def _row(example: Example) -> dict[str, str | None]:
    return {key: getattr(example, key) for key in ("prompt", "response", "system")}


def _collected(tasks: Iterable[Task]) -> list[Task]:
    """Return the first tasks of every skill."""
    by_skill: dict[str, list[Task]] = {}
    for task in tasks:
        by_skill.setdefault(task.skill, []).append(task)
    return [task for same in by_skill.values() for task in same[:COLLECTED_TASKS_OF_SKILL]]


def condition_examples(task: Task, seed: int, *, unseen: bool = False) -> list[Example]:
    """Return what adapters for a task are generated from, enough for three conditions of eight."""
    return task.examples(
        "train",
        "full",
        PROMPTS,
        seed=seed,
        wordings="unseen" if unseen else "seen",
        draw="condition",
    )


def _prompts(examples: Iterable[Example]) -> list[str]:
    return [example.prompt for example in examples]


def _write(folder: Path, tasks: Mapping[Task, Iterable[Example | str]]) -> None:
    """Write one file a task; a string is a prompt without a response."""
    folder.mkdir(parents=True)
    for task, entries in tasks.items():
        rows = ({"prompt": e} if isinstance(e, str) else _row(e) for e in entries)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{task.name}.jsonl").write_text(text, encoding="utf-8")
