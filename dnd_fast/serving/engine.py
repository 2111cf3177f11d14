"""What the core needs of an engine that answers chats."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PretrainedConfig

from dnd_fast.lora.target_modules import auto_model


class Engine(Protocol):
    """A language model that takes adapters while it runs.

    Attributes:
        kind: what kind of engine it is, for people.
        model: the base's name in requests.
        base: the base's path or hub id, which is written into adapters.
        skeleton: the base's modules, whose weights may be on the meta device.
        max_rank: the largest rank of an adapter that it takes; None: any.
    """

    kind: str
    model: str
    base: str
    skeleton: nn.Module
    max_rank: int | None

    async def load(self, name: str, folder: Path) -> None:
        """Make the adapter in a folder a model of a name; success if it is one already.

        Raises:
            APIError: the engine refuses it, or does not answer.
        """

    async def unload(self, name: str) -> None:
        """Forget a model; success if there is none.

        Raises:
            APIError: the engine does not answer.
        """

    async def complete(self, body: dict[str, Any], model: str) -> dict[str, Any]:
        """Answer a chat: an OpenAI ``chat.completion``.

        Args:
            body: the request.
            model: the base or a loaded adapter.

        Raises:
            APIError: the request is unusable, or the engine does not answer.
        """

    def stream(self, body: dict[str, Any], model: str) -> AsyncGenerator[dict[str, Any]]:
        """Answer a chat bit by bit, in OpenAI's ``chat.completion.chunk``; errors as above."""

    async def check(self) -> None:
        """Raise APIError unless the engine answers."""

    async def close(self) -> None:
        """Give back what the engine holds here."""


def skeleton_of(config: PretrainedConfig) -> nn.Module:
    """Return the modules of a base, without values."""
    with torch.device("meta"):
        model: nn.Module = auto_model(config).from_config(config, trust_remote_code=False)
    return model
