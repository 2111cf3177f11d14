"""Plots of an evaluation: accuracy bars, and adapters in the plane (the paper's Figure 7).

Need matplotlib: ``pip install "dnd-fast[plots]"``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dnd_fast.errors import InvalidInput
from dnd_fast.files import atomic_file
from dnd_fast.lora.adapter import WEIGHTS_FILE
from dnd_fast.train.evaluation.evaluate import BASE, CONTROL, GENERATED, ORACLE
from dnd_fast.train.evaluation.scores import Estimate, Evaluation, estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Reader = Callable[[str], Tensor]  # a tensor of an adapter by its name
Kind = Literal["training", "oracle", "generated"]

GROUPS_A_ROW = 6  # of bars
GREYS = ("#c9ced6", "#aab2bd", "#8d97a5", "#707b8b")  # training adapters
BLUES = ("#7db8da", "#1f78b4", "#08306b")  # generated, by phase
SET_COLOURS = (  # held-out data sets, as many as the demo has
    *("#e0662b", "#1f78b4", "#2c9c69", "#8a5bb5", "#c43d5d", "#8c6d31"),
    *("#17a2b0", "#e58fb8", "#7f9f2f", "#33408f", "#d4a017", "#5b3a29"),
)
LEFT_OVER = "#444444"


@dataclass(frozen=True)
class Point:
    """An adapter to be shown.

    Attributes:
        data: The data set that it was trained on, or whose prompts it was generated from.
        kind: Where it comes from.
        read: Gives its tensors by name.
    """

    data: str
    kind: Kind
    read: Reader


def tensors_on_disk(folder: Path) -> Reader:
    """Make a reader of an adapter's folder: one tensor at a time, so that any number fit."""
    from safetensors import safe_open

    def read(name: str) -> Tensor:
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            return file.get_tensor(name)

    return read


def require_matplotlib() -> None:
    """Raise where plots cannot be made, before hours are spent on what they would show.

    Raises:
        InvalidInput: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidInput('plots need matplotlib: pip install "dnd-fast[plots]".')


def plot_accuracy(evaluation: Evaluation, path: Path) -> None:
    """Plot bars of every method, grouped by held-out data set, with 95 % intervals; a PNG file.

    Raises:
        InvalidInput: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    figure = _figure()
    columns, rows = evaluation.columns, evaluation.rows
    groups: list[tuple[str, dict[str, Estimate]]] = [
        (name, {label: estimate(row[name]) for label, row in rows.items() if name in row})
        for name in columns
    ]
    if len(columns) > 1:
        overall = {label: evaluation.overall(row) for label, row in rows.items()}
        groups.insert(0, ("mean", {label: e for label, e in overall.items() if e is not None}))
    across = ceil(len(groups) / ceil(len(groups) / GROUPS_A_ROW))
    parts = [groups[i : i + across] for i in range(0, len(groups), across)]
    figure.set_size_inches(max(7.0, 0.24 * across * (len(rows) + 1.5)), 2.7 * len(parts) + 1.2)
    colours = _method_colours(list(rows))
    all_axes = figure.subplots(len(parts), squeeze=False)[:, 0]
    for axes, part in zip(all_axes, parts, strict=True):
        for at, (_, estimates) in enumerate(part):
            for index, label in enumerate(rows):
                if label in estimates:
                    score = estimates[label]
                    x = at + (index - (len(rows) - 1) / 2) * 0.85 / len(rows)
                    axes.bar(x, 100 * score.mean, 0.8 / len(rows), color=colours[label])
                    axes.vlines(x, 100 * score.low, 100 * score.high, "#333333", linewidth=0.8)
        axes.set_xticks(range(len(part)), [name for name, _ in part])
        axes.set_xlim(-0.6, across - 0.4)
        axes.set_ylim(0, 100)
        axes.set_ylabel(f"{evaluation.metric}, %")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
        axes.set_axisbelow(True)
    handles = [_patch(colours[label], label) for label in rows]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    _save(figure, path)


