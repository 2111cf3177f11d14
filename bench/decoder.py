"""The decoder alone: direct convolutions against the plan, side by side in one run.

    python -m bench.decoder --recipe common-sense-0.5b

Weights are random. Before anything is timed, the planned convolutions must agree with float64, with
few channels.
"""

from __future__ import annotations

import concurrent.futures
import copy
import gc
import json
import multiprocessing
import time
from collections.abc import Callable
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import Tensor
from torch.nn.functional import conv2d

from dnd_fast.bench.harness.results import append, latest, provenance
from dnd_fast.bench.harness.timing import (
    console,
    difference,
    interleaved,
    peak_memory,
    require_steady,
    speedup,
)
from dnd_fast.decoder.model import HyperConvDecoder
from dnd_fast.decoder.planning import plan_for
from dnd_fast.kernels.conv2d import fft_conv2d
from dnd_fast.kernels.planner.cost_model import DecoderPlan
from dnd_fast.recipe import DecoderSpec, Recipe

EAGER_FP32 = "eager direct, float32"
EAGER_BF16 = "eager direct, bfloat16 autocast"
COMPILED_FP32 = "compiled direct, float32"
COMPILED_BF16 = "compiled direct, bfloat16 autocast"
PLANNED = "planned, float32"
PLANNED_BF16 = "planned, bfloat16"
SEED = 0


def main(
    recipe: Annotated[str, typer.Option(help="A recipe's name or file.")] = "common-sense-0.5b",
    rounds: Annotated[int, typer.Option(help="Timed rounds after one that warms up.")] = 3,
    memory: Annotated[float, typer.Option(help="GB that the planned decoder may take.")] = 12,
    compiled: Annotated[bool, typer.Option(help="Also time torch.compile: long on a CPU.")] = False,
    noisy: Annotated[bool, typer.Option(help="Report whatever the spread.")] = False,
    save: Annotated[bool, typer.Option(help="Add them to bench/results/decoder.jsonl.")] = False,
) -> None:
    """Eager and compiled direct (float32, bfloat16 autocast) against planned, interleaved."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = Recipe.load(recipe).decoder
    torch.manual_seed(SEED)
    decoder = HyperConvDecoder(spec.features, spec.kernel_size, impl="torch")
    decoder.to(device).requires_grad_(False)
    plan = plan_for(decoder, memory=1e9 * memory)
    console.print(f"{recipe}: checking the plan against float64 …")
    error = require_exact(plan, device)
    figures = {"recipe": recipe, "seed": SEED, "relative_error": error}
    figures |= _timings(decoder, plan, rounds, compiled)
    figures["spread"] = require_steady(figures["seconds"], noisy)
    del decoder
    figures["peak_memory_gb"] = _peak_memory(spec, plan, device) / 1e9
    _print(figures)
    if save:
        console.print(f"Wrote {append('decoder', figures)}.")
    print(json.dumps(provenance() | figures))


def _timings(
    decoder: HyperConvDecoder, plan: DecoderPlan, rounds: int, compiled: bool
) -> dict[str, Any]:
    device = decoder.device
    x = torch.randn(1, *decoder.condition_shape, device=device)
    planned = copy.deepcopy(decoder)
    start = time.perf_counter()
    planned.set_plan(plan)
    preparation = time.perf_counter() - start
    compiled_pass = torch.compile(decoder, dynamic=False)

    def autocast(run: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return run(x)

    variants: dict[str, Callable[[], Tensor]] = {
        EAGER_FP32: lambda: decoder(x),
        EAGER_BF16: lambda: autocast(decoder),
        PLANNED: lambda: planned(x),
    }
    if compiled:
        variants[COMPILED_FP32] = lambda: compiled_pass(x)
        variants[COMPILED_BF16] = lambda: autocast(compiled_pass)
    if device.type == "cuda":  # a CPU multiplies no 16-bit numbers fast
        narrow = copy.deepcopy(decoder).bfloat16()
        narrow.set_plan(plan)
        variants[PLANNED_BF16] = lambda: narrow(x.bfloat16())
    seconds, outputs = interleaved(variants, rounds, device)
    direct_flops = sum(choice.shape.direct_flops for choice in plan.convolutions)
    planned_flops = sum(choice.flops for choice in plan.convolutions)
    return {
        "seconds": seconds,
        "difference_from_eager_fp32": {
            name: difference(out, outputs[EAGER_FP32]) for name, out in outputs.items()
        },
        "gflops_done": {
            name: (planned_flops if name.startswith("planned") else direct_flops)
            / median(values)
            / 1e9
            for name, values in seconds.items()
        },
        "speedup_over_eager_fp32": speedup(seconds, EAGER_FP32, PLANNED),
        "speedup_over_eager_bf16": speedup(seconds, EAGER_BF16, PLANNED),
        "arithmetic_saved": direct_flops / planned_flops,
        "predicted_seconds": plan.seconds,
        "preparation_seconds": preparation,
        "planned_weights_gb": plan.weight_bytes / 1e9,
    }


def markdown() -> str:
    """README's table from the committed results: ratios within one run."""
    results = latest("decoder", "recipe", "device")
    if not results:
        return "No results are committed yet."
    lines = [
        "| recipe, one adapter | machine | against eager float32 | against eager bfloat16 | "
        "against compiled float32 | arithmetic saved | peak memory | "
        "difference from eager float32 | timed rounds |",
        "| --- |" + " --- |" * 8,
    ]
    for figures in results:
        lines.append(
            f"| {figures['recipe']} | {figures['device']} "
            f"| {figures['speedup_over_eager_fp32']:.1f}x faster "
            f"| {figures['speedup_over_eager_bf16']:.1f}x faster "
            f"| {_against(figures, COMPILED_FP32)} "
            f"| {figures['arithmetic_saved']:.1f}x | {figures['peak_memory_gb']:.1f} GB "
            f"| {figures['difference_from_eager_fp32'][PLANNED]:.1e} "
            f"| {len(figures['seconds'][PLANNED])} |"
        )
    return "\n".join(lines)


def _against(figures: dict[str, Any], baseline: str) -> str:
    """How much faster ours was; nothing where the baseline has not been timed."""
    if baseline not in figures["seconds"]:
        return ""
    return f"{speedup(figures['seconds'], baseline, PLANNED):.1f}x faster"


def require_exact(plan: DecoderPlan, device: torch.device) -> float:
    """Largest relative error of the plan's tiles against float64, with few channels.

    Raises:
        SystemExit: it is above 1e-5.
    """
    errors = [0.0]
    for choice in plan.convolutions:
        shape = choice.shape
        if choice.fft_plan is None:
            continue
        channels = min(8, shape.channels_in)
        x = torch.randn(1, channels, shape.height, shape.width, device=device)
        weight = torch.randn(4, channels, shape.kernel, shape.kernel, device=device)
        expected = conv2d(x.double(), weight.double(), padding=shape.kernel // 2)
        errors.append(difference(fft_conv2d(x, weight, choice.fft_plan), expected))
    if max(errors) > 1e-5:
        raise SystemExit(
            f"the plan's relative error is {max(errors):.1e}: no figures on a wrong result."
        )
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
    decoder.set_plan(plan)
    decoder(torch.randn(1, *decoder.condition_shape, device=device))
    return peak_memory(device)


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
