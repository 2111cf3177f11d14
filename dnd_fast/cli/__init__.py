"""The command line: ``dnd-fast --help``. One file per command."""

from __future__ import annotations

import os
import sys

import typer
from rich.console import Console
from rich.markup import escape

from dnd_fast.cli.adapt import adapt
from dnd_fast.cli.collect import collect
from dnd_fast.cli.demo import demo
from dnd_fast.cli.evaluate import evaluate
from dnd_fast.cli.generate import convert, generate
from dnd_fast.cli.info import info
from dnd_fast.cli.plan import plan
from dnd_fast.cli.train import train
from dnd_fast.errors import InvalidInput

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Text prompts in, a LoRA adapter for a language model out, in one forward pass.

Start with [bold]dnd-fast demo[/bold].""",
)
for command in (generate, demo, collect, train, evaluate, adapt, info, plan, convert):
    app.command()(command)


def main() -> None:
    """Entry point: unusable input and failures of the system end in one line, not a traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except (InvalidInput, OSError) as error:
        message = f"[red]error:[/red] {escape(str(error))}"
        Console(stderr=True).print(message, highlight=False, soft_wrap=True)
        sys.exit(1)
