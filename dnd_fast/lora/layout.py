"""Weight tokens: LoRA matrices <-> a tensor ``[Nw, Lw, Cw]``.

Source: Drag-and-Drop LLMs, section 2.4, and its published code. For each layer the modules come in
the order q, k, v, o, up, gate, down; for each module first A ``[r, in]``, then B transposed
``[r, out]``; each is cut along its second dimension into chunks of ``chunk`` columns, and every
chunk is one token of r rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from dnd_fast.errors import InvalidInput
from dnd_fast.files import check_weights
from dnd_fast.kernels.device import can_run_triton
from dnd_fast.kernels.lora_scatter import LoraScatterTable
from dnd_fast.lora.adapter import Adapter, lora_config
from dnd_fast.lora.border import add_border, remove_border
from dnd_fast.lora.target_modules import LoraModule, find_lora_modules

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Scale = Literal["static", "border"]
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class _Group:
    """All matrices of one size and kind (A or B), so that they are handled in one operation."""

    keys: tuple[str, ...]  # PEFT names
    tokens: Tensor  # [matrices, chunks], indices into the token axis
    size: int  # columns before padding
    is_b: bool


class TokenLayout(nn.Module):
    """Bijection between the LoRA tensors of one base model and weight tokens.

    Two ways of normalising tokens (``scale``):

    * ``"static"``: token = (weights - mean) / std, with the element-wise mean and the std of each
      chunk over a collection of adapters (:meth:`fit`), kept in float32. Before :meth:`fit` the
      mean is 0 and the std 1. A chunk that never varied decodes to its mean exactly.
    * ``"border"`` (published): every chunk is normalised by its own mean and unbiased std, which
      are written, encoded, into two extra rows and columns. A chunk without variance becomes NaN.

    Args:
        modules: the adapted linear layers in token order.
        rank: LoRA rank r.
        lora_alpha: LoRA alpha.
        scale: ``"static"`` or ``"border"``.
        target_modules: what PEFT needs to find the modules: their short names or one regex.
        chunk: columns of a token; by default the greatest common divisor of all sizes. Where a size
            is no multiple of it, the last chunk is padded.
        base_model: path or hub id of the base model, written into adapters.

    Attributes:
        num_tokens: Nw.
        token_shape: (Lw, Cw) = (r, chunk), plus two each in border mode.
        mean: ``[Nw, Lw, Cw]`` float32, or None.
        std: ``[Nw, 1, 1]`` float32, or None.

    Raises:
        InvalidInput: an argument is unusable; the message names it.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        modules: list[LoraModule],
        rank: int,
        *,
        lora_alpha: int,
        target_modules: list[str] | str,
        scale: Scale = "static",
        chunk: int | None = None,
        base_model: str | None = None,
    ) -> None:
        super().__init__()
        if type(rank) is not int or rank < 1:
            raise InvalidInput(f"rank={rank!r}: it must be a positive integer.")
        if type(lora_alpha) not in (int, float) or not 0 < lora_alpha < math.inf:
            raise InvalidInput(f"lora_alpha={lora_alpha!r}: it must be a positive number.")
        if not isinstance(base_model, str | None):
            raise InvalidInput(f"base_model={base_model!r}: it must be a path or hub id.")
        targets = target_modules if isinstance(target_modules, list) else [target_modules]
        if not all(isinstance(name, str) for name in targets):
            raise InvalidInput(
                f"target_modules={target_modules!r}: it must be a list of names or one regex."
            )
        if scale not in get_args(Scale):
            raise InvalidInput(f"scale={scale!r} is unknown; choose one of {get_args(Scale)}.")
        if not modules:
            raise InvalidInput("the layout has no modules to adapt.")
        names = [module.name for module in modules]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise InvalidInput(f"the layout has module {repeated[0]!r} more than once.")
        sizes = [size for module in modules for size in (module.size_in, module.size_out)]
        self._set_sizes(sizes, rank, chunk, border=2 if scale == "border" else 0)
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
        self.adapted_modules = tuple(modules)
        self.rank = rank
        self.lora_alpha = lora_alpha
        self.target_modules = target_modules
        self.scale: Scale = scale
        self.base_model = base_model

    def _set_sizes(self, sizes: list[int], rank: int, chunk: int | None, border: int = 0) -> None:
        """Chunk, tokens and statistics for matrices of ``rank`` rows and so many columns each."""
        self.chunk = math.gcd(*sizes) if chunk is None else chunk
        if type(self.chunk) is not int or self.chunk < 1:
            raise InvalidInput(f"chunk={chunk!r}: it must be a positive integer.")
        self.token_shape = (rank + border, self.chunk + border)
        self.num_tokens = sum(math.ceil(size / self.chunk) for size in sizes)
        self._tables: dict[torch.device, LoraScatterTable] = {}  # made on first use
        self.register_buffer("mean", None)
        self.register_buffer("std", None)

    @classmethod
    def for_model(
        cls,
        config: PretrainedConfig,
        rank: int,
        *,
        scale: Scale = "static",
        target_modules: list[str] | Literal["all-linear"] = "all-linear",
        lora_alpha: int | None = None,
        chunk: int | None = None,
    ) -> TokenLayout:
        """Derive the layout from a transformers config alone, without any weights.

        Args:
            config: of a causal LM, or of a vision-language model, whose language part is taken.
            rank: LoRA rank.
            scale, chunk: see the class.
            target_modules: every linear layer of the transformer blocks, or some, by short name.
            lora_alpha: 2 * rank by default, as in the paper.

        Raises:
            InvalidInput: no language model behind the config, or a target module it does not have.
        """
        modules, targets = find_lora_modules(config, target_modules)
        return cls(
            modules,
            rank,
            lora_alpha=2 * rank if lora_alpha is None else lora_alpha,
            target_modules=targets,
            scale=scale,
            chunk=chunk,
            base_model=getattr(config, "_name_or_path", None) or None,
        )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TokenLayout:
        """Inverse of :meth:`to_dict`.

        Raises:
            InvalidInput: entries are missing or malformed.
        """
        try:
            modules = [LoraModule(name, *sizes) for name, sizes in fields["modules"].items()]
            options = {key: value for key, value in fields.items() if key != "modules"}
            return cls(modules, **options)
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(f"the layout's description is malformed: {error!r}.") from error

    def to_dict(self) -> dict[str, Any]:
        """Everything but the statistics, as plain data for a JSON file."""
        return {
            "base_model": self.base_model,
            "rank": self.rank,
            "lora_alpha": self.lora_alpha,
            "target_modules": self.target_modules,
            "scale": self.scale,
            "chunk": self.chunk,
            "modules": {
                module.name: [module.size_in, module.size_out] for module in self.adapted_modules
            },
        }

    def to_adapter(self, tensors: dict[str, Tensor]) -> Any:
        """What the tensors of one :meth:`detokenize` make up: here, an adapter."""
        config = lora_config(
            rank=self.rank,
            lora_alpha=self.lora_alpha,
            target_modules=self.target_modules,
            base_model=self.base_model,
        )
        return Adapter(tensors, config)

    def tensor_shapes(self) -> dict[str, tuple[int, int]]:
        """PEFT's name and the shape of every LoRA tensor, in token order."""
        return {
            f"{PEFT_PREFIX}{module.name}.lora_{half}.weight": shape
            for module in self.adapted_modules
            for half, shape in (
                ("A", (self.rank, module.size_in)),
                ("B", (module.size_out, self.rank)),
            )
        }

    def tokenize(self, state_dict: Mapping[str, Tensor]) -> Tensor:
        """Cut, stack and normalise LoRA tensors.

        Args:
            state_dict: A ``[..., r, in]`` and B ``[..., out, r]`` of every module, any leading
                dimensions, keyed as PEFT does on disk or on a live model; a missing
                ``base_model.model.`` or ``language_model.`` makes no difference.

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
            matrices = matrices.mT if group.is_b else matrices  # [..., matrices, r, size]
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
            Contiguous float32 (or float64) tensors under PEFT's names
            (``base_model.model.….lora_A.weight``): A ``[..., r, in]``, B ``[..., out, r]``.

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
            if group.is_b:
                matrices = chunks.mT.flatten(-3, -2)[..., : group.size, :]
            else:
                matrices = chunks.movedim(-2, -3).flatten(-2)[..., : group.size]
            matrices = matrices.movedim(matrices.ndim - 3, 0).contiguous()
            state_dict.update(zip(group.keys, matrices.unbind(0), strict=True))
        return {key: state_dict[key] for key in self.tensor_shapes()}

    @torch.no_grad()
    def scatter(self, tokens: Tensor) -> Tensor:
        """``[B, Nw, Lw, Cw]`` -> ``[B, E]`` float32, what :meth:`detokenize` gives one after
        another; on an NVIDIA GPU by one kernel."""
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
            is_b = ".lora_B." in key
            size = rows if is_b else columns
            end = start + math.ceil(size / self.chunk)
            members.setdefault((size, is_b), []).append((key, list(range(start, end))))
            start = end
        return [
            _Group(tuple(key for key, _ in found), torch.tensor([i for _, i in found]), size, is_b)
            for (size, is_b), found in members.items()
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TokenLayout:
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
