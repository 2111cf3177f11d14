"""Train a generator's decoder, phase by phase.

Everything random is a function of seed, step and position in the batch: neither resuming nor
another number of processes, micro-batches or workers changes what is drawn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from dnd_fast.decoder.model import HyperConvDecoder
from dnd_fast.errors import InvalidInput
from dnd_fast.lora.weight_layout import WeightLayout
from dnd_fast.recipe import Phase
from dnd_fast.text.whitening import Whitening
from dnd_fast.train.generator.checkpoints import Checkpoints, State
from dnd_fast.train.generator.config import TrainerConfig
from dnd_fast.train.generator.data import MicroBatch, MicroBatches, TaskData, names_in_batch
from dnd_fast.train.generator.distributed import (
    DistributedContext,
    full_state,
    gradient_sync,
    load_optimizer,
    load_weights,
)
from dnd_fast.train.generator.losses import Base, Loss
from dnd_fast.train.generator.pairs import Pairing

WARM_UP = 20  # steps
FINAL_RATE = 0.05  # of the peak


@dataclass(frozen=True)
class StepMetrics:
    """What one step did, for logs and progress bars.

    Attributes:
        step: Steps done, counted over all phases.
        objective: Objective of the phase.
        done, steps: Steps done in the phase, and its number of steps.
        loss: Loss before this step.
        learning_rate: Learning rate of this step.
        gradient_norm: Norm of the gradient before clipping.
        seconds: Time that the step took.
    """

    step: int
    objective: str
    done: int
    steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    seconds: float


@dataclass
class Trainer:
    """Trains a decoder phase by phase, and resumes where an earlier process stopped.

    Attributes:
        decoder: Takes conditions ``[B, N, L, C]``, gives tokens of ``layout``; trained in place.
            Its ``criterion_weight`` is the tokens' importance, for phases that weight by it.
        layout: Layout of the tokens, with the collection's statistics.
        tasks: Data of each task, in the order that ``pairing`` counts them.
        pairing: Draws conditions and targets.
        phases: Phases, one after the other; each starts a new optimiser.
        whitening: What embeddings pass through on their way to the decoder, or None.
        base: The frozen base model, for phases with the objective "sft"; a
            :class:`dnd_fast.svf.expert.DecomposedModel`, if the layout is of experts.
        held_out: Other tasks, with a pairing of their own, whose loss is measured every
            ``trainer_config.evaluate_every`` steps and decides which checkpoint is the best.
        context: This process among all.
        trainer_config: How to compute, save and evaluate.
        checkpoints: Where the run is saved, and resumes from.
        on_train_begin: Callback that gets the number of steps an earlier process has done.
        on_step_end: Callback that gets the metrics of every step.
        on_evaluate: Callback that gets the number of steps done and the held-out loss.
        on_phase_end: Callback that gets the index of every phase that is complete, in all
            processes.
    """

    decoder: HyperConvDecoder
    layout: WeightLayout
    tasks: Sequence[TaskData]
    pairing: Pairing
    phases: Sequence[Phase]
    whitening: Whitening | None = None
    base: Base | None = None
    held_out: tuple[Sequence[TaskData], Pairing] | None = None
    context: DistributedContext = field(default_factory=DistributedContext)
    trainer_config: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoints: Checkpoints | None = None
    on_train_begin: Callable[[int], None] = lambda step: None
    on_step_end: Callable[[StepMetrics], None] = lambda metrics: None
    on_evaluate: Callable[[int, float], None] = lambda step, loss: None
    on_phase_end: Callable[[int], None] = lambda index: None

    def fit(self) -> None:
        """Train to the end.

        Raises:
            InvalidInput: the batch cannot be shared out evenly, something that a phase needs is
                missing, or a loss or gradient is not finite; the state before that step is saved.
        """
        for phase in self.phases:
            self.trainer_config.pass_size(phase, self.context.size)
            self._check_needs(phase)
        device = self.context.device
        self.decoder.to(device).train()
        self.layout.to(device)
        self.decoder.checkpointing = self.trainer_config.checkpointing
        model = self.context.wrap(self.decoder, shard=self.trainer_config.shard)
        if self.whitening is not None:
            self.whitening.to(device)
        self.loss = Loss(
            model,
            self.decoder,
            self.layout,
            self.base,
            device,
            self.trainer_config,
            self.whitening,
        )
        state = self.checkpoints.latest() if self.checkpoints else None
        if state is not None:
            load_weights(self.decoder, state.weights)
        start = state.step if state else 0
        self.on_train_begin(start)
        first = 0
        for index, phase in enumerate(self.phases):
            last = first + phase.steps
            if start < last:
                self._train_phase(index, first, max(start, first), state)
            if start <= last:  # also where a process was killed between a phase's end and this
                self.on_phase_end(index)
            first = last
        self.decoder.eval()
        self.decoder.checkpointing = False

    def _train_phase(self, index: int, first: int, start: int, state: State | None) -> None:
        """Do the steps of one phase from ``start`` on; ``first`` is the phase's first."""
        phase, config, context = self.phases[index], self.trainer_config, self.context
        optimizer = make_optimizer(self.decoder, phase, config)
        if state is not None and start > first:
            load_optimizer(self.decoder, optimizer, state.optimizer)
        size = config.pass_size(phase, context.size)
        batches = MicroBatches(
            self.tasks,
            self.pairing,
            phase,
            length=self.decoder.condition_shape[1],
            first_step=first,
            context=context,
            size=size,
        )
        loaded = _loader(
            batches, (start - first) * batches.per_step, config.workers, context.device
        )
        clock = time.perf_counter()
        for step in range(start, first + phase.steps):
            rate = learning_rate(step - first, phase)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            loss, norm = self._gradients(loaded, batches.per_step, phase)
            if not math.isfinite(loss + norm):
                optimizer.zero_grad()
                self._save(step, index, optimizer)
                raise self._not_finite(step, loss, norm, phase)
            optimizer.step()
            now = time.perf_counter()
            done = step + 1 - first
            self.on_step_end(
                StepMetrics(
                    step + 1, phase.objective, done, phase.steps, loss, rate, norm, now - clock
                )
            )
            score = None
            if self.held_out is not None and _due(done, phase, config.evaluate_every):
                score = self.loss.mean(*self.held_out, phase, context, size)
                self.on_evaluate(step + 1, score)
            if score is not None or _due(done, phase, config.save_every):
                self._save(step + 1, index, optimizer, score)
            clock = time.perf_counter()

    def _gradients(
        self, batches: Iterator[MicroBatch], count: int, phase: Phase
    ) -> tuple[float, float]:
        """Compute a step's gradients, over all processes and clipped.

        Returns:
            The step's loss, and the norm of the gradients before clipping.
        """
        loss = torch.zeros((), device=self.context.device)
        for turn in range(count):
            last = turn + 1 == count
            with gradient_sync(self.loss.model, last):
                part = self.loss(next(batches), phase) / count
                part.backward()
            loss += part.detach()
        norm = nn.utils.clip_grad_norm_(self.decoder.parameters(), phase.clip)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        return (self.context.sum(loss) / self.context.size).item(), norm.item()

    def _save(
        self,
        step: int,
        phase: int,
        optimizer: torch.optim.Optimizer,
        score: float | None = None,
    ) -> None:
        if self.checkpoints is None:
            return
        weights, entries = full_state(self.decoder, optimizer)
        if self.context.main:
            self.checkpoints.save(State(step, phase, weights, entries, score))
        self.context.wait()

    def _check_needs(self, phase: Phase) -> None:
        if phase.objective == "sft" and self.base is None:
            raise InvalidInput("the objective 'sft' needs the base model.")
        if self.base is not None:
            self.layout.check_base(self.base)
        weighted = phase.objective == "mse" and phase.weighted
        if weighted and self.decoder.criterion_weight is None:
            raise InvalidInput("a weighted phase needs the tokens' importance: criterion_weight.")

    def _not_finite(self, step: int, loss: float, norm: float, phase: Phase) -> InvalidInput:
        names = ", ".join(names_in_batch(self.tasks, self.pairing, phase, step))
        kept = f" The state before it is in {self.checkpoints.folder}." if self.checkpoints else ""
        return InvalidInput(
            f"step {step + 1}: the loss is {loss}, the gradient's norm {norm}; training has "
            f"stopped. The batch has pairs of {names}.{kept} Look at these data sets and their "
            "adapters, or start anew with a smaller learning rate."
        )


