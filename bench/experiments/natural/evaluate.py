"""What adapters do on the suite: one line of results for a run and a split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dnd_fast.bench.experiments.natural.results import BENCH
from dnd_fast.bench.experiments.natural.suite import LEVELS
from dnd_fast.bench.harness.results import append
from dnd_fast.files import read_json
from dnd_fast.train.evaluation.metrics import make_metric
from dnd_fast.train.evaluation.scores import Estimate, Evaluation
from dnd_fast.train.evaluation.targets import EvalTarget, Progress, evaluate_targets
from dnd_fast.train.generator.run_file import RUN_FILE


class Setting(NamedTuple):
    """Which questions are asked, and what the adapters are generated from: folders of the suite."""

    questions: str
    prompts: str

    def __str__(self) -> str:
        return self.questions if self.prompts == "own" else f"{self.questions} / {self.prompts}"


SETTINGS = {
    "levels": tuple(Setting(level, "own") for level in LEVELS),
    "wordings": (
        Setting("unseen-wordings", "own"),
        Setting("unseen-wordings", "unseen-wordings"),
    ),
    "controls": tuple(Setting(level, kind) for kind in ("wrong", "random") for level in LEVELS),
}


def evaluate(
    run: Path,
    suite: Path,
    split: str,
    *,
    rows: Sequence[str],
    name: str,
    settings: Sequence[Setting],
    prompt_batches: int = 1,
    collection: Path | None = None,
    adapters: Mapping[str, Path] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Path:
    """Evaluate the last generator of a training run on a split, and add a line to the results.

    Args:
        run: Folder of the run, by ``dnd-fast train``.
        suite: Folder of the suite, by ``python -m bench.natural export``.
        split: Name of a file in ``suite/splits``.
        rows: Methods, as of ``dnd-fast evaluate --rows``.
        name: What the line is of, such as "generator", "baselines" or an ablation's variant.
        settings: Questions and prompts.
        prompt_batches: Conditions drawn for each task.
        collection: Collection that has oracles, too; None: the run's own.
        adapters: See :func:`evaluate_targets`.
        progress: Callback that gets stage, steps done and in all.

    Raises:
        FileNotFoundError: there is no such run, suite or split.
        InvalidInput: the run is not finished, or does not fit the suite.
    """
    target = EvalTarget.from_run(run, collection)
    label = list(target.generators)[-1]
    target = dataclasses.replace(target, generators={"": target.generators[label]})
    evaluations = {
        str(setting): _described(
            evaluate_targets(
                [target],
                make_metric("exact"),
                tests=suite / "test" / setting.questions,
                prompts=suite / "prompts" / setting.prompts,
                data=[f"@{suite / 'splits' / split}.txt"],
                methods=rows,
                examples=suite / "train",
                adapters=adapters,
                prompt_batches=prompt_batches,
                progress=progress,
            )
        )
        for setting in settings
    }
    config = read_json(run / RUN_FILE)
    figures = {
        "name": name,
        "recipe": config["recipe"]["name"],
        "seed": config["seed"],
        "objectives": label or "+".join(p["objective"] for p in config["recipe"]["phases"]),
        "split": split,
        "training_tasks": len(target.trained_on),
        "evaluations": evaluations,
    }
    return append(BENCH, figures)


def _described(evaluation: Evaluation) -> dict[str, Any]:
    """Means of every row: overall, over the prompt batches, and by data set."""

    def row(name: str) -> dict[str, Any]:
        overall: Estimate | None = evaluation.overall(evaluation.rows[name])
        by_task = {
            task: round(sum(map(sum, runs)) / sum(map(len, runs)), 4)
            for task, runs in evaluation.rows[name].items()
        }
        return {**(overall.to_dict() if overall else {}), "data": by_task}

    return {name: row(name) for name in evaluation.rows}
