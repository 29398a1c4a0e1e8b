"""How far apart two rows of logits are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def divergence(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The KL divergence of two rows of logits, in nats."""
    p, q = (logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64)) for logits in (one, other))
    return float((np.exp(p) * (p - q)).sum())
