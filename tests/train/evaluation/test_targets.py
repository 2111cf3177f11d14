"""``dnd-fast evaluate``: what it reads, what it refuses, and what it leaves behind."""

import json
import shutil

import pytest
import typer
from typer.testing import CliRunner

from dnd_fast import InvalidInput
from dnd_fast.demo.tasks import split_tasks
from dnd_fast.generator_config import DEMO_MODELS
from dnd_fast.train.commands.evaluate import evaluate
from dnd_fast.train.evaluation import evaluate as methods
from dnd_fast.train.evaluation.targets import EvalTarget
from dnd_fast.train.generator.run_file import FORMAT_VERSION

from ..conftest import write_dataset

runner = CliRunner()
app = typer.Typer()
app.command()(evaluate)


def dnd_fast_evaluate(*arguments):
    """In this process; unusable input is raised, as in ``main``."""
    result = runner.invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


@pytest.fixture
def tests(tmp_path, demo_tasks):
    folder = tmp_path / "test"
    for task in demo_tasks:
        write_dataset(folder, task, 8, words="test", seed=1)
    return folder


@pytest.fixture
def make_run(tmp_path, shared_collection, collection):
    """A finished run with the shipped generators in it."""

    def make(name, held_out, objectives=("mse", "sft"), **changes):
        folder = tmp_path / name
        folder.mkdir()
        names = [*objectives, ""]
        for count in range(1, len(names)):
            last = count == len(objectives)
            label = "" if last else "-" + "+".join(objectives[:count])
            source = DEMO_MODELS / ("generator" if last else "generator-mse")
            shutil.copytree(source, folder / f"generator{label}")
        content = {
            "format_version": FORMAT_VERSION,
            "recipe": {"phases": [{"objective": each} for each in objectives]},
            "collection": str(shared_collection),
            "trained_on": [each for each in collection.names if each not in held_out],
            "held_out": list(held_out),
            "form": "prompt",
        } | changes
        (folder / "run.json").write_text(json.dumps(content))
        return folder

    return make


def test_a_run(make_run, tests, collection, tmp_path):
    run = make_run("run", collection.names[2:])
    output = dnd_fast_evaluate(
        run, "--test", tests, "--prompt-batches", 2, "--json", tmp_path / "out" / "table.json",
        "--plots", tmp_path / "plots", "--full",
    )  # fmt: skip
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert list(table["methods"]) == [
        methods.BASE,
        methods.MEAN,
        methods.BEST,
        methods.NEAREST,
        methods.SOUP,
        "generated, mse",
        "generated from another data set's prompts, mse",
        "generated, mse+sft",
        "generated from another data set's prompts, mse+sft",
        methods.ORACLE,
    ]
    assert table["subjects"][0]["held_out"] == collection.names[2:]
    generated = table["methods"]["generated, mse+sft"]
    assert set(generated["data"]) == set(collection.names[2:])
    assert len(generated["overall"]["prompt_batches"]) == 2
    assert generated["overall"]["mean"] > 0.5
    assert f"{100 * generated['overall']['mean']:.1f}" in output
    assert f"training adapter of {collection.names[0]}" in " ".join(output.split())
    assert {file.name for file in (tmp_path / "plots").iterdir()} == {"accuracy.png", "weights.png"}


def test_leave_one_out(make_run, tests, collection, tmp_path):
    """Two runs, each holding out one data set, in one table."""
    runs = [make_run(f"run-{name}", [name], ["mse"]) for name in collection.names[:2]]
    dnd_fast_evaluate(
        *runs, "--test", tests, "--prompt-batches", 1, "--json", tmp_path / "table.json"
    )
    table = json.loads((tmp_path / "table.json").read_text())
    assert list(table["methods"]["generated"]["data"]) == collection.names[:2]
    first, second = collection.names[:2]
    # Each is a training adapter where the other is held out, and an oracle for itself.
    assert set(table["training_adapters"][first]["data"]) == {second}
    assert table["training_adapters"][first]["overall"] is None
    assert set(table["training_adapters"][collection.names[2]]["data"]) == {first, second}
    with pytest.raises(InvalidInput, match="more than one run holds out"):
        dnd_fast_evaluate(runs[0], runs[0], "--test", tests)


def test_a_generator_that_no_run_made(shared_collection, tests, collection, tmp_path):
    name = collection.names[1]
    arguments = ["--generator", "demo", "--collection", shared_collection, "--test", tests]
    dnd_fast_evaluate(
        *arguments, "--hold-out", name, "--prompt-batches", 1, "--json", tmp_path / "table.json"
    )
    table = json.loads((tmp_path / "table.json").read_text())
    assert list(table["methods"]["generated"]["data"]) == [name]
    assert len(table["training_adapters"]) == 3
    with pytest.raises(InvalidInput, match="has this generator not been trained on"):
        dnd_fast_evaluate(*arguments)


def test_names(collection, make_run, tmp_path):
    first, second, third, fourth = collection.names
    target = EvalTarget.from_run(make_run("run", [third, fourth]))
    assert target.choose([]) == [third, fourth]
    assert target.choose([first]) == [first]
    assert target.choose(["*"]) == [third, fourth, first, second]
    (tmp_path / "names.txt").write_text(f"{second}\n\n {fourth}\n")
    assert target.choose([f"@{tmp_path / 'names.txt'}"]) == [fourth, second]
    with pytest.raises(InvalidInput, match="--data nothing: there is only"):
        target.choose(["nothing"])
    with pytest.raises(InvalidInput, match="nothing was held out in training"):
        EvalTarget.from_run(make_run("all", [])).choose([])


