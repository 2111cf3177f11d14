"""Train a generator's decoder, phase by phase.

Everything random is a function of seed, step and position in the batch: neither resuming nor
another number of processes, micro-batches or workers changes what is drawn.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from dnd_fast.decoder.model import HyperConvDecoder
from dnd_fast.errors import InvalidInput
from dnd_fast.lora.weight_layout import WeightLayout
from dnd_fast.recipe import Phase
from dnd_fast.train.generator import losses as objectives
from dnd_fast.train.generator.checkpoints import Checkpoints, State
from dnd_fast.train.generator.data import (
    MicroBatch,
    MicroBatches,
    TaskData,
    add_noise_and_dropout,
    names_in_batch,
    pad_conditions,
)
from dnd_fast.train.generator.distributed import (
    DistributedContext,
    full_state,
    gradient_sync,
    load_optimizer,
    load_weights,
)
from dnd_fast.train.generator.losses import Base
from dnd_fast.train.generator.pairs import Pairing

WARM_UP = 20  # steps
FINAL_RATE = 0.05  # of the peak
OptimizerName = Literal["adamw", "adamw8bit"]


@dataclass(frozen=True)
class TrainerConfig:
    """How a run computes, and how often it saves and evaluates.

    Attributes:
        bf16: bfloat16 autocast; weights, gradients and the optimiser's state stay float32.
        optimizer: ``"adamw8bit"`` keeps the optimiser's state in 8 bits, by bitsandbytes.
        micro_batch: generated adapters in one pass on one GPU; None: its whole share of the batch.
        checkpointing: keep only the blocks' inputs for the backward pass.
        shard: weights, gradients and the optimiser's state over all processes (FSDP2).
        workers: processes that prepare batches; 0: this one does.
        save_every, evaluate_every: steps; also, and with None only, at the end of each phase.
    """

    bf16: bool = False
    optimizer: OptimizerName = "adamw"
    micro_batch: int | None = None
    checkpointing: bool = False
    shard: bool = False
    workers: int = 0
    save_every: int | None = None
    evaluate_every: int | None = None

    def pass_size(self, phase: Phase, world: int) -> int:
        """Generated adapters in one pass on one GPU.

        Raises:
            InvalidInput: the batch cannot be shared out evenly.
        """
        if phase.batch % world:
            raise InvalidInput(
                f"a batch of {phase.batch} cannot be shared out evenly to {world} processes; use "
                "another number."
            )
        share = phase.batch // world
        size = self.micro_batch or share
        if share % size:
            raise InvalidInput(
                f"micro_batch={size} does not divide the {share} adapters of each process."
            )
        return size


@dataclass(frozen=True)
class StepMetrics:
    """One step, for logs and progress bars.

    Attributes:
        step: steps done, counted over all phases.
        objective: of the phase.
        done, steps: of the phase.
        loss, learning_rate, gradient_norm: of this step; the norm before clipping.
        seconds: that it took.
    """

    step: int
    objective: str
    done: int
    steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    seconds: float


class Loss:
    """The loss of a micro-batch under a phase's objective.

    Args:
        model: the decoder, or what it is wrapped in.
        decoder: itself.
        layout: on the decoder's device.
        base: the frozen base model, for "sft"; decomposed, if the layout is of experts.
        device: of all of them.
        options: precision, and whether to compute activations again.
    """

    def __init__(
        self,
        model: nn.Module,
        decoder: HyperConvDecoder,
        layout: WeightLayout,
        base: Base | None,
        device: torch.device,
        options: TrainerConfig,
    ) -> None:
        self.model, self.decoder, self.layout, self.base = model, decoder, layout, base
        self.device, self.options = device, options

    @contextmanager
    def __call__(self, batch: MicroBatch, phase: Phase) -> Iterator[Tensor]:
        """A scalar in float32, with noise and dropout; its backward pass belongs into the block."""
        batch = batch.to(self.device)
        condition = pad_conditions(batch, self.decoder.condition_shape)
        add_noise_and_dropout(condition, batch.targets, batch.pairs, phase)
        with ExitStack() as stack:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.bf16):
                generated = self.model(condition)
                if batch.targets is not None:
                    importance = self.decoder.criterion_weight if phase.weighted else None
                    loss = objectives.mse(generated, batch.targets, importance)
                else:
                    assert self.base is not None
                    assert batch.examples is not None
                    recompute = self.options.checkpointing and torch.is_grad_enabled()
                    loss = stack.enter_context(
                        objectives.sft(
                            self.base, self.layout, generated, batch.examples, recompute=recompute
                        )
                    )
            yield loss

    @torch.no_grad()
    def mean(
        self,
        sources: Sequence[TaskData],
        pairing: Pairing,
        phase: Phase,
        world: DistributedContext,
        size: int,
    ) -> float:
        """Over one batch that is always the same, without noise and dropout."""
        quiet = dataclasses.replace(phase, steps=1, noise=0.0, dropout=0.0)
        length = self.decoder.condition_shape[1]
        batches = MicroBatches(sources, pairing, quiet, length=length, world=world, size=size)
        total = torch.zeros((), device=self.device)
        for index in range(len(batches)):
            with self(batches[index], quiet) as loss:
                total += loss / len(batches)
        return (world.sum(total) / world.size).item()


@dataclass
class Trainer:
    """A training run.

    Attributes:
        decoder: takes conditions ``[B, N, L, C]``, gives tokens of ``layout``; trained in place.
            Its ``criterion_weight`` is the tokens' importance, for phases that weight by it.
        layout: with the collection's statistics.
        sources: of the data sets, in the order that ``pairing`` counts them.
        pairing: draws conditions and targets.
        phases: one after the other; each starts a new optimiser.
        base: the frozen base model, for phases with the objective "sft"; a
            :class:`dnd_fast.svf.expert.DecomposedModel`, if the layout is of experts.
        held_out: other data sets, with a pairing of their own, whose loss is measured every
            ``options.evaluate_every`` steps and decides which checkpoint is the best.
        world: this process among all.
        options: how to compute, save and evaluate.
        checkpoints: where the run is saved, and goes on from.
        on_train_begin: is told how many steps an earlier process has done.
        on_step_end: is told of every step.
        on_evaluate: is told steps done and the held-out loss.
        on_phase_end: is told the index of every phase that is complete; all processes call it.
    """

    decoder: HyperConvDecoder
    layout: WeightLayout
    sources: Sequence[TaskData]
    pairing: Pairing
    phases: Sequence[Phase]
    base: Base | None = None
    held_out: tuple[Sequence[TaskData], Pairing] | None = None
    world: DistributedContext = field(default_factory=DistributedContext)
    options: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoints: Checkpoints | None = None
    on_train_begin: Callable[[int], None] = lambda step: None
    on_step_end: Callable[[StepMetrics], None] = lambda record: None
    on_evaluate: Callable[[int, float], None] = lambda step, loss: None
    on_phase_end: Callable[[int], None] = lambda index: None

    def fit(self) -> None:
        """Train to the end.

        Raises:
            InvalidInput: the batch cannot be shared out evenly, something that a phase needs is
                missing, or a loss or gradient is not finite; the state before that step is saved.
        """
        for phase in self.phases:
            self.options.pass_size(phase, self.world.size)
            self._check_needs(phase)
        device = self.world.device
        self.decoder.to(device).train()
        self.layout.to(device)
        self.decoder.checkpointing = self.options.checkpointing
        model = self.world.wrap(self.decoder, shard=self.options.shard)
        self.loss = Loss(model, self.decoder, self.layout, self.base, device, self.options)
        state = self.checkpoints.latest() if self.checkpoints else None
        if state is not None:
            load_weights(self.decoder, state.weights)
        start = state.step if state else 0
        self.on_train_begin(start)
        first = 0
        for index, phase in enumerate(self.phases):
            last = first + phase.steps
            if start < last:
                self._run(index, first, max(start, first), state)
            if start <= last:  # also where a process was killed between a phase's end and this
                self.on_phase_end(index)
            first = last
        self.decoder.eval()
        self.decoder.checkpointing = False

    def _run(self, index: int, first: int, start: int, state: State | None) -> None:
        """The steps of one phase from ``start`` on; ``first`` is the phase's first."""
        phase, options, world = self.phases[index], self.options, self.world
        optimizer = make_optimizer(self.decoder, phase, options)
        if state is not None and start > first:
            load_optimizer(self.decoder, optimizer, state.optimizer)
        size = options.pass_size(phase, world.size)
        batches = MicroBatches(
            self.sources,
            self.pairing,
            phase,
            length=self.decoder.condition_shape[1],
            first_step=first,
            world=world,
            size=size,
        )
        loaded = _loader(batches, (start - first) * batches.per_step, options.workers, world.device)
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
            if self.held_out is not None and _due(done, phase, options.evaluate_every):
                score = self.loss.mean(*self.held_out, phase, world, size)
                self.on_evaluate(step + 1, score)
            if score is not None or _due(done, phase, options.save_every):
                self._save(step + 1, index, optimizer, score)
            clock = time.perf_counter()

    def _gradients(
        self, batches: Iterator[MicroBatch], count: int, phase: Phase
    ) -> tuple[float, float]:
        """Of one step, over all processes and clipped; its loss and the norm before clipping."""
        loss = torch.zeros((), device=self.world.device)
        for turn in range(count):
            last = turn + 1 == count
            with (
                gradient_sync(self.loss.model, last),
                self.loss(next(batches), phase) as part,
            ):
                (part / count).backward()
                loss += part.detach() / count
        norm = nn.utils.clip_grad_norm_(self.decoder.parameters(), phase.clip)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        return (self.world.sum(loss) / self.world.size).item(), norm.item()

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
        if self.world.main:
            self.checkpoints.save(State(step, phase, weights, entries, score))
        self.world.wait()

    def _check_needs(self, phase: Phase) -> None:
        if phase.objective == "sft" and self.base is None:
            raise InvalidInput("the objective 'sft' needs the base model.")
        if self.base is not None:
            self.layout.check_base(self.base)
        weighted = phase.objective == "mse" and phase.weighted
        if weighted and self.decoder.criterion_weight is None:
            raise InvalidInput("a weighted phase needs the tokens' importance: criterion_weight.")

    def _not_finite(self, step: int, loss: float, norm: float, phase: Phase) -> InvalidInput:
        names = ", ".join(names_in_batch(self.sources, self.pairing, phase, step))
        kept = f" The state before it is in {self.checkpoints.folder}." if self.checkpoints else ""
        return InvalidInput(
            f"step {step + 1}: the loss is {loss}, the gradient's norm {norm}; training has "
            f"stopped. The batch has pairs of {names}.{kept} Look at these data sets and their "
            "adapters, or start anew with a smaller learning rate."
        )


