"""Known values come from NumPy and SciPy 1.17, computed apart and written here."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from toolkit.base.errors import UsageError
from toolkit.results import statistics
from toolkit.results.statistics import compare, drift, median_interval, summary


def test_summary_is_numpys() -> None:
    values = np.random.default_rng(0).normal(20, 3, 41).tolist()
    found = summary(values)
    assert found.n == 41
    assert found.median == pytest.approx(np.median(values))
    assert found.mean == pytest.approx(np.mean(values))
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    assert (found.p5, found.p95) == pytest.approx(tuple(np.percentile(values, [5, 95])))
    assert (found.least, found.most) == (min(values), max(values))


def test_one_value_has_no_spread() -> None:
    found = summary([7.0])
    assert (found.median, found.sd, found.p5, found.p95) == (7.0, 0.0, 7.0, 7.0)


def test_equal_values_have_no_spread_and_are_their_mean() -> None:
    found = summary([0.7] * 3)
    assert (found.median, found.mean, found.sd) == (0.7, 0.7, 0.0)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_values_that_are_none_or_not_finite_are_refused(values: list[float]) -> None:
    with pytest.raises(UsageError, match="finite"):
        summary(values)


@pytest.mark.parametrize(
    ("values", "p_value"),
    [
        # scipy.stats.kendalltau(range(n), values, method="exact")
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0.016666666666666666),
        ([1.0, 3.0, 2.0, 5.0, 4.0, 6.0], 0.05555555555555555),
        ([5.0, 4.0, 1.0, 2.0, 3.0], 0.48333333333333334),
        ([3.0, 1.0, 4.0, 2.0, 6.0, 5.0, 9.0, 7.0, 8.0, 11.0, 10.0, 12.0], 0.00010742344075677409),
    ],
)
def test_drift_of_few_values_is_exact(values: list[float], p_value: float) -> None:
    assert drift(values).p_value == pytest.approx(p_value)


def test_drift_of_many_values_is_close_to_the_exact_one() -> None:
    values = [0.078 * i + i * i % 53 for i in range(50)]
    # scipy.stats.kendalltau(range(50), values, method="exact")
    assert drift(values).p_value == pytest.approx(0.04427996041003397, rel=0.02)


def test_ties_lessen_what_drift_shows() -> None:
    values = [1.0, 2.0, 2.0, 3.0, 3.0, 3.0, 4.0, 5.0, 4.0, 6.0, 7.0, 7.0]
    # scipy.stats.kendalltau(range(12), values, method="asymptotic") gives 0.000053, without a correction for continuity
    assert 0.00005 < drift(values).p_value < 0.0001


def test_drift_says_by_how_much_and_is_not_moved_by_one_outlier() -> None:
    found = drift([10.0, 9.5, 30.0, 8.5, 8.0, 7.5])
    assert found.change == pytest.approx(-2.5 / 9.0)


def test_steady_but_tiny_drift_is_no_flag() -> None:
    assert drift([10.0, 10.01, 10.02, 10.03, 10.04]).p_value < 0.05
    assert not drift([10.0, 10.01, 10.02, 10.03, 10.04]).shown


def test_drift_of_many_values_takes_little_memory() -> None:
    tracemalloc.start()
    try:
        drift(np.random.default_rng(0).normal(10, 1, 600).tolist())
        assert tracemalloc.get_traced_memory()[1] < 40 * 600 * 599 / 2, "bytes for each pair"
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("values", [[4.0], [4.0] * 8, [4.0] * 20])
def test_values_without_change_do_not_drift(values: list[float]) -> None:
    assert drift(values).p_value == 1.0
    assert drift(values).change == 0.0


def test_the_interval_of_the_median_holds_it_as_often_as_it_says() -> None:
    random = np.random.default_rng(7)
    held = 0
    for _ in range(300):
        interval = median_interval(random.lognormal(0, 0.5, 9).tolist())
        assert interval is not None
        held += interval.low <= 1.0 <= interval.high
    assert 0.90 <= held / 300 <= 0.995


@pytest.mark.slow
def test_equal_devices_rarely_seem_to_differ() -> None:
    random = np.random.default_rng(8)
    wrong = 0
    for _ in range(300):
        base, new = random.normal(100, 5, 5).tolist(), random.normal(100, 5, 5).tolist()
        wrong += compare([base], [new]).verdict != "no difference shown"
    assert wrong / 300 < 0.07


def test_a_clear_difference_is_shown() -> None:
    base = [[10.0, 10.2, 9.9, 10.1, 10.0]]
    faster = compare(base, [[12.0, 12.1, 11.8, 12.2, 12.0]])
    assert faster.verdict == "higher"
    assert faster.ratio == pytest.approx(1.2)
    assert faster.interval is not None
    assert 1.1 < faster.interval.low <= 1.2 <= faster.interval.high < 1.3
    assert compare(base, [[8.0, 8.1, 8.0, 8.2, 7.9]]).verdict == "lower"


def test_four_values_a_side_show_nothing() -> None:
    found = compare([[1.0, 1.0, 1.0, 1.0]], [[9.0, 9.0, 9.0, 9.0]])
    assert found.verdict == "too few values"
    assert found.interval is None
    assert median_interval([1.0, 2.0, 3.0, 4.0]) is None


def test_runs_that_differ_widen_the_interval() -> None:
    slow, fast = [10.0, 10.1, 9.9, 10.0, 10.05], [14.0, 14.1, 13.9, 14.0, 14.05]
    new = [[13.0, 13.1, 12.9, 13.0, 13.05], [13.1, 13.0, 12.95, 13.0, 13.1]]
    assert compare([slow], new).verdict == "higher"
    assert compare([slow, fast], new).verdict == "no difference shown"


@pytest.mark.slow
@pytest.mark.parametrize(
    "lengths", [([5], [5]), ([5] * 4, [6]), ([3, 7, 1], [5, 5]), ([5] * 6, [2] * 4)], ids=["", "more", "odd", "many"]
)
@pytest.mark.parametrize("kept", [0, 50])
def test_the_interval_is_that_of_a_plain_bootstrap_of_runs_and_their_values(
    lengths: tuple[list[int], list[int]], kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether draws are kept for other comparisons or not."""
    monkeypatch.setattr(statistics, "_FEW_VALUES", kept)
    monkeypatch.setattr(statistics, "_BATCH_VALUES", 10**7)
    source = np.random.default_rng(7)
    sides = [[source.lognormal(1, 0.3, length) for length in side] for side in lengths]
    random, medians = np.random.default_rng(statistics._SEED), []
    for side in sides:
        width = max(map(len, side))
        chosen = random.integers(0, len(side), (statistics._RESAMPLES, len(side), 1))
        drawn = random.random((statistics._RESAMPLES, len(side), width))
        samples = [
            [side[run[0]][int(part * len(side[run[0]]))] for run, parts in zip(*sample, strict=True) for part in
             parts[: len(side[run[0]])]]
            for sample in zip(chosen, drawn, strict=True)
        ]  # fmt: skip
        medians.append([float(np.median(sample)) for sample in samples])
    wanted = np.percentile(np.divide(medians[1], medians[0]), [2.5, 97.5])
    for _ in range(2):
        found = compare(*([run.tolist() for run in side] for side in sides)).interval
        assert found is not None and [found.low, found.high] == pytest.approx(wanted, rel=1e-12)


def test_a_side_of_very_many_values_is_drawn_less_often() -> None:
    runs = np.random.default_rng(3).normal(100, 5, (1500, 5))
    found = compare(runs.tolist(), (runs + 1).tolist())
    assert found.interval is not None and 1.003 < found.interval.low < 1.01 < found.interval.high < 1.017
    assert found.verdict == "higher"


def test_the_same_values_give_the_same_interval() -> None:
    values = np.random.default_rng(3).normal(5, 1, 30).tolist()
    assert median_interval(values) == median_interval(values)


def test_runs_of_unequal_length_are_compared() -> None:
    found = compare([[10.0] * 3, [10.0] * 7], [[20.0] * 6])
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == (2.0, 2.0)


@pytest.mark.parametrize("base", [0.0, 5e-324])
@pytest.mark.parametrize(("count", "verdict"), [(5, "base not above 0"), (4, "too few values")])
def test_a_base_of_zero_has_no_ratio(count: int, verdict: str, base: float) -> None:
    found = compare([[base] * count], [[1.0] * count])
    assert (found.ratio, found.interval, found.verdict) == (None, None, verdict)
