"""The alternatives benchmark: that it scores and times what it says, and how little it claims."""

import json
import time

import pytest
import torch
import typer
from typer.testing import CliRunner

from dnd_fast.bench import alternatives as bench
from dnd_fast.bench.experiments import large as large_bench
from dnd_fast.bench.harness import results
from dnd_fast.bench.harness.timing import require_steady
from dnd_fast.demo.tasks import SHIPPED_SEED, split_tasks
from dnd_fast.lora.batched import IGNORE_INDEX, collate, encode, generate_responses
from dnd_fast.recipe import Recipe
from dnd_fast.text.datasets import Example

TASK = split_tasks(SHIPPED_SEED)["test"][0]


@pytest.fixture(scope="module")
def demo():
    return bench.Demo.load()


@pytest.fixture(scope="module")
def material(demo):
    return demo.material(TASK, seed=0)


def test_accuracy_against_hand_made_answers(demo):
    """What greedy decoding says is right; the same with a letter more or less is wrong."""
    prompts = [example.prompt for example in TASK.examples(4, "test", 1)]
    said = generate_responses(demo.base, demo.tokenizer, [prompts])[0]
    assert all(said)
    answers = [said[0], f"{said[1]}a", said[2], said[3][:-1]]
    batch = collate(encode(demo.tokenizer, map(Example, prompts, answers))).view(1, 4)
    assert demo.accuracy(batch) == 0.5


def test_the_timer_shows_a_planted_sleep(demo, material, monkeypatch):
    """… in the adaptation, and none of the exam's."""
    adapters = demo.generate(material.shots)
    monkeypatch.setattr(bench.Demo, "generate", lambda *args: time.sleep(0.05) or adapters)
    monkeypatch.setattr(bench.Demo, "accuracy", lambda *args: time.sleep(0.3) or 0.25)
    outcome = bench.alternatives(demo, 0)[bench.GENERATED](material)
    assert 0.05 <= outcome.seconds < 0.3
    assert outcome.accuracy == 0.25


def test_context_is_a_conversation_that_fits(demo, material):
    turns = demo.shown(material)
    batch = bench.after(turns, material.exam)
    assert batch.input_ids.shape[-1] <= demo.base.config.max_position_embeddings
    question = TASK.examples(1, "test", 1)[0]
    said = [*material.shots[: len(turns)], question]
    conversation = [
        {"role": role, "content": content}
        for example in said
        for role, content in (("user", example.prompt), ("assistant", example.answer))
    ]
    ids = demo.tokenizer.apply_chat_template(conversation, return_dict=False)
    assert batch.input_ids[0, 0, : len(ids)].tolist() == ids
    labels = batch.labels[0, 0]
    assert demo.tokenizer.decode(labels[labels != IGNORE_INDEX]) == f"{question.answer}<eos>"
    assert int((labels != IGNORE_INDEX).nonzero()[-1]) == len(ids) - 2


def test_the_context_gives_up_what_does_not_fit(demo, material):
    long = material._replace(shots=material.shots * 4)
    room = demo.base.config.max_position_embeddings - material.exam.input_ids.shape[-1]
    lengths = [len(turn.ids) for turn in demo.shown(long)]
    assert bench.SHOTS < len(lengths) < len(long.shots)
    assert room - 40 < sum(lengths) <= room


def test_one_task(monkeypatch, tmp_path):
    """Every alternative, two and three steps: fields as documented, saved, and made into tables."""
    monkeypatch.setattr(bench, "STEPS", (2, 3))
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    assert bench.markdown() == "No results are committed yet."
    app = typer.Typer()
    app.command()(bench.main)
    result = CliRunner().invoke(
        app, ["--tasks", "1", "--no-large", "--seed", "3", "--noisy", "--save"]
    )
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.splitlines()[-1])
    names = {"generated", "LoRA, 2 steps", "LoRA, 3 steps", "LoRA on 8 examples, 2 steps"}
    names |= {"examples in context", "base model alone"}
    assert figures["seed"] == 3
    assert figures["tasks"] == [str(TASK)]
    assert (figures["questions"], figures["training_examples"], figures["shots"]) == (64, 192, 8)
    assert figures["shots_in_context"] == [8]
    assert figures["large"] is None
    demo = figures["demo"]
    assert demo["device"]
    assert demo["threads"] == 1
    assert len(figures["prompts_sha256"]) == 64
    assert set(demo["seconds"]) == set(demo["accuracy"]) == set(demo["ratio"]) == names
    assert all(len(values) == 1 for values in demo["seconds"].values())
    assert set(demo["first_seconds"]) == names
    assert {len(values) for values in demo["first_seconds"].values()} == {bench.REPEATS}
    assert demo["accuracy"]["generated"][0] > 0.5
    assert demo["accuracy"]["base model alone"][0] < 0.1
    assert demo["ratio"]["generated"] == 1
    assert demo["seconds"]["LoRA, 2 steps"][0] > 0
    (line,) = (tmp_path / "alternatives.jsonl").read_text().splitlines()
    assert json.loads(line)["demo"] == demo
    table = bench.markdown()
    assert "| examples in context |" in table
    assert "0.49 M parameters" in table
    assert "scaled" not in table


def test_large_is_scaled_and_says_so(monkeypatch, tmp_path):
    """With the demo's recipe in place of the large one."""
    monkeypatch.setattr(large_bench, "LARGE", "demo")
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    large = large_bench.compare_large(torch.device("cpu"), seed=0, steps=(75, 300))
    assert large["recipe"] == "demo"
    assert large["encoder"] == "all-MiniLM-L6-v2"
    assert len(large["step_seconds"]) == len(large["generation_seconds"]) == large_bench.ROUNDS
    assert large["scaled_seconds"]["300"] == pytest.approx(300 * large["step_seconds"][1])
    generation = large["generation_seconds"][1]
    assert large["ratio"]["75"] == pytest.approx(75 * large["step_seconds"][1] / generation)
    demo = {"device": "a machine", "seconds": {}, "accuracy": {}, "ratio": {}}
    results.append(
        "alternatives",
        {
            "seed": 0,
            "tasks": [],
            "questions": 64,
            "training_examples": 192,
            "demo": demo,
            "large": large,
        },
    )
    table = bench.markdown()
    assert "| LoRA, 3 steps timed, scaled to 300 |" in table
    assert "3 steps of training were timed, of 8 sequences of 128 tokens" in table


def test_the_demo_must_be_steady_too():
    """By its first task, since tasks differ in length; rounds are compared as they are."""
    seconds = {"generated": [1.0, 1.1, 1.05], "examples in context": [1.0, 5.0]}
    large = {"step_seconds": [1.0, 1.4], "generation_seconds": [1.0, 1.1]}
    repeated = bench._repeated({"demo": {"first_seconds": seconds}, "large": large})
    assert require_steady(repeated, noisy=True)["generated"] < 0.25
    with pytest.raises(SystemExit, match=r"\(large, step 33%; at most 25%\)"):
        require_steady(repeated, noisy=False)


def test_a_training_step_trains_lora_alone():
    step = large_bench.training_step(Recipe.load("demo"), torch.device("cpu"), torch.float32)
    losses = [step().item() for _ in range(20)]
    assert losses[-1] < losses[0]
