"""The table of an evaluation: against the demo's own measurement, and figures made by hand."""

from statistics import mean

import pytest
import torch

from dnd_fast import Adapter, Generator, InvalidInput
from dnd_fast.base_model import load_base
from dnd_fast.demo.exam import exam
from dnd_fast.generator_config import DEMO_MODELS
from dnd_fast.lora.adapter import PREFIX
from dnd_fast.lora.batched import (
    IGNORE_INDEX,
    collate,
    encode,
    exact_match,
    summed_losses,
    with_adapters,
)
from dnd_fast.text.datasets import Example
from dnd_fast.train.evaluation import evaluate as methods
from dnd_fast.train.evaluation.evaluate import (
    EvalTask,
    Evaluator,
    evaluate,
    generate_adapter,
    with_adapter,
)
from dnd_fast.train.evaluation.metrics import Metric, Settings, make_metric
from dnd_fast.train.evaluation.questions import Question
from dnd_fast.train.evaluation.scores import estimate

SIZE = 16  # questions per data set


@pytest.fixture(scope="module")
def base():
    return load_base(str(DEMO_MODELS / "base"), str(DEMO_MODELS / "tokenizer"))


@pytest.fixture(scope="module")
def generator(encoder):
    return Generator.from_pretrained("demo", encoder=encoder)


@pytest.fixture
def held_out(collection, demo_tasks):
    """The collection's last two data sets, with the questions of the demo's own exam."""
    return [
        EvalTask(
            name,
            collection.dataset(name).examples,
            tuple(Question(e.prompt, e.answer) for e in task.examples(SIZE, "test", 1, "train")),
        )
        for name, task in list(zip(collection.names, demo_tasks, strict=True))[2:]
    ]


@pytest.fixture
def evaluator(base):
    return Evaluator(*base, make_metric("exact", Settings(batch=7)))


@pytest.fixture
def trained_on(collection):
    return collection.names[:2]


def stacked(adapters):
    return {key: torch.stack([a.tensors[key] for a in adapters]) for key in adapters[0].tensors}


def last(collection, name):
    return Adapter.load(collection.checkpoints(name)[-1])


def likelihood(batch):
    """A metric that any adapter changes, unlike exact match, which is 0 for most: exp(-loss)."""
    examples = collate(encode(batch.tokenizer, batch.questions)).view(-1, 1)
    return per_question(batch.model, examples)


def per_question(model, batch):
    tokens = (batch.labels != IGNORE_INDEX).sum((1, 2))
    return (-summed_losses(model, batch) / tokens).exp().tolist()


@pytest.mark.parametrize("name", ["exact", "likelihood"])
def test_the_demo_s_figures(name, base, collection, generator, demo_tasks, held_out, trained_on):
    """Every row as bench.demo_evaluation makes it: K adapters in one pass, each on its exam."""
    model, tokenizer = base
    batch = exam(tokenizer, demo_tasks[2:], size=SIZE)

    @torch.no_grad()
    def score(adapters):
        tensors, scaling = (stacked(adapters), adapters[0].scaling) if adapters else ({}, 1.0)
        if name == "exact":
            return exact_match(model, batch, tensors, scaling).tolist()
        with with_adapters(model, tensors, scaling):
            scores = per_question(model, batch.view(-1, 1))
        return [mean(scores[:SIZE]), mean(scores[SIZE:])]

    metric = Metric("likelihood", "response", Settings(), likelihood)
    if name == "exact":
        metric = make_metric("exact", Settings(batch=7))
    found = evaluate(
        Evaluator(model, tokenizer, metric),
        collection,
        {"": generator},
        held_out,
        trained_on,
        prompt_batches=2,
        seed=3,
    )
    names = [each.name for each in held_out]
    prompts = [[example.prompt for example in each.examples] for each in held_out]
    trained = [last(collection, name) for name in trained_on]
    every = [score([adapter, adapter]) for adapter in trained]
    soup = {key: value.mean(0) for key, value in stacked(trained).items()}
    runs = [score([generator.generate(p, seed=seed) for p in prompts]) for seed in (3, 4)]
    expected = {
        methods.BASE: score([]),
        methods.MEAN: [mean(column) for column in zip(*every, strict=True)],
        methods.BEST: [max(column) for column in zip(*every, strict=True)],
        methods.SOUP: score([Adapter(soup, trained[0].config)] * 2),
        methods.GENERATED: [mean(column) for column in zip(*runs, strict=True)],
        methods.CONTROL: score([generator.generate(p, seed=3) for p in reversed(prompts)]),
        methods.ORACLE: score([last(collection, name) for name in names]),
    }
    assert set(found.rows) == {*expected, methods.NEAREST}
    for row, values in expected.items():
        assert list(found.rows[row]) == names
        means = [estimate(runs).mean for runs in found.rows[row].values()]
        assert means == pytest.approx(values, rel=1e-4), row
    assert {each: len(row) for each, row in found.adapters.items()} == dict.fromkeys(trained_on, 2)
    assert len(found.rows[methods.GENERATED][names[0]]) == 2
    # The generator really is the demo's, which has learned these tasks: figures, not zeros.
    assert found.overall(found.rows[methods.GENERATED]).mean > 0.5


