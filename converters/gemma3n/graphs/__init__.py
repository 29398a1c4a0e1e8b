"""Model math: from a config to graphs of LiteRT operators; names weights, never sees their bytes."""
