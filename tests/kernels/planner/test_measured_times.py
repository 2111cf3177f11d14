"""Tables of measured times: written by measuring, read by the planner."""

import json

import pytest
import torch

from dnd_fast.kernels import device
from dnd_fast.kernels.device import PROFILES
from dnd_fast.kernels.planner import measured_times as measured
from dnd_fast.kernels.planner.cost_model import conv_plans, decoder_convolutions, plan_decoder

FEATURES = [[4, 9, 12], [6, 8, 10], [6, 8, 10]]


def test_measures_every_shape_once():
    progress = []
    for weights in ("cached", "streamed", "int8"):
        found = measured.measure(
            FEATURES,
            5,
            PROFILES["cpu"],
            weights=weights,
            seconds=0.01,
            report=lambda done, total: progress.append((done, total)),
        )
        shapes = decoder_convolutions(FEATURES, 5)
        assert set(found) == {shape.key(1, weights) for shape in shapes}
        for shape in shapes:
            times = found[shape.key(1, weights)]
            algorithms = {each.algorithm for each in conv_plans(shape, PROFILES["cpu"])}
            assert "direct" in times
            assert set(times) <= algorithms
            assert all(0 < seconds < 5 for seconds in times.values())
        plan = plan_decoder(FEATURES, 5, PROFILES["cpu"], weights=weights, measured=found)
        for choice in plan.convolutions:
            assert choice.seconds == min(found[choice.shape.key(1, weights)].values())
    assert progress[-1] == (10, 10)


def test_tables_by_device(tmp_path, monkeypatch):
    monkeypatch.setenv("DND_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(device, "device_name", lambda device: "A (R) Chip @ 2.0, 2 cores")
    assert measured.load_table("cpu") == {}
    path = measured.table_path(torch.device("cpu"))
    assert path == tmp_path / "measured/A-R-Chip-2-0-2-cores.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"seconds": {"a": {"direct": 1.0}}}))
    assert measured.load_table("cpu") == {"a": {"direct": 1.0}}


def test_measured_times_are_kept_for_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("DND_FAST_CACHE", str(tmp_path))
    before = measured.load_table("cpu")
    path = measured.save_table("cpu", {"a": {"direct": 1.0}})
    assert path == measured.table_path("cpu")
    assert path.is_relative_to(tmp_path)
    assert measured.load_table("cpu") == {**before, "a": {"direct": 1.0}}


@pytest.mark.parametrize("entry", [1, None, [], {"direct": "1"}, {"direct": -1.0}, {"a": True}])
def test_times_that_are_none(tmp_path, monkeypatch, entry):
    """A plan by them was a TypeError, or preferred what takes less than no time."""
    monkeypatch.setenv("DND_FAST_CACHE", str(tmp_path))
    path = measured.save_table("cpu", {"a": {"direct": 1.0}, "b": entry})
    with pytest.raises(ValueError, match=rf"{path.name} .*for 'b', expected positive numbers"):
        measured.load_table("cpu")
