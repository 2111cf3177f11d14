"""The kernel benchmark times the work, finds cold caches, and reports no figures on a failure."""

import json
import time

import pytest
import torch
import typer
from typer.testing import CliRunner

pytest.importorskip("pytest_benchmark")

from dnd_fast.bench import kernels
from dnd_fast.bench.harness import results
from dnd_fast.bench.harness.operations import Operation
from dnd_fast.kernels.device import PROFILES
from dnd_fast.kernels.reference import CONVOLUTIONS
from dnd_fast.recipe import DecoderSpec

CPU = torch.device("cpu")


def operation(run, name="it", moved=1e9):
    return Operation("layer", name, 8e9, moved, lambda: run)


def run_suite(operations, compare=False):
    return kernels.run_suite(operations, "test", PROFILES["cpu"], CPU, compare)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kernels, "BUDGET", 0.05)


def test_a_planted_sleep_shows_up():
    def run(seconds):
        return operation(lambda: time.sleep(seconds), f"{seconds} s")

    slow, fast = run_suite([run(0.03), run(0.003)])
    assert slow["kernel"] == "0.03 s"
    assert 0.03 <= slow["p20_p50_p80_seconds"][1] < 0.3
    assert 0.003 <= fast["p20_p50_p80_seconds"][1] < 0.03
    assert slow["bytes"] == 1e9


def test_runs_are_kept_and_compared(capsys):
    sleep = operation(lambda: time.sleep(0.001))
    with pytest.raises(SystemExit, match=r"no run of test in .* to compare with"):
        run_suite([sleep], compare=True)
    run_suite([sleep])
    capsys.readouterr()
    run_suite([sleep], compare=True)
    table = capsys.readouterr().out
    assert "(NOW)" in table
    assert "(0001_" in table


def test_a_failing_operation_gives_no_figures():
    def fail():
        raise ValueError("wrong shape")

    with pytest.raises(SystemExit, match="no figures"):
        run_suite([operation(time.time), operation(fail, "broken")])


def test_calls_take_turns_on_cold_operands(monkeypatch):
    monkeypatch.setattr(kernels, "cache_bytes", lambda device: 1000)
    made, used = [], []

    def make():
        made.append(len(made))
        return lambda own=made[-1]: used.append(own)

    call = kernels.cold_call(Operation("layer", "it", 1.0, 900.0, make), CPU)
    for _ in range(7):
        call()
    assert len(made) == 4  # 3 x 900 bytes lie between two uses of one copy: twice the cache
    assert used == [0, 1, 2, 3, 0, 1, 2]
    assert kernels.cache_bytes(CPU) == 1000


def test_a_graph_holds_a_gigabyte_of_launches():
    gpu = torch.device("cuda")
    assert kernels.launches(operation(None, moved=1e8), gpu) == 10
    assert kernels.launches(operation(None, moved=4e9), gpu) == 2
    assert kernels.launches(operation(None, moved=1.0), gpu) == kernels.MAX_LAUNCHES
    assert kernels.launches(operation(None), CPU) == 1


def test_share_of_the_nearer_limit():
    profile = PROFILES["h200"]
    row = kernels.describe(operation(None, moved=3.65e12), [1.0, 2.0, 3.0], profile)
    assert row["limit_share"] == pytest.approx(0.5)
    computing = Operation("layer", "it", profile.gemm_flops, 1.0, lambda: None)
    assert kernels.describe(computing, [1, 4, 5], profile)["limit_share"] == 0.25


@pytest.mark.skipif(torch.cuda.is_available(), reason="the default on a CPU")
def test_on_a_cpu(monkeypatch, tmp_path):
    """A small decoder stands in for the middle-sized one; every convolution is covered."""
    monkeypatch.setattr(kernels, "MIDDLE", DecoderSpec([[3, 8, 9], [2, 12, 7]], 5))
    monkeypatch.setattr(kernels, "calibrate", lambda *args, **kwargs: PROFILES["cpu"])
    monkeypatch.setattr(kernels, "BUDGET", 0.0)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    app = typer.Typer()
    app.command()(kernels.main)
    result = CliRunner().invoke(app, ["--noisy", "--save"])
    assert result.exit_code == 0, result.output
    (line,) = (tmp_path / "kernels.jsonl").read_text().splitlines()
    figures = json.loads(line)
    assert (figures["recipe"], figures["batch"], figures["seed"]) == ("middle", 1, 0)
    layers = {row["layer"].split()[0] for row in figures["kernels"]}
    assert layers == {f"0.{name}" for name in CONVOLUTIONS}
    assert figures["versions"]["pytest-benchmark"]
