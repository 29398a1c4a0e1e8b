"""LiteRT's file format: typed graphs, the op set, a streaming writer, a strict reader."""
