"""SVF experts adapting themselves on the demo's base, to combinations that none was trained on.

python -m bench.experiments.adaptation choosing --seed 0  # one expert per prompt; and comparisons
python -m bench.experiments.adaptation mixing --seed 0    # mix experts by a few examples
python -m bench.experiments.adaptation variants --seed 0  # mix them in other ways
python -m bench.experiments.adaptation plot               # confusion matrices, coefficients

There is an expert for each skill and one for each answer format; a test task combines two of them
as no training task does. A seed is that of training, examples and search; the rest is as in
``bench.experiments.experts``, where the tables are. About two minutes a command on one CPU core.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from dnd_fast.bench.experiments import experts as bench
from dnd_fast.bench.experiments.experts import Demo, finish, fit, row, say, stack
from dnd_fast.bench.harness.results import RESULTS
from dnd_fast.demo.tasks import Task
from dnd_fast.demo.vocabulary import FORMATS, SKILLS
from dnd_fast.files import atomic_file
from dnd_fast.generator import Generator
from dnd_fast.generator_config import DEMO_MODELS
from dnd_fast.lora.batched import encode
from dnd_fast.svf.adaptive import (
    OTHERS,
    AdaptiveModel,
    FewShotSpec,
    classification_examples,
)
from dnd_fast.svf.cem import CemSpec
from dnd_fast.svf.expert import Expert
from dnd_fast.text.datasets import Example
from dnd_fast.train.experts.reinforce import fit_experts

app = typer.Typer(no_args_is_help=True, help=__doc__)
SEED = Annotated[int, typer.Option(help="Of training, examples and search.")]
KEEP = Annotated[
    Path | None, typer.Option(help="Folder for the experts; taken from there if it exists.")
]

CLASSIFIER = {"steps": 200, "batch": 48, "learning_rate": 0.1}
SHOTS = 10
SEARCH = CemSpec(iterations=20, population=24)
# Few-shot rows: how many examples, and how they are used.
FEW_SHOT = {
    "few-shot": (SHOTS, FewShotSpec(cem=SEARCH)),
    "few-shot, light": (3, FewShotSpec(cem=CemSpec(iterations=10, population=24))),
}
VARIANTS = {
    "few-shot, per layer": (SHOTS, FewShotSpec(per="layer", cem=SEARCH)),
    "few-shot, without the base, normalised": (SHOTS, FewShotSpec(others=False, cem=SEARCH)),
    "few-shot, without the base, free": (
        SHOTS,
        FewShotSpec(normalised=False, others=False, cem=SEARCH),
    ),
}


@app.command()
def choosing(seed: SEED = 0, keep: KEEP = None) -> None:
    """One expert for each prompt; and rows to compare all strategies with."""
    demo, started = Demo(), time.perf_counter()
    experts = _experts(demo, seed, keep)
    say("experts", started)
    groups = attributes(demo.training)
    named = {name: [e.turn for e in _spread(groups[name])] for name in SKILLS}
    model = AdaptiveModel(
        demo.base,
        demo.tokenizer,
        {name: experts[name] for name in SKILLS},
        classifier=_classifier(demo, named, seed),
        template="{prompt}",
    )
    say("classifier", started)
    rows: dict[str, Any] = {"base": row(demo.graded(None), 0)}
    confusion, timings = {}, {}
    for strategy in ("prompt", "classifier"):
        rows[strategy], confusion[strategy], timings[strategy] = _dispatched(demo, model, strategy)
        say(f"{strategy}: {timings[strategy]}", started)
    figures = {
        "rows": rows | _compared(demo, experts, seed),
        "timings": timings,
        "confusion": confusion,
        "tasks": [str(task) for task in demo.tasks],
    }
    finish("choosing", seed, figures, started)


@app.command()
def mixing(seed: SEED = 0, keep: KEEP = None) -> None:
    """A mixture of all experts for each task, found by a few answered prompts."""
    _mix("mixing", FEW_SHOT, seed, keep)


@app.command()
def variants(seed: SEED = 0, keep: KEEP = None) -> None:
    """Coefficients per layer, and the paper's form, without the base."""
    _mix("variants", VARIANTS, seed, keep)


