"""vLLM as the engine, against a server that answers as vLLM 0.32 does; the real one has a lane of
its own."""

import asyncio
import json

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

import httpx

from dnd_fast.serving.errors import APIError
from dnd_fast.serving.vllm_engine import VllmEngine
from dnd_fast.serving.vllm_flags import server_flags

from .conftest import run

NAME = "dnd-0123456789abcdef"
CHAT = {"messages": [{"role": "user", "content": "x"}]}


class Server:
    """Names and the forms of answers as vLLM has them."""

    def __init__(self):
        self.loaded, self.requests, self.mood = {}, [], "well"

    async def __call__(self, request):
        body = json.loads(request.content or b"null")
        self.requests.append((request.url.path, body, request.headers.get("authorization")))
        if self.mood == "gone":
            raise httpx.ConnectError("refused")
        if self.mood == "hangs":
            raise httpx.ReadTimeout("silence")
        if self.mood == "broken":
            return httpx.Response(500, text="<html>")
        if self.mood == "locked":
            return httpx.Response(401, json={"error": "Unauthorized"})
        return getattr(self, request.url.path.rpartition("/")[2])(body)

    def health(self, body):
        return httpx.Response(200)

    def load_lora_adapter(self, body):
        assert set(body) == {"lora_name", "lora_path"}, "in place, it is read at every step"
        name = body["lora_name"]
        if name in self.loaded:
            return refused(400, f"The lora adapter '{name}' has already been loaded.")
        self.loaded[name] = body["lora_path"]
        return httpx.Response(200, text="Success")

    def unload_lora_adapter(self, body):
        if self.loaded.pop(body["lora_name"], None) is None:
            return refused(404, "cannot be found")
        return httpx.Response(200, text="Success")

    def completions(self, body):
        model = body["model"]
        if model not in {"base", *self.loaded}:
            return refused(404, f"The model `{model}` does not exist.")
        if body.get("stream"):
            chunks = [{"choices": [{"delta": {"content": c}}], "model": model} for c in "abc"]
            lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
            return httpx.Response(200, text=lines + "data: [DONE]\n\n")
        return httpx.Response(200, json={"model": model, "choices": []})


def refused(status, message):
    error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    return httpx.Response(status, json={"error": error})


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def engine(server):
    transport = httpx.MockTransport(server)
    return VllmEngine("http://vllm", "base", "/base", None, key="secret", transport=transport)


def test_loading_and_unloading_twice_are_success(server, engine, tmp_path):
    async def everything():
        for _ in range(2):
            await engine.load(NAME, tmp_path)
        assert server.loaded == {NAME: str(tmp_path)}
        for _ in range(2):
            await engine.unload(NAME)
        assert server.loaded == {}

    run(everything())
    assert {key for _, _, key in server.requests} == {"Bearer secret"}


def test_chats(server, engine, tmp_path):
    async def everything():
        await engine.load(NAME, tmp_path)
        whole = await engine.complete(CHAT | {"model": "other", "logprobs": True}, NAME)
        bits = [chunk async for chunk in engine.stream(CHAT | {"stream": True}, NAME)]
        return whole, bits

    whole, bits = run(everything())
    assert whole["model"] == NAME
    assert [bit["choices"][0]["delta"]["content"] for bit in bits] == list("abc")
    assert server.requests[1][1] == CHAT | {"model": NAME, "logprobs": True}


@pytest.mark.parametrize("stream", [False, True])
def test_a_restarted_server_gets_its_adapters_back(server, engine, tmp_path, stream):
    async def everything():
        await engine.load(NAME, tmp_path)
        server.loaded.clear()
        if stream:
            assert len([chunk async for chunk in engine.stream(CHAT | {"stream": True}, NAME)]) == 3
        else:
            assert (await engine.complete(CHAT, NAME))["model"] == NAME
        with pytest.raises(APIError, match="does not exist"):
            await engine.complete(CHAT, "dnd-ffffffffffffffff")

    run(everything())


@pytest.mark.parametrize(
    ("mood", "status", "says"),
    [
        ("gone", 502, "does not answer"),
        ("hangs", 504, "in time"),
        ("broken", 502, "vLLM answered 500"),
        ("locked", 502, "vLLM answered 401"),
    ],
)
def test_failures(server, engine, tmp_path, mood, status, says):
    """Each is told as what it is, and over when the server is well again."""

    async def everything():
        await engine.load(NAME, tmp_path)
        server.mood = mood
        stream = engine.stream(CHAT, NAME)
        for failing in (
            engine.complete(CHAT, NAME),
            anext(stream),
            engine.load("dnd-ffffffffffffffff", tmp_path),
            engine.unload(NAME),
            engine.check(),
        ):
            with pytest.raises(APIError, match=says) as caught:
                await failing
            assert caught.value.status == status
        server.mood = "well"
        await engine.load(NAME, tmp_path)
        assert (await engine.complete(CHAT, NAME))["model"] == NAME
        await engine.check()

    run(everything())


def test_a_server_that_is_really_not_there():
    async def everything():
        engine = VllmEngine("http://127.0.0.1:9", "base", "/base", None, seconds=5)
        with pytest.raises(APIError, match="does not answer"):
            await engine.check()
        await engine.close()

    run(everything())


def test_a_server_that_accepts_and_says_nothing():
    async def everything():
        silent = await asyncio.start_server(lambda r, w: asyncio.sleep(60), "127.0.0.1", 0)
        port = silent.sockets[0].getsockname()[1]
        engine = VllmEngine(f"http://127.0.0.1:{port}", "base", "/base", None, seconds=0.3)
        with pytest.raises(APIError, match="in time") as caught:
            await engine.complete(CHAT, "base")
        assert caught.value.status == 504
        await engine.close()
        silent.close()

    run(everything())


def test_flags_are_ones_that_vllm_takes():
    assert server_flags(4, loras=8, capacity=64) == [
        "--enable-lora",
        "--max-lora-rank=8",
        "--max-loras=8",
        "--max-cpu-loras=64",
    ]
    assert "--max-lora-rank=1" in server_flags(1, loras=1, capacity=1)
    assert "--max-lora-rank=32" in server_flags(17, loras=1, capacity=1)
