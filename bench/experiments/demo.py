"""The demo benchmark: train everything from nothing for one seed, and evaluate it.

python -m bench.experiments.demo --seed 1     # about half an hour on one CPU core
"""

from __future__ import annotations

import time
from statistics import mean
from typing import Annotated, Any

import typer
from rich.console import Console

from dnd_fast.bench.harness.markdown import table
from dnd_fast.bench.harness.results import append, latest

# Row of the table: label, path in a result file.
ZERO_SHOT = {
    "base model": ("zero_shot", "base"),
    "training adapters: mean of all": ("zero_shot", "training adapters, mean"),
    "training adapters: best, picked on the test data": (
        "zero_shot",
        "training adapters, best on the test data",
    ),
    "training adapters: nearest by embedding": (
        "zero_shot",
        "training adapters, nearest by embedding",
    ),
    "training adapters: mean of weights": ("zero_shot", "training adapters, mean of weights"),
    "**generated, MSE** (the paper's objective)": ("zero_shot", "generated, mse"),
    "**generated, MSE, then end to end** (ours)": ("zero_shot", "generated, mse+sft"),
    "generated from another task's prompts": ("zero_shot", "wrong prompts, mse+sft"),
    "oracle: LoRA trained on the task's answers": ("zero_shot", "oracle"),
}
WEAK_SPOTS = {
    "trained tasks, unseen words: generated": ("trained", "seen wordings, generated, mse+sft"),
    "trained tasks, unseen words: own LoRA": ("trained", "seen wordings, own adapter"),
    "… and unseen wordings: generated": ("trained", "unseen wordings, generated, mse+sft"),
    "… and unseen wordings: own LoRA": ("trained", "unseen wordings, own adapter"),
    "unseen skill: generated": ("unseen_skill", "generated, mse+sft"),
    "unseen skill: oracle": ("unseen_skill", "oracle"),
}


def run(seed: Annotated[int, typer.Option(help="Of base, split, adapters and generator.")]) -> None:
    """Train and evaluate one seed; adds a line to bench/results/demo.jsonl."""
    from dnd_fast.bench.experiments.demo_evaluation import evaluate
    from dnd_fast.console import progress_bars
    from dnd_fast.train.demo.retrain import retrain

    started = time.perf_counter()
    stages: dict[str, float] = {}
    with progress_bars() as bars:

        def progress(stage: str, done: int, total: int) -> None:
            bars(stage, done, total)
            stages[stage] = time.perf_counter()

        trained = retrain(seed, progress)
        training = time.perf_counter() - started
        figures = evaluate(trained, seed, progress)
    ends = list(stages.values())
    seconds = {
        stage: end - start
        for stage, end, start in zip(stages, ends, [started, *ends], strict=False)
    }
    path = append(
        "demo",
        {"seed": seed, "training_seconds": training, "seconds": seconds, **figures},
    )
    Console().print(f"Wrote {path}.")


def scores() -> str:
    """Exact match: the mean over the seeds, and each seed's."""
    results = load()
    rows = []
    for label, (part, name) in (ZERO_SHOT | WEAK_SPOTS).items():
        values = [result[part][name] for result in results]
        rows.append((label, *(f"{value:.3f}" for value in (mean(values), *values))))
    seeds = (f"seed {result['seed']}" for result in results)
    return table(("exact match", "mean", *seeds), rows)


def partial_credit() -> str:
    """Shares of answers whose skill is right, whose format is, and both; means over the seeds."""
    results = load()
    rows = [
        (
            name,
            *(
                f"{mean(result['partial_credit'][name][kind] for result in results):.2f}"
                for kind in ("exact", "skill", "format")
            ),
        )
        for name in results[0]["partial_credit"]
    ]
    head = ("mean of the seeds, greedy decoding", "exact", "skill right", "format right")
    return table(head, rows)


def load() -> list[dict[str, Any]]:
    """The newest committed result of every seed."""
    return sorted(latest("demo", "seed"), key=lambda figures: figures["seed"])


if __name__ == "__main__":
    typer.run(run)
