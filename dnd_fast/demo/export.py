"""The demo's tasks as files, for the commands that people use on their own data sets."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from dnd_fast.demo.exam import EXAM_SIZE
from dnd_fast.demo.tasks import EXAMPLES, SHIPPED_SEED, Example, split_tasks
from dnd_fast.files import atomic_folder
from dnd_fast.generator_config import DEMO_MODELS


def export(folder: Path) -> list[str]:
    """Write every task's training and test examples, and the names of each split's tasks.

    ``train/NAME.jsonl``, ``test/NAME.jsonl`` with unseen words, and ``splits/train.txt``,
    ``validation.txt`` and ``test.txt``.

    Returns:
        The commands that collect adapters, train a generator and evaluate it from there.

    Raises:
        OSError: ``folder`` cannot be written, or the disk is full.
    """
    splits = split_tasks(SHIPPED_SEED)
    tasks = [task for split in splits.values() for task in split]
    with atomic_folder(folder / "train") as staged:
        for task in tasks:
            write_examples(staged / f"{task.name}.jsonl", task.examples(EXAMPLES, "train", 0))
    with atomic_folder(folder / "test") as staged:
        for task in tasks:
            write_examples(staged / f"{task.name}.jsonl", task.examples(EXAM_SIZE, "test", 1))
    with atomic_folder(folder / "splits") as staged:
        for split, members in splits.items():
            (staged / f"{split}.txt").write_text("".join(f"{task.name}\n" for task in members))
    return [
        f"dnd-fast collect {folder}/train/*.jsonl --recipe demo --base {DEMO_MODELS}/base "
        f"--tokenizer {DEMO_MODELS}/tokenizer --out {folder}/collection",
        f"dnd-fast train --recipe demo --collection {folder}/collection --hold-out "
        f"@{folder}/splits/test.txt --hold-out @{folder}/splits/validation.txt --out {folder}/run",
        f"dnd-fast evaluate {folder}/run --test {folder}/test --data @{folder}/splits/test.txt",
    ]


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write examples as a data set."""
    rows = ({"prompt": example.prompt, "response": example.answer} for example in examples)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
