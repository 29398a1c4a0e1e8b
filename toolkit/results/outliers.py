"""Names what a median hides: iterations far from the others, and a first one that was slow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from toolkit.results.figures import is_more_better
from toolkit.results.statistics import MIN_VALUES

_FAR = 5.0
"""In standard deviations: of normal values, one in two million lies as far."""
_MAD_TO_SD = 1.4826
"""The standard deviation of normal values over their median absolute deviation."""
_MATTERS = 0.05
"""A value within this fraction of the median is not named, however close the others are."""


def outliers(values: Sequence[float]) -> tuple[int, ...]:
    """The indices of values far from the others; none for fewer than MIN_VALUES.

    Distances are in standard deviations, estimated from the median absolute deviation, which outliers hardly move.

    >>> outliers([9.0, 10.0, 10.1, 9.9, 10.0, 10.2]), outliers([10.0, 10.1, 9.9, 10.0]), outliers([1, 2, 3, 4, 5])
    ((0,), (), ())
    """
    if len(values) < MIN_VALUES:
        return ()
    found = np.asarray(values, dtype=np.float64)
    middle = float(np.median(found))
    away = np.abs(found - middle)
    limit = max(_FAR * _MAD_TO_SD * float(np.median(away)), _MATTERS * abs(middle))
    return tuple(int(place) for place in np.flatnonzero(away > limit))


def has_slow_start(figure: str, values: Sequence[float]) -> bool:
    """Whether only the first value of a rate or a time is an outlier, and a slow one."""
    if outliers(values) != (0,) or not (is_more_better(figure) or figure.endswith("_s")):
        return False
    return (values[0] < float(np.median(values))) == is_more_better(figure)


def remarks(figure: str, values: Sequence[float], iterations: Sequence[int]) -> Iterator[str]:
    """What to say about one test's values, in the order of measurement.

    `iterations`: the number of each value's iteration, from 1; an iteration without a value is not among them.

    >>> list(remarks("decode_tokens_per_s", [5.0, 10.0, 10.1, 9.9, 10.0], [1, 2, 3, 4, 5]))
    ['slow first iteration']
    >>> list(remarks("init_s", [10.0, 10.1, 9.9, 2.0, 10.0], [1, 2, 3, 5, 6]))
    ['outlier: iteration 5']
    """
    found = outliers(values)
    if has_slow_start(figure, values) and iterations[0] == 1:
        yield "slow first iteration"
    elif found:
        named = ", ".join(str(iterations[place]) for place in found)
        yield f"outlier: iteration {named}" if len(found) == 1 else f"outliers: iterations {named}"
