"""What a model is, kept so that it can be put back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Snapshot:
    """Structure, attributes and flags of a module and of all below it.

    Values of parameters are not copied, apart from those that :meth:`keep` is told of: putting
    back costs nothing but them, and works where a parameter or its data was exchanged for another.

    Args:
        root: the module.
    """

    def __init__(self, root: nn.Module) -> None:
        self._modules = [
            (module, dict(vars(module)), [(each, each.copy()) for each in _containers(module)])
            for module in root.modules()
        ]
        self._parameters = [(each, each.data, each.requires_grad) for each in root.parameters()]
        self._written: list[tuple[Tensor, Tensor]] = []

    def keep(self, tensors: Iterable[Tensor]) -> None:
        """Copy the values of tensors that are about to be written to."""
        self._written += [(tensor, tensor.detach().clone()) for tensor in tensors]

    def restore(self) -> None:
        """Put everything back as it was."""
        for module, attributes, containers in self._modules:
            vars(module).clear()
            vars(module).update(attributes)
            for container in _containers(module):
                container.clear()
            for container, content in containers:
                (container.extend if isinstance(container, list) else container.update)(content)
        for parameter, data, requires_grad in self._parameters:
            if parameter.data_ptr() != data.data_ptr():
                parameter.data = data
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
        with torch.no_grad():
            for tensor, values in reversed(self._written):  # kept twice, the first values count
                tensor.copy_(values)


@contextmanager
def unchanged_on_error(root: nn.Module) -> Iterator[Snapshot]:
    """Put a module back as it was when the block ends in any exception, an interruption included.

    Yields:
        The snapshot, which is to :meth:`~Snapshot.keep` what is written to in place.
    """
    snapshot = Snapshot(root)
    try:
        yield snapshot
    except BaseException:
        snapshot.restore()
        raise


def _containers(module: nn.Module) -> list[Any]:
    """Dictionaries, lists and sets with something in them; children and hooks are in such, too."""
    kinds = (dict, OrderedDict, list, set)
    return [each for each in vars(module).values() if type(each) in kinds and each]
