"""The command line: ``dnd-fast --help``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from dnd_fast.errors import InvalidInput
from dnd_fast.files import atomic_folder, write_json

if TYPE_CHECKING:
    from dnd_fast.kernels.plan import DecoderPlan

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Text prompts in, a LoRA adapter for a language model out, in one forward pass.

Start with [bold]dnd-fast demo[/bold].""",
)
console = Console()
GENERATOR_HELP = "'demo', a folder, or a hub id."


class Impl(StrEnum):
    """How the decoder runs."""

    auto = "auto"
    triton = "triton"
    torch = "torch"


class PlanDevice(StrEnum):
    """Whose rates a plan assumes."""

    here = "here"
    cpu = "cpu"
    a100 = "a100"
    h200 = "h200"


@app.command()
def generate(
    prompts: Annotated[
        Path, typer.Argument(help="A .txt file, one prompt a line, or a .jsonl with key 'prompt'.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the adapter, in PEFT's format.")],
    generator: Annotated[str, typer.Option(help=GENERATOR_HELP)] = "demo",
    device: Annotated[str | None, typer.Option(help="'cpu', 'cuda', … [default: best]")] = None,
    impl: Annotated[Impl, typer.Option(help="How the decoder runs.")] = Impl.auto,
    seed: Annotated[int, typer.Option(help="Of the choice among more prompts than needed.")] = 0,
) -> None:
    """Generate an adapter for a task from its unlabelled prompts."""
    from dnd_fast.generator import Generator
    from dnd_fast.generator import generate as generate_adapter

    with console.status("loading the generator"):
        loaded = Generator.from_pretrained(generator)
    adapter = generate_adapter(prompts, loaded, device=device, impl=impl.value, seed=seed)
    adapter.save(out)
    stages = ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in loaded.timings.items())
    base = adapter.config["base_model_name_or_path"] or "its base model"
    console.print(
        f"Wrote an adapter for {escape(base)} to [bold]{escape(str(out))}[/bold] ({stages})."
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the adapter.")] = Path("adapter"),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures to this file.")
    ] = None,
    retrain: Annotated[
        bool, typer.Option(help="First rebuild base and generator from nothing (twenty minutes).")
    ] = False,
) -> None:
    """See it work: an adapter for a task that the embedded generator never saw."""
    if retrain:
        from dnd_fast.demo import retrain as pipeline
        from dnd_fast.generator import DEMO_MODELS

        with progress_bars() as progress:
            trained = pipeline.retrain(pipeline.SHIPPED_SEED, progress)
        pipeline.save(trained, DEMO_MODELS)
        console.print(f"Rebuilt {DEMO_MODELS}.")
    from dnd_fast.demo.show import show

    figures = show(console, out)
    if json_file is not None:
        with atomic_folder(json_file.parent) as folder:
            write_json(folder / json_file.name, figures)


@app.command()
def info(
    source: Annotated[str, typer.Argument(help=f"A generator ({GENERATOR_HELP}) or an adapter.")],
) -> None:
    """Describe a generator or an adapter."""
    from rich.table import Table

    table = Table(box=None, show_header=False)
    described = _describe_adapter if (Path(source) / "adapter_config.json").exists() else None
    for name, value in (described or _describe_generator)(source).items():
        table.add_row(name, escape(str(value)))
    console.print(table)


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or .toml file.")],
    device: Annotated[
        PlanDevice, typer.Option(help="'here' measures this machine for two seconds.")
    ] = PlanDevice.here,
    batch: Annotated[int, typer.Option(help="Adapters per pass.")] = 1,
    memory: Annotated[float | None, typer.Option(help="GB for the convolutions' weights.")] = None,
) -> None:
    """Show which algorithm would run each convolution of a decoder, and its predicted time."""
    from dnd_fast.kernels.plan import PROFILES, calibrate, plan_decoder
    from dnd_fast.recipe import Recipe

    spec = Recipe.load(recipe).decoder
    profile = calibrate() if device is PlanDevice.here else PROFILES[device.value]
    limit = None if memory is None else 1e9 * memory
    try:
        chosen = plan_decoder(spec.features, spec.kernel_size, profile, batch=batch, memory=limit)
    except ValueError as error:
        raise InvalidInput(str(error)) from error
    direct = plan_decoder(spec.features, spec.kernel_size, profile, batch=batch, algorithm="direct")
    _print_plan(chosen, direct, f"{recipe}, batch {batch}, on {profile.name}")


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A released .pth or .safetensors file.")],
    recipe: Annotated[str, typer.Option(help="What it was trained for: a recipe's name or file.")],
    out: Annotated[Path, typer.Option(help="Folder for the generator.")],
) -> None:
    """Convert a checkpoint published with the paper's code into a generator."""
    from dnd_fast.recipe import Recipe
    from dnd_fast.released import load_generator

    load_generator(checkpoint, Recipe.load(recipe)).save_pretrained(out)
    console.print(f"Wrote a generator to [bold]{escape(str(out))}[/bold].")


