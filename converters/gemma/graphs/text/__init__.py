"""The language model: embedder, and one file for each kind of block of the decoder."""
