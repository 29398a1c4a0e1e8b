"""How fast a device reads per-layer embedding rows, and what of a file its kernel holds in memory."""
