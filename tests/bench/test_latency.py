"""The latency benchmark: that baselines are what they say, and that it refuses wrong figures."""

import functools
import json

import pytest
import torch
from typer.testing import CliRunner

from dnd_fast import PreparedDecoder
from dnd_fast.bench import decoder as decoder_bench
from dnd_fast.bench import latency
from dnd_fast.bench.harness import results, timing
from dnd_fast.bench.harness.encoder import load_encoder
from dnd_fast.kernels.device import PROFILES
from dnd_fast.kernels.planner.cost_model import plan_decoder


@pytest.fixture
def app():
    import typer

    app = typer.Typer()
    app.command()(latency.main)
    return app


@pytest.fixture(autouse=True)
def no_calibration(monkeypatch):
    monkeypatch.setattr(latency, "calibrate", lambda *args, **kwargs: PROFILES["cpu"])


def test_from_prompts_to_adapter(app, tmp_path, monkeypatch):
    """The demo's recipe, every variant; figures add up and name their machine."""
    # Captured, but not compiled to machine code, which takes a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    file = tmp_path / "latency.json"
    command = ["--recipe", "demo", "--impl", "all", "--rounds", "2", "--noisy"]
    command += ["--encoder", "random", "--json", str(file), "--batch", "2"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    (figures,) = json.loads(file.read_text())
    assert json.loads(result.output.splitlines()[-1]) == figures
    assert figures["device"]
    assert figures["batch"] == 2
    assert figures["encoder"] == "random weights"
    assert set(figures["decode_seconds"]) == {"ours", "eager", "compiled"}
    assert set(figures["stages_p20_p50_p80"]) == {
        "tokenize",
        "encode",
        "decode",
        "detokenize",
        "to_host",
        "total",
        "save",
    }
    stages = figures["stages_p20_p50_p80"]
    assert 0 < figures["difference_from_published"] < latency.AGREEMENT
    assert figures["adapters_per_second"] == pytest.approx(2 / stages["total"][1])
    assert figures["prompts_to_tokens_seconds"] < stages["total"][1] < stages["total"][2]
    assert figures["paper_a100_seconds"] is None
    assert figures["peak_device_gb"] is None
    assert 0.1 < figures["peak_host_gb"] < 16
    assert figures["seed"] == 0
    assert len(figures["prompts_sha256"]) == 64
    assert set(figures["spread"]) == {"ours", "eager", "compiled"}
    assert "No GPU" in result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="the default on a CPU")
def test_only_ours_by_default_on_a_cpu(app):
    """The eager form takes minutes there; once the default ran it all the same."""
    command = ["--recipe", "demo", "--rounds", "2", "--noisy", "--encoder", "random"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.output.splitlines()[-1])
    assert set(figures["decode_seconds"]) == {"ours"}
    assert figures["difference_from_published"] is None
    assert figures["batch"] == 1


def test_the_eager_form_is_the_published_one(golden_decoder):
    """Against the published code's numbers; bfloat16 costs what bfloat16 costs."""
    decoder, tensors = golden_decoder
    with torch.no_grad():
        found = latency.published(decoder, tensors["input"])
    error = (found - tensors["output"]).norm() / tensors["output"].norm()
    assert 1e-4 < error < 0.03


def test_no_figures_on_a_wrong_result(monkeypatch):
    plan = plan_decoder([(6, 8, 8), (8, 6, 8)], 5, PROFILES["cpu"], algorithm="fft")
    device = torch.device("cpu")
    assert decoder_bench.require_exact(plan, device) < 1e-5
    wrong = decoder_bench.fft_conv2d
    monkeypatch.setattr(decoder_bench, "fft_conv2d", lambda *args: wrong(*args) * 1.001)
    with pytest.raises(SystemExit, match="no figures on a wrong result"):
        decoder_bench.require_exact(plan, device)


def test_a_decoder_that_disagrees_is_refused(app, monkeypatch):
    original = PreparedDecoder.tokens
    monkeypatch.setattr(PreparedDecoder, "tokens", lambda self, x: 1.2 * original(self, x))
    command = ["--recipe", "demo", "--rounds", "2", "--noisy", "--encoder", "random"]
    command += ["--impl", "eager"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "ours differs from the published form" in str(result.exception) + result.output


def test_an_unsteady_machine_is_refused(app, monkeypatch):
    monkeypatch.setattr(timing, "spread", lambda values: 0.5)
    command = ["--recipe", "demo", "--rounds", "2", "--impl", "ours", "--encoder", "random"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "ours 50%" in str(result.exception) + result.output


def test_random_encoder_has_the_right_shape():
    encoder, name = load_encoder("random", ["one prompt", "another prompt, longer"])
    assert name == "random weights"
    assert encoder.width == 384
    hidden = encoder.encode(["one prompt", "never seen"], 7)
    assert hidden.shape == (2, 7, 384)
    assert hidden.isfinite().all()
    packaged, name = load_encoder("auto", [])
    assert packaged.width == 384
    assert name == "all-MiniLM-L6-v2"


def test_table(monkeypatch, tmp_path):
    """One row a recipe and machine; a CPU's absolute times are not shown."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    assert latency.markdown() == "No results are committed yet."
    row = {"recipe": "math-7b", "weights": "cached", "device": "a GPU", "seed": 0}
    row |= {"speedup_over": {"eager": 5.04}, "ceiling_share": 0.5, "peak_device_gb": 20.0}
    row |= {"paper_a100_seconds": 0.55, "paper_a100_gb": 16.22, "peak_host_gb": 3.0}
    for batch in (1, 2):
        seconds = {"prompts_to_tokens_seconds": 0.01 * batch, "adapters_per_second": 90.0 + batch}
        results.append("latency", row | seconds | {"batch": batch})
    cpu = {"batch": 1, "device": "a CPU", "peak_device_gb": None, "speedup_over": {}}
    results.append("latency", row | seconds | cpu)
    gpu_row, cpu_row = latency.markdown().splitlines()[2:]
    assert gpu_row == (
        "| math-7b | a GPU | 10.0 ms | 5.0x faster | 50% | 20.0 GB | 92, 2 a pass "
        "| 0.55 s, 16.22 GB |"
    )
    assert cpu_row == "| math-7b | a CPU |  |  | 50% | 3.0 GB |  | 0.55 s, 16.22 GB |"


def test_prompts_are_made_distinct():
    """Equal prompts are encoded once: repeating a handful would flatter the encoder's time."""
    texts = latency.distinct(["a", "b"], 5)
    assert texts == ["a", "b", "a (2)", "b (2)", "a (3)", "b (3)"]
    assert latency.distinct(["a", "b"], 2) == ["a", "b"]
