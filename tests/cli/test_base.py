"""``dnd-fast base``, and GGUF files as the base of other commands."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from dnd_fast.cli import app
from dnd_fast.svf.expert import Expert
from dnd_fast.train.adapters.collection import Collection

from ..bad_input import contents, run
from ..gguf_file import write_gguf


def dnd_fast(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return " ".join(result.output.split())


@pytest.fixture
def gguf(tmp_path):
    return write_gguf(tmp_path / "tiny.gguf")


def test_a_gguf_file_as_a_folder(gguf, tmp_path):
    printed = dnd_fast("base", gguf, "--out", tmp_path / "folder")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    assert model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(tmp_path / "folder").chat_template
    assert f"LlamaForCausalLM, {model.num_parameters():,} parameters in bfloat16" in printed


@pytest.mark.parametrize("in_the_way", ["folder", "file"])
def test_something_in_the_way(gguf, tmp_path, monkeypatch, in_the_way):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    code, found = run(monkeypatch, "base", gguf, "--out", tmp_path / in_the_way)
    assert (code, found.count("\n")) == (1, 1)
    assert f"{in_the_way} is in the way; move it away, or give a new folder." in found
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{tmp}/none.gguf", "none.gguf does not exist or is no file"),
        ("{tmp}/short.gguf", "short.gguf' is damaged"),
        ("{tmp}/plain.gguf", "plain.gguf' has no chat template"),
        ("someone/model", "the base 'someone/model' must be 'smollm2' or a .gguf file"),
    ],
)
def test_unusable_input(gguf, tmp_path, monkeypatch, name, message):
    (tmp_path / "short.gguf").write_bytes(gguf.read_bytes()[:-1000])
    write_gguf(tmp_path / "plain.gguf", template=None)
    before = contents(tmp_path)
    code, found = run(monkeypatch, "base", name.format(tmp=tmp_path), "--out", tmp_path / "new")
    assert (code, found.count("\n")) == (1, 1)
    assert message in found
    assert contents(tmp_path) == before


def test_a_gguf_file_as_the_base_of_others(gguf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    turns = [{"prompt": f"say {word}", "response": word} for word in "lake oak pan rice".split()]
    data = tmp_path / "task.jsonl"
    data.write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    few = ["--steps", 1, "--checkpoints", 1, "--rank", 2, "--batch", 2]
    dnd_fast("collect", data, "--base", "tiny.gguf", "--out", "collection", *few)
    assert Collection.open(tmp_path / "collection").manifest.base == str(gguf)
    settings = tmp_path / "settings.toml"
    settings.write_text('objective = "next-token"\nsteps = 1\nbatch = 2\n')
    expert = tmp_path / "expert"
    dnd_fast("train-expert", data, "--base", gguf, "--out", expert, "--settings", settings)
    assert Expert.load(expert).config.base_model == str(gguf)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("say oak")
    cache = ["--cache", tmp_path / "svd", "--max-new-tokens", 2]
    assert "say oak" in dnd_fast("adapt", prompts, "--experts", expert, *cache)
