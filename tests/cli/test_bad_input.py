"""What the command line cannot use: one line, an exit code, nothing half-written."""

import json

import pytest
import torch

from dnd_fast.generator_config import SHIPPED
from dnd_fast.train.demo import show, tiny

from ..bad_input import PROMPTS, Trap, contents, damaged, disk_full, run

COMMANDS = {
    "generate: prompts missing": ("generate {tmp}/no.txt --out {tmp}/new", "no.txt: there is no"),
    "generate: prompts empty": ("generate {tmp}/empty.txt --out {tmp}/new", "there are no prompts"),
    "generate: prompts latin-1": ("generate {tmp}/latin.txt --out {tmp}/new", "not UTF-8 text"),
    "generate: prompts not JSON": (
        "generate {tmp}/text.jsonl --out {tmp}/new",
        "text.jsonl, line 1 is not valid JSON",
    ),
    "generate: prompts a folder": ("generate {tmp}/folder.txt --out {tmp}/new", "no such file of"),
    "generate: prompts themselves": ("generate rice --out {tmp}/new", "put it into a list"),
    "generate: generator missing": (
        "generate {tmp}/task.txt --out {tmp}/new --generator {tmp}/no/generator",
        "there is no generator folder '{tmp}/no/generator'",
    ),
    "generate: device": (
        "generate {tmp}/task.txt --out {tmp}/new --device nonsense",
        "device='nonsense' cannot be used",
    ),
    "generate: impl": (
        "generate {tmp}/task.txt --out {tmp}/new --impl triton",
        "impl='triton' cannot run",
    ),
    "info: missing": ("info {tmp}/no/thing", "there is no generator folder '{tmp}/no/thing'"),
    "info: a file": ("info {tmp}/task.txt", "there is no generator folder '{tmp}/task.txt'"),
    "info: neither": ("info {tmp}/folder.txt", "is no generator: config.json is missing"),
    "info: markup": ("info {tmp}/a/[/red][bold]", "there is no generator folder '{tmp}/a/[/red][b"),
    "info: a damaged adapter": ("info {tmp}/adapter", "adapter_model.safetensors is truncated"),
    "info: a damaged generator": ("info {tmp}/generator", "config.json is not valid JSON"),
    "convert: missing": (
        "convert {tmp}/no.pth --recipe demo --out {tmp}/new",
        "there is no checkpoint at {tmp}/no.pth",
    ),
    "convert: a pickle": (
        "convert {tmp}/trap.pth --recipe demo --out {tmp}/new",
        "could run code and are never loaded",
    ),
    "convert: recipe": (
        "convert {tmp}/decoder.pth --recipe maths --out {tmp}/new",
        "there is no recipe 'maths'",
    ),
    "convert: another recipe": (
        "convert {tmp}/decoder.pth --recipe demo --out {tmp}/new",
        "the decoder takes 3 prompts of length 5, the condition has 8 of length 24",
    ),
}


@pytest.mark.parametrize(("command", "message"), COMMANDS.values(), ids=COMMANDS)
def test_commands(good, tmp_path, monkeypatch, command, message):
    """One line, exit code 1, no traceback, nothing written."""
    (tmp_path / "task.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "text.jsonl").write_text("reverse rice")
    (tmp_path / "folder.txt").mkdir()
    damaged(good.folder / "adapter", tmp_path / "adapter", "adapter_model.safetensors", b"x")
    damaged(good.folder / "generator", tmp_path / "generator", "config.json", b"{")
    torch.save(good.state, tmp_path / "decoder.pth")
    torch.save(good.state | {"x": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    before = contents(tmp_path)
    arguments = command.format(tmp=tmp_path).split()
    if arguments[0] == "generate" and "--generator" not in arguments:
        arguments += ["--generator", good.folder / "generator"]
    code, found = run(monkeypatch, *arguments)
    assert code == 1
    assert found.startswith("error: ")
    assert message.format(tmp=tmp_path) in found
    assert found.count("\n") == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("generate a.txt", "Missing option '--out'"),
        ("generate a.txt --out b --impl gpu", "'gpu' is not one of"),
        ("generate a.txt --out b --seed x", "Invalid value for '--seed'"),
        ("convert a.pth --out b", "Missing option '--recipe'"),
        ("info", "Missing argument"),
        ("demonstrate", "No such command 'demonstrate'"),
    ],
)
def test_command_lines(monkeypatch, command, message):
    code, found = run(monkeypatch, *command.split())
    assert code == 2
    assert message in " ".join(found.replace("│", " ").split())


def test_the_demo_without_its_files(monkeypatch, tmp_path):
    monkeypatch.setattr(tiny, "DEMO_MODELS", tmp_path)
    monkeypatch.setitem(SHIPPED, "demo", (tmp_path / "generator", SHIPPED["demo"][1]))
    code, found = run(monkeypatch, "demo", "--tiny", "--out", tmp_path / "new")
    assert code == 1
    assert "the embedded generator 'demo' is missing" in found
    assert contents(tmp_path) == {}


def test_what_the_demo_cannot_retrain(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, found = run(monkeypatch, "demo", "--retrain")
    assert (code, found.count("\n")) == (1, 1)
    assert "--retrain rebuilds the tiny model" in found
    assert "docs/real-model.md" in found
    assert contents(tmp_path) == {}


def test_a_file_where_the_demos_adapter_shall_be(monkeypatch, tmp_path):
    (tmp_path / "adapter").write_text("mine")
    code, found = run(monkeypatch, "demo", "--tiny", "--out", tmp_path / "adapter")
    assert (code, found.count("\n")) == (1, 1)
    assert "adapter is a file; give a folder" in found
    assert contents(tmp_path) == {"adapter": b"mine"}


def test_the_demos_figures(monkeypatch, tmp_path):
    """An old file of figures survives a full disk, and a folder in its place is named."""
    monkeypatch.setattr(show, "show", lambda load, out: {"base": "x" * 1000})
    file = tmp_path / "figures.json"
    file.write_text("old")
    (tmp_path / "folder").mkdir()
    before = contents(tmp_path)
    with disk_full():
        code, found = run(monkeypatch, "demo", "--tiny", "--json", file)
    assert (code, "too large" in found) == (1, True)
    code, found = run(monkeypatch, "demo", "--tiny", "--json", tmp_path / "folder")
    assert (code, "folder is a folder; move it away" in found) == (1, True)
    code, found = run(monkeypatch, "demo", "--tiny", "--json", file / "figures.json")
    assert (code, "is a file; give a folder" in found) == (1, True)
    assert contents(tmp_path) == before
    code, _ = run(monkeypatch, "demo", "--tiny", "--json", file)
    assert code == 0
    assert json.loads(file.read_text()) == {"base": "x" * 1000}
