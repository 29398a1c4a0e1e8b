"""Plots on a page: the place of each part of a plot in percent, for the macros in `templates/plots.html.jinja`.

With places in percent, a browser can draw a plot at any width without scaling its text.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from toolkit.report.axis import Axis, axis_over
from toolkit.report.plots import Distributions, Line, Panel, Plot, StackedBars, TimeSeries
from toolkit.results.quantities import significant
from toolkit.results.statistics import summary

COLOURS = 8
"""How many colours `page.css` has; further parts begin with the first again."""


@dataclass(frozen=True, slots=True)
class PlacedPart:
    """A part of a bar: its name, colour, and its extent in percent."""

    name: str
    colour: int
    begin: float
    width: float


@dataclass(frozen=True, slots=True)
class PlacedDot:
    """A dot, in percent from the left and from the top."""

    x: float
    y: float


@dataclass(frozen=True, slots=True)
class PlacedRow:
    """One row: the lines of its label, its marks, and the text at its end."""

    label: tuple[str, ...]
    parts: tuple[PlacedPart, ...] = ()
    dots: tuple[PlacedDot, ...] = ()
    median: float | None = None
    end: str = ""
    gap_before: bool = False


@dataclass(frozen=True, slots=True)
class PlacedRows:
    """Rows over one axis. `legend`: names with their colours; empty if there is only one name."""

    kind: str
    title: str
    unit: str
    marks: tuple[tuple[float, str], ...]
    rows: tuple[PlacedRow, ...]
    legend: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class PlacedLine:
    """A line through points, as the `points` of a polyline over 100 x 100; with `dots`, each is a measurement."""

    name: str
    colour: int
    points: str
    dots: tuple[PlacedDot, ...]


@dataclass(frozen=True, slots=True)
class PlacedPanel:
    """Lines over a common axis of time."""

    unit: str
    marks: tuple[tuple[float, str], ...]
    lines: tuple[PlacedLine, ...]


@dataclass(frozen=True, slots=True)
class PlacedSeries:
    """Panels, one below the other."""

    kind: str
    title: str
    axis: str
    marks: tuple[tuple[float, str], ...]
    panels: tuple[PlacedPanel, ...]


def placed(plot: Plot) -> PlacedRows | PlacedSeries:
    """Place all parts of a plot."""
    if isinstance(plot, StackedBars):
        return _placed_bars(plot)
    return _placed_distributions(plot) if isinstance(plot, Distributions) else _placed_series(plot)


def _placed_bars(plot: StackedBars) -> PlacedRows:
    names = list(dict.fromkeys(name for bar in plot.bars for name in bar.parts))
    axis = axis_over(sum(bar.parts.values()) for bar in plot.bars)
    rows = []
    for bar in plot.bars:
        ends = [0.0, *itertools.accumulate(bar.parts.values())]
        parts = [
            _placed_part(name, names.index(name), axis.place(begin), axis.place(end))
            for (name, width), begin, end in zip(bar.parts.items(), ends, ends[1:], strict=False)
            if width > 0
        ]
        rows.append(PlacedRow(_lines(bar.label), tuple(parts), end=significant(ends[-1]), gap_before=bar.gap_before))
    legend = tuple((name, index % COLOURS) for index, name in enumerate(names)) if len(names) > 1 else ()
    return PlacedRows("bars", plot.title, plot.unit, axis.texts(), tuple(rows), legend)


def _placed_part(name: str, index: int, begin: float, end: float) -> PlacedPart:
    return PlacedPart(name, index % COLOURS, begin, round(end - begin, 2))


def _placed_distributions(plot: Distributions) -> PlacedRows:
    axis = axis_over([plot.most or 0.0, *(value for values in plot.rows.values() for value in values)])
    rows = []
    for label, values in plot.rows.items():
        last = max(1, len(values) - 1)
        dots = [PlacedDot(axis.place(value), round(20 + 60 * index / last, 1)) for index, value in enumerate(values)]
        middle = axis.place(summary(values).median) if values else None
        rows.append(PlacedRow(_lines(label), dots=tuple(dots), median=middle))
    return PlacedRows("distributions", plot.title, plot.unit, axis.texts(), tuple(rows))


def _placed_series(plot: TimeSeries) -> PlacedSeries:
    times = axis_over(time for panel in plot.panels for line in panel.lines.values() for time in line.times_s)
    colours = itertools.count()
    panels = tuple(_placed_panel(panel, times, colours) for panel in plot.panels)
    return PlacedSeries("series", plot.title, plot.axis, times.texts(), panels)


def _placed_panel(panel: Panel, times: Axis, colours: Iterator[int]) -> PlacedPanel:
    every = [value for line in panel.lines.values() for value in line.values]
    axis = axis_over(every, from_zero=panel.from_zero, most_marks=3)
    lines = tuple(_placed_line(name, line, times, axis, next(colours) % COLOURS) for name, line in panel.lines.items())
    return PlacedPanel(panel.unit, tuple((100 - place, text) for place, text in axis.texts()), lines)


def _placed_line(name: str, line: Line, times: Axis, axis: Axis, colour: int) -> PlacedLine:
    places = [
        PlacedDot(times.place(time), round(100 - axis.place(value), 2))
        for time, value in zip(line.times_s, line.values, strict=False)
        if math.isfinite(value)
    ]
    points = " ".join(f"{place.x:g},{place.y:g}" for place in places)
    return PlacedLine(name, colour, points, tuple(places) if line.dots else ())


def _lines(text: str) -> tuple[str, ...]:
    return tuple(text.split("\n"))


def legend_of(lines: Sequence[PlacedLine]) -> tuple[tuple[str, int], ...]:
    """The names of lines with their colours."""
    return tuple((line.name, line.colour) for line in lines)
