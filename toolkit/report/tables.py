"""Results as Markdown, CSV, JSON or JSON lines, as llama-bench shows them: one row for each test, `pp512`, `tg128`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from toolkit.report.statistics import summary

Form = Literal["md", "csv", "json", "jsonl"]
FORMS: tuple[Form, ...] = get_args(Form)

Scalar = str | int | float | bool | None
Row = Mapping[str, object]
"""Keys with units in their names; values are scalars, or what JSON alone can hold: lists and mappings."""


@dataclass(frozen=True, slots=True)
class Column:
    """How Markdown shows a row's figure: a heading, and text made of the row."""

    heading: str
    text: Callable[[Row], str]
    numeric: bool = False


@dataclass(frozen=True, slots=True)
class Rates:
    """One test of one configuration: its tokens/s in each iteration, the order kept."""

    labels: Mapping[str, str]
    """What was measured on what, such as bundle, size, runner, device; the same keys in all rows of a table."""
    test: str
    tokens_per_s: Sequence[float]
    notes: Sequence[str] = field(default_factory=tuple)
    """What no reader may overlook, such as `emulated`, `throttled`, `drift`."""


def workload_name(prompt_tokens: int, generated_tokens: int) -> str:
    """
    >>> workload_name(512, 0), workload_name(0, 128), workload_name(512, 128)
    ('pp512', 'tg128', 'pp512+tg128')
    """
    parts = [f"pp{prompt_tokens}"] * bool(prompt_tokens) + [f"tg{generated_tokens}"] * bool(generated_tokens)
    return "+".join(parts)


def rates_table(rates: Sequence[Rates], form: Form) -> str:
    """Median ± standard deviation, 5th and 95th percentile and the number of iterations of each; no last line end."""
    columns = [Column(label, _cell(label)) for label in (rates[0].labels if rates else {})]
    columns += [
        Column("test", _cell("test"), numeric=True),
        Column("t/s", _median_and_sd, numeric=True),
        Column("p5", _fixed("tokens_per_s_p5"), numeric=True),
        Column("p95", _fixed("tokens_per_s_p95"), numeric=True),
        Column("n", _cell("n"), numeric=True),
    ]
    if any(rate.notes for rate in rates):
        columns.append(Column("notes", lambda row: ", ".join(_texts(row["notes"]))))
    return render([_rates_row(rate) for rate in rates], columns, form)


def render(rows: Sequence[Row], columns: Sequence[Column], form: Form) -> str:
    """`columns` are Markdown's; the other forms hold all keys of the rows, but CSV no lists of numbers or mappings."""
    if form == "md":
        return _markdown(rows, columns)
    if form == "csv":
        return _csv(rows)
    if form == "jsonl":
        return "\n".join(json.dumps(row, allow_nan=False) for row in rows)
    return json.dumps(list(rows), indent=1, allow_nan=False)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[bool] = ()) -> str:
    """A table with columns padded, so that it reads well as plain text too; `numeric` ones stand to the right.

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


def printable(text: str) -> str:
    """`text` on one line, without the control characters by which a device's strings could steer a terminal.

    >>> printable("Pixel\\x1b[31m 8\\n")
    'Pixel\ufffd[31m 8\ufffd'
    """
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def _markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    cells = [[column.text(row) for column in columns] for row in rows]
    headings = [column.heading for column in columns]
    return markdown(headings, cells, numeric=[column.numeric for column in columns])


def _csv(rows: Sequence[Row]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key, value in row.items() if _fits_csv(value)))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(keys)
    for row in rows:
        writer.writerow([_csv_cell(row.get(key)) for key in keys])
    return text.getvalue().removesuffix("\n")


def _rates_row(rate: Rates) -> Row:
    found = summary(rate.tokens_per_s)
    return {
        **rate.labels,
        "test": rate.test,
        "n": found.n,
        "tokens_per_s_median": found.median,
        "tokens_per_s_mean": found.mean,
        "tokens_per_s_sd": found.sd,
        "tokens_per_s_p5": found.p5,
        "tokens_per_s_p95": found.p95,
        "tokens_per_s": list(rate.tokens_per_s),
        "notes": list(rate.notes),
    }


def _cell(key: str) -> Callable[[Row], str]:
    return lambda row: str(row[key])


def _fixed(key: str) -> Callable[[Row], str]:
    return lambda row: f"{row[key]:.2f}"


def _median_and_sd(row: Row) -> str:
    return f"{row['tokens_per_s_median']:.2f} ± {row['tokens_per_s_sd']:.2f}"


def _texts(value: object) -> list[str]:
    """The items of a list of texts; of anything else none."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _fits_csv(value: object) -> bool:
    return value is None or isinstance(value, (str, int, float)) or value == [] or bool(_texts(value))


def _csv_cell(value: object) -> object:
    text = "; ".join(_texts(value)) if isinstance(value, list) else value
    return printable(text) if isinstance(text, str) else text


def _escaped(cell: str) -> str:
    return printable(cell).replace("\\", "\\\\").replace("|", "\\|").replace("<", "\\<")
