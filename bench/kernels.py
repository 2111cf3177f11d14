"""Every operation of a decoder at its shapes: time, bytes, FLOPs, and how near to a limit.

    python -m bench.kernels                      # a GPU: the Triton kernels, coding-7b
    python -m bench.kernels                      # a CPU: plain PyTorch, a middle-sized decoder
    python -m bench.kernels --recipe all
    python -m bench.kernels --compare            # beside the run before

Statistics, saved runs (in ``.benchmarks/``) and their comparison are pytest-benchmark's. Each call
finds cold caches, as in a pass, where other layers' weights have been through them: calls take
turns on enough copies of their operands to fill the last cache twice. On a GPU as many launches as
move a gigabyte are one CUDA graph, whose time is divided by their number.

Bytes and FLOPs are stated in :mod:`dnd_fast.bench.harness.operations`. The limits are this
device's measured copy bandwidth and rate of matrix products, on a GPU in float16.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pytest
import torch
import typer
from rich.table import Table

from dnd_fast.bench.harness.operations import Operation, operations
from dnd_fast.bench.harness.results import append, provenance
from dnd_fast.bench.harness.timing import console, percentiles, require_steady, seconds_text
from dnd_fast.bench.latency import PAPER
from dnd_fast.bench.training import MIDDLE
from dnd_fast.kernels.device import DeviceProfile, calibrate, device_name, time_fn
from dnd_fast.kernels.planner.cost_model import plan_decoder
from dnd_fast.recipe import Recipe

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

SEED = 0
MIDDLE_NAME = "middle"
GRAPH_BYTES = 1e9
MAX_LAUNCHES = 1000
ROUNDS = 5, 50  # of each operation, at least and at most
BUDGET = 0.5  # seconds for each, if that gives enough rounds


def main(
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A recipe's name or file, or 'all'.",
            show_default="coding-7b, on a CPU a middle-sized decoder",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Adapters per pass.", min=1)] = 1,
    memory: Annotated[float, typer.Option(help="GB that the planned weights may take.")] = 20,
    compare: Annotated[bool, typer.Option(help="Beside the run before.")] = False,
    noisy: Annotated[bool, typer.Option(help="Report whatever the spread.")] = False,
    save: Annotated[bool, typer.Option(help="Add them to bench/results/kernels.jsonl.")] = False,
) -> None:
    """Time every operation of a recipe's plan."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    if not gpu:
        console.print("No GPU: the plain PyTorch forms are timed, not the Triton kernels.")
    dtype = torch.float16 if gpu else torch.float32
    profile = calibrate(device, dtype, fused_2d_dft=gpu)
    recipe = recipe or ("coding-7b" if gpu else MIDDLE_NAME)
    figures: dict[str, Any] = {}
    for name in PAPER if recipe == "all" else [recipe]:
        known = None if name == MIDDLE_NAME else Recipe.load(name)
        spec = known.decoder if known else MIDDLE
        plan = plan_decoder(
            spec.features, spec.kernel_size, profile, batch=batch, memory=1e9 * memory
        )
        torch.manual_seed(SEED)
        timed = list(operations(spec, known, plan, batch, dtype, device))
        rows = run_suite(timed, f"{name}-batch-{batch}", profile, device, compare)
        _print(name, rows)
        spreads = require_steady(
            {f"{row['layer']} {row['kernel']}": row["p20_p50_p80_seconds"] for row in rows}, noisy
        )
        figures = {
            "recipe": name,
            "batch": batch,
            "seed": SEED,
            "profile": profile.__dict__,
            "spread": max(spreads.values()),
            "kernels": rows,
        }
        if save:
            console.print(f"Wrote {append('kernels', figures)}.")
    print(json.dumps(provenance() | figures))


