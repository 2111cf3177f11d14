"""What engines within this process share: OpenAI's chat requests and responses."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _joined(content: Any) -> Any:
    """Return the text of content that comes in parts."""
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    return content


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_joined)]


class LocalRequest(BaseModel):
    """The part of OpenAI's chat request that local engines know; anything else is refused.

    Decoding is greedy unless a temperature is given.
    """

    model_config = ConfigDict(extra="forbid")

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    stop: Annotated[
        list[str], Field(max_length=4), BeforeValidator(lambda s: [s] if isinstance(s, str) else s)
    ] = []
    n: int = Field(1, ge=1, le=1)
    top_p: float = Field(1.0, ge=1, le=1)
    frequency_penalty: float = Field(0.0, ge=0, le=0)
    presence_penalty: float = Field(0.0, ge=0, le=0)
    stream: bool = False
    stream_options: dict[str, bool] = {}
    model: str | None = None
    user: str | None = None

    @property
    def most_tokens(self) -> int | None:
        """The most tokens of a response, by whichever name they were asked for."""
        return self.max_completion_tokens or self.max_tokens


class Piece(NamedTuple):
    """A bit of a response; the last one says why it ends, and what was counted."""

    text: str
    finish: Literal["stop", "length"] | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class LocalEngine(ABC):
    """Answers chats in this process, in OpenAI's form."""

    async def complete(self, body: dict[str, Any], model: str) -> dict[str, Any]:
        """Answer a chat; see :class:`dnd_fast.serving.engine.Engine`."""
        pieces = [piece async for piece in self.pieces(LocalRequest.model_validate(body), model)]
        message = {"role": "assistant", "content": "".join(piece.text for piece in pieces)}
        choice = {"index": 0, "message": message, "finish_reason": pieces[-1].finish}
        return _envelope("chat.completion", model, [choice]) | {"usage": _usage(pieces[-1])}

    async def stream(self, body: dict[str, Any], model: str) -> AsyncGenerator[dict[str, Any]]:
        """Answer a chat bit by bit; see :class:`dnd_fast.serving.engine.Engine`."""
        request = LocalRequest.model_validate(body)
        envelope = _envelope("chat.completion.chunk", model, [])
        role = {"role": "assistant"}
        async for piece in self.pieces(request, model):
            delta = role | ({"content": piece.text} if piece.text or role else {})
            choice = {"index": 0, "delta": delta, "finish_reason": piece.finish}
            yield envelope | {"choices": [choice]}
            role = {}
            if piece.finish and request.stream_options.get("include_usage"):
                yield envelope | {"usage": _usage(piece)}

    @abstractmethod
    def pieces(self, request: LocalRequest, model: str) -> AsyncIterator[Piece]:
        """Answer a chat bit by bit."""


def _envelope(kind: str, model: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": choices,
    }


def _usage(last: Piece) -> dict[str, int]:
    return {
        "prompt_tokens": last.prompt_tokens,
        "completion_tokens": last.completion_tokens,
        "total_tokens": last.prompt_tokens + last.completion_tokens,
    }
