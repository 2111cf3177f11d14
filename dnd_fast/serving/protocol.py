"""The requests of clients."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt


class AdapterRequest(BaseModel):
    """What an adapter is made of."""

    model_config = ConfigDict(extra="forbid")

    prompts: list[str]
    seed: StrictInt = 0


class ChatRequest(BaseModel):
    """OpenAI's chat request, of which the engine reads the rest, and the prompts of an adapter."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    messages: list[dict[str, Any]] = Field(min_length=1)
    stream: bool = False
    dnd: AdapterRequest | None = None
