"""README's tables and plot from the committed results.

python -m bench.report           # write them
python -m bench.report --check   # fail if README says anything else
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from dnd_fast.bench import alternatives, decoder, demo, latency, training
from dnd_fast.bench.results import RESULTS

README = Path(__file__).parents[1] / "README.md"
TABLES: dict[str, Callable[[], str]] = {
    "demo": demo.markdown,
    "decoder": decoder.markdown,
    "training": training.markdown,
    "latency": latency.markdown,
    "alternatives": alternatives.markdown,
}


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; compare.")] = False,
) -> None:
    """Write README's tables and the plot beside the results, or check the tables."""
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
    print(f"Wrote {README} and {plot_plans()}.")


def split(text: str, name: str) -> tuple[str, str, str]:
    """What stands before a table, the table, and what stands after it."""
    start, end = f"<!-- {name} table -->\n\n", f"\n\n<!-- end of {name} table -->"
    before, found, rest = text.partition(start)
    table, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"README has no marks for a table {name!r}: {start}…{end}")
    return before + start, table, end + after


def plot_plans() -> Path:
    """Predicted time of a pass against the memory that weights may take, on two GPUs."""
    import matplotlib.pyplot as plt

    from dnd_fast.kernels.device import PROFILES
    from dnd_fast.kernels.plan import plan_decoder
    from dnd_fast.recipe import Recipe

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, colour in (("common-sense-0.5b", "#1f6f8b"), ("coding-7b", "#d98c3f")):
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
    path = RESULTS / "plans.png"
    figure.savefig(path, dpi=130, metadata={"Software": None})
    return path


if __name__ == "__main__":
    typer.run(main)
