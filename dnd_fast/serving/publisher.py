"""Adapters published to an engine: checked, written once, loaded, and removed when not in use."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from dnd_fast.errors import InvalidInput
from dnd_fast.files import hash_tensors, remove_folder
from dnd_fast.lora.adapter import Adapter
from dnd_fast.lora.adapter_files import plain
from dnd_fast.lora.attach import require_fit
from dnd_fast.serving.engine import Engine
from dnd_fast.serving.errors import APIError, unknown_model

logger = logging.getLogger(__name__)
NAME = re.compile(r"dnd-[0-9a-f]{16}")
Make = Callable[[], Awaitable[Adapter]]


def name_of(*content: object) -> str:
    """Return ``dnd-<16 hex>``, of SHA-256 over JSON values: other content has another name."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    return f"dnd-{digest.hexdigest()[:16]}"


@dataclass(eq=False)
class _Entry:
    """A model of the engine.

    ``ready`` ends when it is loaded; ``leases`` counts who uses it now; who is ``doomed`` goes
    when nobody does.
    """

    ready: asyncio.Task[None]
    leases: int = 0
    doomed: bool = False


class Publisher:
    """Makes adapters models of an engine, each in a folder ``dnd-<16 hex>`` that never changes.

    Engines read folders again long after they have loaded them, and some die if one is gone then.
    So a folder is removed only when its model is unloaded, nobody uses it any more, and a time of
    grace is over. For one event loop; one publisher at a time for a folder.

    Args:
        engine: the engine, which must be able to read ``root`` under the same path.
        root: the folder for the adapters' folders. Those of an earlier run are found again.
        capacity: how many adapters stay loaded while nobody uses them.
        grace: seconds from unloading a model to removing its folder, for engines that others
            use directly, too.
    """

    def __init__(
        self, engine: Engine, root: Path, *, capacity: int = 64, grace: float = 0.0
    ) -> None:
        self.engine, self.root, self.capacity, self.grace = engine, root.resolve(), capacity, grace
        self._entries: dict[str, _Entry] = {}  # whose order is that of use
        self._unloading: dict[str, asyncio.Task[None]] = {}
        self._removals: dict[str, asyncio.TimerHandle] = {}
        self.root.mkdir(parents=True, exist_ok=True)

    @property
    def loaded(self) -> list[str]:
        """Names of the loaded adapters, the one last used at the end."""
        return [n for n, entry in self._entries.items() if not entry.doomed and entry.ready.done()]

    async def adopt(self) -> None:
        """Load the adapters that an earlier run has left, but for those that no longer fit."""
        for folder in sorted(self.root.glob("dnd-*")):
            if NAME.fullmatch(folder.name):
                try:
                    async with self.lease(folder.name):
                        pass
                except APIError as error:
                    logger.warning("%s is not loaded: %s", folder, error.message)

    async def publish(self, adapter: Adapter) -> str:
        """Make an adapter a model of the engine, and return the model's name.

        Publishing it again changes nothing.

        Raises:
            InvalidInput: the adapter does not fit the engine's base or its limits.
            APIError: the engine refuses it, or does not answer.
            OSError: its folder cannot be written.
        """

        async def make() -> Adapter:
            return adapter

        config = json.dumps(plain(adapter.config), sort_keys=True)
        name = name_of(hash_tensors(adapter.tensors), config)
        async with self.lease(name, make):
            return name

    @asynccontextmanager
    async def lease(self, name: str, make: Make | None = None) -> AsyncIterator[None]:
        """Keep an adapter loaded while the block runs; of many at once, one loads it.

        Args:
            name: the adapter's name.
            make: makes it where it has no folder yet.

        Raises:
            APIError: there is no such adapter and no ``make``; or as :meth:`publish`.
        """
        entry = self._entries.pop(name, None)
        if entry is None:
            entry = _Entry(asyncio.create_task(self._bring_up(name, make)))
        elif entry.ready.done() and not (self.root / name).is_dir():  # somebody has removed it
            entry.ready = asyncio.create_task(self._bring_up(name, make))
        self._entries[name] = entry
        entry.doomed = False
        entry.leases += 1
        try:
            await asyncio.shield(entry.ready)
            yield
        finally:
            entry.leases -= 1
            self._shrink()

    def doom(self, name: str) -> None:
        """Remove an adapter as soon as nobody uses it; one that is used anew meanwhile stays."""
        if name in self._entries:
            self._entries[name].doomed = True
            self._shrink()

    async def close(self) -> None:
        """Stop what is under way; models and folders stay."""
        tasks = [*self._unloading.values(), *(entry.ready for entry in self._entries.values())]
        for task in tasks:
            task.cancel()
        for handle in self._removals.values():
            handle.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def check(self, adapter: Adapter) -> None:
        """Raise InvalidInput unless the adapter fits the engine's base: engines ask less.

        That its values are finite is true of every :class:`Adapter`.
        """
        require_fit(adapter, self.engine.skeleton)
        largest = self.engine.max_rank
        if largest is not None and adapter.config["r"] > largest:
            raise InvalidInput(
                f"the adapter has rank {adapter.config['r']}, the engine takes up to {largest}; "
                "start it with a larger --max-lora-rank."
            )

    async def _bring_up(self, name: str, make: Make | None) -> None:
        try:
            if name in self._unloading:
                await asyncio.wait([self._unloading[name]])
            if (removal := self._removals.pop(name, None)) is not None:
                removal.cancel()
            await self._write(name, make)
            await self.engine.load(name, self.root / name)
        except BaseException:
            del self._entries[name]
            raise

    async def _write(self, name: str, make: Make | None) -> None:
        """Have the adapter's folder be there, whole and of a fitting adapter."""
        folder = self.root / name
        try:
            self.check(await asyncio.to_thread(Adapter.load, folder))
        except (FileNotFoundError, InvalidInput) as error:
            if make is None:
                raise unknown_model(name) from error
            made = await make()
            self.check(made)
            config = made.config | {"base_model_name_or_path": self.engine.base}
            await asyncio.to_thread(replace(made, config=config).save, folder)

    def _shrink(self) -> None:
        surplus = len(self._entries) - self.capacity
        for name, entry in list(self._entries.items()):
            if entry.leases or not entry.ready.done():
                continue
            if entry.doomed or surplus > 0:
                del self._entries[name]
                self._unloading[name] = asyncio.create_task(self._take_down(name))
                surplus -= 1

    async def _take_down(self, name: str) -> None:
        try:
            await self.engine.unload(name)
        except APIError as error:  # it may still read the folder, which the next run will find
            logger.warning("%s stays at %s: %s", name, self.root, error.message)
        else:
            loop = asyncio.get_running_loop()
            self._removals[name] = loop.call_later(self.grace, self._remove, name)
        finally:
            del self._unloading[name]

    def _remove(self, name: str) -> None:
        del self._removals[name]
        remove_folder(self.root / name)
