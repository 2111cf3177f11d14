"""The command line, as a user runs it."""

import json
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from dnd_fast import Adapter, InvalidInput, __version__, smollm2
from dnd_fast.cli import app
from dnd_fast.demo.tasks import split_tasks
from dnd_fast.generator_config import DEMO_MODELS
from dnd_fast.svf.expert import Expert
from dnd_fast.train.demo import real, show, tiny
from dnd_fast.train.demo.tiny import LEVEL

runner = CliRunner()


def dnd_fast(*arguments):
    """Run in a process of its own, as installed."""
    command = [sys.executable, "-m", "dnd_fast", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "task.txt"
    file.write_text(
        "\n".join(f"take the opening letter of the tool {w}" for w in "cup pan axe".split())
    )
    return file


def test_help_teaches_and_is_quick():
    start = time.perf_counter()
    result = dnd_fast("--help")
    seconds = time.perf_counter() - start
    assert result.returncode == 0
    for command in ("generate", "demo", "info", "convert"):
        assert command in result.stdout
    assert seconds < 5  # importing torch and transformers alone takes longer on a busy machine


def test_version():
    result = dnd_fast("--version")
    assert (result.returncode, result.stdout) == (0, f"dnd-fast {__version__}\n")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_terminal_that_lacks_some_characters(monkeypatch, encoding):
    """Windows' default where output is redirected, and a bare container's."""
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    for arguments, code, text in (
        (["info", "demo"], 0, b"8 prompts of 24 tokens"),
        (["info", "é→"], 1, b"error: there is no"),
    ):
        command = [sys.executable, "-m", "dnd_fast", *arguments]
        result = subprocess.run(command, capture_output=True)
        assert result.returncode == code, result.stderr
        assert text in result.stdout + result.stderr


def test_prompts_from_standard_input(tmp_path):
    command = [
        sys.executable,
        "-m",
        "dnd_fast",
        "generate",
        "-",
        "--out",
        str(tmp_path / "adapter"),
    ]
    piped = json.dumps({"question": "take the opening letter of the tool cup", "answer": "c"})
    result = subprocess.run(command, capture_output=True, text=True, input=piped)
    assert result.returncode == 0, result.stderr
    assert Adapter.load(tmp_path / "adapter").modules


def test_generate_and_info(prompts, tmp_path):
    result = runner.invoke(app, ["generate", str(prompts), "--out", str(tmp_path / "adapter")])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 4
    result = runner.invoke(app, ["info", str(tmp_path / "adapter")])
    assert "24,576" in result.output  # parameters
    result = runner.invoke(app, ["info", "demo"])
    assert "8 prompts of 24 tokens" in result.output


def test_plan():
    result = runner.invoke(app, ["plan", "coding-7b", "--device", "h200"])
    assert result.exit_code == 0, result.output
    assert "21x18" in result.output  # 64 tiles without padding for the largest layer
    assert "all direct: 49.93 TFLOP" in result.output
    small = runner.invoke(app, ["plan", "demo", "--device", "cpu", "--memory", "1e-9"])
    assert isinstance(small.exception, InvalidInput)


def test_errors_are_one_line_and_no_traceback(tmp_path):
    result = dnd_fast("generate", tmp_path / "missing.txt", "--out", tmp_path / "adapter")
    assert result.returncode == 1
    assert "missing.txt: there is no such file of prompts" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "adapter").exists()


def test_the_tiny_demo(tmp_path):
    """What `dnd-fast demo --tiny` shows, and the figures that it writes."""
    written = ["--out", tmp_path / "adapter", "--json", tmp_path / "figures.json"]
    result = runner.invoke(app, [str(word) for word in ["demo", "--tiny", *written]])
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["demo"] == "tiny"
    assert figures["base"][LEVEL] <= 0.05
    assert figures["generated"][LEVEL] >= 0.65
    assert figures["control"][LEVEL] <= 0.05
    assert figures["oracle"][LEVEL] >= 0.8
    assert figures["held_out"].keys() == {"base", "generated", "control", "oracle"}
    assert figures["seconds"] < 1
    for text in ("A task that the generator never saw", "Does it work?", "all 12 tasks", "adapted"):
        assert text in result.output
    assert f'PeftModel.from_pretrained(base, "{tmp_path / "adapter"}")' in result.output
    assert Adapter.load(tmp_path / "adapter").config["r"] == 4


