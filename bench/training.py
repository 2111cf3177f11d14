"""A training step of a decoder, forward and backward: direct against planned, in one run.

    python -m bench.training

Before anything is timed, gradients must agree with those of the direct form.
"""

from __future__ import annotations

import copy
import json
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import Tensor

from dnd_fast.bench.results import append, latest, provenance
from dnd_fast.bench.timing import console, difference, interleaved, speedup
from dnd_fast.decoder import HyperConvDecoder
from dnd_fast.kernels.device import calibrate
from dnd_fast.kernels.plan import plan_decoder
from dnd_fast.recipe import DecoderSpec, Recipe

# Small enough for a CPU, large enough that convolutions are all that counts.
MIDDLE = DecoderSpec([[64, 96, 128], [128, 64, 96], [256, 32, 96]], 9)
DIRECT, PLANNED = "direct, float32", "planned, float32"


def main(
    recipe: Annotated[
        str | None, typer.Option(help="A recipe. [default: a middle-sized decoder]")
    ] = None,
    batch: Annotated[int, typer.Option(help="Samples per step.")] = 4,
    rounds: Annotated[int, typer.Option(help="Timed rounds after one that warms up.")] = 5,
    save: Annotated[bool, typer.Option(help="Add them to bench/results/training.jsonl.")] = False,
) -> None:
    """Time forward and backward pass, interleaved."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = MIDDLE if recipe is None else Recipe.load(recipe).decoder
    name = "middle" if recipe is None else Recipe.load(recipe).name
    torch.manual_seed(0)
    direct = HyperConvDecoder(spec.features, spec.kernel_size, impl="torch").to(device)
    planned = copy.deepcopy(direct)
    plan = plan_decoder(
        spec.features,
        spec.kernel_size,
        calibrate(device),
        batch=batch,
        weights="streamed",
        training=True,
    )
    planned.set_plan(plan)
    x = torch.randn(batch, *direct.condition_shape, device=device)

    def step(decoder: HyperConvDecoder) -> Tensor:
        """All gradients, in one vector."""
        decoder.zero_grad()
        decoder(x).square().mean().backward()
        gradients = [each.grad for each in decoder.parameters() if each.grad is not None]
        return torch.cat([gradient.flatten() for gradient in gradients])

    variants = {DIRECT: lambda: step(direct), PLANNED: lambda: step(planned)}
    seconds, gradients = interleaved(variants, rounds, device)
    error = difference(gradients[PLANNED], gradients[DIRECT])
    if error > 1e-4:
        raise SystemExit(f"gradients differ by {error:.1e}: no figures on a wrong result.")
    figures: dict[str, Any] = {
        "decoder": name,
        "features": spec.features,
        "kernel_size": spec.kernel_size,
        "batch": batch,
        "seconds": seconds,
        "gradient_difference": error,
        "speedup": speedup(seconds, DIRECT, PLANNED),
    }
    table = Table("one step", "median s", "spread", "samples/s", box=None)
    for variant, values in seconds.items():
        middle = median(values)
        spread = f"{values[0]:.2f} to {values[-1]:.2f}"
        table.add_row(variant, f"{middle:.2f}", spread, f"{batch / middle:.2f}")
    console.print(table)
    console.print(f"{figures['speedup']:.1f}x faster, gradients differ by {error:.1e}.")
    if save:
        console.print(f"Wrote {append('training', figures)}.")
    print(json.dumps(provenance() | figures))


def markdown() -> str:
    """README's table from the committed results."""
    lines = [
        "| decoder | machine | training step, against direct float32 | gradients differ by |",
        "| --- | --- | --- | --- |",
    ]
    for figures in latest("training", "decoder", "batch", "device"):
        shapes = " → ".join(str(tuple(shape)) for shape in figures["features"])
        lines.append(
            f"| {shapes}, k = {figures['kernel_size']}, batch {figures['batch']} "
            f"| {figures['device']} | {figures['speedup']:.1f}x faster "
            f"| {figures['gradient_difference']:.1e} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
