"""The demo benchmark: train everything from nothing for one seed, and evaluate it.

python -m bench.demo run --seed 1     # about half an hour on one CPU core
python -m bench.demo table            # README's table from the committed results
"""

from __future__ import annotations

import time
from statistics import mean
from typing import Annotated, Any

import typer
from rich.console import Console

from dnd_fast.bench.harness.results import append, latest

app = typer.Typer(no_args_is_help=True, help=__doc__)

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


@app.command()
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


@app.command()
def table() -> None:
    """Print README's tables from the committed results."""
    print(markdown())


def markdown() -> str:
    """Mean over the seeds, with each seed's value, as Markdown tables."""
    results = load()
    seeds = " | ".join(f"seed {result['seed']}" for result in results)
    lines = [f"| exact match | mean | {seeds} |"]
    lines.append("| --- |" + " --- |" * (len(results) + 1))
    for label, path in (ZERO_SHOT | WEAK_SPOTS).items():
        values = [result[path[0]][path[1]] for result in results]
        cells = " | ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {label} | {mean(values):.3f} | {cells} |")
    lines += ["", "| mean of the seeds, greedy decoding | exact | skill right | format right |"]
    lines.append("| --- | --- | --- | --- |")
    for name in results[0]["partial_credit"]:
        shares = [
            mean(result["partial_credit"][name][kind] for result in results)
            for kind in ("exact", "skill", "format")
        ]
        lines.append(f"| {name} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")
    return "\n".join(lines)


def load() -> list[dict[str, Any]]:
    """The newest committed result of every seed."""
    return sorted(latest("demo", "seed"), key=lambda figures: figures["seed"])


if __name__ == "__main__":
    app()
