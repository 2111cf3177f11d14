"""The embedded engine: base and adapters in this process, many adapters in one batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from dnd_fast.errors import InvalidInput
from dnd_fast.lora.adapter import Adapter, weight_keys
from dnd_fast.lora.batched import with_adapters
from dnd_fast.serving.batcher import Batcher
from dnd_fast.serving.errors import APIError, unknown_model
from dnd_fast.serving.local_engine import LocalEngine, LocalRequest, Piece

DEFAULT_TOKENS = 256


class Job:
    """One response on its way, written in the engine's thread and read in the event loop."""

    def __init__(
        self,
        request: LocalRequest,
        prompt: list[int],
        adapter: dict[str, Tensor],
        most: int,
        tokenizer: PreTrainedTokenizerBase,
        ends: set[int],
    ) -> None:
        self.prompt, self.adapter, self.most = prompt, adapter, most
        self.temperature, self.stops = request.temperature, request.stop
        self.pieces: asyncio.Queue[Piece] = asyncio.Queue()
        self.finished = False
        self._loop = asyncio.get_running_loop()
        self._tokenizer, self._ends = tokenizer, ends
        self._ids: list[int] = []
        self._sent = ""

    def add(self, token: int) -> None:
        """Take the next token, and hand on what text can no longer change."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        assert isinstance(text, str)
        stop = min((at for stop in self.stops if (at := text.find(stop)) >= 0), default=None)
        if stop is not None or token in self._ends:
            self._send(text[:stop], "stop")
        elif len(self._ids) >= self.most:
            self._send(text, "length")
        else:
            held = max((_overlap(text, s) for s in self.stops), default=0)
            if not text.endswith("\ufffd"):  # else half a character
                self._send(text[: len(text) - held])

    def _send(self, text: str, finish: Any = None) -> None:
        self.finished = finish is not None
        new, self._sent = text[len(self._sent) :], text
        if new or finish:
            piece = Piece(new, finish, len(self.prompt), len(self._ids))
            self._loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


def _overlap(text: str, stop: str) -> int:
    """How many of a text's last characters may be the beginning of a stop sequence."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)


class _HandOn(StoppingCriteria):
    """Hands each step's tokens to the jobs, and stops rows whose job has finished."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        for job, token in zip(self._jobs, input_ids[:, -1].tolist(), strict=True):
            if not job.finished:
                job.add(token)
        return torch.tensor([job.finished for job in self._jobs], device=input_ids.device)


class _Temperatures(LogitsProcessor):
    """Each row's own temperature; of a row with none, only the most likely token is left."""

    def __init__(self, jobs: Sequence[Job], device: torch.device) -> None:
        self._values = torch.tensor([[job.temperature] for job in jobs], device=device)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        best = scores.argmax(-1, keepdim=True)
        greedy = torch.full_like(scores, -torch.inf).scatter(1, best, 0.0)
        return torch.where(self._values == 0, greedy, scores / self._values.clamp_min(1e-4))


