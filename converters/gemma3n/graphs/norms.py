"""Root mean square norms as LiteRT graphs: the weight itself is the factor, not 1 + weight as in Gemma 2 and 3."""

from __future__ import annotations

from toolkit.tflite import ops
from toolkit.tflite.graph import Value


def unit_rms(x: Value, epsilon: float, *, gain: float = 1.0) -> Value:
    """gain * x / sqrt(mean(x²) + epsilon) over the last axis."""
    factor = ops.rsqrt(ops.add(ops.mean(ops.mul(x, x)), x.graph.scalar(epsilon)))
    if gain != 1.0:
        factor = ops.mul(factor, x.graph.scalar(gain))
    return ops.mul(x, factor)


def rms_norm(x: Value, weight: Value, epsilon: float) -> Value:
    """x / sqrt(mean(x²) + epsilon) * weight over the last axis."""
    return ops.mul(unit_rms(x, epsilon), weight)
