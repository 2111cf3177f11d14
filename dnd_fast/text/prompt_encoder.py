"""What every prompt encoder offers, and what all of them share: checks, and a cache on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from dnd_fast.cache import cached
from dnd_fast.errors import InvalidInput
from dnd_fast.files import hash_tensors
from dnd_fast.text.prompts import read_prompts

Padding = Literal["zero", "encoded"]
Token = int | tuple[int, ...]  # what one position holds: of word vectors, those that are pooled


@runtime_checkable
class PromptEncoder(Protocol):
    """What a generator needs of the encoder of its prompts.

    Attributes:
        width: C, the size of an embedding.
    """

    width: int

    @property
    def device(self) -> torch.device:
        """The device that the encoder computes on."""

    def to(self, device: str | torch.device) -> None:
        """Move the encoder to a device, in place."""

    def encode(
        self,
        prompts: Sequence[str],
        length: int,
        *,
        padding: Padding = "zero",
        cache: str | Path | None = None,
    ) -> Tensor:
        """Embed N prompts: ``[N, length, C]`` float32 on the encoder's device."""

    def fingerprint(self) -> str:
        """A text that differs between encoders whose embeddings differ."""


class CachingEncoder(ABC):
    """A frozen module behind a tokenizer, whose embeddings can be kept on disk.

    Args:
        model: the module, whose parameters say where the encoder is.
        width: C, the size of an embedding.
    """

    def __init__(self, model: nn.Module, width: int) -> None:
        self.model = model
        self.width = width

    @property
    def device(self) -> torch.device:
        """The device that the encoder computes on."""
        return next(self.model.parameters()).device

    def fingerprint(self) -> str:
        """SHA-256 over all that embeddings depend on, wherever the encoder lies.

        It is computed once: the module is frozen.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return hash_tensors(self.model.state_dict(), {"encoder": self._describe()})

    def to(self, device: str | torch.device) -> None:
        """Move the encoder to a device, in place.

        Raises:
            InvalidInput: there is no such device, or it cannot be used.
        """
        move(self.model, device)

    def encode(
        self,
        prompts: Sequence[str],
        length: int,
        *,
        padding: Padding = "zero",
        cache: str | Path | None = None,
    ) -> Tensor:
        """Embed prompts. One longer than ``length`` is truncated; a warning counts these.

        Args:
            prompts: N strings.
            length: L, the number of tokens per prompt.
            padding: what positions after a prompt's end hold: zeros, or (``"encoded"``, as in the
                published code) what the encoder puts out there.
            cache: a folder that keeps the embeddings of this very set of prompts; see
                :func:`dnd_fast.cache.cached`.

        Returns:
            ``[N, L, C]`` float32 on the encoder's device.

        Raises:
            InvalidInput: unusable prompts (see :func:`dnd_fast.text.prompts.read_prompts`),
                ``length`` is not positive or ``padding`` unknown.
        """
        if type(length) is not int or length < 1:
            raise InvalidInput(f"length={length!r}: it must be a positive integer.")
        if padding not in get_args(Padding):
            raise InvalidInput(f"padding={padding!r}; choose one of {get_args(Padding)}.")
        tokens = self._tokenize(read_prompts(prompts), length)
        if cache is None:
            return self._embed(tokens, length, padding)
        occupied = occupied_positions(tokens, length, padding)
        stored = cached(
            cache,
            f"{self.fingerprint()} {length} {padding} {tokens}",
            {"hidden": (int(occupied.sum()), self.width)},
            lambda: {"hidden": self._embed(tokens, length, padding).cpu()[occupied]},
            what="embeddings",
        )
        hidden = torch.zeros(*occupied.shape, self.width, dtype=torch.float32, device=self.device)
        hidden[occupied.to(self.device)] = stored["hidden"].to(self.device)
        return hidden

    @abstractmethod
    def _describe(self) -> str:
        """All that embeddings depend on beside the module's weights, as a text."""

    @abstractmethod
    def _tokenize(self, prompts: list[str], length: int) -> Sequence[Sequence[Token]]:
        """The tokens of every prompt, at most ``length``; warns of truncated ones."""

    @abstractmethod
    def _embed(self, tokens: Sequence[Sequence[Token]], length: int, padding: Padding) -> Tensor:
        """The embeddings ``[N, length, C]`` in float32 on the encoder's device."""


def occupied_positions(tokens: Sequence[Sequence[Token]], length: int, padding: Padding) -> Tensor:
    """Which positions ``[N, length]`` may hold something else than zero, on the CPU."""
    lengths = [len(row) if padding == "zero" else length for row in tokens]
    return torch.arange(length) < torch.tensor(lengths)[:, None]


def move(module: nn.Module, device: str | torch.device) -> None:
    """Move ``module`` to ``device``, in place.

    Raises:
        InvalidInput: there is no such device, or it cannot be used.
    """
    try:
        module.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput(f"device={str(device)!r} cannot be used: {error}") from error
