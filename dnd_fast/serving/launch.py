"""Puts a server together: generator, engine, service, gateway and page."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from fastapi import FastAPI

from dnd_fast import smollm2
from dnd_fast.base_model import load_base, load_config
from dnd_fast.demo.tasks import SHIPPED_SEED, split_tasks
from dnd_fast.errors import InvalidInput
from dnd_fast.generator import Generator
from dnd_fast.generator_config import DEMO_MODELS
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.serving.engine import Engine, skeleton_of
from dnd_fast.serving.errors import APIError
from dnd_fast.serving.gateway import create_app
from dnd_fast.serving.security import Guard, Keys
from dnd_fast.serving.service import Limits, Service
from dnd_fast.serving.transformers_engine import TransformersEngine
from dnd_fast.serving.vllm_engine import VllmEngine, connect
from dnd_fast.text.prompt_encoder import move

DEMO_BASE = "dnd-fast-demo-base"


@contextmanager
def launch(
    generator: Generator,
    engine: str = "transformers",
    *,
    base: str | None = None,
    tokenizer: str | None = None,
    adapters: Path | None = None,
    capacity: int = 64,
    limits: Limits | None = None,
    keys: Keys | None = None,
    hosts: list[str] | None = None,
    page: bool = True,
    engine_key: str | None = None,
) -> Iterator[FastAPI]:
    """Make the application that ``dnd-fast serve`` runs, whose options these are.

    Yields:
        The ASGI application; a temporary folder for adapters is removed after the block.

    Raises:
        InvalidInput: an argument is unusable, or the engine does not answer.
        OSError: the base or the folder cannot be read or written.
    """
    if not isinstance(generator.layout, TokenLayout):
        raise InvalidInput("this generator makes no LoRA adapters, and no other is served.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    move(generator, device)
    generator.prepare()
    _ = generator.encoder  # loaded now, and not in the first request
    limits, keys = limits or Limits(), keys or Keys()
    running = make_engine(
        generator, engine, base=base, tokenizer=tokenizer, limits=limits, key=engine_key
    )
    if adapters is None and running.kind == "vllm":
        raise InvalidInput(
            "vLLM reads adapters from files: give --adapters, a folder that its server sees under "
            "the same path."
        )
    with ExitStack() as stack:
        if adapters is None:
            temporary = tempfile.TemporaryDirectory(prefix="dnd-fast-")
            adapters = Path(stack.enter_context(temporary))
        # Others may use vLLM beside the gateway, and it does not say when a request ends.
        grace = limits.seconds if running.kind == "vllm" else 0.0
        service = Service(
            generator, running, adapters, capacity=capacity, grace=grace, limits=limits
        )
        app = create_app(service, keys=keys, hosts=hosts)
        if page:
            from dnd_fast.serving.page import mount_page

            mount_page(app, service, Guard(keys, limits.rate), keys, _example(generator))
        yield app


def make_engine(
    generator: Generator,
    engine: str,
    *,
    base: str | None = None,
    tokenizer: str | None = None,
    limits: Limits | None = None,
    key: str | None = None,
) -> Engine:
    """Make or reach an engine by its name on the command line; errors as :func:`launch`."""
    limits = limits or Limits()
    kind, _, place = engine.partition("=")
    if kind == "vllm" and place:
        try:
            model, root = asyncio.run(connect(place, key=key))
        except APIError as error:
            raise InvalidInput(error.message) from error
        config = load_config(base or root)
        return VllmEngine(place, model, root, skeleton_of(config), key=key, seconds=limits.seconds)
    if kind == "transformers" and not place:
        name = generator.layout.base_model or ""
        place, of_tokenizer = _packaged(base or name, tokenizer)
        loaded = load_base(place, of_tokenizer, device=generator.device)
        return TransformersEngine(*loaded, name or "base", waiting=limits.waiting)
    raise InvalidInput(
        f"the engine {engine!r} must be 'transformers', or 'vllm=' and the URL of a server."
    )


def _packaged(base: str, tokenizer: str | None) -> tuple[str, str | None]:
    """Where a base and its tokenizer are, be it in the package."""
    if base == DEMO_BASE:
        return str(DEMO_MODELS / "base"), tokenizer or str(DEMO_MODELS / "tokenizer")
    return smollm2.NAME if base == smollm2.HUB_ID else base, tokenizer


def _example(generator: Generator) -> str:
    """Prompts that the page begins with, one a line: of a task that the demo never saw."""
    if generator.layout.base_model != DEMO_BASE:
        return ""
    task = split_tasks(SHIPPED_SEED)["test"][0]
    return "\n".join(example.prompt for example in task.examples(8, "test", 1))
