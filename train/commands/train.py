"""``dnd-fast train``."""

from __future__ import annotations

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
    from dnd_fast.train.generator.config import TrainerConfig
    from dnd_fast.train.generator.trainer import StepMetrics


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
    """Precision of the passes, and of the base's weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Optimizer(StrEnum):
    """Optimiser; weights are float32 in both."""

    adamw = "adamw"
    adamw8bit = "adamw8bit"


class Gpu(StrEnum):
    """Device whose rates an estimate assumes."""

    h200 = "h200"
    a100 = "a100"
    cpu = "cpu"


def train(
    recipe: Annotated[str, typer.Option(help="A recipe's name or .toml file.")],
    collection: Annotated[
        Path | None, typer.Option(help="Folder of adapters, by dnd-fast collect.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; the same command resumes it.")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="A data set without adapters, or a folder of such, that phases with the objective "
            "'sft' draw from, too. May be repeated."
        ),
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
    encoder: Annotated[
        str | None, typer.Option(help="Another text encoder than the recipe's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and draws.")] = 0,
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="Precision of the passes.", show_default="bfloat16 on a GPU, float32 elsewhere"
        ),
    ] = None,
    base_dtype: Annotated[
        Precision | None,
        typer.Option(
            help="Dtype of the base's weights.",
            show_default="the passes'; on a CPU, if the recipe chooses layers, the faster",
        ),
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
        Path | None, typer.Option(help="Folder for embedded texts.", show_default="in --out")
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only say what memory and time it would take.")
    ] = False,
    gpu: Annotated[
        Gpu, typer.Option(help="Device to estimate for, where this machine has no GPU.")
    ] = Gpu.h200,
    gpu_memory: Annotated[
        float | None,
        typer.Option(
            help="Memory of each GPU in GB.", show_default="this machine's, or the kind's"
        ),
    ] = None,
    gpus: Annotated[int, typer.Option(help="GPUs to estimate for.", min=1)] = 1,
) -> None:
    """Train a generator on collected adapters.

    On several GPUs: torchrun --nproc-per-node 8 --no-python dnd-fast train …
    """
    import torch

    from dnd_fast.train.adapters.collection import Collection
    from dnd_fast.train.generator.config import TrainerConfig
    from dnd_fast.train.generator.distributed import DistributedContext
    from dnd_fast.train.generator.resolve import resolve_recipe, resolve_run
    from dnd_fast.train.generator.run import train_run

    on_gpu = gpu is not Gpu.cpu if estimate else torch.cuda.is_available()
    trainer_config = TrainerConfig(
        bf16=precision is Precision.bfloat16 if precision else on_gpu,
        base_dtype=base_dtype.value if base_dtype else None,
        optimizer=optimizer.value,
        micro_batch=micro_batch,
        checkpointing=checkpointing,
        shard=shard,
        workers=workers,
        save_every=save_every,
        evaluate_every=evaluate_every,
    )
    resolved, loaded_encoder = resolve_recipe(recipe, phases=phases, encoder=encoder)
    if estimate:
        _print_estimates(resolved, trainer_config, gpu.value, gpu_memory, gpus)
        return
    if collection is None or out is None:
        raise InvalidInput("give --collection and --out; only --estimate goes without them.")
    adapters = Collection.open(collection)
    context = DistributedContext.start()
    try:
        run_config = resolve_run(
            resolved,
            adapters,
            trainer_config,
            context,
            hold_out=hold_out or [],
            form=form.value,
            strategy=strategy.value,
            candidates=candidates,
            seed=seed,
            data=data or [],
        )
        with progress_bars() if context.main else nullcontext(_silent) as report:

            def on_step_end(metrics: StepMetrics) -> None:
                stage = f"train ({metrics.objective}), loss"
                report(stage, metrics.done, metrics.steps, f" {metrics.loss:.4g}")

            trained = train_run(
                run_config,
                adapters,
                out,
                context=context,
                encoder=loaded_encoder,
                keep=keep,
                cache=cache,
                trackers=track or [],
                progress=report,
                on_step_end=on_step_end,
            )
    finally:
        context.end()
    if context.main:
        state = "Wrote a generator to" if trained else "Already finished:"
        console.print(f"{state} [bold]{escape(str(out / 'generator'))}[/bold].")


def _silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Report nothing: only one process shows progress."""


def _print_estimates(
    recipe: Recipe, trainer_config: TrainerConfig, gpu: str, gpu_memory: float | None, gpus: int
) -> None:
    """Print what a run would take on each GPU; raise where it does not fit, with what would."""
    from rich.table import Table

    from dnd_fast.train.generator.resolve import estimate_run

    memory = None if gpu_memory is None else 1e9 * gpu_memory
    with console.status("counting"):
        fitted, estimates = estimate_run(
            recipe, trainer_config, memory=memory, gpus=gpus, device=gpu
        )
    table = Table(title=f"{recipe.name}, on each of {gpus} x {gpu}", box=None)
    table.add_column("phase")
    for estimate in estimates:
        table.add_column(estimate.phase.objective, justify="right")
    for name in ("weights", "gradients", "optimizer", "activations", "workspace", "base", "total"):
        table.add_row(f"{name}, GB", *(f"{getattr(e, name) / 1e9:.2f}" for e in estimates))
    table.add_row("adapters in a pass", *(str(fitted.pass_size(e.phase, gpus)) for e in estimates))
    table.add_row("seconds a step", *(f"{e.seconds:.3g}" for e in estimates))
    table.add_row("hours in all", *(f"{e.seconds * e.phase.steps / 3600:.3g}" for e in estimates))
    console.print(table)
    console.print(
        "Memory is counted, with texts as long as the condition; time is predicted from assumed "
        "rates."
    )
