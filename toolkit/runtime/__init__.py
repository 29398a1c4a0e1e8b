"""Runs a bundle on this machine with LiteRT."""
