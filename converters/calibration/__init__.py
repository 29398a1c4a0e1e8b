"""Calibration: rounds the matrices of a text decoder for the inputs that they get when the model reads a text."""