class TransformersEngine(LocalEngine):
    """A base of transformers, whose adapters answer together: each row of a batch sees its own.

    A batch runs until its last response is complete; what arrives meanwhile is the next one. It
    knows plain LoRA adapters, of any ranks and modules. For one event loop.

    Args:
        model: the base, frozen.
        tokenizer: its tokenizer, with a chat template.
        name: the base's name in requests.
        batch: the most responses in a batch.
        waiting: the most requests that wait.
    """

    kind = "transformers"
    max_rank: int | None = None
    skeleton: nn.Module

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        *,
        batch: int = 32,
        waiting: int = 2048,
    ) -> None:
        self.model, self.base, self.skeleton = name, model.name_or_path or name, model
        self._network, self._tokenizer = model, tokenizer
        self._adapters: dict[str, dict[str, Tensor]] = {name: {}}
        self._batcher = Batcher(self._run, largest=batch, waiting=waiting)
        config = model.generation_config
        end = getattr(config, "eos_token_id", None)
        ends = end if isinstance(end, list) else [end, tokenizer.eos_token_id]
        self._ends = {token for token in ends if isinstance(token, int)}
        self._context = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0))

    async def load(self, name: str, folder: Path) -> None:
        """Read an adapter; see :class:`dnd_fast.serving.engine.Engine`."""
        adapter = await asyncio.to_thread(Adapter.load, folder)
        self._adapters[name] = _scaled(adapter, self._network.device)

    async def unload(self, name: str) -> None:
        """Forget an adapter."""
        self._adapters.pop(name, None)

    async def pieces(self, request: LocalRequest, model: str) -> AsyncIterator[Piece]:
        """Answer a chat; a caller who leaves early stops it."""
        job = self._job(request, model)
        running = asyncio.create_task(self._batcher.submit(job))
        running.add_done_callback(lambda _: job.pieces.put_nowait(Piece("")))  # wake the reader
        try:
            while True:
                piece = await job.pieces.get()
                if piece.text or piece.finish:
                    yield piece
                if piece.finish:
                    return
                if running.done() and job.pieces.empty():
                    running.result()
                    raise APIError("the engine ended without a response.", 500)
        finally:
            job.finished = True
            running.cancel()

    async def check(self) -> None:
        """The engine answers as long as this process does."""

    async def close(self) -> None:
        """End the engine's thread once its batch is done."""
        self._batcher.close()

    def _job(self, request: LocalRequest, model: str) -> Job:
        if model not in self._adapters:
            raise unknown_model(model)
        messages = [message.model_dump() for message in request.messages]
        try:
            prompt: Any = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
        except TemplateError as error:
            raise InvalidInput(f"the chat template refuses the messages: {error}") from error
        room = self._context - len(prompt) if self._context else DEFAULT_TOKENS
        wanted = request.most_tokens
        if room < (wanted or 1):
            raise APIError(
                f"the model's context is {self._context} tokens: {len(prompt)} of the messages and "
                f"{wanted or 1} of the response are too many.",
                400,
                "context_length_exceeded",
                "messages",
            )
        most = wanted or min(room, DEFAULT_TOKENS)
        return Job(request, prompt, self._adapters[model], most, self._tokenizer, self._ends)

    @torch.no_grad()
    def _run(self, jobs: list[Job]) -> list[None]:
        """Answer a batch; in the engine's thread."""
        device = self._network.device
        rows = [torch.tensor(job.prompt) for job in jobs]
        masks = [torch.ones_like(row) for row in rows]
        ids, mask = (
            pad_sequence(part, batch_first=True, padding_side="left").to(device)
            for part in (rows, masks)
        )
        sampled = any(job.temperature for job in jobs)
        processors = [_Temperatures(jobs, device)] if sampled else []
        config = GenerationConfig(
            max_new_tokens=max(job.most for job in jobs),
            do_sample=sampled,
            top_k=0 if sampled else None,
            pad_token_id=next(iter(self._ends), 0),
            eos_token_id=sorted(self._ends) or None,
        )
        with with_adapters(self._network, _stacked([job.adapter for job in jobs]), 1.0):
            self._network.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList(processors),
                stopping_criteria=StoppingCriteriaList([_HandOn(jobs)]),
            )
        return [None] * len(jobs)


def _scaled(adapter: Adapter, device: torch.device) -> dict[str, Tensor]:
    """The adapter's A, and B times its scaling, under PEFT's names."""
    adapter.require_same_modules(adapter)  # that is: updates s B A and nothing else
    tensors = {}
    for module in adapter.modules:
        a, b = weight_keys(module)
        scaling = adapter.update(module).scaling
        tensors[a] = adapter.tensors[a].to(device)
        tensors[b] = (adapter.tensors[b] * scaling).to(device)
    return tensors


def _stacked(adapters: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The adapters of a batch's rows, of any ranks and modules, end to end; zero where missing."""
    largest: dict[str, Tensor] = {}
    for adapter in adapters:
        for key, tensor in adapter.items():
            if key not in largest or tensor.numel() > largest[key].numel():
                largest[key] = tensor
    stacked = {}
    for key, tensor in largest.items():
        stacked[key] = tensor.new_zeros(len(adapters), *tensor.shape)
        for row, adapter in enumerate(adapters):
            if key in adapter:
                own = adapter[key]
                stacked[key][row, : own.shape[0], : own.shape[1]] = own
    return stacked
