"""A generator that makes SVF experts from prompts, on the demo's base and its test tasks.

python -m bench.experiments.expert_generator --seed 0  # about four minutes on one CPU core

An expert is fitted to every training task; a generator learns from them by MSE, as the paper's does
from LoRA, and then end to end through the base (ours). Tables: ``bench.experiments.experts``.
"""

from __future__ import annotations

import time
from typing import Annotated

import torch
import typer
from torch import Tensor

from dnd_fast.bench.experiments.experts import Demo, finish, fit, row, say, stack
from dnd_fast.demo.tasks import Task
from dnd_fast.generator import Generator
from dnd_fast.generator_config import GeneratorConfig
from dnd_fast.recipe import DecoderSpec, Phase, Recipe
from dnd_fast.svf.layout import SvfLayout
from dnd_fast.train.generator.data import TaskData
from dnd_fast.train.generator.pairs import Pairing
from dnd_fast.train.generator.trainer import Trainer

TASKS_PER_PASS = 26
STEPS = 35  # of an expert's fit
POOL = 24  # prompts of each task that conditions are drawn from
EXAMPLES = 96  # that an expert is fitted to
HIDDEN = [[32, 12, 64], [48, 4, 64]]
MSE = Phase("mse", steps=400, learning_rate=3e-3, batch=16, dropout=0.2, weighted=False)
END_TO_END = Phase("sft", steps=150, learning_rate=5e-4, batch=12, examples=6, dropout=0.2)


def main(seed: Annotated[int, typer.Option(help="Seed of experts and generator.")] = 0) -> None:
    """Fit an expert per training task, train a generator, test it on tasks unseen by it."""
    demo, started = Demo(), time.perf_counter()
    data = [demo.encoded(task.examples(EXAMPLES, "train", 0)) for task in demo.training]
    fits = [
        fit(demo.base, data[i : i + TASKS_PER_PASS], seed, steps=STEPS)
        for i in range(0, len(data), TASKS_PER_PASS)
    ]
    fitted = {name: torch.cat([part[name] for part in fits]) for name in fits[0]}
    say("an expert for every training task", started)
    generator = _new_generator(demo, seed)
    layout = generator.layout
    tokens = layout.tokenize(fitted)
    layout.fit(tokens)
    conditions = torch.stack([_embedded(generator, task, POOL) for task in demo.training])
    say("embedded prompts", started)
    rows = {"training experts: mean of weights": row(demo.graded(_repeated(demo, fitted)))}
    name = f"generated SVF expert, {sum(demo.base.sizes.values()):,} numbers"
    phases = {f"{name}: MSE": MSE, f"{name}: MSE, then end to end": END_TO_END}

    def grade(index: int) -> None:
        rows[list(phases)[index]] = row(demo.graded(_generated(demo, generator)))
        say(list(phases)[index], started)

    targets = layout.normalize(tokens)
    tasks = [
        TaskData(str(k), (conditions[k],), targets[k][None], examples)
        for k, examples in enumerate(data)
    ]
    pairing = Pairing(
        seed,
        generator.config.condition.prompts,
        candidates=(conditions.shape[1],) * len(tasks),
        checkpoints=(1,) * len(tasks),
        examples=tuple(map(len, data)),
    )
    parts = generator.decoder, layout, tasks, pairing, tuple(phases.values())
    Trainer(*parts, base=demo.base, on_phase_end=grade).fit()
    rows[f"{name}: from another task's prompts"] = row(
        demo.graded({key: z.roll(1, 0) for key, z in _generated(demo, generator).items()})
    )
    finish("generator", seed, {"rows": rows}, started)


def _new_generator(demo: Demo, seed: int) -> Generator:
    layout = SvfLayout.for_base(demo.base)
    condition = Recipe.load("demo").condition
    first = [condition.prompts, condition.length, 384]
    last = [layout.num_tokens, *layout.token_shape]
    torch.manual_seed(seed)
    decoder = DecoderSpec([first, *HIDDEN, last], 3)
    return Generator(GeneratorConfig(condition, decoder, layout.to_dict()))


def _embedded(generator: Generator, task: Task, count: int) -> Tensor:
    prompts = [example.prompt for example in task.examples(count, "train", 0)]
    return generator.encoder.encode(prompts, generator.config.condition.length)


def _generated(demo: Demo, generator: Generator) -> dict[str, Tensor]:
    """Experts for the test tasks, from eight prompts of each, without answers."""
    prompts = [[example.prompt for example in task.examples(8, "train", 5)] for task in demo.tasks]
    made = generator.generate(prompts)
    return stack(made)


def _repeated(demo: Demo, fitted: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: z.mean(0).expand(len(demo.tasks), -1) for name, z in fitted.items()}


if __name__ == "__main__":
    typer.run(main)
