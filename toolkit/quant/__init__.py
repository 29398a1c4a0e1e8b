"""Quantisation: schemes, recipes that assign them to weights, and the stream that writes quantised weights."""
