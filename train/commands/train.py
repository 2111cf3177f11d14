"""``dnd-fast train``."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from dnd_fast.console import console, progress_bars
from dnd_fast.errors import InvalidInput

if TYPE_CHECKING:
    from dnd_fast.recipe import Recipe
    from dnd_fast.text.encoder import TextEncoder
    from dnd_fast.train.generator.distributed import DistributedContext
    from dnd_fast.train.generator.trainer import StepMetrics, TrainerConfig

SVF = "With --method svf"
SVF_OPTIONS = {"method", "recipe", "data", "base", "tokenizer", "out", "seed", "cache"}
GPU_MEMORY = {"h200": 141.0, "a100": 80.0, "cpu": 64.0}  # GB


class Method(StrEnum):
    """What is trained."""

    dnd = "dnd"
    svf = "svf"


class Form(StrEnum):
    """What of the examples becomes a condition."""

    prompt = "prompt"
    both = "prompt+answer"
    answer = "answer"
    mix = "mix"


class Strategy(StrEnum):
    """Which of x texts make a condition."""

    draw = "N<-x"
    all = "x<-x"


class Precision(StrEnum):
    """Of the forward and backward pass."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Optimizer(StrEnum):
    """Weights are float32 in both."""

    adamw = "adamw"
    adamw8bit = "adamw8bit"


class Gpu(StrEnum):
    """Whose rates an estimate assumes."""

    h200 = "h200"
    a100 = "a100"
    cpu = "cpu"


