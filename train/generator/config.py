"""What a training run is told: how to compute, and what decides its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dnd_fast.errors import InvalidInput
from dnd_fast.recipe import Phase, Recipe
from dnd_fast.text.datasets import Dataset
from dnd_fast.train.generator.pairs import Form, Strategy

OptimizerName = Literal["adamw", "adamw8bit"]
DtypeName = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class TrainerConfig:
    """How a run computes, and how often it saves and evaluates.

    Attributes:
        bf16: Whether to use bfloat16 autocast; weights, gradients and the optimiser's state stay
            float32.
        base_dtype: Dtype of the base's weights, for the objective "sft"; None: that of the passes.
        optimizer: ``"adamw8bit"`` keeps the optimiser's state in 8 bits, by bitsandbytes.
        micro_batch: Generated adapters in one pass on one GPU; None: its whole share of the batch.
        checkpointing: Whether to keep only the blocks' inputs for the backward pass.
        shard: Whether to share weights, gradients and the optimiser's state out to all processes
            (FSDP2).
        workers: Number of processes that prepare batches; 0: this one does.
        save_every, evaluate_every: Intervals in steps. Both also happen at the end of each phase,
            and with None only there.
    """

    bf16: bool = False
    base_dtype: DtypeName | None = None
    optimizer: OptimizerName = "adamw"
    micro_batch: int | None = None
    checkpointing: bool = False
    shard: bool = False
    workers: int = 0
    save_every: int | None = None
    evaluate_every: int | None = None

    def pass_size(self, phase: Phase, processes: int) -> int:
        """Return how many adapters are generated in one pass on one GPU.

        Raises:
            InvalidInput: the batch cannot be shared out evenly.
        """
        if phase.batch % processes:
            raise InvalidInput(
                f"a batch of {phase.batch} cannot be shared out evenly to {processes} processes; "
                "use another number."
            )
        share = phase.batch // processes
        size = self.micro_batch or share
        if share % size:
            raise InvalidInput(
                f"micro_batch={size} does not divide the {share} adapters of each process."
            )
        return size


@dataclass(frozen=True)
class RunConfig:
    """What decides a run's result, beside the collection's content.

    Attributes:
        recipe: What to build, and the phases of its training.
        held_out: Names of the data sets that are not trained on, wherever they come from.
        form, strategy: See :class:`dnd_fast.train.generator.pairs.Pairing`.
        candidates: Only the first so many texts of each data set are drawn from; None: all.
        seed: Seed of weights and draws.
        trainer_config: How to compute.
        data: Data sets without adapters, which phases with the objective "sft" draw from beside the
            collection's.
    """

    recipe: Recipe
    held_out: tuple[str, ...] = ()
    form: Form = "prompt"
    strategy: Strategy = "N<-x"
    candidates: int | None = None
    seed: int = 0
    trainer_config: TrainerConfig = field(default_factory=TrainerConfig)
    data: tuple[Dataset, ...] = ()
