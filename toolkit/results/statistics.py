"""Statistics of repeated measurements: spread, confidence intervals, drift, and the comparison of two sets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.base.errors import UsageError

CONFIDENCE = 0.95
MIN_VALUES = 5
"""Fewer values per side cannot show a difference at this confidence: 3 and 3 values are separate by chance 1 time in
10."""
MIN_PERCENTILE_VALUES = 20
"""The 5th percentile of fewer values is little more than the smallest of them."""
MIN_DRIFT = 0.02
"""A run is not flagged if its figures changed by a smaller fraction, however steady the change."""

_NOTHING = 1e-100
"""A base up to this counts as 0: a ratio to it may be too large for a number."""
_RESAMPLES = 4000
_LEAST_RESAMPLES, _MOST_DRAWS = 1000, 10_000_000
"""Of a side with over 2,500 values fewer samples are drawn, in all as many values as here, but at least so many."""
_BATCH_VALUES = 1_000_000
_FEW_VALUES = 50
"""A comparison of so few values keeps its draws for others of the same shape; they take 32 kB for each value."""
_SEED = 20_240_229  # arbitrary, but fixed: the same values always give the same interval
_EXACT_UP_TO = 40  # the most values with an exact test; for more, the normal approximation of Kendall's S is good

Verdict = Literal["higher", "lower", "no difference shown", "too few values", "base not above 0"]


@dataclass(frozen=True, slots=True)
class Summary:
    """Statistics of values; `sd` is the sample's (n - 1), 0 for a single value; percentiles are interpolated."""

    values: tuple[float, ...]
    median: float
    mean: float
    sd: float
    p5: float
    p95: float
    least: float
    most: float

    @property
    def n(self) -> int:
        """The number of values."""
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval at level CONFIDENCE."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Drift:
    """A test for a trend (Mann-Kendall); `change`: from first to last value, as a fraction of the median."""

    change: float
    p_value: float

    @property
    def shown(self) -> bool:
        """Whether the trend is unlikely to be chance, and large enough to matter."""
        return self.p_value < 1 - CONFIDENCE and abs(self.change) >= MIN_DRIFT


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sets of values, and a verdict on them."""

    base: Summary
    new: Summary
    ratio: float | None
    """The new median by the base's; None if that is not above 0."""
    interval: Interval | None
    """Of the ratio; None if there is none, or too few values."""
    verdict: Verdict


def summary(values: Sequence[float]) -> Summary:
    """The statistics of one or more values; UsageError if there is none, or one is not finite.

    >>> summary([3.0, 1.0, 2.0]).median, summary([3.0, 1.0, 2.0]).sd
    (2.0, 1.0)
    """
    found = _finite(values)
    p5, median, p95 = (float(value) for value in np.percentile(found, [5, 50, 95]))
    kept = tuple(float(value) for value in found)
    least, most = min(kept), max(kept)
    # The mean of equal values may be rounded, so that it differs from each of them.
    mean, sd = (least, 0.0) if least == most else (float(found.mean()), float(found.std(ddof=1)))
    return Summary(kept, median, mean, sd, p5, p95, least, most)


def median_interval(values: Sequence[float]) -> Interval | None:
    """The confidence interval of the median, by bootstrap; None for fewer than MIN_VALUES values."""
    found = _finite(values)
    if len(found) < MIN_VALUES:
        return None
    return _percentiles(*_resampled_medians([found]))


def drift(values: Sequence[float]) -> Drift:
    """The trend of values, given in the order of measurement.

    The slope is Theil and Sen's, the median over all pairs, which one outlier hardly moves.

    >>> drift([10.0, 9.9, 9.7, 9.6, 9.4]).shown, drift([10.0, 9.0, 10.0, 9.0, 10.0]).shown
    (True, False)
    """
    found = _finite(values)
    count = len(found)
    if count < 2:
        return Drift(0.0, 1.0)
    # Of each pair of values, eight bytes.
    slopes = np.concatenate(
        [(found[first + 1 :] - found[first]) / np.arange(1, count - first) for first in range(count)]
    )
    middle = float(np.median(found))
    change = float(np.median(slopes)) * (count - 1) / abs(middle) if middle else 0.0
    return Drift(change, _kendall_p(int(np.sign(slopes).sum()), found))


def compare(base: Sequence[Sequence[float]], new: Sequence[Sequence[float]]) -> Comparison:
    """Compare two sets of runs, each the values of one figure.

    If a side has several runs, the bootstrap draws runs first and then their values, because runs differ too.

    The verdict is `higher` or `lower` only where the whole interval of the ratio lies on that side of 1.
    UsageError if a side has no value, or one that is not finite.
    """
    sides = [[_finite(run) for run in side] for side in (base, new)]
    pooled = [[float(value) for run in side for value in run] for side in sides]
    base_summary, new_summary = summary(pooled[0]), summary(pooled[1])
    ratio = new_summary.median / base_summary.median if base_summary.median > _NOTHING else None
    if min(base_summary.n, new_summary.n) < MIN_VALUES:
        return Comparison(base_summary, new_summary, ratio, None, "too few values")
    if ratio is None:
        return Comparison(base_summary, new_summary, None, None, "base not above 0")
    base_medians, new_medians = _resampled_medians(*sides)
    interval = _percentiles(new_medians / np.where(base_medians > _NOTHING, base_medians, np.nan))
    return Comparison(base_summary, new_summary, ratio, interval, _verdict(interval))