def train(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A recipe's name or .toml file; for an SVF expert a .toml of its settings.",
            show_default="for an SVF expert the paper's settings",
        ),
    ] = None,
    method: Annotated[
        Method, typer.Option(help="A generator (Drag-and-Drop), or an SVF expert (Transformer²).")
    ] = Method.dnd,
    collection: Annotated[
        Path | None, typer.Option(help="Folder of adapters, by dnd-fast collect.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; the same command goes on with it.")
    ] = None,
    hold_out: Annotated[
        list[str] | None,
        typer.Option(
            help="A data set not to train on, by name or a pattern such as 'arc*', or @FILE with "
            "names. May be repeated."
        ),
    ] = None,
    phases: Annotated[
        str | None,
        typer.Option(
            help="Objectives of the recipe's phases to run: 'mse', 'mse,sft'.", show_default="all"
        ),
    ] = None,
    form: Annotated[Form, typer.Option(help="What of the examples becomes a condition.")] = (
        Form.prompt
    ),
    strategy: Annotated[
        Strategy, typer.Option(help="Draw N of x texts each time, or use all x, with x = N.")
    ] = Strategy.draw,
    candidates: Annotated[
        int | None,
        typer.Option(
            help="x: the first so many texts of each data set.", show_default="all", min=1
        ),
    ] = None,
    extractor: Annotated[
        str | None, typer.Option(help="Another text encoder than the recipe's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights and draws.")] = 0,
    precision: Annotated[
        Precision | None,
        typer.Option(help="Of the passes.", show_default="bfloat16 on a GPU, float32 elsewhere"),
    ] = None,
    optimizer: Annotated[
        Optimizer, typer.Option(help="8 bits: a quarter of the state, by bitsandbytes.")
    ] = Optimizer.adamw,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            help="Adapters per pass and GPU; gradients add up over passes.",
            show_default="as many as fit",
            min=1,
        ),
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute activations again: less memory.")
    ] = False,
    shard: Annotated[
        bool, typer.Option("--shard", help="Share weights and state out to all GPUs (FSDP2).")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes that prepare batches.", min=0)] = 0,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.", min=1)] = 100,
    keep: Annotated[int, typer.Option(help="Checkpoints to keep, beside the best.", min=1)] = 2,
    evaluate_every: Annotated[
        int | None,
        typer.Option(
            help="Steps between losses on the held-out data sets.", show_default="never", min=1
        ),
    ] = None,
    track: Annotated[
        list[str] | None, typer.Option(help="'tensorboard' or 'wandb'. May be repeated.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder for embedded texts, or for the SVD of a base.",
            show_default="in --out; of an SVD none is kept",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="The task: .jsonl, 'prompt' and 'response'.", rich_help_panel=SVF),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The base: a folder or hub id.", rich_help_panel=SVF)
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder or hub id.", show_default="the base's", rich_help_panel=SVF),
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only say what memory and time it would take.")
    ] = False,
    gpu: Annotated[Gpu, typer.Option(help="To estimate for, where this machine has none.")] = (
        Gpu.h200
    ),
    gpu_memory: Annotated[
        float | None,
        typer.Option(help="GB of each GPU.", show_default="this machine's, or the kind's"),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="How many to estimate for.", show_default="1", min=1)
    ] = None,
) -> None:
    """Train a generator on collected adapters, or an SVF expert on a task.

    On several GPUs: torchrun --nproc-per-node 8 --no-python dnd-fast train …
    """
    import torch

    from dnd_fast.recipe import Recipe
    from dnd_fast.train.adapters.collection import Collection
    from dnd_fast.train.generator.distributed import DistributedContext
    from dnd_fast.train.generator.run import RunConfig, find_names, train_run
    from dnd_fast.train.generator.trainer import TrainerConfig

    if method is Method.svf:
        if data is None or base is None or out is None:
            raise InvalidInput("give --data, --base and --out to train an SVF expert.")
        _refuse_others(context, SVF_OPTIONS)
        _train_expert(recipe, data, base, tokenizer, out, seed, cache)
        return
    if data is not None or base is not None or tokenizer is not None:
        raise InvalidInput("--data, --base and --tokenizer are for --method svf.")
    if recipe is None:
        raise InvalidInput("give --recipe; only --method svf goes without one.")
    chosen, encoder = _with_phases(Recipe.load(recipe), phases), None
    if extractor is not None:
        chosen, encoder = _with_extractor(chosen, extractor)
    on_gpu = gpu is not Gpu.cpu if estimate else torch.cuda.is_available()
    options = TrainerConfig(
        bf16=precision is Precision.bfloat16 if precision else on_gpu,
        optimizer=optimizer.value,
        micro_batch=micro_batch,
        checkpointing=checkpointing,
        shard=shard,
        workers=workers,
        save_every=save_every,
        evaluate_every=evaluate_every,
    )
    if estimate:
        _estimate(chosen, options, gpu, gpu_memory, gpus)
        return
    if collection is None or out is None:
        raise InvalidInput("give --collection and --out; only --estimate goes without them.")
    opened = Collection.open(collection)
    held_out = tuple(find_names(opened, hold_out or []))
    setup = RunConfig(chosen, held_out, form.value, strategy.value, candidates, seed, options)
    world = DistributedContext.start()
    try:
        if on_gpu:
            setup = dataclasses.replace(setup, options=_fitted(chosen, options, world))
        with progress_bars() if world.main else nullcontext(_silent) as report:

            def on_step_end(record: StepMetrics) -> None:
                note = f" {record.loss:.4g}"
                report(f"train ({record.objective}), loss", record.done, record.steps, note)

            trained = train_run(
                setup,
                opened,
                out,
                world=world,
                encoder=encoder,
                keep=keep,
                cache=cache,
                trackers=track or [],
                progress=report,
                on_step_end=on_step_end,
            )
    finally:
        world.end()
    if world.main:
        state = "Wrote a generator to" if trained else "Already finished:"
        console.print(f"{state} [bold]{escape(str(out / 'generator'))}[/bold].")


def _refuse_others(context: typer.Context, known: set[str]) -> None:
    """Raise InvalidInput for an option that was given and would have no effect."""
    for name in context.params.keys() - known:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InvalidInput(f"--{name.replace('_', '-')} is not for --method svf.")


