"""Collecting adapters and training a decoder on them, on a toy base."""

import pytest
import torch

from dnd_fast.demo.tasks import Task
from dnd_fast.lora.batched import adapter_losses, collate, exact_match
from dnd_fast.recipe import CollectSpec, Recipe
from dnd_fast.train.adapters.collect import collect
from dnd_fast.train.adapters.lora_trainer import initial_adapter

from .test_lora_trainer import SPEC, new_setting

TASKS = [
    Task("first", "plain", "food"),
    Task("last", "stars", "food"),
    Task("copy", "hash", "tool"),
]


@pytest.fixture(scope="module")
def setting():
    return new_setting(TASKS)


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


def test_exact_match_of_the_base_is_low(setting):
    base, _, datasets = setting
    assert exact_match(base, collate(datasets[0]).view(1, -1)).item() == 0


@pytest.mark.parametrize(
    ("recipe", "row"),
    [
        ("common-sense-0.5b", (1e-4, 75, 32, 5000, 1e-5, 50)),
        *((name, (1e-4, 4000, 64, 10000, 1e-6, 100)) for name in ("coding-1.5b", "coding-7b")),
        *((name, (1e-4, 4000, 64, 10000, 1e-6, 100)) for name in ("math-1.5b", "math-7b")),
        ("multimodal-3b", (1e-4, 8000, 64, 100000, 1e-6, 200)),
    ],
)
def test_the_papers_settings(recipe, row):
    """Its Table 9."""
    spec = Recipe.load(recipe).collection
    pretrain = (spec.learning_rate, spec.steps, spec.batch, spec.samples)
    assert (*pretrain, spec.final_learning_rate, spec.checkpoints) == row
