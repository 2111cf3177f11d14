"""Tables of the committed results: what adapters do on tasks that no generator was trained on."""

from __future__ import annotations

from collections.abc import Iterator
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
    "unseen-skill": "unseen skills",
    "unseen-format": "unseen formats",
}
WORDINGS = {
    "questions in unseen wordings": "unseen-wordings",
    "questions and prompts in unseen wordings": "unseen-wordings / unseen-wordings",
}


Lines = list[dict[str, Any]]


def scores() -> str:
    """Exact match on unseen combinations, by what questions say: mean over seeds, and range."""
    lines = _lines("test")
    rows = (
        (label, *cells)
        for label, (row, prompts) in ROWS.items()
        if any(cells := [_cell(lines, _setting(level, prompts), row) for level in LEVELS])
    )
    return table(("unseen combinations", *LEVELS), rows)


def elsewhere() -> str:
    """The same of generated adapters where more than the combination is new."""
    return table(("what is new", *LEVELS), _elsewhere())


def _elsewhere() -> Iterator[tuple[str, ...]]:
    lines = _lines("test")
    for label, setting in WORDINGS.items():
        if cell := _cell(lines, setting, "generated"):
            yield label, cell, "", ""
    for split, label in SPLITS.items():
        lines = _lines(split)
        for row in ("base", "generated", "oracle"):
            if any(cells := [_cell(lines, level, row) for level in LEVELS]):
                yield f"{label}: {row}", *cells


def _setting(level: str, prompts: str) -> str:
    return level if prompts == "own" else f"{level} / {prompts}"


def _lines(split: str) -> Lines:
    """Read the newest line of everything measured on a split."""
    return [line for line in latest(BENCH, "name", "split", "seed") if line["split"] == split]


def _cell(lines: Lines, setting: str, row: str) -> str:
    """Mean over the lines that have the row, with the range where there are several."""
    found = [
        evaluations[setting][row]["mean"]
        for line in lines
        if row in (evaluations := line["evaluations"]).get(setting, {})
    ]
    if not found:
        return ""
    spread = f" ({min(found):.2f} to {max(found):.2f})" if len(found) > 1 else ""
    return f"{mean(found):.2f}{spread}"
