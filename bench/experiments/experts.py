"""SVF experts on the demo's base: against LoRA, by objective, and carried over to other bases.

Every task has an expert of its own:

python -m bench.experiments.experts methods --seed 0     # SVF's modules, and LoRA
python -m bench.experiments.experts objectives --seed 0  # REINFORCE and next-token loss
python -m bench.experiments.experts transfer --seed 0    # on another base

The base, the split into tasks and the generator are the shipped ones; a seed is that of training.
Two to four minutes a command on one CPU core. How experts are chosen and mixed:
``bench.experiments.adaptation``.
"""

from __future__ import annotations

import copy
import dataclasses
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from statistics import mean, stdev
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from dnd_fast.base_model import load_base
from dnd_fast.bench.harness.markdown import table
from dnd_fast.bench.harness.results import append, latest
from dnd_fast.demo.tasks import EXAMPLES, SHIPPED_SEED, split_tasks
from dnd_fast.generator_config import DEMO_MODELS
from dnd_fast.lora.batched import TokenizedExample, encode, generate_responses, response_logits
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.recipe import Recipe
from dnd_fast.svf.expert import DecomposedModel, Expert
from dnd_fast.train.adapters.collect import collect
from dnd_fast.train.demo.pretrain import LEARNING_RATE, pretrain, pretraining_batch
from dnd_fast.train.experts.reinforce import ExpertSpec, fit_experts, train_expert

app = typer.Typer(no_args_is_help=True, help=__doc__)
console = Console()

ASKED = 32  # test prompts per task
STEPS, BATCH, RATE = 50, 8, 3e-2  # of an expert's fit
RL = ExpertSpec(
    modules="all-linear",
    steps=60,
    warmup=0,
    batch=64,
    learning_rate=RATE,
    max_norm=1.0,
    kl=0.1,
    max_new_tokens=14,
    validation=0.25,
)
OBJECTIVES = {
    "REINFORCE from the base": RL,
    "next token": dataclasses.replace(RL, objective="next-token"),
    "next token (20 steps), then REINFORCE": dataclasses.replace(RL, warmup=20),
}
RL_TASKS = 2
RELATED_STEPS, STRANGER_STEPS = 100, 700
# Tables of scores: title, and the parts of the results whose rows they show.
SCORES = {
    "methods": ("trained on the task itself", ["methods"]),
    "adaptation": (
        "combinations never trained on",
        ["choosing", "mixing", "variants", "generator"],
    ),
    "transfer": ("carried over to another base", ["transfer"]),
}

Grades = list[dict[str, float]]


class Demo:
    """The shipped base and its test tasks."""

    def __init__(self) -> None:
        self.model, self.tokenizer = load_base(
            str(DEMO_MODELS / "base"), str(DEMO_MODELS / "tokenizer")
        )
        self.base = DecomposedModel(self.model, "all-linear")
        split = split_tasks(SHIPPED_SEED)
        self.training, self.tasks = split["train"], split["test"]
        self.exams = [task.examples(ASKED, "test", 1) for task in self.tasks]
        self.prompts = [[example.prompt for example in exam] for exam in self.exams]

    @cached_property
    def own_data(self) -> list[list[TokenizedExample]]:
        """Training examples of each test task."""
        return [self.encoded(task.examples(EXAMPLES, "train", 0)) for task in self.tasks]

    def encoded(self, examples: Sequence[Any]) -> list[TokenizedExample]:
        """Tokenised examples of the demo's tasks."""
        return encode(self.tokenizer, [example.turn for example in examples])

    def grade(self, responses: Sequence[Sequence[str]]) -> Grades:
        """Shares of exact answers, right skills and right formats, task by task."""
        table = []
        for task, exam, said in zip(self.tasks, self.exams, responses, strict=True):
            grades = [task.grade(text, e.word) for text, e in zip(said, exam, strict=True)]
            table.append({kind: mean(getattr(g, kind) for g in grades) for kind in KINDS})
        return table

    def graded(
        self, vectors: Mapping[str, Tensor] | None, base: DecomposedModel | None = None
    ) -> Grades:
        """Task k under expert k of z ``[K, r]``, or without experts; on another base if given."""
        base = base or self.base
        with base.factored(vectors) if vectors else nullcontext():
            return self.grade(generate_responses(base.model, self.tokenizer, self.prompts))

    def graded_lora(self, adapters: Mapping[str, Tensor], scaling: float) -> Grades:
        """Task k under adapter k."""
        return self.grade(
            generate_responses(self.model, self.tokenizer, self.prompts, adapters, scaling)
        )


