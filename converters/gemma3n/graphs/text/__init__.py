"""The language model: embedder and decoder, one file for each kind of block."""
