"""The cross-entropy method: it finds what is planted, stops, and is reproducible."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnd_fast import InvalidInput
from dnd_fast.svf.cem import CemSpec, search

PLANTED = torch.tensor([0.7, -0.4, 1.2, 0.0])


def distance(samples):
    return -(samples - PLANTED).norm(dim=1, keepdim=True)


@pytest.mark.parametrize("seed", range(5))
def test_finds_a_planted_optimum(seed):
    """1.2 is over two deviations from the start: a Gaussian that shrinks too early misses it."""
    found = search(distance, torch.zeros(4), CemSpec(), seed=seed)
    assert (found.best - PLANTED).abs().max() < 0.02
    assert found.score == pytest.approx((distance(found.best[None]).item(),))
    assert found.history == sorted(found.history)  # the best so far never gets worse


def test_later_criteria_break_ties():
    """A score that is 0 or 1 almost everywhere says nothing; the tie-break must lead the way."""

    def score(samples):
        near = (distance(samples) > -0.1).double()
        return torch.cat([near, distance(samples).double()], dim=1)

    found = search(score, torch.zeros(4), CemSpec(), seed=1)
    assert found.score[0] == 1


def test_the_first_criterion_counts_first():
    table = torch.tensor([[0.0, 9.0], [1.0, -9.0]])

    def score(samples):
        return table[(torch.arange(len(samples)) == 3).long()]

    found = search(score, torch.zeros(2), CemSpec(iterations=1), seed=0)
    assert found.score == (1.0, -9.0)


def test_same_seed_same_result():
    runs = [search(distance, torch.zeros(4), CemSpec(iterations=5), seed=s) for s in (3, 3, 4)]
    assert runs[0].best.equal(runs[1].best)
    assert runs[0].history == runs[1].history
    assert not runs[0].best.equal(runs[2].best)


def test_stops_when_nothing_improves():
    calls = []

    def flat(samples):
        calls.append(len(samples))
        return torch.zeros(len(samples), 1)

    found = search(flat, torch.ones(3), CemSpec(patience=4, population=9, elites=3), seed=0)
    assert calls == [9] * 5  # the first improves on nothing, then four in vain
    assert found.best.equal(torch.ones(3))  # the start is a candidate, and nothing beats it


@given(st.integers(0, 1000), st.integers(2, 6))
@settings(max_examples=20, deadline=None)
def test_never_worse_than_the_start(seed, size):
    start = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    target = torch.zeros(size)

    def score(samples):
        return -(samples - target).square().sum(1, keepdim=True)

    found = search(score, start, CemSpec(iterations=3, population=6, elites=2), seed=seed)
    assert found.score[0] >= score(start[None]).item()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"elites": 1}, "elites=1"),
        ({"elites": 33}, "population of 32"),
        ({"iterations": 0}, "iterations=0"),
        ({"patience": 0}, "patience=0"),
        ({"deviation": 0.0}, "deviation=0.0"),
    ],
)
def test_unusable_settings(setting, message):
    with pytest.raises(InvalidInput, match=message):
        CemSpec(**setting)