def test_chosen_methods(evaluator, collection, generator, held_out, trained_on):
    """What is not asked for is not computed; the rest is what it is among all rows."""
    subject = evaluator, collection, {"": generator}, held_out, trained_on
    every = evaluate(*subject, prompt_batches=1)
    found = evaluate(*subject, prompt_batches=1, methods=["oracle", "generated"])
    assert found.rows == {name: every.rows[name] for name in (methods.GENERATED, methods.ORACLE)}
    assert not found.adapters
    others = ["base", "training", "nearest", "soup", "control"]
    rest = evaluate(*subject, prompt_batches=1, methods=others)
    assert rest.rows.keys() == every.rows.keys() - found.rows.keys()
    for wrong in (["orcle"], []):
        with pytest.raises(InvalidInput, match=r"no method '(orcle)?' to evaluate; choose of base"):
            evaluate(*subject, methods=wrong)


def test_examples_in_context(base, collection, generator, held_out, trained_on):
    """Earlier turns of the conversation, as the template writes them; never a question itself."""
    model, tokenizer = base
    task = held_out[0]
    examples = tuple(Example(q.prompt, q.response) for q in task.questions[:2])
    examples += tuple(Example(f"echo {word}", word) for word in ("cat", "dog"))
    task = EvalTask(task.name, task.examples, task.questions, examples)
    metric = Metric("likelihood", "response", Settings(), likelihood)
    found = evaluate(
        Evaluator(model, tokenizer, metric),
        collection,
        {"": generator},
        [task],
        trained_on,
        methods=["in-context-2"],
    )
    ((scores,),) = found.rows["in-context-2"].values()

    def asked(order):
        conversations = [
            [
                {"role": role, "content": text}
                for word in order
                for role, text in (("user", f"echo {word}"), ("assistant", word))
            ]
            + [{"role": "user", "content": q.prompt}]
            for q in task.questions
        ]
        starts = tokenizer.apply_chat_template(
            conversations, add_generation_prompt=True, return_dict=False
        )
        scores = []
        for ids, question in zip(starts, task.questions, strict=True):
            end = tokenizer(question.response, add_special_tokens=False).input_ids
            end = [*end, tokenizer.eos_token_id]
            logits = model(torch.tensor([ids + end])).logits[0, len(ids) - 1 : -1]
            losses = logits.log_softmax(-1)[range(len(end)), end]
            scores.append(losses.mean().exp().item())
        return scores

    orders = [asked(order) for order in (("cat", "dog"), ("dog", "cat"))]
    assert any(scores == pytest.approx(each, rel=1e-4) for each in orders)
    with pytest.raises(InvalidInput, match=r"has 2 examples with responses.*3 are wanted"):
        evaluate(
            Evaluator(model, tokenizer, metric),
            collection,
            {},
            [task],
            trained_on,
            methods=["in-context-3"],
        )


