"""Streamed statistics against float64 and against the whole collection in memory."""

import json
import shutil
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dnd_fast import Adapter, InvalidInput, Recipe
from dnd_fast.generator_config import GeneratorConfig
from dnd_fast.lora.layout import LoraModule, TokenLayout
from dnd_fast.train.adapters.collection import Collection
from dnd_fast.train.adapters.statistics import fit_layout, statistics

# Sizes that are no multiples of the chunk: some positions are padding.
LAYOUT = TokenLayout(
    [LoraModule("layers.0.q_proj", 6, 4), LoraModule("layers.0.k_proj", 6, 2)],
    2,
    lora_alpha=4,
    target_modules=["q_proj", "k_proj"],
    chunk=4,
)


def demo_layout(**changes):
    return TokenLayout.from_dict(GeneratorConfig.from_recipe(Recipe.load("demo")).layout | changes)


def random_tokens(count, seed, centre=0.0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)

    def drawn(shape):
        return centre + spread * torch.randn(count, *shape, generator=generator)

    return LAYOUT.tokenize({key: drawn(shape) for key, shape in LAYOUT.tensor_shapes().items()})


@given(
    count=st.integers(1, 30),
    seed=st.integers(0, 100),
    centre=st.sampled_from([0.0, 1.0, -300.0]),
    spread=st.sampled_from([1e-6, 1.0, 100.0]),
)
def test_against_float64(count, seed, centre, spread):
    """Guards against cancellation where adapters differ by little beside their size."""
    tokens = random_tokens(count, seed, centre, spread)
    found = statistics(tokens)
    truth = tokens.double()
    mean, deviation = truth.mean(0), truth.std(0, correction=0)
    size = truth.nan_to_num().abs().max().item()
    torch.testing.assert_close(found.mean.double(), mean.nan_to_num(), rtol=1e-6, atol=1e-6 * size)
    std = deviation.square().nanmean((1, 2)).sqrt()
    torch.testing.assert_close(found.std.view(-1).double(), std, rtol=1e-5, atol=1e-30)
    share = deviation.nanmean((1, 2))
    expected = share / share.sum() * len(share) if share.any() else torch.ones_like(share)
    torch.testing.assert_close(found.importance.double(), expected, rtol=1e-5, atol=0)


def test_as_the_layout_fits_the_whole():
    tokens = random_tokens(20, 0)
    layout = TokenLayout.from_dict(LAYOUT.to_dict())
    layout.fit(tokens)
    found = statistics(tokens)
    torch.testing.assert_close(found.mean, layout.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.std, layout.std, rtol=1e-6, atol=0)


def test_a_chunk_that_never_varies():
    """Its std is 0, not rounding: else its noise would be blown up to one."""
    tokens = random_tokens(7, 0)
    tokens[:, 1] = tokens[0, 1]
    found = statistics(tokens)
    assert found.std[1] == 0
    assert found.importance[1] == 0
    assert torch.equal(found.mean[1], tokens[0, 1].nan_to_num())
    assert (found.std.view(-1)[[0, 2, 3]] > 0).all()


def test_nothing_is_kept():
    """Memory must not grow with the collection."""
    alive = weakref.WeakSet()

    def stream():
        for seed in range(8):
            tokens = random_tokens(1, seed)[0]
            alive.add(tokens)
            assert len(alive) <= 3  # the first, the one before, this one
            yield tokens

    statistics(stream())


def test_no_adapters():
    with pytest.raises(InvalidInput, match="no adapters"):
        statistics([])


@pytest.mark.parametrize("scale", ["static", "border"])
def test_a_collection(collection, scale):
    """Of the named data sets only; a layout in border mode stays without statistics."""
    layout, raw = demo_layout(scale=scale), demo_layout()
    names = collection.names[:3]
    importance = fit_layout(layout, collection, names)
    paths = [path for name in names for path in collection.checkpoints(name)]
    tokens = torch.stack([raw.tokenize(collection.load(path)) for path in paths])
    share = tokens.double().std(0).mean((1, 2))
    torch.testing.assert_close(importance.double(), share / share.mean(), rtol=1e-4, atol=0)
    if scale == "static":
        raw.fit(tokens)
        torch.testing.assert_close(layout.mean, raw.mean, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(layout.std, raw.std, rtol=1e-6, atol=0)
    else:
        assert layout.mean is None


def test_adapters_that_cannot_be_used_are_named(shared_collection, tmp_path):
    folder = shutil.copytree(shared_collection, tmp_path / "collection")
    collection = Collection.open(folder)
    checkpoint = collection.checkpoints(collection.names[2])[1]
    good = Adapter.load(checkpoint)
    key = next(iter(good.tensors))

    Adapter({k: v for k, v in good.tensors.items() if ".v_proj." not in k}, good.config).save(
        checkpoint
    )
    with pytest.raises(InvalidInput, match=f"{checkpoint}: .*missing"):
        fit_layout(demo_layout(), collection, collection.names)

    Adapter(good.tensors, good.config).save(checkpoint)
    damaged = Adapter(good.tensors, good.config)
    damaged.tensors[key] = torch.full_like(good.tensors[key], torch.nan)
    damaged.save(checkpoint)
    with pytest.raises(InvalidInput, match=f"{checkpoint}: .*NaN"):
        fit_layout(demo_layout(), collection, collection.names)

    other = json.loads((checkpoint / "adapter_config.json").read_text()) | {"r": 2}
    shapes = demo_layout(rank=2).tensor_shapes()
    Adapter({key: torch.zeros(shape) for key, shape in shapes.items()}, other).save(checkpoint)
    with pytest.raises(InvalidInput, match=f"{checkpoint}: .*shape"):
        fit_layout(demo_layout(), collection, collection.names)
