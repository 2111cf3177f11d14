"""The tables of README and docs/, and the plots, from the committed results.

python -m bench.report           # write them
python -m bench.report --check   # fail if a page says anything else
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dnd_fast.bench import (
    alternatives,
    decoder,
    generation,
    latency,
    native,
    plots,
    summary,
    training,
    training_base,
)
from dnd_fast.bench.experiments import demo, experts
from dnd_fast.bench.experiments.natural import results as natural
from dnd_fast.files import atomic_file

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
TABLES: dict[str, Callable[[], str]] = {
    "quality": summary.quality,
    "speed": summary.speed,
    "demo scores": demo.scores,
    "demo partial credit": demo.partial_credit,
    "latency": lambda: "\n\n".join([latency.markdown(), *_images()]),
    "generation": generation.markdown,
    "decoder": decoder.markdown,
    "training": training.markdown,
    "training base": training_base.markdown,
    "training memory": training.memory_markdown,
    "alternatives": alternatives.markdown,
    "native": native.markdown,
    "natural": natural.scores,
    "natural elsewhere": natural.elsewhere,
    **{f"svf {name}": partial(experts.scores, name) for name in experts.SCORES},
    "svf objectives": experts.objectives_scores,
}
# A table stands between two marks, which readers do not see.
MARKS = re.compile(
    r"(?P<before><!-- (?P<name>[\w ]+) table -->\n\n)"
    r"(?P<table>.*?)"
    r"(?P<after>\n\n<!-- end of (?P=name) table -->)",
    re.DOTALL,
)


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; compare.")] = False,
) -> None:
    """Write the pages' tables and the plots beside the results, or check the tables."""
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    marked = {name for text in texts.values() for name in tables(text)}
    if marked != TABLES.keys():
        raise SystemExit(
            f"tables without marks in a page: {sorted(TABLES.keys() - marked)}; marks without a "
            f"table: {sorted(marked - TABLES.keys())}."
        )
    if check:
        wrong = [
            f"{page.name}: {name}"
            for page, text in texts.items()
            for name, found in tables(text).items()
            if found != TABLES[name]()
        ]
        if wrong:
            raise SystemExit(
                f"tables are not what the committed results say ({', '.join(wrong)}): "
                "run python -m bench.report."
            )
        print("Every page says what the committed results say.")
        return
    for page, text in texts.items():
        with atomic_file(page) as staged:
            staged.write_text(MARKS.sub(_filled, text), encoding="utf-8")
    print(f"Wrote {', '.join(str(path) for path in (*PAGES, *plots.draw_all()))}.")


def tables(text: str) -> dict[str, str]:
    """The tables between marks in a page, by name."""
    return {match["name"]: match["table"] for match in MARKS.finditer(text)}


def _filled(match: re.Match[str]) -> str:
    return match["before"] + TABLES[match["name"]]() + match["after"]


def _images() -> list[str]:
    """The plots of the results on GPUs, as pages in docs/ show them."""
    return [f"![{text}](../bench/results/{name}.png)" for name, text in plots.images().items()]


if __name__ == "__main__":
    typer.run(main)
