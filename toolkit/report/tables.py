"""Renders tables as Markdown, CSV, JSON or JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from toolkit.base.printable import printable, spreadsheet_text

Form = Literal["md", "csv", "json", "jsonl"]
FORMS: tuple[Form, ...] = get_args(Form)

Row = Mapping[str, object]
"""Keys end in their units. Values are scalars or lists of scalars."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a Markdown table: its heading, and a function from a row to the cell's text."""

    heading: str
    text: Callable[[Row], str]
    numeric: bool = False


class Draw(Protocol):
    """Draws a table for people, as `markdown` does."""

    def __call__(
        self, header: Sequence[str], rows: Sequence[Sequence[str]], /, *, numeric: Sequence[bool] = ()
    ) -> str: ...


def render(rows: Sequence[Row], columns: Sequence[Column], form: Form, draw: Draw | None = None) -> str:
    """Render rows in one of the forms; `draw`: instead of `markdown`, for a terminal.

    Markdown shows `columns`; JSON and CSV show all keys, CSV with a list in one cell, joined by `; `.
    """
    if form == "md":
        return _drawn(rows, columns, draw or markdown)
    if form == "csv":
        return _csv(rows)
    if form == "jsonl":
        return "\n".join(json.dumps(row, allow_nan=False) for row in rows)
    return json.dumps(list(rows), indent=1, allow_nan=False)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[bool] = ()) -> str:
    """A Markdown table, padded so that it reads well as plain text too; `numeric` columns are aligned to the right.

    >>> print(markdown(["test", "t/s"], [["pp512", "9.5"], ["a|b", "10.5"]], numeric=[False, True]))
    | test  |  t/s |
    |-------|-----:|
    | pp512 |  9.5 |
    | a\\|b  | 10.5 |
    """
    lines = [[_escaped(cell) for cell in line] for line in [header, *rows]]
    right = [*numeric, *[False] * (len(header) - len(numeric))]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]
    rule = "|".join(
        "-" * (width + 1) + (":" if to_right else "-") for width, to_right in zip(widths, right, strict=True)
    )
    texts = []
    for line in lines:
        cells = zip(line, widths, right, strict=True)
        padded = [cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in cells]
        texts.append(f"| {' | '.join(padded)} |")
    return "\n".join([texts[0], f"|{rule}|", *texts[1:]])


def _drawn(rows: Sequence[Row], columns: Sequence[Column], draw: Draw) -> str:
    cells = [[column.text(row) for column in columns] for row in rows]
    headings = [column.heading for column in columns]
    return draw(headings, cells, numeric=[column.numeric for column in columns])


def _csv(rows: Sequence[Row]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(keys)
    for row in rows:
        writer.writerow([_csv_cell(row.get(key)) for key in keys])
    return text.getvalue().removesuffix("\n")


def _csv_cell(value: object) -> object:
    text = "; ".join(map(str, value)) if isinstance(value, list) else value
    return spreadsheet_text(text) if isinstance(text, str) else text


def _escaped(cell: str) -> str:
    return printable(cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "\\<"))
