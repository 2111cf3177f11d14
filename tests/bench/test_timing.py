"""Timers must time the work, and results must never be lost."""

import json
import time

import pytest
import torch

from dnd_fast.bench import results
from dnd_fast.bench.timing import difference, interleaved, speedup, spread

CPU = torch.device("cpu")


def test_a_planted_sleep_shows_up():
    def work(seconds):
        time.sleep(seconds)
        return torch.tensor(seconds)

    variants = {"slow": lambda: work(0.06), "fast": lambda: work(0.01)}
    seconds, last = interleaved(variants, 3, CPU)
    assert [len(values) for values in seconds.values()] == [3, 3]
    assert all(value >= 0.06 for value in seconds["slow"])
    assert 0.04 <= seconds["slow"][1] - seconds["fast"][1] <= 0.2
    assert speedup(seconds, "slow", "fast") > 3
    assert last["slow"] == torch.tensor(0.06)


def test_the_first_round_warms_up_and_is_not_counted():
    calls = []

    def run():
        calls.append(None)
        time.sleep(0.1 if len(calls) == 1 else 0)
        return torch.zeros(1)

    seconds, _ = interleaved({"it": run}, 2, CPU)
    assert len(calls) == 3
    assert max(seconds["it"]) < 0.09


def test_spread_and_difference():
    assert spread([1.0, 2.0, 4.0]) == 1.5
    assert difference(torch.tensor([3.0, 4.1]), torch.tensor([3.0, 4.0])) == pytest.approx(0.02)


def test_results_are_only_added_to(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    for figures in ({"a": 1, "x": 1}, {"a": 2, "x": 2}, {"a": 1, "x": 3}):
        path = results.append("it", figures)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["x"] for line in lines] == [1, 2, 3]
    assert [line["x"] for line in results.latest("it", "a")] == [3, 2]
    assert results.latest("nothing", "a") == []
    for key in ("schema_version", "revision", "time", "device", "threads", "versions"):
        assert lines[0][key]
