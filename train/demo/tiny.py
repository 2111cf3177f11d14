"""The tiny demo: a base model of half a million parameters on procedural tasks."""

from __future__ import annotations

import dataclasses
from functools import partial

from torch import Tensor

from dnd_fast.base_model import load_base
from dnd_fast.demo.exam import EXAM_SIZE
from dnd_fast.demo.tasks import EXAMPLES, SHIPPED_SEED, Task, split_tasks
from dnd_fast.generator import Generator
from dnd_fast.generator_config import DEMO_MODELS
from dnd_fast.lora.batched import encode
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.recipe import Recipe
from dnd_fast.train.adapters.collect import collect
from dnd_fast.train.demo.show import Demo, DemoTask, Progress, peft_lines

LEVEL = "unseen words"


def load(progress: Progress) -> Demo:
    """Load the shipped base and generator, and make the tasks.

    Raises:
        FileNotFoundError: a shipped file is missing.
        InvalidInput: a shipped file is damaged, or the text encoder cannot be had.
    """
    progress(0, 2)
    generator = Generator.from_pretrained("demo")
    _ = generator.encoder
    progress(1, 2)
    base, tokenizer = load_base(str(DEMO_MODELS / "base"), str(DEMO_MODELS / "tokenizer"))
    progress(2, 2)
    split = split_tasks(SHIPPED_SEED)
    tasks, combinations = split["test"], sum(map(len, split.values()))

    def train(progress: Progress) -> dict[str, Tensor]:
        """Train one adapter per task, as the collection was trained."""
        datasets = [
            encode(tokenizer, (e.turn for e in task.examples(EXAMPLES, "train", 0)))
            for task in tasks
        ]
        layout = TokenLayout.from_dict(generator.layout.to_dict())  # without statistics
        spec = dataclasses.replace(Recipe.load("demo").collection, checkpoints=1)
        tokens = collect(base, layout, datasets, spec, seed=SHIPPED_SEED, progress=progress)
        return layout.detokenize(tokens[:, -1])

    return Demo(
        name="tiny",
        about=(
            f"Skill, answer format and words: [bold]{tasks[0]}[/bold]. Of {combinations} "
            f"combinations of skill and format, this one and {len(tasks) - 1} others were kept for "
            "testing."
        ),
        limits=(
            f"The trained ones needed {EXAMPLES} answers each. Model and tasks are toys: "
            "docs/demo.md says how to read this."
        ),
        levels={LEVEL: LEVEL},
        generator=generator,
        base=base,
        tokenizer=tokenizer,
        tasks=[_demo_task(task, generator.config.condition.prompts) for task in tasks],
        usage=partial(peft_lines, DEMO_MODELS / "base"),
        train=train,
    )


def _demo_task(task: Task, prompts: int) -> DemoTask:
    return DemoTask(
        str(task),
        [example.prompt for example in task.examples(prompts, "train", 9)],
        {LEVEL: [example.turn for example in task.examples(EXAM_SIZE, "test", 1)]},
    )
