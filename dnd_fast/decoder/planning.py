"""Plans for a decoder on the device it is on, within a budget of memory."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import psutil
import torch

from dnd_fast.decoder.torch_pass import TorchPass
from dnd_fast.errors import InvalidInput
from dnd_fast.kernels.conv2d import WORKSPACE_BYTES, Impl
from dnd_fast.kernels.device import PROFILES, DeviceProfile, can_run_triton
from dnd_fast.kernels.planner.cost_model import (
    DecoderPlan,
    Weights,
    decoder_convolutions,
    plan_decoder,
)
from dnd_fast.kernels.planner.measured_times import load_table
from dnd_fast.kernels.planner.peak_memory import peak_bytes

if TYPE_CHECKING:
    from dnd_fast.decoder.model import HyperConvDecoder

logger = logging.getLogger(__name__)

WeightChoice = Literal["auto", "cached", "streamed", "int8"]
NamedImpl = Literal["triton", "torch"]
MEMORY_SHARE = 0.5  # of the free memory, for a generator that prepares itself
MEMORY_VARIABLE = "DND_FAST_MEMORY"
SMALL_SECONDS = 0.02  # a decoder that is predicted to run directly in less is not planned
ONE_PASS_SECONDS = 2.0  # the same for a single pass
KEPT_BYTES = 96 << 20  # of freed memory, by allocators and libraries


def resolve_impl(
    impl: Impl, compile: bool, device: torch.device, dtype: torch.dtype
) -> tuple[NamedImpl, bool]:
    """Which implementation runs, and whether under torch.compile.

    Raises:
        InvalidInput: the implementation is unknown or cannot run.
    """
    if impl not in get_args(Impl):
        raise InvalidInput(f"impl={impl!r} is unknown; choose one of {get_args(Impl)}.")
    if impl == "triton" and compile:
        raise InvalidInput("compile=True is for impl='torch': the Triton kernels are compiled.")
    runs_triton = can_run_triton(device, dtype)
    if impl == "triton":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if not runs_triton and not interpreted:
            raise InvalidInput(
                f"impl='triton' cannot run {dtype} on {device}: the Triton kernels need an NVIDIA "
                "GPU of compute capability 8.0 or more, Triton, and a dtype of 32 or 16 bits"
                f"{'' if torch.cuda.is_available() else ', and torch sees no GPU'}. Use "
                "impl='torch', with compile=True for a compiled decoder."
            )
        return "triton", False
    if impl == "auto" and not compile:
        if runs_triton:
            return "triton", False
        if device.type == "cuda":
            compile = torch.utils._triton.has_triton()
            logger.warning(
                "the Triton kernels cannot run %s on %s: the decoder runs in PyTorch, %s.",
                dtype,
                torch.cuda.get_device_name(device),
                "compiled" if compile else "eagerly, since torch.compile needs Triton too",
            )
    return "torch", compile


def plan_for(
    decoder: HyperConvDecoder,
    *,
    batch: int = 1,
    memory: float | None = None,
    weights: WeightChoice = "auto",
    impl: NamedImpl = "torch",
) -> DecoderPlan:
    """The fastest plan for inference; the same on every call.

    Times come from a table where this device has been measured (``dnd-fast plan --measure``), and
    are otherwise predicted from the assumed rates of a device of its kind.

    Args:
        decoder: on the device to plan for.
        batch: samples per pass.
        memory: bytes that preparing and a pass may take beside the decoder's own parameters:
            transformed weights, activations and workspace, but not what the process takes beside.
            Convolutions that stay in direct form for it are logged as a warning.
        weights, impl: see :meth:`dnd_fast.decoder.model.HyperConvDecoder.prepare`.

    Raises:
        InvalidInput: nothing fits into ``memory``, or ``weights`` is unknown.
    """
    if weights not in get_args(WeightChoice):
        raise InvalidInput(f"weights={weights!r}; choose one of {get_args(WeightChoice)}.")
    kinds: tuple[Weights, ...] = ("cached", "streamed") if weights == "auto" else (weights,)
    if memory is None:
        return _plan(decoder, batch, None, kinds[0], impl)
    plans = [
        plan
        for kind in kinds
        if (plan := _plan_within(decoder, batch, memory, kind, impl)) is not None
    ]
    if not plans:
        raise InvalidInput(
            f"memory={memory:.3g} bytes is too little for this decoder with weights={weights!r} "
            f"and batch={batch}: no plan was found that fits."
        )
    best = min(plans, key=lambda plan: plan.seconds)
    free = _plan(decoder, batch, None, best.weights, impl)
    if for_memory := [name for name in best.direct if name not in free.direct]:
        logger.warning(
            "within %.3g bytes these stay in direct form: %s.", memory, ", ".join(for_memory)
        )
    return best


def is_small(decoder: HyperConvDecoder, batch: int = 1, seconds: float = SMALL_SECONDS) -> bool:
    """Whether the direct form is predicted to take less than ``seconds``, assumed rates given."""
    shapes = decoder_convolutions(decoder.features, decoder.kernel_size)
    flops = batch * sum(shape.direct_flops for shape in shapes)
    return flops / _profile(decoder, "torch").direct_flops < seconds


def one_pass(decoder: HyperConvDecoder) -> dict[str, Any]:
    """Options of ``prepare`` for a decoder that runs once: what is soonest, preparing included."""
    if decoder.device.type != "cpu":  # packing weights takes a GPU no time worth saving
        return {}
    if is_small(decoder, seconds=ONE_PASS_SECONDS):
        return {"plan": "direct"}
    return {"weights": "streamed"}


def default_memory(decoder: HyperConvDecoder, batch: int = 1) -> float | None:
    """Bytes that a generator lets its prepared decoder take unless it is told otherwise.

    They are those of the environment variable ``DND_FAST_MEMORY``, as ``8e9`` or ``8GB``; else half
    of what is free on the device, or what the direct form needs where that is more. A decoder that
    is too small to plan has no limit.

    Raises:
        InvalidInput: the variable is no number of bytes.
    """
    if (setting := os.environ.get(MEMORY_VARIABLE)) is not None:
        return parse_bytes(setting)
    if is_small(decoder, batch):
        return None
    direct = planned_memory(decoder, decoder.checked_plan("direct"), batch)
    return max(MEMORY_SHARE * free_memory(decoder.device), direct)


def parse_bytes(text: str) -> float:
    """``"8e9"``, ``"8GB"`` or ``"7.5 GiB"`` -> bytes.

    Raises:
        InvalidInput: it is no positive number of bytes.
    """
    units = {"": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    match = re.fullmatch(r"\s*([0-9.]+(?:e[+]?[0-9]+)?)\s*([kmg]i?b)?\s*", text, re.IGNORECASE)
    try:
        size = float(match[1]) * units[(match[2] or "").upper()] if match else 0.0
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        raise InvalidInput(
            f"{MEMORY_VARIABLE}={text!r}: expected a positive number of bytes, such as 8e9 or 8GB."
        )
    return size


def free_memory(device: torch.device) -> float:
    """Bytes that could be allocated now: of the GPU, or of the machine and its control group."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + reserved)
    free = float(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:  # a container's limit; there is none elsewhere
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(free, 0.0)


def training_plan(decoder: HyperConvDecoder, batch: int, kind: str) -> DecoderPlan:
    """The fastest plan for a forward and a backward pass of ``batch`` samples.

    It is made from assumed rates, so that a run that is resumed computes as it began.

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


def planned_memory(
    decoder: HyperConvDecoder, plan: DecoderPlan, batch: int = 1, impl: NamedImpl = "torch"
) -> int:
    """Bytes at most in use while a decoder is prepared and runs a pass, beside its parameters.

    Counted on tensors without content, plus 10 % and 96 MB for what allocators and libraries keep
    of freed memory. What the process takes beside is not included.
    """
    with torch.device("meta"):
        twin = type(decoder)(decoder.features, decoder.kernel_size)
        condition = torch.empty(batch, *decoder.features[0], dtype=decoder.dtype)
    twin.to(decoder.dtype).requires_grad_(False)
    counted = peak_bytes(
        lambda: TorchPass(twin, plan)(condition), beside=itertools.chain([condition])
    )
    if impl == "triton":  # direct weights are packed, too
        direct = (choice.shape.weights for choice in plan.convolutions if choice.fft_plan is None)
        counted += decoder.dtype.itemsize * sum(direct)
    return int(1.1 * counted) + KEPT_BYTES


def _plan_within(
    decoder: HyperConvDecoder, batch: int, memory: float, weights: Weights, impl: NamedImpl
) -> DecoderPlan | None:
    """The fastest plan that takes up to ``memory`` bytes, if any does."""
    plan = _plan(decoder, batch, None, weights, impl)
    if planned_memory(decoder, plan, batch, impl) <= memory:
        return plan
    workspace = int(min(WORKSPACE_BYTES, max(1 << 25, memory / 8)))
    plan = dataclasses.replace(plan, workspace_bytes=workspace)
    if planned_memory(decoder, plan, batch, impl) <= memory:
        return plan
    best, low, high = None, 0.0, plan.weight_bytes
    for _ in range(12):  # how much of it weights may take
        limit = (low + high) / 2
        try:
            plan = _plan(decoder, batch, limit, weights, impl)
        except ValueError:  # not even the weights fit
            low = limit
            continue
        plan = dataclasses.replace(plan, workspace_bytes=workspace)
        if planned_memory(decoder, plan, batch, impl) <= memory:
            best, low = plan, limit
        else:
            high = limit
    return best


def _plan(
    decoder: HyperConvDecoder,
    batch: int,
    weight_bytes: float | None,
    weights: Weights,
    impl: NamedImpl,
) -> DecoderPlan:
    return plan_decoder(
        decoder.features,
        decoder.kernel_size,
        _profile(decoder, impl),
        batch=batch,
        memory=weight_bytes,
        weights=weights,
        measured=load_table(decoder.device),
    )


def _profile(decoder: HyperConvDecoder, impl: NamedImpl) -> DeviceProfile:
    """Assumed rates: measured anew in every process, they would give other plans, and so bits."""
    return dataclasses.replace(
        PROFILES[kind_of(decoder.device)],
        element_size=decoder.dtype.itemsize,
        fused_2d_dft=impl == "triton",
    )
