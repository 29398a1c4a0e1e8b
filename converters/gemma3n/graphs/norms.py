"""Root mean square norms as LiteRT graphs: the weight itself is the factor, not 1 + weight as in Gemma 2 and 3.

A GPU computes in float16, where the square of 256 is infinite and that of 0.0002 is zero. So what the text decoder
squares is divided first: by its largest element or, if that is less, by a floor (`Scale`). The towers' norms are plain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from toolkit.tflite import ops
from toolkit.tflite.graph import Value

EPSILON = 2.0**-24
"""Added to the mean square of what was divided: the least number of float16 above zero. The floor is so high that this
is epsilon over its square. Where a row's divisor is larger, epsilon counts for too much; but there the mean square is
at least one over the width, so that a norm of 2,048 elements is off by 6e-5 of itself at most (if all but one are
zero), and usually by less than 1e-6."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What rows of a width are divided by before they are squared, one number a row: f32[..., 1].

    It may be that of another value, whose largest element is up to 256 times smaller or 100 times larger.
    """

    divisor: Value

    @classmethod
    def of(cls, x: Value, epsilon: float) -> Scale:
        """The largest absolute value of each row, and the floor of a norm with this epsilon at least."""
        floor = x.graph.scalar(math.sqrt(epsilon / EPSILON))
        return cls(ops.maximum(ops.reduce_max(ops.abs_(x)), floor))

    def divided(self, x: Value) -> tuple[Value, Value]:
        """x over the divisor, and what that is to be multiplied by to have a mean square of 1."""
        small = ops.div(x, self.divisor)
        square = ops.mean(ops.mul(small, small))
        return small, ops.rsqrt(ops.add(square, x.graph.scalar(EPSILON)))

    def unit_rms(self, x: Value) -> Value:
        """x / sqrt(mean(x²) + epsilon) over the last axis."""
        small, factor = self.divided(x)
        return ops.mul(small, factor)

    def rms_norm(self, x: Value, weight: Value) -> Value:
        """x / sqrt(mean(x²) + epsilon) * weight over the last axis."""
        return ops.mul(self.unit_rms(x), weight)


def unit_rms(x: Value, epsilon: float, *, gain: float = 1.0) -> Value:
    """gain * x / sqrt(mean(x²) + epsilon) over the last axis; not for float16."""
    factor = ops.rsqrt(ops.add(ops.mean(ops.mul(x, x)), x.graph.scalar(epsilon)))
    if gain != 1.0:
        factor = ops.mul(factor, x.graph.scalar(gain))
    return ops.mul(x, factor)


def rms_norm(x: Value, weight: Value, epsilon: float) -> Value:
    """x / sqrt(mean(x²) + epsilon) * weight over the last axis; not for float16."""
    return ops.mul(unit_rms(x, epsilon), weight)
