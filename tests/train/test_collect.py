"""Collecting adapters and training a decoder on them, on a toy base."""

import pytest
import torch

from dnd_fast.decoder import HyperConvDecoder
from dnd_fast.demo.tasks import Task
from dnd_fast.demo.tokenizer import build_tokenizer
from dnd_fast.layout import TokenLayout
from dnd_fast.train.batch import adapter_losses, collate, encode, exact_match
from dnd_fast.train.collect import CollectSpec, collect, initial_adapter
from dnd_fast.train.fit import FitSpec, fit

from .test_batch import new_model

TASKS = [
    Task("first", "plain", "food"),
    Task("last", "stars", "food"),
    Task("copy", "hash", "tool"),
]
SPEC = CollectSpec(steps=6, checkpoints=2, batch=2, parallel=2)


@pytest.fixture(scope="module")
def setting():
    base = new_model().requires_grad_(False)
    tokenizer = build_tokenizer()
    datasets = [encode(tokenizer, (e[:2] for e in task.examples(8, "train", 0))) for task in TASKS]
    return base, TokenLayout.for_model(base.config, 2), datasets


def test_shape_progress_and_determinism(setting):
    base, layout, datasets = setting
    seen = []
    tokens = collect(
        base,
        layout,
        datasets,
        SPEC,
        seed=0,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert tokens.shape == (3, 2, layout.num_tokens, *layout.token_shape)
    assert seen == [(i + 1, 16) for i in range(16)]
    assert torch.equal(tokens, collect(base, layout, datasets, SPEC, seed=0))


def test_parallel_training_equals_one_at_a_time(setting):
    """Adapters must not see one another: neither in the loss, nor in clipping or the optimiser."""
    base, layout, datasets = setting
    together = collect(base, layout, datasets[:2], SPEC, seed=0)
    for k in range(2):
        alone = collect(base, layout, datasets[k : k + 1], SPEC, seed=0)
        torch.testing.assert_close(together[k], alone[0], rtol=1e-3, atol=1e-5)


def test_training_lowers_the_loss(setting):
    base, layout, datasets = setting
    batch = collate(datasets[0]).view(1, -1)
    start = {key: value[None] for key, value in initial_adapter(layout, 0).items()}
    spec = CollectSpec(steps=60, checkpoints=1, learning_rate=2e-2, batch=4, parallel=1)
    trained = layout.detokenize(collect(base, layout, datasets[:1], spec, seed=0)[:, -1])
    before, after = (adapter_losses(base, each, 2.0, batch).item() for each in (start, trained))
    assert after < 0.6 * before


def test_initial_adapter_is_shared_and_harmless(setting):
    _, layout, _ = setting
    adapter = initial_adapter(layout, 5)
    again = initial_adapter(layout, 5)
    for key, value in adapter.items():
        assert torch.equal(value, again[key])
        if ".lora_B." in key:
            assert not value.any()
        else:  # unit variance of A x for x of unit variance
            assert value.square().mean() * value.shape[1] == pytest.approx(1, rel=0.4)


@pytest.mark.parametrize("objective", ["mse", "sft"])
def test_fit_learns_to_tell_two_tasks_apart(setting, objective):
    """From embeddings that differ, the decoder must make adapters that differ and fit."""
    base, layout, datasets = setting
    torch.manual_seed(0)
    tokens = torch.randn(2, 1, layout.num_tokens, *layout.token_shape) * 0.3
    raw = TokenLayout.for_model(base.config, 2)
    raw.fit(tokens.flatten(0, 1))
    targets = raw.normalize(tokens)
    conditions = torch.randn(2, 1, 6, 8).repeat(1, 5, 1, 1)
    shape = [layout.num_tokens, *layout.token_shape]
    decoder = HyperConvDecoder([[3, 6, 8], [8, 4, 8], shape], 3)
    batch = collate([*datasets[0], *datasets[1]]).view(2, -1)

    def error():
        with torch.no_grad():
            made = decoder(conditions[:, :3])
            if objective == "mse":
                return (made - targets[:, 0]).square().mean().item()
            return adapter_losses(base, raw.detokenize(made), 2.0, batch).mean().item()

    before = error()
    spec = FitSpec(objective, steps=80, learning_rate=1e-2, batch=4, examples=2, dropout=0.0)
    fit(decoder, raw, base, conditions, targets, datasets[:2], spec, seed=0)
    assert error() < (0.3 if objective == "mse" else 0.8) * before


def test_exact_match_of_the_base_is_low(setting):
    base, _, datasets = setting
    assert exact_match(base, collate(datasets[0]).view(1, -1)).item() == 0
