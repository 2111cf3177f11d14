"""The kernel benchmark's operations run and say how much they do; times need a GPU."""

import pytest
import torch

from dnd_fast.bench import kernels
from dnd_fast.kernels.device import PROFILES
from dnd_fast.kernels.plan import plan_decoder

FEATURES = [(3, 5, 4), (2, 6, 7)]


@pytest.mark.interpret
@pytest.mark.parametrize(
    ("algorithm", "names"),
    [("fft", ["analyze", "bin_gemm", "synthesize"]), ("direct", ["direct_conv2d"])],
)
def test_operations_run(algorithm, names):
    plan = plan_decoder(FEATURES, 3, PROFILES["cpu"], algorithm=algorithm)
    choice = plan.convolutions[-1]
    found = list(kernels.operations(choice, 1, torch.float32, torch.device("cpu")))
    assert [operation.kernel for operation in found] == names
    for operation in found:
        operation.run()
        assert operation.layer == "0.layerwise"
        assert operation.bytes_moved > 0
    if algorithm == "direct":
        assert found[0].flops == choice.shape.direct_flops
        row = kernels.describe(found[0], [1.0, 2.0, 3.0], PROFILES["h200"])
        assert row["limit_share"] == pytest.approx(row["bytes"] / PROFILES["h200"].bandwidth / 2.0)


def test_says_that_it_needs_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("for machines without a GPU")
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):
        kernels.main()