def test_prompts_of_a_data_set_that_was_never_collected(make_run, tests, collection, tmp_path):
    """Held out by a file of names: there is no oracle, and prompts have to come from somewhere."""
    task = split_tasks(0)["test"][0]
    name = write_dataset(tests, task, 8, words="test", seed=1).stem
    run = make_run("run", [name], ["mse"], trained_on=collection.names)
    with pytest.raises(InvalidInput, match=r"is not in .*, --prompts"):
        dnd_fast_evaluate(run, "--test", tests)
    write_dataset(tmp_path / "prompts", task)
    dnd_fast_evaluate(
        run, "--test", tests, "--prompts", tmp_path / "prompts", "--prompt-batches", 1,
        "--json", tmp_path / "table.json",
    )  # fmt: skip
    table = json.loads((tmp_path / "table.json").read_text())["methods"]
    assert methods.ORACLE not in table
    assert table["generated"]["overall"]["mean"] > 0.5


def test_prompts_need_no_responses_unless_conditions_hold_them(
    make_run, tests, collection, tmp_path
):
    name = collection.names[0]
    prompts = tmp_path / "prompts" / f"{name}.jsonl"
    prompts.parent.mkdir()
    prompts.write_text('{"prompt": "spell it backwards"}\n{"prompt": "and turn it around"}\n')
    target = EvalTarget.from_run(make_run("run", [name]))
    (task,) = target.read_held_out([name], tests, prompts.parent, "response")
    assert [each.prompt for each in task.examples] == ["spell it backwards", "and turn it around"]
    target = EvalTarget.from_run(make_run("other", [name], form="answer"))
    with pytest.raises(InvalidInput, match="found the keys 'prompt'; expected"):
        target.read_held_out([name], tests, prompts.parent, "response")


def test_examples_in_context_and_other_adapters(
    make_run, tests, collection, shared_collection, tmp_path
):
    task = split_tasks(0)["test"][0]
    name = write_dataset(tests, task, 8, words="test", seed=1).stem
    run = make_run("run", [name], ["mse"], trained_on=collection.names)
    write_dataset(tmp_path / "prompts", task)
    folder = collection.checkpoints(collection.names[0])[0]
    common = [run, "--test", tests, "--prompts", tmp_path / "prompts", "--rows", "in-context-2"]
    with pytest.raises(InvalidInput, match=r"has 0 examples with responses.* --examples"):
        dnd_fast_evaluate(*common)
    write_dataset(tmp_path / "labelled", task, 3)
    dnd_fast_evaluate(
        *common, "--examples", tmp_path / "labelled", "--adapter", f"another={folder}",
        "--json", tmp_path / "table.json",
    )  # fmt: skip
    table = json.loads((tmp_path / "table.json").read_text())["methods"]
    assert list(table) == ["in-context-2", "another"]
    for options, message in (
        (["x"], "--adapter x: expected LABEL=FOLDER"),
        ([f"x={folder}", f"x={folder}"], "two of --adapter have the same label"),
    ):
        with pytest.raises(InvalidInput, match=message):
            dnd_fast_evaluate(*common, *(part for o in options for part in ("--adapter", o)))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        dnd_fast_evaluate(*common, "--adapter", f"x={tmp_path / 'nowhere'}")


def test_the_run_s_condition_form_counts(make_run, collection):
    run = make_run("run", collection.names[:1], form="answer")
    assert EvalTarget.from_run(run).form == "answer"


def test_what_is_refused(make_run, tests, collection, shared_collection, tmp_path):
    run = make_run("run", collection.names[:1])
    for arguments, message in (
        ([], "either folders of training runs or --generator"),
        ([run, "--generator", "demo"], "either folders of training runs or --generator"),
        ([run, "--hold-out", "x"], "a run knows what it held out"),
        (["--generator", "demo"], "--generator needs a --collection"),
        ([run], "where are the questions"),
        ([run, "--metric", "luck"], "there is no metric 'luck'"),
        ([run, "--metric", "pass@1"], "--run-generated-code"),
    ):
        with pytest.raises(InvalidInput, match=message):
            dnd_fast_evaluate(*arguments)
    with pytest.raises(FileNotFoundError, match=f"{collection.names[0]}.jsonl"):
        dnd_fast_evaluate(run, "--test", tmp_path)
    with pytest.raises(FileNotFoundError, match="is no training run"):
        dnd_fast_evaluate(tmp_path, "--test", tests)


def test_damaged_and_unfinished_runs(make_run, collection):
    run = make_run("unfinished", collection.names[:1])
    shutil.rmtree(run / "generator")
    with pytest.raises(InvalidInput, match="is not finished: run the same dnd-fast train again"):
        EvalTarget.from_run(run)
    with pytest.raises(InvalidInput, match="format version 99"):
        EvalTarget.from_run(make_run("newer", [], format_version=99))
    with pytest.raises(InvalidInput, match="lacks 'gone', which"):
        EvalTarget.from_run(make_run("gone", [], trained_on=["gone"]))
    with pytest.raises(FileNotFoundError, match="is no collection"):
        EvalTarget.from_run(make_run("moved", [], collection="/nowhere"))
    damaged = make_run("damaged", [])
    (damaged / "run.json").write_text(json.dumps({"format_version": FORMAT_VERSION}))
    with pytest.raises(InvalidInput, match=r"run.json is damaged: there is no 'recipe'"):
        EvalTarget.from_run(damaged)
