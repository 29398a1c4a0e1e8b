"""Renders a page: one HTML file from a template and a record, without scripts or anything loaded from elsewhere.

The templates, in `templates`, have the words and the order; the records have the values. Text from records can only be
shown as text: it is escaped, control characters are shown as `\\x1b`, and the page's content security policy forbids
scripts in any case. Plots are part of the page and use its whole width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import jinja2

from toolkit.base.outputs import OutputKind
from toolkit.base.printable import printable
from toolkit.report.placed import legend_of, placed

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
class RowGroup:
    """Rows below a heading that spans all columns; None for rows without one."""

    heading: Cell | None
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, slots=True)
class Table:
    """Groups of rows, and a heading for each column."""

    headings: Sequence[str]
    groups: Sequence[RowGroup]

    @property
    def rows(self) -> Sequence[Sequence[Cell]]:
        """The rows of all groups."""
        return [row for group in self.groups for row in group.rows]

    def numeric(self, column: int) -> bool:
        """Whether a column's heading is aligned to the right, like its cells."""
        return any(row[column].numeric for row in self.rows)


def plain_table(headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    """A table whose rows are in no groups."""
    return Table(headings, [RowGroup(None, rows)])


@dataclass(frozen=True, slots=True)
class CardFigure:
    """One figure of a card: its name, its value with its unit, and what it depends on."""

    name: str
    value: str
    detail: str = ""
    known: bool = True
    """False if the value says that there is none."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judgement in words, and the reasons for it."""

    level: Literal["good", "care", "bad"]
    text: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Card:
    """The figures that most readers want, what they were measured on, and whether to trust them; `key`: an HTML id."""

    key: str
    title: str
    subtitle: str
    figures: tuple[CardFigure, ...]
    verdict: Verdict
    remarks: tuple[str, ...] = ()


class Page(Protocol):
    """The record that a template shows."""

    @property
    def template(self) -> str:
        """The file name of the template in `templates`."""


def _stranger(path: Path) -> str | None:
    """Says what a file is if it is not a page that this module rendered; otherwise None."""
    with open(path, "rb") as file:
        start = file.read(_MARK_BYTES)
    return None if start.startswith(b"<!doctype html>") and _MARK in start else "a file that is not a gemma-edge page"


PAGE = OutputKind("a page", _stranger)


def render_page(page: Page) -> bytes:
    """Render the HTML file. The bytes are reproducible."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__ or ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["placed"] = placed
    environment.filters["legend_of"] = legend_of
    return environment.get_template(page.template).render(page=page).encode()


def without_empty_columns(table: Table) -> Table:
    """The table without columns whose cells are all empty or dashes."""
    rows = table.rows
    kept = [
        index
        for index in range(len(table.headings))
        if any(row[index].text.strip("-") or row[index].flags for row in rows)
    ]
    groups = [RowGroup(group.heading, [[row[i] for i in kept] for row in group.rows]) for group in table.groups]
    return Table([table.headings[i] for i in kept], groups)


def _shown(value: object) -> object:
    """Make text printable before it is escaped; markup that a template made stays as it is."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
