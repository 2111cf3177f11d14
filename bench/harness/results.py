"""Result files, ``results/BENCH.jsonl``: one line a run, only ever added to.

A line holds what was measured, with what, from which random seed, and on which machine.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from dnd_fast import json_lines
from dnd_fast.kernels.device import device_name

RESULTS = Path(__file__).parents[1] / "results"
SCHEMA_VERSION = 3  # 3: a seed in every line, CUDA's version, more libraries
LIBRARIES = ("torch", "triton", "transformers", "tokenizers", "peft", "numpy", "pytest-benchmark")


def provenance() -> dict[str, Any]:
    """Revision, time, device and versions, to be stored with every figure."""
    cuda = torch.cuda.is_available()
    return {
        "schema_version": SCHEMA_VERSION,
        "revision": _git("rev-parse", "HEAD") + ("-dirty" if _changed() else ""),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name("cuda" if cuda else "cpu"),
        "driver": _run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def append(bench: str, figures: dict[str, Any]) -> Path:
    """Add a line to ``results/BENCH.jsonl``: the figures, ``seed`` among them, after their
    provenance."""
    if "seed" not in figures:
        raise ValueError(f"a result of {bench} must tell its seed; found {sorted(figures)}.")
    path = RESULTS / f"{bench}.jsonl"
    json_lines.append(path, provenance() | figures)
    return path


def latest(bench: str, *keys: str) -> list[dict[str, Any]]:
    """The newest line of every combination of values of ``keys``, in the order of the first."""
    path = RESULTS / f"{bench}.jsonl"
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for figures in json_lines.read(path) if path.exists() else []:
        newest[tuple(figures[key] for key in keys)] = figures
    return list(newest.values())


def prompts_hash(prompts: Sequence[str]) -> str:
    """SHA-256 over the texts."""
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()


def _version(name: str) -> str:
    """Of a library; empty where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _changed() -> bool:
    """Whether the code is not what is committed; results and pages are no code."""
    but = (f":(top,exclude){path}" for path in ("bench/results", "docs", "*.md"))
    return bool(_git("status", "--porcelain", "--", ":(top)", *but))


def _git(*arguments: str) -> str:
    return _run("git", "-C", str(Path(__file__).parent), *arguments)


def _run(*command: str) -> str:
    """What a command prints; empty where there is no such command."""
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""
