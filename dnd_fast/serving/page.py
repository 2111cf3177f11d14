"""The page: prompts in, an adapter made, base and adapter answering side by side.

It needs no network: fonts are the system's, everything else comes from the server.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import psutil
from fastapi import FastAPI

from dnd_fast.errors import InvalidInput
from dnd_fast.serving.errors import APIError, within
from dnd_fast.serving.security import Guard, Keys
from dnd_fast.serving.service import Service
from dnd_fast.text.prompts import read_prompts

FONT = ("system-ui", "sans-serif")
MONO = ("ui-monospace", "monospace")
UPLOADS = [".txt", ".jsonl", ".json", ".csv"]
TITLE = "dnd-fast: prompts in, adapter out"
Turns = list[dict[str, str]]


def mount_page(app: FastAPI, service: Service, guard: Guard, keys: Keys, example: str = "") -> None:
    """Put the page at ``/`` of the gateway.

    Args:
        app: the gateway, all of whose routes are there already.
        service: makes the adapters.
        guard: counts what the page's visitors ask for.
        keys: where there are some, the page asks for one.
        example: prompts to begin with, one a line.
    """
    theme = gr.themes.Soft(font=FONT, font_mono=MONO)
    gr.mount_gradio_app(
        app,
        _Page(service, guard).blocks(example),
        path="/",
        auth=(lambda _, key: keys.accepts(key)) if keys else None,
        auth_message="Any name will do; the password is an API key.",
        max_file_size=service.limits.body_bytes,
        theme=theme,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
    )


class _Page:
    def __init__(self, service: Service, guard: Guard) -> None:
        self._service, self._guard = service, guard
        self._downloads = tempfile.TemporaryDirectory(prefix="dnd-fast-")

    def blocks(self, example: str) -> gr.Blocks:
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
            name = gr.State("")
            gr.Markdown(
                "# Prompts in, adapter out\nPrompts of a task, without answers, become a LoRA "
                f"adapter for **{self._service.engine.model}**, in one forward pass."
            )
            with gr.Row():
                with gr.Column(scale=3):
                    prompts = gr.Textbox(
                        example, label="Prompts, one a line", lines=8, max_lines=16
                    )
                    with gr.Row():
                        upload = gr.UploadButton("Upload prompts", file_types=UPLOADS)
                        make = gr.Button("Make the adapter", variant="primary")
                with gr.Column(scale=2):
                    made = gr.Markdown("No adapter yet.", label="Adapter", elem_id="made")
                    download = gr.DownloadButton("Download the adapter", interactive=False)
            question = gr.Textbox(
                label="Ask both", placeholder="A question of the task", submit_btn=True
            )
            with gr.Row():
                # As the models write it; sharing would send it to another site.
                plain: dict[str, Any] = {"height": 280, "render_markdown": False, "buttons": []}
                left = gr.Chatbot(label="Base", **plain)
                right = gr.Chatbot(label="With the adapter", **plain)
            with gr.Accordion("What runs", open=False):
                running = gr.Markdown(self._running())
            private: dict[str, Any] = {"api_visibility": "private"}
            upload.upload(self._read, [upload], [prompts], **private)
            making = make.click(
                self._make, [prompts], [name, made, download], show_progress_on=prompts, **private
            )
            making.success(self._running, None, [running], **private)
            question.submit(
                self._ask, [question, name, left, right], [question, left, right], **private
            )
        return blocks

    def _read(self, file: str) -> str:
        with _shown():
            return "\n".join(" ".join(prompt.split()) for prompt in read_prompts(Path(file)))

    async def _make(self, text: str, request: gr.Request) -> tuple[str, str, Any]:
        prompts = [line for line in text.splitlines() if line.strip()]
        with _shown():
            await self._count(request)
            started = time.perf_counter()
            async with (
                within(self._service.limits.seconds),
                self._service.adapter(prompts) as made,
            ):
                total = time.perf_counter() - started
                archive = await asyncio.to_thread(self._archive, made.name)
        rows = [*made.seconds.items(), ("**in all**", total)]
        table = "".join(f"| {stage} | {1e3 * value:,.1f} ms |\n" for stage, value in rows)
        text = f"### `{made.name}`\nof {len(prompts)} prompts\n\n| stage | time |\n| --- | ---: |\n"
        return made.name, text + table, gr.DownloadButton(value=archive, interactive=True)

    async def _ask(
        self, question: str, name: str, left: Turns, right: Turns, request: gr.Request
    ) -> AsyncIterator[tuple[str, Turns, Turns]]:
        """Ask both at once, each question by itself; yields their answers as they grow."""
        with _shown():
            if not question.strip():
                raise InvalidInput("the question is empty; write one.")
            if not name:
                raise InvalidInput("there is no adapter yet; make one first.")
            await self._count(request)
            for turns in (left, right):
                turns += [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": ""},
                ]
            tasks = [
                asyncio.create_task(self._answer(model, question, turns[-1]))
                for model, turns in ((self._service.engine.model, left), (name, right))
            ]
            try:
                pending = set(tasks)
                while pending:
                    _, pending = await asyncio.wait(pending, timeout=0.1)
                    yield "", left, right
                for task in tasks:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()

    async def _answer(self, model: str, question: str, turn: dict[str, str]) -> None:
        body = {"messages": [{"role": "user", "content": question}], "stream": True}
        async with (
            asyncio.timeout(self._service.limits.seconds),
            self._service.model(model) as live,
        ):
            async for chunk in self._service.engine.stream(body, live):
                for choice in chunk["choices"]:
                    turn["content"] += choice["delta"].get("content") or ""

    async def _count(self, request: gr.Request) -> None:
        await self._guard.count(request.client.host if request.client else "")

    def _archive(self, name: str) -> str:
        """Zip an adapter's folder; gradio makes a copy, so that those before may go."""
        folder = Path(self._downloads.name)
        for old in folder.glob("*.zip"):
            if time.time() - old.stat().st_mtime > 600:
                old.unlink(missing_ok=True)
        root = self._service.publisher.root
        return shutil.make_archive(str(folder / name), "zip", root, name)

    def _running(self) -> str:
        service, memory = self._service, psutil.Process().memory_info().rss
        return (
            f"- Decoder: {service.generator.prepared.describe()}\n"
            f"- Engine: {service.engine.kind}, serving {service.engine.model}, with "
            f"{len(service.publisher.loaded)} of at most {service.publisher.capacity} adapters\n"
            f"- Memory of this process: {memory / 1e6:,.0f} MB"
        )


@contextmanager
def _shown() -> Iterator[None]:
    """Show an error to the visitor."""
    try:
        yield
    except (InvalidInput, APIError, OSError) as error:
        raise gr.Error(str(error), print_exception=False) from error
