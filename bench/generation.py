"""The call that people make: ``Generator.generate`` without a word on how, against direct
convolutions.

python -m bench.generation         # a middle-sized generator with random weights, and the shipped
python -m bench.generation --save  # … and keep the figures

Every round generates with each form, as often as takes a tenth of a second, and counts the median;
what is timed is the stage from embeddings to LoRA tensors. The first call is timed apart, and so is
the whole of generate(), from prompts to an adapter.
"""

from __future__ import annotations

import copy
import json
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from dnd_fast.bench.harness.encoder import load_encoder
from dnd_fast.bench.harness.markdown import faster, table
from dnd_fast.bench.harness.results import append, latest, provenance
from dnd_fast.bench.harness.timing import console, require_steady, seconds_text, speedup
from dnd_fast.generator import Generator
from dnd_fast.generator_config import SHIPPED, WEIGHTS_FILE, GeneratorConfig
from dnd_fast.lora.adapter import Adapter
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.lora.target_modules import LoraModule
from dnd_fast.recipe import ConditionSpec, DecoderSpec
from dnd_fast.text.encoder import TextEncoder

SHAPES = [[32, 64, 384], [64, 32, 256], [256, 8, 256]]
KERNEL_SIZE = 9
MIDDLE = "middle-sized"
DIRECT, OURS, COMPILED = "direct convolutions", "generate()", "compiled direct convolutions"
AGREEMENT = 1e-5
ROUND_SECONDS = 0.1
SEED = 0


def main(
    rounds: Annotated[int, typer.Option(help="Timed, after the first call.", min=2)] = 9,
    compiled: Annotated[bool, typer.Option(help="Also time torch.compile.")] = False,
    noisy: Annotated[bool, typer.Option(help="Report whatever the spread.")] = False,
    save: Annotated[bool, typer.Option(help="Add them to bench/results/generation.jsonl.")] = False,
) -> None:
    """Time generating with and without direct convolutions everywhere."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prompts = [f"say the word number {index} backwards" for index in range(SHAPES[0][0])]
    encoder, encoder_name = load_encoder("auto", prompts)
    for name, generator in {
        MIDDLE: middle_sized(encoder),
        **{
            name: Generator.from_pretrained(name, encoder=encoder)
            for name, (folder, _) in SHIPPED.items()
            if (folder / WEIGHTS_FILE).is_file()
        },
    }.items():
        generator.to(device)
        figures = {"generator": name, "seed": SEED, "encoder": encoder_name}
        figures |= _measure(generator, prompts, rounds, compiled)
        figures["spread"] = require_steady(figures["decode_seconds"], noisy)
        _print(figures)
        if save:
            console.print(f"Wrote {append('generation', figures)}.")
        print(json.dumps(provenance() | figures))


def middle_sized(encoder: TextEncoder) -> Generator:
    """A generator of 14 M parameters with random weights, for a base that does not exist."""
    count, rank, chunk = SHAPES[-1]
    modules = [LoraModule(f"layers.{i}.q_proj", chunk, chunk) for i in range(count // 2)]
    layout = TokenLayout(modules, rank, lora_alpha=2 * rank, target_modules=["q_proj"])
    torch.manual_seed(SEED)
    generator = Generator(
        GeneratorConfig(
            ConditionSpec("none", prompts=SHAPES[0][0], length=SHAPES[0][1]),
            DecoderSpec(SHAPES, KERNEL_SIZE),
            layout.to_dict(),
        ),
        encoder=encoder,
    )
    generator.layout.set_statistics(torch.zeros(count, rank, chunk), torch.ones(count, 1, 1))
    return generator.requires_grad_(False)


def _measure(
    generator: Generator, prompts: list[str], rounds: int, compiled: bool
) -> dict[str, Any]:
    forms = {DIRECT: generator, OURS: copy.deepcopy(generator)}
    generator.prepare("direct", impl="torch")
    if compiled:
        forms[COMPILED] = copy.deepcopy(generator)
        forms[COMPILED].prepare("direct", impl="torch", compile=True)
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    first: dict[str, float] = {}
    adapters: dict[str, Adapter] = {}
    for name, form in forms.items():
        adapters[name] = form.generate(prompts)
        first[name] = form.timings["decode"]
    calls = max(1, round(ROUND_SECONDS / first[DIRECT]))
    for turn in range(rounds):
        for name, form in forms.items():
            with console.status(f"round {turn + 1} of {rounds}: {name}"):
                seconds[name].append(median(_decode(form, prompts) for _ in range(calls)))
    expected = torch.cat([t.flatten() for t in adapters[DIRECT].tensors.values()]).double()
    found = torch.cat([t.flatten() for t in adapters[OURS].tensors.values()])
    error = ((found - expected).norm() / expected.norm()).item()
    if error > AGREEMENT:
        raise SystemExit(f"the adapters differ by {error:.1e}: no figures on a wrong result.")
    seconds = {name: sorted(values) for name, values in seconds.items()}
    whole = sorted(_generate(forms[OURS], prompts) for _ in range(rounds))
    return {
        "parameters": sum(parameter.numel() for parameter in generator.parameters()),
        "runs": forms[OURS].prepared.describe(),
        "first_decode_seconds": first,
        "decode_seconds": seconds,
        "adapter_seconds": whole,
        "speedup_over": {name: speedup(seconds, name, OURS) for name in seconds if name != OURS},
        "difference_from_direct": error,
    }


def _decode(generator: Generator, prompts: list[str]) -> float:
    """Seconds from embeddings to LoRA tensors."""
    generator.generate(prompts)
    return generator.timings["decode"]


def _generate(generator: Generator, prompts: list[str]) -> float:
    """Seconds from prompts to an adapter."""
    generator.generate(prompts)
    return sum(generator.timings.values())


def _print(figures: dict[str, Any]) -> None:
    shown = Table(
        "form", "first call", "median", "spread", title=f"{figures['generator']}: decode", box=None
    )
    for name, values in figures["decode_seconds"].items():
        shown.add_row(
            name,
            seconds_text(figures["first_decode_seconds"][name]),
            seconds_text(median(values)),
            f"{figures['spread'][name]:.0%}",
        )
    console.print(shown)
    console.print(figures["runs"], highlight=False)
    console.print(f"an adapter takes {seconds_text(median(figures['adapter_seconds']))} in all")
    for name, ratio in figures["speedup_over"].items():
        console.print(f"generate() decodes {ratio:.2f}x as fast as with {name}")
    console.print(f"its adapters differ from theirs by {figures['difference_from_direct']:.1e}")


def load() -> list[dict[str, Any]]:
    """The newest committed result of each generator and machine."""
    return latest("generation", "generator", "device")


def markdown() -> str:
    """The table of the committed results: ratios within one run."""
    return table(
        ("generator", "machine", "generate() against direct convolutions", "difference", "rounds"),
        (
            (
                f"{row['generator']}, {row['parameters'] / 1e6:.2g} M parameters",
                row["device"],
                faster(row["speedup_over"][DIRECT]),
                f"{row['difference_from_direct']:.1e}",
                str(len(row["decode_seconds"][OURS])),
            )
            for row in load()
        ),
    )


if __name__ == "__main__":
    typer.run(main)
