"""The singular value decomposition of one weight matrix, and what scaled singular values change.

How z becomes the scales s is a parametrisation:

* ``"plain"`` (the paper's formula): s = z. Training starts at z = 1, which is the base itself.
* ``"published"`` (what the paper's Table 6 belongs to, a start at mean 0.1 with variance 1e-3):
  s = 2 sigmoid(z), times the factor that keeps the sum of the singular values. Read as plain
  scales, a mean of 0.1 would shrink every matrix to a tenth; 2 sigmoid(0.1) = 1.05, and the factor
  takes the 5 % away again (and the 2 as well), so that training starts near the base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from dnd_fast.cache import cached

Parametrisation = Literal["plain", "published"]


class Svd(NamedTuple):
    """W = u diag(s) vh: ``[m, r]``, ``[r]`` in descending order, ``[r, n]``, float32."""

    u: Tensor
    s: Tensor
    vh: Tensor

    @property
    def weight(self) -> Tensor:
        """W ``[m, n]``."""
        return (self.u * self.s) @ self.vh

    def change(self, scales: Tensor) -> Tensor:
        """W' - W ``[m, n]`` for scales ``[r]``."""
        return (self.u * (self.s * (scales - 1))) @ self.vh


def scales_of(z: Tensor, sigma: Tensor, parametrisation: Parametrisation) -> Tensor:
    """Scales ``[..., r]`` of singular values sigma ``[r]``; differentiable in z ``[..., r]``."""
    if parametrisation == "plain":
        return z
    mask = 2 * z.sigmoid()
    return mask * (sigma.sum() / (mask * sigma).sum(-1, keepdim=True))


def initial_vectors(
    sizes: Mapping[str, int], parametrisation: Parametrisation, seed: int
) -> dict[str, Tensor]:
    """Where training starts: z = 1, or (published) normal with mean 0.1 and variance 1e-3."""
    if parametrisation == "plain":
        return {name: torch.ones(size) for name, size in sizes.items()}
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.1 + 1e-3**0.5 * torch.randn(size, generator=generator)
        for name, size in sizes.items()
    }


def adding_hook(
    svd: Svd, z: Tensor, parametrisation: Parametrisation
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A forward hook of a linear layer that adds what z ``[r]`` or K of them ``[K, r]`` change."""
    rows, columns = len(svd.u), svd.vh.shape[1]

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0].to(svd.s.dtype)
        scales = scales_of(z, svd.s, parametrisation)
        tokens = x.numel() // columns
        if z.ndim == 1 and tokens * (rows + columns) > rows * columns:
            added = x @ svd.change(scales).T  # for many tokens, one small product more pays
        else:
            grouped = x.reshape(1 if z.ndim == 1 else len(z), -1, columns)
            change = (svd.s * (scales - 1)).reshape(len(grouped), 1, -1)
            added = ((grouped @ svd.vh.T) * change @ svd.u.T).view_as(output)
        return output + added.to(output.dtype)

    return hook


def hash_weight(weight: Tensor) -> str:
    """SHA-256 of a matrix in float32, so that a base has one hash in float32 and bfloat16."""
    values = weight.detach().float().cpu().contiguous()
    digest = hashlib.sha256(f"{list(values.shape)}".encode())
    digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def decompose(weight: Tensor, sha256: str, cache: str | Path | None) -> Svd:
    """SVD of ``[m, n]`` in float32 on the weight's device; from the cache where that has it.

    Args:
        weight: the matrix.
        sha256: the matrix's hash, under which the cache keeps its SVD.
        cache: a folder, or None to compute the SVD anew.
    """
    if cache is None:
        parts = torch.linalg.svd(weight.float(), full_matrices=False)
        return Svd(*(part.contiguous() for part in parts))  # as from a cache: bit by bit
    rank = min(weight.shape)
    shapes = {"u": (weight.shape[0], rank), "s": (rank,), "vh": (rank, weight.shape[1])}
    stored = cached(
        cache, sha256, shapes, lambda: decompose(weight, sha256, None)._asdict(), what="svd"
    )
    return Svd(**{name: part.to(weight.device) for name, part in stored.items()})
