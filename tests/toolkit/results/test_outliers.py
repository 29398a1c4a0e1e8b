"""Outliers and slow starts, on values made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from result_records import record_of

from toolkit.results.outcomes import outcomes
from toolkit.results.outliers import has_slow_start, outliers, remarks


def test_normal_values_have_hardly_any_outliers() -> None:
    random = np.random.default_rng(7)
    named = [outliers(random.normal(100, 5, count).tolist()) for count in (10, 20, 50) for _ in range(200)]
    assert sum(map(bool, named)) <= 0.05 * len(named)


def test_values_that_repeat_name_only_what_matters() -> None:
    assert outliers([10.0, 10.0, 10.0, 10.0, 10.4]) == (), "4 % of the median"
    assert outliers([10.0, 10.0, 10.0, 10.0, 11.0]) == (4,)
    assert outliers([0.0] * 6) == ()


def test_outliers_do_not_hide_each_other() -> None:
    assert outliers([10, 10.1, 30, 9.9, 10, 50, 10.2]) == (2, 5)


@pytest.mark.parametrize(
    ("figure", "first", "slow"),
    [
        ("decode_tokens_per_s", 2.0, True),
        ("decode_tokens_per_s", 50.0, False),
        ("init_s", 50.0, True),
        ("init_s", 2.0, False),
        ("peak_memory_bytes", 50.0, False),
        ("decode_joules_per_token", 50.0, False),
    ],
)
def test_only_a_slow_first_iteration_is_a_slow_start(figure: str, first: float, slow: bool) -> None:
    values = [first, 10.0, 10.1, 9.9, 10.0]
    assert has_slow_start(figure, values) is slow
    assert list(remarks(figure, values, [1, 2, 3, 4, 5])) == [
        "slow first iteration" if slow else "outlier: iteration 1"
    ]


def test_a_slow_first_among_other_outliers_is_one_of_them() -> None:
    assert list(remarks("init_s", [50.0, 10.0, 10.1, 30.0, 10.0, 9.9], range(1, 7))) == ["outliers: iterations 1, 4"]


def test_an_iteration_without_a_value_counts() -> None:
    values = [5.0, 10.0, 10.1, 9.9, 10.0]
    assert list(remarks("decode_tokens_per_s", values, [2, 3, 4, 5, 6])) == ["outlier: iteration 2"]
    record = record_of([10.0, 10.1, *values[::-1]])
    without = replace(record.iterations[0], figures={})
    (outcome,) = outcomes([replace(record, iterations=(without, *record.iterations[1:]))])
    assert (len(outcome.values), outcome.outliers, outcome.remarks) == (6, (7,), ("outlier: iteration 7",))
