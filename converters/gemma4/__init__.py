"""Gemma 4 E2B and E4B, whose layers have per-layer embeddings."""
