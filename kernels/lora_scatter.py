"""Where weight tokens go in the LoRA tensors, and what they are scaled by; data for kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LoraScatterTable:
    """Where every token goes in one flat buffer that holds all LoRA tensors.

    Attributes:
        shapes: Shapes of the LoRA tensors, by name, in token order.
        rank: Rank r.
        chunk: Columns of a token.
        table: Offset, columns kept, row stride and column stride of each token, in elements;
            ``[Nw, 4]`` int32.
        mean: Static means ``[Nw, r, chunk]``, float32, contiguous: weights are token * std + mean.
            None: tokens are the weights, unless ``border``.
        std: Static standard deviations ``[Nw, 1, 1]``, float32, contiguous; given with mean.
        border: Whether tokens carry their own mean and std in two more rows and columns.
    """

    shapes: Mapping[str, tuple[int, int]]
    rank: int
    chunk: int
    table: Tensor
    mean: Tensor | None = None
    std: Tensor | None = None
    border: bool = False

    def __post_init__(self) -> None:
        """Check the statistics.

        Raises:
            ValueError: Mean and std do not fit the tokens, one of them is missing, or tokens carry
                their own.
        """
        if self.border and self.mean is not None:
            raise ValueError("these tokens carry their own mean and std: give no others.")
        count = len(self.table)
        for name, shape in (("mean", (count, self.rank, self.chunk)), ("std", (count, 1, 1))):
            tensor = getattr(self, name)
            if self.mean is None and self.std is None:
                continue
            if tensor is None or tuple(tensor.shape) != shape or not tensor.is_contiguous():
                raise ValueError(
                    f"{name} is {'missing' if tensor is None else list(tensor.shape)}; expected "
                    f"mean and std together, and it contiguous, of shape {list(shape)}."
                )

    @classmethod
    def make(
        cls,
        shapes: Mapping[str, tuple[int, int]],
        chunk: int,
        device: torch.device | str | None = None,
    ) -> LoraScatterTable:
        """Table for tensors that lie one after another, each contiguous.

        Args:
            shapes: Shapes A ``(r, in)`` and B ``(out, r)`` by PEFT's names (``….lora_A.weight``),
                in token order; each tensor is one token per ``chunk`` of in or out, the last may be
                shorter.
            chunk: Columns of a token.
            device: Device of the table.

        Raises:
            ValueError: The tensors differ in rank, or have 2^31 elements or more.
        """
        rows: list[tuple[int, int, int, int]] = []
        ranks, base = set(), 0
        for name, shape in shapes.items():
            transposed = ".lora_B." in name
            size, rank = shape if transposed else shape[::-1]
            row_stride, column_stride = (1, rank) if transposed else (size, 1)
            rows += [
                (base + start * column_stride, min(chunk, size - start), row_stride, column_stride)
                for start in range(0, size, chunk)
            ]
            base += size * rank
            ranks.add(rank)
        if len(ranks) != 1:
            raise ValueError(f"LoRA tensors of one rank are needed, not of {sorted(ranks)}.")
        if base >= 1 << 31:
            raise ValueError(
                f"the LoRA tensors have {base} elements; kernels can write up to 2^31."
            )
        table = torch.tensor(rows, dtype=torch.int32, device=device)
        return cls(dict(shapes), ranks.pop(), chunk, table)

    @property
    def elements(self) -> int:
        """Elements E of all LoRA tensors."""
        return sum(map(math.prod, self.shapes.values()))

    def views(self, out: Tensor) -> dict[str, Tensor]:
        """Cut ``[..., E]`` into views ``[..., r, in]`` and ``[..., out, r]`` of it, by name."""
        parts = out.split([math.prod(shape) for shape in self.shapes.values()], dim=-1)
        return {
            name: part.unflatten(-1, shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
