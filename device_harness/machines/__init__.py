"""Where a benchmark runs: a device, or this computer."""
