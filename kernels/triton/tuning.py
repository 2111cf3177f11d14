"""Blocks of the Triton kernels that a device runs fastest: the user's tables, and the package's,
configs/DEVICE.json.

A table maps problems to the fields of a kernel's config. A problem is the kernel, what of it is
compiled for the case at hand, and its sizes, rounded up to powers of two so that tables stay small.
``python -m dnd_fast.bench.tune`` writes tables; nothing is tuned while a kernel is used.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import triton

from dnd_fast.kernels.device_tables import DeviceTables

logger = logging.getLogger(__name__)
TABLES = DeviceTables(Path(__file__).parent / "configs", "configs")
C = TypeVar("C")


def config(
    candidates: Sequence[C], device: torch.device, kernel: str, *problem: int | str | torch.dtype
) -> C:
    """What the device's table has for a problem, and by default the first candidate.

    Args:
        candidates: Configs of one class, which a tuning run tries.
        device: Device that the kernel is about to run on; only a GPU has a table.
        kernel: Name of the kernel.
        problem: Words for what is compiled, and sizes.

    Raises:
        ValueError: The table holds something else than fields of the candidates' class.
    """
    if device.type != "cuda" or triton.knobs.runtime.interpret:
        return candidates[0]
    return cast(C, _tuned(candidates[0], device, kernel, problem))


def key(kernel: str, problem: Sequence[int | str | torch.dtype]) -> str:
    """What a table calls a problem."""
    words = (str(part).removeprefix("torch.") for part in problem if not isinstance(part, int))
    sizes = (str(triton.next_power_of_2(part)) for part in problem if isinstance(part, int))
    return " ".join([kernel, *words, "x".join(sizes)])


@cache
def load_table(device: torch.device) -> Mapping[str, Mapping[str, Any]]:
    """Fields of configs by :func:`key`; empty, with one warning, for a device that was not tuned.

    Raises:
        ValueError: A table is damaged.
    """
    table: Mapping[str, Mapping[str, Any]] = TABLES.load(device)
    if not table:
        logger.warning(
            "The Triton kernels have not been tuned for this device (there is no %s): they run "
            "with default blocks. `python -m dnd_fast.bench.tune --recipe all` tunes them.",
            TABLES.path(device),
        )
    return table


def forget_tables() -> None:
    """Read tables anew, because they have changed."""
    load_table.cache_clear()
    _tuned.cache_clear()


@lru_cache(maxsize=4096)
def _tuned(
    default: Any, device: torch.device, kernel: str, problem: tuple[int | str | torch.dtype, ...]
) -> Any:
    table, name, kind = load_table(device), key(kernel, problem), type(default)
    if name not in table:
        return default
    fields = table[name]
    try:
        found = kind(**fields)
        for field, value in fields.items():
            expected = type(getattr(default, field))
            if type(value) is not expected:
                raise TypeError(f"{field} is {value!r}, expected {expected.__name__}")
    except TypeError as error:
        raise ValueError(
            f"{TABLES.path(device)} has {fields} for {name!r}, which is no {kind.__name__} "
            f"({error}); tune that device again."
        ) from error
    return found
