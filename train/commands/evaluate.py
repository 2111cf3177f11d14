"""``dnd-fast evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from dnd_fast.console import GENERATOR_HELP, console, progress_bars
from dnd_fast.errors import InvalidInput

if TYPE_CHECKING:
    from dnd_fast.train.evaluation.scores import Estimate, Evaluation

LABEL_WIDTH, COLUMN_WIDTH = 42, 18


def evaluate(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders of training runs. Several that each hold out other data sets make one "
            "leave-one-out table.",
            show_default=False,
        ),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(help="Folder with the questions of each data set: NAME.jsonl."),
    ] = None,
    generator: Annotated[
        str | None, typer.Option(help=f"Instead of runs: {GENERATOR_HELP}")
    ] = None,
    collection: Annotated[
        Path | None,
        typer.Option(help="Training adapters and oracles.", show_default="the run's own"),
    ] = None,
    hold_out: Annotated[
        list[str] | None,
        typer.Option(
            help="With --generator: a data set that it was not trained on, by name or pattern, or "
            "@FILE. May be repeated."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Data set to test on, by name or pattern, or @FILE. May be repeated.",
            show_default="all held-out ones",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the unlabelled prompts that adapters are generated from: NAME.jsonl.",
            show_default="the collection's",
        ),
    ] = None,
    metric: Annotated[
        str,
        typer.Option(help="exact, text, choice, letter, number, pass@K or lm-eval:TASK."),
    ] = "exact",
    rows: Annotated[
        str | None,
        typer.Option(
            help="Rows of the table: 'base,generated,oracle', also 'training' (slow), 'nearest', "
            "'soup', 'control', and 'in-context-3' or with any other number of examples.",
            show_default="all but in-context",
        ),
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the examples of 'in-context': NAME.jsonl.",
            show_default="the collection's",
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="LABEL=FOLDER: another adapter of the base, as a row of its own. May be repeated."
        ),
    ] = None,
    prompt_batches: Annotated[
        int, typer.Option(help="Adapters generated for each data set, from other prompts.", min=1)
    ] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the choice of prompts, and of sampling.")] = 0,
    samples: Annotated[int, typer.Option(help="Programs per question (pass@K).", min=1)] = 20,
    temperature: Annotated[float, typer.Option(help="Temperature of sampling these.")] = 0.8,
    run_generated_code: Annotated[
        bool,
        typer.Option(
            "--run-generated-code",
            help="Allow pass@K to run what the model writes, and lm-eval:FILE.yaml what it names.",
        ),
    ] = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Longest generated answer.", show_default="512, for 'letter' 24", min=1),
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences in a forward pass.", min=1)] = 32,
    device: Annotated[
        str | None, typer.Option(help="'cpu', 'cuda', …", show_default="best")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Also a row for every training adapter.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write all figures to this file.")
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(help="Folder for accuracy.png and weights.png."),
    ] = None,
) -> None:
    """Test a generator on data sets that it was not trained on.

    The table is the paper's Table 1, with --full its Table 10: the base
    model; the adapters that the generator was trained on; adapters that it
    generates from unlabelled prompts; a control, which gets another data
    set's prompts; and the oracle, trained on the data set itself, where it
    was collected.

    dnd-fast evaluate run --test test

    dnd-fast evaluate run-* --test test --metric letter --plots plots

    dnd-fast evaluate --generator demo --collection collection
    --hold-out @test.txt --test test
    """
    import torch

    from dnd_fast.files import atomic_file, write_json
    from dnd_fast.train.evaluation.evaluate import METHODS
    from dnd_fast.train.evaluation.metrics import Settings, make_metric
    from dnd_fast.train.evaluation.targets import EvalTarget, evaluate_targets

    settings = Settings(
        batch=batch,
        max_new_tokens=max_new_tokens,
        samples=samples,
        temperature=temperature,
        seed=seed,
        run_generated_code=run_generated_code,
    )
    scoring = make_metric(metric, settings)
    if bool(runs) == bool(generator):
        raise InvalidInput("give either folders of training runs or --generator.")
    if generator is None:
        if hold_out:
            raise InvalidInput("a run knows what it held out: --hold-out is for --generator.")
        targets = [EvalTarget.from_run(run, collection) for run in runs or []]
    else:
        if collection is None:
            raise InvalidInput("--generator needs a --collection, by dnd-fast collect.")
        targets = [EvalTarget.from_generator(generator, collection, hold_out or [])]
    with progress_bars() as progress:
        table = evaluate_targets(
            targets,
            scoring,
            tests=test,
            prompts=prompts,
            data=data or [],
            methods=METHODS if rows is None else rows.split(","),
            examples=examples,
            adapters=labelled_folders(adapter or []),
            prompt_batches=prompt_batches,
            seed=seed,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            plots=plots,
            progress=progress,
        )
    _print(table, full)
    if json_file is not None:
        with atomic_file(json_file) as staged:
            write_json(staged, table.to_dict())
    for path in (json_file, plots):
        if path is not None:
            console.print(f"Wrote [bold]{escape(str(path))}[/bold].")


def labelled_folders(options: list[str]) -> dict[str, Path]:
    """Read folders given as LABEL=FOLDER, by their labels.

    Raises:
        InvalidInput: one is given otherwise.
    """
    pairs = [option.partition("=") for option in options]
    for option, (label, mark, folder) in zip(options, pairs, strict=True):
        if not (label and mark and folder):
            raise InvalidInput(f"--adapter {option}: expected LABEL=FOLDER.")
    labelled = {label: Path(folder) for label, _, folder in pairs}
    if len(labelled) < len(pairs):
        raise InvalidInput("two of --adapter have the same label; each is a row of its own.")
    return labelled


def _print(evaluation: Evaluation, full: bool) -> None:
    """Print the table in per cent, a few data sets at a time."""
    from rich.table import Table

    from dnd_fast.train.evaluation.evaluate import BASE
    from dnd_fast.train.evaluation.scores import estimate

    rows = dict(evaluation.rows)
    if full:
        own = {f"training adapter of {name}": row for name, row in evaluation.adapters.items()}
        first = {BASE: rows[BASE]} if BASE in rows else {}
        rows = {**first, **own, **rows}
    columns = evaluation.columns
    summary = Table("", "mean", "95 %", "prompt batches", box=None, title=evaluation.metric)
    for label, row in rows.items():
        overall = evaluation.overall(row)
        spread = overall.spread if overall else None
        summary.add_row(
            escape(label),
            *(("", "") if overall is None else (_mean(overall), _interval(overall))),
            "" if spread is None else f"± {100 * spread:.1f}",
        )
    console.print(summary)
    at_once = max(1, (console.width - LABEL_WIDTH) // COLUMN_WIDTH)
    for start in range(0, len(columns), at_once):
        part = columns[start : start + at_once]
        table = Table("", box=None)
        for name in part:
            table.add_column(escape(name), overflow="fold")
        for label, row in rows.items():
            cells = [estimate(row[name]) if name in row else None for name in part]
            table.add_row(
                escape(label),
                *("" if e is None else f"{_mean(e)} [dim]{_interval(e)}[/dim]" for e in cells),
            )
        console.print()
        console.print(table)
    console.print(
        "\nPer cent. 95 %: Wilson interval over the test questions, for these adapters and data "
        "sets; ±: standard deviation over prompt batches."
    )


def _mean(score: Estimate) -> str:
    return f"{100 * score.mean:.1f}"


def _interval(score: Estimate) -> str:
    return f"{100 * score.low:.0f}-{100 * score.high:.0f}"
