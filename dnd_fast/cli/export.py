"""``dnd-fast export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from dnd_fast.console import GENERATOR_HELP, console


def export(
    generator: Annotated[str, typer.Argument(help=GENERATOR_HELP)],
    out: Annotated[Path, typer.Option(help="Folder for the export.")],
    device: Annotated[str, typer.Option(help="Where it will run: 'cpu' or 'cuda'.")] = "cpu",
    batch: Annotated[int, typer.Option(help="Tasks of one pass.", min=1)] = 1,
) -> None:
    """Compile a generator for the native runtime, which needs no Python.

    dnd-fast export demo --out exported
    """
    from dnd_fast.generator import Generator
    from dnd_fast.native.export import export as export_generator

    with console.status("loading the generator"):
        loaded = Generator.from_pretrained(generator)
    with console.status("compiling, which takes a minute or more"):
        export_generator(loaded, out, device=device, batch=batch)
    size = sum(file.stat().st_size for file in out.iterdir())
    console.print(f"Wrote {size / 1e6:,.0f} MB to [bold]{escape(str(out))}[/bold].")
