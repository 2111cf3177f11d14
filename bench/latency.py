"""From prompts to adapter: how long, how much memory, stage by stage, and next to what.

    python -m bench.latency                       # the 0.5B recipe; one adapter, on a GPU 1 to 64
    python -m bench.latency --recipe all --batch 1 --json latency.json

The generator's weights are random: they do not change the time. No figure is reported unless the
planned convolutions agree with float64. With ``--impl eager`` the published code's decoder (eager,
bfloat16 autocast) runs interleaved on the same weights, and ours must agree with it too.

Three kinds of time are kept apart: building and preparing, which a process does once; the first
call, which on a GPU compiles kernels and captures a CUDA graph; and the steady state, as p20, p50
and p80 of its stages:

* ``tokenize`` and ``encode``: prompts to token ids, and these to embeddings;
* ``decode``: embeddings to weight tokens, the length projection included; on a GPU to LoRA tensors,
  unless tokens carry their own scales;
* ``detokenize`` and ``to_host``: what is left to do to LoRA tensors, and the copy of these to the
  CPU's memory;
* ``total``: the sum of these, round by round;
* ``save``: the adapters' files.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import time
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import Tensor

from dnd_fast.bench.decoder import require_exact
from dnd_fast.bench.harness.encoder import load_encoder
from dnd_fast.bench.harness.markdown import faster, table
from dnd_fast.bench.harness.results import append, latest, prompts_hash, provenance
from dnd_fast.bench.harness.stages import generation_stages
from dnd_fast.bench.harness.timing import (
    CPU,
    console,
    difference,
    interleaved,
    peak_memory,
    percentiles,
    require_steady,
    reset_peak_memory,
    seconds_text,
    speedup,
)
from dnd_fast.console import Weights
from dnd_fast.errors import InvalidInput
from dnd_fast.files import atomic_file
from dnd_fast.generator import Generator
from dnd_fast.generator_config import GeneratorConfig
from dnd_fast.kernels.device import DeviceProfile, calibrate
from dnd_fast.kernels.planner.cost_model import DecoderPlan
from dnd_fast.recipe import Recipe
from dnd_fast.text.prompt_encoder import PromptEncoder
from dnd_fast.text.prompts import read_prompts, sample_prompts

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
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SEED = 0


class Impl(StrEnum):
    """What to time beside ours: nothing, the published eager form, its compiled one, or both."""

    ours = "ours"
    eager = "eager"
    compiled = "compiled"
    all = "all"


BASELINES = {
    Impl.ours: (),
    Impl.eager: (EAGER,),
    Impl.compiled: (COMPILED,),
    Impl.all: (EAGER, COMPILED),
}


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
        typer.Option(help="What to time beside ours.", show_default="eager, on a CPU nothing"),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            help="Adapters per pass; may be repeated.", show_default="1, on a GPU 1, 2, … 64"
        ),
    ] = None,
    weights: Annotated[Weights, typer.Option(help="How weights are kept.")] = Weights.cached,
    memory: Annotated[
        float | None,
        typer.Option(
            help="GB for our decoder, beside its weights.",
            show_default="8, on a GPU 60 % of its memory",
        ),
    ] = None,
    prompts: Annotated[
        Path, typer.Option(help="A .txt or .jsonl file.", show_default="a bundled handful")
    ] = PROMPTS,
    encoder: Annotated[Encoder, typer.Option(help="'random' has the right shape.")] = Encoder.auto,
    rounds: Annotated[
        int | None,
        typer.Option(help="Timed, after one that warms up.", show_default="3, on a GPU 10", min=2),
    ] = None,
    noisy: Annotated[bool, typer.Option(help="Report whatever the spread.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures to this file.")
    ] = None,
    save: Annotated[bool, typer.Option(help="Add them to bench/results/latency.jsonl.")] = False,
) -> None:
    """Time prompts to adapter, stage by stage, beside the published decoder's eager form."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    if not gpu:
        console.print(
            "No GPU: CUDA graphs, the Triton kernels and GPU memory are not measured. The eager "
            "form takes minutes on a CPU: ask for it by --impl eager."
        )
    if memory is None:
        memory = 0.6e-9 * torch.cuda.get_device_properties(device).total_memory if gpu else 8.0
    texts = read_prompts(prompts)
    text_encoder, encoder_name = load_encoder(encoder.value, texts)
    dtype = torch.bfloat16 if gpu else torch.float32
    profile = calibrate(device, dtype)
    everything = []
    for name in PAPER if recipe == "all" else [recipe]:
        for size in batch or (BATCHES if gpu else [1]):
            run = Run(
                name,
                impl or (Impl.eager if gpu else Impl.ours),
                size,
                weights,
                1e9 * memory,
                rounds or (10 if gpu else 3),
                device,
                dtype,
            )
            try:
                figures = _measure(run, texts, text_encoder, profile)
            except (InvalidInput, torch.OutOfMemoryError) as error:
                if batch or size == 1:
                    raise
                console.print(f"{name}: the sweep ends before batch {size}: {error}")
                break
            figures["spread"] = require_steady(figures["decode_seconds"], noisy)
            figures |= {
                "encoder": encoder_name,
                "prompts_sha256": prompts_hash(texts),
                "seed": SEED,
            }
            _print(figures)
            if save:
                append("latency", figures)
            everything.append(provenance() | figures)
            gc.collect()
    if json_file is not None:
        with atomic_file(json_file) as staged:
            staged.write_text(json.dumps(everything, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(everything[-1]))


def _measure(
    run: Run, texts: list[str], encoder: PromptEncoder, profile: DeviceProfile
) -> dict[str, Any]:
    recipe = Recipe.load(run.recipe)
    texts = distinct(texts, recipe.condition.prompts)
    tasks = [sample_prompts(texts, recipe.condition.prompts, seed) for seed in range(run.batch)]
    reset_peak_memory(run.device)
    start = time.perf_counter()
    with console.status(f"{recipe.name}: building a generator with random weights"):
        generator = _generator(recipe, encoder, run)
    built = time.perf_counter()
    with console.status(f"{recipe.name}: preparing"):
        prepared = generator.prepare(batch=run.batch, memory=run.memory, weights=run.weights.value)
    ready, plan = time.perf_counter(), prepared.plan
    generator.generate(tasks)
    first = time.perf_counter()
    stages = generation_stages(generator, tasks, run.rounds)
    device_memory, host_memory = peak_memory(run.device), peak_memory(CPU)
    require_exact(plan, run.device)
    with torch.no_grad():
        condition = generator.encode(tasks)
        seconds, error = _against_baselines(run, recipe, generator, condition)
    if error is not None and error > AGREEMENT:
        raise SystemExit(
            f"ours differs from the published form by {error:.1e}: no figures on a wrong result."
        )
    ceiling = _ceiling(plan, profile)
    ours = median(seconds[OURS])
    paper = PAPER.get(recipe.name)
    return {
        "recipe": recipe.name,
        "batch": run.batch,
        "weights": run.weights.value,
        "dtype": str(run.dtype).removeprefix("torch."),
        "runs_triton": prepared.impl == "triton",
        "build_seconds": built - start,
        "preparation_seconds": ready - built,
        "first_call_seconds": first - ready,
        "stages_p20_p50_p80": stages,
        "decode_seconds": seconds,
        "difference_from_published": error,
        "speedup_over": {name: speedup(seconds, name, OURS) for name in seconds if name != OURS},
        "prompts_to_tokens_seconds": sum(
            stages[name][1] for name in ("tokenize", "encode", "decode")
        ),
        "adapters_per_second": run.batch / stages["total"][1],
        "ceiling_seconds": ceiling,
        "ceiling_share": ceiling / ours,
        "planned_weights_gb": plan.weight_bytes / 1e9,
        "peak_device_gb": None if run.device == CPU else device_memory / 1e9,
        "peak_host_gb": host_memory / 1e9,
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


def _generator(recipe: Recipe, encoder: PromptEncoder, run: Run) -> Generator:
    torch.manual_seed(SEED)
    with run.device:
        generator = Generator(GeneratorConfig.from_recipe(recipe), encoder=encoder)
    tokens = torch.zeros(1, *generator.decoder.features[-1], device="cpu")
    if generator.layout.scale == "static":
        generator.layout.fit(torch.cat([tokens, tokens + 0.01]))
    generator.requires_grad_(False)
    return generator.to(run.device).to(run.dtype)


def _against_baselines(
    run: Run, recipe: Recipe, generator: Generator, condition: Tensor
) -> tuple[dict[str, list[float]], float | None]:
    """Seconds of our decoder and of the baselines, and how far ours is from the first of these.

    The baselines' decoder is drawn from the same seed, so it has our weights, in float32.
    """
    prepared = generator.prepared
    condition_here = condition.to(prepared.dtype)
    variants: dict[str, Callable[[], Tensor]] = {OURS: lambda: prepared.tokens(condition_here)}
    baselines = BASELINES[run.impl]
    if baselines:
        torch.manual_seed(SEED)
        with run.device:
            twin = Generator(GeneratorConfig.from_recipe(recipe), encoder=generator.encoder)
        decoder = twin.decoder.requires_grad_(False).to(run.device)
        forms: dict[str, Callable[[Tensor], Tensor]] = {
            EAGER: decoder,
            COMPILED: torch.compile(decoder, dynamic=False),
        }
        variants |= {name: partial(published, forms[name], condition) for name in baselines}
    seconds, results = interleaved(variants, run.rounds, run.device)
    error = difference(results[OURS], results[baselines[0]]) if baselines else None
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
    printed = Table("stage", "p20", "p50", "p80", title=title, box=None)
    for name, values in figures["stages_p20_p50_p80"].items():
        printed.add_row(name.replace("_", " "), *(seconds_text(value) for value in values))
    for name, values in figures["decode_seconds"].items():
        printed.add_row(f"decode, {name}", *(seconds_text(value) for value in percentiles(values)))
    console.print(printed)
    for name, factor in figures["speedup_over"].items():
        console.print(f"ours decodes {factor:.1f}x faster than the {name} form")
    if figures["difference_from_published"] is not None:
        console.print(f"difference from it {figures['difference_from_published']:.1e}")
    gpu = figures["peak_device_gb"]
    console.print(
        f"once: build {figures['build_seconds']:.1f} s, prepare "
        f"{figures['preparation_seconds']:.1f} s, first call "
        f"{seconds_text(figures['first_call_seconds'])}; peak memory {figures['peak_host_gb']:.1f} "
        f"GB{'' if gpu is None else f', of the GPU {gpu:.1f} GB'}; "
        f"{figures['adapters_per_second']:.3g} adapters a second\nceiling of this plan on this "
        f"machine {seconds_text(figures['ceiling_seconds'])}: {figures['ceiling_share']:.0%} "
        "reached"
    )
    if figures["paper_a100_seconds"] is not None:
        here = figures["prompts_to_tokens_seconds"]
        console.print(
            f"the paper, one A100, one adapter: {figures['paper_a100_seconds']} s, "
            f"{figures['paper_a100_gb']} GB; prompts to tokens here {seconds_text(here)}, "
            f"{figures['paper_a100_seconds'] / here:.2g} times as fast per pass"
        )


def load() -> list[dict[str, Any]]:
    """The newest committed result of every recipe, batch, storage of weights and machine."""
    return latest("latency", "recipe", "batch", "weights", "device")


def markdown() -> str:
    """The committed results of one adapter a pass: ratios within one run."""
    rows = load()
    head = (
        "recipe|machine|prompts to tokens|decoder against eager bfloat16|of its ceiling|"
        "peak memory|most adapters a second|paper, A100"
    )
    return table(head.split("|"), [_cells(row, rows) for row in rows if row["batch"] == 1])


def _cells(row: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """A result as a row of the table; absolute times of GPUs alone."""
    gpu, against = row["peak_device_gb"], row["speedup_over"].get(EAGER)
    keys = ("recipe", "weights", "device")
    sweep = [other for other in rows if all(other[key] == row[key] for key in keys)]
    best = max(sweep, key=lambda other: other["adapters_per_second"])
    most = f"{best['adapters_per_second']:,.4g}, {best['batch']} a pass"
    return [
        row["recipe"] if row["weights"] == "cached" else f"{row['recipe']}, {row['weights']}",
        row["device"],
        "" if gpu is None else seconds_text(row["prompts_to_tokens_seconds"]),
        "" if against is None else faster(against),
        f"{row['ceiling_share']:.0%}",
        f"{row['peak_host_gb'] if gpu is None else gpu:.1f} GB",
        "" if gpu is None else most,
        f"{row['paper_a100_seconds']} s, {row['paper_a100_gb']} GB",
    ]


if __name__ == "__main__":
    typer.run(main)
