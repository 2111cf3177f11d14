"""With a real vLLM, whose server has the plugin: `make test-vllm`."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

pytest.importorskip("httpx", reason="needs vLLM: make test-vllm")
pytest.importorskip("prometheus_client", reason="needs vLLM: make test-vllm")

import httpx
import torch

from dnd_fast import Adapter, Generator, InvalidInput, load_base
from dnd_fast.demo.tasks import split_tasks
from dnd_fast.generator_config import DEMO_MODELS
from dnd_fast.serving.service import Service
from dnd_fast.serving.vllm_engine import VllmEngine, connect
from dnd_fast.serving.vllm_flags import SETTINGS, server_flags

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make test-vllm"),
]
KEY = "a-key-that-is-long-enough"
HEADERS = {"Authorization": f"Bearer {KEY}"}
PORT = 8763
URL = f"http://127.0.0.1:{PORT}"
SLOTS = 4


@pytest.fixture(scope="module")
def adapters_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plugin")


@pytest.fixture(scope="module")
def server(tmp_path_factory, adapters_folder):
    """vLLM with the demo's base and few slots, started as the flags that are printed say."""
    log = tmp_path_factory.mktemp("log") / "vllm.log"
    name, _, value = SETTINGS.partition("=")
    environment = os.environ | {
        name: value,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_PLUGINS": "dnd-fast",
        "DND_FAST_GENERATOR": "demo",
        "DND_FAST_ADAPTERS": str(adapters_folder),
    }
    # The tokenizer apart: beside this base's config.json, transformers would take another one.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
    command += ["--port", str(PORT), "--api-key", KEY, "--model", str(DEMO_MODELS / "base")]
    command += ["--tokenizer", str(DEMO_MODELS / "tokenizer"), "--max-model-len", "256"]
    command += ["--enforce-eager", "--dtype", "float32"]
    command += server_flags(4, loras=SLOTS, capacity=2 * SLOTS)
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 500
        while not answers():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"vLLM has not started:\n{log.read_text()[-5000:]}")
            time.sleep(1)
        yield process
    finally:
        process.terminate()
        process.wait(60)


