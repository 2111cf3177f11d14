"""One adapter of several: weighted sums of their updates.

Source: the methods of the same names in PEFT's ``add_weighted_adapter``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from dnd_fast.errors import InvalidInput
from dnd_fast.lora.adapter import Adapter, weight_keys
from dnd_fast.lora.updates import Update, weighted_sum

Method = Literal["cat", "linear", "svd"]
# Entries by which PEFT finds the modules.
TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


def combine(
    adapters: Sequence[Adapter], weights: Sequence[float], method: Method, rank: int | None
) -> Adapter:
    """Combine adapters; see :meth:`dnd_fast.lora.adapter.Adapter.combine`."""
    _check_arguments(adapters, weights, method, rank)
    first = adapters[0]
    for other in adapters[1:]:
        other.require_same_modules(first)
    wanted = rank or max(len(first.tensors[weight_keys(m)[0]]) for m in first.modules)
    double = any(t.dtype == torch.float64 for each in adapters for t in each.tensors.values())
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for module in first.modules:
        updates = [adapter.update(module) for adapter in adapters]
        if method == "cat":
            b, a = weighted_sum(updates, weights)
        elif method == "svd":
            b, a = _truncated(*weighted_sum(updates, weights), wanted)
        else:
            b, a = _added(updates, weights)
        ranks[module] = len(a)
        for key, tensor in zip(weight_keys(module), (a, b), strict=True):
            tensors[key] = (tensor if double else tensor.float()).contiguous()
    return Adapter(tensors, _config(adapters, ranks))


def _check_arguments(
    adapters: Sequence[Adapter], weights: Sequence[float], method: Method, rank: int | None
) -> None:
    if not adapters or len(adapters) != len(weights):
        raise InvalidInput(
            f"{len(adapters)} adapters and {len(weights)} weights: give at least one, and a weight "
            "for each."
        )
    for weight in weights:
        if type(weight) not in (int, float) or not math.isfinite(weight):
            raise InvalidInput(f"a weight is {weight!r}, expected a finite number.")
    if method not in get_args(Method):
        raise InvalidInput(f"method={method!r} is unknown; choose one of {get_args(Method)}.")
    if rank is not None and (type(rank) is not int or rank < 1 or method != "svd"):
        raise InvalidInput(
            f"rank={rank!r}: it must be a positive integer, and is for method='svd' alone."
        )


def _added(updates: Sequence[Update], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The sums of sqrt(|w s|) B and of sign(w s) sqrt(|w s|) A."""
    if len({len(update.a) for update in updates}) > 1:
        raise InvalidInput(
            "method='linear' adds up the matrices A, and so needs adapters of one rank; found "
            f"{sorted({len(update.a) for update in updates})}. Take 'cat' or 'svd'."
        )
    factors = [w * update.scaling for update, w in zip(updates, weights, strict=True)]
    roots = [abs(factor) ** 0.5 for factor in factors]
    scaled = [
        (root * update.b, math.copysign(root, factor) * update.a)
        for update, root, factor in zip(updates, roots, factors, strict=True)
    ]
    return torch.stack([b for b, _ in scaled]).sum(0), torch.stack([a for _, a in scaled]).sum(0)


def _truncated(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of b a of a rank (Eckart-Young), from the triangular factors."""
    left, right = torch.linalg.qr(b), torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(left.R @ right.R.T, full_matrices=False)
    root = s[:rank].sqrt()
    missing = rank - len(root)  # where b a has a smaller rank
    return (
        F.pad(left.Q @ (u[:, :rank] * root), (0, missing)),
        F.pad((root[:, None] * vh[:rank]) @ right.Q.T, (0, 0, 0, missing)),
    )


def _config(adapters: Sequence[Adapter], ranks: dict[str, int]) -> dict[str, Any]:
    """The first adapter's configuration, with a scaling of 1 whatever the rank of a module."""
    config = dict(adapters[0].config)
    rank = max(ranks.values())
    others = {module: other for module, other in ranks.items() if other != rank}
    config |= {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
    }
    if any(adapter.config.get(key) != config.get(key) for adapter in adapters for key in TARGETS):
        config |= dict.fromkeys(TARGETS) | {"target_modules": list(ranks)}
    return config
