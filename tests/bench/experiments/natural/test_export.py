"""The suite as files: what the commands read, and nothing of the tests in what trains."""

import json
import re
import sys

import pytest
from typer.testing import CliRunner

from dnd_fast.text.datasets import Dataset
from dnd_fast.text.prompts import read_prompts

NEEDS = 'needs pip install "dnd-fast[natural]"'
suite = pytest.importorskip("dnd_fast.bench.experiments.natural.suite", reason=NEEDS)
suite_export = pytest.importorskip("dnd_fast.bench.experiments.natural.export", reason=NEEDS)
app = pytest.importorskip("dnd_fast.bench.experiments.natural.__main__", reason=NEEDS).app
SKILLS, FORMATS = suite.SKILLS, suite.FORMATS

SPLITS = suite.split_tasks(1)
TASKS = [task for split in SPLITS.values() for task in split]
BROAD = suite.broad_tasks(1)
FOLDERS = [
    "train",
    *(f"test/{level}" for level in ("full", "ask", "bare", "unseen-wordings")),
    *(f"prompts/{kind}" for kind in ("own", "unseen-wordings", "wrong", "random")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("natural") / "suite"
    result = CliRunner().invoke(app, ["export", str(folder), "--seed", "1"])
    assert result.exit_code == 0, result.output
    assert "200 train, 20 validation, 24 test" in result.output
    return folder


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_names_of_the_splits(folder):
    for split, tasks in SPLITS.items():
        lines = (folder / "splits" / f"{split}.txt").read_text().splitlines()
        assert lines == [task.name for task in tasks]
    held_out = (folder / "splits" / "held-out.txt").read_text().splitlines()
    assert sorted(held_out + [task.name for task in SPLITS["train"]]) == sorted(
        task.name for task in TASKS
    )
    broad = (folder / "splits" / "broad.txt").read_text().splitlines()
    assert broad == [task.name for task in BROAD]
    collected = (folder / "splits" / "collected.txt").read_text().splitlines()
    skills = [task.skill for task in SPLITS["train"] if task.name in collected]
    assert len(collected) == len(skills)
    assert set(map(skills.count, skills)) <= {1, 2}
    assert set(skills) == {task.skill for task in SPLITS["train"]}
    assert len(list((folder / "splits").iterdir())) == len(SPLITS) + 3


@pytest.mark.parametrize("part", FOLDERS)
def test_every_folder_has_a_file_for_every_task(folder, part):
    files = {path.name for path in (folder / part).iterdir()}
    assert files == {f"{task.name}.jsonl" for task in TASKS}


def test_broad_tasks_have_data_sets_that_only_train(folder):
    assert {path.name for path in (folder / "broad").iterdir()} == {
        f"{task.name}.jsonl" for task in BROAD
    }
    for task in BROAD:
        data = Dataset.read(folder / "broad" / f"{task.name}.jsonl")
        assert len(data.examples) == 192
        assert data.examples == tuple(suite_export.training_examples(task, 1))
    assert not {task.name for task in BROAD} & {task.name for task in TASKS}


def test_data_sets_are_read_back(folder):
    for task in TASKS:
        data = Dataset.read(folder / "train" / f"{task.name}.jsonl")
        assert data.name == task.name
        assert len(data.examples) == 192
        for level in ("full", "ask", "bare", "unseen-wordings"):
            data = Dataset.read(folder / "test" / level / f"{task.name}.jsonl")
            assert len(data.examples) == 20


def test_system_prompts_are_empty(folder):
    for part in FOLDERS[:5]:
        for path in (folder / part).iterdir():
            assert all(list(row) == ["prompt", "response", "system"] for row in records(path))
            assert not any(row["system"] for row in records(path))


def test_prompts_have_no_answers(folder):
    for part in FOLDERS[5:]:
        for path in (folder / part).iterdir():
            assert all(list(row) == ["prompt"] for row in records(path))
            assert len(read_prompts(path)) == 24


def test_training_begins_with_questions_in_words(folder):
    """The first 64 can make a condition: they all name skill and format."""
    for task in TASKS:
        prompts = [row["prompt"] for row in records(folder / "train" / f"{task.name}.jsonl")]
        requests = FORMATS[task.format].seen
        assert all(any(request in prompt for request in requests) for prompt in prompts[:64])
        assert len(set(prompts[:64])) > 60
        assert not any(any(request in prompt for request in requests) for prompt in prompts[64:])
        items = map(SKILLS[task.skill].text, suite.split_items(task.skill, "train", 1))
        assert set(prompts[128:]) <= set(items)


def test_no_test_question_is_in_training(folder):
    for task in TASKS:
        name = f"{task.name}.jsonl"
        seen = {
            row["prompt"]
            for part in ("train", "prompts/own", "prompts/unseen-wordings")
            for row in records(folder / part / name)
        }
        for level in ("full", "ask", "bare", "unseen-wordings"):
            assert not seen & {row["prompt"] for row in records(folder / "test" / level / name)}


def as_pattern(wordings):
    """A pattern for questions in one of the wordings, about whatever item."""
    return re.compile("|".join(".+".join(map(re.escape, w.split("{}"))) for w in wordings))


def test_unseen_wordings_never_train(folder):
    """Neither of a task's skill nor of its format, in examples and in prompts of conditions."""
    for task in TASKS:
        unseen = as_pattern((*SKILLS[task.skill].unseen, *FORMATS[task.format].unseen))
        for part, expected in (
            ("train", False),
            ("prompts/own", False),
            ("test/full", False),
            ("test/unseen-wordings", True),
            ("prompts/unseen-wordings", True),
        ):
            prompts = [row["prompt"] for row in records(folder / part / f"{task.name}.jsonl")]
            assert all(bool(unseen.search(prompt)) == expected for prompt in prompts), part


def test_held_out_skills_and_formats_never_train(folder):
    """No question of the training tasks asks for them, and no response has such a format."""
    skills = [SKILLS[name] for name in suite.UNSEEN_SKILLS]
    formats = [FORMATS[name] for name in suite.UNSEEN_FORMATS]
    asked = as_pattern([w for thing in (*skills, *formats) for w in (*thing.seen, *thing.unseen)])
    for split in ("train", "validation", "test"):
        for task in SPLITS[split]:
            assert task.skill not in suite.UNSEEN_SKILLS
            assert task.format not in suite.UNSEEN_FORMATS
            for row in records(folder / "train" / f"{task.name}.jsonl"):
                assert not asked.search(row["prompt"])
                assert not row["response"].startswith(tuple(form.before for form in formats))


def test_own_prompts_name_the_task_and_wrong_ones_do_not(folder):
    for task in TASKS:
        skill, form = as_pattern(SKILLS[task.skill].seen), FORMATS[task.format].seen
        for kind, expected in (("own", True), ("wrong", False), ("random", False)):
            prompts = read_prompts(folder / "prompts" / kind / f"{task.name}.jsonl")
            for prompt in prompts:
                assert any(request in prompt for request in form) == expected
                assert bool(skill.search(prompt)) == expected


def test_a_folder_with_something_in_it_is_refused(folder):
    """Tasks of two seeds in one folder would train on each other's tests."""
    before = sorted(folder.rglob("*"))
    result = CliRunner().invoke(app, ["export", str(folder), "--seed", "2"])
    assert result.exit_code == 2
    assert "is not empty" in result.output
    assert sorted(folder.rglob("*")) == before


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    module = "dnd_fast.bench.experiments.natural.export"
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.delattr("dnd_fast.bench.experiments.natural.export", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    result = CliRunner().invoke(app, ["export", str(tmp_path / "suite")])
    assert result.exit_code == 2
    assert "dnd-fast[natural]" in re.sub(r"[\s│]+", " ", result.output)
