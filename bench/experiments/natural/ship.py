"""What the package carries of the suite: a run's generator, and the demo's tasks.

Both follow from a run and a seed, so that the files in the package can be made again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import torch

from dnd_fast import smollm2
from dnd_fast.bench.experiments.natural.export import condition_prompts
from dnd_fast.bench.experiments.natural.suite import LEVELS, split_tasks
from dnd_fast.errors import InvalidInput
from dnd_fast.files import atomic_file, read_json
from dnd_fast.generator import Generator
from dnd_fast.train.demo.real import task_rows
from dnd_fast.train.demo.show import DemoTask
from dnd_fast.train.generator.run_file import RUN_FILE

# Six of the test tasks, each another skill and another format; the first is shown at length.
TASKS = (
    "past-json",
    "first-word-brackets",
    "singular-plain",
    "first-letter-label",
    "comparative-exclamation",
    "number-in-words-sentence",
)
QUESTIONS = 10  # of each task and level
PROMPTS = 8


def ship_generator(run: Path, folder: Path) -> None:
    """Write a run's generator as the package carries it.

    Weights are in bfloat16, which changes an adapter's updates by 0.3 %; mean and deviation of the
    tokens stay in float32.

    Args:
        run: Folder of a finished training run.
        folder: Folder for the generator; a model card in it is kept.

    Raises:
        FileNotFoundError: ``run`` holds no finished run.
        InvalidInput: a file is damaged, or the run was trained on a task of the demo.
        OSError: ``folder`` cannot be written.
    """
    known = sorted(set(TASKS) & set(read_json(run / RUN_FILE)["trained_on"]))
    if known:
        raise InvalidInput(
            f"{run} was trained on {known[0]}, which the demo shows as unseen: hold it out."
        )
    generator = Generator.from_pretrained(run / "generator", dtype=torch.bfloat16)
    layout = generator.config.layout
    base_model = smollm2.hub_id(layout["base_model"])
    generator.config = dataclasses.replace(
        generator.config, layout=layout | {"base_model": base_model}
    )
    generator.save_pretrained(folder)


def demo_tasks(seed: int) -> list[DemoTask]:
    """Return the demo's tasks, drawn as the suite with this seed draws its questions."""
    tasks = {task.name: task for task in split_tasks(seed)["test"]}
    if missing := [name for name in TASKS if name not in tasks]:
        raise InvalidInput(f"with seed {seed}, {missing[0]} is no test task: choose others.")
    return [
        DemoTask(
            str(task),
            condition_prompts(task, seed)[:PROMPTS],
            {level: task.examples("test", level, QUESTIONS, seed=seed) for level in LEVELS},
        )
        for task in map(tasks.__getitem__, TASKS)
    ]


def write_tasks(tasks: Iterable[DemoTask], file: Path) -> None:
    """Write tasks for :func:`dnd_fast.train.demo.real.read_tasks`.

    Raises:
        OSError: the file cannot be written.
    """
    rows = (row for task in tasks for row in task_rows(task))
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with atomic_file(file) as staged:
        staged.write_text(text, encoding="utf-8")
