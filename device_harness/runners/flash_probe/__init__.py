"""Reads rows of per-layer embeddings with the flash probe."""
