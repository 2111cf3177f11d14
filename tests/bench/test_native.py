"""The native runtime's benchmark: figures of both sides, and none on a wrong result."""

import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from dnd_fast.bench import native
from dnd_fast.bench.harness import results


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Without a build: what stands in for it gives Python's numbers, and takes its time."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(native, "BUILD", tmp_path)
    monkeypatch.setattr(native, "export", lambda generator, folder: folder.mkdir())
    monkeypatch.setattr(native, "_generate", lambda generator, prompts: torch.ones(4))
    monkeypatch.setattr(native, "NativeGenerator", lambda folder, prompts: lambda: torch.ones(4))
    (tmp_path / "dnd-generate").write_text('#!/bin/sh\ntest "$2" = --generator && test -e "$1"\n')
    (tmp_path / "dnd-generate").chmod(0o755)
    (tmp_path / "python").write_text('#!/bin/sh\nsleep 0.2\ntest "$5" = --generator\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(native.sys, "executable", str(tmp_path / "python"))
    app = typer.Typer()
    app.command()(native.main)
    options = ["--rounds", "2", "--processes", "2", "--noisy"]
    return lambda *more: CliRunner().invoke(app, [*options, *more])


def test_both_sides_are_timed(run, tmp_path):
    result = run("--save")
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "native.jsonl").read_text())
    for values in figures["seconds"].values():
        assert values.keys() == {native.NATIVE, native.PYTHON}
        assert all(len(seconds) == 2 for seconds in values.values())
    assert figures["speedup"]["process"] > 1  # one side sleeps
    assert figures["difference"] == 0
    assert "| demo | " in native.markdown()


def test_no_figures_on_a_wrong_result(run, monkeypatch):
    monkeypatch.setattr(native, "_generate", lambda generator, prompts: torch.full((4,), 1.1))
    result = run("--save")
    assert result.exit_code == 1
    assert "no figures on a wrong result" in result.output + str(result.exception)


def test_without_a_build(run, tmp_path):
    (tmp_path / "dnd-generate").unlink()
    result = run()
    assert result.exit_code == 1
    assert "run make native" in result.output + str(result.exception)
