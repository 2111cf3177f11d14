"""Prompts to the first token of a server's answer, and adapters per minute, for several clients.

    python -m bench.serving                     # the embedded engine: minutes
    python -m bench.serving --engine vllm=URL --adapters DIR  # vLLM, serving the demo's base

``dnd-fast serve`` runs as a process of its own with the demo's generator. Every request brings
prompts that the server has not seen, and streams its answer. Beside it, for one task: LoRA trained
on its answers, then loaded; and the generated adapter merged, and a server started on the result.

The last line printed is JSON, the run's provenance and these fields:

* ``seed``; ``engine``; ``requests`` per number of clients;
* ``clients``, by their number: ``seconds`` to the first token of every request, in order, and
  ``adapters_per_minute``;
* ``alternatives``, by name: seconds to the first token, of every repetition.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import torch
import typer
from rich.table import Table

from dnd_fast.base_model import load_base, write_base
from dnd_fast.bench.alternatives import STEPS, Demo
from dnd_fast.bench.harness.results import append, provenance
from dnd_fast.bench.harness.timing import console
from dnd_fast.demo.tasks import SHIPPED_SEED, split_tasks
from dnd_fast.generator_config import DEMO_MODELS
from dnd_fast.lora.adapter import Adapter
from dnd_fast.serving.publisher import Publisher
from dnd_fast.serving.transformers_engine import TransformersEngine

CLIENTS = (1, 8, 32)
REPEATS = 3
TOKENIZER = str(DEMO_MODELS / "tokenizer")


def main(
    engine: Annotated[str, typer.Option(help="As dnd-fast serve takes it.")] = "transformers",
    adapters: Annotated[Path | None, typer.Option(help="Folder that vLLM sees, too.")] = None,
    requests: Annotated[int, typer.Option(help="For each number of clients.", min=1)] = 128,
    seed: Annotated[int, typer.Option(help="Of prompts and LoRA's start.")] = 0,
    save: Annotated[bool, typer.Option(help="Add them to bench/results/serving.jsonl.")] = False,
) -> None:
    """How soon a server answers with an adapter that it has to make first."""
    options = ["--engine", engine, *(["--adapters", str(adapters)] if adapters else [])]
    figures: dict[str, Any] = {"seed": seed, "engine": engine, "requests": requests, "clients": {}}
    with running(*options) as address:
        for clients in CLIENTS:
            bodies = new_prompts(requests, seed, clients)
            figures["clients"][str(clients)] = asyncio.run(ask_all(address, bodies, clients))
    figures["alternatives"] = {
        f"LoRA, {STEPS[0]} steps, then loaded": [tune_and_load(seed) for _ in range(REPEATS)],
        "merged, and a server started": [merge_and_restart(seed) for _ in range(REPEATS)],
    }
    _print(figures)
    if save:
        console.print(f"Wrote {append('serving', figures)}.")
    print(json.dumps(provenance() | figures))


@contextmanager
def running(*options: str) -> Iterator[str]:
    """The address of ``dnd-fast serve`` while the block runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "dnd_fast", "serve", "--no-page", "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, env=os.environ)
    try:
        while not _answers(address):
            if process.poll() is not None:
                raise RuntimeError("dnd-fast serve has ended; its message is above.")
            time.sleep(0.01)
        yield address
    finally:
        process.terminate()
        process.wait()


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", trust_env=False).is_success
    except httpx.TransportError:
        return False


def new_prompts(count: int, seed: int, clients: int) -> list[dict[str, Any]]:
    """Requests that each bring other prompts, of the demo's tasks in turn."""
    tasks = [task for split in split_tasks(SHIPPED_SEED).values() for task in split]
    bodies = []
    for i in range(count):
        # A seed of its own for every request of every run.
        examples = tasks[i % len(tasks)].examples(8, "test", (seed * 100 + clients) * 10**4 + i)
        prompts = [example.prompt for example in examples]
        bodies.append(_chat(prompts[0]) | {"dnd": {"prompts": prompts}})
    return bodies


