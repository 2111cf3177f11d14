"""What the benchmarks share: timing, result files, operations, plots."""
