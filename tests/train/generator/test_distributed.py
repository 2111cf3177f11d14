"""Two processes over gloo must do what one does: replicas (DDP) and shards (FSDP2)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .toy import MSE, SFT, same

SCRIPT = Path(__file__).with_name("processes_script.py")
STEPS = MSE.steps + SFT.steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    found = subprocess.run(
        [sys.executable, SCRIPT, "compare", folder],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert found.returncode == 0, found.stderr
    return folder


def read(folder, name, rank=0):
    records, scores = json.loads((folder / f"{name}-result-{rank}.json").read_text())
    return records, scores, torch.load(folder / f"{name}-result.pt", weights_only=True)


@pytest.mark.parametrize("name", ["ddp", "fsdp", "small", "accumulated"])
def test_two_processes_are_one(folder, name):
    """A scheduler stepped on one process alone, or losses averaged wrongly, would show here."""
    records, scores, weights = read(folder, "one")
    assert len(records) == STEPS
    assert same(read(folder, name)[2], weights)
    for rank in range(2):
        others, other_scores, _ = read(folder, name, rank)
        assert other_scores == pytest.approx(scores, rel=1e-5)
        for (loss, rate, norm), (loss_2, rate_2, norm_2) in zip(records, others, strict=True):
            assert rate_2 == rate
            assert loss_2 == pytest.approx(loss, rel=1e-5)
            assert norm_2 == pytest.approx(norm, rel=1e-4)


def test_a_run_goes_on_with_another_number_of_processes(folder):
    """Begun as shards, gone on alone, ended as replicas: checkpoints hold whole states."""
    records, _, weights = read(folder, "one")
    others, _, other = read(folder, "mixed")
    assert same(other, weights)
    assert [loss for loss, _, _ in others] == pytest.approx(
        [loss for loss, _, _ in records[-len(others) :]], rel=1e-5
    )


def test_a_process_that_dies_ends_the_run(tmp_path):
    """The other one would wait for it forever."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    found = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", SCRIPT, "die", tmp_path],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert found.returncode != 0
    assert "Signal 9 (SIGKILL) received" in found.stderr
