"""Tables of results as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NO_RESULTS = "No results are committed yet."


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; :data:`NO_RESULTS` where it has no rows."""
    lines = [_line(row) for row in rows]
    return "\n".join([_line(head), _line(["---"] * len(head)), *lines]) if lines else NO_RESULTS


def faster(ratio: float) -> str:
    """How many times as fast something is: ``4.8x faster``."""
    return f"{ratio:.1f}x faster"


def times(ratio: float) -> str:
    """How many times as much something takes; from ten on without decimals: ``1.0x``, ``167x``."""
    return f"{ratio:,.0f}x" if ratio >= 10 else f"{ratio:.1f}x"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
