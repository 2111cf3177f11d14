"""The cross-entropy method: sample from a Gaussian, refit it to the best samples, and again.

Source: Transformer² (arXiv:2501.06252), section 3.1. One thing differs: the new deviation is that
of the elites from the old mean, not from their own. The latter shrinks while the search is still on
its way, which then ends where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dnd_fast.errors import InvalidInput


@dataclass(frozen=True)
class CemSpec:
    """Settings of a search.

    Attributes:
        iterations: the largest number of generations of samples.
        population: the number of samples per generation.
        elites: how many of the best samples the Gaussian is refitted to.
        patience: the number of generations without a better sample after which the search stops.
        deviation: the Gaussian's standard deviation at the start.
    """

    iterations: int = 100
    population: int = 32
    elites: int = 8
    patience: int = 15
    deviation: float = 0.5

    def __post_init__(self) -> None:
        if not 2 <= self.elites <= self.population:
            raise InvalidInput(
                f"elites={self.elites}: at least 2 and at most the population of "
                f"{self.population} are needed."
            )
        for name in ("iterations", "patience"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name}={getattr(self, name)}: at least 1 is needed.")
        if not self.deviation > 0:
            raise InvalidInput(f"deviation={self.deviation}: it must be positive.")


@dataclass(frozen=True)
class CemResult:
    """What a search found.

    Attributes:
        best: the best sample ``[D]``.
        score: its score, one number per criterion.
        history: the best score so far, after each generation.
    """

    best: Tensor
    score: tuple[float, ...]
    history: list[tuple[float, ...]]


def search(
    evaluate: Callable[[Tensor], Tensor], start: Tensor, spec: CemSpec, *, seed: int
) -> CemResult:
    """Maximise ``evaluate``, starting around ``start``, which is itself the first sample.

    Args:
        evaluate: samples ``[P, D]`` -> scores ``[P, criteria]``; later criteria break ties.
        start: ``[D]``, the Gaussian's first mean.
        spec: the search's settings.
        seed: the seed of all samples; same seed and scores, same result.
    """
    generator = torch.Generator().manual_seed(seed)
    mean, deviation = start.double(), torch.full_like(start.double(), spec.deviation)
    best, score = start, (-float("inf"),)
    history: list[tuple[float, ...]] = []
    stale = 0
    while len(history) < spec.iterations and stale < spec.patience:
        noise = torch.randn(spec.population, len(start), generator=generator, dtype=torch.float64)
        samples = mean + deviation * noise
        if not history:
            samples[0] = mean
        drawn = samples.to(start.dtype)
        scores = [tuple(row) for row in evaluate(drawn).tolist()]
        ranked = sorted(range(spec.population), key=scores.__getitem__, reverse=True)
        stale += 1
        if scores[ranked[0]] > score:
            best, score, stale = drawn[ranked[0]].clone(), scores[ranked[0]], 0
        elites = samples[ranked[: spec.elites]]
        deviation = (elites - mean).square().mean(0).sqrt()
        mean = elites.mean(0)
        history.append(score)
    return CemResult(best, score, history)
