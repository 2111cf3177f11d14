"""Result files: what was measured, with what, on which machine."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from dnd_fast.kernels.device import device_name

RESULTS = Path(__file__).parent / "results"
SCHEMA_VERSION = 1
LIBRARIES = ("torch", "triton", "transformers", "peft")


def provenance() -> dict[str, Any]:
    """Revision, time, device and versions, to be stored with every figure."""
    return {
        "schema_version": SCHEMA_VERSION,
        "revision": _git("rev-parse", "HEAD") + ("-dirty" if _git("status", "--porcelain") else ""),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name("cuda" if torch.cuda.is_available() else "cpu"),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def write(name: str, figures: dict[str, Any]) -> Path:
    """Write ``results/NAME.json``: the figures after their provenance."""
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(provenance() | figures, indent=2) + "\n", encoding="utf-8")
    return path


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(RESULTS), *arguments]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
