"""How much memory a computation takes, counted tensor by tensor."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Count(TorchDispatchMode):
    def __init__(self, beside: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()
        for tensor in beside:
            self._add(tensor.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        found = func(*args, **(kwargs or {}))
        old = {id(leaf.untyped_storage()) for leaf in given}
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if id(storage) not in old | self._known:
                    self._add(storage)
        if func is torch.ops.aten.convolution.default:
            scratch = sum(leaf.nbytes for leaf in (*given, found))
            self.peak = max(self.peak, self.now + scratch)
        return found

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def peak_bytes(run: Callable[[], object], beside: Iterable[Tensor] = ()) -> int:
    """Bytes of all tensors that ``run`` creates, at the moment when they take most.

    Of what existed before, ``beside`` (an iterator that holds nothing) counts until it is freed. On
    tensors of the device "meta" nothing is computed, and the count is the same. Of what libraries
    allocate inside of an operation only a convolution's is known: its tensors once more, in another
    order.
    """
    with _Count(beside) as count:
        run()
    return count.peak