class Suite:
    """The plugin that hands pytest the operations, and collects a row of each.

    Args:
        operations: Operations to time.
        device: Device that they run on.
        profile: Rates of the device.
    """

    def __init__(
        self, operations: list[Operation], device: torch.device, profile: DeviceProfile
    ) -> None:
        self.operations, self.device, self.profile = operations, device, profile
        self.rows: list[dict[str, Any]] = []

    @pytest.fixture
    def suite(self) -> Suite:
        """Itself."""
        return self

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test an operation, whose timer knows how many launches are one call."""
        cases = [
            pytest.param(
                operation,
                id=f"{operation.layer} {operation.name}",
                marks=pytest.mark.benchmark(timer=self._timer(operation)),
            )
            for operation in self.operations
        ]
        metafunc.parametrize("operation", cases)

    def _timer(self, operation: Operation) -> Callable[[], float]:
        count = launches(operation, self.device)

        def now() -> float:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            return time.perf_counter() / count

        return now


def test_speed(benchmark: BenchmarkFixture, operation: Operation, suite: Suite) -> None:
    """Run by :func:`run_suite`, through pytest."""
    call = cold_call(operation, suite.device)
    least, most = ROUNDS
    rounds = int(BUDGET / time_fn(call, suite.device, 0))
    benchmark.pedantic(call, rounds=min(max(rounds, least), most))
    assert benchmark.stats is not None
    row = describe(operation, percentiles(benchmark.stats.stats.data), suite.profile)
    benchmark.extra_info.update(row)
    suite.rows.append(row)


def run_suite(
    operations: list[Operation],
    name: str,
    profile: DeviceProfile,
    device: torch.device,
    compare: bool,
) -> list[dict[str, Any]]:
    """Time operations, and save the run as pytest-benchmark does.

    Args:
        operations: Operations to time.
        name: Name of the run; only runs of one name and device are compared.
        profile: Rates of the device.
        device: Device that they run on.
        compare: Print pytest-benchmark's table, with the run before beside this one.

    Returns:
        A row of :func:`describe` for each.

    Raises:
        SystemExit: An operation failed.
    """
    suite = Suite(operations, device, profile)
    machine = "".join(c if c.isalnum() else "-" for c in device_name(device))
    storage = Path(".benchmarks").absolute() / machine / name
    options = [
        "-c",
        os.devnull,
        "-q",
        "--no-header",
        "--disable-warnings",
        "-p",
        "no:cacheprovider",
    ]
    options += ["--rootdir", str(Path(__file__).parents[1]), "--import-mode=importlib"]
    options += [f"--benchmark-storage=file://{storage}", "--benchmark-autosave"]
    options += ["--benchmark-columns=median,iqr,min,max,rounds"]
    if compare and not any(storage.rglob("*.json")):
        raise SystemExit(f"there is no run of {name} in {storage} to compare with: run it once.")
    options += ["--benchmark-compare", "--benchmark-group-by=name"] if compare else []
    options += [] if compare else ["--benchmark-quiet"]
    status = pytest.main([__file__, *options], plugins=[suite])
    if status != pytest.ExitCode.OK or len(suite.rows) != len(operations):
        raise SystemExit(f"an operation of {name} failed: no figures.")
    return suite.rows


def launches(operation: Operation, device: torch.device) -> int:
    """Number of launches that are timed as one call."""
    if device.type == "cpu":
        return 1
    return min(MAX_LAUNCHES, max(2, math.ceil(GRAPH_BYTES / operation.bytes_moved)))


def cold_call(operation: Operation, device: torch.device) -> Callable[[], object]:
    """Calls of the operation, taking turns on copies of operands; on a GPU many, as one graph."""
    copies = 1 + math.ceil(2 * cache_bytes(device) / operation.bytes_moved)
    count = launches(operation, device)
    if device.type == "cpu":
        turns = itertools.cycle([operation.make() for _ in range(min(copies, MAX_LAUNCHES))])
        return lambda: next(turns)()
    runs = [operation.make() for _ in range(min(copies, count))]
    for run in runs:  # compiles kernels
        run()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in itertools.islice(itertools.cycle(runs), count):
            run()

    def replay() -> None:
        assert runs  # the graph reads their operands
        graph.replay()

    return replay


def cache_bytes(device: torch.device) -> int:
    """Size of the last cache."""
    if device.type == "cuda":
        size: int = torch.cuda.get_device_properties(device).L2_cache_size
        return size
    if "SC_LEVEL3_CACHE_SIZE" in os.sysconf_names:
        return max(1 << 25, os.sysconf("SC_LEVEL3_CACHE_SIZE"))
    return 1 << 25


def describe(operation: Operation, seconds: list[float], profile: DeviceProfile) -> dict[str, Any]:
    """A row of results; ``limit_share`` is the nearer limit's time over the median."""
    limit = max(operation.flops / profile.gemm_flops, operation.bytes_moved / profile.bandwidth)
    return {
        "layer": operation.layer,
        "kernel": operation.name,
        "p20_p50_p80_seconds": seconds,
        "bytes": operation.bytes_moved,
        "flops": operation.flops,
        "limit_share": limit / seconds[1],
    }


def _print(name: str, rows: list[dict[str, Any]]) -> None:
    head = ("layer", "operation", "p20", "p50", "p80", "MB", "GFLOP", "of its limit")
    table = Table(*head, title=name, box=None)
    for row in rows:
        table.add_row(
            row["layer"],
            row["kernel"],
            *(seconds_text(value) for value in row["p20_p50_p80_seconds"]),
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['flops'] / 1e9:.2f}",
            f"{row['limit_share']:.0%}",
        )
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
