"""The real-model benchmark's commands.

python -m bench.natural export FOLDER                 # the suite as data sets, in seconds
python -m bench.natural record full=full.json …       # keep what dnd-fast evaluate --json wrote
python -m bench.natural ship RUN                      # a run's generator, as the package carries it
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dnd_fast.bench.experiments.natural import results
from dnd_fast.errors import InvalidInput

app = typer.Typer(no_args_is_help=True)


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
def record(
    files: Annotated[list[str], typer.Argument(help="LABEL=FILE, by dnd-fast evaluate --json.")],
    recipe: Annotated[str, typer.Option(help="What the generator was trained by.")] = "smollm2",
    seed: Annotated[int, typer.Option(help="Seed of its training.")] = 0,
) -> None:
    """Add evaluations to bench/results/natural.jsonl; python -m bench.report shows them."""
    pairs = [text.partition("=") for text in files]
    if unnamed := [text for text, (_, mark, _) in zip(files, pairs, strict=True) if not mark]:
        raise typer.BadParameter(f"{unnamed[0]!r}: expected LABEL=FILE.")
    try:
        path = results.record({label: Path(file) for label, _, file in pairs}, recipe, seed)
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
