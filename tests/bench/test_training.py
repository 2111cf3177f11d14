"""The training benchmark: the memory that it predicts, and that it refuses wrong gradients."""

import dataclasses
import itertools
import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from dnd_fast import HyperConvDecoder
from dnd_fast.bench import training
from dnd_fast.bench.harness import results
from dnd_fast.decoder.convolutions import PlannedConvolutions
from dnd_fast.kernels.conv2d import fft_conv2d
from dnd_fast.kernels.device import PROFILES
from dnd_fast.kernels.fft import torch_conv
from dnd_fast.kernels.planner.cost_model import plan_decoder
from dnd_fast.kernels.planner.peak_memory import peak_bytes
from dnd_fast.recipe import DecoderSpec, Recipe

SMALL = DecoderSpec([[6, 20, 24], [8, 16, 18], [10, 8, 24]], 5)
GB = 1e9


class StepByStep(torch.autograd.Function):
    """The planned convolution and its gradients in plain tensor operations, which are counted."""

    @staticmethod
    def forward(ctx, x, weight, tiles, workspace):
        ctx.save_for_backward(x, weight)
        ctx.options = tiles, workspace
        return fft_conv2d(x, weight, tiles, workspace_bytes=workspace)

    @staticmethod
    def backward(ctx, dy):
        (x, weight), (tiles, workspace) = ctx.saved_tensors, ctx.options
        turned = weight.transpose(0, 1).flip(2, 3)
        dx = fft_conv2d(dy, turned, tiles, workspace_bytes=workspace)
        return dx, torch_conv.weight_gradient_torch(x, dy, tiles, x.dtype, workspace), None, None


@pytest.mark.parametrize("batch", [1, 7])
def test_predicted_memory_of_a_planned_step(monkeypatch, batch):
    """Against a count that follows every transform: below it never, above by the limit at most."""
    plan = plan_decoder(
        SMALL.features,
        SMALL.kernel_size,
        PROFILES["cpu"],
        weights="streamed",
        training=True,
        algorithm="fft",
    )
    form = training.Form(dataclasses.replace(plan, workspace_bytes=1 << 20))
    predicted = training.predicted_memory(SMALL, form, batch)
    with torch.device("meta"):
        decoder = HyperConvDecoder(SMALL.features, SMALL.kernel_size)
        x = torch.empty(batch, *decoder.condition_shape)
    decoder.set_plan(form.plan)

    def step_by_step(planned, name, x, weight):
        return StepByStep.apply(x, weight, planned.fft_plans[name], planned.workspace_bytes)

    monkeypatch.setattr(PlannedConvolutions, "_fft", step_by_step)
    weights = list(decoder.parameters())
    for weight in weights:
        weight.grad = torch.empty_like(weight)
    there = itertools.chain([x], weights, (weight.grad for weight in weights))
    exact = peak_bytes(lambda: decoder(x).square().mean().backward(), beside=there)
    exact += 2 * sum(weight.nbytes for weight in weights)
    assert exact <= GB * predicted["peak"] <= exact + (1 << 20)


def test_components():
    """Weights as the paper's decoder has them, activations by hand, and no remainder."""
    spec = Recipe.load("common-sense-0.5b").decoder
    form = training.forms_of(spec, 1, PROFILES["a100"])[training.DIRECT]
    one = training.predicted_memory(spec, form, 1)
    assert one["weights"] == pytest.approx(4 * 1.113, rel=1e-3)  # 1.113 G parameters
    assert one["gradients"] == one["weights"] == one["optimizer"] / 2
    assert one["peak"] == pytest.approx(sum(one[part] for part in training.COMPONENTS[:-1]))
    assert one["workspace"] > 0
    two = training.predicted_memory(spec, form, 2)
    assert two["activations"] == pytest.approx(2 * one["activations"], rel=1e-3)
    assert two["weights"] == one["weights"]


def test_activations_by_hand():
    """One block: its input, the statistics, the norm's output, and what the convolutions need."""
    spec, n = DecoderSpec([[3, 8, 6], [5, 4, 7]], 3), 4
    form = training.forms_of(spec, 2, PROFILES["a100"])[training.DIRECT]
    kept = GB * training.predicted_memory(spec, form, 2)["activations"] / (2 * n)
    images = {"x": 3 * 8 * 6, "norm": 3 * 8 * 6, "a": 7 * 8 * 3, "b": 4 * 3 * 6}
    images |= {"tanh": 3 * 4 * 7, "mixed": 3 * 4 * 7, "tokens": 5 * 4 * 7, "statistics": 2 * 3}
    assert kept == pytest.approx(sum(images.values()), abs=0.5)


def test_the_batch_is_halved_until_it_fits():
    profile = PROFILES["a100"]
    form = training.forms_of(SMALL, 8, profile)[training.PLANNED]
    peak = {batch: GB * training.predicted_memory(SMALL, form, batch)["peak"] for batch in (4, 8)}
    assert training.fitting_batch(SMALL, 8, peak[8], profile) == 8
    assert training.fitting_batch(SMALL, 8, peak[8] - 1, profile) == 4
    assert training.fitting_batch(SMALL, 8, 0, profile) == 1


def test_no_figures_on_wrong_gradients(monkeypatch):
    monkeypatch.setattr(training, "gradient_difference", lambda *args: 1e-3)
    with pytest.raises(SystemExit, match="no figures on a wrong result"):
        training.measure(SMALL, 1, 2, torch.device("cpu"), PROFILES["cpu"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="the default on a CPU")
def test_on_a_cpu(monkeypatch, tmp_path):
    """A step is measured, the recipes' memory predicted; both become tables."""
    monkeypatch.setattr(training, "MIDDLE", SMALL)
    monkeypatch.setattr(training, "BATCHES", {"demo": 6})
    monkeypatch.setattr(training, "calibrate", lambda *args, **kwargs: PROFILES["cpu"])
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    app = typer.Typer()
    app.command()(training.main)
    result = CliRunner().invoke(app, ["--rounds", "2", "--noisy", "--save"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["gradient_difference"] < 1e-5
    assert (figures["batch"], figures["seed"], figures["memory_is"]) == (4, 0, "predicted")
    for name in (training.DIRECT, training.PLANNED):
        seconds = figures["seconds"][name]
        assert figures["samples_per_second"][name] == pytest.approx(4 / (sum(seconds) / 2))
        assert set(figures["memory_gb"][name]) == set(training.COMPONENTS)
    (line,) = (tmp_path / "memory.jsonl").read_text().splitlines()
    assert json.loads(line)["batch"] == json.loads(line)["fitting_batch"] == 6
    assert "(6, 20, 24) → (8, 16, 18) → (10, 8, 24), k = 5, batch 4" in training.markdown()
    assert "| demo | 6 |" in training.memory_markdown()
