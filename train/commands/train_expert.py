"""``dnd-fast train-expert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from dnd_fast.console import BASE_HELP, DATA_HELP, console, progress_bars


def train_expert(
    data: Annotated[Path, typer.Argument(help=f"The task's prompts and responses: {DATA_HELP}")],
    base: Annotated[str, typer.Option(help=f"The base model: {BASE_HELP}")],
    out: Annotated[
        Path, typer.Option(help="Folder for the expert; the same command resumes its training.")
    ],
    tokenizer: Annotated[
        str | None, typer.Option(help=BASE_HELP, show_default="the base's")
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            help="A .toml file with what differs from the paper's settings: objective "
            "('reinforce', 'next-token'), modules, steps, batch, learning_rate, kl, …",
            show_default="the paper's",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the validation split and of all draws.")] = 0,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder to keep the base's SVD in.", show_default="none is kept"),
    ] = None,
) -> None:
    """Train an SVF expert on a task: scales of the base's singular values (Transformer²).

    Responses are sampled and rewarded where they equal the task's; half of
    the examples choose the best step. A base that never answers right gets no
    reward to start from: give it some next-token steps first, warmup = 20 in
    the settings. What several experts know is put together by dnd-fast adapt.

    dnd-fast train-expert task.jsonl --base Qwen/Qwen2.5-0.5B-Instruct
    --out experts/task

    dnd-fast adapt prompts.txt --experts experts/task
    """
    import torch

    from dnd_fast.base_model import load_base
    from dnd_fast.recipe import from_table, read_toml
    from dnd_fast.text.datasets import Dataset
    from dnd_fast.train.experts import reinforce

    table = {} if settings is None else read_toml(settings)
    spec = from_table(reinforce.ExpertSpec, table, str(settings))
    examples = Dataset.read(data).examples
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with console.status("loading the base"):
        model, loaded_tokenizer = load_base(base, tokenizer, device=device)
    with progress_bars() as report:
        reinforce.train_expert(
            model,
            loaded_tokenizer,
            examples,
            spec,
            seed=seed,
            out=out,
            cache=cache,
            progress=lambda done, total: report("train the expert", done, total),
        )
    console.print(f"Wrote an expert to [bold]{escape(str(out))}[/bold].")
