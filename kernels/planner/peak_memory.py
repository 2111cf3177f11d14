"""How much memory a computation takes, counted tensor by tensor."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dnd_fast.kernels.fft.tiling import FFTConvPlan
from dnd_fast.kernels.fft.torch_conv import fft_conv2d_torch, weight_gradient_torch

Described = tuple[tuple[int, ...], torch.dtype]


class _Count(TorchDispatchMode):
    def __init__(self, beside: Iterable[Tensor], inside: bool = True) -> None:
        super().__init__()
        self._inside = inside
        self.now = self.peak = self.peak_outside = 0
        self._known: set[int] = set()
        for tensor in beside:
            self._add(tensor.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        before = self.now
        result = func(*args, **(kwargs or {}))
        old = {id(leaf.untyped_storage()) for leaf in given}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if id(storage) not in old | self._known:
                    self._add(storage)
        if func is torch.ops.aten.convolution.default:
            scratch = sum(leaf.nbytes for leaf in (*given, result))
            self.peak = max(self.peak, self.now + scratch)
        elif func.namespace == "dnd_fast" and self._inside:
            tensors = tuple((tuple(leaf.shape), leaf.dtype) for leaf in given)
            lengths, dtype, workspace, _ = (arg for arg in args if not isinstance(arg, Tensor))
            inside = _inside(func, tensors, tuple(lengths), dtype, workspace)
            self.peak = max(self.peak, before + inside)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        self.peak_outside = max(self.peak_outside, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@lru_cache(maxsize=256)
def _inside(
    func: Any,
    tensors: tuple[Described, ...],
    lengths: tuple[int, ...],
    dtype: torch.dtype,
    workspace: int,
) -> int:
    """What a convolution in the transform domain allocates, its result included."""
    with unset_fake_temporarily():
        x, other = (torch.empty(shape, dtype=kind, device="meta") for shape, kind in tensors)
        plan = FFTConvPlan.make(*lengths)
        inner = fft_conv2d_torch
        if func is torch.ops.dnd_fast.fft_conv2d_weight_gradient.default:
            inner = weight_gradient_torch
        return peak_bytes(lambda: inner(x, other, plan, dtype, workspace))


def peak_bytes(
    run: Callable[[], object], beside: Iterable[Tensor] = (), *, inside: bool = True
) -> int:
    """Bytes of all tensors that ``run`` creates, at the moment when they take most.

    Of what existed before, ``beside`` (an iterator that holds nothing) counts until it is freed. On
    tensors of the device "meta" nothing is computed, and the count is the same. Of what libraries
    allocate inside of an operation only a convolution's is known: its tensors once more, in another
    order. Convolutions in the transform domain are followed step by step, which takes minutes for a
    large decoder and batch, unless ``inside`` is False.
    """
    with _Count(beside, inside) as count:
        run()
    return count.peak


def peak_parts(run: Callable[[], object]) -> tuple[int, int]:
    """:func:`peak_bytes` of ``run``, and how much of it convolutions take inside for a moment.

    Also counts on fake tensors, as of ``torch._subclasses.FakeTensorMode``, which follow autograd
    and autocast as the device would.
    """
    with _Count(()) as count:
        run()
    return count.peak, count.peak - count.peak_outside
