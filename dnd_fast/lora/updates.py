"""What an adapter adds to a weight, scaling * B A, in factors: compared without forming it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dnd_fast.errors import InvalidInput


class Update(NamedTuple):
    """B ``[out, r]`` and A ``[r, in]`` in float64, and the factor of their product."""

    b: Tensor
    a: Tensor
    scaling: float


@dataclass(frozen=True)
class UpdateSimilarity:
    """How one module's update scaling * B A compares with another adapter's.

    Attributes:
        cosine: the cosine between the two updates as vectors; NaN if one of them is zero.
        relative_error: the norm of their difference over the other's norm; infinite if that
            is zero.
    """

    cosine: float
    relative_error: float


def similarity(update: Update, other: Update) -> UpdateSimilarity:
    """Compare two updates of one weight.

    Raises:
        InvalidInput: they are of different shapes.
    """
    norm, other_norm = (_norm(*weighted_sum([each], [1.0])) for each in (update, other))
    difference = _norm(*weighted_sum([update, other], [1.0, -1.0]))
    cosine = float("nan")
    if norm and other_norm:
        cosine = _inner(update, other) / (norm * other_norm)
    return UpdateSimilarity(
        cosine, relative_error=difference / other_norm if other_norm else float("inf")
    )


def weighted_sum(updates: Sequence[Update], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """B and A whose product is the weighted sum of updates; its rank is the sum of theirs.

    Raises:
        InvalidInput: they are of different shapes.
    """
    first, *others = ([update.b.shape[0], update.a.shape[1]] for update in updates)
    for other in others:
        if other != first:
            raise InvalidInput(
                f"the adapters are for different models: one updates a weight of shape {first}, "
                f"the other {other}."
            )
    scaled = [
        weight * scaling * b for (b, _, scaling), weight in zip(updates, weights, strict=True)
    ]
    return torch.cat(scaled, dim=1), torch.cat([update.a for update in updates])


def _inner(update: Update, other: Update) -> float:
    """Frobenius inner product of two updates, without forming either."""
    product = ((update.b.T @ other.b) * (update.a @ other.a.T)).sum()
    return update.scaling * other.scaling * float(product)


def _norm(b: Tensor, a: Tensor) -> float:
    """Frobenius norm of b a from the triangular factors: no cancellation for small differences."""
    return float((torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T).norm())