def test_questions_that_a_metric_brings_have_no_examples_before_them(
    base, collection, held_out, trained_on
):
    metric = Metric("lm-eval:x", None, Settings(), likelihood)
    with pytest.raises(InvalidInput, match="lm-eval:x brings its own questions"):
        evaluate(
            Evaluator(*base, metric), collection, {}, held_out, trained_on, methods=["in-context-1"]
        )


def test_another_adapter_is_a_row(evaluator, collection, held_out, trained_on):
    other = last(collection, trained_on[0])
    subject = evaluator, collection, {}, held_out, trained_on
    found = evaluate(*subject, methods=["base"], adapters={"mine": other})
    assert set(found.rows) == {"base", "mine"}
    assert found.rows["mine"][held_out[0].name] == [evaluator.score(other, held_out[0])]


def test_another_adapter_is_checked_before_the_first_test(
    evaluator, collection, held_out, trained_on
):
    def refused(message, adapters):
        def progress(*args):
            raise AssertionError

        with pytest.raises(InvalidInput, match=message):
            evaluate(
                evaluator, collection, {}, held_out, trained_on, methods=["base"],
                adapters=adapters, progress=progress,
            )  # fmt: skip

    other = last(collection, trained_on[0])
    refused("cannot be named 'oracle'", {"oracle": other})
    cut = {key: value[..., :-1] if "_A" in key else value for key, value in other.tensors.items()}
    wrong = Adapter(cut, other.config)
    refused("adapter 'cut': the adapter does not fit", {"mine": other, "cut": wrong})


def test_another_adapter_may_be_of_any_kind(base, collection, trained_on):
    """Also with ranks and alphas that differ between modules, which its scaling does not tell."""
    model, _ = base
    plain = last(collection, trained_on[0])
    module = plain.modules[0]
    tensors = dict(plain.tensors)
    for half, cut in (("A", slice(2)), ("B", (slice(None), slice(2)))):
        key = f"{PREFIX}{module}.lora_{half}.weight"
        tensors[key] = tensors[key][cut].clone()
    patterns = {"rank_pattern": {module: 2}, "alpha_pattern": {module: 32}}
    ids = torch.arange(4, 20).view(2, 8)
    before = model(ids).logits
    with with_adapter(model, Adapter(tensors, plain.config | patterns)):
        found = model(ids).logits
    torch.testing.assert_close(found, by_hand(plain, {module: (2, 32 / 2)})(ids).logits)
    assert torch.equal(model(ids).logits, before)


def test_the_nearest_is_the_one_with_the_same_prompts(
    evaluator, collection, generator, held_out, trained_on
):
    twin = collection.dataset(trained_on[1]).examples
    asked = [EvalTask("new", twin[::-1], held_out[0].questions)]
    found = evaluate(evaluator, collection, {"": generator}, asked, trained_on, prompt_batches=1)
    assert found.rows[methods.NEAREST]["new"] == found.adapters[trained_on[1]]["new"]
    assert methods.ORACLE not in found.rows  # "new" has no adapter
    assert "new" in found.rows[methods.CONTROL]  # from a trained data set's prompts


def test_the_diagonal_is_left_out(evaluator, collection, generator, held_out, trained_on):
    """A data set's own adapter is its oracle and nothing else (the paper's Table 10)."""
    own, other = held_out[0].name, trained_on[0]
    found = evaluate(
        evaluator, collection, {"": generator}, held_out[:1], [other, own], prompt_batches=1
    )
    assert found.adapters[own] == {}
    alone = evaluator.score(last(collection, other), held_out[0])
    for row in (methods.MEAN, methods.BEST, methods.NEAREST, methods.SOUP):
        assert found.rows[row] == {own: [alone]}


def test_nothing_trained_on(evaluator, collection, generator, held_out):
    found = evaluate(evaluator, collection, {"": generator}, held_out, [], prompt_batches=1)
    assert set(found.rows) == {
        methods.BASE,
        methods.GENERATED,
        methods.CONTROL,
        methods.ORACLE,
    }


