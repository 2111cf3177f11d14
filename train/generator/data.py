"""What training draws from: conditions, targets and examples of every data set, as batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset as MapDataset

from dnd_fast.decoder.model import Shape
from dnd_fast.lora.batched import Batch, TokenizedExample, collate
from dnd_fast.lora.weight_layout import WeightLayout
from dnd_fast.recipe import Phase
from dnd_fast.train.adapters.collection import Collection
from dnd_fast.train.generator.distributed import DistributedContext
from dnd_fast.train.generator.pairs import Pair, Pairing

KEPT_BYTES = 4 << 30  # of targets that stay in memory


class Rows(Protocol):
    """Tensors by index: one tensor's first dimension, or files that are read when needed."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Tensor: ...


@dataclass(frozen=True)
class TaskData:
    """The data of one task.

    Attributes:
        name: Name of the data set.
        texts: Embedded candidates, each ``[positions, C]``; of the form "mix" prompts and answers.
        targets: Its adapters as normalised tokens ``[Nw, Lw, Cw]``, NaN where padded; it may have
            none, if only "sft" draws from it.
        examples: Tokenised examples, for the objective "sft".
    """

    name: str
    texts: tuple[Rows, ...]
    targets: Rows
    examples: Sequence[TokenizedExample]


class AdapterFiles:
    """The adapters of one data set, tokenised and normalised when asked for.

    Args:
        collection: Collection that they are in.
        name: Name of the data set.
        layout: Layout with the collection's statistics, on the CPU.
        kept: Tokens of all data sets that stay in memory, by folder.
    """

    def __init__(
        self, collection: Collection, name: str, layout: WeightLayout, kept: dict[Path, Tensor]
    ) -> None:
        self._collection, self._layout, self._kept = collection, layout, kept
        self._folders = collection.checkpoints(name)

    def __len__(self) -> int:
        return len(self._folders)

    def __getitem__(self, index: int) -> Tensor:
        folder = self._folders[index]
        if folder in self._kept:
            return self._kept[folder]
        tokens = self._layout.tokenize(self._collection.load(folder))
        if (len(self._kept) + 1) * tokens.nbytes <= KEPT_BYTES:
            self._kept[folder] = tokens
        return tokens


