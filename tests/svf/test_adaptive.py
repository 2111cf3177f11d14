"""Two passes: what the first one chooses, and that the second one really uses it."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dnd_fast import InvalidInput
from dnd_fast.demo.tasks import Task
from dnd_fast.generator_config import DEMO_MODELS
from dnd_fast.lora.batched import collate, encode, exact_match, generate_responses
from dnd_fast.svf.adaptive import (
    OTHERS,
    AdaptiveModel,
    FewShotSpec,
    classification_examples,
    question,
)
from dnd_fast.svf.cem import CemSpec
from dnd_fast.svf.decomposition import initial_vectors, scales_of
from dnd_fast.svf.expert import DecomposedModel
from dnd_fast.train.experts.reinforce import fit_experts

TASKS = {
    "first": Task("first", "brackets", "animal"),
    "count": Task("count", "stars", "tool"),
    "upper": Task("upper", "hash", "food"),
}
LIGHT = CemSpec(iterations=10, population=24, elites=6)


def turns(name, count, words="train", seed=0):
    return [example.turn for example in TASKS[name].examples(count, words, seed)]


def ones(base):
    return base.expert(initial_vectors(base.sizes, "plain", 0))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DEMO_MODELS / "tokenizer")


@pytest.fixture(scope="module")
def base():
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODELS / "base", dtype=torch.float32)
    return DecomposedModel(model.eval().requires_grad_(False))


@pytest.fixture(scope="module")
def adaptive(base, tokenizer):
    """An expert for each task, and a classifier that tells them from one another."""
    data = [turns(name, 64) for name in TASKS]
    data.append(classification_examples({n: turns(n, 48) for n in TASKS}, "{prompt}"))
    fitted = fit_experts(
        base,
        [encode(tokenizer, each) for each in data],
        steps=24,
        batch=8,
        learning_rate=3e-2,
        seed=0,
    )
    experts = [base.expert({name: z[k] for name, z in fitted.items()}) for k in range(4)]
    named = dict(zip(TASKS, experts, strict=False))
    return AdaptiveModel(base, tokenizer, named, classifier=experts[3], template="{prompt}")


def test_the_classifier_is_what_is_asked(adaptive, base, tokenizer):
    """In the first pass its weights count, and no longer in the second."""
    prompts = [e.prompt for name in TASKS for e in turns(name, 8, "test")]
    chosen = adaptive.choose(prompts, "classifier")
    assert chosen != adaptive.choose(prompts, "prompt")
    unasked = AdaptiveModel(
        base, tokenizer, adaptive.experts, classifier=ones(base), template="{prompt}"
    )
    assert unasked.choose(prompts, "classifier") == adaptive.choose(prompts, "prompt")


def test_the_chosen_expert_answers(adaptive, base, tokenizer, monkeypatch):
    """Grouped by expert, answered in the prompts' order."""
    prompts = [
        e.prompt for pair in zip(*(turns(n, 4, "test") for n in TASKS), strict=True) for e in pair
    ]
    chosen = [name for _ in range(4) for name in TASKS]
    monkeypatch.setattr(adaptive, "choose", lambda prompts, strategy: chosen)
    answers = adaptive.respond(prompts, "classifier", max_new_tokens=12)
    assert [answer.expert for answer in answers] == chosen
    for name, expert in adaptive.experts.items():
        with base.merged(expert):
            group = [p for p, c in zip(prompts, chosen, strict=True) if c == name]
            alone = generate_responses(base.model, tokenizer, [group], max_new_tokens=12)[0]
        assert [a.response for a in answers if a.expert == name] == alone
    right = [
        e.response for pair in zip(*(turns(n, 4, "test") for n in TASKS), strict=True) for e in pair
    ]
    assert sum(a.response == b for a, b in zip(answers, right, strict=True)) >= 7
    assert set(adaptive.timings) == {"first pass", "second pass"}
    assert all(seconds > 0 for seconds in adaptive.timings.values())


def test_asking_takes_the_most_likely_answer(adaptive, base, tokenizer):
    """Against the probabilities of whole answers, one by one."""
    prompts = [e.prompt for e in turns("count", 5, "test")]
    expected = []
    for prompt in prompts:
        scores = []
        for name in adaptive.categories:
            text = f"{tokenizer.bos_token} {prompt}\n"
            start = len(tokenizer(text)["input_ids"])
            ids = torch.tensor([tokenizer(text + name + tokenizer.eos_token)["input_ids"]])
            with torch.no_grad():
                likely = base.model(ids).logits.log_softmax(-1)[0, start - 1 : -1]
            scores.append(likely.gather(1, ids[0, start:, None]).sum())
        expected.append(adaptive.categories[torch.stack(scores).argmax()])
    assert adaptive.choose(prompts, "prompt") == expected


