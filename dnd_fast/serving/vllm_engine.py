"""vLLM as the engine, over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from torch import nn

from dnd_fast.serving.errors import APIError


class VllmEngine:
    """A running vLLM server; :mod:`dnd_fast.serving.vllm_flags` says what it must be started with.

    Args:
        url: where it is.
        model: the base's name there.
        base: the base's path or hub id there.
        skeleton: the base's modules, whose weights may be on the meta device.
        max_rank: its ``--max-lora-rank``.
        key: its API key.
        seconds: how long it may be silent.
        transport: an ``httpx`` transport to use instead of the network.
    """

    kind = "vllm"

    def __init__(
        self,
        url: str,
        model: str,
        base: str,
        skeleton: nn.Module,
        *,
        max_rank: int | None = None,
        key: str | None = None,
        seconds: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.model, self.base, self.skeleton, self.max_rank = model, base, skeleton, max_rank
        self._folders: dict[str, Path] = {}
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(seconds, connect=5.0, pool=None),
            limits=httpx.Limits(max_connections=256),
            trust_env=False,
            transport=transport,
        )

    async def load(self, name: str, folder: Path) -> None:
        """Load a folder; see :class:`dnd_fast.serving.engine.Engine`.

        Never in place: vLLM would read the folder again at every step.
        """
        body = {"lora_name": name, "lora_path": str(folder)}
        try:
            await self._post("/v1/load_lora_adapter", body)
        except APIError as error:
            if "already been loaded" not in error.message:
                raise
        self._folders[name] = folder

    async def unload(self, name: str) -> None:
        """Forget an adapter; see :class:`dnd_fast.serving.engine.Engine`."""
        self._folders.pop(name, None)
        try:
            await self._post("/v1/unload_lora_adapter", {"lora_name": name})
        except APIError as error:
            if error.status != 404:
                raise

    async def complete(self, body: dict[str, Any], model: str) -> dict[str, Any]:
        """Pass a chat on; see :class:`dnd_fast.serving.engine.Engine`."""
        async with self._answer(body, model) as response:
            answer: dict[str, Any] = json.loads(await response.aread())
            return answer

    async def stream(self, body: dict[str, Any], model: str) -> AsyncGenerator[dict[str, Any]]:
        """Pass a chat on, and its answer back bit by bit."""
        async with self._answer(body, model) as response:
            async for line in response.aiter_lines():
                data = line.removeprefix("data:").strip()
                if line.startswith("data:") and data != "[DONE]":
                    yield json.loads(data)

    async def check(self) -> None:
        """Raise APIError unless the server answers."""
        async with self._request("GET", "/health", None):
            pass

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    @asynccontextmanager
    async def _answer(self, body: dict[str, Any], model: str) -> AsyncIterator[httpx.Response]:
        """The response to a chat, from a server that may have been restarted meanwhile."""
        passed_on = body | {"model": model}
        try:
            async with self._request("POST", "/v1/chat/completions", passed_on) as response:
                yield response
                return
        except APIError as error:
            if error.status != 404 or model not in self._folders:
                raise
        await self.load(model, self._folders[model])
        async with self._request("POST", "/v1/chat/completions", passed_on) as response:
            yield response

    async def _post(self, path: str, body: dict[str, Any]) -> None:
        async with self._request("POST", path, body) as response:
            await response.aread()

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> AsyncIterator[httpx.Response]:
        """A request whose failures are APIErrors."""
        try:
            async with self._http.stream(method, path, json=body) as response:
                if response.is_error:
                    raise _refusal(response.status_code, await response.aread())
                yield response
        except httpx.TimeoutException as error:
            raise APIError(
                f"vLLM at {self._http.base_url} did not answer in time.", 504, "engine_timeout"
            ) from error
        except httpx.TransportError as error:
            raise APIError(
                f"vLLM at {self._http.base_url} does not answer: {error or type(error).__name__}",
                502,
                "engine_unreachable",
            ) from error


def _refusal(status: int, content: bytes) -> APIError:
    """What vLLM said, to be passed on: the fault is the request's below 500, else vLLM's."""
    try:
        said = json.loads(content)
        message = str((said.get("error") or said)["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        message = content.decode(errors="replace")[:500] or "no reason given"
    if status in (401, 403) or status >= 500:  # its key is the gateway's affair
        return APIError(f"vLLM answered {status}: {message}", 502, "engine_failed")
    return APIError(message, status)


async def connect(url: str, *, key: str | None = None) -> tuple[str, str]:
    """Ask a vLLM server for its base's name in requests, and its path or hub id.

    Raises:
        APIError: the server does not answer, or serves no base.
    """
    async with httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=10.0,
        trust_env=False,
    ) as http:
        try:
            response = await http.get("/v1/models")
            response.raise_for_status()
            bases = [card for card in response.json()["data"] if not card.get("parent")]
            return bases[0]["id"], bases[0].get("root") or bases[0]["id"]
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise APIError(
                f"there is no usable vLLM server at {url}: {error or type(error).__name__}", 502
            ) from error
