"""Converts checkpoints to bundles, and verifies the result."""
