"""Root mean square norms as LiteRT graphs: the weight itself is the factor, not 1 + weight as in Gemma 2 and 3.

A GPU computes in float16, where the square of 256 is infinite and that of 0.0002 is zero. So the text decoder and
the towers' adapters divide values before squaring them: by their largest element or, if that is smaller, by a floor
(`Scale`). The towers' encoders do not, because this would slow them on a CPU by a twentieth (sounds) to a third
(images); on a GPU they need float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from toolkit.tflite import ops
from toolkit.tflite.graph import Value

EPSILON = 2.0**-24
"""Added to the mean square of the divided values: the smallest float16 above zero. The floor is chosen so that this
equals a norm's epsilon divided by the floor's square. If a row's divisor is larger than the floor, this adds too much;
but then the mean square is at least 1 / width, so the relative error of a norm of 2,048 elements is at most 6e-5 (if
all elements but one are zero), and usually less than 1e-6."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The divisor of each row before squaring: f32[..., 1], for rows of one width.

    It may be the scale of another value whose largest element is up to 256 times smaller or 100 times larger.
    """

    divisor: Value

    @classmethod
    def of(cls, x: Value, epsilon: float) -> Scale:
        """The largest absolute value of each row of x, but at least the floor of a norm with this epsilon."""
        floor = x.graph.scalar(math.sqrt(epsilon / EPSILON))
        return cls(ops.maximum(ops.reduce_max(ops.abs_(x)), floor))

    def divided(self, x: Value) -> tuple[Value, Value]:
        """x / divisor, and the factor that gives this quotient a mean square of 1."""
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
