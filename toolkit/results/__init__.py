"""Benchmark results: records, their JSON lines (docs/formats/results.md), statistics and comparison."""
