"""Plots of the committed results, ``results/NAME.png``; each is drawn only if its results exist."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from dnd_fast.bench import alternatives, latency
from dnd_fast.bench.harness import results
from dnd_fast.bench.harness.results import latest
from dnd_fast.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

COLOURS = ("#1f6f8b", "#d98c3f", "#7a4f9e", "#4c8c4a", "#b5445a", "#6b6b6b")
STYLES = ("-", "--", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
Rows = Sequence[Mapping[str, Any]]


def draw_all() -> list[Path]:
    """Draw what there are results for; returns the files."""
    rows = gpu_latency()
    drawn = [_draw("plans", plot_plans)]
    if machines := alternatives.load():
        drawn.append(_draw("alternatives", lambda axes: plot_alternatives(axes, machines[-1])))
    if rows:
        drawn.append(_draw("latency", lambda axes: plot_latency(axes, rows)))
        drawn.append(_draw("batch", lambda axes: plot_batch(axes, rows)))
    if runs := gpu_kernels():
        drawn.append(_draw("roofline", lambda axes: plot_roofline(axes, runs)))
    return drawn


def images() -> dict[str, str]:
    """Names of the plots of GPUs, which pages show beside their tables, and what they show."""
    shown = {}
    if gpu_latency():
        shown["latency"] = "seconds from prompts to tokens, by recipe"
        shown["batch"] = "adapters per second against the batch"
    if gpu_kernels():
        shown["roofline"] = "each kernel's rate against its arithmetic per byte"
    return shown


def gpu_latency() -> list[dict[str, Any]]:
    """Committed latencies measured on GPUs, with cached weights."""
    rows = latency.load()
    return [row for row in rows if row["peak_device_gb"] and row["weights"] == "cached"]


def gpu_kernels() -> list[dict[str, Any]]:
    """The newest committed run of bench.kernels of every recipe on a GPU."""
    return [row for row in latest("kernels", "recipe", "device") if row["profile"]["fused_2d_dft"]]


def _draw(name: str, plot: Callable[[Axes], None]) -> Path:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    plot(axes)
    axes.spines[["top", "right"]].set_visible(False)
    path = results.RESULTS / f"{name}.png"
    with atomic_file(path) as staged:
        figure.savefig(staged, dpi=130, metadata={"Software": None})
    plt.close(figure)
    return path


def plot_plans(axes: Axes) -> None:
    """Predicted time of a pass against the memory that weights may take, on two GPUs."""
    from dnd_fast.kernels.device import PROFILES
    from dnd_fast.kernels.planner.cost_model import plan_decoder
    from dnd_fast.recipe import Recipe

    for name, colour in zip(("common-sense-0.5b", "coding-7b"), COLOURS, strict=False):
        spec = Recipe.load(name).decoder
        for device, style in (("a100", "--"), ("h200", "-")):
            profile = PROFILES[device]
            direct = plan_decoder(spec.features, spec.kernel_size, profile, algorithm="direct")
            fastest = plan_decoder(spec.features, spec.kernel_size, profile)
            smallest, largest = direct.weight_bytes, fastest.weight_bytes
            budgets = [smallest + (largest - smallest) * share / 24 for share in range(25)]
            plans = [
                plan_decoder(spec.features, spec.kernel_size, profile, memory=budget)
                for budget in budgets
            ]
            sizes = [plan.weight_bytes / 1e9 for plan in plans]
            times = [1e3 * plan.seconds for plan in plans]
            axes.plot(sizes, times, style, color=colour)
            direct_point = direct.weight_bytes / 1e9, 1e3 * direct.seconds
            axes.plot(*direct_point, "o", color=colour, markerfacecolor="white")
            axes.annotate(
                f"{name}, {device.upper()}",
                (sizes[-1], times[-1]),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=colour,
            )
    axes.plot([], [], "o", color="grey", markerfacecolor="white", label="every convolution direct")
    axes.set_xlim(right=19)  # room for the curves' names
    axes.set_yscale("log")
    _plain_numbers(axes.yaxis)
    axes.set_xlabel("GB of weights, transformed ones included")
    axes.set_ylabel("predicted ms for one adapter")
    axes.set_title("Predictions from assumed rates; nothing here was measured", fontsize=10)
    axes.legend(frameon=False, loc="upper right")


def plot_alternatives(axes: Axes, figures: Mapping[str, Any]) -> None:
    """Exact match on the demo's unseen tasks against the time that a task's adaptation takes."""
    measured = figures["demo"]
    for name, ratio in measured["ratio"].items():
        if name == alternatives.BASE:  # takes no time, which has no place on this axis
            continue
        ours = name == alternatives.GENERATED
        accuracy = mean(measured["accuracy"][name])
        axes.plot(ratio, accuracy, "D" if ours else "o", color=COLOURS[0 if ours else 5])
        axes.annotate(
            name,
            (ratio, accuracy),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            weight="bold" if ours else "normal",
        )
    axes.set_xscale("log")
    axes.set_xlim(0.5, 500)
    axes.set_ylim(-0.04, 1.08)
    _plain_numbers(axes.xaxis)
    axes.set_xlabel(f"time for one task, generation = 1 ({measured['device']})")
    axes.set_ylabel("exact match, 12 unseen tasks of the demo")


def plot_latency(axes: Axes, rows: Rows) -> None:
    """Prompts to tokens, one adapter: bars by recipe, the paper's beside each device's."""
    rows = [row for row in rows if row["batch"] == 1]
    recipes = [name for name in latency.PAPER if any(row["recipe"] == name for row in rows)]
    devices = list(dict.fromkeys(row["device"] for row in rows))
    width = 0.8 / (1 + len(devices))
    series = {"the paper, A100": {name: latency.PAPER[name][0] for name in recipes}}
    for device in devices:
        series[f"here, {device}"] = {
            row["recipe"]: row["prompts_to_tokens_seconds"]
            for row in rows
            if row["device"] == device
        }
    for index, (label, values) in enumerate(series.items()):
        names = [name for name in recipes if name in values]
        places = [recipes.index(name) + (index - len(devices) / 2) * width for name in names]
        heights = [1e3 * values[name] for name in names]
        colour = COLOURS[(index - 1) % len(COLOURS)]  # grey for the paper
        bars = axes.bar(places, heights, 0.95 * width, label=label, color=colour)
        axes.bar_label(bars, fmt="{:.3g}", fontsize=8, padding=2)
    axes.set_xticks(range(len(recipes)), recipes, fontsize=9)
    axes.set_yscale("log")
    _plain_numbers(axes.yaxis)
    axes.set_ylabel("ms from prompts to tokens, one adapter")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 1.12), ncols=2)


def plot_batch(axes: Axes, rows: Rows) -> None:
    """Adapters per second against the batch, a line for every recipe and device."""
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    devices = list(dict.fromkeys(row["device"] for row in rows))
    for (place, device), (index, recipe) in itertools.product(
        enumerate(devices), enumerate(recipes)
    ):
        values = {
            row["batch"]: row["adapters_per_second"]
            for row in rows
            if (row["device"], row["recipe"]) == (device, recipe)
        }
        batches = sorted(values)
        axes.plot(
            batches,
            [values[batch] for batch in batches],
            linestyle=STYLES[place % len(STYLES)],
            marker=MARKERS[index % len(MARKERS)],
            color=COLOURS[index % len(COLOURS)],
            label=recipe if len(devices) == 1 else f"{recipe}, {device}",
        )
    ticks = sorted({row["batch"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, map(str, ticks))
    axes.set_yscale("log")
    _plain_numbers(axes.yaxis)
    alone = f", {devices[0]}" if len(devices) == 1 else ""
    axes.set_xlabel(f"adapters per pass{alone}")
    axes.set_ylabel("adapters per second, prompts to LoRA tensors")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def plot_roofline(axes: Axes, runs: Rows) -> None:
    """Rate against arithmetic per byte, a marker for each kernel, on the last device."""
    runs = [run for run in runs if run["device"] == runs[-1]["device"]]
    names = list(dict.fromkeys(row["kernel"] for run in runs for row in run["kernels"]))
    points = [
        (names.index(row["kernel"]), row["flops"] / row["bytes"], row["flops"] / _median(row))
        for run in runs
        for row in run["kernels"]
    ]
    for index, name in enumerate(names):
        places = [(intensity, rate) for which, intensity, rate in points if which == index]
        axes.scatter(
            [intensity for intensity, _ in places],
            [rate / 1e12 for _, rate in places],
            s=18,
            marker=MARKERS[index % len(MARKERS)],
            color=COLOURS[index % len(COLOURS)],
            alpha=0.7,
            label=name,
        )
    ends = [min(point[1] for point in points) / 2, 2 * max(point[1] for point in points)]
    bandwidth, top = runs[-1]["profile"]["bandwidth"], runs[-1]["profile"]["gemm_flops"]
    across = sorted([*ends, top / bandwidth])
    limits = [min(bandwidth * intensity, top) / 1e12 for intensity in across]
    label = f"copies at {bandwidth / 1e12:.1f} TB/s, products at {top / 1e12:.0f} TFLOP/s"
    axes.plot(across, limits, color="black", label=f"{runs[-1]['device']}:\n{label}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain_numbers(axes.xaxis)
    _plain_numbers(axes.yaxis)
    axes.set_xlabel("FLOP per byte")
    axes.set_ylabel("TFLOP/s")
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _plain_numbers(axis: Axis) -> None:
    """1, 2, 5, 10, … instead of powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _median(row: Mapping[str, Any]) -> float:
    seconds: float = row["p20_p50_p80_seconds"][1]
    return seconds
