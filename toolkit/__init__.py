"""File formats and running: graphs, weights, bundles, sessions, benchmark results; knows no model and no device."""

__version__ = "0.2.0"
