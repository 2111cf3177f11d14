"""What the package carries of the suite: it must be what the suite gives."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from dnd_fast import Generator, InvalidInput, smollm2
from dnd_fast.generator_config import SHIPPED
from dnd_fast.train.demo import real

NEEDS = 'needs pip install "dnd-fast[natural]"'
ship = pytest.importorskip("dnd_fast.bench.experiments.natural.ship", reason=NEEDS)
app = pytest.importorskip("dnd_fast.bench.experiments.natural.__main__", reason=NEEDS).app
suite = pytest.importorskip("dnd_fast.bench.experiments.natural.suite", reason=NEEDS)


@pytest.fixture
def make_run(tmp_path, tiny_generator):
    """Writes what is read of a training run, whose base was called smollm2."""

    def make(trained_on):
        folder = tmp_path / "run"
        config = tiny_generator.config
        tiny_generator.config = replace(config, layout=config.layout | {"base_model": "smollm2"})
        tiny_generator.save_pretrained(folder / "generator")
        (folder / "run.json").write_text(json.dumps({"trained_on": trained_on}))
        return folder

    return make


def test_the_shipped_tasks_are_the_suites():
    """Where this fails, `python -m bench.natural ship` writes them again."""
    assert real.read_tasks() == ship.demo_tasks(seed=0)


def test_what_is_shown_is_held_out():
    """The prompts are about items that train, the questions about others."""
    known = {task.name for task in suite.split_tasks(0)["train"]}
    for name, task in zip(ship.TASKS, ship.demo_tasks(seed=0), strict=True):
        assert name not in known
        skill = task.title.split(", ")[0]
        items = {str(suite.SKILLS[skill].text(i)) for i in suite.split_items(skill, "test", 0)}
        assert {example.prompt for example in task.questions["bare"]} <= items
    with pytest.raises(InvalidInput, match=r"with seed 1, .* is no test task: choose others"):
        ship.demo_tasks(seed=1)


def test_a_shipped_generator(make_run, tmp_path):
    """Half the size, nearly the same adapters, with the base's name as PEFT knows it."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    run = make_run(["next-json"])
    ship.ship_generator(run, folder)
    dtypes = {name: value.dtype for name, value in load_file(folder / "model.safetensors").items()}
    assert dtypes.pop("layout.mean") == dtypes.pop("layout.std") == torch.float32
    assert set(dtypes.values()) == {torch.bfloat16}
    assert (folder / "README.md").read_text() == "mine"
    prompts = ["reverse rice", "count the letters in tea", "echo fig", "copy oak"]
    adapter = Generator.from_pretrained(folder).generate(prompts)
    assert adapter.config["base_model_name_or_path"] == smollm2.HUB_ID
    original = Generator.from_pretrained(run / "generator").generate(prompts)
    assert original.config["base_model_name_or_path"] == "smollm2"
    similarity = adapter.compare(original).values()
    assert max(entry.relative_error for entry in similarity) < 0.02


def test_a_run_that_has_seen_the_demo_s_tasks(make_run, tmp_path):
    with pytest.raises(InvalidInput, match=r"was trained on singular-plain, .*: hold it out"):
        ship.ship_generator(make_run(["next-json", "singular-plain"]), tmp_path / "shipped")
    assert not (tmp_path / "shipped").exists()


def test_the_command(make_run, tmp_path, monkeypatch):
    """Tasks alone, or a run's generator too."""
    tasks, folder = tmp_path / "tasks.jsonl", tmp_path / "shipped"
    monkeypatch.setattr(real, "TASKS_FILE", tasks)
    monkeypatch.setitem(SHIPPED, "smollm2", (folder, ""))
    result = CliRunner().invoke(app, ["ship"])
    assert result.exit_code == 0, result.output
    assert real.read_tasks(tasks) == real.read_tasks()
    assert not folder.exists()
    result = CliRunner().invoke(app, ["ship", str(make_run([]))])
    assert result.exit_code == 0, result.output
    assert (folder / "model.safetensors").is_file()
    result = CliRunner().invoke(app, ["ship", str(tmp_path / "nothing")])
    assert result.exit_code == 2
    assert "run.json" in result.output
