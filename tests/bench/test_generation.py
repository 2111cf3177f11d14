"""generate() against direct convolutions: figures of every form, and none on a wrong result."""

import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from dnd_fast.bench import generation
from dnd_fast.bench.harness import results
from dnd_fast.decoder.prepared import PreparedDecoder
from dnd_fast.generator_config import SHIPPED


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setattr(generation, "SHAPES", [[4, 8, 384], [6, 8, 16], [8, 4, 16]])
    monkeypatch.setattr(generation, "KERNEL_SIZE", 3)
    monkeypatch.setattr(generation, "ROUND_SECONDS", 0.0)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    app = typer.Typer()
    app.command()(generation.main)
    return lambda *options: CliRunner().invoke(app, ["--rounds", "2", "--noisy", *options])


def test_every_form_is_timed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)
    result = run("--compiled", "--save")
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "generation.jsonl").read_text().splitlines()
    shipped = [name for name, (folder, _) in SHIPPED.items() if list(folder.glob("*.safetensors"))]
    assert "demo" in shipped
    assert [json.loads(line)["generator"] for line in lines] == ["middle-sized", *shipped]
    for line in lines:
        figures = json.loads(line)
        forms = {generation.DIRECT, generation.OURS, generation.COMPILED}
        assert set(figures["decode_seconds"]) == set(figures["first_decode_seconds"]) == forms
        assert all(seconds > 0 for seconds in figures["adapter_seconds"])
        assert figures["difference_from_direct"] <= generation.AGREEMENT
        assert "convolutions in the transform domain" in figures["runs"]
    assert "demo, 0.73 M parameters" in generation.markdown()


def test_no_figures_on_a_wrong_result(run, monkeypatch):
    original = PreparedDecoder.weights
    calls = []

    def weights(self, condition):
        calls.append(self)
        return original(self, condition) * (1.0 if self is calls[0] else 1.1)

    monkeypatch.setattr(PreparedDecoder, "weights", weights)
    result = run()
    assert result.exit_code == 1
    assert "no figures on a wrong result" in str(result.exception) + result.output
