"""Mean, deviation and importance of a collection's weight tokens, one adapter in memory at a time.

Source: Drag-and-Drop LLMs, section 2.5, and its published code (the importance weights).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dnd_fast.errors import InvalidInput
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.train.adapters.collection import Collection


class Statistics(NamedTuple):
    """Statistics over adapters, in float32.

    Attributes:
        mean: Mean element by element, 0 where padded, ``[Nw, Lw, Cw]``.
        std: Standard deviation of each chunk about the element-wise mean, ``[Nw, 1, 1]``; exactly
            0 for a chunk that never varies.
        importance: Each token's mean standard deviation as a share of all, times Nw: ``[Nw]``,
            1 on average. All 1 where nothing varies.
    """

    mean: Tensor
    std: Tensor
    importance: Tensor


def fit_layout(layout: TokenLayout, collection: Collection, names: Sequence[str]) -> Tensor:
    """Fit a layout's statistics to all adapters of some data sets.

    Args:
        layout: Layout that gets mean and std, on the CPU, if its scale is static; in border mode it
            has none.
        collection: Collection with the adapters.
        names: Names of the data sets to look at.

    Returns:
        Importance of every token for the loss, ``[Nw]``, 1 on average.

    Raises:
        InvalidInput: an adapter is damaged or does not fit the layout; the message names it.
    """
    raw = TokenLayout.from_dict({**layout.to_dict(), "scale": "static"})  # without statistics
    fitted = statistics(_tokens(raw, collection, names))
    if layout.scale == "static":
        layout.set_statistics(fitted.mean, fitted.std)
    return fitted.importance


def statistics(adapters: Iterable[Tensor]) -> Statistics:
    """Run Welford's algorithm over adapters as tokens ``[Nw, Lw, Cw]``, raw, NaN where padded.

    Raises:
        InvalidInput: there are no adapters.
    """
    stream = iter(adapters)
    first = next(stream, None)
    if first is None:
        raise InvalidInput("there are no adapters to take statistics of.")
    # Relative to the first adapter: differences are small beside the weights, and exactly 0 for a
    # chunk that never varies.
    mean, squares = torch.zeros_like(first), torch.zeros_like(first)
    count = 1
    for count, tokens in enumerate(stream, 2):
        offset = tokens - first - mean
        mean += offset / count
        squares += offset.square() * ((count - 1) / count)
    padding = first.isnan()
    variance = (squares / count).masked_fill(padding, torch.nan)
    deviations = variance.sqrt().nanmean((1, 2))
    return Statistics(
        mean=(first + mean).masked_fill(padding, 0),
        std=variance.nanmean((1, 2)).sqrt().view(-1, 1, 1),
        importance=deviations / deviations.mean() if deviations.any() else deviations + 1,
    )


def _tokens(layout: TokenLayout, collection: Collection, names: Sequence[str]) -> Iterator[Tensor]:
    for name in names:
        for checkpoint in collection.checkpoints(name):
            try:
                yield layout.tokenize(collection.load(checkpoint))
            except InvalidInput as error:
                where = "" if str(checkpoint) in str(error) else f"{checkpoint}: "
                raise InvalidInput(f"{where}{error}") from error
