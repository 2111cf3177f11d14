"""Decoders that cannot be, and conditions that do not fit them: a clear error."""

import pytest
import torch

from dnd_fast import HyperConvDecoder
from dnd_fast.decoder.length_projection import LengthProjection

from ..bad_input import FEATURES, fails


@pytest.mark.parametrize(
    ("features", "kernel_size", "options", "message"),
    [
        (FEATURES, 4, {}, "kernel_size=4: it must be an odd positive integer"),
        (FEATURES, 0, {}, "kernel_size=0: it must be an odd positive integer"),
        (FEATURES, -1, {}, "kernel_size=-1: it must be an odd positive integer"),
        (FEATURES, "3", {}, "kernel_size='3': it must be an odd positive integer"),
        ([], 3, {}, r"at least two shapes.*got \(\)"),
        (FEATURES[:1], 3, {}, r"at least two shapes.*got \(\(3, 5, 4\),\)"),
        ([(3, 4), (3, 4)], 3, {}, r"features holds \(3, 4\); .* three positive integers"),
        ([(3, 4, 0), (3, 4, 5)], 3, {}, r"features holds \(3, 4, 0\); .* three positive integers"),
        ([3, 4, 5], 3, {}, r"features is \[3, 4, 5\]; it must be a list of shapes"),
        (FEATURES, 3, {"projection": LengthProjection(9, 7)}, "length 7, .* has length 5"),
        ([(3, 4, 5), (3, 10**30, 5)], 3, {}, "torch cannot make tensors of these sizes: .*verflow"),
        ([(3, 4, 2**62), (3, 4, 2**62)], 3, {}, "of these sizes: Storage size calculation overfl"),
        (FEATURES, 10**30 + 1, {}, r"features .* with kernel_size=10{29}1: torch cannot make"),
    ],
)
def test_decoders(features, kernel_size, options, message):
    HyperConvDecoder(FEATURES, 3, projection=LengthProjection(9, 5))
    fails(message, HyperConvDecoder, features, kernel_size, **options)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 3, 5, 5), {}, r"takes .* \[B, 3, 5, 4\], got \[1, 3, 5, 5\]"),
        ((3, 5, 4), {}, r"takes .* \[B, 3, 5, 4\], got \[3, 5, 4\]"),
        ((1, 3, 5, 4), {"dtype": torch.float64}, r"float64, the decoder torch.float32: .*\.to\("),
        ((1, 3, 5, 4), {"dtype": torch.int64}, "torch.int64, the decoder torch.float32"),
        ((1, 3, 5, 4), {"device": "meta"}, r"on meta, the decoder on cpu: .*\.to\(device\)"),
    ],
)
def test_conditions(good, shape, options, message):
    good.decoder(torch.ones(1, 3, 5, 4))
    fails(message, good.decoder, torch.ones(shape, **options))


@pytest.mark.parametrize(
    ("impl", "message"),
    [
        ("gpu", "is unknown; choose one of"),
        ("nonsense", "is unknown; choose one of"),
        ("triton", "cannot run"),
    ],
)
def test_implementations_that_cannot_run(good, impl, message):
    fails(f"impl='{impl}' {message}", good.decoder.prepare, impl=impl)


def test_length_projections():
    fails("mode='flip'; choose 'transpose' or 'view'", LengthProjection, 9, 5, mode="flip")
    fails("length=0: it must be a positive integer", LengthProjection, 0, 5)
    fails("projected_length='5': it must be a positive integer", LengthProjection, 9, "5")
    fails("length 9 to 1000.*: torch cannot make tensors", LengthProjection, 9, 10**30)
    for mode in ("transpose", "view"):
        projection = LengthProjection(9, 5, mode=mode)
        assert projection(torch.ones(1, 2, 9, 3)).shape == (1, 2, 5, 3)
        for shape in ((1, 2, 8, 3), (2, 9, 3)):
            fails(rf"takes \[B, N, 9, C\], got \[{shape[0]}, ", projection, torch.ones(shape))
