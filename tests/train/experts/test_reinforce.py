"""REINFORCE on toy problems whose gradient is known, and runs that stop and go on."""

import dataclasses
import json
import os
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dnd_fast import InvalidInput
from dnd_fast.demo.tasks import Task
from dnd_fast.files import locked, read_safetensors
from dnd_fast.filesystem import TEMPORARY
from dnd_fast.generator_config import DEMO_MODELS
from dnd_fast.lora.batched import encode, generate_responses
from dnd_fast.svf.expert import DecomposedModel, Expert
from dnd_fast.text.datasets import Example
from dnd_fast.train.experts.reinforce import (
    ExpertSpec,
    exact_reward,
    fit_experts,
    policy_objective,
    train_expert,
)
from dnd_fast.train.experts.sampling import sample

ARMS = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0])  # rewards of a bandit's arms
BASE = torch.tensor([0.5, 0.0, -0.5, 0.2, 1.0])  # the base's logits
SPEC = ExpertSpec(
    modules="attention",
    steps=4,
    batch=8,
    learning_rate=3e-2,
    max_new_tokens=8,
    validate_every=2,
    validation=0.25,
)


@pytest.fixture(scope="module")
def base():
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODELS / "base", dtype=torch.float32)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DEMO_MODELS / "tokenizer")


@pytest.fixture(scope="module")
def examples():
    task = Task("first", "brackets", "animal")
    return [example.turn for example in task.examples(32, "train", 0)]


def estimates(theta, count, kl, seed=0):
    """J's gradient on ``count`` batches of 32 pulls each: ``[count, arms]``."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        leaf = theta.clone().requires_grad_()
        log_policy = leaf.log_softmax(-1)
        pulled = torch.multinomial(log_policy.exp(), 32, replacement=True, generator=generator)
        objective, _ = policy_objective(
            log_policy.expand(32, -1),
            BASE.log_softmax(-1).expand(32, -1),
            pulled,
            torch.arange(32),
            ARMS[pulled],
            kl,
        )
        found.append(torch.autograd.grad(objective, leaf)[0])
    return torch.stack(found)


def analytic(theta, kl):
    """The gradient of the expected reward, less KL's, summed over the arms in float64."""
    leaf = theta.double().requires_grad_()
    p = leaf.softmax(-1)
    divergence = (p * (p.log() - BASE.double().log_softmax(-1))).sum()
    return torch.autograd.grad((p * ARMS).sum() - kl * divergence, leaf)[0]


@pytest.mark.parametrize("kl", [0.0, 0.2])
def test_gradient_of_a_bandit(kl):
    """Unbiased: each component within four standard errors, and the direction is right."""
    theta = torch.tensor([0.0, 0.3, -0.2, 0.1, 0.4])
    found = estimates(theta, 2000, kl).double()
    expected = analytic(theta, kl)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - expected).abs() < 4 * error).all()
    assert (4 * error < 0.5 * expected.abs().max()).all()  # narrow enough to mean something
    assert torch.cosine_similarity(found.mean(0), expected, dim=0) > 0.99


@pytest.mark.parametrize("reward", [1.0, -1.0])
def test_rewards_move_probability_the_right_way(reward):
    theta = torch.zeros(5, requires_grad=True)
    log_policy = theta.log_softmax(-1)
    chosen = torch.tensor([2])
    objective, _ = policy_objective(
        log_policy[None], log_policy.detach()[None], chosen, torch.tensor([0]),
        torch.tensor([reward]), 0.0,
    )  # fmt: skip
    objective.backward()
    after = (theta + 0.1 * theta.grad).softmax(-1)
    assert (after[2] > 0.2) == (reward > 0)


def test_the_penalty_pulls_towards_the_base():
    """KL(π' ‖ π), not the other way round, with a minus."""
    theta = torch.tensor([2.0, 0.0, 0.0, -1.0, 0.0], requires_grad=True)
    log_policy, log_base = theta.log_softmax(-1), BASE.log_softmax(-1)
    no_reward = torch.zeros(1)
    objective, divergence = policy_objective(
        log_policy[None], log_base[None], torch.tensor([0]), torch.tensor([0]), no_reward, 0.3
    )
    expected = (log_policy.exp() * (log_policy - log_base)).sum()
    assert divergence.item() == pytest.approx(expected.item())
    assert objective.item() == pytest.approx(-0.3 * expected.item())
    objective.backward()
    nearer = (theta + 0.1 * theta.grad).log_softmax(-1)
    assert (nearer.exp() * (nearer - log_base)).sum() < expected


def test_a_bandit_is_solved():
    theta = torch.zeros(5)
    for step in range(150):
        theta += 0.5 * estimates(theta, 1, 0.0, seed=step)[0]
    assert theta.softmax(-1)[ARMS > 0].sum() > 0.97


