"""The command line: ``dnd-fast --help``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from dnd_fast.errors import InvalidInput
from dnd_fast.files import atomic_folder, write_json

if TYPE_CHECKING:
    from dnd_fast.kernels.device import DeviceProfile
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


class Weights(StrEnum):
    """How transformed weights are kept."""

    cached = "cached"
    streamed = "streamed"
    int8 = "int8"


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
    batch: Annotated[int, typer.Option(help="Adapters per pass.", min=1)] = 1,
    memory: Annotated[float | None, typer.Option(help="GB for the convolutions' weights.")] = None,
    weights: Annotated[
        Weights | None,
        typer.Option(help="How transformed weights are kept. [default: cached]"),
    ] = None,
    training: Annotated[
        bool, typer.Option("--training", help="Forward and backward pass, weights streamed.")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="First time this machine's convolutions, for minutes, and keep the times: they "
            "count instead of predictions from then on.",
        ),
    ] = False,
) -> None:
    """Show which algorithm would run each convolution of a decoder, and its predicted time."""
    import torch

    from dnd_fast.kernels.device import PROFILES, calibrate
    from dnd_fast.kernels.measured import load_table
    from dnd_fast.kernels.plan import floor_seconds, plan_decoder
    from dnd_fast.recipe import Recipe

    if measure and (training or device is not PlanDevice.here):
        raise InvalidInput("--measure is for inference on this machine: leave out other options.")
    spec = Recipe.load(recipe).decoder
    shapes = spec.features, spec.kernel_size
    here = "cuda" if torch.cuda.is_available() else "cpu"
    profile = calibrate(here) if device is PlanDevice.here else PROFILES[device.value]
    kept = weights or (Weights.streamed if training else Weights.cached)
    if measure:
        _measure(shapes, profile, batch, kept.value, here)
    table = load_table(here) if device is PlanDevice.here else None

    def planned(algorithm: Literal["auto", "direct"]) -> DecoderPlan:
        return plan_decoder(
            *shapes,
            profile,
            batch=batch,
            memory=1e9 * memory if memory and algorithm == "auto" else None,
            weights=kept.value,
            training=training,
            algorithm=algorithm,
            measured=table,
        )

    try:
        chosen, direct = planned("auto"), planned("direct")
    except ValueError as error:
        raise InvalidInput(str(error)) from error
    purpose = "a training step" if training else "one pass"
    title = f"{recipe}, {purpose} of batch {batch}, weights {kept.value}, on {profile.name}"
    _print_plan(chosen, direct, floor_seconds(*shapes, profile, batch), title)


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


def _measure(
    shapes: tuple[Any, int], profile: DeviceProfile, batch: int, weights: Any, device: str
) -> None:
    """Time convolutions and add the times to this device's table."""
    from dnd_fast.kernels.device import device_name
    from dnd_fast.kernels.measured import load_table, measure, table_path

    with progress_bars() as progress:
        found = measure(
            *shapes,
            profile,
            batch=batch,
            weights=weights,
            device=device,
            report=lambda done, total: progress("timing convolutions", done, total),
        )
    path = table_path(device)
    times = {**load_table(device), **found}
    with atomic_folder(path.parent) as folder:
        write_json(folder / path.name, {"device": device_name(device), "seconds": times})
    console.print(f"Wrote [bold]{escape(str(path))}[/bold].")


def _print_plan(chosen: DecoderPlan, direct: DecoderPlan, floor: float, title: str) -> None:
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
            each.algorithm,
            str(tiles.tiles) if tiles else "",
            f"{each.flops / 1e9:.0f}",
            f"{each.bytes_moved / 1e6:.0f}",
            _ms(each.seconds),
            f"{each.seconds / chosen.seconds:.0%}",
        )
    console.print(table)
    console.print("MB: moved. ms: predicted, or as measured where this device has a table.")
    for label, each_plan in (("this plan", chosen), ("all direct", direct)):
        flops = sum(each.flops for each in each_plan.convolutions)
        moved = sum(each.bytes_moved for each in each_plan.convolutions)
        console.print(
            f"{label}: {flops / 1e12:.2f} TFLOP, {moved / 1e9:.1f} GB moved, "
            f"weights {each_plan.weight_bytes / 1e9:.2f} GB, {_ms(each_plan.seconds)} ms"
        )
    console.print(f"physical floor, reading the raw weights once: {_ms(floor)} ms")
    console.print(f"speed-up over direct: {direct.seconds / chosen.seconds:.1f}x")


def _ms(seconds: float) -> str:
    """Three digits, never an exponent."""
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


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
