"""The setting that says where weights are kept between runs that a backend has rearranged for its hardware."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

WeightCache = Literal["off", "memory"] | Path
"""off: a copy for each signature; memory: one copy for all signatures, until the end; a directory: kept in files."""


def parse_weight_cache(text: str | None) -> WeightCache:
    """Parse `off`, `memory` or a directory; None for the user's cache directory."""
    if text == "off":
        return "off"
    if text == "memory":
        return "memory"
    return Path(text) if text else default_directory()


def default_directory() -> Path:
    """The user's cache directory: GEMMA_EDGE_CACHE, else gemma-edge under XDG_CACHE_HOME, else under ~/.cache."""
    if own := os.environ.get("GEMMA_EDGE_CACHE"):
        return Path(own)
    # The XDG specification says to ignore a relative path.
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "gemma-edge"
