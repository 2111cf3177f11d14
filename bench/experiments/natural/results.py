"""What generated adapters do on the suite: evaluations kept in a result file, and their table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnd_fast.bench.harness.markdown import table
from dnd_fast.bench.harness.results import append, latest
from dnd_fast.errors import InvalidInput

BENCH = "natural"


def record(files: Mapping[str, Path], recipe: str, seed: int) -> Path:
    """Add a line to the committed results.

    Args:
        files: what ``dnd-fast evaluate --json`` wrote, by what was evaluated.
        recipe: recipe that the generator was trained by.
        seed: seed of its training.

    Raises:
        OSError: a file cannot be read.
        InvalidInput: a file is none of ``evaluate``'s.
    """
    evaluations = {}
    for label, file in files.items():
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            evaluations[label] = {
                name: method["overall"] | {"data": _means(method["data"])}
                for name, method in content["methods"].items()
            }
            (target,) = content["subjects"]
            tasks = {"trained_on": target["trained_on"], "tested_on": sorted(content["questions"])}
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"{file} is not of dnd-fast evaluate --json: {error!r}") from error
    count = {"training_tasks": len(tasks["trained_on"])}
    figures = {"recipe": recipe, "seed": seed, **count, **tasks, "evaluations": evaluations}
    return append(BENCH, figures)


def markdown() -> str:
    """The table of the committed results; a row for each evaluation of each run."""
    rows = []
    for run in latest(BENCH, "recipe", "seed", "training_tasks"):
        for label, methods in run["evaluations"].items():
            generated = methods["generated"]
            base = f"{methods['base']['mean']:.2f}" if "base" in methods else ""
            spread = generated["prompt_batches"]
            rows.append(
                (
                    label,
                    base,
                    f"{generated['mean']:.2f}",
                    f"{min(spread):.2f} to {max(spread):.2f}",
                    f"{len(run['trained_on'])} tasks, {len(run['tested_on'])} unseen, "
                    f"seed {run['seed']}",
                )
            )
    return table(("evaluated", "base", "generated", "other prompts", "run"), rows)


def _means(data: Mapping[str, Any]) -> dict[str, float]:
    return {name: entry["mean"] for name, entry in data.items()}
