"""Calibration: rounds the matrices of a text decoder against the inputs that a text gives them."""
