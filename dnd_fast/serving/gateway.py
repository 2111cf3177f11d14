"""The gateway: OpenAI's API over adapters made of prompts."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dnd_fast import __version__
from dnd_fast.errors import InvalidInput
from dnd_fast.serving.errors import APIError, within
from dnd_fast.serving.metrics import Metrics
from dnd_fast.serving.protocol import AdapterRequest, ChatRequest
from dnd_fast.serving.security import BodyLimit, Guard, Keys
from dnd_fast.serving.service import Service

logger = logging.getLogger(__name__)
LOOPBACK = ["localhost", "127.0.0.1", "[::1]"]


def create_app(
    service: Service, *, keys: Keys | None = None, hosts: list[str] | None = None
) -> FastAPI:
    """Make the gateway's ASGI application.

    Args:
        service: makes adapters and has the engine, and is closed with the application.
        keys: the API keys; none: everybody may ask.
        hosts: names that the server may be called by; by default this machine's own, so that no
            page of another site can reach it through a visitor's browser.
    """
    keys = keys or Keys()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.publisher.adopt()
        yield
        await service.close()

    # FastAPI's pages of documentation would load scripts of another site.
    app = FastAPI(title="dnd-fast", version=__version__, lifespan=lifespan, openapi_url=None)
    app.add_middleware(BodyLimit, most=service.limits.body_bytes)
    app.add_middleware(CountRequests, metrics=service.metrics)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts or LOOPBACK)
    for kind in (APIError, InvalidInput, ValidationError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _answer_error)
    app.add_exception_handler(Exception, _answer_error)

    @app.get("/health")
    async def health() -> dict[str, str]:
        async with within(5):
            await service.engine.check()
        return {"status": "ok", "engine": service.engine.kind, "model": service.engine.model}

    app.include_router(_api(service, Guard(keys, service.limits.rate)))
    return app


def _api(service: Service, guard: Guard) -> APIRouter:
    api = APIRouter(dependencies=[Depends(guard)])

    @api.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        names = [service.engine.model, *(adapter["id"] for adapter in service.adapters())]
        cards = [{"id": name, "object": "model", "owned_by": "dnd-fast"} for name in names]
        return {"object": "list", "data": cards}

    @api.get("/v1/adapters")
    async def adapters() -> dict[str, Any]:
        return {"object": "list", "data": service.adapters()}

    @api.post("/v1/adapters")
    async def make(request: AdapterRequest) -> dict[str, Any]:
        async with (
            within(service.limits.seconds),
            service.adapter(request.prompts, request.seed) as made,
        ):
            return {
                "id": made.name,
                "object": "adapter",
                "base_model": service.engine.model,
                "seconds": made.seconds,
            }

    @api.delete("/v1/adapters/{name}")
    async def delete(name: str) -> dict[str, Any]:
        service.forget(name)
        return {"id": name, "object": "adapter", "deleted": True}

    @api.post("/v1/chat/completions", response_model=None)
    async def chat(request: ChatRequest) -> dict[str, Any] | Response:
        started = time.perf_counter()
        body = request.model_dump(exclude={"dnd"}, exclude_unset=True)
        async with AsyncExitStack() as stack, within(service.limits.seconds):
            model = await stack.enter_async_context(_model(service, request))
            if not request.stream:
                return await service.engine.complete(body, model)
            chunks = service.engine.stream(body, model)
            stack.push_async_callback(chunks.aclose)
            first = await anext(chunks)  # what fails by now still has a status
            service.metrics.first_token.observe(time.perf_counter() - started)
            return _Events(_events(service, first, chunks), stack.pop_all())

    return api


@asynccontextmanager
async def _model(service: Service, request: ChatRequest) -> AsyncIterator[str]:
    """The model that a chat is for, live while the block runs."""
    if request.dnd is not None:
        if request.model not in (None, service.engine.model):
            raise APIError(
                f"model={request.model[:80]!r} beside 'dnd': leave it out, or name the base "
                f"{service.engine.model!r}.",
                param="model",
            )
        async with service.adapter(request.dnd.prompts, request.dnd.seed) as made:
            yield made.name
    elif request.model is None:
        raise APIError("'model' is missing; name one, or send 'dnd'.", param="model")
    else:
        async with service.model(request.model) as name:
            yield name


async def _events(
    service: Service, first: dict[str, Any], chunks: AsyncGenerator[dict[str, Any]]
) -> AsyncIterator[str]:
    """Server-sent events of a response that has begun; a failure is the last one."""
    chunk: dict[str, Any] | None = first
    try:
        while chunk is not None:
            yield f"data: {json.dumps(chunk)}\n\n"
            async with within(service.limits.seconds):
                chunk = await anext(chunks, None)
        yield "data: [DONE]\n\n"
    except Exception as error:
        yield f"data: {json.dumps(_explained(error).body())}\n\n"


class _Events(StreamingResponse):
    """A stream of events that gives back what it holds, also when nobody has read it."""

    def __init__(self, events: AsyncIterator[str], held: AsyncExitStack) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


def _explained(error: Exception) -> APIError:
    """The error that a client is shown for an exception; others are logged and not shown."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, InvalidInput):
        return APIError(str(error))
    if isinstance(error, RequestValidationError | ValidationError):
        first: Mapping[str, Any] = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return APIError(f"{where or 'the body'}: {first['msg']}", param=where or None)
    if isinstance(error, HTTPException):
        return APIError(str(error.detail), error.status_code)
    logger.error("a request failed", exc_info=error)
    return APIError("an internal error; the server's log says more.", 500)


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    explained = _explained(error)
    return JSONResponse(explained.body(), explained.status)


class CountRequests:
    """ASGI middleware: count answers by route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.requests.labels(route, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counted)