def test_others_is_the_plain_base(adaptive, base, tokenizer, monkeypatch):
    """Logits bit by bit, after an expert has been on and off; not merely the same texts."""
    prompts = [e.prompt for e in turns("first", 4, "test")]
    ids = tokenizer(prompts[0], return_tensors="pt")["input_ids"]
    before = base.model(ids).logits
    adaptive.respond(prompts, "classifier", max_new_tokens=4)
    monkeypatch.setattr(adaptive, "choose", lambda prompts, strategy: [OTHERS] * len(prompts))
    seen = []
    handle = base.model.register_forward_hook(lambda *call: seen.append(call[2].logits))
    answers = adaptive.respond(prompts, "prompt", max_new_tokens=4)
    through = list(seen)
    seen.clear()
    plain = generate_responses(base.model, tokenizer, [prompts], max_new_tokens=4)[0]
    handle.remove()
    assert [answer.response for answer in answers] == plain
    assert {answer.expert for answer in answers} == {OTHERS}
    assert all(a.equal(b) for a, b in zip(through, seen, strict=True))
    assert base.model(ids).logits.equal(before)


def test_few_shot_finds_the_expert(adaptive, base, tokenizer):
    """Ten answered prompts of a task with an expert of its own."""
    mixture = adaptive.few_shot(turns("first", 10, seed=5), FewShotSpec(cem=LIGHT), seed=0)
    assert mixture.names == [*TASKS, OTHERS]
    assert mixture.alpha.shape == (1, 4)
    assert mixture.alpha.sum().item() == pytest.approx(1, abs=1e-5)
    assert mixture.alpha[0].argmax() == 0
    test = collate(encode(tokenizer, turns("first", 32, "test"))).view(1, 32)
    assert exact_match(base.model, test).item() < 0.1
    with base.merged(mixture.expert):
        assert exact_match(base.model, test).item() > 0.6
    answers = adaptive.respond([e.prompt for e in turns("first", 4, "test")], mixture)
    assert {answer.expert for answer in answers} == {"mixture"}
    assert adaptive.timings["first pass"] == mixture.seconds


@pytest.mark.parametrize("per", ["vector", "layer"])
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("others", [True, False])
def test_a_mixture_is_the_sum_it_says(adaptive, per, normalised, others):
    spec = FewShotSpec(per, normalised, others, CemSpec(iterations=2, population=4, elites=2))
    found = adaptive.few_shot(turns("upper", 2), spec, seed=1)
    assert found.alpha.shape == (3 if per == "layer" else 1, 4 if others else 3)
    assert (found.alpha.sum(-1) - 1).abs().max() < 1e-5 or not normalised
    for name, z in found.expert.vectors.items():
        row = found.alpha[int(name.split(".")[2]) if per == "layer" else 0]
        expected = sum(
            a * e.vectors[name] for a, e in zip(row, adaptive.experts.values(), strict=False)
        )
        expected = expected + (row[-1] if others else 0.0)
        assert torch.allclose(z, expected, atol=1e-5)
    again = adaptive.few_shot(turns("upper", 2), spec, seed=1)
    assert again.alpha.equal(found.alpha)


def test_the_base_in_a_published_mixture(base, tokenizer):
    """There, what scales by 1 is z = 0."""
    vectors = {name: 0.1 * torch.randn(size) for name, size in base.sizes.items()}
    adaptive = AdaptiveModel(base, tokenizer, {"a": base.expert(vectors, "published")})
    for name, sigma in ((n, svd.s) for n, svd in base.svds.items()):
        stacked = adaptive._stacked(name, ["a", OTHERS])
        assert torch.allclose(scales_of(stacked[1], sigma, "published"), torch.ones(len(sigma)))


def test_the_score_is_exact_match(adaptive, base, tokenizer):
    batch = collate(encode(tokenizer, turns("first", 16, "test")))
    vectors = {
        name: torch.stack([e.vectors[name] for e in adaptive.experts.values()])
        for name in base.sizes
    }
    scores = adaptive._score(vectors, batch, 3)
    for k, expert in enumerate(adaptive.experts.values()):
        with base.merged(expert):
            assert scores[k, 0] == exact_match(base.model, batch.view(1, 16)).double()


def test_the_question():
    assert question("what {is} it", ["a", "b"], "{categories}: {prompt}") == "a, b: what {is} it"
    found = classification_examples({"first": turns("first", 2)})
    assert [example.response for example in found] == ["first", "first"]
    assert "first, others" in found[0].prompt


def test_unusable(adaptive, base, tokenizer):
    expert = adaptive.experts["first"]

    def refused(message, experts, **options):
        with pytest.raises(InvalidInput, match=message):
            AdaptiveModel(base, tokenizer, experts, **options)

    refused("no experts", {})
    refused("'others' is the name", {OTHERS: expert})
    refused(r"no \{prompt\}", {"a": expert}, template="which one?")
    published = base.expert(expert.vectors, "published")
    refused(r"b: it scales 15 matrices \(published\)", {"a": expert, "b": published})
    half = {name: z for name, z in expert.vectors.items() if "mlp" in name}
    refused("b: it scales 9 matrices", {"a": expert, "b": base.expert(half)})
    with pytest.raises(InvalidInput, match="needs a classification expert"):
        AdaptiveModel(base, tokenizer, {"a": expert}).choose(["x"], "classifier")
    with pytest.raises(InvalidInput, match="strategy='guess'"):
        adaptive.choose(["x"], "guess")
    with pytest.raises(InvalidInput, match="at least one answered prompt"):
        adaptive.few_shot([])
    other = AutoModelForCausalLM.from_pretrained(DEMO_MODELS / "base", dtype=torch.float32)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(InvalidInput, match="first: the expert was trained on other weights"):
        AdaptiveModel(DecomposedModel(other), tokenizer, adaptive.experts)
