"""The model family Gemma 3n: its config, parameter groups, slices, graphs, plan and NumPy reference."""
