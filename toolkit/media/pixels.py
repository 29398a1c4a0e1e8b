"""Computes the vision tower's input from decoded levels, with NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pixels(levels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Scale levels 0..255 to [0, 1], rounded as transformers does."""
    return (levels.astype(np.float64) * (1 / 255)).astype(np.float32)
