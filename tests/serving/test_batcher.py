"""Batches: in order, each result to whoever asked, and no failure outlives its batch."""

import asyncio
import time

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

from dnd_fast.serving.batcher import Batcher
from dnd_fast.serving.errors import APIError

from .conftest import run


def test_what_comes_together_runs_together():
    batches = []

    def square(items):
        batches.append(list(items))
        time.sleep(0.01)
        return [item * item for item in items]

    async def everything():
        batcher = Batcher(square, largest=8, waiting=100)
        results = await asyncio.gather(*(batcher.submit(i) for i in range(50)))
        batcher.close()
        return results

    assert run(everything()) == [i * i for i in range(50)]
    assert [len(batch) for batch in batches] == [8] * 6 + [2]


def test_too_many_are_refused():
    async def everything():
        batcher = Batcher(lambda items: items, largest=2, waiting=5)
        results = await asyncio.gather(
            *(batcher.submit(i) for i in range(8)), return_exceptions=True
        )
        assert results[:5] == list(range(5))
        assert [error.status for error in results[5:]] == [503] * 3
        assert isinstance(results[5], APIError)
        assert await batcher.submit(9) == 9

    run(everything())


def test_a_failure_is_its_batch_alone():
    def fail_on_three(items):
        if 3 in items:
            raise RuntimeError("three")
        return items

    async def everything():
        batcher = Batcher(fail_on_three, largest=2, waiting=10)
        return await asyncio.gather(*(batcher.submit(i) for i in range(6)), return_exceptions=True)

    results = run(everything())
    assert results[:2] + results[4:] == [0, 1, 4, 5]
    assert all(isinstance(error, RuntimeError) for error in results[2:4])


def test_who_has_given_up_is_left_out():
    seen = []

    def note(items):
        seen.extend(items)
        time.sleep(0.05)
        return items

    async def everything():
        batcher = Batcher(note, largest=1, waiting=10)
        tasks = [asyncio.create_task(batcher.submit(i)) for i in range(3)]
        await asyncio.sleep(0.01)
        tasks[1].cancel()
        await asyncio.wait(tasks)

    run(everything())
    assert seen == [0, 2]
