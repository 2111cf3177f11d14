"""The planner: its predictions are only a model, its bookkeeping must be right."""

import pytest
import torch
from torch.nn.functional import conv2d

from dnd_fast.kernels.device import PROFILES
from dnd_fast.kernels.fft.tiling import FFTConvPlan
from dnd_fast.kernels.fft.weight import transform_weight
from dnd_fast.kernels.planner.cost_model import (
    bandwidth_bound_seconds,
    conv_plans,
    decoder_convolutions,
    plan_decoder,
)
from dnd_fast.recipe import Recipe

RECIPE = Recipe.load("common-sense-0.5b").decoder
CPU = PROFILES["cpu"]


def test_direct_flops_are_the_tables():
    """The six decoders' direct FLOPs for one sample, in units of 1e12."""
    expected = {
        "common-sense-0.5b": 7.84,
        "coding-1.5b": 26.0,
        "math-1.5b": 36.6,
        "coding-7b": 49.9,
        "math-7b": 49.9,
        "multimodal-3b": 26.8,
    }
    for name, flops in expected.items():
        spec = Recipe.load(name).decoder
        shapes = decoder_convolutions(spec.features, spec.kernel_size)
        assert sum(shape.direct_flops for shape in shapes) / 1e12 == pytest.approx(flops, rel=5e-3)


def test_shapes_are_those_of_the_convolutions():
    """Against what the reference block hands to conv2d."""
    import dnd_fast.kernels.reference as reference
    from dnd_fast import HyperConvDecoder

    features = [(3, 5, 4), (2, 6, 7), (8, 3, 5)]
    seen = []

    def spy(x, weight, *args, **kwargs):
        seen.append((*x.shape[2:], x.shape[1], weight.shape[0]))
        return conv2d(x, weight, *args, **kwargs)

    original, reference.conv2d = reference.conv2d, spy
    try:
        HyperConvDecoder(features, 3)(torch.randn(1, 3, 5, 4))
    finally:
        reference.conv2d = original
    planned = [
        (s.height, s.width, s.channels_in, s.channels_out)
        for s in decoder_convolutions(features, 3)
    ]
    assert seen == planned


@pytest.mark.parametrize("weights", ["cached", "int8", "streamed"])
def test_weight_bytes_are_those_of_the_weights_as_kept(weights):
    plan = plan_decoder([[3, 9, 20], [4, 8, 18]], 5, CPU, weights=weights, algorithm="fft")
    for choice in plan.convolutions:
        shape = choice.shape
        assert isinstance(choice.fft_plan, FFTConvPlan)
        kept = torch.randn(shape.channels_out, shape.channels_in, 5, 5)
        if weights != "streamed":
            dtype = torch.int8 if weights == "int8" else None
            kept = transform_weight(kept, choice.fft_plan, dtype=dtype)
        assert choice.weight_bytes == kept.nbytes


@pytest.mark.parametrize("profile", ["h200", "a100", "cpu"])
def test_predicted_to_pay(profile):
    free = plan_decoder(RECIPE.features, 9, PROFILES[profile])
    direct = plan_decoder(RECIPE.features, 9, PROFILES[profile], algorithm="direct")
    assert all(choice.fft_plan is None for choice in direct.convolutions)
    assert free.seconds < direct.seconds / 2
    for chosen, other in zip(free.convolutions, direct.convolutions, strict=True):
        assert chosen.seconds <= other.seconds


def test_memory_is_respected():
    free = plan_decoder(RECIPE.features, 9, CPU)
    seconds = free.seconds
    for share in (0.8, 0.5, 0.3):
        limit = share * free.weight_bytes
        plan = plan_decoder(RECIPE.features, 9, CPU, memory=limit)
        assert plan.weight_bytes <= limit
        assert plan.seconds >= seconds
        seconds = plan.seconds
    with pytest.raises(ValueError, match=r"memory=1e\+09 bytes is too little"):
        plan_decoder(RECIPE.features, 9, CPU, memory=1e9)


def test_training_costs_more_and_pays_too():
    """Forward, dX and dW; three times the direct form, and the transforms of the weights."""
    options = {"batch": 4, "weights": "streamed"}
    once = plan_decoder(RECIPE.features, 9, CPU, **options)
    step = plan_decoder(RECIPE.features, 9, CPU, training=True, **options)
    direct = plan_decoder(RECIPE.features, 9, CPU, training=True, algorithm="direct", **options)
    assert 2.5 * once.seconds < step.seconds < direct.seconds / 2
    assert sum(choice.flops for choice in direct.convolutions) == pytest.approx(
        3 * 4 * sum(choice.shape.direct_flops for choice in direct.convolutions)
    )
    with pytest.raises(ValueError, match="training changes them, so it needs 'streamed'"):
        plan_decoder(RECIPE.features, 9, CPU, training=True)


def test_measured_times_count_instead_of_predictions():
    """What is slower than direct on the machine is not chosen, however good the prediction."""
    shape = max(decoder_convolutions(RECIPE.features, 9), key=lambda each: each.direct_flops)
    predicted = {each.algorithm: each.seconds for each in conv_plans(shape, CPU)}
    best = min(predicted, key=predicted.get)
    assert best != "direct"
    slow = predicted[best] * 10
    measured = {shape.key(1, "cached"): {"direct": predicted[best] * 5, best: slow}}
    plan = plan_decoder(RECIPE.features, 9, CPU, measured=measured)
    choice = next(each for each in plan.convolutions if each.shape == shape)
    assert (choice.algorithm, choice.seconds) == ("direct", predicted[best] * 5)
    forced = plan_decoder(RECIPE.features, 9, CPU, measured=measured, algorithm="fft")
    choice = next(each for each in forced.convolutions if each.shape == shape)
    assert choice.seconds == pytest.approx(slow)  # others are corrected by the same ratio


def test_no_plan_beats_the_floor():
    for name in ("h200", "a100", "cpu"):
        floor = bandwidth_bound_seconds(RECIPE.features, 9, PROFILES[name])
        assert 0 < floor < plan_decoder(RECIPE.features, 9, PROFILES[name]).seconds


def test_choices_of_a_block():
    plan = plan_decoder([(3, 5, 4), (2, 6, 7), (8, 3, 5)], 3, CPU)
    for index in range(2):
        block = plan.block(index)
        assert [choice.shape.name for choice in block.values()] == [f"{index}.{n}" for n in block]
        assert all(choice.shape.convolution.name == name for name, choice in block.items())
    assert [*plan.block(0).values(), *plan.block(1).values()] == [*plan.convolutions]
