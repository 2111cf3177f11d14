"""Benchmarks; committed results are in results/."""