def test_generators_side_by_side(evaluator, collection, generator, held_out, trained_on):
    other = Generator.from_pretrained(DEMO_MODELS / "generator-mse", encoder=generator.encoder)
    found = evaluate(
        evaluator,
        collection,
        {"mse": other, "mse+sft": generator},
        held_out,
        trained_on,
        prompt_batches=1,
    )
    for label, each in (("mse", other), ("mse+sft", generator)):
        adapter = generate_adapter(each, held_out[0].examples, "prompt", 0)
        expected = evaluator.score(adapter, held_out[0])
        assert found.rows[f"generated, {label}"][held_out[0].name] == [expected]


@pytest.mark.parametrize("form", ["prompt", "prompt+answer", "answer"])
def test_condition_forms(generator, form):
    examples = [Example(f"echo cat {i}", f"dog {i}") for i in range(8)]
    texts = {
        "prompt": [e.prompt for e in examples],
        "answer": [e.response for e in examples],
        "prompt+answer": [f"{e.prompt}\n{e.response}" for e in examples],
    }[form]
    found = generate_adapter(generator, examples, form, 5).tensors
    expected = generator.generate(texts, seed=5).tensors
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_mix_is_a_fifth_answers(generator, monkeypatch):
    seen = []
    monkeypatch.setattr(generator, "generate", lambda texts, seed: seen.append((texts, seed)))
    examples = [Example("prompt", "answer")] * 2000
    for seed in (0, 0, 1):
        generate_adapter(generator, examples, "mix", seed)
    assert seen[0] == seen[1] != seen[2]
    assert seen[0][0].count("answer") / 2000 == pytest.approx(0.2, abs=0.04)


def by_hand(adapter, special=()):
    """The demo's base with the adapter added to its weights; (rank, scaling) of some modules."""
    model, _ = load_base(str(DEMO_MODELS / "base"), str(DEMO_MODELS / "tokenizer"))
    for name in adapter.modules:
        a, b = (adapter.tensors[f"{PREFIX}{name}.lora_{half}.weight"] for half in "AB")
        rank, scaling = dict(special).get(name, (len(a), adapter.scaling))
        model.get_submodule(name).weight += scaling * b[:, :rank] @ a[:rank]
    return model


def test_the_base_under_an_adapter(base, collection, trained_on):
    model, _ = base
    adapter = last(collection, trained_on[0])
    ids = torch.arange(4, 20).view(2, 8)
    before = model(ids).logits
    with with_adapter(model, adapter):
        found = model(ids).logits
    assert torch.equal(model(ids).logits, before)
    assert not torch.equal(found, before)
    torch.testing.assert_close(found, by_hand(adapter)(ids).logits, rtol=1e-4, atol=1e-4)


def test_the_base_may_have_another_name(evaluator, collection, generator, held_out, trained_on):
    """A generator names the base as PEFT knows it, its collection may have it from a package."""
    renamed = Generator.from_pretrained("demo", encoder=generator.encoder)
    renamed.layout.base_model = "the hub's name"
    assert renamed.layout.base_model != collection.manifest.base
    subject = evaluator, collection, {"": generator, "renamed": renamed}, held_out, trained_on
    rows = evaluate(*subject, prompt_batches=1, methods=["generated"]).rows
    assert rows["generated, renamed"] == rows[methods.GENERATED]


def test_what_does_not_fit_is_refused(base, collection, generator, tiny_base, trained_on):
    adapter = last(collection, trained_on[0])
    with (
        pytest.raises(InvalidInput, match=r"does not fit this Qwen2ForCausalLM: for .* needs"),
        with_adapter(tiny_base, adapter),
    ):
        pass
    other = Generator.from_pretrained("demo", encoder=generator.encoder)
    other.layout.rank = 2
    with pytest.raises(InvalidInput, match="are for different adapters"):
        evaluate(Evaluator(*base, make_metric("exact")), collection, {"": other}, [], trained_on)
