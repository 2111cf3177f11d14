"""Plans for a decoder on the device it is on, within a budget of memory."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from typing import get_args

import torch

from dnd_fast.decoder.model import HyperConvDecoder
from dnd_fast.errors import InvalidInput
from dnd_fast.kernels.conv2d import WORKSPACE_BYTES
from dnd_fast.kernels.device import PROFILES, calibrate
from dnd_fast.kernels.planner.cost_model import DecoderPlan, Weights, plan_decoder
from dnd_fast.kernels.planner.measured_times import load_table
from dnd_fast.kernels.planner.peak_memory import peak_bytes

logger = logging.getLogger(__name__)


def plan_for(
    decoder: HyperConvDecoder,
    *,
    batch: int = 1,
    memory: float | None = None,
    weights: Weights = "cached",
) -> DecoderPlan:
    """The fastest plan for inference.

    Times come from a committed table where the device has been measured, and are otherwise
    predicted after a calibration of two seconds.

    Args:
        decoder: on the device to plan for.
        batch: samples per pass.
        memory: bytes that the decoder may take while the plan is set and in every pass: weights,
            activations and workspace, but not what the process takes beside. Convolutions that
            stay in direct form for it are logged as a warning.
        weights: see :meth:`dnd_fast.decoder.model.HyperConvDecoder.set_plan`.

    Raises:
        InvalidInput: nothing fits into ``memory``, or ``weights`` is unknown.
    """
    if weights not in get_args(Weights):
        raise InvalidInput(f"weights={weights!r}; choose one of {get_args(Weights)}.")
    profile = calibrate(decoder.device, decoder.dtype, fused_2d_dft=decoder.runs_triton)
    measured = load_table(decoder.device)

    def plan(limit: float | None) -> DecoderPlan:
        return plan_decoder(
            decoder.features,
            decoder.kernel_size,
            profile,
            batch=batch,
            memory=limit,
            weights=weights,
            measured=measured,
        )

    free = plan(None)
    if memory is None:
        return free
    workspace = int(min(WORKSPACE_BYTES, max(1 << 25, memory / 8)))
    best, low, high = None, 0.0, 2.0 * memory
    for _ in range(12):  # how much of it weights may take
        limit = (low + high) / 2
        try:
            found = dataclasses.replace(plan(limit), workspace_bytes=workspace)
        except ValueError:  # not even the weights fit
            low = limit
            continue
        if planned_memory(decoder, found, batch) <= memory:
            best, low = found, limit
        else:
            high = limit
    if best is None:
        raise InvalidInput(
            f"memory={memory:.3g} bytes is too little for this decoder with weights={weights!r} "
            f"and batch={batch}: no plan was found that fits."
        )
    for_memory = [name for name in best.direct if name not in free.direct]
    if for_memory:
        logger.warning(
            "within %.3g bytes these stay in direct form: %s.", memory, ", ".join(for_memory)
        )
    return best


def training_plan(decoder: HyperConvDecoder, batch: int, kind: str) -> DecoderPlan:
    """The fastest plan for a forward and a backward pass of ``batch`` samples.

    From assumed rates: a run that is resumed computes as it began.

    Args:
        decoder: whose shapes count, wherever it is.
        batch: samples per pass.
        kind: one of :data:`dnd_fast.kernels.device.PROFILES`; see :func:`kind_of`.
    """
    return plan_decoder(
        decoder.features,
        decoder.kernel_size,
        PROFILES[kind],
        batch=batch,
        weights="streamed",
        training=True,
    )


def kind_of(device: torch.device) -> str:
    """Which of the assumed profiles comes nearest to ``device``."""
    if device.type != "cuda":
        return "cpu"
    return "h200" if torch.cuda.get_device_capability(device) >= (9, 0) else "a100"


def planned_memory(decoder: HyperConvDecoder, plan: DecoderPlan, batch: int = 1) -> int:
    """Bytes at most in use while ``plan`` is set and one pass runs, weights included.

    Counted on tensors without content, plus 10 % and 32 MB for what allocators keep of freed
    memory. What the process takes beside is not included.
    """
    with torch.device("meta"):
        twin = HyperConvDecoder(decoder.features, decoder.kernel_size, impl="torch")
        condition = torch.empty(batch, *decoder.features[0], dtype=decoder.dtype)
    twin.to(decoder.dtype).requires_grad_(False)

    def set_and_run() -> None:
        twin.set_plan(plan)
        twin(condition)

    # A list would keep alive what the plan frees.
    counted = peak_bytes(set_and_run, beside=itertools.chain([condition], twin.parameters()))
    return int(1.1 * counted) + (1 << 25)
