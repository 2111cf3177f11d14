"""Plots: the projection against a decomposition of everything at once, and files that are PNGs."""

import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnd_fast import Adapter, InvalidInput
from dnd_fast.train.evaluation import evaluate as methods
from dnd_fast.train.evaluation.plots import (
    Point,
    plot_accuracy,
    plot_weights,
    project,
    require_matplotlib,
    tensors_on_disk,
)
from dnd_fast.train.evaluation.scores import Evaluation

SHAPES = {"a": (2, 5), "b": (7, 2), "c": (3, 3)}


def random_adapters(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        for _ in range(count)
    ]


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 12), st.integers(0, 100))
def test_projection_is_pca_of_the_flattened(count, seed):
    adapters = random_adapters(count, seed)
    places, shares = project([each.__getitem__ for each in adapters], list(SHAPES))
    flat = np.stack([np.concatenate([v.numpy().ravel() for v in a.values()]) for a in adapters])
    flat = flat.astype(np.float64) - flat.mean(0)
    u, s, _ = np.linalg.svd(flat, full_matrices=False)
    for axis in range(2):
        expected, found = u[:, axis] * s[axis], places[:, axis].numpy()
        sign = np.sign((expected * found).sum())  # of an axis, is anyone's choice
        np.testing.assert_allclose(sign * found, expected, atol=1e-4)
        assert shares[axis] == pytest.approx(s[axis] ** 2 / (s**2).sum(), abs=1e-5)


def test_equal_adapters_have_one_place():
    (one,) = random_adapters(1)
    places, shares = project([one.__getitem__] * 4, list(SHAPES))
    assert places.abs().max() < 1e-3
    assert shares[0] >= shares[1] >= 0
    with pytest.raises(InvalidInput, match="2 adapters span no plane"):
        project([one.__getitem__] * 2, list(SHAPES))


def test_tensors_on_disk(collection):
    folder = collection.checkpoints(collection.names[0])[0]
    read = tensors_on_disk(folder)
    for name, value in Adapter.load(folder).tensors.items():
        assert torch.equal(read(name), value)


def is_png(path, least_pixels):
    content = path.read_bytes()
    width, height = (int.from_bytes(content[i : i + 4]) for i in (16, 20))
    return content.startswith(b"\x89PNG") and min(width, height) >= least_pixels


@pytest.mark.parametrize("columns", [1, 2, 13])
def test_accuracy(tmp_path, columns):
    """From one data set to more than fit side by side, with a method that lacks some."""
    names = [f"data-{i}" for i in range(columns)]
    labels = [
        methods.BASE,
        methods.MEAN,
        "generated, mse",
        f"{methods.CONTROL}, mse",
        "generated, mse+sft",
    ]
    rows = {label: {name: [[0.0, 1.0], [1.0, 1.0]] for name in names} for label in labels}
    rows[methods.ORACLE] = {names[0]: [[1.0]]}
    plot_accuracy(Evaluation("exact", rows, {}), tmp_path / "new" / "accuracy.png")
    assert is_png(tmp_path / "new" / "accuracy.png", 400)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["accuracy.png"]


@pytest.mark.parametrize("held_out", [1, 20])
def test_weights(tmp_path, held_out):
    adapters = iter(random_adapters(5 + 2 * held_out))
    points = [Point(f"t{i}", "training", next(adapters).__getitem__) for i in range(5)]
    for i in range(held_out):
        points += [Point(f"h{i}", k, next(adapters).__getitem__) for k in ("oracle", "generated")]
    plot_weights(points, list(SHAPES), tmp_path / "weights.png")
    assert is_png(tmp_path / "weights.png", 400)


def test_without_matplotlib(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=r"pip install \"dnd-fast\[plots\]\""):
        require_matplotlib()
