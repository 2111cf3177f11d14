"""Collect LoRA checkpoints: fine-tune adapters on many data sets, many at a time.

Source: Drag-and-Drop LLMs, section 2.2 and appendix A.4: train on a data set for some steps, then
go on and keep the adapter after each further step. All adapters start from one shared A: without
it, the adapters of different data sets have little in common that a generator could learn.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dnd_fast.layout import TokenLayout
from dnd_fast.train.batch import Encoded, adapter_losses, collate


@dataclass(frozen=True)
class CollectSpec:
    """Settings of the fine-tuning runs.

    Attributes:
        steps: optimiser steps before the first checkpoint is kept.
        checkpoints: further steps, after each of which one is kept.
        learning_rate: of the first part; it decays to ``final_learning_rate``.
        batch: examples per adapter and step.
        parallel: adapters trained in one forward pass.
    """

    steps: int = 75
    checkpoints: int = 10
    learning_rate: float = 3e-3
    final_learning_rate: float = 5e-4
    batch: int = 8
    parallel: int = 20


def collect(
    model: PreTrainedModel,
    layout: TokenLayout,
    datasets: Sequence[Sequence[Encoded]],
    spec: CollectSpec,
    *,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Fine-tune one adapter per data set.

    Args:
        model: the frozen base.
        layout: names and shapes of the adapter's tensors; not fitted.
        datasets: tokenised examples, one list per data set.
        spec: settings.
        seed: of the initialisation and of the order of examples.
        progress: is told steps done and in all.

    Returns:
        Tokens ``[data sets, checkpoints, Nw, Lw, Cw]``.
    """
    per_chunk = spec.steps + spec.checkpoints
    starts = range(0, len(datasets), spec.parallel)
    done, tokens = 0, []

    def step_done() -> None:
        nonlocal done
        done += 1
        progress(done, len(starts) * per_chunk)

    for start in starts:
        chunk = datasets[start : start + spec.parallel]
        tokens.append(_fit_chunk(model, layout, chunk, spec, seed, step_done))
    return torch.cat(tokens)


def initial_adapter(layout: TokenLayout, seed: int) -> dict[str, Tensor]:
    """A uniform with variance 1 / in, B zero, as PEFT lays them out."""
    generator = torch.Generator().manual_seed(seed)
    adapter = {}
    for key, (rows, columns) in layout.tensor_shapes().items():
        if ".lora_A." in key:
            uniform = torch.rand(rows, columns, generator=generator) * 2 - 1
            adapter[key] = uniform * math.sqrt(3 / columns)
        else:
            adapter[key] = torch.zeros(rows, columns)
    return adapter


def _fit_chunk(
    model: PreTrainedModel,
    layout: TokenLayout,
    datasets: Sequence[Sequence[Encoded]],
    spec: CollectSpec,
    seed: int,
    step_done: Callable[[], None],
) -> Tensor:
    count = len(datasets)
    rng = random.Random(f"collect {seed}")
    adapters = {
        key: value.repeat(count, 1, 1).requires_grad_()
        for key, value in initial_adapter(layout, seed).items()
    }
    parameters = list(adapters.values())
    optimizer = torch.optim.AdamW(parameters, lr=spec.learning_rate, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, spec))
    kept = []
    for step in range(spec.steps + spec.checkpoints):
        # The same positions in every data set: what differs between adapters is the data alone.
        drawn = [rng.random() for _ in range(spec.batch)]
        batch = collate([data[int(len(data) * at)] for data in datasets for at in drawn])
        loss = adapter_losses(
            model, adapters, layout.lora_alpha / layout.rank, batch.view(count, spec.batch)
        )
        optimizer.zero_grad()
        loss.sum().backward()
        _clip_each(parameters)
        optimizer.step()
        scheduler.step()
        if step >= spec.steps:
            kept.append(layout.tokenize({key: value.detach() for key, value in adapters.items()}))
        step_done()
    return torch.stack(kept, dim=1)


def _rate(step: int, spec: CollectSpec) -> float:
    """Warm-up over ten steps, constant until 60 % of the steps, then linear decay."""
    constant = 0.6 * spec.steps
    decayed = min(1.0, max(0.0, (step - constant) / (spec.steps - constant)))
    low = spec.final_learning_rate / spec.learning_rate
    return min(1.0, (step + 1) / 10) * (1 - decayed * (1 - low))


def _clip_each(parameters: Sequence[Tensor], max_norm: float = 1.0) -> None:
    """Clip the gradient norm of every adapter by itself (dimension 0 of each parameter)."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor[:, None, None])
