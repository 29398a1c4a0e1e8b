"""Finds checkpoints and adapters on the Hugging Face Hub: listed, read in ranges, and downloaded to its own cache."""
