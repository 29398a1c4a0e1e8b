"""Renders a page: one HTML file from a template and a record, without scripts or anything loaded from elsewhere.

The templates, in `templates`, have the words and the order; the records have the values. Text from records can only
show as text: it is escaped, control characters are shown as `\\x1b`, plots are images, which cannot run scripts, and
the page's content security policy forbids scripts in any case.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jinja2

from toolkit.base.files import Advance, Progress
from toolkit.base.outputs import OutputKind
from toolkit.base.printable import printable
from toolkit.report.plots import Plot, svg

_MARK = b'<meta name="generator" content="gemma-edge">'
"""What every page has in its head: templates/page.html.jinja."""
_MARK_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Cell:
    """A table's cell; `flags` are marked by shape and words, not by colour alone; `link` is the id of a heading."""

    text: str
    numeric: bool = False
    flags: tuple[str, ...] = ()
    link: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells, and a heading for each column; `numeric` headings are aligned to the right like their cells."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot, and its text alternative for readers who cannot see it."""

    plot: Plot
    alternative: str


class Page(Protocol):
    """The record that a template shows."""

    @property
    def template(self) -> str:
        """The file name of the template in `templates`."""

    @property
    def pictures(self) -> Sequence[Picture]:
        """All pictures on the page, for the progress bar: drawing them takes most of the time."""


def _stranger(path: Path) -> str | None:
    """What a file is, unless it is a page that this module rendered; None if it is."""
    with open(path, "rb") as file:
        start = file.read(_MARK_BYTES)
    return None if start.startswith(b"<!doctype html>") and _MARK in start else "a file that is no page of gemma-edge's"


PAGE = OutputKind("a page", _stranger)


def render_page(page: Page, progress: Progress | None = None) -> bytes:
    """Render the HTML file; `progress` gets the number of pictures drawn and the total. The bytes are reproducible."""
    advance = Advance(len(page.pictures), progress)

    def image(plot: Plot) -> str:
        source = _image(plot)
        advance(1)
        return source

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__ or ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["image"] = image
    return environment.get_template(page.template).render(page=page).encode()


def without_empty_columns(table: Table) -> Table:
    """The table without columns whose cells are all empty or dashes."""
    kept = [
        index
        for index in range(len(table.headings))
        if any(row[index].text.strip("-") or row[index].flags for row in table.rows)
    ]
    return Table([table.headings[i] for i in kept], [[row[i] for i in kept] for row in table.rows])


def _shown(value: object) -> object:
    """Make text printable, before it is escaped; markup that a template made stays as it is."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _image(plot: Plot) -> str:
    """A plot as a data URL, for the `src` of an image."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg(plot, on_page=True)).decode()
