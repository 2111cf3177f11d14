"""In which dtype a frozen base trains adapters fastest: measured once for each device."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn.functional import linear

from dnd_fast.kernels.device import time_fn
from dnd_fast.kernels.device_tables import DeviceTables
from dnd_fast.recipe import LoraSpec

ROWS, COLUMNS, OUTPUTS = 1024, 768, 2048  # of the product that is timed
BUDGET = 0.3  # seconds for each dtype
WORTHWHILE = 1.2  # times faster bfloat16 must be, which rounds more
TABLES = DeviceTables(Path(__file__).parent / "training-dtypes", "seconds")


def default_dtype(lora: LoraSpec, device: torch.device | str) -> torch.dtype:
    """Return the dtype of a base's weights where nobody says otherwise.

    On a GPU it is bfloat16. On a CPU it is float32, whose results are the same on all of them; for
    recipes that choose layers it is what is faster on this one.
    """
    if torch.device(device).type != "cpu":
        return torch.bfloat16
    return torch.float32 if lora.layers is None else fastest_dtype(device)


def fastest_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """Return float32 or bfloat16, whichever multiplies faster on a device.

    What is measured is kept in the user's cache folder, so that a device always gives one answer.
    """
    device = torch.device(device)
    seconds = TABLES.load(device)
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if not seconds.keys() >= dtypes.keys():
        seconds = {name: _product_seconds(dtype, device) for name, dtype in dtypes.items()}
        TABLES.save(device, seconds)
    faster = WORTHWHILE * seconds["bfloat16"] < seconds["float32"]
    return torch.bfloat16 if faster else torch.float32


@torch.no_grad()
def _product_seconds(dtype: torch.dtype, device: torch.device) -> float:
    x = torch.ones(ROWS, COLUMNS, dtype=dtype, device=device)
    weight = torch.ones(OUTPUTS, COLUMNS, dtype=dtype, device=device)
    return time_fn(lambda: linear(x, weight), device, BUDGET)
