"""Runs a bundle on a machine without Python: places our program in C and LiteRT's library there, and talks to it."""
