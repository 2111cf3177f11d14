"""Publishing: what does not fit is refused, a folder never changes and goes only when unused."""

import asyncio
import os
import shutil
import stat

import pytest
import torch

pytest.importorskip("fastapi", reason="needs the extra serve")

from dnd_fast import Adapter, InvalidInput
from dnd_fast.lora.adapter import lora_config, weight_keys
from dnd_fast.serving.errors import APIError
from dnd_fast.serving.publisher import NAME, Publisher

from .conftest import run

MODULES = [f"model.layers.{i}.self_attn.q_proj" for i in range(2)]


class Recorder:
    """An engine that reads folders whenever it likes, as vLLM does."""

    kind, model, base, max_rank = "recorder", "base", "/served/base", 4

    def __init__(self, skeleton):
        self.skeleton, self.calls, self.models = skeleton, [], {}
        self.refuses = False

    async def load(self, name, folder):
        self.calls.append(("load", name))
        await asyncio.sleep(0.01)
        if self.refuses:
            raise APIError("refused", 502)
        assert folder.is_dir()
        self.models[name] = folder

    async def unload(self, name):
        self.calls.append(("unload", name))
        await asyncio.sleep(0.01)
        if self.refuses:
            raise APIError("refused", 502)
        self.models.pop(name, None)


def make_adapter(seed=0, rank=2, width=32, modules=MODULES):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in modules:
        a, b = weight_keys(module)
        tensors[a] = torch.randn(rank, width, generator=generator)
        tensors[b] = torch.randn(32, rank, generator=generator)
    config = lora_config(rank=rank, lora_alpha=4, target_modules=["q_proj"], base_model="other")
    return Adapter(tensors, config)


@pytest.fixture
def engine(tiny_base):
    return Recorder(tiny_base)


def test_content_has_a_name_and_a_folder(engine, tmp_path):
    """The same content is published once, other content under another name; others may read it."""

    async def publish_all():
        publisher = Publisher(engine, tmp_path / "new" / "root")
        names = [await publisher.publish(make_adapter(seed)) for seed in (0, 1, 0)]
        together = await asyncio.gather(*(publisher.publish(make_adapter(2)) for _ in range(20)))
        return names, set(together), publisher.root

    mask = os.umask(0o022)
    try:
        names, together, root = run(publish_all())
    finally:
        os.umask(mask)
    assert names[0] == names[2] != names[1]
    assert len(together) == 1
    assert all(NAME.fullmatch(name) for name in names)
    assert [call for call, _ in engine.calls] == ["load"] * 3
    saved = Adapter.load(root / names[0])
    assert saved.config["base_model_name_or_path"] == "/served/base"
    assert all(torch.equal(saved.tensors[k], v) for k, v in make_adapter(0).tensors.items())
    for file in (root / names[0]).iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o644, "the server's user could not read it"


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        (lambda: make_adapter(width=16), "shape"),
        (lambda: make_adapter(rank=8), "rank 8"),
        (lambda: make_adapter(modules=["model.layers.7.self_attn.q_proj"]), "does not have"),
    ],
    ids=["half the width", "too large a rank", "no such layer"],
)
def test_what_does_not_fit_is_refused(engine, tmp_path, adapter, says):
    """Engines accept all of these and answer nonsense, or die."""

    async def publish():
        publisher = Publisher(engine, tmp_path / "root")
        with pytest.raises(InvalidInput, match=says):
            await publisher.publish(adapter())
        return publisher.loaded, list(publisher.root.iterdir())

    assert run(publish()) == ([], [])
    assert engine.calls == []


def test_those_used_longest_ago_go_when_there_are_too_many(engine, tmp_path):
    async def publish_many():
        publisher = Publisher(engine, tmp_path, capacity=2)
        names = [await publisher.publish(make_adapter(seed)) for seed in (0, 1)]
        await publisher.publish(make_adapter(0))  # used again
        names.append(await publisher.publish(make_adapter(2)))
        await settled(publisher)
        assert publisher.loaded == [names[0], names[2]]
        assert set(engine.models) == {names[0], names[2]}
        assert {folder.name for folder in tmp_path.iterdir()} == {names[0], names[2]}

    run(publish_many())


async def settled(publisher):
    while publisher._unloading or publisher._removals:
        await asyncio.sleep(0.01)