def answers():
    try:
        return httpx.get(f"{URL}/health", timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def web(server):
    with httpx.Client(base_url=URL, headers=HEADERS, timeout=300, trust_env=False) as client:
        yield client
    assert server.poll() is None, "the server has died"


@pytest.fixture(scope="module")
def generator():
    return Generator.from_pretrained("demo")


@pytest.fixture(scope="module")
def prompt_sets():
    """50 tasks of the demo, each with 10 prompts."""
    tasks = [task for split in split_tasks(0).values() for task in split][:50]
    return [[example.prompt for example in task.examples(10, "train", 3)] for task in tasks]


class Peft:
    """What PEFT answers, and with which log probabilities."""

    def __init__(self, generator):
        self.live, self.tokenizer = load_base(
            str(DEMO_MODELS / "base"), str(DEMO_MODELS / "tokenizer")
        )
        self.generator = generator

    def __call__(self, prompts, question, seed=0):
        self.live = self.generator.generate(prompts, seed=seed).apply(self.live)
        ids = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        with torch.no_grad():
            out = self.live.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=24,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
        new = out.sequences[0, ids.shape[1] :]
        logprobs = [
            step[0].log_softmax(-1)[token].item()
            for step, token in zip(out.logits, new, strict=True)
        ]
        return self.tokenizer.decode(new, skip_special_tokens=True), logprobs


@pytest.fixture(scope="module")
def peft(generator):
    return Peft(generator)


def ask(model, question):
    return {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 24,
        "temperature": 0,
        "logprobs": True,
    }


def text(answer):
    return answer["choices"][0]["message"]["content"]


def make(web, prompts, **rest):
    response = web.post("/v1/dnd/adapters", json={"prompts": prompts, **rest})
    assert response.status_code == 200, response.text
    return response.json()["model"]


def chat(web, model, question):
    response = web.post("/v1/chat/completions", json=ask(model, question))
    assert response.status_code == 200, response.text
    return response.json()


def test_the_plugin_answers_as_peft(web, peft, prompt_sets):
    """Also adapters that had to leave their slots meanwhile, and log probabilities to 1e-4."""
    names = [make(web, prompts) for prompts in prompt_sets[:12]]
    assert make(web, prompt_sets[0]) == names[0]
    for i in (*range(12), *range(12)):
        answer = chat(web, names[i], prompt_sets[i][0])
        expected, logprobs = peft(prompt_sets[i], prompt_sets[i][0])
        assert text(answer) == expected
        given = [token["logprob"] for token in answer["choices"][0]["logprobs"]["content"]]
        assert given == pytest.approx(logprobs[: len(given)], abs=1e-4)


def test_two_hundred_adapters_through_four_slots(web, peft, prompt_sets, adapters_folder):
    """More than stay in memory, on disk or known to the server: each is made again when named."""
    cases = [(i, seed) for seed in range(4) for i in range(50)]
    names = [make(web, prompt_sets[i], seed=seed) for i, seed in cases]
    assert len(set(names)) == 200
    for (i, seed), name in list(zip(cases, names, strict=True))[::4]:
        answer = chat(web, name, prompt_sets[i][1])
        assert text(answer) == peft(prompt_sets[i], prompt_sets[i][1], seed)[0]


def test_a_removed_folder(web, peft, prompt_sets, adapters_folder):
    """It is made again when the server must read it, of which it would die."""
    name = make(web, prompt_sets[0])
    assert web.post("/v1/unload_lora_adapter", json={"lora_name": name}).is_success
    shutil.rmtree(adapters_folder / name)
    assert text(chat(web, name, prompt_sets[0][0])) == peft(prompt_sets[0], prompt_sets[0][0])[0]


@pytest.mark.parametrize("name", ["dnd-ffffffffffffffff", "../etc", "dnd-0", "prompts", "/"])
def test_unknown_names(web, name):
    assert web.post("/v1/chat/completions", json=ask(name, "x")).status_code == 404


@pytest.mark.parametrize(
    "body", [{"prompts": []}, {"prompts": [" "]}, {"prompts": ["x"] * 10_000}, {}, {"prompts": 1}]
)
def test_bad_prompts(web, body):
    response = web.post("/v1/dnd/adapters", json=body)
    assert response.status_code in (400, 422)
    assert response.json()["error"]["message"]


def test_the_servers_key_guards_the_plugin(web, prompt_sets):
    body = {"prompts": prompt_sets[0]}
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        response = httpx.post(f"{URL}/v1/dnd/adapters", json=body, headers=headers, trust_env=False)
        assert response.status_code == 401


def test_the_gateways_engine(web, peft, generator, prompt_sets, tmp_path):
    """Through the core and HTTP: loaded, evicted, loaded again; what does not fit is not sent."""

    async def everything():
        from transformers import AutoConfig

        from dnd_fast.serving.engine import skeleton_of

        model, root = await connect(URL, key=KEY)
        skeleton = skeleton_of(AutoConfig.from_pretrained(root))
        engine = VllmEngine(URL, model, root, skeleton, key=KEY)
        service = Service(generator, engine, tmp_path, capacity=3)
        results = []
        for _ in range(2):
            for prompts in prompt_sets[20:28]:
                async with service.adapter(prompts) as made:
                    results.append(text(await engine.complete(ask("", prompts[0]), made.name)))
        together = [service_answer(service, prompts) for prompts in prompt_sets[20:28]]
        results += await asyncio.gather(*together)
        narrow = generator.generate(prompt_sets[0])
        halved = {k: v[..., : v.shape[-1] // 2] for k, v in narrow.tensors.items() if "lora_A" in k}
        with pytest.raises(InvalidInput, match="shape"):
            await service.publisher.publish(Adapter(narrow.tensors | halved, narrow.config))
        await service.close()
        return results

    async def service_answer(service, prompts):
        async with service.adapter(prompts) as made:
            return text(await service.engine.complete(ask("", prompts[0]), made.name))

    expected = [peft(prompts, prompts[0])[0] for prompts in prompt_sets[20:28]]
    assert asyncio.run(everything()) == expected * 3
