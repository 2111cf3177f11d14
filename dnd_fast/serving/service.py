"""Prompts in, a model's name out: the generator, what it has been asked for, and the publisher."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dnd_fast.errors import InvalidInput
from dnd_fast.files import atomic_file, hash_tensors, read_json, write_json
from dnd_fast.generator import Generator
from dnd_fast.lora.adapter import Adapter
from dnd_fast.serving.batcher import Batcher
from dnd_fast.serving.engine import Engine
from dnd_fast.serving.errors import unknown_model
from dnd_fast.serving.metrics import Metrics
from dnd_fast.serving.publisher import Publisher, name_of
from dnd_fast.text.prompts import read_prompts

logger = logging.getLogger(__name__)
LARGEST_SEED = 2**63


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        body_bytes: the largest body.
        prompts: the most prompts of an adapter.
        prompt_characters: the longest prompt.
        waiting: the most requests that wait for the generator, and for an embedded engine.
        seconds: how long an answer, or the next bit of a streamed one, may take.
        known: how many adapters' prompts are kept, from which they are made again.
        rate: requests of a client, such as ``"600/minute"``; None: any number.
    """

    body_bytes: int = 2**21
    prompts: int = 1024
    prompt_characters: int = 2**15
    waiting: int = 2048
    seconds: float = 60.0
    known: int = 4096
    rate: str | None = None


@dataclasses.dataclass
class Made:
    """An adapter that is live: the model's name, and seconds of each stage it took now."""

    name: str
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)


