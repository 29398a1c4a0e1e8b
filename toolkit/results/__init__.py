"""What a benchmark found: records, and the JSON lines that hold them (docs/formats/results.md)."""
