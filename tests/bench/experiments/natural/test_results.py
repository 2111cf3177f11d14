"""Evaluations are kept as they were measured, and nothing else is taken for one."""

import json

import pytest
from typer.testing import CliRunner

from dnd_fast.bench.experiments.natural import results
from dnd_fast.bench.experiments.natural.__main__ import app
from dnd_fast.bench.harness import results as harness

EVALUATION = {
    "subjects": [{"trained_on": ["a", "b"]}],
    "questions": {"c": 20},
    "methods": {
        name: {
            "overall": {"mean": mean, "interval": [0, 1], "prompt_batches": [mean, mean + 0.1]},
            "data": {"c": {"mean": mean}},
        }
        for name, mean in (("base", 0.125), ("generated", 0.5))
    },
}


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    return tmp_path


def test_a_recorded_evaluation_is_shown(folder):
    file = folder / "full.json"
    file.write_text(json.dumps(EVALUATION))
    result = CliRunner().invoke(app, ["record", f"full={file}", "--seed", "3"])
    assert result.exit_code == 0, result.output
    assert "| full | 0.12 | 0.50 | 0.50 to 0.60 | 2 tasks, 1 unseen, seed 3 |" in results.markdown()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"methods": {}, "subjects": []}'])
def test_other_files_are_refused(folder, content):
    file = folder / "full.json"
    file.write_text(content)
    for argument in (f"full={file}", str(file), f"full={folder / 'gone.json'}"):
        assert CliRunner().invoke(app, ["record", argument]).exit_code == 2
    assert not (folder / "natural.jsonl").exists()
