"""``dnd-fast serve``."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from dnd_fast.console import BASE_HELP, GENERATOR_HELP, console
from dnd_fast.errors import InvalidInput
from dnd_fast.files import read_bytes
from dnd_fast.text.records import decode

INSTALL = "pip install 'dnd-fast[serve]'"
ENGINE_KEY = "DND_FAST_ENGINE_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    generator: Annotated[str, typer.Option(help=GENERATOR_HELP)] = "demo",
    engine: Annotated[
        str,
        typer.Option(help="'transformers', within this process, or 'vllm=URL', a running server."),
    ] = "transformers",
    base: Annotated[
        str | None, typer.Option(help=f"The base: {BASE_HELP}", show_default="the generator's")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="The same for the tokenizer.", show_default="the base's")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 8080,
    name: Annotated[
        list[str] | None,
        typer.Option(help="A further host name that the server is called by; repeatable."),
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="File of API keys, one a line. Else everybody may ask.")
    ] = None,
    adapters: Annotated[
        Path | None,
        typer.Option(
            help="Folder for adapters, which a vLLM server must see under the same path.",
            show_default="a temporary one",
        ),
    ] = None,
    capacity: Annotated[int, typer.Option(min=1, help="Adapters that stay loaded.")] = 64,
    rate: Annotated[
        str | None, typer.Option(help="Most requests of a client, such as '600/minute'.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that an answer may take.")] = 60.0,
    page: Annotated[bool, typer.Option(help="Serve the page at /.")] = True,
    print_vllm_flags: Annotated[
        bool, typer.Option("--print-vllm-flags", help="Print what vLLM needs, and end.")
    ] = False,
) -> None:
    """Serve adapters made of prompts: OpenAI's API and a page.

    dnd-fast serve --generator demo
    """
    from dnd_fast.generator import Generator

    loaded = Generator.from_pretrained(generator)
    if print_vllm_flags:
        _print_vllm_flags(loaded.layout.rank, capacity)
        return
    try:
        import uvicorn

        from dnd_fast.serving.launch import launch
        from dnd_fast.serving.security import Keys
        from dnd_fast.serving.service import Limits
    except ImportError as error:
        raise InvalidInput(f"serving needs {error.name}: {INSTALL}") from error
    accepted = Keys(_read_keys(keys) if keys else ())
    if host not in LOOPBACK and not accepted:
        raise InvalidInput(
            f"--host {host} lets other machines in: give --keys, a file of API keys, one a line."
        )
    with ExitStack() as stack:
        with console.status("loading the base and the text encoder"):
            app = stack.enter_context(
                launch(
                    loaded,
                    engine,
                    base=base,
                    tokenizer=tokenizer,
                    adapters=adapters,
                    capacity=capacity,
                    limits=Limits(rate=rate, seconds=timeout),
                    keys=accepted,
                    hosts=_hosts(host, name or []),
                    page=page,
                    engine_key=os.environ.get(ENGINE_KEY),
                )
            )
        console.print(f"Serving at [bold]http://{escape(host)}:{port}[/bold]; Ctrl+C ends it.")
        uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=10)


def _print_vllm_flags(rank: int, capacity: int) -> None:
    from dnd_fast.serving.vllm_flags import SETTINGS, server_flags

    flags: list[Any] = server_flags(rank, loras=min(capacity, 8), capacity=capacity)
    typer.echo(f"{SETTINGS} vllm serve BASE {' '.join(flags)}")


def _read_keys(file: Path) -> list[str]:
    lines = [line.strip() for line in decode(read_bytes(file), file).splitlines() if line.strip()]
    if not lines:
        raise InvalidInput(f"{file} holds no API key; write at least one, one a line.")
    return lines


def _hosts(host: str, names: list[str]) -> list[str] | None:
    """Names that requests may call the server by; None: this machine's own."""
    return (
        [host, *names, "localhost", "127.0.0.1", "[::1]"] if names or host not in LOOPBACK else None
    )