def _chat(question: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "max_tokens": 24, "stream": True}


async def ask_all(
    address: str, bodies: Sequence[dict[str, Any]], clients: int
) -> dict[str, list[float] | float]:
    """Send requests, so many at a time, after one that warms up."""
    gate = asyncio.Semaphore(clients)
    async with httpx.AsyncClient(base_url=address, timeout=600, trust_env=False) as http:

        async def ask(body: dict[str, Any]) -> float:
            async with gate:
                return await first_token(http, body)

        warm_up = ["a prompt that warms up"] * 8
        await ask(_chat(warm_up[0]) | {"dnd": {"prompts": warm_up}})
        start = time.perf_counter()
        seconds = await asyncio.gather(*map(ask, bodies))
        minutes = (time.perf_counter() - start) / 60
    return {"seconds": list(seconds), "adapters_per_minute": len(bodies) / minutes}


async def first_token(http: httpx.AsyncClient, body: dict[str, Any]) -> float:
    """Seconds from sending a request to the first event with text in it; the answer is read."""
    start, first = time.perf_counter(), None
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.is_error:
            raise RuntimeError((await response.aread()).decode())
        async for line in response.aiter_lines():
            if first is None and '"content": "' in line:
                first = time.perf_counter() - start
    if first is None:
        raise RuntimeError("the answer has no text.")
    return first


def tune_and_load(seed: int) -> float:
    """LoRA on a task's answers, published to the embedded engine, to the first token."""
    demo, task = Demo.load(), split_tasks(SHIPPED_SEED)["test"][0]
    material = demo.material(task, seed)
    start = time.perf_counter()
    tensors = {k: v[0] for k, v in demo.tune(material.examples, STEPS[0], seed).items()}
    config = demo.generator.generate([e.prompt for e in material.shots]).config

    async def publish(root: Path) -> float:
        engine = TransformersEngine(demo.base, demo.tokenizer, "base")
        name = await Publisher(engine, root).publish(Adapter(tensors, config))
        stream = engine.stream(_chat(material.shots[0].prompt), name)
        await anext(stream)
        seconds = time.perf_counter() - start
        await stream.aclose()
        return seconds

    with tempfile.TemporaryDirectory() as root:
        return asyncio.run(publish(Path(root)))


def merge_and_restart(seed: int) -> float:
    """The generated adapter merged, and a server started on the result, to the first token."""
    demo, task = Demo.load(), split_tasks(SHIPPED_SEED)["test"][0]
    prompts = [example.prompt for example in demo.material(task, seed).shots]
    base, tokenizer = load_base(str(DEMO_MODELS / "base"), TOKENIZER, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write_base(demo.generator.generate(prompts).merge_into(base), tokenizer, folder)
        with running("--base", folder, "--tokenizer", TOKENIZER) as address:

            async def ask() -> None:
                async with httpx.AsyncClient(base_url=address, timeout=600) as http:
                    model = demo.generator.layout.base_model
                    await first_token(http, _chat(prompts[0]) | {"model": model})

            asyncio.run(ask())
            return time.perf_counter() - start


def _print(figures: dict[str, Any]) -> None:
    result = Table("clients", "first token, p50", "p99", "adapters per minute", box=None)
    for clients, measured in figures["clients"].items():
        seconds = torch.tensor(measured["seconds"], dtype=torch.float64)
        p50, p99 = (f"{1e3 * seconds.quantile(q):.0f} ms" for q in (0.5, 0.99))
        result.add_row(clients, p50, p99, f"{measured['adapters_per_minute']:.0f}")
    console.print(result)
    for name, values in figures["alternatives"].items():
        console.print(f"{name}: {min(values):.1f} to {max(values):.1f} s")


if __name__ == "__main__":
    typer.run(main)
