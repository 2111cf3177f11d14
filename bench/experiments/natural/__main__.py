"""The real-model benchmark's commands.

python -m bench.natural export suite                       # the suite as data sets, in seconds
python -m bench.natural evaluate suite/run --suite suite   # what a generator does on it
python -m bench.natural ship suite/run                      # a generator as the package has it
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dnd_fast.console import progress_bars
from dnd_fast.errors import InvalidInput

app = typer.Typer(no_args_is_help=True)


class Settings(StrEnum):
    """Questions and prompts to test with."""

    levels = "levels"
    wordings = "wordings"
    controls = "controls"


@app.callback()
def natural() -> None:
    """Small tasks in natural language: skill times answer format."""


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Where to write the data sets.")],
    seed: Annotated[int, typer.Option(help="Seed of the splits and of all draws.")] = 0,
) -> None:
    """Write the suite's data sets, for dnd-fast collect, train and evaluate."""
    try:
        from dnd_fast.bench.experiments.natural import export as files
    except ModuleNotFoundError as error:
        raise typer.BadParameter(
            f'the package {error.name!r} is missing; run: pip install "dnd-fast[natural]"'
        ) from error
    try:
        splits = files.export(folder, seed)
    except InvalidInput as error:
        raise typer.BadParameter(str(error)) from error
    counts = ", ".join(f"{len(tasks)} {split}" for split, tasks in splits.items())
    Console().print(f"Wrote {counts} tasks to {folder}.")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Training run, by dnd-fast train.")],
    suite: Annotated[Path, typer.Option(help="The suite, by export.")],
    name: Annotated[str, typer.Option(help="What the line of results is of.")] = "generator",
    split: Annotated[str, typer.Option(help="Tasks to test on: a file of suite/splits.")] = "test",
    rows: Annotated[
        str, typer.Option(help="Methods, as of dnd-fast evaluate --rows.")
    ] = "generated",
    settings: Annotated[
        list[Settings] | None,
        typer.Option(help="Which questions and prompts, repeated for more.", show_default="levels"),
    ] = None,
    prompt_batches: Annotated[int, typer.Option(help="Conditions of each task.", min=1)] = 1,
    collection: Annotated[
        Path | None,
        typer.Option(help="Collection with oracles, too.", show_default="the run's own"),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="LABEL=FOLDER: another adapter of the base, a row of its own."),
    ] = None,
) -> None:
    """Test a run's generator on a split, and add a line to bench/results/natural.jsonl."""
    from dnd_fast.bench.experiments.natural import evaluate as evaluation
    from dnd_fast.train.commands.evaluate import labelled_folders

    chosen = [
        each for group in settings or [Settings.levels] for each in evaluation.SETTINGS[group]
    ]
    try:
        with progress_bars() as progress:
            path = evaluation.evaluate(
                run,
                suite,
                split,
                rows=rows.split(","),
                name=name,
                settings=chosen,
                prompt_batches=prompt_batches,
                collection=collection,
                adapters=labelled_folders(adapter or []),
                progress=progress,
            )
    except (InvalidInput, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    Console().print(f"Wrote {path}.")


@app.command()
def ship(
    run: Annotated[
        Path | None, typer.Argument(help="A finished training run.", show_default="tasks only")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the suite that it was trained on.")] = 0,
) -> None:
    """Write what the package carries: the demo's tasks, and a run's generator."""
    from dnd_fast.bench.experiments.natural import ship as package
    from dnd_fast.generator_config import SHIPPED
    from dnd_fast.smollm2 import NAME
    from dnd_fast.train.demo.real import TASKS_FILE

    try:
        package.write_tasks(package.demo_tasks(seed), TASKS_FILE)
        if run is not None:
            package.ship_generator(run, SHIPPED[NAME][0])
    except (InvalidInput, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    Console().print(f"Wrote {TASKS_FILE}{f' and {SHIPPED[NAME][0]}' if run else ''}.")


if __name__ == "__main__":
    app()
