"""gemma-edge: Gemma 3n checkpoints to LiteRT bundles, on devices, measured."""

__version__ = "0.2.0"
