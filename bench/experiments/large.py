"""A LoRA step on a base of 0.5 B parameters, against a pass of its recipe's generator: time alone.

All weights are random, which costs the same.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from dnd_fast.bench.harness.encoder import load_encoder
from dnd_fast.bench.harness.timing import console, interleaved
from dnd_fast.demo.vocabulary import instruction_words
from dnd_fast.generator import Generator
from dnd_fast.generator_config import GeneratorConfig
from dnd_fast.kernels.device import device_name, time_fn
from dnd_fast.lora.batched import IGNORE_INDEX, Batch, response_logits
from dnd_fast.recipe import Recipe

LARGE = "common-sense-0.5b"
LARGE_MEMORY = 10e9  # bytes that its decoder may take
BATCH, LENGTH, ANSWER_LENGTH = 8, 128, 32  # of its training step: sequences, tokens
ROUNDS = 3


def compare_large(device: torch.device, seed: int, steps: Sequence[int]) -> dict[str, Any]:
    """Seconds of a LoRA step, timed a few times and scaled to numbers of ``steps``, and of a
    generation."""
    recipe = Recipe.load(LARGE)
    torch.manual_seed(seed)
    dtype = faster_dtype(device)
    step = training_step(recipe, device, dtype)
    step_seconds = interleaved({"LoRA step": step}, ROUNDS, device)[0]["LoRA step"]
    del step
    gc.collect()  # base and generator need not be in memory together
    rng = random.Random(seed)
    # About as long as the training examples, and no two alike: each is encoded.
    prompts = [
        " ".join(rng.choices(instruction_words(), k=LENGTH))
        for _ in range(recipe.condition.prompts)
    ]
    with console.status(f"{LARGE}: building and planning a generator"):
        generator, encoder = _random_generator(recipe, prompts, device)

    def generate() -> Tensor:
        return next(iter(generator.generate(prompts).tensors.values()))

    generation = interleaved({"generation": generate}, ROUNDS, device)[0]["generation"]
    scaled = {str(number): number * median(step_seconds) for number in steps}
    return {
        "recipe": LARGE,
        "device": device_name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "batch": BATCH,
        "length": LENGTH,
        "answer_length": ANSWER_LENGTH,
        "encoder": encoder,
        "step_seconds": step_seconds,
        "generation_seconds": generation,
        "stage_seconds": generator.timings,
        "scaled_seconds": scaled,
        "ratio": {number: value / median(generation) for number, value in scaled.items()},
    }


def faster_dtype(device: torch.device) -> torch.dtype:
    """float32 or bfloat16, whichever multiplies matrices of a training step's size faster."""

    def seconds(dtype: torch.dtype) -> float:
        rows = torch.randn(BATCH * LENGTH, 896, dtype=dtype, device=device)
        weight = torch.randn(896, 4864, dtype=dtype, device=device)
        return time_fn(lambda: rows @ weight, device, 0.5)

    return min((torch.float32, torch.bfloat16), key=seconds)


def training_step(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
    """One optimiser step of PEFT's LoRA on the recipe's base, with random weights and tokens.

    Logits are computed for the answers alone, which favours LoRA.
    """
    config = AutoConfig.for_model(**recipe.base.config)
    with device:
        base = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        input_ids = torch.randint(config.vocab_size, (BATCH, LENGTH))
    lora = LoraConfig(r=recipe.lora.rank, lora_alpha=recipe.lora.alpha, target_modules="all-linear")
    tuned = get_peft_model(base, lora).train()
    optimizer = torch.optim.AdamW(p for p in tuned.parameters() if p.requires_grad)
    labels = input_ids.roll(-1, dims=1)
    labels[:, : LENGTH - ANSWER_LENGTH] = IGNORE_INDEX
    batch = Batch(input_ids, labels)

    def step() -> Tensor:
        loss = cross_entropy(*response_logits(base, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _random_generator(
    recipe: Recipe, prompts: Sequence[str], device: torch.device
) -> tuple[Generator, str]:
    """The recipe's generator within LARGE_MEMORY, and what its encoder is."""
    encoder, name = load_encoder("auto", prompts)
    with device:
        generator = Generator(GeneratorConfig.from_recipe(recipe), encoder=encoder)
        layout = generator.layout
        layout.set_statistics(
            torch.zeros(layout.num_tokens, *layout.token_shape), torch.ones(layout.num_tokens, 1, 1)
        )
    generator.requires_grad_(False)
    generator.to(torch.bfloat16 if device.type == "cuda" else torch.float32)
    generator.prepare(memory=LARGE_MEMORY)
    return generator, name
