"""Plots, and their files as SVG or PNG; on a page, `placed` draws them.

The one place that knows matplotlib, which is imported when the first plot is drawn.

The same data gives the same bytes under one version of matplotlib: no dates, random ids or settings of the user.
Colours are Okabe and Ito's, which the colour-blind tell apart; labels stand beside them wherever there is room.
"""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.base.errors import UsageError
from toolkit.base.files import write_bytes
from toolkit.base.outputs import Output, OutputKind
from toolkit.base.printable import printable
from toolkit.results.quantities import significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png")
_PROGRAM = "gemma-edge"
"""What a picture's metadata names as the program that made it."""
_MARK_BYTES = 2048
"""Within so many bytes from the start."""

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
_INK = "#1a1b1c"
_SETTINGS: dict[str, object] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "savefig.dpi": 160,
    "svg.fonttype": "none",
    "svg.hashsalt": "gemma-edge",
    "text.parse_math": False,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), _INK
    ),
}
_WIDTH_INCHES = 8.0
_GAP = 0.4  # between bars set apart, in bars


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: parts by name, in the order they are stacked; all bars of a plot share names and colours."""

    label: str
    parts: Mapping[str, float]
    gap_before: bool = False
    """Leaves a gap above this bar, to set it and those below apart."""


@dataclass(frozen=True, slots=True)
class StackedBars:
    """Horizontal bars of stacked parts, each with its sum at its end, in `unit`."""

    title: str
    unit: str
    bars: Sequence[Bar]


@dataclass(frozen=True, slots=True)
class Distributions:
    """Every value as a dot, one row for each label; a bar marks the median."""

    title: str
    unit: str
    rows: Mapping[str, Sequence[float]]
    most: float | None = None
    """The least end of the axis, so that plots of the same figure can be compared."""


@dataclass(frozen=True, slots=True)
class Line:
    """A figure over time; with `dots`, each value is one measurement, otherwise samples form a line."""

    times_s: Sequence[float]
    values: Sequence[float]
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines by name, drawn over one axis in `unit`."""

    unit: str
    lines: Mapping[str, Line]
    from_zero: bool = False
    """Whether the axis begins at 0, so that heights are in proportion."""


@dataclass(frozen=True, slots=True)
class TimeSeries:
    """Panels one below the other that share an axis, which is time unless `axis` names something else."""

    title: str
    panels: Sequence[Panel]
    axis: str = "seconds since the run began"


Plot = StackedBars | Distributions | TimeSeries


def svg(plot: Plot) -> bytes:
    """The bytes of an SVG file."""
    with _drawn(plot) as figure:
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": _PROGRAM})
    return out.getvalue()


def png(plot: Plot) -> bytes:
    """The bytes of a PNG file."""
    with _drawn(plot) as figure:
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": _PROGRAM})
    return out.getvalue()


def plot_output(path: Path | str, inputs: Sequence[Path] = (), *, force: bool = False) -> Output:
    """The output for a plot; UsageError unless its name ends in .svg or .png."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UsageError(file=path, found=f"the ending {Path(path).suffix!r}", wanted=" or ".join(SUFFIXES))
    return Output(Path(path), _PNG if _is_png(Path(path)) else _SVG, tuple(inputs), force)


def write_plot(plot: Plot, output: Output) -> None:
    """Write a plot as SVG or PNG, depending on the ending of `output`, which `plot_output` made."""
    output.require()
    write_bytes(output.path, png(plot) if _is_png(output.path) else svg(plot))


def _is_png(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def _stranger(path: Path, *, begin: bytes, mark: bytes) -> str | None:
    """Says what a file is if it does not begin with `begin` or lacks the mark of our pictures; otherwise None."""
    with open(path, "rb") as file:
        start = file.read(_MARK_BYTES)
    return None if start.startswith(begin) and mark in start else "a file that is not a gemma-edge picture"


_PNG = OutputKind("a PNG", partial(_stranger, begin=b"\x89PNG\r\n", mark=f"tEXtSoftware\0{_PROGRAM}".encode()))
_SVG = OutputKind("an SVG", partial(_stranger, begin=b"<?xml", mark=f"<dc:title>{_PROGRAM}</dc:title>".encode()))


@contextmanager
def _drawn(plot: Plot) -> Iterator[Figure]:
    """The drawn figure; save it inside the context, since saving reads matplotlib's settings too."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", _SETTINGS]), warnings.catch_warnings():
        # A reader's browser has fonts for what this one lacks.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(layout="constrained")
        if isinstance(plot, StackedBars):
            _draw_stacked_bars(figure, plot)
        elif isinstance(plot, Distributions):
            _draw_distributions(figure, plot)
        else:
            _draw_time_series(figure, plot)
        yield figure


