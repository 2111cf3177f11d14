"""What a training run would take, before anything is allocated: memory by component, and time.

Memory is counted over two steps on tensors without content, by the code that trains. Time is the
plan's prediction for the convolutions, from assumed rates, plus the optimiser's traffic and, for
"sft", the base model's arithmetic.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, PreTrainedModel

from dnd_fast.decoder.planning import training_plan
from dnd_fast.errors import InvalidInput
from dnd_fast.generator import Generator
from dnd_fast.generator_config import GeneratorConfig
from dnd_fast.kernels.device import PROFILES, DeviceProfile
from dnd_fast.kernels.planner.cost_model import plan_decoder
from dnd_fast.kernels.planner.peak_memory import peak_parts
from dnd_fast.lora.target_modules import auto_model
from dnd_fast.recipe import Phase, Recipe, from_table
from dnd_fast.train.generator.config import TrainerConfig
from dnd_fast.train.generator.data import MicroBatch, pad_conditions
from dnd_fast.train.generator.distributed import CPU
from dnd_fast.train.generator.losses import Loss, loss_under_adapters
from dnd_fast.train.generator.pairs import Pair
from dnd_fast.train.generator.trainer import make_optimizer

SFT_TOKENS = 512  # of an example, where nothing better is known
STATE_BYTES = {"adamw": 8.0, "adamw8bit": 2.0 + 8 / 256}  # per parameter; 8 bits in blocks of 256
LARGEST_COUNTED = 4  # adapters in a pass; every one more takes the same again
MARGIN = 0.05  # of a GPU's memory, for its context and for what the allocator keeps


@dataclass(frozen=True)
class Estimate:
    """What one phase takes on each GPU, in bytes and seconds.

    Attributes:
        phase: The phase.
        weights, gradients, optimizer: Bytes of the decoder's, in float32 but for an 8-bit
            optimiser.
        activations: Bytes of everything else that is alive at the peak, conditions included.
        workspace: Bytes that convolutions take for a moment, at the peak.
        base: Bytes of the frozen base model's weights ("sft").
        seconds: Predicted time of a step.
    """

    phase: Phase
    weights: int
    gradients: int
    optimizer: int
    activations: int
    workspace: int
    base: int
    seconds: float

    @property
    def total(self) -> int:
        """Total of the bytes on each GPU."""
        parts = (self.weights, self.gradients, self.optimizer)
        return sum(parts) + self.activations + self.workspace + self.base


def estimate(
    recipe: Recipe,
    phase: Phase,
    trainer_config: TrainerConfig,
    *,
    gpus: int = 1,
    device: str = "h200",
    example_tokens: int = SFT_TOKENS,
) -> Estimate:
    """Estimate what one phase takes on each of ``gpus`` devices.

    Args:
        recipe: What is trained.
        phase: One of its phases.
        trainer_config: How it would compute.
        gpus: Number of processes that share the batch.
        device: Name of one of :data:`dnd_fast.kernels.device.PROFILES`.
        example_tokens: Tokens of each example ("sft"), all counted as the response's.

    Raises:
        InvalidInput: the batch cannot be shared out evenly, or the recipe's base is unusable.
    """
    size = trainer_config.pass_size(phase, gpus)
    passes = phase.batch // gpus // size
    counted = _count(recipe, phase, trainer_config, size, passes, device, example_tokens)
    weights = gradients = 4 * counted.parameters
    state = 8 * counted.parameters
    held = weights + gradients + state + counted.workspace + counted.base
    activations = counted.peak - held
    state = int(STATE_BYTES[trainer_config.optimizer] * counted.parameters)
    if device != "cpu" and trainer_config.bf16:
        activations += _kept_by_layer_norm(recipe, size, trainer_config)
    if trainer_config.shard and gpus > 1:
        weights, gradients, state = (-(-count // gpus) for count in (weights, gradients, state))
        # Two blocks are whole at a time, one of them with its gradients.
        activations += 3 * 4 * counted.block
    seconds = _seconds(recipe, trainer_config, size, passes, PROFILES[device], counted.parameters)
    if phase.objective == "sft":
        tokens = size * passes * phase.examples * example_tokens
        forward_and_back = 6 if trainer_config.checkpointing else 4  # FLOP per parameter and token
        size_of_base = counted.base / (2 if trainer_config.bf16 else 4)
        seconds += forward_and_back * size_of_base * tokens / PROFILES[device].gemm_flops
    return Estimate(
        phase, weights, gradients, state, activations, counted.workspace, counted.base, seconds
    )


def check_fit(
    recipe: Recipe,
    trainer_config: TrainerConfig,
    *,
    memory: float,
    gpus: int = 1,
    device: str = "h200",
    example_tokens: int = SFT_TOKENS,
) -> list[Estimate]:
    """Estimate all phases, and check that they fit.

    Args:
        memory: Bytes of each GPU.

    The other arguments are those of :func:`estimate`.

    Raises:
        InvalidInput: a phase does not fit; the message says which options would make it fit.
    """
    usable = (1 - MARGIN) * memory

    def of(phase: Phase, trainer_config: TrainerConfig, gpus: int) -> Estimate:
        return estimate(
            recipe, phase, trainer_config, gpus=gpus, device=device, example_tokens=example_tokens
        )

    estimates = [of(phase, trainer_config, gpus) for phase in recipe.phases]
    worst = max(estimates, key=lambda estimate: estimate.total)
    if worst.total <= usable:
        return estimates
    fitting = (
        f"this would fit: {arguments}"
        for arguments, *changed in _alternatives(worst.phase, trainer_config, gpus)
        if of(worst.phase, *changed).total <= usable
    )
    advice = next(fitting, "no option of this command makes it fit")
    raise InvalidInput(
        f"phase {worst.phase.objective!r} needs {worst.total / 1e9:.1f} GB on each of {gpus} "
        f"GPU(s), of {memory / 1e9:.1f} GB less {MARGIN:.0%} for the allocator; {advice}."
    )


def fit_passes(
    recipe: Recipe,
    trainer_config: TrainerConfig,
    *,
    memory: float,
    gpus: int = 1,
    device: str = "h200",
) -> TrainerConfig:
    """Choose the largest micro-batch that fits, where the configuration names none.

    It is returned as it is where the whole batch fits in one pass, or nothing does. The arguments
    are those of :func:`check_fit`.
    """
    if trainer_config.micro_batch is not None:
        return trainer_config
    share = math.gcd(*(phase.batch // gpus for phase in recipe.phases))
    sizes = [None, *(size for size in range(share, 0, -1) if share % size == 0)]
    for size in sizes:
        changed = dataclasses.replace(trainer_config, micro_batch=size)
        totals = (
            estimate(recipe, phase, changed, gpus=gpus, device=device).total
            for phase in recipe.phases
        )
        if all(total <= (1 - MARGIN) * memory for total in totals):
            return changed
    return trainer_config


def _alternatives(
    phase: Phase, trainer_config: TrainerConfig, gpus: int
) -> Iterator[tuple[str, TrainerConfig, int]]:
    """Yield other options of the command, those that cost least time first."""
    share, size = phase.batch // gpus, trainer_config.pass_size(phase, gpus)
    sizes = [smaller for smaller in range(size, 0, -1) if share % smaller == 0]
    optimizers = [trainer_config.optimizer]
    if trainer_config.optimizer == "adamw" and not trainer_config.shard:
        optimizers.append("adamw8bit")
    for optimizer in optimizers:
        for again in dict.fromkeys((trainer_config.checkpointing, True)):
            for smaller in sizes:
                changed = dataclasses.replace(
                    trainer_config, micro_batch=smaller, checkpointing=again, optimizer=optimizer
                )
                arguments = [f"--micro-batch {smaller}"] if smaller != size else []
                arguments += ["--checkpointing"] if again != trainer_config.checkpointing else []
                arguments += (
                    [f"--optimizer {optimizer}"] if optimizer != trainer_config.optimizer else []
                )
                yield " ".join(arguments), changed, gpus
    smallest = TrainerConfig(
        bf16=trainer_config.bf16, micro_batch=1, checkpointing=True, shard=True
    )
    for more in range(gpus + 1, phase.batch + 1):
        if phase.batch % more == 0:
            yield f"{more} GPUs with --shard --micro-batch 1 --checkpointing", smallest, more


class _Counted(NamedTuple):
    """What was counted.

    Attributes:
        peak: Bytes at the peak.
        workspace, base: Bytes of these inside convolutions, and of the base model.
        parameters, block: Numbers of parameters of the decoder and of its largest block.
    """

    peak: int
    workspace: int
    base: int
    parameters: int
    block: int


def _count(
    recipe: Recipe,
    phase: Phase,
    trainer_config: TrainerConfig,
    size: int,
    passes: int,
    device: str,
    tokens: int,
) -> _Counted:
    """Count a step; large passes are extrapolated from smaller ones, whose peaks lie on a line."""
    described = json.dumps(dataclasses.asdict(recipe))
    quiet = phase.quiet()
    # What a peak does not depend on is left out, so that it is counted once.
    plain = TrainerConfig(bf16=trainer_config.bf16, checkpointing=trainer_config.checkpointing)

    def count(size: int) -> _Counted:
        once = dataclasses.replace(quiet, batch=min(2, passes) * size)
        return _count_passes(described, once, plain, size, device, tokens)

    if size <= LARGEST_COUNTED:
        return count(size)
    low, high = count(LARGEST_COUNTED // 2), count(LARGEST_COUNTED)
    steps = (size - LARGEST_COUNTED) / (LARGEST_COUNTED - LARGEST_COUNTED // 2)
    peak, workspace = (
        int(large + steps * (large - small)) for small, large in zip(low[:2], high[:2], strict=True)
    )
    return high._replace(peak=peak, workspace=workspace)


@lru_cache(maxsize=64)
def _count_passes(
    described: str, phase: Phase, trainer_config: TrainerConfig, size: int, device: str, tokens: int
) -> _Counted:
    """Count two steps of ``phase.batch`` in passes of ``size``, on tensors without content."""
    recipe = from_table(Recipe, json.loads(described), "recipe")
    config = GeneratorConfig.from_recipe(recipe)
    parameters = block = base_bytes = 0

    def run() -> None:
        nonlocal parameters, block, base_bytes
        generator = Generator(config)
        decoder, layout = generator.decoder.train(), generator.layout
        decoder.checkpointing = trainer_config.checkpointing
        decoder.criterion_weight = torch.empty(1, layout.num_tokens, 1, 1)
        if layout.scale == "static":  # not set_statistics(), which looks at the values
            layout.mean = torch.empty(layout.num_tokens, *layout.token_shape)
            layout.std = torch.empty(layout.num_tokens, 1, 1)
        decoder.set_plan(training_plan(decoder, size, device))
        parameters = _numbers(decoder)
        block = max(map(_numbers, decoder.blocks))
        base = _empty_base(recipe, trainer_config) if phase.objective == "sft" else None
        if base is not None:
            base_bytes = sum(parameter.nbytes for parameter in base.parameters())
        loss = Loss(decoder, decoder, layout, base, CPU, trainer_config)
        optimizer = make_optimizer(decoder, phase, trainer_config)
        for _ in range(2):
            optimizer.zero_grad()
            for _ in range(phase.batch // size):
                # Not in a variable, which would keep a batch through the backward pass and beyond.
                if base is None:
                    loss(_empty_batch(generator, size), phase).backward()
                else:
                    _sft_pass(loss, _empty_batch(generator, size), phase, tokens)
            nn.utils.clip_grad_norm_(decoder.parameters(), phase.clip)
            optimizer.step()

    with FakeTensorMode():
        peak, workspace = peak_parts(run)
    return _Counted(peak, workspace, base_bytes, parameters, block)


def _empty_batch(generator: Generator, size: int) -> MicroBatch:
    """Make a micro-batch without content, of texts as long as the condition."""
    prompts, length, width = generator.decoder.condition_shape
    positions = size * prompts * length
    return MicroBatch(
        (Pair(0, 0, (), (), (), 0),) * size,
        torch.empty(positions, width, dtype=torch.float16),
        torch.empty(positions, dtype=torch.long),
        (positions // size,) * size,
        torch.empty(size, *generator.decoder.features[-1]),
        None,
    )


def _empty_base(recipe: Recipe, trainer_config: TrainerConfig) -> PreTrainedModel:
    config = AutoConfig.for_model(**recipe.base.config)
    dtype = torch.bfloat16 if trainer_config.bf16 else torch.float32
    model: PreTrainedModel = auto_model(config).from_config(
        config, dtype=dtype, trust_remote_code=False
    )
    return model.eval().requires_grad_(False)


def _sft_pass(loss: Loss, batch: MicroBatch, phase: Phase, tokens: int) -> None:
    """Do a pass of "sft", which itself chooses positions by their values, on all positions."""
    assert loss.base is not None
    config = loss.trainer_config
    ids = torch.zeros(len(batch.pairs) * phase.examples, tokens, dtype=torch.long)

    def mean_loss(model: PreTrainedModel) -> Tensor:
        logits = model(ids, use_cache=False).logits.flatten(0, 1)
        return cross_entropy(logits.float(), ids.flatten())

    with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
        generated = loss.decoder(pad_conditions(batch, loss.decoder.condition_shape))
        value = loss_under_adapters(
            loss.base, loss.layout, generated, mean_loss, recompute=config.checkpointing
        )
    value.backward()


def _kept_by_layer_norm(recipe: Recipe, size: int, trainer_config: TrainerConfig) -> int:
    """Bytes that autocast keeps on a GPU, where it gives a layer norm its input in float32."""
    inputs = [n * length * c for n, length, c in recipe.decoder.features[1:-1]]
    return 4 * size * (max(inputs, default=0) if trainer_config.checkpointing else sum(inputs))


def _seconds(
    recipe: Recipe,
    trainer_config: TrainerConfig,
    size: int,
    passes: int,
    profile: DeviceProfile,
    parameters: int,
) -> float:
    spec = recipe.decoder
    sizes = spec.features, spec.kernel_size, profile
    step = plan_decoder(*sizes, batch=size, weights="streamed", training=True).seconds
    if trainer_config.checkpointing:  # a forward pass more
        step += plan_decoder(*sizes, batch=size, weights="streamed").seconds
    # Weights, gradients and state are read, and all but the gradients written.
    traffic = (4 + 4 + STATE_BYTES[trainer_config.optimizer]) * parameters * 2 - 4 * parameters
    return passes * step + traffic / profile.bandwidth


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
