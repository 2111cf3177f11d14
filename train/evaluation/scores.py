"""The result of an evaluation: every method's scores on every held-out data set, with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import mean, stdev
from typing import Any

from dnd_fast.errors import InvalidInput

Runs = list[list[float]]  # one list per prompt batch, one score per question
Row = dict[str, Runs]  # by data set

Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A mean score.

    Attributes:
        mean: Mean, from 0 to 1.
        low, high: 95 % Wilson interval over the questions.
        batches: Mean of each prompt batch.
    """

    mean: float
    low: float
    high: float
    batches: tuple[float, ...]

    @property
    def spread(self) -> float | None:
        """Standard deviation over prompt batches, None for a single one."""
        return stdev(self.batches) if len(self.batches) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Describe the estimate for a JSON file."""
        return {
            "mean": self.mean,
            "interval": [self.low, self.high],
            "prompt_batches": list(self.batches),
        }


@dataclass(frozen=True)
class Evaluation:
    """A table like the paper's Tables 1 and 10.

    Attributes:
        metric: Name of the metric.
        rows: Scores by method and data set.
        adapters: Scores of the training adapters, by the data set that they were trained on.
        settings: How it was made, for the record.
    """

    metric: str
    rows: dict[str, Row]
    adapters: dict[str, Row]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """Names of the held-out data sets."""
        return list(dict.fromkeys(name for row in self.rows.values() for name in row))

    def overall(self, row: Row) -> Estimate | None:
        """A method's mean over the data sets, each counting the same; None where one is missing."""
        if set(row) != set(self.columns):
            return None
        batches = [mean(map(mean, runs)) for runs in zip(*row.values(), strict=False)]
        # As many questions as would, in one data set, give the mean over data sets its variance.
        questions = len(row) ** 2 / sum(1 / len(runs[0]) for runs in row.values())
        return _estimate(batches, questions)

    def to_dict(self) -> dict[str, Any]:
        """Describe everything but the single questions' scores, for a JSON file."""

        def described(row: Row) -> dict[str, Any]:
            cells = {name: estimate(runs).to_dict() for name, runs in row.items()}
            overall = self.overall(row)
            return {"overall": overall and overall.to_dict(), "data": cells}

        counted = {name: len(runs[0]) for row in self.rows.values() for name, runs in row.items()}
        return {
            "metric": self.metric,
            **self.settings,
            "questions": counted,
            "methods": {name: described(row) for name, row in self.rows.items()},
            "training_adapters": {name: described(row) for name, row in self.adapters.items()},
        }


def estimate(runs: Sequence[Sequence[float]]) -> Estimate:
    """Estimate the mean over prompt batches and questions of one data set."""
    return _estimate([mean(run) for run in runs], len(runs[0]))


def wilson(share: float, questions: float) -> tuple[float, float]:
    """Return the 95 % interval of a share of questions (Wilson 1927).

    It holds for means of any scores from 0 to 1, whose variance is at most that of yes and no, and
    unlike a bootstrap it does not shrink to a point where every score is the same.
    """
    spread = Z * sqrt(share * (1 - share) / questions + Z**2 / (4 * questions**2))
    centre, scale = share + Z**2 / (2 * questions), 1 + Z**2 / questions
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def merged(evaluations: Iterable[Evaluation]) -> Evaluation:
    """Make one table from runs that each held out other data sets: leave-one-out.

    Raises:
        InvalidInput: two have a data set in common, or metrics differ.
    """
    first, *others = evaluations
    check_disjoint(evaluation.columns for evaluation in (first, *others))
    rows = {name: dict(row) for name, row in first.rows.items()}
    adapters = {name: dict(row) for name, row in first.adapters.items()}
    for other in others:
        if other.metric != first.metric:
            raise InvalidInput(f"one evaluation is by {first.metric}, another by {other.metric}.")
        _add(rows, other.rows)
        _add(adapters, other.adapters)
    return Evaluation(first.metric, rows, adapters, first.settings)


def check_disjoint(held_out: Iterable[Sequence[str]]) -> None:
    """Raise where a data set is held out twice: it would have two scores in one table.

    Raises:
        InvalidInput: the message names the data set.
    """
    names = [name for data_sets in held_out for name in data_sets]
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput(
                f"more than one run holds out {name!r}; evaluate such runs one by one, or name "
                "other data sets with --data."
            )


def _add(rows: dict[str, Row], more: Mapping[str, Row]) -> None:
    for name, row in more.items():
        rows.setdefault(name, {}).update(row)


def _estimate(batches: Sequence[float], questions: float) -> Estimate:
    share = mean(batches)
    return Estimate(share, *wilson(share, questions), tuple(batches))
