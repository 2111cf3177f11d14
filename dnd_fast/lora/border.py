"""The published normalisation of tokens: own mean and std, written into a border.

Source: the published code of Drag-and-Drop LLMs. Kept exact for its checkpoints; known faults are
listed at :class:`dnd_fast.lora.weight_layout.WeightLayout`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def add_border(weights: Tensor) -> Tensor:
    """``[..., r, Cw]`` -> ``[..., r + 2, Cw + 2]``: normalised, with (mean, std) pairs around."""
    valid = ~weights.isnan()
    count = valid.sum((-2, -1), keepdim=True)
    mean = weights.nansum((-2, -1), keepdim=True) / count
    deviation = (weights - mean).square().nansum((-2, -1), keepdim=True)
    std = (deviation / (count - 1)).sqrt()
    code = torch.cat([8 * mean, _encode_std(std)], dim=-1)  # [..., 1, 2]
    rows, columns = weights.shape[-2] + 2, weights.shape[-1] + 2
    tokens = code.repeat(*[1] * (code.ndim - 2), rows, columns // 2)
    tokens[..., :-2, :-2] = (weights - mean) / std
    return tokens


def remove_border(tokens: Tensor) -> Tensor:
    """Inverse of :func:`add_border`, averaging the copies in the published code's order.

    Even and odd rows are two groups: each averages one of the extra rows with its half of the extra
    columns (the corner belongs to both) and decodes; the results of the two groups are averaged.
    """
    rows = tokens[..., -2:, :].unflatten(-1, (-1, 2)).mean(-2)  # [..., group, (mean, std)]
    beside = tokens[..., -2:]
    columns = torch.stack([beside[..., group::2, :].mean(-2) for group in (0, 1)], dim=-2)
    mean, std = ((rows + columns) / 2).unbind(-1)  # [..., group]
    mean, std = mean.mean(-1) / 8, _decode_std(std).mean(-1)
    return tokens[..., :-2, :-2] * std[..., None, None] + mean[..., None, None]


def _encode_std(std: Tensor) -> Tensor:
    return (0.9 * std + 0.1).log() + 1.6


def _decode_std(code: Tensor) -> Tensor:
    return ((code - 1.6).exp() - 0.1) / 0.9
