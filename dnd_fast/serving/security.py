"""Who may ask, how often, and how much."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256

from fastapi import HTTPException, Request
from limits import parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dnd_fast.errors import InvalidInput
from dnd_fast.serving.errors import APIError

SHORTEST_KEY = 16


class Keys:
    """API keys, of which only hashes are kept; none: everybody may ask.

    Raises:
        InvalidInput: a key is too short to be secret.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        if any(len(key) < SHORTEST_KEY for key in keys):
            raise InvalidInput(
                f"an API key has fewer than {SHORTEST_KEY} characters; make one, for example by "
                "python -c 'import secrets; print(secrets.token_urlsafe())'."
            )
        self._hashes = [sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def accepts(self, key: str) -> bool:
        """Whether a key is one of them; how long this takes says nothing about them."""
        given = sha256(key.encode(errors="surrogateescape")).digest()
        matches = [hmac.compare_digest(given, known) for known in self._hashes]
        return any(matches)


class Guard:
    """A dependency of the API's routes: the key is right, and the rate is kept.

    A rate is counted for each key, without keys for each address.
    """

    def __init__(self, keys: Keys, rate: str | None) -> None:
        self._keys, self._limiter = keys, MovingWindowRateLimiter(MemoryStorage())
        try:
            self._rate = parse(rate) if rate else None
        except ValueError as error:
            raise InvalidInput(f"rate={rate!r} must be such as '600/minute'.") from error

    async def __call__(self, request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if self._keys and not (scheme.lower() == "bearer" and self._keys.accepts(key)):
            raise APIError(
                "the API key is missing or wrong: send 'Authorization: Bearer KEY'.",
                401,
                "invalid_api_key",
            )
        await self.count(key if self._keys else request.client.host if request.client else "")

    async def count(self, client: str) -> None:
        """Count a request of a client, and raise APIError if it is one too many."""
        who = sha256(client.encode(errors="surrogateescape")).hexdigest()
        if self._rate is not None and not await self._limiter.hit(self._rate, who):
            raise APIError(
                f"more than {self._rate} requests; wait, and try again.", 429, "rate_limit_exceeded"
            )


class BodyLimit:
    """ASGI middleware: bodies beyond a size are refused, also those that do not say how long."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._most:
                # FastAPI hides all but its own exceptions while it reads a body.
                raise HTTPException(413, f"the body is larger than {self._most:,} bytes.")
            return message

        await self._app(scope, limited if scope["type"] == "http" else receive, send)
