"""A report as one HTML file: sections of text, facts, tables and pictures. No scripts, nothing loaded from elsewhere.

Whatever text comes in stays text: the template escapes it, control characters are replaced, pictures are images that
cannot run anything, and the page's own policy forbids what might slip through.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import jinja2

from toolkit.base.files import Advance, Progress
from toolkit.base.printable import printable
from toolkit.report.plots import Plot, svg

_TEMPLATE = "page.html"


@dataclass(frozen=True, slots=True)
class Cell:
    """A table's cell; `flags` are set apart by shape and words, not by colour alone; `link` names a section."""

    text: str
    numeric: bool = False
    flags: tuple[str, ...] = ()
    link: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under a heading each; `numeric` headings stand to the right as their cells do."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and what they are, such as a device's build and kernel; `code` values are for copying."""

    items: Sequence[tuple[str, str]]
    code: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot, `alternative` to it in words for those who cannot see it, and what stands below it."""

    plot: Plot
    alternative: str
    caption: str = ""


Block = Table | Facts | Picture | str
"""A string is a paragraph."""


@dataclass(frozen=True, slots=True)
class Section:
    """`key` is what links lead to: letters, digits and hyphens. `level` 2 or 3 is that of its heading."""

    key: str
    title: str
    blocks: Sequence[Block]
    level: int = 2
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """`warnings` stand above all else."""

    title: str
    introduction: str
    warnings: Sequence[str]
    sections: Sequence[Section]


def render_page(page: Page, progress: Progress | None = None) -> bytes:
    """The whole file; pictures take most of the time, and `progress` gets those drawn and those in all."""
    pictures = sum(isinstance(block, Picture) for section in page.sections for block in section.blocks)
    advance = Advance(pictures, progress)
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["source"] = lambda picture: _source(picture, advance)
    environment.filters["kind"] = _kind
    text = resources.files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(text).render(page=page).encode()


def _finalize(value: object) -> object:
    """Every text that a page shows passes here before it is escaped."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _source(picture: Picture, advance: Advance) -> str:
    """A picture as an image inside the page."""
    data = svg(picture.plot, on_page=True)
    advance(1)
    return "data:image/svg+xml;base64," + base64.b64encode(data).decode()


def _kind(block: Block) -> str:
    return {Table: "table", Facts: "facts", Picture: "picture"}.get(type(block), "text")
