"""Operations do the arithmetic that they state, and run at every kind of shape."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from dnd_fast.bench.harness import operations as bench
from dnd_fast.kernels.device import PROFILES
from dnd_fast.kernels.planner.cost_model import plan_decoder
from dnd_fast.recipe import Recipe

FEATURES = [(3, 5, 4), (2, 6, 7)]
CPU = torch.device("cpu")
# Which torch's counter does not know.
IN_PLACE = {torch.ops.aten.baddbmm_: lambda to, a, b, **kwargs: 2 * math.prod(a) * b[-1]}


@settings(deadline=None, max_examples=15)
@given(
    sizes=st.lists(st.tuples(*[st.integers(1, 20)] * 3), min_size=2, max_size=2),
    kernel=st.sampled_from([3, 5, 9]),
    batch=st.integers(1, 3),
    algorithm=st.sampled_from(["fft", "direct"]),
)
def test_stated_flops_are_those_that_torch_counts(sizes, kernel, batch, algorithm):
    """An independent count of every matrix product and convolution that runs."""
    plan = plan_decoder(sizes, kernel, PROFILES["cpu"], algorithm=algorithm)
    for choice in plan.convolutions:
        for operation in bench.torch_operations(choice, batch):
            run = operation.make()
            with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
                run()
            assert operation.flops == counter.get_total_flops(), operation


def test_stated_bytes_are_those_of_the_operands():
    """Counted from the shapes that a product of bins has, by hand."""
    choice = plan_decoder([(4, 30, 8), (5, 20, 6)], 5, PROFILES["cpu"], algorithm="fft")
    choice = choice.convolutions[0]
    tiles, bins = 2 * choice.fft_plan.tiles, choice.fft_plan.bins
    by_name = {each.name: each for each in bench.torch_operations(choice, 2)}
    signal, product = bins * 3 * tiles * 8, bins * 2 * tiles * 6
    assert by_name["bin_gemm"].bytes_moved == 4 * (signal + bins * 2 * 6 * 8 + product)
    assert by_name["dft_forward"].bytes_moved == 4 * (2 * 30 * 4 * 8 + signal)
    assert by_name["dft_inverse"].bytes_moved == 4 * (product + 2 * 30 * 4 * 6)


@pytest.mark.interpret
@pytest.mark.parametrize(
    ("algorithm", "names"),
    [
        ("fft", ["dft_forward", "bin_gemm", "dft_inverse", "weight_gradient"]),
        ("direct", ["direct_conv2d"]),
    ],
)
def test_triton_operations_run(algorithm, names):
    """With the launchers' own checks of shapes and strides."""
    plan = plan_decoder(FEATURES, 3, PROFILES["cpu"], algorithm=algorithm)
    for choice in plan.convolutions:
        found = list(bench.triton_operations(choice, 1, torch.float32, CPU))
        assert [operation.name for operation in found] == names
        plain = {each.name: each for each in bench.torch_operations(choice, 1)}
        for operation in found:
            operation.make()()
            assert operation.layer.startswith(f"{choice.shape.name} ")
            # Both state the bytes of one formula, but that the kernels may add to what is there.
            if operation.name in plain and "a_height" not in choice.shape.name:
                assert operation.bytes_moved == plain[operation.name].bytes_moved


@pytest.mark.interpret
def test_other_triton_operations_run():
    recipe = Recipe.load("demo")
    spec = recipe.decoder
    scatter = bench.recipe_scatter(recipe, CPU)
    assert not scatter.border
    last = plan_decoder(spec.features, 3, PROFILES["cpu"], algorithm="fft").convolutions[-1]
    last_inverse = list(bench.triton_operations(last, 1, torch.float32, CPU, scatter))[2]
    last_inverse.make()()
    product = 4 * last.fft_plan.bins * 2 * last.fft_plan.tiles * len(scatter.table)
    assert last_inverse.bytes_moved == product + 4 * (scatter.elements + scatter.mean.numel())
    found = list(bench.other_operations(spec, scatter, 1, torch.float32, CPU))
    assert [each.name for each in found] == ["layer_norm_stats", "detokenize"]
    for operation in found:
        operation.make()()
    assert found[0].bytes_moved == 4 * 8 * 24 * 384
