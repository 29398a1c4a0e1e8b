"""LiteRT behind types: models and buffers on any processor, and its log."""
