"""The gateway: every answer is that of PEFT, whatever else goes on; bad input is refused."""

import asyncio
import json
import logging
import time

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

import httpx

from dnd_fast.serving.errors import APIError
from dnd_fast.serving.security import Keys
from dnd_fast.serving.service import Limits
from dnd_fast.serving.transformers_engine import TransformersEngine

from .conftest import MODEL, answer, ask, run

KEY = "a-key-that-is-long-enough"


def test_a_thousand_concurrent_requests_over_fifty_prompt_sets(serve, prompt_sets, truth):
    """Every answer is that of PEFT, one request after the other: none is lost or exchanged.

    A third name the model, a third send the prompts along, and a third stream. Only 20 adapters
    stay loaded at a time, so that many are unloaded and loaded again meanwhile.
    """

    async def one(client, names, i):
        which, question = i % 50, i // 50 % 2
        body = ask(prompt_sets[which][question])
        if i % 3 == 1:
            body["dnd"] = {"prompts": prompt_sets[which]}
        else:
            body["model"] = names[which]
        if i % 3 == 2:
            response = await client.post("/v1/chat/completions", json=body | {"stream": True})
            text, finish = streamed(response)
            assert finish in ("stop", "length")
        else:
            response = await client.post("/v1/chat/completions", json=body)
            text = answer(response)
        return text == truth[which][question]

    async def everything():
        async with serve(capacity=20, limits=Limits(seconds=3000)) as (client, service):
            made = await asyncio.gather(
                *(client.post("/v1/adapters", json={"prompts": p}) for p in prompt_sets)
            )
            names = [response.json()["id"] for response in made]
            assert len(set(names)) == 50
            results = await asyncio.gather(*(one(client, names, i) for i in range(1000)))
            await asyncio.sleep(0.1)
            return (
                results,
                len(service.publisher.loaded),
                list(service.publisher.root.glob("dnd-*")),
            )

    results, loaded, folders = run(everything())
    assert len(results) == 1000
    assert all(results), f"{results.count(False)} of 1000 answers differ"
    assert loaded <= 20
    assert len(folders) <= 20


