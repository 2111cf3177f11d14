"""From prompts to adapter: how long, how much memory, stage by stage, and next to what.

    python -m bench.latency                       # the 0.5B recipe, one adapter
    python -m bench.latency --recipe all --json latency.json

The generator's weights are random: they do not change the time. The planned convolutions must agree
with float64 before anything is timed. With ``--impl eager`` the published code's decoder (eager,
bfloat16 autocast) runs interleaved on the same weights, and figures are reported only if ours
agrees with it.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from statistics import quantiles
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import Tensor

from dnd_fast.bench.decoder import require_exact
from dnd_fast.bench.encoder import load_encoder
from dnd_fast.bench.results import append, latest, provenance
from dnd_fast.bench.timing import console, difference, interleaved, peak_memory, speedup, spread
from dnd_fast.cli.console import Weights
from dnd_fast.condition import TextEncoder
from dnd_fast.generator import Generator, GeneratorConfig
from dnd_fast.kernels.device import DeviceProfile, calibrate
from dnd_fast.kernels.plan import DecoderPlan
from dnd_fast.prompts import read_prompts, sample_prompts
from dnd_fast.recipe import Recipe

PROMPTS = Path(__file__).parent / "prompts.txt"
OURS, EAGER, COMPILED = "ours", "eager", "compiled"
# Seconds and GB from prompts to tokens on one A100 80GB; Drag-and-Drop LLMs, cost table.
PAPER = {
    "common-sense-0.5b": (0.11, 9.59),
    "math-1.5b": (0.53, 15.43),
    "math-7b": (0.55, 16.22),
    "coding-1.5b": (0.70, 19.17),
    "coding-7b": (0.73, 20.48),
    "multimodal-3b": (0.61, 20.31),
}
# Largest relative difference from the eager form: of bfloat16 autocast, and of int8 weights.
AGREEMENT = 0.05
MAX_SPREAD = 0.25


class Impl(StrEnum):
    """What to time beside ours: nothing, the published eager form, or that and its compiled one."""

    ours = "ours"
    eager = "eager"
    all = "all"


class Encoder(StrEnum):
    """Which text encoder."""

    auto = "auto"
    packaged = "packaged"
    random = "random"


@dataclasses.dataclass(frozen=True)
class Run:
    """What one figure is measured with."""

    recipe: str
    impl: Impl
    batch: int
    weights: Weights
    memory: float
    rounds: int
    device: torch.device
    dtype: torch.dtype


def main(
    recipe: Annotated[str, typer.Option(help="A recipe's name or file, or 'all'.")] = (
        "common-sense-0.5b"
    ),
    impl: Annotated[
        Impl | None,
        typer.Option(help="What to time beside ours. [default: eager, on a CPU nothing]"),
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Adapters per pass. [default: 1]")] = None,
    weights: Annotated[Weights, typer.Option(help="How weights are kept.")] = Weights.cached,
    memory: Annotated[
        float | None, typer.Option(help="GB for our decoder. [default: 8 on a CPU, 30 on a GPU]")
    ] = None,
    prompts: Annotated[
        Path, typer.Option(help="A .txt or .jsonl file. [default: a bundled handful]")
    ] = PROMPTS,
    encoder: Annotated[Encoder, typer.Option(help="'random' has the right shape.")] = Encoder.auto,
    rounds: Annotated[int, typer.Option(help="Timed rounds after one that warms up.", min=2)] = 3,
    noisy: Annotated[bool, typer.Option(help="Report whatever the spread.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures to this file.")
    ] = None,
    save: Annotated[bool, typer.Option(help="Add them to bench/results/latency.jsonl.")] = False,
) -> None:
    """Time prompts to adapter, stage by stage, beside the published decoder's eager form."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        console.print(
            "No GPU: CUDA graphs, the Triton kernels and GPU memory are not measured. The eager "
            "form takes minutes on a CPU: ask for it by --impl eager."
        )
    impl = impl or (Impl.ours if device.type == "cpu" else Impl.eager)
    texts = read_prompts(prompts)
    text_encoder, encoder_name = load_encoder(encoder.value, texts)
    profile = calibrate(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    everything = []
    for name in PAPER if recipe == "all" else [recipe]:
        for size in batch or [1]:
            run = Run(
                name,
                impl,
                size,
                weights,
                1e9 * (memory or (30 if device.type == "cuda" else 8)),
                rounds,
                device,
                torch.bfloat16 if device.type == "cuda" else torch.float32,
            )
            figures = _measure(run, texts, text_encoder, profile)
            figures |= {
                "encoder": encoder_name,
                "prompts_sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
                "seed": 0,
            }
            _print(figures)
            if figures["spread"] > MAX_SPREAD and not noisy:
                raise SystemExit(
                    f"our decoder's times spread over {figures['spread']:.0%}: the machine is busy "
                    "or its clock unsteady. Try again, or pass --noisy."
                )
            if save:
                append("latency", figures)
            everything.append(provenance() | figures)
            gc.collect()
    if json_file is not None:
        json_file.write_text(json.dumps(everything, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(everything[-1]))


def _measure(
    run: Run, texts: list[str], encoder: TextEncoder, profile: DeviceProfile
) -> dict[str, Any]:
    recipe = Recipe.load(run.recipe)
    texts = distinct(texts, recipe.condition.prompts)
    tasks = [sample_prompts(texts, recipe.condition.prompts, seed) for seed in range(run.batch)]
    start = time.perf_counter()
    with console.status(f"{recipe.name}: building a generator with random weights"):
        generator = _generator(recipe, encoder, run)
    built = time.perf_counter()
    with console.status(f"{recipe.name}: preparing"):
        plan = generator.prepare(batch=run.batch, memory=run.memory, weights=run.weights.value)
    prepared = time.perf_counter()
    require_exact(plan, run.device)
    checked = time.perf_counter()
    generator.generate(tasks)
    first = time.perf_counter()
    stages = _stages(generator, tasks, run.rounds)
    memory = peak_memory(run.device)
    with torch.no_grad():
        condition = generator.encode(tasks)
        seconds, error = _against_baselines(run, recipe, generator, condition)
    if error is not None and error > AGREEMENT:
        raise SystemExit(
            f"ours differs from the eager form by {error:.1e}: no figures on a wrong result."
        )
    ceiling = _ceiling(plan, profile)
    ours = percentiles(seconds[OURS])[1]
    span = stages["encode"][1] + ours
    paper = PAPER.get(recipe.name)
    return {
        "recipe": recipe.name,
        "batch": run.batch,
        "weights": run.weights.value,
        "dtype": str(run.dtype).removeprefix("torch."),
        "runs_triton": generator.decoder.runs_triton,
        "build_seconds": built - start,
        "preparation_seconds": prepared - built,
        "first_call_seconds": first - checked,
        "stages_p20_p50_p80": stages,
        "decode_seconds": seconds,
        "spread": spread(seconds[OURS]),
        "difference_from_eager": error,
        "speedup_over": {name: speedup(seconds, name, OURS) for name in seconds if name != OURS},
        "prompts_to_tokens_seconds": span,
        "adapters_per_second": run.batch / span,
        "ceiling_seconds": ceiling,
        "ceiling_share": ceiling / ours,
        "planned_weights_gb": plan.weight_bytes / 1e9,
        "peak_memory_gb": memory / 1e9,
        "paper_a100_seconds": paper[0] if paper else None,
        "paper_a100_gb": paper[1] if paper else None,
    }


def distinct(texts: list[str], count: int) -> list[str]:
    """At least ``count`` prompts, repeated ones numbered: the encoder sees equal ones once."""
    return [
        text if turn == 0 else f"{text} ({turn + 1})"
        for turn in range(-(-count // len(texts)))
        for text in texts
    ]


def _generator(recipe: Recipe, encoder: TextEncoder, run: Run) -> Generator:
    torch.manual_seed(0)
    with run.device:
        generator = Generator(GeneratorConfig.from_recipe(recipe), encoder=encoder)
    tokens = torch.zeros(1, *generator.decoder.features[-1], device="cpu")
    if generator.layout.scale == "static":
        generator.layout.fit(torch.cat([tokens, tokens + 0.01]))
    generator.requires_grad_(False)
    return generator.to(run.device).to(run.dtype)


def _stages(generator: Generator, tasks: list[list[str]], rounds: int) -> dict[str, list[float]]:
    """p20, p50 and p80 seconds of every stage of generating and saving."""
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            start = time.perf_counter()
            for task in tasks:
                generator.encoder.tokenizer(task)
            tokenized = time.perf_counter() - start
            adapters = generator.generate(tasks)
            start = time.perf_counter()
            for index, adapter in enumerate(adapters):
                adapter.save(Path(folder) / str(index))
            times = {
                "tokenize": tokenized,
                **generator.timings,
                "save": time.perf_counter() - start,
            }
            for name, value in times.items():
                seconds.setdefault(name, []).append(value)
    return {name: percentiles(values) for name, values in seconds.items()}


def percentiles(values: list[float]) -> list[float]:
    """p20, p50 and p80."""
    cuts = quantiles(values, n=10, method="inclusive")
    return [cuts[1], cuts[4], cuts[7]]


def _against_baselines(
    run: Run, recipe: Recipe, generator: Generator, condition: Tensor
) -> tuple[dict[str, list[float]], float | None]:
    """Seconds of our decoder and of the baselines, and how far ours is from the eager form, if run.

    The baseline's decoder is drawn from the same seed, so it has our weights as they were before
    they were transformed.
    """
    variants: dict[str, Callable[[], Tensor]] = {OURS: lambda: generator(condition)}
    if run.impl is not Impl.ours:
        torch.manual_seed(0)
        with run.device:
            twin = Generator(GeneratorConfig.from_recipe(recipe), encoder=generator.encoder)
        baseline = twin.decoder.requires_grad_(False).to(run.device)
        baseline.set_impl("torch")
        variants[EAGER] = lambda: published(baseline, condition)
        if run.impl is Impl.all:
            compiled = torch.compile(baseline, dynamic=False)
            variants[COMPILED] = lambda: published(compiled, condition)
    seconds, results = interleaved(variants, run.rounds, run.device)
    error = difference(results[OURS], results[EAGER]) if EAGER in results else None
    return seconds, error


def published(decoder: Callable[[Tensor], Tensor], condition: Tensor) -> Tensor:
    """A pass as the published code does it: float32 weights under bfloat16 autocast."""
    with torch.autocast(condition.device.type, dtype=torch.bfloat16):
        return decoder(condition)


def _ceiling(plan: DecoderPlan, profile: DeviceProfile) -> float:
    """Seconds below which no implementation of the plan can be on this machine: every convolution
    limited by its arithmetic at the measured rate of matrix products, or by its bytes."""
    return sum(
        max(each.flops / profile.gemm_flops, each.bytes_moved / profile.bandwidth)
        for each in plan.convolutions
    )


def _print(figures: dict[str, Any]) -> None:
    title = f"{figures['recipe']}, batch {figures['batch']}, {figures['dtype']}"
    table = Table("stage", "p20", "p50", "p80", title=title, box=None)
    for name, values in figures["stages_p20_p50_p80"].items():
        table.add_row(name, *(seconds_text(value) for value in values))
    for name, values in figures["decode_seconds"].items():
        table.add_row(f"decode, {name}", *(seconds_text(value) for value in percentiles(values)))
    console.print(table)
    for name, factor in figures["speedup_over"].items():
        console.print(f"ours decodes {factor:.1f}x faster than the {name} form")
    console.print(
        f"build {figures['build_seconds']:.1f} s, prepare {figures['preparation_seconds']:.1f} s, "
        f"first call {seconds_text(figures['first_call_seconds'])}; peak memory "
        f"{figures['peak_memory_gb']:.1f} GB; {figures['adapters_per_second']:.3g} adapters a "
        f"second\nceiling of this plan on this machine {seconds_text(figures['ceiling_seconds'])}: "
        f"{figures['ceiling_share']:.0%} reached"
    )
    if figures["difference_from_eager"] is not None:
        console.print(f"difference from the eager form {figures['difference_from_eager']:.1e}")
    if figures["paper_a100_seconds"] is not None:
        here = seconds_text(figures["prompts_to_tokens_seconds"])
        console.print(
            f"the paper, one A100: {figures['paper_a100_seconds']} s, "
            f"{figures['paper_a100_gb']} GB; prompts to tokens here: {here}"
        )


def seconds_text(value: float) -> str:
    """In s or ms."""
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.1f} ms"


def markdown() -> str:
    """README's table from the committed results: ratios within one run."""
    rows = latest("latency", "recipe", "batch", "weights", "device")
    if not rows:
        return "No results are committed yet."
    lines = [
        "| recipe, batch | machine | prompts to tokens | decoder against eager bfloat16 | "
        "of its ceiling | peak memory | paper, A100 |",
        "| --- |" + " --- |" * 6,
    ]
    for row in rows:
        gpu = row["runs_triton"]
        against = row["speedup_over"].get(EAGER)
        lines.append(
            f"| {row['recipe']}, {row['batch']} | {row['device']} "
            f"| {seconds_text(row['prompts_to_tokens_seconds']) if gpu else 'see the ratio'} "
            f"| {'' if against is None else f'{against:.1f}x faster'} "
            f"| {row['ceiling_share']:.0%} | {row['peak_memory_gb']:.1f} GB "
            f"| {row['paper_a100_seconds']} s, {row['paper_a100_gb']} GB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
