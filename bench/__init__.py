"""Benchmarks; committed results are in results/."""

from pathlib import Path

# `python -m bench.demo` runs an experiment as `python -m bench.latency` runs a benchmark.
__path__.append(str(Path(__file__).parent / "experiments"))