def test_an_adapter_in_use_stays(engine, tmp_path):
    """However many others come; and it goes once it is given back."""

    async def use():
        publisher = Publisher(engine, tmp_path, capacity=1)
        name = await publisher.publish(make_adapter(0))
        async with publisher.lease(name):
            for seed in (1, 2, 3):
                await publisher.publish(make_adapter(seed))
                await settled(publisher)
                assert name in engine.models
                assert (tmp_path / name).is_dir()
            publisher.doom(name)
            await settled(publisher)
            assert name in engine.models, "deleted in use"
        await settled(publisher)
        assert name not in engine.models
        assert not (tmp_path / name).exists()

    run(use())


def test_wanted_again_while_it_goes(engine, tmp_path):
    """Loading comes after unloading, at every moment of it; the folder is there throughout."""

    async def again(delay, grace):
        publisher = Publisher(engine, tmp_path, capacity=4, grace=grace)
        adapter = make_adapter(0)
        name = await publisher.publish(adapter)
        publisher.doom(name)
        await asyncio.sleep(delay)
        await publisher.publish(adapter)
        await asyncio.sleep(0.1)
        assert publisher.loaded == [name]
        assert engine.models == {name: tmp_path / name}
        assert (tmp_path / name).is_dir()
        publisher.doom(name)
        await settled(publisher)

    for grace in (0, 0.03):
        for delay in (0, 0.005, 0.0099, 0.012, 0.02, 0.05):
            run(again(delay, grace))


def test_a_time_of_grace(engine, tmp_path):
    """The folder outlives the model by it."""

    async def graceful():
        publisher = Publisher(engine, tmp_path, grace=0.2)
        name = await publisher.publish(make_adapter(0))
        publisher.doom(name)
        await asyncio.sleep(0.1)
        assert name not in engine.models
        assert (tmp_path / name).is_dir()
        await settled(publisher)
        assert not (tmp_path / name).exists()

    run(graceful())


def test_after_a_refusal_the_next_try_is_fresh(engine, tmp_path):
    async def retry():
        publisher = Publisher(engine, tmp_path)
        engine.refuses = True
        results = await asyncio.gather(
            *(publisher.publish(make_adapter(0)) for _ in range(3)), return_exceptions=True
        )
        assert [type(result) for result in results] == [APIError] * 3
        assert publisher.loaded == []
        engine.refuses = False
        name = await publisher.publish(make_adapter(0))
        assert publisher.loaded == [name]

    run(retry())


def test_what_cannot_be_unloaded_keeps_its_folder(engine, tmp_path):
    """The engine may still read it."""

    async def unload():
        publisher = Publisher(engine, tmp_path)
        name = await publisher.publish(make_adapter(0))
        engine.refuses = True
        publisher.doom(name)
        await settled(publisher)
        assert publisher.loaded == []
        assert (tmp_path / name).is_dir()

    run(unload())


def test_an_earlier_run_is_found_again(engine, tmp_path):
    """What is damaged, or of another base, is not."""

    async def find():
        first = Publisher(engine, tmp_path)
        names = [await first.publish(make_adapter(seed)) for seed in (0, 1)]
        with (tmp_path / names[1] / "adapter_model.safetensors").open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\1\2\3\4")
        (tmp_path / "dnd-other").mkdir()
        engine.calls.clear()
        second = Publisher(engine, tmp_path)
        await second.adopt()
        assert second.loaded == [names[0]]
        assert engine.calls == [("load", names[0])]
        assert await second.publish(make_adapter(1)) == names[1]
        Adapter.load(tmp_path / names[1])

    run(find())


def test_a_client_that_gives_up_leaves_it_to_the_others(engine, tmp_path):
    async def give_up():
        publisher = Publisher(engine, tmp_path)
        tasks = [asyncio.create_task(publisher.publish(make_adapter(0))) for _ in range(2)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        name = await tasks[1]
        assert publisher.loaded == [name]
        assert [call for call, _ in engine.calls] == ["load"]

    run(give_up())


def test_a_folder_that_somebody_has_removed_is_written_again(engine, tmp_path):
    """Before it is next used: the engine may have to read it."""

    async def removed():
        publisher = Publisher(engine, tmp_path)
        name = await publisher.publish(make_adapter(0))
        shutil.rmtree(tmp_path / name)
        assert await publisher.publish(make_adapter(0)) == name
        Adapter.load(tmp_path / name)
        shutil.rmtree(tmp_path / name)
        with pytest.raises(APIError, match="does not exist"):
            async with publisher.lease(name):
                pass
        assert publisher.loaded == []

    run(removed())
