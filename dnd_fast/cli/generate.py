"""``dnd-fast generate`` and ``dnd-fast convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from dnd_fast.console import DATA_HELP, GENERATOR_HELP, Impl, console


def generate(
    prompts: Annotated[
        Path, typer.Argument(help=f"Prompts: a .txt file, one a line, or {DATA_HELP}")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the adapter, in PEFT's format.")],
    generator: Annotated[str, typer.Option(help=GENERATOR_HELP)] = "demo",
    device: Annotated[
        str | None, typer.Option(help="'cpu', 'cuda', …", show_default="best")
    ] = None,
    impl: Annotated[
        Impl, typer.Option(help="How the decoder runs: on the Triton kernels, or in PyTorch.")
    ] = Impl.auto,
    compile: Annotated[
        bool, typer.Option("--compile", help="Run PyTorch under torch.compile.")
    ] = False,
    memory: Annotated[
        float | None,
        typer.Option(
            help="GB that the decoder may take beside its weights.",
            show_default="DND_FAST_MEMORY, else half of what is free",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice among more prompts than needed.")] = 0,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say how the decoder ran, and how fast.")
    ] = False,
) -> None:
    """Generate an adapter for a task from its unlabelled prompts."""
    import torch

    from dnd_fast.decoder.planning import one_pass
    from dnd_fast.generator import Generator
    from dnd_fast.text.prompt_encoder import move

    with console.status("loading the generator"):
        loaded = Generator.from_pretrained(generator)
        move(loaded, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with console.status("preparing the decoder"):
        prepared = loaded.prepare(
            impl=impl.value,
            compile=compile,
            memory=1e9 * memory if memory is not None else None,
            **one_pass(loaded.decoder),
        )
    with console.status("generating"):
        adapter = loaded.generate(prompts, seed=seed)
    adapter.save(out)
    if verbose:
        console.print(prepared.describe(), highlight=False, soft_wrap=True)
    stages = ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in loaded.timings.items())
    base = loaded.layout.base_model or "its base model"
    console.print(
        f"Wrote an adapter for {escape(base)} to [bold]{escape(str(out))}[/bold] ({stages})."
    )


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A released .pth or .safetensors file.")],
    recipe: Annotated[str, typer.Option(help="What it was trained for: a recipe's name or file.")],
    out: Annotated[Path, typer.Option(help="Folder for the generator.")],
) -> None:
    """Convert a checkpoint published with the paper's code into a generator."""
    from dnd_fast.convert import load_generator
    from dnd_fast.recipe import Recipe

    load_generator(checkpoint, Recipe.load(recipe)).save_pretrained(out)
    console.print(f"Wrote a generator to [bold]{escape(str(out))}[/bold].")
