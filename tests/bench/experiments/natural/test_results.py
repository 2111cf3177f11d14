"""Tables say what was measured: the newest line of each seed, and of several their range."""

import pytest

from dnd_fast.bench.harness import results as harness

NEEDS = 'needs pip install "dnd-fast[natural]"'
results = pytest.importorskip("dnd_fast.bench.experiments.natural.results", reason=NEEDS)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)


def record(seed, split, evaluations, name="generator"):
    nested = {
        setting: {row: {"mean": mean} for row, mean in rows.items()}
        for setting, rows in evaluations.items()
    }
    line = {"name": name, "seed": seed, "split": split, "evaluations": nested}
    harness.append(results.BENCH, line)


def test_scores_of_seeds_and_controls():
    record(0, "test", {"full": {"generated": 0.1}})  # measured again
    record(0, "test", {"full": {"generated": 0.5}, "full / wrong": {"generated": 0.02}})
    record(1, "test", {"full": {"generated": 0.7}})
    record(0, "test", {"full": {"base": 0.0}, "bare": {"base": 0.25}}, name="baselines")
    lines = results.scores().splitlines()
    assert "| base model alone | 0.00 |  | 0.25 |" in lines
    assert "| generated from another task's prompts | 0.02 |  |  |" in lines
    assert "| **generated** from eight of the task's prompts | 0.60 (0.50 to 0.70) |  |  |" in lines
    assert len(lines) == 2 + 3


def test_scores_elsewhere():
    record(0, "test", {"unseen-wordings": {"generated": 0.4}, "full": {"generated": 0.9}})
    record(0, "unseen-skill", {"full": {"generated": 0.1, "oracle": 0.8}})
    lines = results.elsewhere().splitlines()
    assert lines[2:] == [
        "| questions in unseen wordings | 0.40 |  |  |",
        "| unseen skills: generated | 0.10 |  |  |",
        "| unseen skills: oracle | 0.80 |  |  |",
    ]