KINDS = ("exact", "skill", "format")


@app.command()
def methods(seed: Annotated[int, typer.Option(help="Of training.")] = 0) -> None:
    """SVF and LoRA trained on each test task's own examples; SVF's modules and objectives."""
    demo, started = Demo(), time.perf_counter()
    rows: dict[str, Any] = {"base": row(demo.graded(None), 0)}
    for modules in ("attention", "mlp", "both", "all-linear"):
        base = DecomposedModel(demo.model, modules)
        vectors = fit(base, demo.own_data, seed)
        rows[f"SVF, {modules}"] = row(demo.graded(vectors, base), sum(base.sizes.values()))
        say(f"SVF, {modules}", started)
    layout = TokenLayout.for_model(demo.model.config, 4)
    spec = dataclasses.replace(Recipe.load("demo").collection, checkpoints=1)
    adapters = layout.detokenize(collect(demo.model, layout, demo.own_data, spec, seed=seed)[:, -1])
    rows["LoRA, rank 4, all-linear"] = row(
        demo.graded_lora(adapters, layout.lora_alpha / layout.rank),
        sum(value[0].numel() for value in adapters.values()),
    )
    say("LoRA", started)
    finish("methods", seed, {"rows": rows}, started)


@app.command()
def objectives(seed: Annotated[int, typer.Option(help="Of training.")] = 0) -> None:
    """REINFORCE and next-token loss, each from the base and after a start by next-token loss."""
    demo, started = Demo(), time.perf_counter()
    found = {}
    for name, settings in OBJECTIVES.items():
        found[name] = _objective(demo, settings, seed)
        say(f"{name}: {found[name]['exact']}", started)
    finish("objectives", seed, {"objectives": found}, started)


def _objective(demo: Demo, spec: ExpertSpec, seed: int) -> dict[str, Any]:
    """Exact match on the first few test tasks, each after a run on its own examples."""
    found = []
    for task, exam in list(zip(demo.tasks, demo.exams, strict=True))[:RL_TASKS]:
        examples = [example.turn for example in task.examples(EXAMPLES, "train", 0)]
        with tempfile.TemporaryDirectory() as folder:
            expert = train_expert(
                demo.model, demo.tokenizer, examples, spec, seed=seed, out=f"{folder}/expert"
            )
        with demo.base.merged(expert):
            said = generate_responses(demo.model, demo.tokenizer, [[e.prompt for e in exam]])[0]
        found.append(mean(text == e.answer for text, e in zip(said, exam, strict=True)))
    return {"exact": found, "tasks": [str(task) for task in demo.tasks[:RL_TASKS]]}


@app.command()
def transfer(seed: Annotated[int, typer.Option(help="Of training.")] = 0) -> None:
    """One base's experts on two others: one that it was trained on into, and a stranger."""
    demo, started = Demo(), time.perf_counter()
    fitted = fit(demo.base, demo.own_data, seed)
    experts = [
        demo.base.expert({name: z[k] for name, z in fitted.items()}) for k in range(len(demo.tasks))
    ]
    rows = {"on their own base": row(demo.graded(fitted))}
    for name, model in (
        (f"the base after {RELATED_STEPS} more steps", _related(demo, seed)),
        ("a base pretrained apart", pretrain(demo.tokenizer, 1 + seed, steps=STRANGER_STEPS)),
    ):
        say(name, started)
        other = DecomposedModel(model.requires_grad_(False), "all-linear")
        rows[f"{name}: itself"] = row(demo.graded(None, other))
        for label, vectors in (
            ("ordered", stack([other.transferred(each) for each in experts])),
            ("shuffled", stack([other.transferred(e, shuffle_seed=seed) for e in experts])),
            ("experts of its own", fit(other, demo.own_data, seed)),
        ):
            rows[f"{name}: {label}"] = row(demo.graded(vectors, other))
    finish("transfer", seed, {"rows": rows}, started)


