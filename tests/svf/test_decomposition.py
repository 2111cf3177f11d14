"""The algebra of one matrix, against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnd_fast.svf.decomposition import Svd, initial_vectors, scales_of


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_algebra_against_float64(rows, columns, seed):
    torch.manual_seed(seed)
    weight = torch.randn(rows, columns)
    svd = Svd(*torch.linalg.svd(weight, full_matrices=False))
    rounding = 1e-5 * svd.s[0]
    assert (svd.weight - weight).abs().max() <= rounding
    assert svd.change(torch.ones(min(rows, columns))).eq(0).all()  # z = 1 is W bit by bit
    z = torch.randn(min(rows, columns))
    changed = weight + svd.change(z)
    # Components with close singular values may be rotated into one another, so compare the product
    # with float32's own factors in float64.
    expected = (svd.u.double() * (svd.s * z).double()) @ svd.vh.double()
    assert (changed - expected).abs().max() <= 4 * rounding


def test_published_parametrisation_keeps_the_sum():
    sigma = torch.rand(20).sort(descending=True).values
    z = torch.randn(3, 20)
    scales = scales_of(z, sigma, "published")
    assert torch.allclose((scales * sigma).sum(-1), sigma.sum().expand(3))
    # Any factor of the mask, the 2 included, cancels.
    mask = z.sigmoid()
    assert torch.allclose(scales, mask * (sigma.sum() / (mask * sigma).sum(-1, keepdim=True)))
    assert torch.allclose(scales_of(torch.zeros(20), sigma, "published"), torch.ones(20))


def test_where_training_starts():
    sizes = {"a": 4000, "b": 3}
    assert all(z.eq(1).all() for z in initial_vectors(sizes, "plain", 0).values())
    z = initial_vectors(sizes, "published", 0)["a"]
    assert z.mean().item() == pytest.approx(0.1, abs=0.003)
    assert z.var().item() == pytest.approx(1e-3, rel=0.1)
    sigma = torch.rand(4000)
    assert (scales_of(z, sigma, "published") - 1).abs().mean() < 0.02  # near the base
