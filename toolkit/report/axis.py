"""Axes of plots on a page: round numbers, and places along them in percent of the plot's width or height."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_ROUND = (1.0, 2.0, 5.0, 10.0)
_SAME = 1e-9
"""Values that differ by this part of their size at most are drawn as one: marks between them would be equal numbers."""
_NOTHING = 1e-300
"""Too little for an axis: its steps would be 0."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear axis from `low` to `high`, with marks at round numbers."""

    low: float
    high: float
    marks: tuple[float, ...]
    decimals: int

    def place(self, value: float) -> float:
        """The place of a value, in percent from `low` to `high`.

        >>> axis_over([0, 50], most_marks=5).place(25)
        50.0
        """
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    def texts(self) -> tuple[tuple[float, str], ...]:
        """The place and the text of each mark."""
        return tuple((self.place(mark), f"{mark:,.{self.decimals}f}") for mark in self.marks)


def axis_over(values: Iterable[float], *, from_zero: bool = True, most_marks: int = 6) -> Axis:
    """An axis over all finite values, which begins and ends at a mark.

    `from_zero`: begin at 0, so that lengths along it are in proportion.

    >>> axis_over([3.2, 11.7]).marks, axis_over([31.0, 33.5], from_zero=False, most_marks=4).marks
    ((0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0), (31.0, 32.0, 33.0, 34.0))
    """
    finite = [value for value in values if math.isfinite(value)]
    least, most = min(finite, default=0.0), max(finite, default=0.0)
    if from_zero:
        least, most = min(0.0, least), max(0.0, most)
    size = max(abs(least), abs(most))
    if most - least <= max(_SAME * size, _NOTHING):
        around = max(1.0, 1000 * _SAME * size)
        least, most = (least - around, most + around) if least and not from_zero else (0.0, 1.0)
    step = _round_step((most - least) / most_marks)
    first, last = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return Axis(first * step, last * step, tuple(place * step for place in range(first, last + 1)), decimals)


def _round_step(least: float) -> float:
    """The smallest number that is 1, 2 or 5 times a power of ten and at least `least`.

    >>> _round_step(0.3), _round_step(7), _round_step(20)
    (0.5, 10.0, 20.0)
    """
    power = 10.0 ** math.floor(math.log10(least))
    return next(times * power for times in _ROUND if times * power >= least * (1 - 1e-9))
