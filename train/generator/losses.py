"""What a generated adapter is trained to be.

* ``mse`` (Drag-and-Drop LLMs, section 2.5): mean squared error between generated and collected
  tokens, collected ones drawn among the checkpoints of the data set that the prompts are from.
* ``sft`` (ours): the base model's next-token loss on the data set's own examples under the
  generated adapter, end to end. It uses the training sets' answers, which the paper's does not.

Both take SVF experts, too, where the layout is one of experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dnd_fast.decoder.model import HyperConvDecoder
from dnd_fast.lora.batched import (
    IGNORE_INDEX,
    Batch,
    gradient_checkpointing,
    summed_losses,
)
from dnd_fast.lora.frozen_base import FrozenBase
from dnd_fast.lora.weight_layout import WeightLayout
from dnd_fast.recipe import Phase
from dnd_fast.svf.expert import DecomposedModel
from dnd_fast.train.generator.config import TrainerConfig
from dnd_fast.train.generator.data import (
    MicroBatch,
    MicroBatches,
    TaskData,
    add_noise_and_dropout,
    pad_conditions,
)
from dnd_fast.train.generator.distributed import DistributedContext
from dnd_fast.train.generator.pairs import Pairing

Base = PreTrainedModel | FrozenBase | DecomposedModel  # the last for experts


@dataclass(frozen=True)
class Loss:
    """The loss of a micro-batch under a phase's objective.

    Attributes:
        model: The decoder, or what it is wrapped in.
        decoder: The decoder itself.
        layout: Layout of its tokens, on the decoder's device.
        base: The frozen base model, for "sft"; decomposed, if the layout is of experts.
        device: Device of all of them.
        trainer_config: Precision, and whether to compute activations again.
    """

    model: nn.Module
    decoder: HyperConvDecoder
    layout: WeightLayout
    base: Base | None
    device: torch.device
    trainer_config: TrainerConfig

    def __call__(self, batch: MicroBatch, phase: Phase) -> Tensor:
        """Return a differentiable scalar in float32, computed with noise and dropout."""
        batch = batch.to(self.device)
        condition = pad_conditions(batch, self.decoder.condition_shape)
        add_noise_and_dropout(condition, batch.targets, batch.pairs, phase)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.trainer_config.bf16):
            generated = self.model(condition)
            if batch.targets is not None:
                importance = self.decoder.criterion_weight if phase.weighted else None
                return mse(generated, batch.targets, importance)
            assert self.base is not None
            assert batch.examples is not None
            recompute = self.trainer_config.checkpointing
            return sft(self.base, self.layout, generated, batch.examples, recompute=recompute)

    @torch.no_grad()
    def mean(
        self,
        tasks: Sequence[TaskData],
        pairing: Pairing,
        phase: Phase,
        context: DistributedContext,
        size: int,
    ) -> float:
        """Average over one batch that is always the same, without noise and dropout."""
        quiet = dataclasses.replace(phase.quiet(), steps=1)
        length = self.decoder.condition_shape[1]
        batches = MicroBatches(tasks, pairing, quiet, length=length, context=context, size=size)
        total = torch.zeros((), device=self.device)
        for index in range(len(batches)):
            total += self(batches[index], quiet) / len(batches)
        return (context.sum(total) / context.size).item()


def mse(generated: Tensor, targets: Tensor, importance: Tensor | None = None) -> Tensor:
    """Mean squared error over the positions that hold weights.

    Args:
        generated: Tokens ``[M, Nw, Lw, Cw]``.
        targets: The same, NaN where padded.
        importance: Weights of the tokens ``[Nw]``, one on average; None: all alike.

    Returns:
        A scalar in float32.
    """
    valid = ~targets.isnan()
    # Not a product with the mask: NaN times zero, forward or backward, stays NaN.
    squares = torch.where(valid, generated.float() - targets.nan_to_num(), 0).square()
    if importance is not None:
        squares = squares * importance.view(-1, 1, 1)
    return squares.sum() / valid.sum()


def sft(
    base: Base,
    layout: WeightLayout,
    generated: Tensor,
    examples: Batch,
    *,
    recompute: bool = False,
) -> Tensor:
    """Mean over M adapters of the base model's loss on the examples of each.

    Args:
        base: The frozen base model; a :class:`FrozenBase` knows by itself what to recompute.
        layout: Layout of the tokens.
        generated: Tokens ``[M, Nw, Lw, Cw]``.
        examples: Tokenised examples ``[M, B, T]``.
        recompute: Whether to keep only the inputs of the base's blocks, which run again.

    Returns:
        A scalar in float32.
    """
    answered = (examples.labels != IGNORE_INDEX).sum((1, 2))
    if isinstance(base, FrozenBase):
        return (base.summed_losses(examples, layout.detokenize(generated)) / answered).mean()

    def mean_loss(model: PreTrainedModel) -> Tensor:
        return (summed_losses(model, examples) / answered).mean()

    return loss_under_adapters(base, layout, generated, mean_loss, recompute=recompute)


def loss_under_adapters(
    base: PreTrainedModel | DecomposedModel,
    layout: WeightLayout,
    generated: Tensor,
    loss_of: Callable[[PreTrainedModel], Tensor],
    *,
    recompute: bool,
) -> Tensor:
    """Loss of the base model under generated adapters, by any function of the model.

    The base is under the adapters only within this call. The gradient for the tokens is therefore
    computed here; the backward pass of the result hands it on.
    """
    model = base.model if isinstance(base, DecomposedModel) else base
    tokens = generated.detach().requires_grad_(generated.requires_grad)
    with (
        gradient_checkpointing(model) if recompute and tokens.requires_grad else nullcontext(),
        layout.applied(base, layout.detokenize(tokens)),
    ):
        loss = loss_of(model)
        if not tokens.requires_grad:
            return loss
        # A backward pass takes the forward's dtypes by itself; autocast would convert them again.
        with torch.autocast(tokens.device.type, enabled=False):
            (gradient,) = torch.autograd.grad(loss, tokens)
    return _KnownGradient.apply(generated, loss.detach(), gradient)


class _KnownGradient(torch.autograd.Function):
    """A scalar whose gradient for a tensor has been computed already."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0], None, None
