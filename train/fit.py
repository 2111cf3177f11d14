"""Train a generator's decoder on collected adapters.

Two objectives, alone or one after the other:

* ``mse`` (Drag-and-Drop LLMs, section 2.5): mean squared error between generated and collected
  tokens, collected ones drawn among the checkpoints of the data set that the prompts are from.
* ``sft`` (ours): the base model's next-token loss on the data set's own examples under the
  generated adapter, end to end. It uses the training sets' answers, which the paper's does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import dropout
from transformers import PreTrainedModel

from dnd_fast.decoder import HyperConvDecoder
from dnd_fast.layout import TokenLayout
from dnd_fast.train.batch import Encoded, adapter_losses, collate

Objective = Literal["mse", "sft"]


@dataclass(frozen=True)
class FitSpec:
    """Settings of one phase.

    Attributes:
        objective: ``"mse"`` or ``"sft"``.
        steps: optimiser steps.
        learning_rate: peak; cosine decay to a twentieth after 20 steps of warm-up.
        batch: generated adapters per step.
        examples: examples per generated adapter and step (``sft``).
        dropout: on the condition.
        noise: standard deviation of Gaussian noise on the condition; a tenth of it on the target.
    """

    objective: Objective
    steps: int
    learning_rate: float
    batch: int = 16
    examples: int = 6
    weight_decay: float = 0.1
    dropout: float = 0.2
    noise: float = 1e-4


def fit(
    decoder: HyperConvDecoder,
    layout: TokenLayout,
    model: PreTrainedModel,
    conditions: Tensor,
    tokens: Tensor,
    datasets: Sequence[Sequence[Encoded]],
    spec: FitSpec,
    *,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Train ``decoder`` in place for one phase.

    Args:
        decoder: takes conditions ``[B, N, L, C]``, gives tokens of ``layout``.
        layout: fitted to the collection.
        model: the frozen base.
        conditions: ``[data sets, prompts, L, C]``, from which N are drawn at a time.
        tokens: ``[data sets, checkpoints, Nw, Lw, Cw]``, normalised by ``layout``.
        datasets: tokenised examples of each data set.
        spec: settings.
        seed: of all draws.
        progress: is told steps done and in all.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    prompts = decoder.features[0][0]
    scaling = layout.lora_alpha / layout.rank
    optimizer = torch.optim.AdamW(
        decoder.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, spec.steps))
    decoder.train()
    for step in range(spec.steps):
        drawn = torch.randint(len(conditions), (spec.batch,), generator=generator)
        chosen = torch.randint(conditions.shape[1], (spec.batch, prompts), generator=generator)
        condition = conditions[drawn[:, None], chosen].float()
        condition = dropout(condition + spec.noise * torch.randn_like(condition), spec.dropout)
        generated = decoder(condition)
        if spec.objective == "mse":
            checkpoint = torch.randint(tokens.shape[1], (spec.batch,), generator=generator)
            target = tokens[drawn, checkpoint]
            target = target + 0.1 * spec.noise * torch.randn_like(target)
            loss = (generated - target).square().nanmean()
        else:
            sequences = [
                datasets[data][int(torch.randint(len(datasets[data]), (), generator=generator))]
                for data in drawn.tolist()
                for _ in range(spec.examples)
            ]
            batch = collate(sequences).view(spec.batch, spec.examples)
            loss = adapter_losses(model, layout.detokenize(generated), scaling, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        progress(step + 1, spec.steps)
    decoder.eval()


def _rate(step: int, steps: int) -> float:
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / 20) * (0.95 * cosine + 0.05)
