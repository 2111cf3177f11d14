"""The service: one pass for what comes together, and names that never mean anything else."""

import asyncio
import time

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

import torch

from dnd_fast.serving.errors import APIError
from dnd_fast.serving.service import Limits, Service
from dnd_fast.serving.transformers_engine import TransformersEngine

from .conftest import MODEL, run


@pytest.fixture
def make_service(demo_generator, demo_base, tmp_path):
    def make(**options):
        engine = TransformersEngine(*demo_base, MODEL)
        return Service(demo_generator, engine, tmp_path, **options)

    return make


async def publish(service, prompts, seed=0):
    async with service.adapter(prompts, seed) as made:
        return made.name


async def reach(service, name):
    async with service.model(name) as live:
        return live


def test_concurrent_prompts_are_one_pass(make_service, prompt_sets, monkeypatch):
    """… of each seed: what is asked for while a pass runs is the next one. And the adapters are
    those of a pass for each, whoever else is in it."""
    service = make_service()
    batches = []
    generate = service.generator.generate

    def noted(tasks, *, seed):
        while not batches and len(service._batcher._waiting) < 8:
            time.sleep(0.01)
        batches.append((len(tasks), seed))
        return generate(tasks, seed=seed)

    monkeypatch.setattr(service.generator, "generate", noted)

    async def everything():
        asked = [(prompts, seed) for prompts in prompt_sets[:4] for seed in (0, 1)]
        first = asyncio.create_task(publish(service, prompt_sets[4]))
        while service._batcher._pump is None or service._batcher._waiting:
            await asyncio.sleep(0.01)
        names = await asyncio.gather(*(publish(service, *each) for each in asked))
        await first
        return asked, [service.engine._adapters[name] for name in names]

    asked, adapters = run(everything())
    assert batches[0] == (1, 0)
    assert sorted(batches[1:]) == [(4, 0), (4, 1)]
    for (prompts, seed), adapter in zip(asked, adapters, strict=True):
        for key, tensor in generate(prompts, seed=seed).tensors.items():
            if ".lora_A." in key:
                torch.testing.assert_close(adapter[key], tensor, atol=1e-6, rtol=1e-5)


def test_many_who_want_one_adapter_have_it_made_once(make_service, prompt_sets, monkeypatch):
    service = make_service()
    generate, calls = service.generator.generate, []
    monkeypatch.setattr(
        service.generator, "generate", lambda *a, **b: calls.append(a) or generate(*a, **b)
    )

    async def everything():
        names = await asyncio.gather(*(publish(service, prompt_sets[0]) for _ in range(30)))
        return set(names)

    assert len(run(everything())) == 1
    assert len(calls) == 1


def test_prompts_of_an_earlier_run_give_their_adapter_and_no_other(make_service, prompt_sets):
    """Not under a name that this generator would not give them; nor where they are damaged or
    gone."""

    async def everything():
        service = make_service()
        names = [await publish(service, prompts) for prompts in prompt_sets[:3]]
        root = service.publisher.root
        for name in names:
            service.publisher.doom(name)
        await asyncio.sleep(0.1)
        assert not any((root / name).exists() for name in names)
        other = "dnd-0123456789abcdef"
        (root / "prompts" / f"{other}.json").write_bytes(
            (root / "prompts" / f"{names[0]}.json").read_bytes()
        )
        again = make_service()
        assert {adapter["id"] for adapter in again.adapters()} == {*names, other}
        (root / "prompts" / f"{names[1]}.json").write_text("{")
        (root / "prompts" / f"{names[2]}.json").unlink()
        assert await reach(again, names[0]) == names[0]
        for name in (names[1], names[2], other):
            with pytest.raises(APIError, match="does not exist"):
                await reach(again, name)
        assert again.publisher.loaded == [names[0]]

    run(everything())


def test_prompts_are_kept_of_the_last_adapters_only(make_service, prompt_sets):
    async def everything():
        service = make_service(limits=Limits(known=2))
        names = [await publish(service, prompts) for prompts in prompt_sets[:3]]
        assert [adapter["id"] for adapter in service.adapters()] == names[1:]
        files = {file.stem for file in (service.publisher.root / "prompts").iterdir()}
        assert files == set(names[1:])
        assert await reach(service, names[0]) == names[0], "it is loaded still"

    run(everything())


def test_prompts_are_for_the_server_alone(make_service):
    assert make_service()._prompts.stat().st_mode & 0o077 == 0