def _train_expert(
    settings: str | None,
    data: Path,
    base: str,
    tokenizer: str | None,
    out: Path,
    seed: int,
    cache: Path | None,
) -> None:
    import torch

    from dnd_fast.base_model import load_base
    from dnd_fast.recipe import from_table, read_toml
    from dnd_fast.text.datasets import Dataset
    from dnd_fast.train.experts.reinforce import ExpertSpec, train_expert

    spec = (
        ExpertSpec() if settings is None else from_table(ExpertSpec, read_toml(settings), settings)
    )
    examples = Dataset.read(data).examples
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with console.status("loading the base"):
        model, words = load_base(base, tokenizer, device=device)
    with progress_bars() as report:
        train_expert(
            model,
            words,
            examples,
            spec,
            seed=seed,
            out=out,
            cache=cache,
            progress=lambda done, total: report("train the expert", done, total),
        )
    console.print(f"Wrote an expert to [bold]{escape(str(out))}[/bold].")


def _silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Only one process shows progress."""


def _with_phases(recipe: Recipe, wanted: str | None) -> Recipe:
    if wanted is None:
        return recipe
    names = wanted.split(",")
    known = [phase.objective for phase in recipe.phases]
    if unknown := [name for name in names if name not in known]:
        raise InvalidInput(
            f"--phases {wanted}: recipe {recipe.name} has no phase {unknown[0]!r}; it has "
            f"{', '.join(known) or 'none'}. Add a [[phases]] table to a recipe file of your own."
        )
    kept = tuple(phase for phase in recipe.phases if phase.objective in names)
    return dataclasses.replace(recipe, phases=kept)


def _with_extractor(recipe: Recipe, name: str) -> tuple[Recipe, TextEncoder]:
    """The recipe for another text encoder, whose width the decoder takes."""
    from dnd_fast.text.encoder import TextEncoder

    encoder = TextEncoder.from_pretrained(name)
    (prompts, length, _), *others = recipe.decoder.features
    features = [[prompts, length, encoder.width], *others]
    return (
        dataclasses.replace(
            recipe,
            condition=dataclasses.replace(recipe.condition, encoder=name),
            decoder=dataclasses.replace(recipe.decoder, features=features),
        ),
        encoder,
    )


def _fitted(recipe: Recipe, options: TrainerConfig, world: DistributedContext) -> TrainerConfig:
    """The options, in passes that fit; what cannot fit is refused before hours are spent."""
    import torch

    from dnd_fast.decoder.planning import kind_of
    from dnd_fast.train.generator.estimate import check_fit, fit_passes

    memory = torch.cuda.get_device_properties(world.device).total_memory
    kind = kind_of(world.device)
    options = fit_passes(recipe, options, memory=memory, gpus=world.size, device=kind)
    check_fit(recipe, options, memory=memory, gpus=world.size, device=kind)
    return options


def _estimate(
    recipe: Recipe, options: TrainerConfig, gpu: Gpu, gpu_memory: float | None, gpus: int | None
) -> None:
    """Print what a run would take on each GPU, or say what would make it fit."""
    import torch
    from rich.table import Table

    from dnd_fast.train.generator.estimate import check_fit, fit_passes

    memory = 1e9 * (gpu_memory or GPU_MEMORY[gpu.value])
    if gpu_memory is None and torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
    count = gpus or 1
    with console.status("counting"):
        options = fit_passes(recipe, options, memory=memory, gpus=count, device=gpu.value)
        found = check_fit(recipe, options, memory=memory, gpus=count, device=gpu.value)
    table = Table(title=f"{recipe.name}, on each of {count} x {gpu.value}", box=None)
    table.add_column("phase")
    for each in found:
        table.add_column(each.phase.objective, justify="right")
    for name in ("weights", "gradients", "optimizer", "activations", "workspace", "base", "total"):
        values = [getattr(each, name) for each in found]
        table.add_row(f"{name}, GB", *(f"{value / 1e9:.2f}" for value in values))
    sizes = [options.pass_size(each.phase, count) for each in found]
    table.add_row("adapters in a pass", *map(str, sizes))
    table.add_row("seconds a step", *(f"{each.seconds:.3g}" for each in found))
    hours = [each.seconds * each.phase.steps / 3600 for each in found]
    table.add_row("hours in all", *(f"{value:.3g}" for value in hours))
    console.print(table)
    console.print(
        "Memory is counted, with texts as long as the condition; time is predicted from assumed "
        "rates."
    )