@contextmanager
def progress_bars() -> Iterator[Any]:
    """One bar per stage, with the time left; yields the function to report progress to."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        stages: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(stage, total=total)
            bars.update(stages[stage], completed=done)

        yield report


def main() -> None:
    """Entry point: unusable input and failures of the system end in one line, not a traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except (InvalidInput, OSError) as error:
        message = f"[red]error:[/red] {escape(str(error))}"
        Console(stderr=True).print(message, highlight=False, soft_wrap=True)
        sys.exit(1)


def _print_plan(chosen: DecoderPlan, direct: DecoderPlan, title: str) -> None:
    from rich.table import Table

    table = Table(title=title, box=None)
    table.add_column("convolution")
    for name in ("size", "channels", "DFT", "tiles", "GFLOP", "MB", "ms", "share"):
        table.add_column(name, justify="right")
    for each in chosen.convolutions:
        shape, tiles = each.shape, each.tiles
        table.add_row(
            shape.name,
            f"{shape.height}x{shape.width}",
            f"{shape.channels_in}→{shape.channels_out}",
            f"{tiles.height.dft}x{tiles.width.dft}" if tiles else "direct",
            str(tiles.tiles) if tiles else "",
            f"{each.flops / 1e9:.1f}",
            f"{each.weight_bytes / 1e6:.0f}",
            f"{1e3 * each.seconds:.3g}",
            f"{each.seconds / chosen.seconds:.0%}",
        )
    console.print(table)
    console.print("MB: of the weights as used. ms: predicted, like all times here.")
    for label, each_plan in (("this plan", chosen), ("all direct", direct)):
        flops = sum(each.flops for each in each_plan.convolutions)
        console.print(
            f"{label}: {flops / 1e12:.2f} TFLOP, weights {each_plan.weight_bytes / 1e9:.2f} GB, "
            f"predicted {1e3 * each_plan.seconds:.3g} ms"
        )
    console.print(f"predicted speed-up over direct: {direct.seconds / chosen.seconds:.1f}x")


def _describe_adapter(source: str) -> dict[str, Any]:
    from dnd_fast.adapter import Adapter

    adapter = Adapter.load(source)
    return {
        "adapter": source,
        "base model": adapter.config.get("base_model_name_or_path"),
        "rank, alpha": f"{adapter.config['r']}, {adapter.config['lora_alpha']}",
        "modules": len(adapter.modules),
        "parameters": f"{sum(tensor.numel() for tensor in adapter.tensors.values()):,}",
        "dtype": next(iter(adapter.tensors.values())).dtype,
    }


def _describe_generator(source: str) -> dict[str, Any]:
    from dnd_fast.generator import Generator

    generator = Generator.from_pretrained(source)
    condition, layout = generator.config.condition, generator.layout
    return {
        "generator": source,
        "base model": layout.base_model,
        "text encoder": condition.encoder,
        "condition": f"{condition.prompts} prompts of {condition.length} tokens",
        "decoder": " → ".join(str(tuple(shape)) for shape in generator.decoder.features),
        "kernel size": generator.decoder.kernel_size,
        "parameters": f"{sum(p.numel() for p in generator.parameters()):,}",
        "adapters": f"rank {layout.rank}, alpha {layout.lora_alpha}",
        "modules": len(layout.modules_),
        "tokens": f"{layout.num_tokens} of {layout.token_shape}, scale {layout.scale}",
    }


if __name__ == "__main__":
    main()
