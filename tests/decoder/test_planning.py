"""Plans within a budget: what a process really takes, measured by the operating system."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dnd_fast import HyperConvDecoder, InvalidInput
from dnd_fast.decoder.planning import KEPT_BYTES, plan_for, planned_memory, resolve_impl
from dnd_fast.decoder.torch_pass import TorchPass
from dnd_fast.kernels.fft.weight import TransformedWeight
from dnd_fast.kernels.planner.peak_memory import peak_bytes

FEATURES = [(64, 96, 128), (128, 64, 96), (256, 32, 96), (512, 32, 64)]
# A process of its own, whose high-water mark is set back once planning is done.
MEASURE = """
import gc, re, sys
from pathlib import Path
import torch
from dnd_fast import HyperConvDecoder
from dnd_fast.decoder.planning import plan_for

features, weights, budget = eval(sys.argv[1]), sys.argv[2], float(sys.argv[3])

def status(key):
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(key + r":\\s+(\\d+) kB", text)[0])

for plan in ("direct", "fft"):  # code is in memory from now on
    small = HyperConvDecoder([(6, 8, 8), (8, 6, 8)], 9).requires_grad_(False)
    small.prepare(plan, weights=weights).tokens(torch.randn(1, 6, 8, 8))
decoder = HyperConvDecoder(features, 9).requires_grad_(False)
plan = plan_for(decoder, memory=budget, weights=weights)
x = torch.randn(1, *features[0])
gc.collect()
Path("/proc/self/clear_refs").write_text("5")
beside = status("VmRSS") - x.nbytes
decoder.prepare(plan).tokens(x)
print(status("VmHWM") - beside)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("weights", ["cached", "int8", "streamed"])
def test_the_budget_is_kept(weights):
    decoder = HyperConvDecoder(FEATURES, 9).requires_grad_(False)
    free = planned_memory(decoder, plan_for(decoder, weights=weights))
    budget = 0.8 * free
    command = [sys.executable, "-c", MEASURE, repr(FEATURES), weights, str(budget)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0 < int(result.stdout) <= budget


def test_says_what_stays_direct_for_memory(caplog):
    decoder = HyperConvDecoder(FEATURES, 9).requires_grad_(False)
    plan = plan_for(decoder)
    assert "3.layerwise" not in plan.direct
    raw = sum(parameter.nbytes for parameter in decoder.parameters())
    with caplog.at_level(logging.WARNING):
        for budget in (4 * raw, 3.5 * raw, 3 * raw, 2.7 * raw):
            tight = plan_for(decoder, memory=budget, weights="cached")
            assert planned_memory(decoder, tight) <= budget
            if set(tight.direct) > set(plan.direct):
                break
    assert set(tight.direct) > set(plan.direct)
    for name in tight.direct:
        assert name in caplog.text
    with pytest.raises(InvalidInput, match="is too little for this decoder with weights='cached'"):
        plan_for(decoder, memory=0.5 * raw, weights="cached")
    with pytest.raises(InvalidInput, match=r"weights='fp8'; choose one of \('auto', 'cached'"):
        plan_for(decoder, weights="fp8")


def test_raw_weights_do_not_count():
    """They are in memory already, and are shared where they are not transformed."""
    decoder = HyperConvDecoder(FEATURES, 9).requires_grad_(False)
    plan = plan_for(decoder)
    raw = sum(parameter.nbytes for parameter in decoder.parameters())
    counted = (planned_memory(decoder, plan) - KEPT_BYTES) / 1.1
    with torch.device("meta"):
        twin, x = HyperConvDecoder(FEATURES, 9).requires_grad_(False), torch.empty(1, *FEATURES[0])
    beside = iter([x, *twin.parameters()])
    assert peak_bytes(lambda: TorchPass(twin, plan)(x), beside) == pytest.approx(counted + raw)


def test_an_automatic_plan_streams_weights_where_transforms_do_not_fit():
    decoder = HyperConvDecoder(FEATURES, 9).requires_grad_(False)
    free = planned_memory(decoder, plan_for(decoder))
    assert plan_for(decoder, memory=free).weights == "cached"
    tight = plan_for(decoder, memory=0.4 * free)
    assert tight.weights == "streamed"
    assert planned_memory(decoder, tight) <= 0.4 * free


def test_16_bit_decoders_keep_float16_weights():
    torch.manual_seed(0)
    decoder = HyperConvDecoder([(8, 32, 32), (8, 32, 32), (6, 16, 24)], 5).requires_grad_(False)
    x = torch.randn(2, 8, 32, 32)
    expected = decoder(x)
    decoder.bfloat16()
    planned = TorchPass(decoder, decoder.checked_plan("fft", "cached"))
    weights = [
        tensor
        for block in planned.blocks
        for tensor in block.tensors.values()
        if isinstance(tensor, TransformedWeight)
    ]
    assert len(weights) == 5 * len(decoder.blocks)
    assert all(weight.values.dtype == torch.float16 for weight in weights)
    found = decoder.prepare("fft", weights="cached").tokens(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found - expected).norm() <= 0.02 * expected.norm()


@pytest.mark.parametrize("compiles", [True, False])
def test_a_gpu_that_cannot_run_the_kernels_runs_compiled(compiles, monkeypatch, caplog):
    """And says so; torch.compile, which needs Triton too, is not promised where there is none."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "An old GPU")
    monkeypatch.setattr(torch.utils._triton, "has_triton", lambda: compiles)
    with caplog.at_level(logging.WARNING):
        device = torch.device("cuda")
        assert resolve_impl("auto", False, device, torch.float64) == ("torch", compiles)
    assert "cannot run torch.float64 on An old GPU" in caplog.text
    assert ("compiled" if compiles else "eagerly") in caplog.text
    assert resolve_impl("torch", False, device, torch.float32) == ("torch", False)
    with pytest.raises(InvalidInput, match=r"impl='triton' cannot run torch\.float64 on cuda"):
        resolve_impl("triton", False, device, torch.float64)
