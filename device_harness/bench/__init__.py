"""Measures models on machines: a process an iteration, waits for a cool device, samples of memory, records."""
