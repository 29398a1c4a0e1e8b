"""Gemma 3n's text decoder, with one file for each kind of component."""
