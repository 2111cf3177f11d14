"""The command line: ``dnd-fast --help``. One file per command."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from io import TextIOWrapper
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from dnd_fast import __version__
from dnd_fast.errors import InvalidInput

# Module and function of each command, in the order of the help. Those that train are found by
# name, like plug-ins: dnd_fast.train is built on this package, which imports nothing of it.
COMMANDS = (
    ("dnd_fast.cli.generate", "generate"),
    ("dnd_fast.train.commands.demo", "demo"),
    ("dnd_fast.train.commands.collect", "collect"),
    ("dnd_fast.train.commands.train", "train"),
    ("dnd_fast.train.commands.train_expert", "train_expert"),
    ("dnd_fast.train.commands.evaluate", "evaluate"),
    ("dnd_fast.cli.serve", "serve"),
    ("dnd_fast.cli.adapt", "adapt"),
    ("dnd_fast.cli.base", "base"),
    ("dnd_fast.cli.info", "info"),
    ("dnd_fast.cli.plan", "plan"),
    ("dnd_fast.cli.generate", "convert"),
    ("dnd_fast.cli.export", "export"),
)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Text prompts in, a LoRA adapter for a language model out, in one forward pass.

Start with [bold]dnd-fast demo[/bold].""",
)
for module, function in COMMANDS:
    app.command()(getattr(import_module(module), function))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dnd-fast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: unusable input and failures of the system end in one line, not a traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress of others between the command's own
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # of a locale whose encoding lacks some characters
            stream.reconfigure(errors="replace")
    try:
        app()
    except (InvalidInput, OSError) as error:
        message = f"[red]error:[/red] {escape(str(error))}"
        Console(stderr=True).print(message, highlight=False, soft_wrap=True)
        sys.exit(1)
