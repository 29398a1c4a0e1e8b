"""Benchmark results as a table like llama-bench's: a row for each test (`pp512`, `tg128`) of each configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from toolkit.report.tables import Column, Draw, Form, Row, markdown, render
from toolkit.results.labels import labels, notes
from toolkit.results.outcomes import Outcome, outcomes
from toolkit.results.quantities import quantity
from toolkit.results.record import BenchRecord
from toolkit.results.statistics import MIN_PERCENTILE_VALUES


def bench_table(records: Sequence[BenchRecord], form: Form, draw: Draw = markdown) -> str:
    """The tests of all records as `md`, `csv`, `json` or `jsonl`, without a final newline.

    In Markdown, tests in tokens/s come first, in a table like llama-bench's; the others follow in a second table.
    `draw`: instead of `markdown`, for a terminal.
    """
    found = outcomes(records)
    if form != "md":
        rows = [_row(outcome) for outcome in found]
        return render([_without_values(row) for row in rows] if form == "csv" else rows, [], form)
    rates = [outcome for outcome in found if outcome.figure.endswith("tokens_per_s")]
    others = [outcome for outcome in found if outcome not in rates]
    tables = [(rates, _rate_columns(rates))] * bool(rates or not others) + [(others, _other_columns(others))] * bool(
        others
    )
    return "\n\n".join(render([_row(outcome) for outcome in part], columns, form, draw) for part, columns in tables)


def _row(outcome: Outcome) -> Row:
    """All values of a test's row, for every form; the statistics are in the unit in which `figure` ends."""
    found, part = outcome.found, outcome.record.delegation
    return {
        **labels(outcome.record),
        "threads": outcome.record.threads,
        "context": outcome.record.context,
        "delegated_nodes": part and part.delegated_nodes,
        "nodes": part and part.nodes,
        "test": outcome.test,
        "figure": outcome.figure,
        "n": len(outcome.values),
        "median": found and found.median,
        "mean": found and found.mean,
        "sd": found.sd if found and found.n > 1 else None,
        "p5": found and found.p5,
        "p95": found and found.p95,
        "notes": [*notes(outcome.record), *outcome.remarks],
        "outliers": list(outcome.outliers),
        "values": list(outcome.values),
    }


def _without_values(row: Row) -> Row:
    """A row of CSV, whose cells hold no series: `gemma-edge results export` has a row for each value."""
    return {key: value for key, value in row.items() if key != "values"}


def _rate_columns(rates: Sequence[Outcome]) -> list[Column]:
    return [
        *_label_columns(rates),
        Column("test", _text_of("test"), numeric=True),
        Column("t/s", lambda row: _quantity("median", "sd")(row).removesuffix(" t/s"), numeric=True),
        *_percentile_columns(rates, " t/s"),
        Column("n", _text_of("n"), numeric=True),
        *_note_columns(rates),
    ]


def _other_columns(others: Sequence[Outcome]) -> list[Column]:
    return [
        *_label_columns(others),
        Column("test", _text_of("test"), numeric=True),
        Column("median", _quantity("median", "sd"), numeric=True),
        *_percentile_columns(others),
        Column("n", _text_of("n"), numeric=True),
        *_note_columns(others),
    ]


def _percentile_columns(found: Sequence[Outcome], unit: str = "") -> list[Column]:
    """The 5th and 95th percentile, if any test has enough values for them; `unit` is the unit of the column."""

    def text(key: str) -> Callable[[Row], str]:
        return lambda row: _quantity(key)(row).removesuffix(unit) if _has_percentiles(row["n"]) else "-"

    shown = any(_has_percentiles(len(outcome.values)) for outcome in found)
    return [Column(key, text(key), numeric=True) for key in ("p5", "p95")] if shown else []


def _has_percentiles(count: object) -> bool:
    return isinstance(count, int) and count >= MIN_PERCENTILE_VALUES


def _label_columns(found: Sequence[Outcome]) -> list[Column]:
    """The columns for model, runner, settings and device, without those that are empty in every row."""
    rows = [labels(outcome.record) for outcome in found]
    return [Column(name, _text_of(name)) for name in (rows[0] if rows else {}) if any(row[name] for row in rows)]


def _note_columns(found: Sequence[Outcome]) -> list[Column]:
    return [Column("notes", _notes_text)] * any(notes(outcome.record) or outcome.remarks for outcome in found)


def _notes_text(row: Row) -> str:
    found = row["notes"]
    return ", ".join(map(str, found)) if isinstance(found, list) else ""


def _text_of(key: str) -> Callable[[Row], str]:
    return lambda row: "" if row[key] is None else str(row[key])


def _quantity(key: str, spread: str | None = None) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        value = row[key]
        around = None if spread is None else row[spread]
        if not isinstance(value, float):
            return "-"
        like = row["sd"]
        return quantity(
            str(row["figure"]),
            value,
            around if isinstance(around, float) else None,
            like=like if isinstance(like, float) else None,
        )

    return text
