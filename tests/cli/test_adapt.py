"""``dnd-fast adapt`` and ``dnd-fast info EXPERT``."""

import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from dnd_fast import InvalidInput
from dnd_fast.base_model import load_base
from dnd_fast.cli.adapt import adapt
from dnd_fast.cli.info import info
from dnd_fast.demo.tasks import Task
from dnd_fast.generator_config import DEMO_MODELS
from dnd_fast.lora.batched import encode
from dnd_fast.svf.expert import DecomposedModel, Expert
from dnd_fast.train.experts.reinforce import fit_experts

BASE = ["--tokenizer", str(DEMO_MODELS / "tokenizer"), "--device", "cpu"]
TASK = Task("first", "brackets", "animal")

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(adapt)
app.command()(info)


def run(*arguments):
    return CliRunner().invoke(app, [str(each) for each in arguments])


def refused(message, *arguments, kind=InvalidInput):
    result = run(*arguments)
    assert isinstance(result.exception, kind), result.output
    assert message in str(result.exception)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A useful expert and a random one, prompts and answered examples."""
    folder = tmp_path_factory.mktemp("adapt")
    model, tokenizer = load_base(str(DEMO_MODELS / "base"), str(DEMO_MODELS / "tokenizer"))
    base = DecomposedModel(model)
    examples = [each.turn for each in TASK.examples(64, "train", 0)]
    fitted = fit_experts(
        base, [encode(tokenizer, examples)], steps=20, batch=8, learning_rate=3e-2, seed=0
    )
    base.expert({name: z[0] for name, z in fitted.items()}).save(folder / "first")
    torch.manual_seed(0)
    noise = {name: 1 + 0.5 * torch.randn(size) for name, size in base.sizes.items()}
    base.expert(noise).save(folder / "noise")
    asked = [each.turn for each in TASK.examples(6, "test", 0)]
    (folder / "prompts.txt").write_text("\n".join(each.prompt for each in asked))
    (folder / "examples.jsonl").write_text(
        "".join(
            json.dumps({"prompt": e.prompt, "response": e.response}) + "\n" for e in examples[:4]
        )
    )
    return folder


@pytest.fixture
def common(folder, tmp_path):
    both = ["--experts", folder / "first", "--experts", folder / "noise"]
    return ["adapt", folder / "prompts.txt", *both, *BASE, "--cache", tmp_path / "svd"]


def test_few_shot(folder, common, tmp_path):
    result = run(
        *common, "--strategy", "few-shot", "--examples", folder / "examples.jsonl", "--light",
        "--out", tmp_path / "answers.jsonl", "--keep", tmp_path / "mixture",
        "--max-new-tokens", 12,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for text in ("coefficients", "10 generations", "first pass", "second pass"):
        assert text in result.output
    records = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    wanted = [each.answer for each in TASK.examples(6, "test", 0)]
    assert sum(r["response"] == w for r, w in zip(records, wanted, strict=True)) >= 4
    assert len(Expert.load(tmp_path / "mixture").vectors) == 15
    assert len(list((tmp_path / "svd").iterdir())) == 15  # kept for the next time


def test_prompt_and_classifier(folder, common):
    asked = run(*common, "--max-new-tokens", 4, "--template", "{prompt}")
    assert asked.exit_code == 0, asked.output
    assert "first pass" in asked.output
    told = run(*common, "--strategy", "classifier", "--classifier", folder / "noise",
               "--max-new-tokens", 4, "--template", "{prompt}")  # fmt: skip
    assert told.exit_code == 0, told.output


def test_info(folder):
    result = run("info", folder / "first")
    assert result.exit_code == 0, result.output
    for text in ("SVF expert", "1,728", "plain", "15"):
        assert text in result.output


def test_errors(folder, common, tmp_path):
    refused("--examples and --strategy few-shot", *common, "--strategy", "few-shot")
    refused("--classifier and --strategy classifier", *common, "--strategy", "classifier")
    refused("--keep and --light", *common, "--light")
    missing = ["adapt", folder / "prompts.txt", "--experts", tmp_path / "none", *BASE]
    refused("there is no SVF expert at", *missing, kind=FileNotFoundError)
    (tmp_path / "first").mkdir()
    for file in (folder / "first").iterdir():
        (tmp_path / "first" / file.name).write_bytes(file.read_bytes())
    refused("two experts are called 'first'", *common, "--experts", tmp_path / "first")
    config = tmp_path / "first" / "svf_config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"fingerprint": "0" * 64}))
    wrong = ["adapt", folder / "prompts.txt", "--experts", tmp_path / "first", *BASE]
    refused("trained on other weights", *wrong, "--cache", tmp_path / "svd")
    config.write_text(json.dumps(content | {"base_model": None}))
    refused("give --base", *wrong)
