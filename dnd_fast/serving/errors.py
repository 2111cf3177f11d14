"""What a client is told when a request fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "internal_error",
    502: "engine_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class APIError(Exception):
    """A request cannot be answered; becomes a response in OpenAI's form.

    Args:
        message: what is wrong and what to do.
        status: the HTTP status.
        code: a word for programs.
        param: the part of the request that is meant.
    """

    def __init__(
        self, message: str, status: int = 400, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.param = message, status, code, param

    def body(self) -> dict[str, Any]:
        """Return the response's JSON."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


def unknown_model(name: str) -> APIError:
    """Return the error for a model that is neither the base nor an adapter."""
    return APIError(
        f"the model {name[:80]!r} does not exist: name the base or an adapter of GET /v1/models, "
        "or make one by POST /v1/adapters.",
        404,
        "model_not_found",
        "model",
    )


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Give the block so many seconds.

    Raises:
        APIError: it took longer.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise APIError(
            f"there was no answer within {seconds:g} seconds; try again, or ask for less.",
            504,
            "timeout",
        ) from error
