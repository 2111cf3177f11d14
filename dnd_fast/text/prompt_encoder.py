"""What every prompt encoder offers, and what all of them share: checks, and a cache on disk."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from dnd_fast.errors import InvalidInput
from dnd_fast.files import atomic_folder, check_weights, read_safetensors, write_safetensors
from dnd_fast.text.prompts import read_prompts

Padding = Literal["zero", "encoded"]
Token = int | tuple[int, ...]  # what one position holds: of word vectors, those that are pooled
logger = logging.getLogger(__name__)


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
            cache: a folder that keeps the embeddings of this very set of prompts.

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
        key = f"{self.fingerprint()} {length} {padding} {tokens}"
        entry = Path(cache) / hashlib.sha256(key.encode()).hexdigest()
        file = entry / "embeddings.safetensors"
        occupied = occupied_positions(tokens, length, padding).to(self.device)
        if file.is_file():
            try:
                stored = read_safetensors(file)
                check_weights(stored)
                hidden = torch.zeros(
                    *occupied.shape, self.width, dtype=torch.float32, device=self.device
                )
                hidden[occupied] = stored["hidden"].to(self.device)
                return hidden
            except (InvalidInput, KeyError, RuntimeError) as error:
                logger.warning("%s is damaged (%s); the prompts are encoded again.", file, error)
        hidden = self._embed(tokens, length, padding)
        with atomic_folder(entry) as folder:
            write_safetensors(folder / file.name, {"hidden": hidden[occupied]})
        return hidden

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 over all that embeddings depend on, wherever the encoder lies."""

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


def hash_weights(module: nn.Module, prefix: str = "") -> str:
    """SHA-256 over a text and a module's weights, their names, dtypes and shapes."""
    digest = hashlib.sha256(prefix.encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def move(module: nn.Module, device: str | torch.device) -> None:
    """Move ``module`` to ``device``, in place.

    Raises:
        InvalidInput: there is no such device, or it cannot be used.
    """
    try:
        module.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput(f"device={str(device)!r} cannot be used: {error}") from error