def _verdict(interval: Interval) -> Verdict:
    if interval.low > 1:
        return "higher"
    return "lower" if interval.high < 1 else "no difference shown"


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not found.size or not np.isfinite(found).all():
        raise UsageError(found=f"{len(values)} values, not all finite", wanted="at least one, all finite")
    return found


def _resampled_medians(*sides: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Medians of the bootstrap samples of each side: runs are drawn with repetition, then values from each of them."""
    shapes = tuple(tuple(map(len, side)) for side in sides)
    draws = _kept_draws(shapes) if sum(map(_most_values, shapes)) <= _FEW_VALUES else _draws(shapes)
    medians: list[list[NDArray[np.float64]]] = [[] for _ in sides]
    for draw in draws:
        # The last value, infinity, fills the places of samples that have fewer values than others.
        values = np.concatenate([*sides[draw.side], [np.inf]])[draw.places]
        values.sort(axis=1)
        if isinstance(draw.counts, int):
            middle = (values[:, (draw.counts - 1) // 2] + values[:, draw.counts // 2]) / 2
        else:
            middles = np.stack([(draw.counts - 1) // 2, draw.counts // 2], axis=1)
            middle = np.take_along_axis(values, middles, axis=1).mean(axis=1)
        medians[draw.side].append(middle)
    return [np.concatenate(parts) for parts in medians]


@dataclass(frozen=True, slots=True)
class _Draw:
    """Bootstrap samples of one side, as indices of its values: intp[samples, values].

    An index past the last value stands for no value. `counts`: how many values each sample has, one number if all have
    the same.
    """

    side: int
    places: NDArray[np.intp]
    counts: int | NDArray[np.intp]


def _draws(shapes: Sequence[tuple[int, ...]]) -> Iterator[_Draw]:
    """The samples of all sides, in batches, which bounds memory; `shapes`: the lengths of each side's runs."""
    random = np.random.default_rng(_SEED)
    for side, shape in enumerate(shapes):
        lengths, width, total = np.array(shape), max(shape), sum(shape)
        starts = np.cumsum(lengths) - lengths
        samples = min(_RESAMPLES, max(_LEAST_RESAMPLES, _MOST_DRAWS // _most_values(shape)))
        batch = max(1, _BATCH_VALUES // _most_values(shape))
        for begin in range(0, samples, batch):
            count = min(batch, samples - begin)
            chosen = random.integers(0, len(shape), (count, len(shape), 1))
            drawn = random.random((count, len(shape), width))
            if min(shape) == width:
                places = (drawn * width).astype(np.intp) + chosen * width
                yield _Draw(side, places.reshape(count, -1), total)
            else:
                places = (drawn * lengths[chosen]).astype(np.intp) + starts[chosen]
                places = np.where(np.arange(width) < lengths[chosen], places, total)
                yield _Draw(side, places.reshape(count, -1), lengths[chosen].sum(axis=(1, 2)))


@lru_cache(maxsize=64)
def _kept_draws(shapes: tuple[tuple[int, ...], ...]) -> tuple[_Draw, ...]:
    """`_draws`, cached: thousands of small comparisons mostly have the same numbers of values."""
    return tuple(_draws(shapes))


def _most_values(shape: tuple[int, ...]) -> int:
    """The most values that a sample of runs with these numbers of values can have."""
    return len(shape) * max(shape)


def _percentiles(medians: NDArray[np.float64]) -> Interval:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(medians, [tail, 100 - tail])
    return Interval(float(low), float(high))


def _kendall_p(score: int, values: NDArray[np.float64]) -> float:
    """The p-value of Kendall's S, two-sided: exact for few values without ties, else by the normal distribution."""
    n = len(values)
    ties = [int(count) for count in np.unique(values, return_counts=True)[1]]
    if n <= _EXACT_UP_TO and max(ties) == 1:
        counts = _inversion_counts(n)
        most = n * (n - 1) // 2
        far = sum(count for inversions, count in enumerate(counts) if abs(most - 2 * inversions) >= abs(score))
        return far / math.factorial(n)
    variance = (_kendall_term(n) - sum(_kendall_term(count) for count in ties)) / 18
    if not variance:
        return 1.0
    return math.erfc(max(abs(score) - 1, 0) / math.sqrt(2 * variance))


def _kendall_term(count: int) -> int:
    return count * (count - 1) * (2 * count + 5)


def _inversion_counts(n: int) -> list[int]:
    """How many permutations of n values have 0, 1, 2, ... inversions.

    >>> _inversion_counts(3)
    [1, 2, 2, 1]
    """
    counts = [1]
    for size in range(2, n + 1):
        longer = [0] * (len(counts) + size - 1)
        for shift in range(size):
            for inversions, count in enumerate(counts):
                longer[inversions + shift] += count
        counts = longer
    return counts
