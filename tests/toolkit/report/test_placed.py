"""Plots on a page: where parts lie, and what the axes share."""

from __future__ import annotations

import math

import pytest

from toolkit.report.axis import axis_over
from toolkit.report.placed import PlacedRows, PlacedSeries, placed
from toolkit.report.plots import Bar, Distributions, Line, Panel, StackedBars, TimeSeries


@pytest.mark.parametrize(
    ("values", "from_zero", "marks"),
    [
        ([3.2, 11.7], True, (0, 2, 4, 6, 8, 10, 12)),
        ([0.0], True, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        ([], True, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        ([-3.0, 4.0], True, (-4, -2, 0, 2, 4)),
        ([31.0, 31.2, math.nan], False, (31.0, 31.05, 31.1, 31.15, 31.2)),
        ([5.0], False, (4.0, 4.5, 5.0, 5.5, 6.0)),
        ([1e18], False, (1e18 - 1e12, 1e18 - 0.5e12, 1e18, 1e18 + 0.5e12, 1e18 + 1e12)),
        ([5e-324], True, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
    ],
)
def test_an_axis_has_round_marks_and_holds_all_values(
    values: list[float], from_zero: bool, marks: tuple[float, ...]
) -> None:
    axis = axis_over(values, from_zero=from_zero)
    assert axis.marks == pytest.approx(marks)
    assert axis.place(axis.low) == 0 and axis.place(axis.high) == 100
    assert all(0 <= axis.place(value) <= 100 for value in values if math.isfinite(value))


def test_marks_have_the_decimals_of_their_step() -> None:
    assert [text for _, text in axis_over([1234.0, 5000.0]).texts()][-1] == "5,000"
    assert [text for _, text in axis_over([0.05]).texts()][:2] == ["0.00", "0.01"]


def test_parts_of_a_bar_follow_each_other_and_end_at_their_sum() -> None:
    drawn = placed(StackedBars("", "B", [Bar("a", {"x": 1.0, "y": 3.0}), Bar("b", {"x": 0.0, "y": 10.0})]))
    assert isinstance(drawn, PlacedRows)
    first, second = drawn.rows
    assert [(part.begin, part.width) for part in first.parts] == [(0.0, 10.0), (10.0, 30.0)]
    assert [(part.name, part.colour) for part in second.parts] == [("y", 1)]
    assert (first.end, second.end) == ("4.00", "10.0")
    assert drawn.legend == (("x", 0), ("y", 1))


def test_plots_that_end_at_the_same_value_have_the_same_axis() -> None:
    one, other = (placed(Distributions("", "t/s", {"a": values}, most=80.0)) for values in ([10.0, 11.0], [79.0, 80.0]))
    assert isinstance(one, PlacedRows) and isinstance(other, PlacedRows)
    assert one.marks == other.marks
    assert [dot.x for dot in one.rows[0].dots] == [12.5, 13.75]


def test_the_first_value_is_on_top() -> None:
    drawn = placed(Distributions("", "t/s", {"a": [1.0, 2.0, 3.0]}))
    assert isinstance(drawn, PlacedRows)
    assert [dot.y for dot in drawn.rows[0].dots] == [20.0, 50.0, 80.0]


def test_a_panel_begins_at_zero_only_if_it_should() -> None:
    rates = Panel("t/s", {"tg": Line([0.0, 10.0], [16.0, math.nan], dots=True)}, from_zero=True)
    heat = Panel("°C", {"skin": Line([0.0, 10.0], [31.0, 33.0])})
    drawn = placed(TimeSeries("", [rates, heat]))
    assert isinstance(drawn, PlacedSeries)
    first, second = drawn.panels
    assert (first.marks[0][1], second.marks[0][1]) == ("0", "31")
    assert first.lines[0].points == "0,20" and len(first.lines[0].dots) == 1
    assert second.lines[0].points == "0,100 100,0" and second.lines[0].dots == ()
    assert (first.lines[0].colour, second.lines[0].colour) == (0, 1)
