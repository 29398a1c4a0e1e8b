"""A page: one HTML file made of a template and a record. No scripts, nothing loaded from elsewhere.

The templates stand in `templates`: they hold the words and the order, records hold the figures. Whatever text comes in
stays text: it is escaped, control characters are shown as `\\x1b`, pictures are images that cannot run anything, and
the page's own policy forbids what might slip through.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import jinja2

from toolkit.base.files import Advance, Progress
from toolkit.base.printable import printable
from toolkit.report.plots import Plot, svg


@dataclass(frozen=True, slots=True)
class Cell:
    """A table's cell; `flags` are set apart by shape and words, not by colour alone; `link` is the id of a heading."""

    text: str
    numeric: bool = False
    flags: tuple[str, ...] = ()
    link: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under a heading each; `numeric` headings stand to the right as their cells do."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot, and `alternative` to it in words for those who cannot see it."""

    plot: Plot
    alternative: str


class Page(Protocol):
    """What a template shows."""

    @property
    def template(self) -> str:
        """The template's file name, in `templates`."""

    @property
    def pictures(self) -> Sequence[Picture]:
        """All that the template shows, whose drawing takes most of the time."""


def render_page(page: Page, progress: Progress | None = None) -> bytes:
    """The whole file; `progress` gets the number of pictures drawn and of all. The same page gives the same bytes."""
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
    """Every text that a page shows passes here before it is escaped; what a template made is markup already."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _image(plot: Plot) -> str:
    """A plot as the source of an image inside the page."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg(plot, on_page=True)).decode()