def plot_weights(points: Sequence[Point], names: Sequence[str], path: Path) -> None:
    """Plot training, generated and oracle adapters on the main axes of their weights; a PNG file.

    Held-out data sets have a colour each: their oracle is a circle, generated adapters are stars,
    so that a star in its circle is what one hopes for.

    Args:
        points: At least three adapters with equal shapes.
        names: Names of their tensors.
        path: Path of the file.

    Raises:
        InvalidInput: matplotlib is not installed, or there are fewer than three points.
        OSError: the file cannot be written.
    """
    figure = _figure()
    figure.set_size_inches(8.5, 5.5)
    places, shares = project([point.read for point in points], names)
    axes = figure.subplots()
    held_out = list(dict.fromkeys(point.data for point in points if point.kind != "training"))
    colours = {
        name: SET_COLOURS[i] if i < len(SET_COLOURS) else LEFT_OVER
        for i, name in enumerate(held_out)
    }
    styles: dict[Kind, dict[str, Any]] = {
        "training": {"marker": ".", "s": 36, "zorder": 1},
        "oracle": {"marker": "o", "s": 90, "facecolors": "none", "linewidths": 1.6, "zorder": 3},
        "generated": {"marker": "*", "s": 90, "linewidths": 0, "zorder": 2},
    }
    for place, point in zip(places.tolist(), points, strict=True):
        colour = GREYS[1] if point.kind == "training" else colours[point.data]
        axes.scatter(*place, **(styles[point.kind] | _coloured(point.kind, colour)))
    shown = held_out[: len(SET_COLOURS)]
    handles = [_patch(colours[name], name) for name in shown]
    if len(held_out) > len(shown):
        handles.append(_patch(LEFT_OVER, f"{len(held_out) - len(shown)} more"))
    labels: dict[Kind, str] = {
        "training": "trained, for training",
        "oracle": "trained on the held-out set",
        "generated": "generated from its prompts",
    }
    for kind, label in labels.items():
        style = styles[kind] | {"s": 60, "label": label} | _coloured(kind, GREYS[-1])
        handles.append(axes.scatter([], [], **style))
    axes.set_xlabel(f"first axis ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"second axis ({shares[1]:.0%})")
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    _save(figure, path)


def project(readers: Sequence[Reader], names: Sequence[str]) -> tuple[Tensor, tuple[float, float]]:
    """Project flattened adapters on their principal components, tensor by tensor.

    Args:
        readers: Readers of n adapters.
        names: Names of the tensors.

    Returns:
        Coordinates ``[n, 2]`` float64, and the two axes' shares of the variance.

    Raises:
        InvalidInput: there are fewer than three adapters.
    """
    if len(readers) < 3:
        raise InvalidInput(f"{len(readers)} adapters span no plane; at least three are needed.")
    products = torch.zeros(len(readers), len(readers), dtype=torch.float64)
    for name in names:
        flat = torch.stack([read(name).flatten().float() for read in readers])
        flat -= flat.mean(0)
        products += (flat @ flat.T).double()
    values, vectors = torch.linalg.eigh(products)  # ascending
    values = values.clamp(min=0)
    places = (vectors * values.sqrt())[:, [-1, -2]]
    total = float(values.sum()) or 1.0
    return places, (float(values[-1]) / total, float(values[-2]) / total)


def _coloured(kind: Kind, colour: str) -> dict[str, Any]:
    return {"edgecolors" if kind == "oracle" else "color": colour}


def _method_colours(labels: Sequence[str]) -> dict[str, str]:
    generated = [label for label in labels if label.startswith(GENERATED + ",")] or [GENERATED]
    fixed = {BASE: "#e9d8a6", ORACLE: "#2c9c69"}
    blues = {label: BLUES[min(i + 1, 2)] for i, label in enumerate(generated)}
    greys = [label for label in labels if label.startswith("training")]
    controls = {label: "#d98c8c" for label in labels if label.startswith(CONTROL)}
    return fixed | dict(zip(greys, GREYS, strict=False)) | blues | controls


def _figure() -> Figure:
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(layout="constrained")


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def _save(figure: Figure, path: Path) -> None:
    with atomic_file(path) as staged:
        figure.savefig(staged, format="png", dpi=130, metadata={"Software": None})
