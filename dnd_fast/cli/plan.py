"""``dnd-fast plan``."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from dnd_fast.console import Weights, console, progress_bars
from dnd_fast.errors import InvalidInput

if TYPE_CHECKING:
    from dnd_fast.kernels.device import DeviceProfile
    from dnd_fast.kernels.planner.cost_model import DecoderPlan


class PlanDevice(StrEnum):
    """Whose rates a plan assumes."""

    here = "here"
    cpu = "cpu"
    a100 = "a100"
    h200 = "h200"


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or .toml file.")],
    device: Annotated[
        PlanDevice, typer.Option(help="'here' measures this machine for two seconds.")
    ] = PlanDevice.here,
    batch: Annotated[int, typer.Option(help="Adapters per pass.", min=1)] = 1,
    memory: Annotated[float | None, typer.Option(help="GB for the convolutions' weights.")] = None,
    weights: Annotated[
        Weights | None,
        typer.Option(help="How transformed weights are kept.", show_default="cached"),
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
    from dnd_fast.kernels.planner.cost_model import bandwidth_bound_seconds, plan_decoder
    from dnd_fast.kernels.planner.measured_times import load_table
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
    _print_plan(chosen, direct, bandwidth_bound_seconds(*shapes, profile, batch), title)


def _measure(
    shapes: tuple[Any, int], profile: DeviceProfile, batch: int, weights: Any, device: str
) -> None:
    """Time convolutions and add the times to this device's table."""
    from dnd_fast.kernels.planner.measured_times import measure, save_table

    with progress_bars() as progress:
        times = measure(
            *shapes,
            profile,
            batch=batch,
            weights=weights,
            device=device,
            report=lambda done, total: progress("timing convolutions", done, total),
        )
    path = save_table(device, times)
    console.print(f"Wrote [bold]{escape(str(path))}[/bold].")


def _print_plan(chosen: DecoderPlan, direct: DecoderPlan, floor: float, title: str) -> None:
    from rich.table import Table

    table = Table(title=title, box=None)
    table.add_column("convolution")
    for name in ("size", "channels", "DFT", "tiles", "GFLOP", "MB", "ms", "share"):
        table.add_column(name, justify="right")
    for each in chosen.convolutions:
        shape, tiles = each.shape, each.fft_plan
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
