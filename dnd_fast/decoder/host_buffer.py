"""Tensors on their way from a GPU to the host."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from dnd_fast.errors import InvalidInput


class HostBuffer:
    """One page-locked buffer, which a GPU copies to several times as fast as to other memory.

    It is taken at the first copy and grows with the largest. It may be used from several threads,
    which wait for one another; a copy of it is empty.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._lock = threading.Lock()

    def moved(self, tensor: Tensor, device: str | torch.device) -> Tensor:
        """The tensor on ``device``; the tensor itself where it is there already.

        Raises:
            InvalidInput: the device cannot be used.
        """
        try:
            device = torch.device(device)
            if not tensor.is_cuda or device.type != "cpu":
                return tensor.to(device)
        except (RuntimeError, AssertionError) as error:
            raise InvalidInput(f"device={str(device)!r} cannot be used: {error}") from error
        with self._lock:
            if self._buffer is None or self._buffer.nbytes < tensor.nbytes:
                self._buffer = torch.empty(tensor.nbytes, dtype=torch.uint8, pin_memory=True)
            staged = self._buffer[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            return staged.copy_(tensor).clone()

    def __reduce__(self) -> tuple[Any, ...]:
        return HostBuffer, ()
