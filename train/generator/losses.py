"""What a generated adapter is trained to be.

* ``mse`` (Drag-and-Drop LLMs, section 2.5): mean squared error between generated and collected
  tokens, collected ones drawn among the checkpoints of the data set that the prompts are from.
* ``sft`` (ours): the base model's next-token loss on the data set's own examples under the
  generated adapter, end to end. It uses the training sets' answers, which the paper's does not.

Both take SVF experts, too, where the layout is one of experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dnd_fast.lora.batched import (
    IGNORE_INDEX,
    Batch,
    gradient_checkpointing,
    summed_losses,
)
from dnd_fast.lora.weight_layout import WeightLayout
from dnd_fast.svf.expert import DecomposedModel

Base = PreTrainedModel | DecomposedModel  # the latter for experts


def mse(generated: Tensor, targets: Tensor, importance: Tensor | None = None) -> Tensor:
    """Mean squared error over the positions that hold weights.

    Args:
        generated: ``[M, Nw, Lw, Cw]``.
        targets: the same, NaN where padded.
        importance: ``[Nw]``, the weights of the tokens, one on average; None: all alike.

    Returns:
        A scalar in float32.
    """
    valid = ~targets.isnan()
    # Not a product with the mask: NaN times zero, forward or backward, stays NaN.
    squares = torch.where(valid, generated.float() - targets.nan_to_num(), 0).square()
    if importance is not None:
        squares = squares * importance.view(-1, 1, 1)
    return squares.sum() / valid.sum()


@contextmanager
def sft(
    base: Base,
    layout: WeightLayout,
    generated: Tensor,
    examples: Batch,
    *,
    recompute: bool = False,
) -> Iterator[Tensor]:
    """Mean over M adapters of the base model's loss on the examples ``[M, B, T]`` of each.

    The backward pass belongs into the block; with ``recompute`` it runs the base's blocks again.
    """
    model = base.model if isinstance(base, DecomposedModel) else base
    with (
        gradient_checkpointing(model) if recompute else nullcontext(),
        layout.applied(base, layout.detokenize(generated)),
    ):
        answered = (examples.labels != IGNORE_INDEX).sum((1, 2))
        yield (summed_losses(model, examples) / answered).mean()
