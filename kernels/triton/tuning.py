"""Blocks of the Triton kernels that a device runs fastest, one table per device:
configs/DEVICE.json.

A table maps problems to the fields of a kernel's config. A problem is the kernel, what of it is
compiled for the case at hand, and its sizes, rounded up to powers of two so that tables stay small.
``python -m dnd_fast.bench.tune`` writes tables; nothing is tuned while a kernel is used.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import triton

from dnd_fast.kernels.device import table_name

logger = logging.getLogger(__name__)
TABLES = Path(__file__).parent / "configs"
C = TypeVar("C")


def config(
    candidates: Sequence[C], device: torch.device, kernel: str, *problem: int | str | torch.dtype
) -> C:
    """What the device's table has for a problem, and by default the first candidate.

    Args:
        candidates: configs of one class, which a tuning run tries.
        device: that the kernel is about to run on; only a GPU has a table.
        kernel: its name.
        problem: words for what is compiled, and sizes.

    Raises:
        ValueError: the table holds something else than fields of the candidates' class.
    """
    if device.type != "cuda" or triton.knobs.runtime.interpret:
        return candidates[0]
    fields, kind = _fields(device, kernel, problem), type(candidates[0])
    if fields is None:
        return candidates[0]
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(
            f"{table_path(device)} has {fields} for {key(kernel, problem)!r}, which is no "
            f"{kind.__name__} ({error}); tune that device again."
        ) from error


def key(kernel: str, problem: Sequence[int | str | torch.dtype]) -> str:
    """What a table calls a problem."""
    words = (str(each).removeprefix("torch.") for each in problem if not isinstance(each, int))
    sizes = (str(triton.next_power_of_2(each)) for each in problem if isinstance(each, int))
    return " ".join([kernel, *words, "x".join(sizes)])


def table_path(device: torch.device | str) -> Path:
    """Where the table of a device lives."""
    return TABLES / table_name(device)


@cache
def load_table(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """Fields of configs by :func:`key`; empty, with one warning, for a device not tuning."""
    if not path.is_file():
        logger.warning(
            "The Triton kernels have not been tuned for this device (there is no %s): they run "
            "with default blocks. `python -m dnd_fast.bench.tune --recipe all` tunes them.",
            path,
        )
        return {}
    table: Mapping[str, Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["configs"]
    return table


@lru_cache(maxsize=4096)
def _fields(
    device: torch.device, kernel: str, problem: tuple[int | str | torch.dtype, ...]
) -> Mapping[str, Any] | None:
    return load_table(table_path(device)).get(key(kernel, problem))
