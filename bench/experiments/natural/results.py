"""Tables of the committed results: what adapters do on tasks that no generator was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import mean
from typing import Any

from dnd_fast.bench.experiments.natural.suite import LEVELS
from dnd_fast.bench.harness.markdown import table
from dnd_fast.bench.harness.results import latest

BENCH = "natural"
# Row of an evaluation and prompts that its adapters are from, by what pages call it.
ROWS = {
    "base model alone": ("base", "own"),
    "base, 3 examples in context": ("in-context-3", "own"),
    "base, 8 examples in context": ("in-context-8", "own"),
    "base, 16 examples in context": ("in-context-16", "own"),
    "one LoRA for all training tasks, rank 4": ("multi-task, rank 4", "own"),
    "one LoRA for all training tasks, rank 16": ("multi-task, rank 16", "own"),
    "mean of the training adapters": ("training adapters, mean of weights", "own"),
    "training adapter whose prompts are nearest": (
        "training adapters, nearest by embedding",
        "own",
    ),
    "generated from random strings": ("generated", "random"),
    "generated from another task's prompts": ("generated", "wrong"),
    "**generated** from eight of the task's prompts": ("generated", "own"),
    "LoRA trained on the task's own answers": ("oracle", "own"),
}
SPLITS = {
    "test": "combinations",
    "unseen-skill": "unseen skills",
    "unseen-format": "unseen formats",
}
WORDINGS = {
    "questions in unseen wordings": "unseen-wordings",
    "questions and prompts in unseen wordings": "unseen-wordings / unseen-wordings",
}


def scores() -> str:
    """Exact match on unseen combinations, by what questions say: mean over seeds, and range."""
    rows = (
        (label, *cells)
        for label, (row, prompts) in ROWS.items()
        if any(cells := [_cell("test", _setting(level, prompts), row) for level in LEVELS])
    )
    return table(("unseen combinations", *LEVELS), rows)


def elsewhere() -> str:
    """The same of generated adapters where more than the combination is new."""
    return table(("what is new", *LEVELS), _elsewhere())


def _elsewhere() -> Iterator[tuple[str, ...]]:
    for label, setting in WORDINGS.items():
        if cell := _cell("test", setting, "generated"):
            yield label, cell, "", ""
    for split, label in SPLITS.items():
        for row in ("base", "generated", "oracle"):
            cells = [_cell(split, level, row) for level in LEVELS]
            if split != "test" and any(cells):
                yield f"{label}: {row}", *cells


def _setting(level: str, prompts: str) -> str:
    return level if prompts == "own" else f"{level} / {prompts}"


def _cell(split: str, setting: str, row: str) -> str:
    """Mean over the newest line of every seed, with the range where there are several."""
    found = [
        value
        for line in latest(BENCH, "name", "split", "seed")
        if line["split"] == split
        and (value := _mean(line["evaluations"], setting, row)) is not None
    ]
    if not found:
        return ""
    spread = f" ({min(found):.2f} to {max(found):.2f})" if len(found) > 1 else ""
    return f"{mean(found):.2f}{spread}"


def _mean(evaluations: Mapping[str, Any], setting: str, row: str) -> float | None:
    cell = evaluations.get(setting, {}).get(row, {})
    value: float | None = cell.get("mean")
    return value
