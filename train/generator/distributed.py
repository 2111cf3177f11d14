"""Several GPUs or processes: replicas (DDP) or shards (FSDP2), and their state in one piece.

Processes are started by ``torchrun``, which ends all of them when one dies. Accelerate sets them up
and serves the trackers; its own FSDP2 does not run without a GPU, so sharding is PyTorch's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from dnd_fast.decoder.model import HyperConvDecoder
from dnd_fast.errors import InvalidInput

TIMEOUT = timedelta(minutes=30)  # for a process that hangs; one that dies is noticed at once
CPU = torch.device("cpu")
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True)
class DistributedContext:
    """This process among all.

    Attributes:
        rank: Index of this process, from 0.
        size: Number of processes.
        device: Device of this process.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @classmethod
    def start(cls) -> DistributedContext:
        """Join the processes of ``torchrun``, or be alone; on a GPU where there is one."""
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)
        device = CPU if state.device.type == "cpu" else state.device
        return cls(state.process_index, state.num_processes, device)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes the files."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def end(self) -> None:
        """Leave the other processes."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def wrap(self, decoder: HyperConvDecoder, *, shard: bool) -> nn.Module:
        """Return what to call instead of ``decoder``; shards are made of its own parameters."""
        if self.size == 1:
            return decoder
        if not shard:
            return DistributedDataParallel(decoder, gradient_as_bucket_view=True)
        mesh = init_device_mesh(self.device.type, (self.size,))
        for block in decoder.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(decoder, mesh=mesh)
        return decoder


def gradient_sync(model: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
    """Within, backward passes end in gradients averaged over all processes, or add to their own."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)
    if isinstance(model, DistributedDataParallel) and not wanted:
        return model.no_sync()
    return nullcontext()


def full_state(
    decoder: HyperConvDecoder, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return weights and the optimiser's state as ``PARAMETER|ENTRY``, whole, on the CPU of rank 0.

    All processes must take part.
    """
    weights, state = get_state_dict(decoder, optimizer, options=FULL)
    flat = dict(_flatten(cast(dict[str, Any], state.get("state", {}))))
    for key, value in flat.items():
        if key.rpartition("|")[2].startswith("qmap"):  # bitsandbytes' is one tensor for all
            flat[key] = value.clone()
    return cast(dict[str, Tensor], weights), flat


def _flatten(nested: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Flatten a state: some optimisers have entries within entries."""
    for key, value in nested.items():
        if isinstance(value, dict):
            yield from ((f"{key}|{rest}", inner) for rest, inner in _flatten(value))
        else:
            yield key, value


def whole_weights(decoder: HyperConvDecoder) -> dict[str, Tensor]:
    """Return whole weights on the CPU of rank 0; all processes must take part."""
    return cast(dict[str, Tensor], get_model_state_dict(decoder, options=FULL))


def load_weights(decoder: HyperConvDecoder, weights: Mapping[str, Tensor]) -> None:
    """Take over whole weights, into shards where they are.

    Raises:
        InvalidInput: they are another decoder's.
    """
    expected = {name: tuple(value.shape) for name, value in decoder.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise InvalidInput(
                f"the checkpoint is another decoder's: {name!r} has shape "
                f"{found.get(name, 'missing')}, expected {expected.get(name, 'nothing')}. Remove "
                "it, and an older one is used."
            )
    set_model_state_dict(decoder, dict(weights), options=FULL)


def load_optimizer(
    decoder: HyperConvDecoder, optimizer: torch.optim.Optimizer, flat: Mapping[str, Any]
) -> None:
    """Take over a state that :func:`full_state` gave, with any number of processes.

    Raises:
        InvalidInput: it is another optimiser's, or of another decoder.
    """
    entries: dict[str, Any] = {}
    for key, value in flat.items():
        *path, entry = key.split("|")
        place = entries
        for name in path:
            place = place.setdefault(name, {})
        place[entry] = value
    (group,) = optimizer.param_groups
    settings = {key: value for key, value in group.items() if key != "params"}
    state: dict[str, Any] = {
        "state": entries,
        "param_groups": [settings | {"params": list(entries)}],
    }
    try:
        set_optimizer_state_dict(decoder, optimizer, state, options=FULL)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(
            f"the checkpoint's optimiser is another one, or of another decoder ({error}). Remove "
            "the checkpoint, and an older one is used."
        ) from error
