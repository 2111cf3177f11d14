"""The demo's tasks as files: what people train on must be what the demo was trained on."""

import shlex

from typer.testing import CliRunner

from dnd_fast.cli import app
from dnd_fast.demo.tasks import SHIPPED_SEED, split_tasks
from dnd_fast.text.datasets import Dataset


def test_export(tmp_path):
    result = CliRunner().invoke(app, ["demo", "--export", str(tmp_path / "demo")])
    assert result.exit_code == 0, result.output
    splits = split_tasks(SHIPPED_SEED)
    tasks = {task.name: task for split in splits.values() for task in split}
    assert len(tasks) == 150  # no two tasks have the same name
    for name, task in tasks.items():
        data = {
            part: Dataset.read(tmp_path / "demo" / part / f"{name}.jsonl")
            for part in ("train", "test")
        }
        for part, seed, count in (("train", 0, 192), ("test", 1, 64)):
            expected = [example.turn for example in task.examples(count, part, seed)]
            assert list(data[part].examples) == expected
        assert not {e.prompt for e in data["train"].examples} & {
            e.prompt for e in data["test"].examples
        }
    for split, members in splits.items():
        lines = (tmp_path / "demo" / "splits" / f"{split}.txt").read_text().splitlines()
        assert lines == [task.name for task in members]
    commands = [line for line in result.output.splitlines() if line.startswith("  dnd-fast")]
    assert [shlex.split(line)[1] for line in commands] == ["collect", "train", "evaluate"]
    assert not (tmp_path / "adapter").exists()  # the guided tour has not run
