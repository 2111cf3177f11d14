"""Estimates against what the allocator gave out while a real run trained."""

import dataclasses
import json
import re

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from dnd_fast import Generator, InvalidInput, Recipe
from dnd_fast.decoder.planning import training_plan
from dnd_fast.generator_config import GeneratorConfig
from dnd_fast.lora.batched import TokenizedExample
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.recipe import Phase
from dnd_fast.train.generator.config import TrainerConfig
from dnd_fast.train.generator.data import TaskData
from dnd_fast.train.generator.estimate import check_fit, estimate, fit_passes
from dnd_fast.train.generator.pairs import Pairing
from dnd_fast.train.generator.trainer import Trainer

BATCH, TOKENS = 4, 12
LENGTH = 160
MSE = Phase("mse", 2, 1e-3, BATCH)
LARGE = Phase("mse", 2, 1e-3, 16)  # so large that it is extrapolated
SFT = Phase("sft", 2, 1e-3, BATCH, examples=2)


@pytest.fixture(scope="module")
def recipe():
    """The 7B recipe's kernel, projection and kinds of shapes, on a base small enough for a CPU."""
    recipe = Recipe.load("coding-7b")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512}
    base = dataclasses.replace(recipe.base, config=recipe.base.config | sizes | heads)
    layout = TokenLayout.for_model(AutoConfig.for_model(**base.config), 8, lora_alpha=16)
    last = [layout.num_tokens, *layout.token_shape]
    return dataclasses.replace(
        recipe,
        base=base,
        lora=dataclasses.replace(recipe.lora, rank=8, alpha=16),
        condition=dataclasses.replace(
            recipe.condition, prompts=4, length=LENGTH, projected_length=40
        ),
        decoder=dataclasses.replace(
            recipe.decoder, features=[[4, 40, 384], [16, 24, 64], [32, 16, 64], last]
        ),
    )


def allocated(recipe, phase, trainer_config, path):
    """Peak of what the CPU's allocator had given out, by the profiler's own record."""

    def train():
        generator = Generator(GeneratorConfig.from_recipe(recipe))
        shape = tuple(recipe.decoder.features[-1])
        generator.layout.set_statistics(torch.zeros(shape), torch.ones(shape[0], 1, 1))
        decoder = generator.decoder
        decoder.criterion_weight = torch.ones(1, shape[0], 1, 1)
        size = trainer_config.pass_size(phase, 1)
        decoder.set_plan(training_plan(decoder, size, "cpu"))
        base = None
        if phase.objective == "sft":
            config = AutoConfig.for_model(**recipe.base.config)
            base = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        texts = [torch.randn(LENGTH, 384).half()] * 4
        targets = torch.randn(1, *shape)
        # Every position but the first is the response's, as in an estimate.
        examples = [TokenizedExample([1] * (TOKENS + 1), 1)]
        source = TaskData("x", (texts,), targets, examples)
        Trainer(
            decoder,
            generator.layout,
            [source],
            Pairing(0, 4, (4,), (1,), (1,)),
            [phase],
            base=base,
            trainer_config=trainer_config,
        ).fit()

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train()
    profiler.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    totals = [
        (event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"
    ]
    now = peak = 0
    for _, size in sorted(totals):
        now += size
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize(
    ("phase", "trainer_config"),
    [
        (LARGE, TrainerConfig()),
        (MSE, TrainerConfig(bf16=True, micro_batch=2, checkpointing=True)),
        (SFT, TrainerConfig()),
    ],
    ids=["large", "bfloat16", "sft"],
)
def test_within_ten_percent_of_the_allocators_count(recipe, tmp_path, phase, trainer_config):
    expected = allocated(recipe, phase, trainer_config, tmp_path / "trace.json")
    found = estimate(recipe, phase, trainer_config, device="cpu", example_tokens=TOKENS)
    assert found.total == pytest.approx(expected, rel=0.1)


def test_the_7b_recipe_fits_one_gpu_of_141_gb():
    """With its batch of 48 in passes of one, the slowest that there is, there is room to spare."""
    recipe = Recipe.load("coding-7b")
    (found,) = check_fit(recipe, TrainerConfig(bf16=True, micro_batch=1), memory=141e9)
    assert recipe.phases[0].batch == 48
    assert found.weights == 4 * (1_936_310_072 + 26624 * 1000 + 1000 + 1000 * 1000 + 1000)
    assert found.optimizer == 2 * found.weights == 2 * found.gradients
    assert 35e9 < found.total < 70e9
    assert 1 < found.seconds < 20


def test_passes_become_as_large_as_fits(recipe):
    """What a user names stays; else the largest divisor of the batch whose pass fits."""
    phase = dataclasses.replace(MSE, batch=8)
    recipe = dataclasses.replace(recipe, phases=(phase,))

    def chosen(total, trainer_config=None):
        found = fit_passes(
            recipe, trainer_config or TrainerConfig(), memory=total / 0.95 + 1, device="cpu"
        )
        return found.micro_batch

    totals = {
        size: estimate(recipe, phase, TrainerConfig(micro_batch=size), device="cpu").total
        for size in (1, 2, 4, 8)
    }
    assert totals[1] < totals[2] < totals[4] < totals[8]
    assert chosen(totals[8]) is None
    assert chosen(totals[8] - 1e3) == 4
    assert chosen(totals[4] - 1e3) == 2
    assert chosen(totals[2] - 1e3) == 1
    assert chosen(0.5 * totals[1]) is None
    assert chosen(totals[8], TrainerConfig(micro_batch=1)) == 1


def test_what_does_not_fit_is_refused_with_what_would(recipe):
    """Every piece of advice is one that the estimate itself accepts."""
    phases = (dataclasses.replace(MSE, batch=2),)
    recipe = dataclasses.replace(recipe, phases=phases)
    needed = estimate(recipe, phases[0], TrainerConfig(), device="cpu").total

    def advice(share, trainer_config=None, **others):
        with pytest.raises(InvalidInput, match=r"needs .* GB on each of") as caught:
            check_fit(
                recipe,
                trainer_config or TrainerConfig(),
                memory=share * needed / 0.95,
                device="cpu",
                **others,
            )
        return str(caught.value).rpartition("; ")[2].removesuffix(".")

    smallest = estimate(
        recipe, phases[0], TrainerConfig(micro_batch=1, checkpointing=True), device="cpu"
    ).total
    for share in (0.99, 1.01 * smallest / needed, 0.99 * smallest / needed):
        arguments = advice(share).removeprefix("this would fit: ")
        micro_batch = re.search(r"--micro-batch (\d+)", arguments)
        trainer_config = TrainerConfig(
            micro_batch=int(micro_batch[1]) if micro_batch else None,
            checkpointing="--checkpointing" in arguments,
            optimizer="adamw8bit" if "adamw8bit" in arguments else "adamw",
        )
        assert estimate(recipe, phases[0], trainer_config, device="cpu").total <= share * needed
    assert "adamw8bit" in arguments
    assert "GPUs with --shard" in advice(share, TrainerConfig(shard=True))
    assert advice(0.01) == "no option of this command makes it fit"