class MicroBatch(NamedTuple):
    """What one forward and backward pass on one GPU takes, for M pairs.

    Attributes:
        pairs: The pairs that were drawn.
        hidden: Embedded positions of all texts, end to end: ``[positions, C]``.
        places: The row that each position has in its padded condition ``[N * L, C]``:
            ``[positions]``.
        counts: Number of positions of each pair.
        targets: Tokens ``[M, Nw, Lw, Cw]`` (objective "mse").
        examples: Examples ``[M, B, T]`` (objective "sft").
    """

    pairs: tuple[Pair, ...]
    hidden: Tensor
    places: Tensor
    counts: tuple[int, ...]
    targets: Tensor | None
    examples: Batch | None

    def to(self, device: torch.device) -> MicroBatch:
        """Return the same on ``device``."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return MicroBatch(
            self.pairs,
            move(self.hidden),
            move(self.places),
            self.counts,
            None if self.targets is None else move(self.targets),
            None if self.examples is None else self.examples.to(device),
        )


class MicroBatches(MapDataset[MicroBatch]):
    """The micro-batches of one process in one phase, by index, for torch's ``DataLoader``.

    Args:
        tasks: Data of each task.
        pairing: Draws the pairs.
        phase: Phase, for its batch, objective and examples.
        length: L, positions of a padded text.
        context: This process among all, each of which takes an equal share of a batch.
        size: Pairs in a micro-batch.
        first_step: First step of the phase, counted over all phases.
    """

    def __init__(
        self,
        tasks: Sequence[TaskData],
        pairing: Pairing,
        phase: Phase,
        *,
        length: int,
        context: DistributedContext,
        size: int,
        first_step: int = 0,
    ) -> None:
        self.tasks, self.pairing, self.phase = tasks, pairing, phase
        self.length, self.first_step, self.size = length, first_step, size
        share = phase.batch // context.size
        self.first_position = context.rank * share
        self.per_step = share // size

    def __len__(self) -> int:
        return self.phase.steps * self.per_step

    def places_in_batch(self, index: int) -> list[tuple[int, int]]:
        """Return (step, position) of every pair in a micro-batch."""
        step, turn = divmod(index, self.per_step)
        first = self.first_position + turn * self.size
        return [(self.first_step + step, first + pair) for pair in range(self.size)]

    def __getitem__(self, index: int) -> MicroBatch:
        drawn = tuple(
            _draw(self.pairing, self.phase, *place) for place in self.places_in_batch(index)
        )
        texts = [
            self.tasks[pair.dataset].texts[answer][index]
            for pair in drawn
            for index, answer in zip(pair.texts, pair.answers, strict=True)
        ]
        prompts = self.pairing.prompts
        places = torch.cat(
            [
                torch.arange(len(text)) + index % prompts * self.length
                for index, text in enumerate(texts)
            ]
        )
        lengths = list(map(len, texts))
        counts = tuple(sum(lengths[i : i + prompts]) for i in range(0, len(texts), prompts))
        if self.phase.objective == "mse":
            targets = [self.tasks[pair.dataset].targets[pair.checkpoint] for pair in drawn]
            return MicroBatch(drawn, torch.cat(texts), places, counts, torch.stack(targets), None)
        chosen = [self.tasks[pair.dataset].examples[i] for pair in drawn for i in pair.examples]
        examples = collate(chosen).view(len(drawn), self.phase.examples)
        return MicroBatch(drawn, torch.cat(texts), places, counts, None, examples)


def names_in_batch(
    tasks: Sequence[TaskData], pairing: Pairing, phase: Phase, step: int
) -> list[str]:
    """Names of the data sets in the batch of ``step``, over all GPUs, each once."""
    drawn = {_draw(pairing, phase, step, position).dataset for position in range(phase.batch)}
    return [tasks[index].name for index in sorted(drawn)]


def _draw(pairing: Pairing, phase: Phase, step: int, position: int) -> Pair:
    return pairing.draw(step, position, phase.examples if phase.objective == "sft" else 0)


def pad_conditions(batch: MicroBatch, shape: Shape) -> Tensor:
    """Conditions ``[M, N, L, C]`` in float32, on the batch's device, with zeros after each text."""
    condition = batch.hidden.new_zeros((len(batch.pairs), *shape), dtype=torch.float32)
    parts = batch.hidden.split(batch.counts), batch.places.split(batch.counts)
    for sample, hidden, places in zip(condition, *parts, strict=True):
        sample.view(-1, shape[-1]).index_copy_(0, places, hidden.float())
    return condition


def add_noise_and_dropout(
    condition: Tensor, target: Tensor | None, pairs: Sequence[Pair], phase: Phase
) -> None:
    """Add noise, and dropout on the condition, in place: each pair's by its own seed."""
    if not (phase.noise or phase.dropout or phase.prompt_dropout):
        return
    for row, pair in enumerate(pairs):
        generator = torch.Generator(condition.device).manual_seed(pair.noise_seed)
        if phase.noise:
            noise = torch.empty_like(condition[row]).normal_(generator=generator)
            condition[row].add_(noise, alpha=phase.noise)
            if target is not None:
                noise = torch.empty_like(target[row]).normal_(generator=generator)
                target[row].add_(noise, alpha=0.1 * phase.noise)
        if phase.prompt_dropout:
            draws = torch.rand(len(condition[row]), device=condition.device, generator=generator)
            # The highest draw stays, whatever the share.
            dropped = draws < draws.max().clamp(max=phase.prompt_dropout)
            condition[row, dropped] = 0
        if phase.dropout:
            kept = torch.empty_like(condition[row]).bernoulli_(
                1 - phase.dropout, generator=generator
            )
            condition[row].mul_(kept).div_(1 - phase.dropout)