def streamed(response):
    """The text and the end of a streamed response."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line[6:] for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    return "".join(c["delta"].get("content", "") for c in choices), choices[-1]["finish_reason"]


def test_the_base_answers_as_itself(serve, demo_base, prompt_sets):
    """Also beside adapters in one batch: its rows get none of theirs."""
    from dnd_fast.lora.batched import generate_responses

    base, tokenizer = demo_base
    expected = [generate_responses(base, tokenizer, [[p]])[0][0] for p in prompt_sets[0][:3]]

    async def everything():
        async with serve() as (client, _):
            with_adapter = {"dnd": {"prompts": prompt_sets[0]}}
            bodies = [ask(p, model=MODEL) for p in prompt_sets[0][:3]]
            bodies += [ask(p, **with_adapter) for p in prompt_sets[0][:3]]
            return await asyncio.gather(
                *(client.post("/v1/chat/completions", json=body) for body in bodies)
            )

    answers = [answer(response) for response in run(everything())]
    assert answers[:3] == expected
    assert answers[3:] != expected


def test_the_life_of_an_adapter(serve, prompt_sets, truth):
    async def everything():
        async with serve() as (client, service):
            first = (await client.post("/v1/adapters", json={"prompts": prompt_sets[0]})).json()
            again = (await client.post("/v1/adapters", json={"prompts": prompt_sets[0]})).json()
            seeded = await client.post("/v1/adapters", json={"prompts": prompt_sets[0], "seed": 1})
            assert first["id"] == again["id"] != seeded.json()["id"]
            assert {"wait", "encode", "decode", "detokenize", "publish"} == set(first["seconds"])
            assert set(again["seconds"]) == {"publish"}, "it was generated again"
            assert service.publisher.root.joinpath(first["id"], "adapter_config.json").is_file()
            listed = (await client.get("/v1/adapters")).json()["data"]
            assert (listed[0]["id"], listed[0]["loaded"]) == (first["id"], True)
            models = (await client.get("/v1/models")).json()["data"]
            assert [m["id"] for m in models][:2] == [MODEL, first["id"]]
            gone = await client.delete(f"/v1/adapters/{first['id']}")
            assert gone.json()["deleted"]
            await asyncio.sleep(0.05)
            assert not service.publisher.root.joinpath(first["id"]).exists()
            body = ask(prompt_sets[0][0], model=first["id"])
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 404
            assert (await client.delete(f"/v1/adapters/{first['id']}")).status_code == 404

    run(everything())


def test_a_restarted_gateway_knows_its_adapters(serve, prompt_sets, truth):
    async def everything():
        async with serve() as (client, _):
            name = (await client.post("/v1/adapters", json={"prompts": prompt_sets[0]})).json()[
                "id"
            ]
        async with serve() as (client, service):
            assert service.publisher.loaded == [name]
            body = ask(prompt_sets[0][0], model=name)
            return answer(await client.post("/v1/chat/completions", json=body))

    assert run(everything()) == truth[0][0]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"prompts": []}, 400, "there are no prompts"),
        ({}, 400, "prompts"),
        ({"prompts": "one"}, 400, "prompts"),
        ({"prompts": [1]}, 400, "prompts.0"),
        ({"prompts": [" "]}, 400, "prompts[0] is empty"),
        ({"prompts": ["x"] * 10_000}, 400, "10,000 prompts, at most 1,024"),
        ({"prompts": ["x" * 2**20]}, 400, "1,048,576 characters, at most 32,768"),
        ({"prompts": ["\ud800"]}, 400, "surrogate"),
        ({"prompts": ["x"], "seed": -1}, 400, "seed"),
        ({"prompts": ["x"], "seed": 2**70}, 400, "seed"),
        ({"prompts": ["x"], "seed": "0"}, 400, "seed"),
        ({"prompts": ["x"], "out": "/etc/passwd"}, 400, "out"),
        ([], 400, "dictionary"),
        ({"prompts": ["x" * 2**15] * 100}, 413, "larger than 2,097,152 bytes"),
    ],
    ids=str,
)
def test_bad_prompts(serve, body, status, says):
    async def everything():
        async with serve() as (client, service):
            content = json.dumps(body)
            headers = {"content-type": "application/json"}
            response = await client.post("/v1/adapters", content=content, headers=headers)
            assert service.publisher.loaded == []
            assert service.adapters() == []
            return response

    assert_refused(run(everything()), status, says)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (ask("x", model="gpt-4"), 404, "does not exist"),
        (ask("x", model="dnd-0123456789abcdef"), 404, "does not exist"),
        (ask("x", model="../../etc/passwd"), 404, "does not exist"),
        (ask("x", model="/etc"), 404, "does not exist"),
        (ask("x", model="prompts"), 404, "does not exist"),
        (ask("x", model="dnd-0123456789abcdef/../prompts"), 404, "does not exist"),
        (ask("x", model="dnd-0123456789abcdef\0"), 404, "does not exist"),
        (ask("x"), 400, "'model' is missing"),
        (ask("x", model="gpt-4", dnd={"prompts": ["x"]}), 400, "leave it out"),
        (ask("x", dnd={"prompts": []}), 400, "there are no prompts"),
        (ask("x", model=MODEL, max_tokens=0), 400, "max_tokens"),
        (ask("x", model=MODEL, max_tokens=100_000), 400, "context is 256 tokens"),
        (ask("x " * 300, model=MODEL), 400, "context is 256 tokens"),
        (ask("x", model=MODEL, temperature=-1), 400, "temperature"),
        (ask("x", model=MODEL, n=2), 400, "n:"),
        (ask("x", model=MODEL, tools=[]), 400, "tools"),
        (ask("x", model=MODEL, messages=[]), 400, "messages"),
        (ask("x", model=MODEL, messages=[{"role": "user"}]), 400, "content"),
        (ask("x", model=MODEL, messages=[{"role": "root", "content": "x"}]), 400, "role"),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_chats(serve, body, status, says, stream):
    async def everything():
        async with serve() as (client, _):
            return await client.post("/v1/chat/completions", json=body | {"stream": stream})

    assert_refused(run(everything()), status, says)


def test_broken_json_unknown_routes_and_other_hosts(serve):
    async def everything():
        async with serve() as (client, _):
            headers = {"content-type": "application/json"}
            broken = await client.post("/v1/adapters", content=b'{"prompts": [', headers=headers)
            assert_refused(broken, 400, "JSON")
            deep = await client.post("/v1/adapters", content=b"[" * 10**5, headers=headers)
            assert_refused(deep, 400, "")
            for path in ("/v1/nothing", "/docs", "/redoc", "/openapi.json"):
                assert_refused(await client.get(path), 404, "Not Found")
            assert_refused(await client.put("/v1/adapters"), 405, "Method Not Allowed")
            for path in ("..%2f..%2fetc", "prompts", ".", "dnd-0123456789abcdeg"):
                assert_refused(await client.delete(f"/v1/adapters/{path}"), None, "")
            rebound = await client.get("/health", headers={"host": "evil.example"})
            assert rebound.status_code == 400
            text = await client.post(
                "/v1/adapters",
                content=b'{"prompts": ["x"]}',
                headers={"content-type": "text/plain"},
            )
            assert text.status_code == 400, "a page of another site could send this"

    run(everything())


def assert_refused(response, status, says):
    if status is not None:
        assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert says in error["message"]


def test_keys(serve, prompt_sets):
    """Without the key nothing but /health is answered."""

    async def everything():
        async with serve(keys=Keys(["another-key-of-somebody", KEY])) as (client, service):
            for path in ("/v1/models", "/v1/adapters", "/metrics"):
                for header in ({}, {"authorization": f"Bearer {KEY}x"}, {"authorization": KEY}):
                    assert_refused(await client.get(path, headers=header), 401, "API key")
                right = await client.get(path, headers={"authorization": f"Bearer {KEY}"})
                assert right.status_code == 200
            body = {"prompts": prompt_sets[0]}
            assert_refused(await client.post("/v1/adapters", json=body), 401, "API key")
            chat = ask("x", dnd=body)
            assert_refused(await client.post("/v1/chat/completions", json=chat), 401, "API key")
            assert_refused(await client.delete("/v1/adapters/x"), 401, "API key")
            assert service.adapters() == []
            assert (await client.get("/health")).status_code == 200

    run(everything())


def test_rates(serve):
    """Each key has a rate of its own."""

    async def everything():
        limits = Limits(rate="3/minute")
        async with serve(limits=limits, keys=Keys([KEY, KEY[::-1]])) as (client, _):
            for key in (KEY, KEY[::-1]):
                headers = {"authorization": f"Bearer {key}"}
                codes = [
                    (await client.get("/v1/models", headers=headers)).status_code for _ in range(5)
                ]
                assert codes == [200, 200, 200, 429, 429]

    run(everything())


class Failing(TransformersEngine):
    """An engine that stops or hangs when told to."""

    mood = "well"

    async def pieces(self, request, model):
        if self.mood == "hangs":
            await asyncio.sleep(3600)
        async for piece in super().pieces(request, model):
            if self.mood == "stops":
                raise APIError("the engine does not answer", 502, "engine_unreachable")
            yield piece

    async def load(self, name, folder):
        if self.mood == "stops":
            raise APIError("the engine does not answer", 502, "engine_unreachable")
        if self.mood == "hangs":
            await asyncio.sleep(3600)
        await super().load(name, folder)

    def _run(self, jobs):
        if self.mood == "breaks":
            raise RuntimeError("secret detail")
        return super()._run(jobs)


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_stops_or_hangs(serve, demo_base, prompt_sets, truth, stream, caplog):
    """A clear error within the time-out, and answers as soon as it is well again."""
    engine = Failing(*demo_base, MODEL)

    async def everything():
        async with serve(engine=engine, limits=Limits(seconds=20)) as (client, service):
            body = ask(prompt_sets[0][0], stream=stream)
            one, two = {"prompts": prompt_sets[0]}, {"prompts": prompt_sets[1]}
            name = (await client.post("/v1/adapters", json=one)).json()["id"]
            for mood, status, says in (
                ("stops", 502, "does not answer"),
                ("breaks", 500, "internal error"),
                ("hangs", 504, "within 0.5 seconds"),
            ):
                engine.mood = mood
                seconds = 0.5 if mood == "hangs" else 20
                object.__setattr__(service.limits, "seconds", seconds)
                started = time.monotonic()
                chat = await client.post("/v1/chat/completions", json=body | {"model": name})
                assert_refused(chat, status, says)
                assert "secret" not in chat.text
                if mood != "breaks":
                    made = await client.post("/v1/adapters", json=two)
                    assert_refused(made, status, says)
                assert time.monotonic() - started < 25
            engine.mood = "well"
            object.__setattr__(service.limits, "seconds", 60)
            recovered = ask(prompt_sets[0][0], model=name)
            assert answer(await client.post("/v1/chat/completions", json=recovered)) == truth[0][0]
            assert all(not entry.leases for entry in service.publisher._entries.values())

    with caplog.at_level(logging.CRITICAL):
        run(everything())


def test_whoever_leaves_early_holds_nothing(serve, prompt_sets):
    """A stream that nobody reads to its end gives its adapter back."""

    async def everything():
        async with serve() as (client, service):
            body = ask(prompt_sets[0][0], dnd={"prompts": prompt_sets[0]}, stream=True)
            asking = asyncio.create_task(client.post("/v1/chat/completions", json=body))
            while not service.publisher.loaded:
                await asyncio.sleep(0.01)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            for _ in range(100):
                await asyncio.sleep(0.01)
            assert [entry.leases for entry in service.publisher._entries.values()] == [0]

    run(everything())


def test_metrics(serve, prompt_sets):
    async def everything():
        async with serve() as (client, _):
            body = ask(prompt_sets[0][0], dnd={"prompts": prompt_sets[0]}, stream=True)
            await client.post("/v1/chat/completions", json=body)
            await client.get("/v1/nothing")
            return (await client.get("/metrics")).text

    text = run(everything())
    assert 'dnd_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'dnd_requests_total{route="other",status="404"} 1.0' in text
    assert 'dnd_adapter_seconds_count{stage="decode"} 1.0' in text
    assert "dnd_first_token_seconds_count 1.0" in text
    assert "dnd_adapters_loaded 1.0" in text


def test_the_gateway_over_a_socket(serve, prompt_sets, truth):
    """With uvicorn, as ``dnd-fast serve`` runs it, also streaming."""
    uvicorn = pytest.importorskip("uvicorn")

    async def everything():
        async with serve() as (client, _):
            app = client._transport.app
            server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="error"))
            running = asyncio.create_task(server.serve())
            while not server.started:
                await asyncio.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            try:
                async with httpx.AsyncClient(
                    base_url=f"http://127.0.0.1:{port}", timeout=60
                ) as web:
                    body = ask(prompt_sets[0][0], dnd={"prompts": prompt_sets[0]}, stream=True)
                    return streamed(await web.post("/v1/chat/completions", json=body))
            finally:
                server.should_exit = True
                await running

    assert run(everything()) == (truth[0][0], "stop")
