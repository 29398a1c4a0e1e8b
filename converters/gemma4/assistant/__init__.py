"""Google's drafters for Gemma 4, the checkpoints whose names end in -assistant."""