def make_optimizer(
    decoder: HyperConvDecoder, phase: Phase, trainer_config: TrainerConfig
) -> torch.optim.Optimizer:
    """Make AdamW with its state in float32, or in 8 bits.

    Raises:
        InvalidInput: 8 bits without bitsandbytes, or over shards.
    """
    rate, decay = phase.learning_rate, phase.weight_decay
    if trainer_config.optimizer == "adamw":
        # Fused: no temporary tensors of the size of all weights.
        return torch.optim.AdamW(decoder.parameters(), lr=rate, weight_decay=decay, fused=True)
    if trainer_config.shard:
        raise InvalidInput("bitsandbytes cannot keep the state of shards: use adamw with shards.")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise InvalidInput(
            "the optimiser adamw8bit needs bitsandbytes: pip install bitsandbytes."
        ) from error
    return AdamW8bit(decoder.parameters(), lr=rate, weight_decay=decay)


def learning_rate(step: int, phase: Phase) -> float:
    """Learning rate of a phase's step, from 0: linear warm-up, then a cosine to 0.05 peaks."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / phase.steps))
    factor = (1 - FINAL_RATE) * cosine + FINAL_RATE
    return phase.learning_rate * min(1.0, (step + 1) / WARM_UP) * factor


def _due(done: int, phase: Phase, every: int | None) -> bool:
    return done == phase.steps or (every is not None and done % every == 0)


def _loader(
    batches: MicroBatches, first: int, workers: int, device: torch.device
) -> Iterator[MicroBatch]:
    """Load the micro-batches from ``first`` on, prepared in advance by ``workers`` processes."""
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(first, len(batches)),
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    return iter(loader)
