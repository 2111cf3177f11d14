"""Embeddings whose directions all count alike, whatever an encoder's own scales."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

SHRINKAGE = 0.1  # of the mean variance, added to every direction's


class Whitening(nn.Module):
    """Moves the embeddings of tokens to mean zero and, nearly, unit covariance.

    What tells two similar tasks apart, "the next" from "the previous", is in directions in which
    an encoder's embeddings vary little. A decoder that sees them at their own scale finds it easier
    to remember which combinations it was trained on, and fails on new ones.

    ``x -> (x - mean) (covariance + SHRINKAGE * mean variance)^(-1/2)``, the symmetric root ("ZCA"),
    in float32. Positions that are all zero are padding, and stay zero. Not in the paper.

    Args:
        width: C, the size of an embedding.

    Attributes:
        mean: ``[C]``; zero until fitted.
        matrix: ``[C, C]``; the identity until fitted.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("matrix", torch.eye(width))

    def fit(self, texts: Iterable[Tensor]) -> None:
        """Estimate mean and covariance from the embedded tokens of texts, each ``[tokens, C]``."""
        width = len(self.mean)
        count, total = 0, torch.zeros(width, dtype=torch.float64)
        squares = torch.zeros(width, width, dtype=torch.float64)
        for rows in texts:
            exact = rows.double().cpu()
            count += len(exact)
            total += exact.sum(0)
            squares += exact.T @ exact
        mean = total / count
        variances, directions = torch.linalg.eigh(squares / count - mean.outer(mean))
        scales = (variances.clamp(min=0) + SHRINKAGE * variances.mean()).rsqrt()
        self.mean.copy_(mean)
        self.matrix.copy_(directions * scales @ directions.T)

    def forward(self, hidden: Tensor) -> Tensor:
        """Whiten embeddings ``[..., C]``; float32, on the same device."""
        whitened = (hidden.float() - self.mean.float()) @ self.matrix.float()
        return whitened * hidden.any(-1, keepdim=True)
