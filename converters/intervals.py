"""How certain a measure is: the interval that contains its value over unlimited similar text in 19 of 20 cases."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NORMAL_95 = 1.959964  # standard deviations that contain 95 % of a normal distribution
_BLOCK = 8  # predictions that are drawn together
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Interval:
    """A range of values."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.3f} to {self.high:.3f}"


def wilson_interval(successes: int, trials: int) -> Interval:
    """Wilson's interval for a proportion, which is also valid near 0 and 1 and for few trials.

    >>> print(wilson_interval(9, 10))
    0.596 to 0.982
    """
    z2 = _NORMAL_95**2
    share, spread = successes / trials, trials + z2
    centre = (trials * share + z2 / 2) / spread
    half = _NORMAL_95 / spread * math.sqrt(trials * share * (1 - share) + z2 / 4)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def exponential(power: float) -> float:
    """e to some power; infinity where a float cannot hold it.

    >>> exponential(0.0), exponential(1000.0)
    (1.0, inf)
    """
    try:
        return math.exp(power)
    except OverflowError:
        return math.inf


def finite_or_none(number: float | None) -> float | None:
    """The number as JSON can hold it: None if it is not finite, or not there.

    >>> finite_or_none(1.5), finite_or_none(math.inf), finite_or_none(None)
    (1.5, None, None)
    """
    return number if number is not None and math.isfinite(number) else None


def ratio_interval(excess: NDArray[np.float64]) -> Interval:
    """The interval of the perplexity ratio by bootstrap, with a fixed seed.

    `excess`: f64[n], by how much the bundle's loss exceeds the checkpoint's for each prediction, in the text's order.
    Runs of neighbours are drawn, because predictions of one passage are alike.
    """
    block = max(1, min(_BLOCK, len(excess) // 16))
    starts = len(excess) - block + 1
    draws = np.random.default_rng(0).integers(0, starts, (_RESAMPLES, max(1, len(excess) // block)))
    sums = np.concatenate([[0.0], np.cumsum(excess)])
    means = (sums[draws + block] - sums[draws]).mean(axis=1) / block
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(exponential(low), exponential(high))
