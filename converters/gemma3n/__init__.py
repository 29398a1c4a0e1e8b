"""Gemma 3n: its config, its parameter groups, its slices and its graphs."""
