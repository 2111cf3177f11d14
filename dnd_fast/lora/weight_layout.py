"""Weight tokens: named matrices of one rank <-> a tensor ``[Nw, Lw, Cw]``.

Source: Drag-and-Drop LLMs, section 2.4, and its published code. Every matrix, a ``lora_B`` after
transposing it, is cut along its second dimension into chunks of ``chunk`` columns, and every chunk
is one token of r rows.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from dnd_fast.errors import InvalidInput
from dnd_fast.files import check_weights
from dnd_fast.kernels.device import can_run_triton
from dnd_fast.kernels.lora_scatter import LoraScatterTable
from dnd_fast.lora.border import add_border, remove_border

Scale = Literal["static", "border"]


@dataclass(frozen=True)
class _Group:
    """All matrices of one size and kind, so that they are handled in one operation."""

    keys: tuple[str, ...]
    tokens: Tensor  # [matrices, chunks], indices into the token axis
    size: int  # columns before padding
    transposed: bool


class WeightLayout(nn.Module, ABC):
    """Bijection between the matrices that a generator makes for one base model and weight tokens.

    Two ways of normalising tokens (``scale``):

    * ``"static"``: token = (weights - mean) / std, with the element-wise mean and the std of each
      chunk over a collection (:meth:`fit`), kept in float32. Before :meth:`fit` the mean is 0 and
      the std 1. A chunk that never varied decodes to its mean exactly.
    * ``"border"`` (published): every chunk is normalised by its own mean and unbiased std, which
      are written, encoded, into two extra rows and columns. A chunk without variance becomes NaN.

    Args:
        sizes: the number of columns of every matrix, in token order.
        rank: r, the number of rows of every matrix.
        scale: ``"static"`` or ``"border"``.
        chunk: columns of a token; by default the greatest common divisor of all sizes. Where a size
            is no multiple of it, the last chunk is padded.
        base_model: path or hub id of the base model.

    Attributes:
        num_tokens: Nw.
        token_shape: (Lw, Cw) = (r, chunk), plus two each in border mode.
        mean: ``[Nw, Lw, Cw]`` float32, or None.
        std: ``[Nw, 1, 1]`` float32, or None.
        modules_entry: the entry of :meth:`to_dict` that lists the modules, by which a description
            tells what layout it is of.

    Raises:
        InvalidInput: an argument is unusable; the message names it.
    """

    modules_entry: ClassVar[str]
    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        sizes: list[int],
        rank: int,
        *,
        scale: Scale = "static",
        chunk: int | None = None,
        base_model: str | None = None,
    ) -> None:
        super().__init__()
        if type(rank) is not int or rank < 1:
            raise InvalidInput(f"rank={rank!r}: it must be a positive integer.")
        if not isinstance(base_model, str | None):
            raise InvalidInput(f"base_model={base_model!r}: it must be a path or hub id.")
        if scale not in get_args(Scale):
            raise InvalidInput(f"scale={scale!r} is unknown; choose one of {get_args(Scale)}.")
        self.chunk = math.gcd(*sizes) if chunk is None else chunk
        if type(self.chunk) is not int or self.chunk < 1:
            raise InvalidInput(f"chunk={chunk!r}: it must be a positive integer.")
        if scale == "border" and self.chunk % 2:
            raise InvalidInput(
                f"scale='border' writes (mean, std) pairs and needs an even chunk, not "
                f"{self.chunk}. Pass another chunk or scale='static'."
            )
        smallest = rank * min(size % self.chunk or self.chunk for size in sizes)
        if scale == "border" and smallest < 2:
            raise InvalidInput(
                "scale='border' needs at least two elements per chunk, padding not counted. Pass "
                "another chunk or scale='static'."
            )
        border = 2 if scale == "border" else 0
        self.rank = rank
        self.scale: Scale = scale
        self.base_model = base_model
        self.token_shape = (rank + border, self.chunk + border)
        self.num_tokens = sum(-(-size // self.chunk) for size in sizes)
        self._tables: dict[torch.device, LoraScatterTable] = {}  # made on first use
        self.register_buffer("mean", None)
        self.register_buffer("std", None)

    @classmethod
    @abstractmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`.

        Raises:
            InvalidInput: entries are missing or malformed.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Everything but the statistics, as plain data for a JSON file."""

    @abstractmethod
    def tensor_shapes(self) -> dict[str, tuple[int, int]]:
        """Name and shape of every matrix, in token order."""

    @abstractmethod
    def to_adapter(self, tensors: dict[str, Tensor]) -> Any:
        """What the tensors of one :meth:`detokenize` make up."""

    @abstractmethod
    def check_base(self, base: object) -> None:
        """Raise unless :meth:`applied` takes ``base``.

        Raises:
            InvalidInput: it is a base model of another kind.
        """

    @abstractmethod
    def applied(self, base: Any, tensors: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Put K sets of tensors, as :meth:`detokenize` gives them, on the base model for a block.

        Sequence ``k * B + b`` of a batch sees the k-th. Differentiable in the tensors.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the layout is of, for people to read."""

    def tokenize(self, state_dict: Mapping[str, Tensor]) -> Tensor:
        """Cut, stack and normalise matrices.

        Args:
            state_dict: the matrices by name, with any leading dimensions. Names may be those on
                disk or on a live model; a missing ``base_model.model.`` or ``language_model.``
                makes no difference.

        Returns:
            ``[..., Nw, Lw, Cw]`` float32 (float64 for float64 tensors), NaN where padded.

        Raises:
            InvalidInput: tensors are missing, unexpected, of wrong shape or not finite.
        """
        tensors = self._match(state_dict)
        first = next(iter(tensors.values()))
        dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        lead = first.shape[:-2]
        weights = first.new_full(
            (*lead, self.num_tokens, self.rank, self.chunk), math.nan, dtype=dtype
        )
        for group in self._groups:
            matrices = torch.stack([tensors[key] for key in group.keys], dim=-3).to(dtype)
            matrices = matrices.mT if group.transposed else matrices  # [..., matrices, r, size]
            pad = group.tokens.shape[1] * self.chunk - group.size
            matrices = nn.functional.pad(matrices, (0, pad), value=math.nan)
            chunks = matrices.unflatten(-1, (-1, self.chunk)).movedim(-2, -3)
            weights[..., group.tokens, :, :] = chunks
        return self.normalize(weights)

    def detokenize(self, tokens: Tensor) -> dict[str, Tensor]:
        """Inverse of :meth:`tokenize`; differentiable.

        Args:
            tokens: ``[..., Nw, Lw, Cw]``; padded positions are ignored.

        Returns:
            Contiguous float32 (or float64) tensors by name, in token order.

        Raises:
            InvalidInput: when the shape does not fit.
        """
        expected = (self.num_tokens, *self.token_shape)
        if tuple(tokens.shape[-3:]) != expected:
            raise InvalidInput(
                f"tokens have shape {list(tokens.shape)}; this layout takes [..., "
                f"{', '.join(map(str, expected))}]."
            )
        weights = self.denormalize(tokens if tokens.dtype == torch.float64 else tokens.float())
        state_dict: dict[str, Tensor] = {}
        for group in self._groups:
            chunks = weights[..., group.tokens, :, :]  # [..., matrices, chunks, r, Cw]
            if group.transposed:
                matrices = chunks.mT.flatten(-3, -2)[..., : group.size, :]
            else:
                matrices = chunks.movedim(-2, -3).flatten(-2)[..., : group.size]
            matrices = matrices.movedim(matrices.ndim - 3, 0).contiguous()
            state_dict.update(zip(group.keys, matrices.unbind(0), strict=True))
        return {key: state_dict[key] for key in self.tensor_shapes()}

    @torch.no_grad()
    def scatter(self, tokens: Tensor) -> Tensor:
        """Lay out what :meth:`detokenize` gives one after another; on an NVIDIA GPU by one kernel.

        Args:
            tokens: ``[B, Nw, Lw, Cw]``.

        Returns:
            ``[B, E]`` float32, which :meth:`unpack` takes apart.
        """
        if not can_run_triton(tokens.device, tokens.dtype):
            tensors = self.detokenize(tokens).values()
            return torch.cat([tensor.float().flatten(1) for tensor in tensors], dim=1)
        from dnd_fast.kernels.triton import detokenize as kernel

        table = self.scatter_table(tokens.device)
        out = tokens.new_empty(len(tokens), table.elements, dtype=torch.float32)
        kernel.detokenize(tokens, table, out)
        return out

    def scatter_table(self, device: torch.device) -> LoraScatterTable:
        """Where a kernel writes tokens, with the statistics as they are now."""
        if device not in self._tables:
            self._tables[device] = LoraScatterTable.make(self.tensor_shapes(), self.chunk, device)
        border = self.scale == "border"
        return replace(self._tables[device], mean=self.mean, std=self.std, border=border)

    def unpack(self, weights: Tensor) -> dict[str, Tensor]:
        """``[B, E]`` by :meth:`scatter` -> what :meth:`detokenize` gives; views."""
        return self.scatter_table(weights.device).views(weights)

    def fit(self, tokens: Tensor) -> None:
        """Set mean and std from a collection, in place of any earlier ones (static mode).

        Args:
            tokens: ``[adapters, Nw, Lw, Cw]``, tokenised by this layout before its first fit.

        Raises:
            InvalidInput: in border mode, when the shape does not fit, or when there are no
                adapters or damaged ones.
        """
        if self.scale != "static":
            raise InvalidInput("only scale='static' has statistics to fit.")
        expected = (self.num_tokens, *self.token_shape)
        if tokens.ndim != 4 or tuple(tokens.shape[1:]) != expected or not len(tokens):
            raise InvalidInput(
                f"the collection has shape {list(tokens.shape)}, expected [adapters, "
                f"{', '.join(map(str, expected))}] and at least one adapter."
            )
        # Padding is NaN in every adapter; anything else must be a number in every adapter.
        if tokens.isinf().any() or (tokens.isnan() != tokens[0].isnan()).any():
            raise InvalidInput("the collection holds NaN or infinity; an adapter is damaged.")
        # Relative to the first adapter, so that a chunk that never varies gets a std of exactly 0.
        offsets = tokens.double() - tokens[0].double()
        mean = offsets.mean(0)
        variance = (offsets - mean).square().nanmean((0, 2, 3))
        mean = (tokens[0].double() + mean).nan_to_num()
        self.set_statistics(mean, variance.sqrt().view(-1, 1, 1))

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set mean ``[Nw, Lw, Cw]`` and std ``[Nw, 1, 1]`` (kept in float32; static mode).

        Raises:
            InvalidInput: border mode, wrong shape, not finite, or a negative std.
        """
        if self.scale != "static":
            raise InvalidInput("only scale='static' has a mean and std to set.")
        for name, value, shape in (
            ("mean", mean, (self.num_tokens, *self.token_shape)),
            ("std", std, (self.num_tokens, 1, 1)),
        ):
            if tuple(value.shape) != shape:
                raise InvalidInput(
                    f"the layout's {name} has shape {list(value.shape)}, expected {list(shape)}."
                )
            if not value.isfinite().all():
                raise InvalidInput(f"the layout's {name} holds NaN or infinity.")
        if (std < 0).any():
            raise InvalidInput("the layout's std holds negative values.")
        self.mean, self.std = mean.float(), std.float()

    def normalize(self, weights: Tensor) -> Tensor:
        """Raw chunks ``[..., Nw, r, chunk]`` -> tokens ``[..., Nw, Lw, Cw]``; see the class."""
        if self.scale == "border":
            return add_border(weights)
        if self.mean is None or self.std is None:
            return weights
        centred = weights - self.mean
        return torch.where(self.std > 0, centred / self.std, centred * 0)

    def denormalize(self, tokens: Tensor) -> Tensor:
        """Inverse of :meth:`normalize`."""
        if self.scale == "border":
            return remove_border(tokens)
        if self.mean is None or self.std is None:
            return tokens
        return torch.addcmul(self.mean, tokens, self.std)

    @cached_property
    def _groups(self) -> list[_Group]:
        members: dict[tuple[int, bool], list[tuple[str, list[int]]]] = {}
        start = 0
        for key, (rows, columns) in self.tensor_shapes().items():
            transposed = ".lora_B." in key
            size = rows if transposed else columns
            end = start + -(-size // self.chunk)
            members.setdefault((size, transposed), []).append((key, list(range(start, end))))
            start = end
        return [
            _Group(
                tuple(key for key, _ in matrices),
                torch.tensor([indices for _, indices in matrices]),
                size,
                transposed,
            )
            for (size, transposed), matrices in members.items()
        ]

    def _match(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under this layout's own keys, checked."""
        if not isinstance(state_dict, Mapping):
            raise InvalidInput(
                f"the tensors of an adapter are needed, by name; got a {type(state_dict).__name__}."
            )
        given = {_canonical(key): (key, tensor) for key, tensor in state_dict.items()}
        shapes = self.tensor_shapes()
        wanted = {_canonical(key): key for key in shapes}
        missing = [key for canonical, key in wanted.items() if canonical not in given]
        unexpected = [key for canonical, (key, _) in given.items() if canonical not in wanted]
        kept = {key for key, _ in given.values()}
        repeated = [key for key in state_dict if key not in kept]
        if missing or unexpected or repeated:
            raise InvalidInput(
                f"the adapter does not fit this layout: {_some('missing', missing)}, "
                f"{_some('unexpected', unexpected)}, {_some('repeated', repeated)}."
            )
        check_weights(dict(given.values()))
        lead = given[next(iter(wanted))][1].shape[:-2]
        tensors = {}
        for canonical, key in wanted.items():
            name, tensor = given[canonical]
            if tuple(tensor.shape) != (*lead, *shapes[key]):
                raise InvalidInput(
                    f"{name} has shape {list(tensor.shape)}, this layout needs "
                    f"{[*lead, *shapes[key]]}."
                )
            tensors[key] = tensor
        return tensors

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow moves between devices, but keep the statistics in float32."""
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None:
                moved = fn(value)
                setattr(self, name, moved if moved.dtype == value.dtype else value.to(moved.device))
        return self

    def extra_repr(self) -> str:
        return f"num_tokens={self.num_tokens}, token_shape={self.token_shape}, scale={self.scale!r}"


def _canonical(key: str) -> str:
    """A key without prefixes and adapter name: ``layers.0.self_attn.q_proj.lora_A``."""
    key = re.sub(r"^((base_model|model|language_model)\.)+", "", key)
    return re.sub(r"(\.lora_[AB])(\.[^.]+)?\.weight$", r"\1", key)


def _some(what: str, keys: list[str]) -> str:
    shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
    return f"{len(keys)} {what}" + (f" ({shown})" if keys else "")
