"""Checkpoints: exact, atomic, and no more of them than asked for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnd_fast import InvalidInput
from dnd_fast.filesystem import TEMPORARY
from dnd_fast.train.generator.checkpoints import Checkpoints, State

from .toy import MSE, SFT, new_trainer

STEPS = MSE.steps + SFT.steps
SCRIPT = Path(__file__).with_name("kill_script.py")


class Stopped(Exception):
    pass


def run(folder, stop=None, **options):
    """Train until ``stop`` steps are done; returns the trainer, or None if it was stopped."""
    trainer = new_trainer(folder, **options)
    trainer.seen = []

    def on_step_end(record):
        trainer.seen.append(record.step)
        if record.step == stop:
            raise Stopped

    trainer.on_step_end = on_step_end
    try:
        trainer.fit()
    except Stopped:
        return None
    return trainer


def equal(first, second):
    first, second = first.decoder.state_dict(), second.decoder.state_dict()
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def whole():
    return run(None)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, STEPS), max_size=4), st.integers(1, 5))
def test_resuming_anywhere_changes_nothing(tmp_path_factory, whole, stops, save_every):
    folder = tmp_path_factory.mktemp("run")
    for stop in stops:
        run(folder, stop, save_every=save_every)
    resumed = run(folder, save_every=save_every)
    assert equal(resumed, whole)
    assert resumed.checkpoints.latest().step == STEPS
    assert resumed.seen == list(range(STEPS + 1 - len(resumed.seen), STEPS + 1))


def test_a_finished_run_is_not_trained_again(tmp_path, whole):
    run(tmp_path)
    done = []
    trainer = new_trainer(tmp_path)
    trainer.on_phase_end = done.append
    trainer.on_step_end = lambda record: pytest.fail("it went on")
    trainer.fit()
    assert equal(trainer, whole)
    assert done == [1]  # in case that was left undone


def test_ten_kills(tmp_path):
    """kill -9 at random moments, half of them while a checkpoint is written or deleted."""
    output = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "runs"], capture_output=True, text=True, timeout=100
    )
    assert output.returncode == 0, output.stderr
    found = json.loads(output.stdout)
    steps = [step for step, _ in found["steps"]]
    assert found["equal"]
    assert found["status"] == 0
    assert sum(killed for _, killed in found["steps"]) >= 5  # not all came too late
    assert steps == sorted(steps)  # no checkpoint was ever lost
    assert steps[-1] > 0


def state(step, score=None, phase=0):
    return State(step, phase, {"w": torch.full((2,), float(step))}, {"w|step": 3}, score)


def test_the_last_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, score in enumerate([5.0, None, 2.0, 4.0, None, 3.0, None], 1):
        checkpoints.save(state(step, score))
    assert checkpoints.steps() == [3, 6, 7]
    checkpoints.save(state(8, 9.0, phase=1))  # another objective: not to be compared
    checkpoints.save(state(9, 8.0, phase=1))
    checkpoints.save(state(10, 8.5, phase=1))
    assert checkpoints.steps() == [9, 10]
    found = checkpoints.latest()
    assert (found.step, found.phase, found.score) == (10, 1, 8.5)
    assert found.optimizer == {"w|step": 3}


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_an_older_one_is_used_where_the_newest_is_damaged(tmp_path, caplog, name, damage):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    file = tmp_path / "step-000002" / name
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-5])
    assert checkpoints.latest().step == 1
    assert "step-000002 cannot be read, an older one is used" in caplog.text


def test_a_full_disk_leaves_the_older_one(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dnd_fast.train.generator.checkpoints.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(state(2))
    assert checkpoints.latest().step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_leftovers_are_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1))
    for name in (f"{TEMPORARY}1", f"{TEMPORARY}2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.safetensors").write_bytes(b"half")
    assert checkpoints.latest().step == 1
    assert checkpoints.steps() == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda weights: weights.pop("blocks.0.bias"), "blocks.0.bias' has shape missing"),
        (lambda weights: weights.update(new=torch.ones(2)), r"new' has shape \(2,\), expected no"),
        (
            lambda weights: weights.update({"blocks.1.bias": torch.ones(3)}),
            r"blocks.1.bias' has shape \(3,\), expected \(",
        ),
    ],
)
def test_a_checkpoint_of_another_decoder(tmp_path, spoil, message):
    """It was a RuntimeError; with a weight missing, values that nobody has trained."""
    run(tmp_path, stop=4)
    kept = Checkpoints(tmp_path).latest()
    weights = dict(kept.weights)
    spoil(weights)
    Checkpoints(tmp_path).save(State(kept.step, kept.phase, weights, kept.optimizer))
    with pytest.raises(InvalidInput, match=f"another decoder's: '{message}"):
        run(tmp_path)


def test_a_checkpoint_of_another_optimiser(tmp_path):
    run(tmp_path, stop=4)
    kept = Checkpoints(tmp_path).latest()
    optimizer = {key: v for key, v in kept.optimizer.items() if "blocks.0.bias" not in key}
    Checkpoints(tmp_path).save(State(kept.step, kept.phase, kept.weights, optimizer))
    with pytest.raises(InvalidInput, match=r"optimiser is another one.*blocks\.0\.bias"):
        run(tmp_path)