def _related(demo: Demo, seed: int) -> PreTrainedModel:
    """The base, trained further as it was pretrained, at a tenth of the learning rate."""
    model = copy.deepcopy(demo.model).requires_grad_(True).train()
    rng = random.Random(f"related {seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE / 10)
    for _ in range(RELATED_STEPS):
        logits, labels = response_logits(model, pretraining_batch(demo.tokenizer, rng, 96))
        optimizer.zero_grad()
        cross_entropy(logits, labels).backward()
        optimizer.step()
    return model.eval()


def fit(
    base: DecomposedModel,
    datasets: Sequence[Sequence[TokenizedExample]],
    seed: int,
    *,
    steps: int | None = None,
) -> dict[str, Tensor]:
    """Experts z ``[K, r]``, one per data set, by next-token loss."""
    return fit_experts(
        base, datasets, steps=steps or STEPS, batch=BATCH, learning_rate=RATE, seed=seed
    )


def stack(experts: Sequence[Expert]) -> dict[str, Tensor]:
    """z ``[K, r]`` of K experts."""
    return {
        name: torch.stack([each.vectors[name] for each in experts]) for name in experts[0].vectors
    }


def row(grades: Grades, parameters: int | None = None) -> dict[str, Any]:
    """Means over the tasks, and each task's exact match."""
    figures: dict[str, Any] = {kind: mean(each[kind] for each in grades) for kind in KINDS}
    figures["per_task"] = [each["exact"] for each in grades]
    return figures if parameters is None else figures | {"parameters": parameters}


def say(what: str, started: float) -> None:
    """What is done, and the seconds since the start."""
    console.print(f"{time.perf_counter() - started:4.0f} s  {what}", highlight=False)


def finish(part: str, seed: int, figures: dict[str, Any], started: float) -> None:
    """Print the rows and add everything to the results."""
    figures = {"part": part, "seed": seed, "seconds": time.perf_counter() - started, **figures}
    printed = Table("", *KINDS, box=None)
    for name, row in figures.get("rows", {}).items():
        printed.add_row(name, *(f"{row[kind]:.3f}" for kind in KINDS))
    console.print(printed)
    console.print(f"Wrote {append('experts', figures)}.")


def scores(name: str) -> str:
    """One of SCORES: means over the seeds with their deviation."""
    title, parts = SCORES[name]
    rows = []
    for results in map(load, parts):
        for label in results[0]["rows"] if results else []:
            scored = [result["rows"][label] for result in results]
            if count := scored[0].get("parameters"):
                label = f"{label}, {count:,} parameters"
            cells = (_spread_of([row[kind] for row in scored]) for kind in KINDS)
            rows.append((label, *cells, str(len(results))))
    return table((title, "exact", "skill right", "format right", "seeds"), rows)


def objectives_scores() -> str:
    """Exact match of what each objective reaches, over the seeds."""
    results = load("objectives")
    rows = []
    for name in OBJECTIVES if results else []:
        values = [mean(result["objectives"][name]["exact"]) for result in results]
        rows.append((name, _spread_of(values), str(len(results))))
    return table((f"objective, {RL_TASKS} tasks", "exact", "seeds"), rows)


def _spread_of(values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}"


def load(part: str) -> list[dict[str, Any]]:
    """The newest committed result of every seed."""
    found = [each for each in latest("experts", "part", "seed") if each["part"] == part]
    return sorted(found, key=lambda figures: figures["seed"])


if __name__ == "__main__":
    app()
