"""README's tables and plots from the committed results.

python -m bench.report           # write them
python -m bench.report --check   # fail if README says anything else
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from dnd_fast.bench import alternatives, decoder, latency, plots, training
from dnd_fast.bench.experiments import demo, experts

README = Path(__file__).parents[1] / "README.md"
TABLES: dict[str, Callable[[], str]] = {
    "demo": demo.markdown,
    "decoder": decoder.markdown,
    "training": training.markdown,
    "latency": lambda: "\n\n".join([latency.markdown(), *_images()]),
    "alternatives": alternatives.markdown,
    "experts": experts.markdown,
}


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; compare.")] = False,
) -> None:
    """Write README's tables and the plots beside the results, or check the tables."""
    text = README.read_text(encoding="utf-8")
    if check:
        wrong = [name for name, table in TABLES.items() if split(text, name)[1] != table()]
        if wrong:
            raise SystemExit(
                f"README's tables {', '.join(wrong)} are not what the committed results say: "
                "run python -m bench.report."
            )
        print("README says what the committed results say.")
        return
    for name, table in TABLES.items():
        before, _, after = split(text, name)
        text = before + table() + after
    README.write_text(text, encoding="utf-8")
    print(f"Wrote {README}, {', '.join(map(str, plots.draw_all()))}.")


def _images() -> list[str]:
    return [f"![{text}](bench/results/{name}.png)" for name, text in plots.images().items()]


def split(text: str, name: str) -> tuple[str, str, str]:
    """What stands before a table, the table, and what stands after it."""
    start, end = f"<!-- {name} table -->\n\n", f"\n\n<!-- end of {name} table -->"
    before, found, rest = text.partition(start)
    table, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"README has no marks for a table {name!r}: {start}…{end}")
    return before + start, table, end + after


if __name__ == "__main__":
    typer.run(main)
