"""README's tables and plots from the committed results.

python -m bench.report           # write them
python -m bench.report --check   # fail if README says anything else
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dnd_fast.bench import alternatives, decoder, demo, latency, training
from dnd_fast.bench.results import RESULTS, latest

README = Path(__file__).parents[1] / "README.md"
TABLES: dict[str, Callable[[], str]] = {
    "demo": demo.markdown,
    "decoder": decoder.markdown,
    "training": training.markdown,
    "latency": latency.markdown,
    "alternatives": alternatives.markdown,
}
PAPER_COLOUR, OUR_COLOUR, OTHER_COLOUR = "#9a9a9a", "#1f6f8b", "#d98c3f"


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; compare.")] = False,
) -> None:
    """Write README's tables and the plots beside the results, or check the tables."""
    text = README.read_text(encoding="utf-8")
    if check:
        wrong = [name for name, table in TABLES.items() if section(text, name) != table()]
        if wrong:
            raise SystemExit(
                f"README's tables {', '.join(wrong)} are not what the committed results say: "
                "run python -m bench.report."
            )
        print("README says what the committed results say.")
        return
    for name, table in TABLES.items():
        section(text, name)
        before, _, rest = text.partition(f"<!-- {name} table -->\n\n")
        _, mark, after = rest.partition(f"\n\n<!-- end of {name} table -->")
        text = f"{before}<!-- {name} table -->\n\n{table()}{mark}{after}"
    README.write_text(text, encoding="utf-8")
    print(f"Wrote {plot_plans()}.")
    if latest("latency", "recipe"):
        print(f"Wrote {plot_decode()}.")


def section(text: str, name: str) -> str:
    """What stands between a table's two marks."""
    start, end = f"<!-- {name} table -->\n\n", f"\n\n<!-- end of {name} table -->"
    if start not in text or end not in text:
        raise SystemExit(
            f"README has no marks for the table {name!r}: {start.strip()} … {end.strip()}"
        )
    return text.split(start)[1].split(end)[0]


def plot_decode() -> Path:
    """Seconds of the decoder: ours beside the baselines of the same run, the paper where known."""
    import matplotlib.pyplot as plt

    rows = latest("latency", "recipe", "batch", "weights", "device")
    labels, values, colours = [], [], []
    for row in rows:
        for name, seconds in row["decode_seconds"].items():
            labels.append(f"{row['recipe']}, {row['device']}\n{name}")
            values.append(sorted(seconds)[len(seconds) // 2])
            colours.append(OUR_COLOUR if name == latency.OURS else OTHER_COLOUR)
        if row["paper_a100_seconds"] is not None:
            labels.append(f"{row['recipe']}\npaper, A100, encoder included")
            values.append(row["paper_a100_seconds"])
            colours.append(PAPER_COLOUR)
    figure, axes = plt.subplots(figsize=(8, 1 + 0.55 * len(labels)), layout="constrained")
    bars = axes.barh(labels, values, color=colours)
    axes.bar_label(bars, labels=[latency.seconds_text(value) for value in values], padding=4)
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_xlabel("seconds for one pass of the decoder")
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, "decode")


def plot_plans() -> Path:
    """Predicted time of a pass against the memory that weights may take, on two GPUs."""
    import matplotlib.pyplot as plt

    from dnd_fast.kernels.device import PROFILES
    from dnd_fast.kernels.plan import plan_decoder
    from dnd_fast.recipe import Recipe

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, colour in (("common-sense-0.5b", OUR_COLOUR), ("coding-7b", OTHER_COLOUR)):
        spec = Recipe.load(name).decoder
        for device, style in (("h200", "-"), ("a100", "--")):
            profile = PROFILES[device]
            smallest = plan_decoder(
                spec.features, spec.kernel_size, profile, algorithm="direct"
            ).weight_bytes
            fastest = plan_decoder(spec.features, spec.kernel_size, profile).weight_bytes
            budgets = [smallest + (fastest - smallest) * share / 24 for share in range(25)]
            plans = [
                plan_decoder(spec.features, spec.kernel_size, profile, memory=budget)
                for budget in budgets
            ]
            axes.plot(
                [plan.weight_bytes / 1e9 for plan in plans],
                [1e3 * plan.seconds for plan in plans],
                style,
                color=colour,
                label=f"{name}, {profile.name}",
            )
    axes.set_yscale("log")
    axes.set_xlabel("GB of weights, transformed ones included")
    axes.set_ylabel("predicted ms for one adapter")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return _save(figure, "plans")


def _save(figure: Any, name: str) -> Path:
    path = RESULTS / f"{name}.png"
    figure.savefig(path, dpi=130, metadata={"Software": None})
    return path


if __name__ == "__main__":
    typer.run(main)
