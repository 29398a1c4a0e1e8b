"""Tables of results: Markdown, or on a terminal too narrow for that, with what rows share in a line above them."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from itertools import groupby

from gemma_edge.terminal import folded
from toolkit.base.printable import printable
from toolkit.report.tables import markdown


def fitted(header: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[bool] = ()) -> str:
    """The table as `markdown` draws it, or, if stdout is a terminal that it does not fit, one that is no wider."""
    drawn = markdown(header, rows, numeric=numeric)
    width = shutil.get_terminal_size().columns
    if not sys.stdout.isatty() or max(map(len, drawn.splitlines())) <= width:
        return drawn
    return _grouped(header, rows, numeric, width)


def _grouped(header: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool], width: int) -> str:
    """A table for each run of rows with the same words before the first number, under a line with these words."""
    labels = list(numeric).index(True) if True in numeric else 0
    parts = []
    for shared, group in groupby(rows, key=lambda row: tuple(row[:labels])):
        words = ", ".join(f"{name} {printable(value)}" for name, value in zip(header, shared, strict=False) if value)
        cells = [[printable(cell) for cell in row[labels:]] for row in (header, *group)]
        title = textwrap.fill(words, width, break_on_hyphens=False)
        parts.append("\n".join([title] * bool(words) + [folded(cells, width, numeric[labels:])]))
    return "\n\n".join(parts)
