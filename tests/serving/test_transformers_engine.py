"""The embedded engine: any adapters in one batch, stop sequences, sampling, leaving early."""

import asyncio

import pytest
import torch

pytest.importorskip("fastapi", reason="needs the extra serve")

from dnd_fast import Adapter
from dnd_fast.demo.tokenizer import build_tokenizer
from dnd_fast.lora.adapter import lora_config, weight_keys
from dnd_fast.lora.batched import generate_responses
from dnd_fast.serving.transformers_engine import Job, TransformersEngine

from .conftest import MODEL, ask, run

QUESTION = "how many letters has the tool pipe and sound unsure"


@pytest.fixture
def engine(demo_base):
    return TransformersEngine(*demo_base, MODEL)


def random_adapter(base, short, rank, seed, **config):
    """A large one, so that answers show it."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in base.named_modules():
        if name.endswith(f".{short}"):
            a, b = weight_keys(name)
            tensors[a] = torch.randn(rank, module.in_features, generator=generator) * 0.3
            tensors[b] = torch.randn(module.out_features, rank, generator=generator) * 0.3
    plain = lora_config(rank=rank, lora_alpha=3 * rank, target_modules=[short], base_model=None)
    return Adapter(tensors, plain | config)


def test_adapters_of_other_ranks_modules_and_scalings_in_one_batch(engine, demo_base, tmp_path):
    """Each row is what PEFT gives for its adapter alone, the base's row what the base gives."""
    from dnd_fast import load_base
    from dnd_fast.generator_config import DEMO_MODELS

    base, tokenizer = demo_base
    adapters = {
        "a": random_adapter(base, "o_proj", 2, 1),
        "b": random_adapter(base, "down_proj", 5, 2, use_rslora=True),
        "c": random_adapter(base, "o_proj", 7, 3, alpha_pattern={"layers.1.self_attn.o_proj": 1}),
    }
    expected = {MODEL: generate_responses(base, tokenizer, [[QUESTION]])[0][0]}
    for name, adapter in adapters.items():
        own, _ = load_base(str(DEMO_MODELS / "base"), str(DEMO_MODELS / "tokenizer"))
        expected[name] = generate_responses(adapter.apply(own), tokenizer, [[QUESTION]])[0][0]
    assert len(set(expected.values())) == 4

    async def everything():
        for name, adapter in adapters.items():
            adapter.save(tmp_path / name)
            await engine.load(name, tmp_path / name)
        answers = await asyncio.gather(
            *(engine.complete(ask(QUESTION), name) for name in [*expected] * 2)
        )
        return [answer["choices"][0]["message"]["content"] for answer in answers]

    assert run(everything()) == [*expected.values()] * 2


def test_length_and_usage(engine):
    async def everything():
        short = await engine.complete(ask(QUESTION) | {"max_tokens": 2}, MODEL)
        stream = engine.stream(ask(QUESTION, stream_options={"include_usage": True}), MODEL)
        return short, [chunk async for chunk in stream]

    short, chunks = run(everything())
    assert short["choices"][0]["finish_reason"] == "length"
    assert short["usage"]["completion_tokens"] == 2
    assert [len(chunk["choices"]) for chunk in chunks][-1] == 0
    usage = chunks[-1]["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"


def test_sampling(engine):
    """By each row's own temperature: greedy rows of the same batch stay greedy."""

    async def everything():
        bodies = [ask(QUESTION, temperature=2.0) for _ in range(8)] + [ask(QUESTION)] * 8
        answers = await asyncio.gather(*(engine.complete(body, MODEL) for body in bodies))
        return [answer["choices"][0]["message"]["content"] for answer in answers]

    answers = run(everything())
    assert len(set(answers[:8])) > 1
    assert len(set(answers[8:])) == 1


class Loop:
    """Calls at once what a thread hands to the event loop."""

    def call_soon_threadsafe(self, function, *arguments):
        function(*arguments)


def pieces(texts, stops, monkeypatch, most=100):
    """What a job hands on while its text grows as given."""

    class Tokenizer:
        def decode(self, ids, skip_special_tokens):
            return texts[len(ids) - 1]

    async def job():
        from dnd_fast.serving.local_engine import LocalRequest

        request = LocalRequest(messages=[{"role": "user", "content": "x"}], stop=stops)
        job = Job(request, [1, 2], {}, most, Tokenizer(), {0})
        job._loop = Loop()
        for token in range(1, len(texts) + 1):
            if not job.finished:
                job.add(token)
        return [job.pieces.get_nowait() for _ in range(job.pieces.qsize())]

    return run(job())


def test_stop_sequences_are_left_out_and_never_half_sent(monkeypatch):
    sent = pieces(["a", "ab", "ab#", "ab#c", "ab#c#", "ab#c##", "later"], ["##"], monkeypatch)
    assert [piece.text for piece in sent] == ["a", "b", "#c", ""]
    assert [piece.finish for piece in sent] == [None, None, None, "stop"]


def test_what_might_have_been_a_stop_sequence_is_sent_in_the_end(monkeypatch):
    sent = pieces(["a#", "a#"], "##", monkeypatch, most=2)
    assert "".join(piece.text for piece in sent) == "a#"
    assert sent[-1].finish == "length"


def test_half_a_character_waits_for_the_other_half(monkeypatch):
    sent = pieces(["é", "é\ufffd", "é☃", "é☃"], [], monkeypatch, most=4)
    assert [piece.text for piece in sent] == ["é", "☃", ""]


def test_who_leaves_early_stops_the_batch(engine):
    """Else others would wait for an answer that nobody reads."""

    async def everything():
        stream = engine.stream(ask(QUESTION) | {"max_tokens": 200}, MODEL)
        await anext(stream)
        await stream.aclose()
        return await asyncio.wait_for(engine.complete(ask(QUESTION), MODEL), 60)

    assert run(everything())["choices"][0]["message"]["content"]


def test_a_refusing_chat_template(demo_base):
    from dnd_fast import InvalidInput

    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    engine = TransformersEngine(demo_base[0], tokenizer, MODEL)
    with pytest.raises(InvalidInput, match="roles must alternate"):
        run(engine.complete(ask("x"), MODEL))
