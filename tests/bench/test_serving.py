"""The serving benchmark: every request brings prompts of its own, and the clock sees the server."""

import asyncio
import json
import time

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

import httpx
from typer.testing import CliRunner

from dnd_fast.bench import serving as bench


def test_prompts_are_new_in_every_request_of_every_run():
    bodies = [
        body
        for seed in (0, 1)
        for clients in bench.CLIENTS
        for body in bench.new_prompts(40, seed, clients)
    ]
    assert len({json.dumps(body["dnd"]) for body in bodies}) == len(bodies)


def test_the_clock_stops_at_the_first_text():
    """A planted delay before it counts, one after it does not."""

    async def events():
        await asyncio.sleep(0.1)
        yield b'data: {"choices": [{"delta": {"role": "assistant", "content": "a"}}]}\n\n'
        await asyncio.sleep(0.5)
        yield b"data: [DONE]\n\n"

    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=events()))

    async def measure():
        async with httpx.AsyncClient(base_url="http://server", transport=transport) as http:
            return await bench.first_token(http, {})

    start = time.perf_counter()
    assert 0.1 <= asyncio.run(measure()) < 0.5
    assert time.perf_counter() - start >= 0.6


@pytest.mark.parametrize(
    "response", [httpx.Response(503, text="overloaded"), httpx.Response(200, text="data: [DONE]")]
)
def test_failures_are_no_figures(response):
    async def measure():
        transport = httpx.MockTransport(lambda request: response)
        async with httpx.AsyncClient(base_url="http://server", transport=transport) as http:
            await bench.first_token(http, {})

    with pytest.raises(RuntimeError):
        asyncio.run(measure())


def test_a_small_run(monkeypatch):
    """Against a real server, its alternatives included."""
    import typer

    monkeypatch.setattr(bench, "CLIENTS", (2,))
    monkeypatch.setattr(bench, "REPEATS", 1)
    monkeypatch.setattr(bench, "STEPS", (2,))
    app = typer.Typer()
    app.command()(bench.main)
    result = CliRunner().invoke(app, ["--requests", "4"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.splitlines()[-1])
    assert len(figures["clients"]["2"]["seconds"]) == 4
    assert all(0 < second < 600 for second in figures["clients"]["2"]["seconds"])
    assert all(values[0] > 0 for values in figures["alternatives"].values())
    assert len(figures["alternatives"]) == 2
