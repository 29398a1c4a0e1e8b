"""Benchmarks models on machines: a process for each iteration, thermal gates, memory samples, records."""
