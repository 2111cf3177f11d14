"""One adapter of several, against the updates formed and added up in float64."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnd_fast.lora.adapter import Adapter, lora_config, weight_keys

from ..bad_input import fails
from .conftest import off, small_base

MODULES = {"model.layers.0.self_attn.q_proj": (8, 6), "model.layers.1.mlp.up_proj": (5, 6)}


def random_adapter(seed, rank=2, *, dtype=torch.float32, modules=MODULES, **changes):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (size_out, size_in) in modules.items():
        key_a, key_b = weight_keys(module)
        tensors[key_a] = torch.randn(rank, size_in, generator=generator).to(dtype)
        tensors[key_b] = torch.randn(size_out, rank, generator=generator).to(dtype)
    config = lora_config(
        rank=rank, lora_alpha=3, target_modules=["q_proj", "up_proj"], base_model="base"
    )
    return Adapter(tensors, config | changes)


def dense(adapter):
    """The updates themselves."""
    updates = {module: adapter.update(module) for module in adapter.modules}
    return {module: update.scaling * update.b @ update.a for module, update in updates.items()}


def summed(adapters, weights):
    updates = [dense(adapter) for adapter in adapters]
    return {
        module: sum(w * each[module] for w, each in zip(weights, updates, strict=True))
        for module in updates[0]
    }


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.floats(-3, 3)), min_size=1, max_size=4), st.booleans()
)
def test_cat_is_the_sum(ranks_and_weights, stabilised):
    """Exact, whatever the adapters' own ranks and scalings."""
    adapters = [
        random_adapter(seed, rank, dtype=torch.float64, use_rslora=stabilised and seed == 1)
        for seed, (rank, _) in enumerate(ranks_and_weights)
    ]
    weights = [weight for _, weight in ranks_and_weights]
    combined = Adapter.combine(adapters, weights)
    assert combined.config["r"] == sum(rank for rank, _ in ranks_and_weights)
    for module, expected in summed(adapters, weights).items():
        torch.testing.assert_close(dense(combined)[module], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5, 7])
def test_svd_is_the_nearest_of_its_rank(rank):
    """By Eckart and Young: the sum's own singular value decomposition, cut off."""
    adapters = [random_adapter(seed, 2, dtype=torch.float64) for seed in range(3)]
    weights = [1.0, -0.5, 2.0]
    combined = Adapter.combine(adapters, weights, method="svd", rank=rank)
    assert combined.config["r"] == rank
    for module, whole in summed(adapters, weights).items():
        u, s, vh = torch.linalg.svd(whole, full_matrices=False)
        nearest = u[:, :rank] * s[:rank] @ vh[:rank]
        torch.testing.assert_close(dense(combined)[module], nearest, rtol=1e-10, atol=1e-10)


def test_svd_keeps_the_first_ones_rank():
    adapters = [random_adapter(0, 3), random_adapter(1, 2)]
    assert Adapter.combine(adapters, [1, 1], method="svd").config["r"] == 3


def test_linear_of_an_adapter_with_itself():
    """All products are alike: weights w and v give (sqrt w + sqrt v)², and -w the opposite."""
    adapter = random_adapter(0, 2, dtype=torch.float64)
    combined = Adapter.combine([adapter, adapter], [0.25, 2.25], method="linear")
    assert combined.config["r"] == 2
    opposite = Adapter.combine([adapter], [-1], method="linear")
    for module, update in dense(adapter).items():
        torch.testing.assert_close(dense(combined)[module], 4 * update, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(dense(opposite)[module], -update, rtol=1e-12, atol=1e-12)


def test_ranks_and_alphas_of_single_modules():
    """Each module's own rank and scaling count, and the combined one's is 1 everywhere."""
    module = next(iter(MODULES))
    wide = random_adapter(0, 4, modules={module: MODULES[module]})
    narrow = random_adapter(1, 2, modules={m: s for m, s in MODULES.items() if m != module})
    patterns = {"rank_pattern": {module: 4}, "alpha_pattern": {"q_proj": 11}}
    uneven = Adapter(wide.tensors | narrow.tensors, narrow.config | patterns)
    assert uneven.update(module).scaling == 11 / 4
    plain = random_adapter(2, 2)
    combined = Adapter.combine([uneven, plain], [1, -2])
    for name, expected in summed([uneven, plain], [1, -2]).items():
        torch.testing.assert_close(dense(combined)[name], expected, rtol=1e-5, atol=1e-5)
        assert combined.update(name).scaling == 1


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_on_a_model(trained, tmp_path, method):
    """Saved, read and applied: what both adapters change, added up in the weights."""
    base = small_base()
    first, _ = trained(base, 1, lora_alpha=4)
    second, _ = trained(base, 2, r=3, use_rslora=True, target_modules=r".*\.(q_proj|v_proj)")
    adapters, weights = [first, second], [0.5, -1.5]
    combined = Adapter.combine(
        adapters, weights, method=method, rank=5 if method == "svd" else None
    )
    combined.save(tmp_path / "combined")
    truth = copy.deepcopy(base)
    for name, update in summed(adapters, weights).items():
        truth.get_submodule(name).weight.data += update.float()
    assert off(Adapter.load(tmp_path / "combined").apply(copy.deepcopy(base)), truth) < 1e-4


def test_dtypes():
    half, single = random_adapter(0, dtype=torch.bfloat16), random_adapter(1)
    double = random_adapter(2, dtype=torch.float64)
    for adapters, dtype in (([half], torch.float32), ([half, single], torch.float32)):
        made = Adapter.combine(adapters, [1] * len(adapters))
        assert {tensor.dtype for tensor in made.tensors.values()} == {dtype}
    made = Adapter.combine([half, double], [1, 1])
    assert {tensor.dtype for tensor in made.tensors.values()} == {torch.float64}


def test_what_cannot_be_combined():
    one, two = random_adapter(0), random_adapter(1, 3)
    other = random_adapter(1, modules={"model.layers.0.self_attn.q_proj": (8, 6)})
    larger = random_adapter(1, modules=dict.fromkeys(MODULES, (9, 6)))
    name = next(iter(MODULES))
    key = f"base_model.model.{name}.lora_magnitude_vector"
    dora = Adapter(one.tensors | {key: torch.ones(8)}, one.config | {"use_dora": True})
    for adapters, weights, options, message in (
        ([], [], {}, "0 adapters and 0 weights"),
        ([one], [1, 2], {}, "1 adapters and 2 weights"),
        ([one], [float("nan")], {}, "a weight is nan"),
        ([one], [True], {}, "a weight is True"),
        ([one], [1], {"method": "ties"}, "method='ties' is unknown"),
        ([one], [1], {"rank": 2}, "for method='svd' alone"),
        ([one], [1], {"method": "svd", "rank": 0}, "rank=0: it must be a positive integer"),
        ([one, two], [1, 1], {"method": "linear"}, r"adapters of one rank; found \[2, 3\]"),
        ([one, other], [1, 1], {}, "different modules"),
        ([one, larger], [1, 1], {}, "for different models"),
        ([one, dora], [1, 1], {}, "more than scaling"),
        ([dora, dora], [1, 1], {}, "more than scaling"),
    ):
        fails(message, Adapter.combine, adapters, weights, **options)
