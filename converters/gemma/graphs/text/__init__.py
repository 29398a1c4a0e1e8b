"""The language model: the embedder, and one file for each kind of component of the decoder."""
