"""Measures how fast a device reads per-layer embedding rows, and drops files from its page cache."""
