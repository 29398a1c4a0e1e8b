"""Finds checkpoints and adapters on the Hugging Face Hub, reads them in ranges, and downloads them to its cache."""
