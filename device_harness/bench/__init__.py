"""Measures: iterations, gates, samples, state."""
