"""Many threads at once get, bit for bit, what each would get alone.

A few hundred calls by default; ``DND_FAST_THREADS=4000 pytest -m threads`` makes 4,000 of them.
"""

import copy
import os
import random
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM

from dnd_fast import Adapter, Generator, TextEncoder
from dnd_fast.base_model import load_base
from dnd_fast.generator_config import DEMO_MODELS
from dnd_fast.kernels.fft.dft import _computed_once
from dnd_fast.svf.adaptive import AdaptiveModel, Mixture
from dnd_fast.svf.expert import DecomposedModel
from dnd_fast.text.load import DEFAULT_ENCODER

from ..bad_input import contents

CALLS = int(os.environ.get("DND_FAST_THREADS", 256))
THREADS = 32
pytestmark = pytest.mark.threads


@pytest.fixture(autouse=True)
def often():
    """Threads take turns ten times as often as they do by default, and have none of their own."""
    interval, count = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(5e-4)
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    sys.setswitchinterval(interval)
    torch.set_num_threads(count)


def at_once(call, arguments, threads=THREADS):
    """The results in order; all threads begin together."""
    barrier = threading.Barrier(min(threads, len(arguments)))
    with ThreadPoolExecutor(threads, initializer=barrier.wait) as pool:
        return list(pool.map(call, arguments))


def tasks(count):
    """Short and long ones, some beyond the length that is encoded."""
    rng = random.Random(0)
    words = "say name count list turn word letter colour river".split()
    return [
        [" ".join(rng.choices(words, k=rng.choice([3, 9, 40, 80]))) for _ in range(4)]
        for _ in range(count)
    ]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_everything_at_once(tiny_generator, tiny_config, tmp_path):
    """Generate, encode, apply to a model of one's own, save: mixed, by 32 threads."""
    generator = copy.deepcopy(tiny_generator)
    prompts = tasks(8)
    ids = torch.arange(12).view(2, 6)
    torch.manual_seed(0)
    base = Qwen2ForCausalLM(tiny_config).eval()

    def work(number):
        task = prompts[number % len(prompts)]
        kind = number % 4
        if kind == 0:
            return generator.generate(task).tensors
        if kind == 1:
            return {"hidden": generator.encode([task])}
        adapter = generator.generate(task)
        if kind == 2:
            with torch.no_grad():
                return {"logits": adapter.apply(copy.deepcopy(base))(ids).logits}
        folder = tmp_path / str(number)
        adapter.save(folder)
        generator.save_pretrained(folder / "generator")
        assert same(Adapter.load(folder).tensors, adapter.tensors)
        return {
            name: torch.tensor(list(content))
            for name, content in contents(folder).items()
            if content is not None
        }

    expected = [work(number) for number in range(32)]  # kinds and tasks repeat after 8
    found = at_once(work, range(32, 32 + CALLS))
    for number, result in enumerate(found, 32):
        assert same(result, expected[number % 32]), number


def test_one_place_for_all(tiny_generator, tmp_path):
    """Threads save two adapters in one folder, and read it: it is always one of the two."""
    kept = [tiny_generator.generate(task) for task in tasks(2)]
    texts = [adapter.config | {"number": number} for number, adapter in enumerate(kept)]
    kept = [Adapter(a.tensors, config) for a, config in zip(kept, texts, strict=True)]
    kept[0].save(tmp_path / "it")

    def work(number):
        if number % 3 == 0:
            kept[number % 2].save(tmp_path / "it")
            return True
        found = Adapter.load(tmp_path / "it")
        return same(found.tensors, kept[found.config["number"]].tensors)

    assert all(at_once(work, range(CALLS), 16))
    assert os.listdir(tmp_path) == ["it"]


def test_the_first_use_loads_once(tiny_generator, monkeypatch):
    loaded, load = [], TextEncoder.from_pretrained

    def counted(name):
        loaded.append(name)
        return load(name)

    (task,) = tasks(1)
    expected = tiny_generator.generate(task).tensors
    generator = copy.deepcopy(tiny_generator)
    generator._encoder = None
    monkeypatch.setattr(TextEncoder, "from_pretrained", counted)
    found = at_once(lambda _: generator.generate(task).tensors, range(THREADS))
    assert loaded == [DEFAULT_ENCODER]
    assert all(same(each, expected) for each in found)


def test_timings_are_those_of_the_threads_own_call(tiny_generator):
    """They were of the last call of any thread."""
    generator = copy.deepcopy(tiny_generator)
    (task,) = tasks(1)
    generator.generate(task)
    mine = generator.timings
    done, checked = threading.Event(), []

    def other():
        checked.append(generator.timings)
        generator.generate(task)
        checked.append(generator.timings)
        done.set()

    threading.Thread(target=other).start()
    assert done.wait(60)
    assert generator.timings is mine
    assert checked[0] == {}
    assert checked[1] is not mine
    assert checked[1].keys() == mine.keys() == {"encode", "decode", "detokenize"}
    assert copy.deepcopy(generator).timings == {}


def test_loading_while_others_generate(tiny_generator):
    """transformers sets PyTorch's default dtype, for all threads, while it loads."""
    generator = copy.deepcopy(tiny_generator)
    (task,) = tasks(1)
    expected = generator.generate(task).tensors
    fingerprints = {TextEncoder.from_pretrained().fingerprint()}
    demo = Generator.from_pretrained("demo").state_dict()

    def work(number):
        if number % 4 == 0:
            model, _ = load_base(
                str(DEMO_MODELS / "base"), str(DEMO_MODELS / "tokenizer"), dtype=torch.bfloat16
            )
            return {p.dtype for p in model.parameters()} == {torch.bfloat16}
        if number % 16 == 1:
            return TextEncoder.from_pretrained().fingerprint() in fingerprints
        if number % 16 == 2:
            return same(Generator.from_pretrained("demo").state_dict(), demo)
        return same(generator.generate(task).tensors, expected)

    assert all(at_once(work, range(max(48, CALLS // 8)), 8))
    assert torch.get_default_dtype() == torch.float32


def test_experts_of_one_base(tmp_path):
    """Each changes the base while it answers; others, plain or not, wait."""
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODELS / "base", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODELS / "tokenizer")
    base = DecomposedModel(model.requires_grad_(False), "attention")
    experts = {
        str(factor): base.expert(
            {name: torch.full((size,), factor) for name, size in base.sizes.items()}
        )
        for factor in (0.2, 3.0)
    }
    adaptive = AdaptiveModel(base, tokenizer, experts)
    prompts = ["what letter does camel start with", "spell tea backwards", "copy oak"]

    def work(number):
        if number % 3 == 2:
            return adaptive.respond(prompts, "prompt", max_new_tokens=3)
        expert = experts[("0.2", "3.0")[number % 3]]
        mixture = Mixture(expert, [], torch.empty(0), 0.0, 0.0, 0, 0.0)
        return adaptive.respond(prompts, mixture, max_new_tokens=3)

    expected = [work(number) for number in range(3)]
    assert len({str(answers) for answers in expected}) == 3
    found = at_once(work, range(CALLS // 8), 8)
    assert all(answers == expected[i % 3] for i, answers in enumerate(found))


def test_matrices_that_graphs_hold_are_one_for_all_threads():
    """By functools.cache alone, each of several first threads had its own, and one was kept."""
    seen, begun = [], threading.Barrier(8)

    @_computed_once
    def slow(number):
        seen.append(number)
        threading.Event().wait(0.02)
        return torch.zeros(number)

    def ask(_):
        begun.wait()
        return slow(3)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    assert len(set(map(id, found))) == 1
    assert seen == [3]
