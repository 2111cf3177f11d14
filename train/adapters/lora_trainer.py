"""Fine-tune several LoRA adapters at once, each on its own data set, on one frozen model."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TypeVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dnd_fast.errors import InvalidInput
from dnd_fast.lora.batched import (
    Batch,
    TokenizedExample,
    collate,
    gradient_checkpointing,
    summed_losses,
    with_adapters,
)
from dnd_fast.lora.frozen_base import FrozenBase
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.recipe import CollectSpec

WARM_UP = 10  # steps
CONSTANT = 0.6  # share of the steps before the learning rate decays
MAX_NORM = 1.0  # of an adapter's gradient
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's names

T = TypeVar("T")


class LoraTrainer:
    """K adapters in training; none of them sees another one, except by rounding.

    The adapters and their moments are in float32, whatever the model's dtype.

    Args:
        model: The frozen base; as a :class:`FrozenBase` it knows by itself what to recompute.
        layout: Layout of the adapters, for rank and alpha.
        names: Names of the data sets, for messages.
        datasets: Tokenised examples of each data set.
        initial: Where the adapters start, under PEFT's names: ``[K, rows, columns]``.
        spec: Settings.
        seed: Seed of the order of examples.
        micro_batch: Examples per adapter in one forward pass; by default the whole batch.
        recompute: Whether to keep less for the backward pass, which computes it again.

    Attributes:
        step: Optimiser steps done.

    Raises:
        InvalidInput: a data set's tokens are not in the model's vocabulary.
    """

    def __init__(
        self,
        model: PreTrainedModel | FrozenBase,
        layout: TokenLayout,
        names: Sequence[str],
        datasets: Sequence[Sequence[TokenizedExample]],
        initial: Mapping[str, Tensor],
        spec: CollectSpec,
        *,
        seed: int,
        micro_batch: int | None = None,
        recompute: bool = False,
    ) -> None:
        vocabulary = _vocabulary(model)
        for name, data in zip(names, datasets, strict=True):
            largest = max(max(sequence.ids) for sequence in data)
            if largest >= vocabulary:
                raise InvalidInput(
                    f"data set {name!r}: the tokenizer gives token {largest}, the base model has "
                    f"{vocabulary} of them; take the base's own tokenizer."
                )
        self.names = list(names)
        self.spec = spec
        self.step = 0
        self._model = model
        self._datasets = datasets
        self._scaling = layout.lora_alpha / layout.rank
        self._micro_batch = micro_batch or spec.batch
        self._recompute = recompute
        self._rng = random.Random(f"collect {seed}")
        self._parameters = {
            key: value.to(model.device, torch.float32, copy=True).requires_grad_()
            for key, value in initial.items()
        }
        self._optimizer = torch.optim.AdamW(self._parameters.values(), weight_decay=0.0)
        for parameter in self._parameters.values():
            self._optimizer.state[parameter] = {
                "step": torch.tensor(0.0),
                **{name: torch.zeros_like(parameter) for name in MOMENTS},
            }

    def advance(self) -> None:
        """Do one optimiser step of every adapter.

        Raises:
            InvalidInput: a loss or a gradient is not finite; the adapters have not changed then.
        """
        spec = self.spec
        # The same positions in every data set: what differs between adapters is the data alone.
        positions = [self._rng.random() for _ in range(spec.batch)]
        drawn = [[data[int(len(data) * at)] for at in positions] for data in self._datasets]
        answers = [sum(len(s.ids) - s.response_start for s in data) for data in drawn]
        counts = torch.tensor(answers, device=self._model.device)
        losses = torch.zeros(len(drawn), device=self._model.device)
        self._optimizer.zero_grad()
        with ExitStack() as stack:
            if not isinstance(self._model, FrozenBase):
                stack.enter_context(with_adapters(self._model, self._parameters, self._scaling))
                if self._recompute:
                    stack.enter_context(gradient_checkpointing(self._model))
            for start in range(0, spec.batch, self._micro_batch):
                part = [s for data in drawn for s in data[start : start + self._micro_batch]]
                batch = collate(part).view(len(drawn), -1).to(self._model.device)
                loss = self._summed_losses(batch) / counts
                loss.sum().backward()
                losses += loss.detach()
        norms = self._clip()
        self._check(losses, norms)
        for group in self._optimizer.param_groups:
            group["lr"] = spec.learning_rate * rate(self.step, spec)
        self._optimizer.step()
        self.step += 1

    @property
    def adapters(self) -> dict[str, Tensor]:
        """Adapters as they are now, until the next step changes them in place."""
        return {key: value.detach() for key, value in self._parameters.items()}

    def state(self) -> dict[str, Tensor]:
        """Return adapters and moments ``[K, rows, columns]``: with ``step`` all that changes."""
        moments = {
            f"{name}/{key}": self._optimizer.state[parameter][name]
            for key, parameter in self._parameters.items()
            for name in MOMENTS
        }
        return {f"adapter/{key}": value for key, value in self.adapters.items()} | moments

    def restore(self, state: Mapping[str, Tensor], step: int) -> None:
        """Resume from a :meth:`state` after ``step`` steps; needs an untouched trainer."""
        with torch.no_grad():
            for name, value in self.state().items():
                value.copy_(state[name])
        for parameter in self._parameters.values():
            self._optimizer.state[parameter]["step"].fill_(step)
        for _ in range(step * self.spec.batch):
            self._rng.random()
        self.step = step

    def _summed_losses(self, batch: Batch) -> Tensor:
        if isinstance(self._model, FrozenBase):
            return self._model.summed_losses(batch, self._parameters)
        return summed_losses(self._model, batch)

    def _clip(self) -> Tensor:
        """Clip the gradient of every adapter by itself; returns the norms before, ``[K]``."""
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
        factor = (MAX_NORM / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor[:, None, None])
        return norms

    def _check(self, losses: Tensor, norms: Tensor) -> None:
        for name, loss, norm in zip(self.names, losses.tolist(), norms.tolist(), strict=True):
            if not math.isfinite(loss) or not math.isfinite(norm):
                raise InvalidInput(
                    f"data set {name!r}, step {self.step + 1}: the loss is {loss} and its "
                    f"gradient's norm {norm}. Lower the learning rate, look at the examples, or "
                    "leave this data set out."
                )


def _vocabulary(model: PreTrainedModel | FrozenBase) -> int:
    if isinstance(model, FrozenBase):
        return model.vocabulary
    return cast(Tensor, model.get_input_embeddings().weight).shape[0]


def initial_adapter(layout: TokenLayout, seed: int) -> dict[str, Tensor]:
    """Make an adapter with A uniform of variance 1 / in and B zero, as PEFT lays them out."""
    generator = torch.Generator().manual_seed(seed)
    adapter = {}
    for key, (rows, columns) in layout.tensor_shapes().items():
        if ".lora_A." in key:
            uniform = torch.rand(rows, columns, generator=generator) * 2 - 1
            adapter[key] = uniform * math.sqrt(3 / columns)
        else:
            adapter[key] = torch.zeros(rows, columns)
    return adapter


def rate(step: int, spec: CollectSpec) -> float:
    """Return a step's share of the learning rate: warm-up, constant, linear decay, constant."""
    constant = CONSTANT * spec.steps
    decayed = min(1.0, max(0.0, (step - constant) / (spec.steps - constant)))
    low = spec.final_learning_rate / spec.learning_rate
    return min(1.0, (step + 1) / WARM_UP) * (1 - decayed * (1 - low))


def spread(items: Sequence[T], count: int | None) -> list[T]:
    """Return at most ``count`` items, evenly from all over."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def shorten(
    sequences: Sequence[TokenizedExample], length: int
) -> tuple[list[TokenizedExample], int, int]:
    """Cut responses at ``length`` tokens of conversation.

    Returns:
        What is left, how many were cut, how many dropped because their prompt leaves no room.
    """
    kept = [sequence for sequence in sequences if sequence.response_start < length]
    cut = sum(len(sequence.ids) > length for sequence in kept)
    dropped = len(sequences) - len(kept)
    return [TokenizedExample(ids[:length], start) for ids, start in kept], cut, dropped