def make_optimizer(
    decoder: HyperConvDecoder, phase: Phase, options: TrainerConfig
) -> torch.optim.Optimizer:
    """AdamW with its state in float32, or in 8 bits.

    Raises:
        InvalidInput: 8 bits without bitsandbytes, or over shards.
    """
    rate, decay = phase.learning_rate, phase.weight_decay
    if options.optimizer == "adamw":
        # Fused: no temporary tensors of the size of all weights.
        return torch.optim.AdamW(decoder.parameters(), lr=rate, weight_decay=decay, fused=True)
    if options.shard:
        raise InvalidInput("bitsandbytes cannot keep the state of shards: use adamw with shards.")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise InvalidInput(
            "the optimiser adamw8bit needs bitsandbytes: pip install bitsandbytes."
        ) from error
    return AdamW8bit(decoder.parameters(), lr=rate, weight_decay=decay)


def learning_rate(step: int, phase: Phase) -> float:
    """Of a phase's step, from 0: linear warm-up, then a cosine down to a twentieth of the peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / phase.steps))
    factor = (1 - FINAL_RATE) * cosine + FINAL_RATE
    return phase.learning_rate * min(1.0, (step + 1) / WARM_UP) * factor


def _due(done: int, phase: Phase, every: int | None) -> bool:
    return done == phase.steps or (every is not None and done % every == 0)


def _loader(
    batches: MicroBatches, first: int, workers: int, device: torch.device
) -> Iterator[MicroBatch]:
    """The micro-batches from ``first`` on, prepared in advance by ``workers`` processes."""
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(first, len(batches)),
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    return iter(loader)