def test_responses_of_several_tokens_count_as_one():
    """Sums over a response's tokens: a long one is as much one draw as a short one."""
    log_policy = torch.log_softmax(torch.randn(3, 4), -1)
    objective, divergence = policy_objective(
        log_policy, log_policy, torch.tensor([1, 2, 3]), torch.tensor([0, 0, 1]),
        torch.tensor([1.0, -1.0]), 0.5,
    )  # fmt: skip
    expected = (log_policy[0, 1] + log_policy[1, 2] - log_policy[2, 3]) / 2
    assert objective.item() == pytest.approx(expected.item(), rel=1e-6)
    assert divergence.eq(0).all()


def test_samples_are_from_the_policy_itself(base, tokenizer, examples):
    """A generation config with top-k would sample something else than what is differentiated."""
    prompt = encode(tokenizer, examples[:1])[0]
    ids = prompt.ids[: prompt.response_start]
    own = base.generation_config
    try:
        base.generation_config.top_k = 1
        torch.manual_seed(0)
        said = sample(base, tokenizer, [ids] * 2000, temperature=2.0, max_new_tokens=1)
        assert base.generation_config is own
    finally:
        base.generation_config.top_k = None
    first = torch.tensor([each.ids[each.response_start] for each in said])
    found = torch.bincount(first, minlength=base.config.vocab_size) / len(said)
    with torch.no_grad():
        expected = (base(torch.tensor([ids])).logits[0, -1] / 2.0).softmax(-1)
    error = (expected * (1 - expected) / len(said)).sqrt()
    assert ((found - expected).abs() <= 5 * error + 1e-3).all()


def test_greedy_samples_are_what_generation_gives(base, tokenizer, examples):
    """Left padding must change nothing, and the end token belongs to the response."""
    encoded = encode(tokenizer, examples[:6])
    said = sample(
        base,
        tokenizer,
        [each.ids[: each.response_start] for each in encoded],
        temperature=None,
        max_new_tokens=24,
    )
    texts = tokenizer.batch_decode([ids[start:] for ids, start in said], skip_special_tokens=True)
    assert texts == generate_responses(base, tokenizer, [[e.prompt for e in examples[:6]]])[0]
    assert all(each.ids[-1] == tokenizer.eos_token_id for each in said)


def test_exact_reward():
    example = Example("p", " yes ")
    assert exact_reward("yes\n", example) == 1
    assert exact_reward("Yes", example) == -1


def test_training_learns_and_leaves_the_base(base, tokenizer, examples, tmp_path):
    before = {name: value.clone() for name, value in base.state_dict().items()}
    spec = dataclasses.replace(
        SPEC, modules="both", steps=30, warmup=20, batch=16, max_norm=1.0, validate_every=10
    )
    expert = train_expert(base, tokenizer, examples, spec, seed=0, out=tmp_path)
    assert all(value.equal(before[name]) for name, value in base.state_dict().items())
    record = json.loads((tmp_path / "training.json").read_text())
    scores = [each["score"] for each in record["history"]]
    assert scores[0] == 0
    assert record["score"] == max(scores) > 0.5
    assert record["history"][1]["reward"] is None  # a next-token step
    assert -1 <= record["history"][-1]["reward"] <= 1
    assert record["history"][-1]["kl"] > 0
    DecomposedModel(base).check(Expert.load(tmp_path))
    assert all(z.equal(expert.vectors[name]) for name, z in Expert.load(tmp_path).vectors.items())


@pytest.mark.parametrize("objective", ["reinforce", "next-token"])
def test_a_killed_run_goes_on_exactly(base, tokenizer, examples, tmp_path, objective):
    class Killed(Exception):
        pass

    def kill(done, total):
        if done == 3:  # after the state of step 2 was kept
            raise Killed

    spec = dataclasses.replace(SPEC, objective=objective)
    options = {"seed": 1, "reward": lambda text, example: float(len(text) % 3 - 1)}
    whole = train_expert(base, tokenizer, examples, spec, out=tmp_path / "a", **options)
    torch.manual_seed(123)  # the global generator must not matter
    with pytest.raises(Killed):
        train_expert(base, tokenizer, examples, spec, out=tmp_path / "b", progress=kill, **options)
    seen = []
    again = train_expert(
        base, tokenizer, examples, spec, out=tmp_path / "b", **options,
        progress=lambda done, total: seen.append(done),
    )  # fmt: skip
    assert seen == [2, 3, 4]
    assert all(z.equal(again.vectors[name]) for name, z in whole.vectors.items())
    records = [json.loads((tmp_path / run / "training.json").read_text()) for run in "ab"]
    assert records[0] == records[1]
    assert [path.name for path in (tmp_path / "b" / "state").iterdir()] == ["step-000004"]


