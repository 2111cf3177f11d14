"""The experts' benchmark: nothing of the test tasks leaks, and tables say what results say."""

import json

import pytest
import torch

from dnd_fast.bench.experiments import adaptation, experts
from dnd_fast.bench.harness import results
from dnd_fast.bench.harness.markdown import NO_RESULTS
from dnd_fast.demo.tasks import SHIPPED_SEED, split_tasks
from dnd_fast.demo.vocabulary import FORMATS, SKILLS
from dnd_fast.svf.cem import CemSpec
from dnd_fast.svf.decomposition import initial_vectors


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(adaptation, "RESULTS", tmp_path)
    return tmp_path / "experts.jsonl"


def test_experts_never_see_a_test_combination():
    split = split_tasks(SHIPPED_SEED)
    held_out = {(task.skill, task.format) for task in split["test"]}
    groups = adaptation.attributes(split["train"])
    assert list(groups) == [*SKILLS, *FORMATS]
    seen = {(task.skill, task.format) for tasks in groups.values() for task in tasks}
    assert not seen & held_out
    assert {skill for skill, _ in held_out} <= {skill for skill, _ in seen}


def test_examples_of_few_shot_are_not_asked():
    for task in split_tasks(SHIPPED_SEED)["test"]:
        asked = {example.prompt for example in task.examples(experts.ASKED, "test", 1)}
        assert not asked & {example.prompt for example in adaptation._shots(task, 10, 0)}


def test_grading():
    """Against the tasks themselves: right answers are right, and the base's are not."""
    demo = experts.Demo()
    right = demo.grade([[example.answer for example in exam] for exam in demo.exams])
    assert all(each["exact"] == 1 and each["format"] == 1 for each in right)
    demo.exams = [exam[:2] for exam in demo.exams]
    demo.prompts = [prompts[:2] for prompts in demo.prompts]
    ones = initial_vectors(demo.base.sizes, "plain", 0)
    same = {name: z.repeat(len(demo.tasks), 1) for name, z in ones.items()}
    assert demo.graded(same) == demo.graded(None)


class FewTasks(experts.Demo):
    """Two test tasks."""

    def __init__(self):
        super().__init__()
        self.tasks, self.exams, self.prompts = self.tasks[:2], self.exams[:2], self.prompts[:2]


def test_a_small_run(written, tmp_path, monkeypatch):
    """Every row of a table comes out of a run, and is read back as it was written."""
    monkeypatch.setattr(experts, "STEPS", 1)
    monkeypatch.setattr(experts, "ASKED", 1)
    monkeypatch.setattr(adaptation, "Demo", FewTasks)
    tiny = CemSpec(iterations=1, population=2, elites=2)
    for name in ("FEW_SHOT", "VARIANTS"):
        variants = {
            key: (1, type(spec)(spec.per, spec.normalised, spec.others, tiny))
            for key, (_, spec) in getattr(adaptation, name).items()
        }
        monkeypatch.setattr(adaptation, name, variants)
    monkeypatch.setattr(adaptation, "CLASSIFIER", {"steps": 1, "batch": 2, "learning_rate": 0.1})
    monkeypatch.setattr(adaptation, "_spread", lambda tasks: tasks[0].examples(2, "train", 0))
    kept = tmp_path / "kept"
    adaptation.choosing(seed=3, keep=kept)
    adaptation.mixing(seed=3, keep=kept)
    adaptation.variants(seed=3, keep=kept)
    records = [json.loads(line) for line in written.read_text().splitlines()]
    assert [(r["part"], r["seed"]) for r in records] == [
        ("choosing", 3),
        ("mixing", 3),
        ("variants", 3),
    ]
    assert torch.tensor(records[1]["alpha"]["few-shot"]).shape == (2, 26)
    for row in records[0]["confusion"].values():
        assert all(sum(shares) == pytest.approx(1) or sum(shares) == 0 for shares in row)
    text = experts.scores("adaptation")
    for name in (name for record in records for name in record["rows"]):
        assert f"| {name} | " in text
    adaptation.plot()
    assert {path.name for path in written.parent.glob("*.png")} == {
        "experts-alpha.png",
        "experts-confusion.png",
    }


def test_tables(written):
    row = {"skill": 0.5, "format": 0.25, "per_task": []}
    with written.open("w") as file:
        for seed, exact in ((0, 0.1), (1, 0.3), (0, 0.2)):  # seed 0 was run again
            rows = {"SVF, both": row | {"exact": exact, "parameters": 1728}}
            file.write(json.dumps({"part": "methods", "seed": seed, "rows": rows}) + "\n")
    assert "| SVF, both, 1,728 parameters | 0.250 ± 0.071 | 0.500 ± 0.000 | 0.250" in (
        experts.scores("methods")
    )
    assert experts.scores("transfer") == experts.objectives_scores() == NO_RESULTS
