"""``dnd-fast adapt``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer
from rich.markup import escape

from dnd_fast.console import BASE_HELP, DATA_HELP, console
from dnd_fast.errors import InvalidInput
from dnd_fast.files import atomic_file

if TYPE_CHECKING:
    from dnd_fast.svf.adaptive import AdaptiveModel, Answer, Mixture
    from dnd_fast.svf.expert import Expert


class Strategy(StrEnum):
    """What the first pass does."""

    prompt = "prompt"
    classifier = "classifier"
    few_shot = "few-shot"


class Per(StrEnum):
    """What a coefficient of a mixture belongs to."""

    vector = "vector"
    layer = "layer"


def adapt(
    prompts: Annotated[
        Path, typer.Argument(help=f"Prompts: a .txt file, one a line, or {DATA_HELP}")
    ],
    experts: Annotated[
        list[Path],
        typer.Option(help="Folder of an SVF expert; its name is the category. Repeat for more."),
    ],
    strategy: Annotated[
        Strategy,
        typer.Option(help="Ask the base, or a classification expert, or mix by a few examples."),
    ] = Strategy.prompt,
    base: Annotated[
        str | None, typer.Option(help=BASE_HELP, show_default="the experts' own")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help=BASE_HELP, show_default="the base's own")
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="Folder of the classification expert.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="The first pass's question: '… {categories} … {prompt}'.")
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(help=f"For few-shot: prompts and responses, {DATA_HELP}"),
    ] = None,
    per: Annotated[Per, typer.Option(help="One coefficient per expert, or also layer.")] = (
        Per.vector
    ),
    normalised: Annotated[
        bool, typer.Option(help="Whether an expert's coefficients add up to 1.")
    ] = True,
    light: Annotated[
        bool, typer.Option("--light", help="Three examples and 10 generations of the search.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = 0,
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens of the longest response.", min=1)
    ] = 256,
    out: Annotated[Path | None, typer.Option(help="Also write the answers to a .jsonl.")] = None,
    keep: Annotated[
        Path | None, typer.Option(help="For few-shot: folder for the mixture, itself an expert.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="'cpu', 'cuda', …", show_default="best")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder for the base's SVD.", show_default="in the user's cache"),
    ] = None,
) -> None:
    """Answer prompts by a base that adapts itself to them: Transformer²'s two passes."""
    few = strategy is Strategy.few_shot
    if few != (examples is not None):
        raise InvalidInput("--examples and --strategy few-shot belong together: give both.")
    if (strategy is Strategy.classifier) != (classifier is not None):
        raise InvalidInput("--classifier and --strategy classifier belong together: give both.")
    if (keep is not None or light) and not few:
        raise InvalidInput("--keep and --light are for --strategy few-shot.")
    from dnd_fast.svf.adaptive import FewShotSpec
    from dnd_fast.svf.cem import CemSpec
    from dnd_fast.text.datasets import Dataset
    from dnd_fast.text.prompts import read_prompts

    questions = read_prompts(prompts)
    shots = list(Dataset.read(examples).examples) if examples is not None else []
    model = _load(experts, classifier, base, tokenizer, template, device, cache)
    chosen: Literal["prompt", "classifier"] | Mixture
    if few:
        search = CemSpec(iterations=10) if light else CemSpec()
        spec = FewShotSpec(per.value, normalised, cem=search)
        with console.status("searching a mixture"):
            chosen = model.few_shot(shots[:3] if light else shots, spec, seed=seed)
        _print_mixture(chosen)
        if keep is not None:
            console.print(f"Wrote [bold]{escape(str(chosen.expert.save(keep)))}[/bold].")
    else:
        chosen = cast('Literal["prompt", "classifier"]', strategy.value)
    answers = model.respond(questions, chosen, max_new_tokens=max_new_tokens)
    _print_answers(questions, answers, model.timings)
    if out is not None:
        _write(out, questions, answers)


def _load(
    folders: list[Path],
    classifier: Path | None,
    base: str | None,
    tokenizer: str | None,
    template: str | None,
    device: str | None,
    cache: Path | None,
) -> AdaptiveModel:
    import torch

    from dnd_fast.base_model import load_base
    from dnd_fast.kernels.device_tables import cache_folder
    from dnd_fast.svf.adaptive import TEMPLATE, AdaptiveModel
    from dnd_fast.svf.expert import DecomposedModel, Expert

    experts: dict[str, Expert] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in experts:
            raise InvalidInput(f"two experts are called {name!r}; rename a folder.")
        experts[name] = Expert.load(folder)
    dispatcher = Expert.load(classifier) if classifier is not None else None
    base_name = base or next(iter(experts.values())).config.base_model
    if base_name is None:
        raise InvalidInput("the experts do not say which base they are for: give --base.")
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with console.status("loading the base and decomposing its weights"):
        model, loaded_tokenizer = load_base(base_name, tokenizer, device=target)
        every = [*experts.values(), *([dispatcher] if dispatcher else [])]
        modules = sorted({name.rpartition(".")[2] for e in every for name in e.vectors})
        decomposed = DecomposedModel(model, modules, cache=cache or cache_folder() / "svd")
    return AdaptiveModel(
        decomposed, loaded_tokenizer, experts, classifier=dispatcher, template=template or TEMPLATE
    )


def _print_mixture(mixture: Mixture) -> None:
    from rich.table import Table

    table = Table(title="coefficients", box=None)
    table.add_column("layer")
    for name in mixture.names:
        table.add_column(escape(name), justify="right")
    for layer, row in enumerate(mixture.alpha.tolist()):
        table.add_row("all" if len(mixture.alpha) == 1 else str(layer), *(f"{a:.2f}" for a in row))
    console.print(table)
    console.print(
        f"{mixture.exact:.0%} of the examples right, log-likelihood "
        f"{mixture.log_likelihood:.3f} a token, {mixture.generations} generations."
    )


def _print_answers(prompts: list[str], answers: list[Answer], timings: dict[str, float]) -> None:
    from rich.table import Table

    table = Table(box=None)
    for name in ("prompt", "expert", "answer"):
        table.add_column(name)
    for prompt, answer in zip(prompts, answers, strict=True):
        table.add_row(escape(prompt), escape(answer.expert), escape(answer.response))
    console.print(table)
    first, second = timings["first pass"], timings["second pass"]
    console.print(
        f"first pass {first:.2f} s, second pass {second:.2f} s ({first / second:.0%} of it)."
    )


def _write(path: Path, prompts: list[str], answers: list[Answer]) -> None:
    import json

    with atomic_file(path) as staged, staged.open("w", encoding="utf-8") as file:
        for prompt, answer in zip(prompts, answers, strict=True):
            record = {"prompt": prompt, "expert": answer.expert, "response": answer.response}
            file.write(json.dumps(record) + "\n")
