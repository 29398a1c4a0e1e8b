"""Google's LiteRT-LM engine: its programs, and its Python package."""
