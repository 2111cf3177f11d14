"""``dnd-fast collect``."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from dnd_fast.console import BASE_HELP, DATA_HELP, console, progress_bars

DEFAULT_RECIPE = "common-sense-0.5b"
FROM_RECIPE = "the recipe's"


class Dtype(StrEnum):
    """Dtype of a base model's weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"


def collect(
    data: Annotated[
        list[Path],
        typer.Argument(help=f"Data sets, prompts and responses: {DATA_HELP}"),
    ],
    base: Annotated[str, typer.Option(help=f"The base model: {BASE_HELP}")],
    out: Annotated[Path, typer.Option(help="Folder of the collection, new or to add to.")],
    tokenizer: Annotated[
        str | None, typer.Option(help=f"Another tokenizer than the base's: {BASE_HELP}")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Recipe with the settings and the base.",
            show_default=f"{DEFAULT_RECIPE}'s, any base",
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="LoRA rank.", show_default=FROM_RECIPE, min=1)
    ] = None,
    alpha: Annotated[
        int | None,
        typer.Option(help="LoRA alpha.", show_default="the recipe's, or twice --rank", min=1),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Steps before the first adapter is kept.", show_default=FROM_RECIPE, min=1
        ),
    ] = None,
    checkpoints: Annotated[
        int | None, typer.Option(help="Adapters kept, one a step.", show_default=FROM_RECIPE, min=1)
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Learning rate at first.", show_default=FROM_RECIPE)
    ] = None,
    final_learning_rate: Annotated[
        float | None,
        typer.Option(help="Learning rate while adapters are kept.", show_default=FROM_RECIPE),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Examples per adapter and step.", show_default=FROM_RECIPE, min=1),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Examples used of a data set.", show_default=FROM_RECIPE, min=1),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(help="Tokens of prompt and response.", show_default=FROM_RECIPE, min=2),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(help="Data sets trained at a time.", show_default=FROM_RECIPE, min=1),
    ] = None,
    shared_init: Annotated[
        bool, typer.Option("--shared-init/--no-shared-init", help="All adapters start from one A.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Seed of A and of the order of examples.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="'cpu', 'cuda', …", show_default="best")
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            help="Dtype of the base.",
            show_default="bfloat16; on a CPU float32, or if the recipe chooses layers the faster",
        ),
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            help="Examples per adapter and pass, to save memory.", show_default="all", min=1
        ),
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Save memory by computing blocks twice.")
    ] = False,
) -> None:
    """Fine-tune LoRA adapters on data sets, for a generator to learn from.

    Stopped, it resumes when run again. With more data sets it adds those.
    """
    import torch

    from dnd_fast.base_model import check_fits
    from dnd_fast.lora.training_dtype import default_dtype
    from dnd_fast.recipe import Recipe
    from dnd_fast.train.adapters.collect import collect_folder

    chosen = Recipe.load(recipe or DEFAULT_RECIPE)
    if recipe is not None:
        check_fits(base, chosen)
    lora = dataclasses.replace(
        chosen.lora,
        **_given(rank=rank, alpha=alpha or (2 * rank if rank else None)),
    )
    spec = dataclasses.replace(
        chosen.collection,
        **_given(
            steps=steps,
            checkpoints=checkpoints,
            learning_rate=learning_rate,
            final_learning_rate=final_learning_rate,
            batch=batch,
            samples=samples,
            length=length,
            parallel=parallel,
        ),
    )
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with progress_bars() as progress:
        collection = collect_folder(
            data,
            out,
            base,
            lora,
            spec,
            tokenizer=tokenizer,
            shared_init=shared_init,
            seed=seed,
            dtype=getattr(torch, dtype.value) if dtype else default_dtype(lora, target),
            device=target,
            micro_batch=micro_batch,
            recompute=recompute,
            progress=lambda done, total: progress("train adapters", done, total),
        )
    console.print(
        f"[bold]{escape(str(out))}[/bold] holds adapters of {len(collection.names)} data sets."
    )


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