def test_micro_batches_change_nothing(base, tokenizer, examples, tmp_path):
    spec = dataclasses.replace(SPEC, objective="next-token", validate_every=4)
    found = []
    for size in (256, 3):
        out = tmp_path / str(size)
        spec = dataclasses.replace(spec, micro_batch=size)
        train_expert(base, tokenizer, examples, spec, seed=0, out=out)
        found.append(read_safetensors(out / "state" / "step-000004" / "state.safetensors"))
    for name in (key for key in found[0] if key.startswith("z ")):
        assert (found[0][name] - 1).abs().max() > 0.02
        assert torch.allclose(found[0][name], found[1][name], atol=1e-3)


def test_many_experts_at_once(base, tokenizer, examples):
    """Trained together, each must be what it is alone: no gradient may cross over."""
    other = [e.turn for e in Task("count", "stars", "tool").examples(32, "train", 0)]
    datasets = [encode(tokenizer, each) for each in (examples, other)]
    decomposed = DecomposedModel(base, "attention")
    options = {"steps": 3, "batch": 4, "learning_rate": 3e-2, "seed": 0}
    together = fit_experts(decomposed, datasets, **options)
    for k, data in enumerate(datasets):
        alone = fit_experts(decomposed, [data], **options)
        for name, z in alone.items():
            assert torch.allclose(z[0], together[name][k], atol=2e-4)


def test_another_run_is_not_gone_on_with(base, tokenizer, examples, tmp_path):
    spec = dataclasses.replace(SPEC, objective="next-token", steps=2)
    train_expert(base, tokenizer, examples, spec, seed=0, out=tmp_path)
    for change, message in (
        ({"spec": dataclasses.replace(spec, kl=0.3)}, "other settings"),
        ({"seed": 1}, "other seed"),
        ({"examples": examples[1:]}, "other examples"),
    ):
        arguments = {"examples": examples, "spec": spec, "seed": 0} | change
        with pytest.raises(InvalidInput, match=message):
            train_expert(base, tokenizer, out=tmp_path, **arguments)


def test_a_damaged_state(base, tokenizer, examples, tmp_path):
    spec = dataclasses.replace(SPEC, objective="next-token", steps=2)
    train_expert(base, tokenizer, examples, spec, seed=0, out=tmp_path)
    file = tmp_path / "state" / "step-000002" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(InvalidInput, match=r"state\.safetensors is truncated"):
        train_expert(base, tokenizer, examples, spec, seed=0, out=tmp_path)
    shutil.rmtree(tmp_path / "state")
    train_expert(base, tokenizer, examples, spec, seed=0, out=tmp_path)


def test_two_processes_in_one_folder(base, tokenizer, examples, tmp_path):
    with locked(tmp_path, "test"), pytest.raises(InvalidInput, match="another dnd-fast train-exp"):
        train_expert(base, tokenizer, examples, SPEC, seed=0, out=tmp_path)


def test_leftovers_of_killed_processes(base, tokenizer, examples, tmp_path):
    """Half-written ones, and a state whose successor was just written."""
    spec = dataclasses.replace(SPEC, objective="next-token", steps=2, validate_every=2)
    train_expert(base, tokenizer, examples, spec, seed=0, out=tmp_path)
    state = tmp_path / "state" / "step-000002"
    shutil.copytree(state, state.with_name("step-000001"))
    for folder in (tmp_path, state.parent):
        (folder / f"{TEMPORARY}dead").mkdir()
    train_expert(base, tokenizer, examples, spec, seed=0, out=tmp_path)
    assert sorted(os.listdir(tmp_path)) == [
        ".lock", "expert.safetensors", "state", "svf_config.json", "training.json"
    ]  # fmt: skip
    assert os.listdir(state.parent) == ["step-000002"]


def test_too_few_examples(base, tokenizer, examples, tmp_path):
    with pytest.raises(InvalidInput, match="1 examples cannot be split"):
        train_expert(base, tokenizer, examples[:1], SPEC, seed=0, out=tmp_path)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": 0.0}, "temperature=0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"steps": 0}, "steps=0"),
        ({"kl": -0.1}, "kl=-0.1"),
        ({"validation": 1.0}, "validation=1"),
        ({"objective": "ppo"}, "ppo"),
        ({"parametrisation": "cubic"}, "cubic"),
        ({"learning_rate": float("inf")}, "learning_rate=inf"),
    ],
)
def test_unusable_settings(setting, message):
    with pytest.raises(InvalidInput, match=message):
        ExpertSpec(**setting)