@pytest.mark.skipif(real.missing() is not None, reason=str(real.missing()))
def test_the_demo(tmp_path):
    """What `make demo` shows, and that the generator does what the demo says of it."""
    written = ["--out", tmp_path / "adapter", "--json", tmp_path / "figures.json"]
    result = runner.invoke(app, [str(word) for word in ["demo", *written]])
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["demo"] == "smollm2"
    for level in ("full", "ask", "bare"):
        assert figures["held_out"]["base"][level] <= 0.1
        assert figures["held_out"]["generated"][level] >= 0.3
        assert figures["held_out"]["control"][level] <= 0.1
    for text in ("A task that the generator never saw", "Does it work?", "all 6 tasks", "adapted"):
        assert text in result.output
    assert "dnd-fast base smollm2 --out smollm2" in result.output
    assert Adapter.load(tmp_path / "adapter").config["base_model_name_or_path"] == smollm2.HUB_ID


def test_the_tiny_demo_takes_the_real_ones_place(monkeypatch, tmp_path):
    """Where the real one lacks something, one line says what, and how to get it."""
    shown = []
    monkeypatch.setattr(show, "show", lambda load, out: shown.append(load))
    monkeypatch.setattr(real, "missing", lambda: None)
    assert runner.invoke(app, ["demo"]).output == ""
    monkeypatch.setattr(real, "missing", lambda: "There is no model [yet]; make one.")
    result = runner.invoke(app, ["demo"])
    assert result.output == "The tiny demo instead: There is no model [yet]; make one.\n"
    assert runner.invoke(app, ["demo", "--tiny"]).output == ""
    assert shown == [real.load, tiny.load, tiny.load]


def test_train_an_expert(tmp_path):
    """Settings come from a .toml; a setting that does not exist is refused."""
    examples = next(iter(split_tasks(0)["train"])).examples(12, "train", 0)
    data = tmp_path / "task.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": e.prompt, "response": e.answer}) + "\n" for e in examples)
    )
    settings = tmp_path / "quick.toml"
    settings.write_text("objective = 'next-token'\nsteps = 2\nbatch = 4\nmax_new_tokens = 4\n")
    models = ["--base", DEMO_MODELS / "base", "--tokenizer", DEMO_MODELS / "tokenizer"]
    common = ["train-expert", data, *models, "--out", tmp_path / "expert", "--settings", settings]
    command = [str(word) for word in [*common, "--cache", tmp_path / "cache"]]
    result = runner.invoke(app, command)
    assert result.exit_code == 0, result.output
    assert Expert.load(tmp_path / "expert").config.base_model == str(DEMO_MODELS / "base")
    assert list((tmp_path / "cache").iterdir())
    settings.write_text("candidates = 8\n")  # of a generator's training
    result = runner.invoke(app, command)
    assert isinstance(result.exception, InvalidInput)
    assert "candidates" in str(result.exception)


def test_each_kind_of_training_has_its_own_options():
    """What belongs to the other one is refused, before anything is loaded."""
    for arguments in (
        ["train", "--recipe", "demo", "--base", "base"],
        ["train", "--recipe", "demo", "--method", "svf"],
        ["train-expert", "task.jsonl", "--base", "base", "--out", "out", "--hold-out", "x"],
        ["train-expert", "task.jsonl", "--base", "base", "--out", "out", "--estimate"],
    ):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 2
        assert "No such option" in result.output
    taught = runner.invoke(app, ["train-expert", "--help"]).output
    for text in ("--settings", "the paper's", "warmup = 20", "dnd-fast adapt"):
        assert text in taught
