"""A plugin for vLLM: prompts in, an adapter live, within its own API server.

``POST /v1/dnd/adapters {"prompts": [...], "seed": 0}`` answers with the model's name, which any
request may name from then on: an adapter that had to go is made again from its prompts.

It is switched on by ``VLLM_PLUGINS=dnd-fast``, and takes ``DND_FAST_GENERATOR`` (``demo`` by
default) and ``DND_FAST_ADAPTERS``, the folder for adapters. Needs the extra ``dnd-fast[vllm]``.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from argparse import Namespace
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from dnd_fast.errors import InvalidInput
from dnd_fast.generator import Generator
from dnd_fast.serving.engine import skeleton_of
from dnd_fast.serving.errors import APIError
from dnd_fast.serving.protocol import AdapterRequest
from dnd_fast.serving.service import Service

GRACE = 300.0  # seconds: longer than a request may take, since vLLM does not say when one ends


class HostEngine:
    """The server that the plugin runs in, as an engine of the core, which needs no chats of it."""

    kind = "vllm plugin"

    def __init__(self, models: Any, max_rank: int) -> None:
        self.base = self.model = models.model_config.model
        self.skeleton = skeleton_of(models.model_config.hf_config)
        self.max_rank: int | None = max_rank
        self._models = models

    async def load(self, name: str, folder: Path) -> None:
        """Load a folder, without vLLM's lock on the name, which the resolver is called under."""
        if name in self._models.lora_requests:
            return
        number = self._models.lora_id_counter.inc(1)
        request = LoRARequest(lora_name=name, lora_int_id=number, lora_path=str(folder))
        try:
            await self._models.engine_client.add_lora(request)
        except Exception as error:  # whatever the engine's process has raised
            raise APIError(f"vLLM does not take the adapter: {error}", 502) from error
        self._models.lora_requests[name] = request

    async def unload(self, name: str) -> None:
        """Forget an adapter, as vLLM's own route does."""
        self._models.lora_requests.pop(name, None)

    async def complete(self, body: dict[str, Any], model: str) -> dict[str, Any]:
        """Never called: chats go to the server itself."""
        raise NotImplementedError

    def stream(self, body: dict[str, Any], model: str) -> AsyncGenerator[dict[str, Any]]:
        """Never called: chats go to the server itself."""
        raise NotImplementedError

    async def check(self) -> None:
        """The server is this process."""

    async def close(self) -> None:
        """The server closes itself."""


class Resolver(LoRAResolver):
    """Answers for names ``dnd-<16 hex>`` of which the prompts are known, and for no others."""

    service: Service | None = None

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """Return the adapter, made again if it has to be; vLLM loads it under a number of its
        own."""
        if self.service is None or lora_name == self.service.engine.model:
            return None
        try:
            async with self.service.model(lora_name):
                folder = self.service.publisher.root / lora_name
                return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(folder))
        except APIError as error:
            if error.status == 404:
                return None
            raise


RESOLVER = Resolver()  # vLLM loads plugins once in a process, and asks for one of each name


def register() -> None:
    """Entry point ``vllm.general_plugins``."""
    LoRAResolverRegistry.register_resolver("dnd-fast", RESOLVER)


class Endpoint:
    """Entry point ``vllm.endpoint_plugins``: the route, under ``/v1`` so that vLLM's key guards
    it."""

    name = "dnd-fast"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the route."""

        @app.post("/v1/dnd/adapters", response_model=None)
        async def adapters(request: AdapterRequest) -> dict[str, Any] | JSONResponse:
            assert RESOLVER.service is not None
            try:
                async with RESOLVER.service.adapter(request.prompts, request.seed) as made:
                    return {"model": made.name, "seconds": made.seconds}
            except (APIError, InvalidInput) as error:
                told = error if isinstance(error, APIError) else APIError(str(error))
                return JSONResponse(told.body(), told.status)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Load the generator.

        Raises:
            InvalidInput: vLLM runs without LoRA, or with several API servers, which do not know of
                one another's adapters.
        """
        if not args.enable_lora or getattr(args, "api_server_count", 1) not in (None, 1):
            raise InvalidInput("dnd-fast needs --enable-lora, and one API server alone.")
        generator = await asyncio.to_thread(
            Generator.from_pretrained, os.environ.get("DND_FAST_GENERATOR", "demo")
        )
        root = os.environ.get("DND_FAST_ADAPTERS") or tempfile.mkdtemp(prefix="dnd-fast-")
        engine = HostEngine(state.openai_serving_models, args.max_lora_rank)
        service = Service(generator, engine, Path(root), grace=GRACE)
        await service.publisher.adopt()
        RESOLVER.service = service
