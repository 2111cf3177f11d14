"""The terminal: one console, progress bars, and options that several commands share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

from rich.console import Console

console = Console()
BASE_HELP = "'smollm2', a folder, a hub id (id@revision), or a .gguf file (FOLDER-OR-ID#FILE.gguf)."
DATA_HELP = ".jsonl, .json, .csv or .parquet; '-' is standard input."
GENERATOR_HELP = "'demo', 'smollm2', a folder, or a hub id (id@revision)."


class Impl(StrEnum):
    """How the decoder runs."""

    auto = "auto"
    triton = "triton"
    torch = "torch"


class Weights(StrEnum):
    """How transformed weights are kept."""

    cached = "cached"
    streamed = "streamed"
    int8 = "int8"


@contextmanager
def progress_bars(*, transient: bool = False) -> Iterator[Any]:
    """One bar per stage, with the time left; yields the function to report progress to.

    Args:
        transient: whether the bars vanish at the end.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=transient) as bars:
        stages: dict[str, Any] = {}

        def report(stage: str, done: int, total: int, note: str = "") -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(stage, total=total)
            bars.update(stages[stage], completed=done, description=f"{stage}{note}")

        yield report
