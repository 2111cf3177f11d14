"""The planner: its predictions are only a model, its bookkeeping must be right."""

import pytest
import torch
from torch.nn.functional import conv2d

from dnd_fast.kernels.fft_conv import FFTConvPlan, transform_weight
from dnd_fast.kernels.plan import (
    PROFILES,
    DeviceProfile,
    calibrate,
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


def test_weight_bytes_are_those_of_the_transformed_weight():
    plan = plan_decoder([[3, 9, 20], [4, 8, 18]], 5, CPU, algorithm="fft")
    for choice in plan.convolutions:
        shape = choice.shape
        assert isinstance(choice.tiles, FFTConvPlan)
        weight = torch.randn(shape.channels_out, shape.channels_in, 5, 5)
        assert choice.weight_bytes == transform_weight(weight, choice.tiles).nbytes


@pytest.mark.parametrize("profile", ["h200", "a100", "cpu"])
def test_predicted_to_pay(profile):
    free = plan_decoder(RECIPE.features, 9, PROFILES[profile])
    direct = plan_decoder(RECIPE.features, 9, PROFILES[profile], algorithm="direct")
    assert all(choice.tiles is None for choice in direct.convolutions)
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


def test_calibration_measures_this_machine():
    profile = calibrate(seconds=0.2)
    assert isinstance(profile, DeviceProfile)
    assert "measured" in profile.name
    for rate in (profile.direct_flops, profile.gemm_flops, profile.transform_flops):
        assert 1e8 < rate < 1e15
    assert 1e8 < profile.bandwidth < 1e13