def _mix(
    part: str, tried: Mapping[str, tuple[int, FewShotSpec]], seed: int, keep: Path | None
) -> None:
    demo, started = Demo(), time.perf_counter()
    experts = _experts(demo, seed, keep)
    say("experts", started)
    rows, timings, alpha = _few_shot(demo, experts, tried, seed, started)
    figures = {
        "rows": rows,
        "timings": timings,
        "alpha": alpha,
        "names": [*experts, OTHERS],
        "tasks": [str(task) for task in demo.tasks],
    }
    finish(part, seed, figures, started)


def _experts(demo: Demo, seed: int, keep: Path | None) -> dict[str, Expert]:
    """One for each skill and one for each format, fitted to all training tasks that have it."""
    groups = attributes(demo.training)
    if keep is not None and keep.is_dir():
        return {name: Expert.load(keep / name) for name in groups}
    data = [demo.encoded(_spread(tasks)) for tasks in groups.values()]
    fitted = fit(demo.base, data, seed)
    experts = {
        name: demo.base.expert({module: z[k] for module, z in fitted.items()})
        for k, name in enumerate(groups)
    }
    if keep is not None:
        for name, expert in experts.items():
            expert.save(keep / name)
    return experts


def _few_shot(
    demo: Demo,
    experts: Mapping[str, Expert],
    variants: Mapping[str, tuple[int, FewShotSpec]],
    seed: int,
    started: float,
) -> tuple[dict[str, Any], dict[str, dict[str, float]], dict[str, Any]]:
    """Rows, seconds of both passes over all tasks, and coefficients ``[task][expert]``."""
    model = AdaptiveModel(demo.base, demo.tokenizer, experts)
    rows, timings, alpha = {}, {}, {}
    for name, (shots, spec) in variants.items():
        found = [model.few_shot(_shots(t, shots, seed), spec, seed=seed) for t in demo.tasks]
        clock = time.perf_counter()
        rows[name] = row(demo.graded(stack([each.expert for each in found])))
        timings[name] = {
            "first pass": sum(each.seconds for each in found),
            "second pass": time.perf_counter() - clock,
        }
        alpha[name] = [each.alpha.mean(0).tolist() for each in found]
        say(name, started)
    return rows, timings, alpha


def attributes(tasks: Sequence[Task]) -> dict[str, list[Task]]:
    """The training tasks of each skill, then of each format."""
    skills = {name: [task for task in tasks if task.skill == name] for name in SKILLS}
    return skills | {name: [task for task in tasks if task.format == name] for name in FORMATS}


