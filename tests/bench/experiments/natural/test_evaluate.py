"""The benchmark's evaluation asks what its settings say, and keeps what was found."""

import json
from pathlib import Path

import pytest

from dnd_fast.bench.harness import results as harness
from dnd_fast.train.evaluation.scores import Evaluation
from dnd_fast.train.evaluation.targets import EvalTarget

NEEDS = 'needs pip install "dnd-fast[natural]"'
natural = pytest.importorskip("dnd_fast.bench.experiments.natural.evaluate", reason=NEEDS)


def test_a_line_of_results(monkeypatch, tmp_path):
    """Levels and wordings: the folders of questions and prompts, the last generator of the run."""
    generators = {"mse": "run/generator-mse", "mse+sft": "run/generator"}
    target = EvalTarget(None, generators, ["a", "b"], ["c", "d"])
    asked = []

    def evaluate_targets(targets, metric, **arguments):
        asked.append((targets[0].generators, metric.name, arguments))
        rows = {"generated": {"c": [[1.0, 0.0], [1.0, 1.0]], "d": [[0.0, 0.0], [0.0, 1.0]]}}
        return Evaluation("exact", rows, {})

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(EvalTarget, "from_run", lambda run, collection: target)
    monkeypatch.setattr(natural, "evaluate_targets", evaluate_targets)
    run = {"recipe": {"name": "smollm2", "phases": []}, "seed": 3}
    (tmp_path / "run.json").write_text(json.dumps(run))
    suite = Path("suite")
    path = natural.evaluate(
        tmp_path,
        suite,
        "validation",
        rows=["generated"],
        name="generator",
        settings=natural.SETTINGS["levels"] + natural.SETTINGS["wordings"],
    )
    folders = [
        (each["tests"].relative_to(suite / "test"), each["prompts"].relative_to(suite / "prompts"))
        for _, _, each in asked
    ]
    assert [tuple(map(str, pair)) for pair in folders] == [
        ("full", "own"),
        ("ask", "own"),
        ("bare", "own"),
        ("unseen-wordings", "own"),
        ("unseen-wordings", "unseen-wordings"),
    ]
    for chosen, metric, arguments in asked:
        assert (chosen, metric) == ({"": "run/generator"}, "exact")
        assert arguments["data"] == ["@suite/splits/validation.txt"]
        assert arguments["examples"] == suite / "train"
    line = json.loads(path.read_text())
    assert {key: line[key] for key in ("split", "seed", "training_tasks", "objectives")} == {
        "split": "validation",
        "seed": 3,
        "training_tasks": 2,
        "objectives": "mse+sft",
    }
    found = line["evaluations"]["unseen-wordings / unseen-wordings"]["generated"]
    assert (found["mean"], found["prompt_batches"]) == (0.5, [0.25, 0.75])
    assert found["data"] == {"c": 0.75, "d": 0.25}
