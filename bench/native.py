"""The native runtime against Python: one generation of a loaded generator, and a whole process.

python -m bench.native         # the demo's generator; `make native` first
python -m bench.native --save  # … and keep the figures

Generations run in turns in this process, which calls libdnd_fast by its C interface: same prompts,
same libtorch, same threads. A whole process starts, loads, generates once and saves.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import Tensor

from dnd_fast.bench.harness.markdown import table, times
from dnd_fast.bench.harness.results import append, latest, prompts_hash, provenance
from dnd_fast.bench.harness.timing import (
    CPU,
    console,
    difference,
    interleaved,
    require_steady,
    seconds_text,
    speedup,
)
from dnd_fast.generator import Generator
from dnd_fast.native.export import export
from dnd_fast.text.prompts import read_prompts

BUILD = Path(__file__).parents[1] / "build" / "native"
PROMPTS = Path(__file__).parent / "prompts.txt"
NATIVE, PYTHON = "native", "Python"
WHAT = {"generation": "one generation, loaded", "process": "a whole process"}
AGREEMENT = 1e-5
SEED = 0


def main(
    generator: Annotated[str, typer.Option(help="Name, folder or hub id.")] = "demo",
    rounds: Annotated[int, typer.Option(help="Generations timed, after the first.", min=2)] = 30,
    processes: Annotated[int, typer.Option(help="Processes timed, after the first.", min=2)] = 5,
    noisy: Annotated[bool, typer.Option(help="Report whatever the spread.")] = False,
    save: Annotated[bool, typer.Option(help="Add them to bench/results/native.jsonl.")] = False,
) -> None:
    """Time generating with and without Python."""
    if not (BUILD / "dnd-generate").is_file():
        raise SystemExit(f"the native runtime is not built at {BUILD}: run make native.")
    loaded = Generator.from_pretrained(generator)
    prompts = read_prompts(PROMPTS)[: loaded.config.condition.prompts]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with console.status("exporting"):
            export(loaded, folder / "exported")
        generation, results = interleaved(
            {
                NATIVE: NativeGenerator(folder / "exported", prompts),
                PYTHON: lambda: _generate(loaded, prompts),
            },
            rounds,
            CPU,
        )
        (folder / "task.txt").write_text("\n".join(prompts), encoding="utf-8")
        process = _time_processes(folder, generator, processes)
    error = difference(results[NATIVE], results[PYTHON])
    if error > AGREEMENT:
        raise SystemExit(f"the adapters differ by {error:.1e}: no figures on a wrong result.")
    seconds = {"generation": generation, "process": process}
    figures = {
        "generator": generator,
        "seed": SEED,
        "prompts": len(prompts),
        "prompts_sha256": prompts_hash(prompts),
        "runs": loaded.prepared.describe(),
        "seconds": seconds,
        "spread": {name: require_steady(values, noisy) for name, values in seconds.items()},
        "speedup": {name: speedup(values, PYTHON, NATIVE) for name, values in seconds.items()},
        "difference": error,
    }
    _print(figures)
    if save:
        console.print(f"Wrote {append('native', figures)}.")
    print(json.dumps(provenance() | figures))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("values", ctypes.POINTER(ctypes.c_float)),
    )


class NativeGenerator:
    """An exported generator behind the C interface; called, it gives an adapter's numbers."""

    def __init__(self, folder: Path, prompts: list[str]) -> None:
        self._library = ctypes.CDLL(str(BUILD / "libdnd_fast.so"))
        for name in ("dnd_fast_load", "dnd_fast_generate"):
            getattr(self._library, name).restype = ctypes.c_void_p
        self._library.dnd_fast_error.restype = ctypes.c_char_p
        self._library.dnd_fast_adapter_size.restype = ctypes.c_size_t
        self._prompts = (ctypes.c_char_p * len(prompts))(*(text.encode() for text in prompts))
        self._generator = self._checked(self._library.dnd_fast_load(str(folder).encode()))

    def __call__(self) -> Tensor:
        """All tensors one after another, in the layout's order; float32."""
        adapter = self._checked(
            self._library.dnd_fast_generate(
                self._generator,
                self._prompts,
                ctypes.c_size_t(len(self._prompts)),
                ctypes.c_int64(SEED),
            )
        )
        parts, tensor = [], _Tensor()
        for index in range(self._library.dnd_fast_adapter_size(adapter)):
            self._library.dnd_fast_adapter_tensor(
                adapter, ctypes.c_size_t(index), ctypes.byref(tensor)
            )
            size = tensor.rows * tensor.columns
            content = ctypes.string_at(tensor.values, 4 * size)
            parts.append(torch.frombuffer(bytearray(content), dtype=torch.float32))
        self._library.dnd_fast_adapter_free(adapter)
        return torch.cat(parts)

    def _checked(self, pointer: int | None) -> ctypes.c_void_p:
        if not pointer:
            raise SystemExit(self._library.dnd_fast_error().decode())
        return ctypes.c_void_p(pointer)


def _generate(generator: Generator, prompts: list[str]) -> Tensor:
    adapter = generator.generate(prompts, seed=SEED)
    return torch.cat([tensor.flatten() for tensor in adapter.tensors.values()])


def _time_processes(folder: Path, generator: str, rounds: int) -> dict[str, list[float]]:
    """Sorted seconds of processes in turns, from start to end."""
    task, out = str(folder / "task.txt"), str(folder / "adapter")
    exported = str(folder / "exported")
    native = [str(BUILD / "dnd-generate"), task, "--generator", exported, "--out", out]
    python = [sys.executable, "-m", "dnd_fast.cli", "generate", task]
    commands: dict[str, Callable[[], Any]] = {
        NATIVE: lambda: subprocess.run(native, check=True, capture_output=True),
        PYTHON: lambda: subprocess.run(
            [*python, "--generator", generator, "--out", out], check=True, capture_output=True
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(rounds + 1):
        for name, run in commands.items():
            with console.status(f"process {turn} of {rounds}: {name}"):
                start = time.perf_counter()
                run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: sorted(values) for name, values in seconds.items()}


def _print(figures: dict[str, Any]) -> None:
    shown = Table("", NATIVE, PYTHON, "Python / native", title=figures["generator"], box=None)
    for name, values in figures["seconds"].items():
        medians = (seconds_text(median(values[form])) for form in (NATIVE, PYTHON))
        shown.add_row(WHAT[name], *medians, times(figures["speedup"][name]))
    console.print(shown)
    console.print(figures["runs"], highlight=False)
    console.print(f"the adapters differ by {figures['difference']:.1e}")


def load() -> list[dict[str, Any]]:
    """The newest committed result of each generator and machine."""
    return latest("native", "generator", "device")


def markdown() -> str:
    """The table of the committed results: ratios within one run."""
    return table(
        ("generator", "machine", "what", "Python takes", "difference", "rounds"),
        (
            (
                row["generator"],
                f"{row['device']}, {row['threads']} cores",
                WHAT[name],
                times(row["speedup"][name]),
                f"{row['difference']:.1e}",
                str(len(values[NATIVE])),
            )
            for row in load()
            for name, values in row["seconds"].items()
        ),
    )


if __name__ == "__main__":
    typer.run(main)