class Service:
    """Makes adapters of prompts, and keeps them live in an engine.

    The same prompts and seed give the same name. What is asked for at the same time is generated
    in one pass. An adapter that had to go is made again from its prompts when it is next named.
    For one event loop.

    Args:
        generator: the generator.
        engine: the engine, of which adapters become models.
        root: the folder for adapters and their prompts; see :class:`Publisher`.
        capacity, grace: see :class:`Publisher`.
        limits: what a request may ask for.
        batch: the most adapters that are generated in one pass.
    """

    def __init__(
        self,
        generator: Generator,
        engine: Engine,
        root: Path,
        *,
        capacity: int = 64,
        grace: float = 0.0,
        limits: Limits | None = None,
        batch: int = 8,
    ) -> None:
        self.generator, self.engine, self.limits = generator, engine, limits or Limits()
        self.publisher = Publisher(engine, root, capacity=capacity, grace=grace)
        self.metrics = Metrics(self.publisher)
        config = dataclasses.asdict(generator.config)
        self._generator_hash = hash_tensors(generator.state_dict(), {"config": str(config)})
        self._batcher = Batcher(self._generate, largest=batch, waiting=self.limits.waiting)
        self._prompts = self.publisher.root / "prompts"
        self._prompts.mkdir(mode=0o700, exist_ok=True)
        files = sorted(self._prompts.glob("dnd-*.json"), key=lambda file: file.stat().st_mtime)
        self._known = {file.stem: int(file.stat().st_mtime) for file in files}

    @asynccontextmanager
    async def adapter(self, prompts: Sequence[str], seed: int = 0) -> AsyncIterator[Made]:
        """Keep the adapter of a task's prompts live while the block runs.

        Raises:
            InvalidInput: the prompts or the seed are unusable or beyond the limits.
            APIError: too many requests are waiting, or the engine does not take it.
        """
        checked = self._checked(prompts, seed)
        made = Made(name_of(self._generator_hash, checked, seed))
        async with self._live(made, checked, seed):
            if made.name not in self._known:
                await asyncio.to_thread(self._write, made.name, checked, seed)
                self._remember(made.name)
            yield made

    @asynccontextmanager
    async def model(self, name: str) -> AsyncIterator[str]:
        """Keep the model of a name live while the block runs: the base, or a known adapter.

        Raises:
            APIError: there is no such model, or it cannot be made again.
        """
        if name == self.engine.model:
            yield name
            return
        asked = await asyncio.to_thread(self._read, name) if name in self._known else None
        if asked is not None:
            async with self._live(Made(name), *asked):
                yield name
        elif name in self.publisher.loaded:
            async with self.publisher.lease(name):
                yield name
        else:
            raise unknown_model(name)

    def adapters(self) -> list[dict[str, Any]]:
        """Describe all known adapters, those made last at the end."""
        loaded = set(self.publisher.loaded)
        return [
            {"id": name, "object": "adapter", "created": created, "loaded": name in loaded}
            for name, created in self._known.items()
        ]

    def forget(self, name: str) -> None:
        """Remove an adapter, when it is no longer in use, and its prompts.

        Raises:
            APIError: there is no such adapter.
        """
        if name not in self._known:
            raise unknown_model(name)
        self._discard(name)
        self.publisher.doom(name)

    async def close(self) -> None:
        """Stop what is under way."""
        self._batcher.close()
        await self.publisher.close()
        await self.engine.close()

    @asynccontextmanager
    async def _live(self, made: Made, prompts: list[str], seed: int) -> AsyncIterator[None]:
        started = time.perf_counter()

        async def make() -> Adapter:
            adapter, seconds = await self._batcher.submit((prompts, seed))
            made.seconds |= {"wait": time.perf_counter() - started - sum(seconds.values())}
            made.seconds |= seconds
            return adapter

        async with self.publisher.lease(made.name, make):
            total = time.perf_counter() - started
            made.seconds["publish"] = total - sum(made.seconds.values())
            self.metrics.made(made.seconds)
            yield

    def _generate(
        self, tasks: list[tuple[list[str], int]]
    ) -> list[tuple[Adapter, dict[str, float]]]:
        """Generate a batch, in one pass per seed; runs in the batcher's thread."""
        results: dict[int, tuple[Adapter, dict[str, float]]] = {}
        for seed in {seed for _, seed in tasks}:
            rows = [i for i, task in enumerate(tasks) if task[1] == seed]
            adapters = self.generator.generate([tasks[i][0] for i in rows], seed=seed)
            timings = dict(self.generator.timings)
            results |= {i: (adapter, timings) for i, adapter in zip(rows, adapters, strict=True)}
        self.metrics.batch.observe(len(tasks))
        return [results[i] for i in range(len(tasks))]

    def _checked(self, prompts: Sequence[str], seed: int) -> list[str]:
        checked = read_prompts(list(prompts))
        limits = self.limits
        if len(checked) > limits.prompts:
            raise InvalidInput(
                f"there are {len(checked):,} prompts, at most {limits.prompts:,} are taken; send "
                "some of them."
            )
        for i, prompt in enumerate(checked):
            if len(prompt) > limits.prompt_characters:
                raise InvalidInput(
                    f"prompts[{i}] has {len(prompt):,} characters, at most "
                    f"{limits.prompt_characters:,} are taken; shorten it."
                )
        if type(seed) is not int or not 0 <= seed < LARGEST_SEED:
            raise InvalidInput(f"seed={seed!r} must be an integer from 0 to 2**63 - 1.")
        return checked

    def _write(self, name: str, prompts: list[str], seed: int) -> None:
        with atomic_file(self._file(name)) as file:
            write_json(file, {"prompts": prompts, "seed": seed})

    def _read(self, name: str) -> tuple[list[str], int] | None:
        """What an adapter was made of; None where that would now give another one, or nothing."""
        try:
            asked = read_json(self._file(name))
            prompts, seed = asked["prompts"], asked["seed"]
        except (OSError, InvalidInput, KeyError) as error:
            logger.warning("the prompts of %s cannot be read: %s", name, error)
            return None
        of_this_generator = name_of(self._generator_hash, prompts, seed) == name
        return (prompts, seed) if of_this_generator else None

    def _remember(self, name: str) -> None:
        self._known[name] = int(time.time())
        for oldest in list(self._known)[: -self.limits.known]:
            self._discard(oldest)

    def _discard(self, name: str) -> None:
        if self._known.pop(name, None) is not None:
            self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self._prompts / f"{name}.json"
