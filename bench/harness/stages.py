"""The stages of generating and saving adapters, timed apart."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import torch

from dnd_fast.bench.harness.timing import percentiles
from dnd_fast.generator import Generator
from dnd_fast.lora.adapter import Adapter
from dnd_fast.text.encoder import TextEncoder


def generation_stages(
    generator: Generator, tasks: list[list[str]], rounds: int
) -> dict[str, list[float]]:
    """p20, p50 and p80 seconds of every stage of generating and saving.

    Generating tokenises inside of one stage and copies to the host inside of another: both are
    timed once more on their own, and taken off.
    """
    prompts = [prompt for task in tasks for prompt in task]
    tokenizer = cast(TextEncoder, generator.encoder).tokenizer
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            tokenized = _seconds(lambda: tokenizer(prompts, verbose=False))
            adapters = generator.generate(tasks)
            elements = sum(tensor.numel() for tensor in adapters[0].tensors.values())
            to_host = _seconds(torch.empty(len(tasks), elements, device=generator.device).cpu)
            times = {
                "tokenize": tokenized,
                "encode": generator.timings["encode"] - tokenized,
                "decode": generator.timings["decode"],
                "detokenize": max(0.0, generator.timings["detokenize"] - to_host),
                "to_host": to_host,
            }
            times["total"] = sum(times.values())
            times["save"] = _seconds(partial(_save, adapters, Path(folder)))
            for name, value in times.items():
                seconds.setdefault(name, []).append(value)
    return {name: percentiles(values) for name, values in seconds.items()}


def _save(adapters: list[Adapter], folder: Path) -> None:
    for index, adapter in enumerate(adapters):
        adapter.save(folder / str(index))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
