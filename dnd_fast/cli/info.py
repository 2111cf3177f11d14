"""``dnd-fast info``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from dnd_fast.console import GENERATOR_HELP, console


def info(
    source: Annotated[
        str,
        typer.Argument(help=f"A generator ({GENERATOR_HELP}), an adapter or an SVF expert."),
    ],
) -> None:
    """Describe a generator, an adapter or an SVF expert."""
    from rich.table import Table

    table = Table(box=None, show_header=False)
    described = _describe_generator
    if (Path(source) / "adapter_config.json").exists():
        described = _describe_adapter
    elif (Path(source) / "svf_config.json").exists():
        described = _describe_expert
    for name, value in described(source).items():
        table.add_row(name, escape(str(value)))
    console.print(table)


def _describe_adapter(source: str) -> dict[str, Any]:
    from dnd_fast.lora.adapter import Adapter

    adapter = Adapter.load(source)
    return {
        "adapter": source,
        "base model": adapter.config.get("base_model_name_or_path"),
        "rank, alpha": f"{adapter.config['r']}, {adapter.config['lora_alpha']}",
        "modules": len(adapter.modules),
        "parameters": f"{sum(tensor.numel() for tensor in adapter.tensors.values()):,}",
        "dtype": next(iter(adapter.tensors.values())).dtype,
    }


def _describe_expert(source: str) -> dict[str, Any]:
    import torch

    from dnd_fast.svf.expert import Expert

    expert = Expert.load(source)
    z = torch.cat(list(expert.vectors.values()))
    return {
        "SVF expert": source,
        "base model": expert.config.base_model,
        "of its weights": expert.config.fingerprint[:16],
        "parametrisation": expert.config.parametrisation,
        "matrices": len(expert.vectors),
        "parameters": f"{expert.parameters:,}",
        "z": f"mean {z.mean():.3f}, deviation {z.std():.3f}, {z.min():.3f} to {z.max():.3f}",
    }


def _describe_generator(source: str) -> dict[str, Any]:
    import torch

    from dnd_fast.decoder.planning import default_memory
    from dnd_fast.decoder.prepared import choose, describe
    from dnd_fast.generator import Generator

    generator = Generator.from_pretrained(source)
    if torch.cuda.is_available():
        generator.to("cuda")
    decoder = generator.decoder
    plan, impl, compiled = choose(decoder, memory=default_memory(decoder))
    condition, layout = generator.config.condition, generator.layout
    return {
        "generator": source,
        "base model": layout.base_model,
        "text encoder": condition.encoder,
        "condition": f"{condition.prompts} prompts of {condition.length} tokens",
        "decoder": " → ".join(str(tuple(shape)) for shape in decoder.features),
        "kernel size": decoder.kernel_size,
        "parameters": f"{sum(p.numel() for p in generator.parameters()):,}",
        **layout.describe(),
        "tokens": f"{layout.num_tokens} of {layout.token_shape}, scale {layout.scale}",
        "runs here as": describe(plan, impl, compiled, decoder.dtype, decoder.device),
    }
