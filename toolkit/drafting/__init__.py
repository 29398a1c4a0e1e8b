"""Fits a drafter to a model, by text that the model writes itself."""