def _spread(tasks: Sequence[Task], count: int = 480) -> list[Any]:
    """About ``count`` training examples, as many of each task."""
    each = -(-count // len(tasks))
    return [example for task in tasks for example in task.examples(each, "train", 0)]


def _shots(task: Task, count: int, seed: int) -> list[Example]:
    """Answered prompts about training words, so that none is among the test's."""
    return [example.turn for example in task.examples(count, "train", 100 + seed)]


def _classifier(demo: Demo, named: Mapping[str, Sequence[Example]], seed: int) -> Expert:
    data = encode(demo.tokenizer, classification_examples(named, "{prompt}"))
    fitted = fit_experts(
        demo.base,
        [data],
        steps=int(CLASSIFIER["steps"]),
        batch=int(CLASSIFIER["batch"]),
        learning_rate=CLASSIFIER["learning_rate"],
        seed=seed,
    )
    return demo.base.expert({name: z[0] for name, z in fitted.items()})


def _dispatched(
    demo: Demo, model: AdaptiveModel, strategy: Any
) -> tuple[dict[str, Any], list[list[float]], dict[str, float]]:
    """Grades, shares ``[skill][chosen category]``, and seconds of both passes."""
    flat = [prompt for prompts in demo.prompts for prompt in prompts]
    answers = model.respond(flat, strategy, max_new_tokens=24)
    skills, columns = list(SKILLS), model.categories
    counts = torch.zeros(len(skills), len(columns))
    for i, answer in enumerate(answers):
        counts[skills.index(demo.tasks[i // bench.ASKED].skill), columns.index(answer.expert)] += 1
    texts = [answer.response for answer in answers]
    grades = demo.grade([texts[i : i + bench.ASKED] for i in range(0, len(texts), bench.ASKED)])
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    return row(grades), shares.tolist(), dict(model.timings)


def _compared(demo: Demo, experts: Mapping[str, Expert], seed: int) -> dict[str, Any]:
    """What to hold the strategies against: told what to mix, generated, trained."""

    def one(name: Callable[[Task], str]) -> dict[str, Tensor]:
        return stack([experts[name(task)] for task in demo.tasks])

    skill, form = one(lambda task: task.skill), one(lambda task: task.format)
    added = {name: z + form[name] - 1 for name, z in skill.items()}
    own = fit(demo.base, demo.own_data, seed)
    rows = {
        "told the skill: its expert": row(demo.graded(skill)),
        "told skill and format: both experts added": row(demo.graded(added)),
        "SVF trained on the task's answers": row(demo.graded(own)),
    }
    for label, folder in (("MSE", "generator-mse"), ("MSE, end to end", "generator")):
        generator = Generator.from_pretrained(DEMO_MODELS / folder)
        adapters = generator.generate(
            [[e.prompt for e in task.examples(8, "train", 5)] for task in demo.tasks]
        )
        stacked = {
            key: torch.stack([each.tensors[key] for each in adapters])
            for key in adapters[0].tensors
        }
        grades = demo.graded_lora(stacked, adapters[0].scaling)
        rows[f"generated LoRA, {label} (shipped, one seed)"] = row(grades)
    return rows


@app.command()
def plot() -> None:
    """Write confusion matrices and learned coefficients beside the results."""
    import matplotlib.pyplot as plt

    if results := bench.load("choosing"):
        skills = [s for s in SKILLS if any(t.startswith(f"{s},") for t in results[0]["tasks"])]
        kept = [list(SKILLS).index(skill) for skill in skills]
        figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained", sharey=True)
        for axis, strategy in zip(axes, ("prompt", "classifier"), strict=True):
            shares = torch.tensor([result["confusion"][strategy] for result in results]).mean(0)
            _heatmap(axis, shares[kept], skills, [*SKILLS, OTHERS])
            axis.set_title(f"strategy {strategy!r}")
            axis.set_xlabel("share of prompts by chosen expert")
        axes[0].set_ylabel("skill that the prompts ask for")
        _save(figure, "experts-confusion.png")
    if results := bench.load("mixing"):
        figure, axis = plt.subplots(figsize=(11, 5.2), layout="constrained")
        alpha = torch.tensor([result["alpha"]["few-shot"] for result in results]).mean(0)
        _heatmap(axis, alpha, results[0]["tasks"], results[0]["names"])
        axis.set_title(f"few-shot: coefficients of the experts, means of {len(results)} seeds")
        axis.set_xlabel("experts: skills, then answer formats")
        axis.set_ylabel("unseen task")
        axis.axvline(len(SKILLS) - 0.5, color="black", linewidth=0.8)
        _save(figure, "experts-alpha.png")


def _save(figure: Any, name: str) -> None:
    with atomic_file(RESULTS / name) as staged:
        figure.savefig(staged, dpi=130, metadata={"Software": None})
    print(f"Wrote {RESULTS / name}.")


def _heatmap(axis: Any, values: Tensor, rows: list[str], columns: list[str]) -> None:
    limit = values.abs().max().item()
    axis.imshow(values.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axis.set_xticks(range(len(columns)), columns, rotation=90)
    axis.set_yticks(range(len(rows)), rows)
    axis.tick_params(length=0)
    for y, x in (values.abs() >= 0.3).nonzero().tolist():
        value = values[y, x].item()
        colour = "white" if abs(value) > 0.6 * limit else "black"  # on a dark cell
        axis.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=7, color=colour)


if __name__ == "__main__":
    app()
