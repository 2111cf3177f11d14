"""What is asked for at the same time, done in one batch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from dnd_fast.serving.errors import APIError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Collects items while a batch runs, and runs them as the next; in one thread of its own.

    For one event loop. An item whose caller has given up before its batch starts is left out.

    Args:
        run: makes the results of a batch, in order.
        largest: the most items in a batch.
        waiting: the most items that may wait; further ones are refused.
    """

    def __init__(
        self, run: Callable[[list[Item]], Sequence[Result]], *, largest: int, waiting: int
    ) -> None:
        self._run, self._largest, self._limit = run, largest, waiting
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._thread = ThreadPoolExecutor(1)
        self._pump: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """Return an item's result.

        Raises:
            APIError: too many items are waiting.
            Exception: what ``run`` raised for the batch.
        """
        if len(self._waiting) >= self._limit:
            raise APIError(
                f"{self._limit} requests are waiting already; try again in some seconds.",
                503,
                "overloaded",
            )
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run_all())
        return await future

    async def _run_all(self) -> None:
        await asyncio.sleep(0)  # whoever asks in the same turn of the loop is in the first batch
        while self._waiting:
            count = min(self._largest, len(self._waiting))
            taken = [self._waiting.popleft() for _ in range(count)]
            batch = [(item, future) for item, future in taken if not future.done()]
            if batch:
                await self._run_one(batch)

    async def _run_one(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._thread, self._run, [i for i, _ in batch])
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)

    def close(self) -> None:
        """Refuse what waits, and let a running batch end by itself."""
        if self._pump is not None:
            self._pump.cancel()
        for _, future in self._waiting:
            future.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)
