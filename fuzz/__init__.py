"""Fuzzing of everything that reads strangers' bytes: `python -m fuzz NAME --seconds 600`; docs/fuzzing.md."""
