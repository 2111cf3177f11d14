"""The demo, served: its generator, its base, and what PEFT answers."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from dnd_fast import Generator, load_base
from dnd_fast.demo.tasks import split_tasks
from dnd_fast.generator_config import DEMO_MODELS
from dnd_fast.lora.batched import generate_responses

MODEL = "dnd-fast-demo-base"


@pytest.fixture(scope="session")
def demo_generator():
    return Generator.from_pretrained("demo")


@pytest.fixture(scope="session")
def demo_base():
    """The base that is served, and its tokenizer."""
    return load_base(str(DEMO_MODELS / "base"), str(DEMO_MODELS / "tokenizer"))


@pytest.fixture(scope="session")
def prompt_sets():
    """50 tasks of the demo, each with 10 prompts."""
    tasks = [task for split in split_tasks(0).values() for task in split][:50]
    return [[example.prompt for example in task.examples(10, "train", 3)] for task in tasks]


@pytest.fixture(scope="session")
def truth(demo_generator, prompt_sets):
    """What PEFT answers to each set's first two prompts, one adapter and one request after the
    other."""
    base, tokenizer = load_base(str(DEMO_MODELS / "base"), str(DEMO_MODELS / "tokenizer"))
    answers = []
    for prompts in prompt_sets:
        live = demo_generator.generate(prompts).apply(base)
        answers.append([generate_responses(live, tokenizer, [[p]])[0][0] for p in prompts[:2]])
        base = live
    return answers


@pytest.fixture
def serve(demo_generator, demo_base, tmp_path):
    """Run a gateway, within this process, while a block runs; yields its client and service."""
    import httpx  # of the extra serve, without which these tests are skipped

    from dnd_fast.serving.gateway import create_app
    from dnd_fast.serving.service import Limits, Service
    from dnd_fast.serving.transformers_engine import TransformersEngine

    @asynccontextmanager
    async def serve(*, limits=None, keys=None, capacity=64, engine=None, root=tmp_path):
        engine = engine or TransformersEngine(*demo_base, MODEL)
        service = Service(
            demo_generator, engine, root, capacity=capacity, limits=limits or Limits()
        )
        app = create_app(service, keys=keys)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app, raise_app_exceptions=False),
                base_url="http://localhost",
                timeout=3000,
            ) as client,
        ):
            yield client, service

    return serve


def run(coroutine):
    return asyncio.run(coroutine)


def ask(prompt, **rest):
    return {"messages": [{"role": "user", "content": prompt}], "max_tokens": 24, **rest}


def answer(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]