def _draw_stacked_bars(figure: Figure, plot: StackedBars) -> None:
    names = list(dict.fromkeys(name for bar in plot.bars for name in bar.parts))
    gaps = itertools.accumulate(_GAP * bar.gap_before for bar in plot.bars)
    heights = [row + gap for row, gap in enumerate(gaps)]
    labels = [bar.label for bar in plot.bars]
    axes = _rows_of(figure, labels, heights, extra_inches=0.45 if len(names) > 1 else 0.0)
    totals = [sum(bar.parts.values()) for bar in plot.bars]
    longest = max(totals, default=0.0)
    ends = [0.0] * len(plot.bars)
    for index, name in enumerate(names):
        colour = _COLOURS[index % len(_COLOURS)]
        hatch = "//" if index >= len(_COLOURS) else None
        widths = [bar.parts.get(name, 0.0) for bar in plot.bars]
        axes.barh(heights, widths, left=ends, height=0.7, color=colour, hatch=hatch, label=_legend_text(name))
        for height, end, width, whole in zip(heights, ends, widths, totals, strict=True):
            if 0.065 * longest < width < whole:  # a bar of one part has its number at its end
                axes.text(end + width / 2, height, significant(width), ha="center", va="center", color=_on(colour))
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    for height, end in zip(heights, ends, strict=True):
        axes.text(end + 0.01 * longest, height, significant(end), ha="left", va="center", weight="bold")
    axes.set_xlim(0, 1.1 * longest or 1)
    axes.set_xlabel(_text(plot.unit, 60))
    _set_title(figure, plot.title)
    if len(names) > 1:
        figure.legend(loc="outside lower center", ncols=min(len(names), 5))


def _draw_distributions(figure: Figure, plot: Distributions) -> None:
    from toolkit.results.statistics import summary

    axes = _rows_of(figure, list(plot.rows), range(len(plot.rows)))
    for row, values in enumerate(plot.rows.values()):
        found = summary(values)
        axes.plot([found.median] * 2, [row - 0.3, row + 0.3], color=_COLOURS[5], linewidth=2)
        # Equal values would hide each other on one line, so they are spread from top to bottom in the order measured.
        heights = [row + 0.36 * (index / max(1, len(values) - 1) - 0.5) for index in range(len(values))]
        axes.plot(values, heights, "o", markersize=3.5, color=_COLOURS[0], markeredgewidth=0)
    values = [value for row in plot.rows.values() for value in row]
    most = max([*values, plot.most or 0.0], default=1.0)
    axes.set_xlim(min([0.0, *values]), 1.05 * most or 1.0)
    axes.set_xlabel(_text(plot.unit, 60))
    _set_title(figure, plot.title)


def _draw_time_series(figure: Figure, plot: TimeSeries) -> None:
    count = max(1, len(plot.panels))
    figure.set_size_inches(_WIDTH_INCHES, 0.7 + 1.35 * count)
    every = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    # Lines of the same name have the same colour in all panels, and no others.
    names = dict.fromkeys(name for panel in plot.panels for name in panel.lines)
    colours = dict(zip(names, itertools.cycle(_COLOURS), strict=False))
    for axes, panel in zip(every, plot.panels, strict=False):
        _draw_panel(axes, panel, colours)
    _set_title(figure, plot.title)
    every[-1].set_xlabel(_text(plot.axis, 60))
    figure.align_ylabels()


def _draw_panel(axes: Axes, panel: Panel, colours: Mapping[str, str]) -> None:
    for name, line in panel.lines.items():
        axes.plot(
            line.times_s,
            line.values,
            color=colours[name],
            linestyle=":" if line.dots else "-",
            linewidth=1.0 if line.dots else 1.4,
            marker="o" if line.dots else "",
            markersize=4.5,
            label=_legend_text(name),
        )
    axes.set_ylabel(_text(panel.unit, 16))
    axes.grid(axis="y")
    axes.margins(y=0.2)
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", useOffset=False)
    if panel.lines:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.5)


def _set_title(figure: Figure, title: str) -> None:
    """Put the title at the left edge of the picture: long labels may leave the axes little room."""
    if title:
        figure.suptitle(_text(title), x=0.01, ha="left", fontsize=10)


def _rows_of(figure: Figure, labels: Sequence[str], heights: Sequence[float], *, extra_inches: float = 0.0) -> Axes:
    """Axes with one labelled row for each label at its height, the first on top."""
    last = max(heights, default=0.0)
    lines = max((label.count("\n") + 1 for label in labels), default=1)
    row_inches = max(0.36, 0.16 * lines + 0.05)
    figure.set_size_inches(_WIDTH_INCHES, 0.9 + extra_inches + row_inches * (last + 1))
    axes = figure.subplots()
    axes.set_yticks(heights, [_text(label, 60) for label in labels])
    axes.set_ylim(last + 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    return axes


def _text(text: str, most: int = 110) -> str:
    """A text made safe to draw: each line is cut to `most` characters, and control characters are shown."""
    lines = map(printable, text.split("\n"))
    return "\n".join(line if len(line) <= most else line[: most - 1] + "…" for line in lines)


def _legend_text(name: str) -> str:
    """A name for the legend, with a space before a leading underscore: matplotlib omits names that begin with one."""
    return _text(f" {name}" if name.startswith("_") else name, 40)


def _on(colour: str) -> str:
    """Black or white, whichever is easier to read on `colour` (relative luminance, WCAG 2).

    >>> _on("#0072B2"), _on("#F0E442")
    ('white', 'black')
    """
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if luminance < 0.1791 else "black"
