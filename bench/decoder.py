"""The decoder alone: direct convolutions against the plan, side by side in one run.

    python -m bench.decoder --recipe common-sense-0.5b

Weights are random. Every variant is timed in turn, round by round, so that a machine that slows
down slows all of them; before that, the planned convolutions must agree with float64, with few
channels.
"""

from __future__ import annotations

import concurrent.futures
import copy
import gc
import json
import multiprocessing
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import conv2d

from dnd_fast.bench.results import RESULTS, provenance, write
from dnd_fast.decoder import HyperConvDecoder
from dnd_fast.kernels.fft_conv import fft_conv2d
from dnd_fast.kernels.plan import DecoderPlan, calibrate, plan_decoder
from dnd_fast.recipe import DecoderSpec, Recipe

EAGER_FP32 = "eager direct, float32"
EAGER_BF16 = "eager direct, bfloat16 autocast"
PLANNED = "planned, float32"
console = Console()


def main(
    recipe: Annotated[str, typer.Option(help="A recipe's name or file.")] = "common-sense-0.5b",
    rounds: Annotated[int, typer.Option(help="Timed rounds after one that warms up.")] = 3,
    memory: Annotated[float, typer.Option(help="GB for the planned weights.")] = 10.5,
    save: Annotated[bool, typer.Option(help="Write bench/results/decoder-RECIPE.json.")] = False,
) -> None:
    """Eager direct (float32, bfloat16 autocast) and planned (float32), interleaved."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = Recipe.load(recipe).decoder
    profile = calibrate(device)
    plan = plan_decoder(spec.features, spec.kernel_size, profile, memory=memory * 1e9)
    console.print(f"{recipe} on {profile.name}; checking the plan against float64 …")
    error = _error_on_a_slice(plan, device)
    if error > 1e-5:
        raise SystemExit(f"the plan's relative error is {error:.1e}: no figures on a wrong result.")
    figures = {"recipe": recipe, "relative_error": error, **_timings(spec, plan, device, rounds)}
    figures["peak_memory_gb"] = _peak_memory(spec, plan, device) / 1e9
    _print(figures)
    if save:
        console.print(f"Wrote {write(f'decoder-{Recipe.load(recipe).name}', figures)}.")
    print(json.dumps(provenance() | figures))


def _timings(
    spec: DecoderSpec, plan: DecoderPlan, device: torch.device, rounds: int
) -> dict[str, Any]:
    torch.manual_seed(0)
    decoder = HyperConvDecoder(spec.features, spec.kernel_size).to(device).requires_grad_(False)
    x = torch.randn(1, *decoder.condition_shape, device=device)
    planned = copy.deepcopy(decoder)
    start = time.perf_counter()
    planned.set_plan(plan, weights="cached")
    preparation = time.perf_counter() - start

    def autocast_pass() -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return decoder(x)

    variants: dict[str, Callable[[], Tensor]] = {
        EAGER_FP32: lambda: decoder(x),
        EAGER_BF16: autocast_pass,
        PLANNED: lambda: planned(x),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    outputs: dict[str, Tensor] = {}
    with console.status("timing"):
        for turn in range(rounds + 1):
            for name, run in variants.items():
                start = time.perf_counter()
                outputs[name] = run()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if turn:  # the first round warms up
                    seconds[name].append(time.perf_counter() - start)
    reference = outputs[EAGER_FP32].double()
    middle = {name: median(values) for name, values in seconds.items()}
    direct_flops = sum(choice.shape.direct_flops for choice in plan.convolutions)
    planned_flops = sum(choice.flops for choice in plan.convolutions)
    return {
        "seconds": {name: sorted(values) for name, values in seconds.items()},
        "difference_from_eager_fp32": {
            name: ((out.double() - reference).norm() / reference.norm()).item()
            for name, out in outputs.items()
        },
        "gflops_done": {
            name: (planned_flops if name == PLANNED else direct_flops) / value / 1e9
            for name, value in middle.items()
        },
        "speedup_over_eager_fp32": middle[EAGER_FP32] / middle[PLANNED],
        "speedup_over_eager_bf16": middle[EAGER_BF16] / middle[PLANNED],
        "arithmetic_saved": direct_flops / planned_flops,
        "predicted_seconds": plan.seconds,
        "preparation_seconds": preparation,
        "planned_weights_gb": plan.weight_bytes / 1e9,
    }


def markdown() -> str:
    """README's table from the committed results: ratios within one run."""
    results = sorted(RESULTS.glob("decoder-*.json"))
    if not results:
        return "No results are committed yet."
    lines = [
        "| recipe, one adapter | machine | against eager float32 | against eager bfloat16 | "
        "arithmetic saved | peak memory | difference from eager float32 | timed rounds |",
        "| --- |" + " --- |" * 7,
    ]
    for path in results:
        figures = json.loads(path.read_text())
        lines.append(
            f"| {figures['recipe']} | {figures['device']} "
            f"| {figures['speedup_over_eager_fp32']:.1f}x faster "
            f"| {figures['speedup_over_eager_bf16']:.1f}x faster "
            f"| {figures['arithmetic_saved']:.1f}x | {figures['peak_memory_gb']:.1f} GB "
            f"| {figures['difference_from_eager_fp32'][PLANNED]:.1e} "
            f"| {len(figures['seconds'][PLANNED])} |"
        )
    return "\n".join(lines)


def _error_on_a_slice(plan: DecoderPlan, device: torch.device) -> float:
    """Largest relative error of the plan's tiles against float64, with few channels."""
    errors = [0.0]
    for choice in plan.convolutions:
        shape = choice.shape
        if choice.tiles is None:
            continue
        channels = min(8, shape.channels_in)
        x = torch.randn(1, channels, shape.height, shape.width, device=device)
        weight = torch.randn(4, channels, shape.kernel, shape.kernel, device=device)
        expected = conv2d(x.double(), weight.double(), padding=shape.kernel // 2)
        found = fft_conv2d(x, weight, choice.tiles).double()
        errors.append(((found - expected).norm() / expected.norm()).item())
    return max(errors)


def _peak_memory(spec: DecoderSpec, plan: DecoderPlan, device: torch.device) -> int:
    """Bytes at most in use while a fresh process prepares the planned decoder and runs it."""
    gc.collect()  # decoders are in reference cycles; two must not be in memory beside the third
    with console.status("measuring memory in a process of its own"):
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
            return pool.submit(_planned_pass, spec, plan, device).result()


def _planned_pass(spec: DecoderSpec, plan: DecoderPlan, device: torch.device) -> int:
    decoder = HyperConvDecoder(spec.features, spec.kernel_size).to(device).requires_grad_(False)
    decoder.set_plan(plan, weights="cached")
    decoder(torch.randn(1, *decoder.condition_shape, device=device))
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not getrusage's maximum, which a child process takes over from its parent.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])


def _print(figures: dict[str, Any]) -> None:
    table = Table("", "median s", "spread", "GFLOP/s done", "from eager fp32", box=None)
    for name, values in figures["seconds"].items():
        table.add_row(
            name,
            f"{median(values):.2f}",
            f"{values[0]:.2f} to {values[-1]:.2f}",
            f"{figures['gflops_done'][name]:.0f}",
            f"{figures['difference_from_eager_fp32'][name]:.1e}",
        )
    console.print(table)
    console.print(
        f"{figures['speedup_over_eager_fp32']:.1f}x eager float32, "
        f"{figures['speedup_over_eager_bf16']:.1f}x eager bfloat16; peak memory "
        f"{figures['peak_memory_gb']:.1f} GB, preparation {figures['preparation_seconds']:.0f} s."
    )


if __name__ == "__main__":
    typer.run(main)
